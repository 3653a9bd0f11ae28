"""Time distillation losses, forward and backward, against eager and compiled torch.

python benchmarks/distill.py [--rounds 31] [--save]
"""

import json
import pathlib
from typing import Any

import timing

RESULTS = pathlib.Path(__file__).parent / "results" / "distill-cpu.json"
KINDS = ("eager", "bitpare")  # the kinds whose memory is measured
# The loss, the shape of the student's result, the shape of the teacher's.
WORK = (
    ("distill_loss", (256, 1000), (256, 1000)),
    ("distill_loss", (64, 32000), (64, 32000)),
    ("dist_loss", (256, 1000), (256, 1000)),
    ("attention_transfer", (64, 64, 28, 28), (64, 128, 28, 28)),
    ("relation_loss", (64, 512), (64, 512)),
)


def formulas() -> dict[str, Any]:
    import torch
    import torch.nn.functional as F
    from torch import Tensor

    def distill_loss(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        soft = F.kl_div(
            F.log_softmax(student / 4, -1), F.softmax(teacher / 4, -1), reduction="batchmean"
        )
        return 0.5 * F.cross_entropy(student, target) + 0.5 * 16 * soft

    def dist_loss(student: Tensor, teacher: Tensor) -> Tensor:
        q, p = F.softmax(student / 4, -1), F.softmax(teacher / 4, -1)

        def apart(dim: int) -> Tensor:
            a, b = q - q.mean(dim, keepdim=True), p - p.mean(dim, keepdim=True)
            return 1 - F.cosine_similarity(a, b, dim, 1e-12).mean()

        return 16 * (2 * apart(1) + 2 * apart(0))

    def attention_transfer(student: Tensor, teacher: Tensor) -> Tensor:
        a, b = (F.normalize(x.pow(2).mean(1).flatten(1)) for x in (student, teacher))
        return (a - b).pow(2).mean()

    def relation_loss(student: Tensor, teacher: Tensor) -> Tensor:
        def distances(x: Tensor) -> Tensor:
            d = torch.cdist(x, x)
            return d / d[d > 0].mean()

        def angles(x: Tensor) -> Tensor:
            e = F.normalize(x[None] - x[:, None], dim=2)
            return torch.bmm(e, e.transpose(1, 2))

        far = F.smooth_l1_loss(distances(student), distances(teacher))
        return far + 2 * F.smooth_l1_loss(angles(student), angles(teacher))

    return {f.__name__: f for f in (distill_loss, dist_loss, attention_transfer, relation_loss)}


def problem(name: str, student: list[int], teacher: list[int]) -> list[Any]:
    import torch

    torch.manual_seed(0)
    inputs = [torch.randn(student).requires_grad_(), torch.randn(teacher)]
    if name == "distill_loss":
        inputs.append(torch.randint(0, student[-1], (student[0],)))
    return inputs


def losses(name: str) -> dict[str, Any]:
    import bitpare as bp
    import torch

    eager = formulas()[name]
    ours = getattr(bp.functional, name)
    return {"eager": eager, "compiled": torch.compile(eager), "bitpare": ours}


def step(loss: Any, inputs: list[Any]):
    def run() -> None:
        inputs[0].grad = None
        loss(*inputs).backward()

    return run


def build(kind: str, name: str, *shapes: str):
    """Return a step that has run once on a small input, so that permanent memory is not counted."""
    loss = losses(name)[kind]
    student, teacher = (json.loads(s) for s in shapes)
    step(loss, problem(name, *([4] * len(s) for s in (student, teacher))))()
    return step(loss, problem(name, student, teacher))


def main() -> None:
    options = timing.options(__doc__, RESULTS, 31)
    rows = []
    for name, *shapes in WORK:
        inputs = problem(name, *map(list, shapes))
        functions = {kind: step(loss, inputs) for kind, loss in losses(name).items()}
        functions["a copy of the student's"] = inputs[0].detach().clone
        times = timing.interleave(functions, rounds=options.rounds, slice_s=0.05)
        gradient = inputs[0].nbytes / 2**20
        spelled = [json.dumps(s) for s in shapes]
        memory = {k: timing.peak_memory("distill", k, name, *spelled) / gradient for k in KINDS}
        seconds = {k: vars(t) for k, t in times.items()}
        rows.append({"op": name, "shape": shapes[0], "seconds": seconds, "memory": memory})
        ours = times["bitpare"].median
        print(f"{name} {shapes[0]}")
        for kind, t in times.items():
            extra = f", {memory[kind]:.2f} gradients of memory" if kind in memory else ""
            print(f"  {kind:22s} {t.median * 1e3:8.3f} ms, {t.median / ours:5.2f}{extra}")
    if options.save:
        timing.save(RESULTS, rows)


if __name__ == "__main__":
    main()
