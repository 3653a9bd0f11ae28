"""Take LeNet on real digits (scikit-learn's scans, no download) from training to deployment:

  1. train LeNet in float;
  2. prune it on a schedule and train it quantized, with the float model as its teacher, in one
     loop;
  3. convert it to an integer model, compare the two operation by operation, and write
     model.safetensors and, with the onnx package, model.onnx;
  4. print accuracy, bytes, non-zero weights and latency of each model, and write report.html.

It takes less than a minute. --resume continues an interrupted run, with the same results.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import bitpare as bp
import torch
from bitpare_examples import command, results
from bitpare_examples.checkpoint import Checkpoint
from bitpare_examples.data import digits
from bitpare_examples.networks import LeNet
from bitpare_examples.training import accuracy, steps_of, train, trained_in_float
from torch import Tensor, nn

CONFIGS = {8: bp.QConfig.int8, 4: bp.QConfig.int4, 2: bp.QConfig.int2}
BATCH = 64


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__doc__, "lenet_digits")
    add = parser.add_argument
    add("--epochs", type=command.COUNT, default=30, help="epochs of float training")
    add("--qat-epochs", type=command.COUNT, default=30, help="epochs of the student")
    add("--bits", type=int, choices=CONFIGS, default=8, help="bits of the inner layers")
    add("--sparsity", type=command.SHARE, default=0.8, help="share of the weights to prune")
    add("--temperature", type=command.POSITIVE, default=4.0, help="softness of the teacher")
    add("--alpha", type=command.PART, default=0.3, help="share of labels in the loss")
    return command.parse(parser, argv, quick={"epochs": 8, "qat_epochs": 8})


def compressed(
    teacher: nn.Module, options: argparse.Namespace, data: Sequence[Tensor], run: Checkpoint
) -> tuple[nn.Module, bp.report.Recorder]:
    """Prune, quantize and distill in one training loop."""
    x, y, test_x, test_y = data
    model = bp.prepare(teacher, CONFIGS[options.bits](), example_inputs=(x[:1],))
    bp.calibrate(model, data=x[:512].split(BATCH), progress=False)
    soft = bp.distill.SoftTarget(options.temperature, options.alpha)
    kd = bp.distill.Distiller(model, teacher, soft)
    optimizer = torch.optim.SGD(bp.param_groups(model, weight_decay=1e-4), lr=0.05, momentum=0.9)
    steps = steps_of(y, options.qat_epochs, BATCH)
    quantization = bp.QatSchedule(model, steps=steps, freeze_ranges=0.9).attach(optimizer)
    ramp = bp.prune.Schedule.cubic(options.sparsity, begin=0, end=max(steps // 2, 1), every=20)
    pruner = bp.prune.Pruner(model, ramp).attach(optimizer)
    stage = f"int{options.bits}"
    with command.recorder(model, optimizer, options, stage) as recorder:
        train(
            model,
            x,
            y,
            optimizer,
            options.qat_epochs,
            batch=BATCH,
            seed=options.seed,
            objective=kd,
            evaluate=lambda: accuracy(model, test_x, test_y),
            recorder=recorder,
            name=stage,
            checkpoint=run,
            parts={"quantization": quantization, "pruner": pruner},
        )
    print(pruner)
    pruner.finalize()
    return model.eval(), recorder


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    torch.set_num_threads(1)  # more threads slow down a network this small
    data = digits(options.seed)
    test_x, test_y = data[2:]
    run = Checkpoint.of(options)
    teacher = trained_in_float(LeNet(), data, options, run, lr=0.05, batch=BATCH)
    model, recorder = compressed(teacher, options, data, run)

    integer = bp.convert(model)
    print(f"{results.verify(model, integer, test_x) or ''}\n")
    folder = options.output
    results.ship(integer, folder, test_x)
    models = {"float": teacher, "fake-quant": model, "integer": integer}
    scan = bp.prune.sensitivity(teacher, lambda m: accuracy(m, test_x, test_y), progress=False)
    bp.report.html(
        model,
        folder / "report.html",
        float_model=teacher,
        integer=integer,
        data=test_x.split(250),
        history=recorder,
        sensitivity=scan,
        title="LeNet on real digits",
    )
    print(f"wrote {folder / 'report.html'}: open it in a browser")
    found = results.compared(models, test_x, test_y, folder)
    results.print_compared(found)
    return found


if __name__ == "__main__":
    command.run(main)
