"""Prune, quantize and distill a network with BatchNorm in one run, on colour scenes of digits.

The float model is trained first and then teaches a copy of itself. In the copy, weights are pruned
on a cubic schedule, their bits go from 8 to --bits, and weights that oscillate between two integers
are frozen. Ranges and BatchNorm are frozen at the end. Each schedule depends only on the number of
optimizer steps, so the training loop does not mention them, and --resume continues with the same
results.

It prints the schedules over the run, and compares the float, fake-quantized and integer models.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import bitpare as bp
import torch
from bitpare_examples import command, results
from bitpare_examples.checkpoint import Checkpoint
from bitpare_examples.data import composed_digits
from bitpare_examples.networks import SceneNet
from bitpare_examples.training import accuracy, steps_of, train, trained_in_float
from torch import Tensor, nn

BATCH = 64


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__doc__, "joint")
    add = parser.add_argument
    add("--images", type=command.COUNT, default=4000, help="images to train with")
    add("--width", type=command.COUNT, default=16, help="channels of the first convolution")
    add("--epochs", type=command.COUNT, default=6, help="epochs of float training")
    add("--joint-epochs", type=command.COUNT, default=8, help="epochs of the student")
    add("--bits", type=command.BITS, default=4, help="bits of the weights at the end")
    add("--sparsity", type=command.SHARE, default=0.75, help="share of the weights to prune")
    add(
        "--pattern",
        choices=["element", "2:4", "block4x1"],
        default="element",
        help="what is pruned",
    )
    small = {"images": 1024, "width": 8, "epochs": 10, "joint_epochs": 3}
    options = command.parse(parser, argv, quick=small)
    if options.pattern == "2:4" and options.sparsity != 0.5:
        options.sparsity = 0.5  # 2:4 always prunes half of the weights
        print("2:4 prunes half of the weights: --sparsity is 0.5")
    return options


def joint(
    teacher: nn.Module, options: argparse.Namespace, data: Sequence[Tensor], run: Checkpoint
) -> tuple[nn.Module, bp.report.Recorder]:
    x, y, test_x, test_y = data
    model = bp.prepare(teacher, bp.QConfig.int8(), example_inputs=(x[:1],))
    bp.calibrate(model, data=x[:512].split(BATCH), progress=False)
    kd = bp.distill.Distiller(model, teacher, bp.distill.SoftTarget(temperature=4.0, alpha=0.5))
    optimizer = torch.optim.SGD(bp.param_groups(model, weight_decay=1e-4), lr=0.05, momentum=0.9)
    steps = steps_of(y, options.joint_epochs, BATCH)
    quantization = bp.QatSchedule(
        model,
        steps=steps,
        bits={0: 8, 0.3: options.bits},
        freeze_oscillating={0.6: 0.02},
        freeze_bn=0.8,
        freeze_ranges=0.9,
    ).attach(optimizer)
    ramp = bp.prune.Schedule.cubic(options.sparsity, begin=0, end=max(steps // 2, 1), every=10)
    if options.pattern == "2:4":
        ramp = bp.prune.Schedule.one_shot(0.5, at=max(steps // 4, 1))
    pruner = bp.prune.Pruner(model, ramp, pattern=options.pattern).attach(optimizer)
    print(f"{pruner}\n  {ramp}\n{quantization}")
    watched = command.recorder(model, optimizer, options, "joint", oscillations=quantization)
    with watched as recorder:
        train(
            model,
            x,
            y,
            optimizer,
            options.joint_epochs,
            batch=BATCH,
            seed=options.seed,
            objective=kd,
            evaluate=lambda: accuracy(model, test_x, test_y),
            recorder=recorder,
            name="joint",
            checkpoint=run,
            parts={"quantization": quantization, "pruner": pruner},
        )
    print(pruner)
    pruner.finalize()
    return model.eval(), recorder


def print_course(model: nn.Module, recorder: bp.report.Recorder, rows: int = 8) -> None:
    """Print some of the records, for the whole model or as the mean over its layers."""
    sizes = {name: p.numel() for name, p in model.named_parameters()}

    def mean(found: dict[str, float]) -> float:
        weights = {name: sizes.get(name, 1) for name in found}
        return sum(v * weights[n] for n, v in found.items()) / max(sum(weights.values()), 1)

    every = max(len(recorder.records) // rows, 1)
    cells = []
    for record in recorder.records[every - 1 :: every]:
        means = {kind: mean(found) for kind, found in record.found.items()}
        cells.append(
            [
                record.step,
                f"{record.found['scalars']['loss']:.3f}",
                f"{means['sparsity']:.0%}",
                f"{means['sqnr']:.1f} dB",
                f"{means['frozen']:.1%}",
            ]
        )
    head = ["step", "loss", "pruned", "SQNR of weights", "frozen"]
    print(command.table(head, cells))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    data = composed_digits(options.images, 1000, seed=options.seed)
    test_x, test_y = data[2:]
    run = Checkpoint.of(options)
    teacher = trained_in_float(SceneNet(options.width), data, options, run, lr=0.1, batch=BATCH)
    model, recorder = joint(teacher, options, data, run)
    print()
    print_course(model, recorder)
    integer = bp.convert(model)
    print()
    results.verify(model, integer, test_x)
    results.ship(integer, options.output, test_x)
    models = {"float": teacher, "fake-quant": model, "integer": integer}
    found = results.compared(models, test_x, test_y, options.output)
    results.print_compared(found)
    return found


if __name__ == "__main__":
    command.run(main)
