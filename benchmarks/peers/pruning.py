"""Compare pruning: the removal of channels (torch-pruning), and masks during training
(torch.nn.utils.prune, NNCF)."""

import copy
from collections.abc import Callable
from typing import Any

import timing
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peers import reason
from peers.steps import optimizer_of, problem

MODELS = ("resnet18", "mobilenet_v2")
SIZE = 96
RATIO = 0.5  # the share of channels to remove
SPARSITY = 0.9


def removed_by_bitpare(model: nn.Module, x: Tensor) -> nn.Module:
    import bitpare as bp

    return bp.prune.shrink(model, example_inputs=x, sparsity=RATIO)


def removed_by_torch_pruning(model: nn.Module, x: Tensor) -> nn.Module:
    import torch_pruning

    small = copy.deepcopy(model)
    heads = [m for m in small.modules() if isinstance(m, nn.Linear)][-1:]
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    torch_pruning.pruner.BasePruner(
        small, x, importance, pruning_ratio=RATIO, ignored_layers=heads
    ).step()
    return small


REMOVERS = {"bitpare": removed_by_bitpare, "torch-pruning": removed_by_torch_pruning}


def sizes(model: nn.Module, x: Tensor) -> dict[str, int]:
    """Return the multiplications of convolutions and linear layers, and the number of
    parameters."""
    macs = 0

    def count(layer: nn.Module, _: Any, y: Tensor) -> None:
        nonlocal macs
        weight = layer.weight
        per_value = weight[0].numel()
        macs += y.numel() * per_value

    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    hooks = [m.register_forward_hook(count) for m in layers]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return {"macs": macs, "parameters": sum(p.numel() for p in model.parameters())}


def forward_of(model: nn.Module, x: Tensor) -> Callable[[], None]:
    laid = model.to(memory_format=torch.channels_last)
    image = x.contiguous(memory_format=torch.channels_last)

    def forward() -> None:
        with torch.inference_mode():
            laid(image)

    return forward


def channels(name: str, rounds: int, slice_s: float) -> dict[str, Any]:
    """Remove half of the channels. Measure the time it takes, the size that is left, and its
    latency."""
    model, x, _ = problem(f"{name}@2x{SIZE}")
    x = x[:1]
    whole = sizes(model, x)
    failed, makers, smaller = {}, {}, {}
    for tool, remove in REMOVERS.items():
        try:
            smaller[tool] = remove(model, x)
            makers[tool] = lambda remove=remove: remove(model, x)
        except Exception as error:  # a failure is a result too
            failed[tool] = reason(error)
    left = {
        tool: {k: n / whole[k] for k, n in sizes(small, x).items()}
        for tool, small in smaller.items()
    }
    pruning = timing.interleaved_rounds(makers, max(5, rounds // 2), 0.0)
    runs = {"whole": forward_of(copy.deepcopy(model), x)}
    runs |= {tool: forward_of(small, x) for tool, small in smaller.items()}
    forward = timing.interleaved_rounds(runs, rounds, slice_s)
    return {
        "left": left,
        "pruning": {k: vars(timing.summary(v)) for k, v in pruning.items()},
        "forward": {k: vars(timing.summary(v)) for k, v in forward.items()},
        "failed": failed,
    }


def with_masks(tool: str, work: str) -> Callable[[], None]:
    """Return a training step with masks, or for "float" without."""
    model, x, y = problem(work)
    model.train()
    if tool == "torch.nn.utils.prune":
        from torch.nn.utils import prune

        layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        weights = [(m, "weight") for m in layers]
        prune.global_unstructured(weights, prune.L1Unstructured, amount=SPARSITY)
    elif tool == "NNCF":
        from peers.nncf_ import masked

        model = masked(model, x, SPARSITY)
    laid = torch.channels_last  # only now, because torch and NNCF cannot prune such weights
    model, x = model.to(memory_format=laid), x.contiguous(memory_format=laid)
    optimizer = optimizer_of(model, 1e-5, 4e-5)
    if tool == "bitpare":
        import bitpare as bp

        bp.prune.Pruner(model, bp.prune.Schedule.one_shot(SPARSITY)).attach(optimizer)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def masks(work: str, rounds: int, slice_s: float) -> dict[str, Any]:
    """Time a training step with fixed masks against one without."""
    steps, failed = {}, {}
    for tool in ("float", "bitpare", "torch.nn.utils.prune", "NNCF"):
        try:
            steps[tool] = with_masks(tool, work)
            steps[tool]()
        except Exception as error:
            failed[tool] = reason(error)
            steps.pop(tool, None)
    return {**timing.against(steps, "float", rounds, slice_s), "failed": failed}
