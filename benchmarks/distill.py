"""distill_loss, forward and backward, against F.cross_entropy and F.kl_div, eager and compiled.

python benchmarks/distill.py [--rounds 31] [--save]
"""

import argparse
import json
import pathlib

import timing

RESULTS = pathlib.Path(__file__).parent / "results" / "distill-cpu.json"
SHAPES = ((256, 1000), (64, 32000))
KINDS = ("eager", "bitpare")  # of which memory is measured


def problem(rows: int, classes: int):
    import torch

    torch.manual_seed(0)
    student = torch.randn(rows, classes).requires_grad_()
    return student, torch.randn(rows, classes), torch.randint(0, classes, (rows,))


def losses():
    import bitpare as bp
    import torch
    import torch.nn.functional as F

    def eager(student, teacher, target, temperature: float = 4.0, alpha: float = 0.5):
        soft = F.kl_div(
            F.log_softmax(student / temperature, -1),
            F.softmax(teacher / temperature, -1),
            reduction="batchmean",
        )
        hard = F.cross_entropy(student, target)
        return alpha * hard + (1 - alpha) * temperature**2 * soft

    return {
        "eager": eager,
        "compiled": torch.compile(eager),
        "bitpare": bp.functional.distill_loss,
    }


def step(loss, student, teacher, target):
    def run() -> None:
        student.grad = None
        loss(student, teacher, target).backward()

    return run


def build(kind: str, rows: str, classes: str):
    """A step that has run once on little, so that what stays is not counted."""
    loss = losses()[kind]
    step(loss, *problem(2, 8))()
    return step(loss, *problem(int(rows), int(classes)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    timing.keep_freed_memory()
    rows = []
    for shape in SHAPES:
        inputs = problem(*shape)
        functions = {name: step(loss, *inputs) for name, loss in losses().items()}
        functions["a copy of the logits"] = inputs[1].clone
        times = timing.interleave(functions, rounds=options.rounds, slice_s=0.05)
        gradient = 4 * shape[0] * shape[1] / 2**20
        memory = {k: timing.peak_memory("distill", k, *map(str, shape)) / gradient for k in KINDS}
        rows.append(
            {"shape": shape, "seconds": {k: vars(t) for k, t in times.items()}, "memory": memory}
        )
        ours = times["bitpare"].median
        print(f"{shape}")
        for kind, t in times.items():
            extra = f", {memory[kind]:.2f} gradients of memory" if kind in memory else ""
            print(f"  {kind:22s} {t.median * 1e3:8.3f} ms, {t.median / ours:5.2f}{extra}")
    if options.save:
        RESULTS.write_text(json.dumps({"machine": timing.machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
