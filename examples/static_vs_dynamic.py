"""Compare static and dynamic quantization on real digits, by accuracy and time.

Static ranges of activations are computed once, from calibration images; the network then runs in
integers from end to end. Dynamic ranges are computed for each batch, or for each token (here a
column of pixels). They need one more pass over the values, and floats between the layers. They help
if the data differ from those of the calibration: the test images are also tried at other
brightnesses, which hardly affect the float model."""

import argparse
from collections.abc import Sequence
from typing import Any

import bitpare as bp
import torch
from bitpare_examples import command
from bitpare_examples.checkpoint import Checkpoint
from bitpare_examples.data import digits
from bitpare_examples.networks import LeNet
from bitpare_examples.training import accuracy, trained_in_float
from torch import Tensor, nn


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__doc__, "static_vs_dynamic")
    add = parser.add_argument
    add("--epochs", type=command.COUNT, default=30, help="epochs of float training")
    add("--bits", type=command.BITS, default=8, help="bits of weights and activations")
    add("--calibrate", type=command.COUNT, default=512, help="images to calibrate with")
    add("--brightness", type=command.POSITIVE, nargs="+", default=[0.5, 1.0, 2.0, 4.0])
    return command.parse(parser, argv, quick={"epochs": 10})


def variants(model: nn.Module, x: Tensor, options: argparse.Namespace) -> dict[str, nn.Module]:
    """Return the float model and its quantized copies, without further training."""
    weight = bp.QSpec(bits=options.bits)
    activations = {
        "static": bp.QSpec(bits=options.bits),
        "dynamic, per batch": bp.QSpec(bits=options.bits, dynamic=True),
        "dynamic, per token": bp.QSpec(bits=options.bits, dynamic=True, granularity="token"),
    }
    found = {"float": model}
    for name, activation in activations.items():
        config = bp.QConfig(weight=weight, activation=activation)
        found[name] = bp.prepare(model, config, example_inputs=(x[:1],)).eval()
        if not activation.dynamic:
            bp.calibrate(found[name], data=x[: options.calibrate].split(64), progress=False)
    found["static, in integers"] = bp.convert(found["static"])
    found["dynamic, in integers"] = bp.convert(found["dynamic, per batch"])
    return found


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    torch.set_num_threads(1)  # more threads slow down a network this small
    data = digits(options.seed)
    x, _, test_x, test_y = data
    model = trained_in_float(LeNet(), data, options, Checkpoint.of(options), lr=0.05)
    models = variants(model, x, options)

    batch = test_x[:64]
    times = bp.report.summary(*models.values(), example_inputs=(batch,), names=[*models])
    seconds = {row.name: row.p50 for row in times.rows if row.name in models}
    percents = {
        name: [accuracy(m, test_x * factor, test_y) for factor in options.brightness]
        for name, m in models.items()
    }
    rows = [
        [name, *(f"{p:.1f} %" for p in percents[name]), f"{seconds[name] * 1e6:,.0f} us"]
        for name in models
    ]
    head = ["accuracy at brightness", *(f"x {f:g}" for f in options.brightness), "64 images"]
    print(f"\n{options.bits} bits, calibrated at brightness 1\n")
    print(command.table(head, rows))
    return {name: {"accuracy": percents[name], "seconds": seconds[name]} for name in models}


if __name__ == "__main__":
    command.run(main)
