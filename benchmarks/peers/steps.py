"""Compare a training step of each tool with float: time in turns, peak memory in new processes."""

import pathlib
import sys
from collections.abc import Callable
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers import adapter

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "examples"))
WORK = ("mobilenet_v2@32x32", "mobilenet_v2@16x96", "LeNet@64x8")  # batch x pixels
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
TOO_SLOW = 1.3  # A layout that takes this many times as long as the other in a trial is left out.


def problem(work: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Return a float model with realistic running statistics, images and labels."""
    from bitpare_examples.networks import LeNet

    name, shape = work.split("@")
    batch, size = (int(n) for n in shape.split("x"))
    torch.manual_seed(0)
    if name == "LeNet":
        model, channels = LeNet(), 1
    else:
        import torchvision

        model, channels = getattr(torchvision.models, name)(num_classes=10), 3
    x, y = torch.randn(batch, channels, size, size), torch.randint(0, 10, (batch,))
    with torch.no_grad():
        for _ in range(10):
            model.train()(x)
    return model.eval(), x, y


def optimizer_of(model: nn.Module, lr: float, decay: float) -> torch.optim.Optimizer:
    """Return the same SGD for all tools. Only weights decay, not parameters with one value per
    channel or fewer."""
    trained = [p for p in model.parameters() if p.requires_grad]
    decaying = [p for p in trained if p.dim() > 1 and p.numel() > p.shape[0]]
    others = [p for p in trained if not any(p is d for d in decaying)]
    groups = [{"params": decaying, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=lr, momentum=0.9)


def step_of(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Callable[[], None], Any]:
    model.train()
    optimizer = optimizer_of(model, 1e-3, 4e-5)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step, optimizer


def trainable(tool: str, work: str, layout: str) -> tuple[nn.Module, Tensor, Tensor]:
    model, x, y = problem(work)
    if tool != "float":
        model = adapter(tool).prepare(model, [x])
    laid = LAYOUTS[layout]
    return model.to(memory_format=laid), x.contiguous(memory_format=laid), y


def build(tool: str, work: str, layout: str) -> Callable[[], None]:
    """Return a training step that is ready: loading and compiling are done on a small batch,
    without leaving gradients or momentum."""
    model, x, y = trainable(tool, work, layout)
    step_of(model, x[:2], y[:2])[0]()
    for p in model.parameters():
        p.grad = None
    return step_of(model, x, y)[0]


def faster_layouts(steps: dict[str, Callable[[], None]]) -> dict[str, Callable[[], None]]:
    """Leave out a layout that a trial shows to be much slower than the other."""
    trial = timing.interleaved_rounds(steps, rounds=3, slice_s=0.02)
    least = min(min(seconds) for seconds in trial.values())
    return {k: steps[k] for k, seconds in trial.items() if min(seconds) <= TOO_SLOW * least}


def measure(tool: str, work: str, rounds: int, slice_s: float, memory: bool) -> dict[str, Any]:
    timed, count = {}, 0
    for kind in ("float", tool):
        problems = {layout: trainable(kind, work, layout) for layout in LAYOUTS}
        made = {layout: step_of(*found)[0] for layout, found in problems.items()}
        timed |= {(kind, layout): f for layout, f in faster_layouts(made).items()}
        if kind == tool:
            count = adapter(tool).quantizers(problems["contiguous"][0])
    if not count:
        raise RuntimeError("prepare has added no quantizer to the model")
    names = {" ".join(key): f for key, f in timed.items()}
    found = timing.interleaved_rounds(names, rounds=rounds, slice_s=slice_s)

    def fastest(kind: str) -> str:
        layouts = [layout for k, layout in timed if k == kind]
        return min(layouts, key=lambda k: timing.summary(found[f"{kind} {k}"]).median)

    best = {kind: fastest(kind) for kind in ("float", tool)}
    mine, base = (found[f"{kind} {best[kind]}"] for kind in (tool, "float"))
    row: dict[str, Any] = {
        "seconds": {name: vars(timing.summary(values)) for name, values in found.items()},
        "quantizers": count,
        "layout": best[tool],
        "float_layout": best["float"],
        "ratio": vars(timing.ratio(mine, base)),
    }
    if memory:
        del problems, made, timed, names, found
        kinds = {kind: timing.peak_memory("peers.steps", kind, work, best[kind]) for kind in best}
        row |= {"peak_mib": kinds[tool], "float_mib": kinds["float"]}
    return row
