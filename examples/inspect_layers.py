"""Show where a quantized network loses accuracy, and what happens to its weights.

LeNet is trained in float on real digits and quantized without further training: weights to few bits
with one scale per layer. Three views follow:

  1. the weights of each layer quantized alone: accuracy, and the signal-to-noise ratio of the layer
     and of the network's output (bp.report.effects shows all);
  2. for the layer that does most harm, the distribution of its weights over the levels of the grid,
     before and after the range is clipped to minimize the squared error;
  3. some of its weights as floats, as integers and dequantized.

The second view is also drawn as a picture, if matplotlib is installed. report.html shows every
layer.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import bitpare as bp
import torch
from bitpare_examples import command
from bitpare_examples.checkpoint import Checkpoint
from bitpare_examples.data import digits
from bitpare_examples.networks import LeNet
from bitpare_examples.training import accuracy, trained_in_float
from torch import Tensor, nn

RANGES = ["minmax", "percentile", "sigma", "mse"]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command.parser(__doc__, "inspect_layers")
    add = parser.add_argument
    add("--epochs", type=command.COUNT, default=30, help="epochs of float training")
    add("--bits", type=command.BITS, default=3, help="bits of the weights")
    add("--before", choices=RANGES, default="minmax", help="range of the weights at first")
    add("--after", choices=RANGES, default="mse", help="range of the weights after adjustment")
    add("--granularity", choices=["tensor", "channel"], default="tensor")
    return command.parse(parser, argv, quick={"epochs": 10})


def quantized(model: nn.Module, config: bp.QConfig, x: Tensor) -> nn.Module:
    made = bp.prepare(model, config, example_inputs=(x[:1],))
    return bp.calibrate(made, data=x[:512].split(64), progress=False).eval()


def print_losses(
    model: nn.Module, all_layers: nn.Module, weight: bp.QSpec, data: Sequence[Tensor]
) -> str:
    """Print a row for each layer, and return the layer that disturbs the output most."""
    x, _, test_x, test_y = data
    effects = bp.report.effects(all_layers, data=[test_x[:256]], progress=False)
    found = [row for row in effects.rows if row.role == "weight"]
    rows = []
    for row in found:
        nothing = bp.QConfig(weight=bp.FLOAT, activation=bp.FLOAT)
        alone = bp.prepare(
            model, nothing.override(row.name, weight=weight), example_inputs=(x[:1],)
        )
        percent = accuracy(alone, test_x, test_y)
        rows.append([row.name, f"{percent:.1f} %", f"{row.here:.1f} dB", f"{row.output:.1f} dB"])
    head = ["weights quantized alone", "accuracy", "SQNR there", "SQNR at the output"]
    print(command.table(head, rows))
    return min(found, key=lambda row: row.output).name


def levels(seen: bp.report.Values) -> tuple[Tensor, Tensor]:
    """Return the values that the weights take, and how many weights take each."""
    return seen.dequantized.unique(return_counts=True)


def print_distribution(before: bp.report.Values, after: bp.report.Values) -> None:
    """Print a histogram of the weights, and how many weights each level of the two grids has."""
    weight = before.weight.flatten()
    edges = torch.linspace(weight.min(), weight.max(), 16)
    counts = torch.histogram(weight, edges).hist
    of_levels = [(levels(v)[0], levels(v)[1]) for v in (before, after)]
    rows = []
    for i, count in enumerate(counts):
        low, high = float(edges[i]), float(edges[i + 1])
        last = i == len(counts) - 1
        cells = []
        for at, taken in of_levels:
            inside = (at >= low) & ((at < high) | last)
            cells.append(
                "  ".join(f"{v:.2f}: {n}" for v, n in zip(at[inside], taken[inside], strict=True))
            )
        bar = "#" * round(24 * float(count / counts.max()) ** 0.5)
        rows.append([f"{low:+.2f} .. {high:+.2f}", int(count), bar.ljust(24), *cells])
    head = ["weights", "count", "(root of the count)".ljust(24), "levels before", "levels after"]
    print(command.table(head, rows))


def draw(before: bp.report.Values, after: bp.report.Values, names: list[str], path: Path) -> str:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture: it needs matplotlib (pip install matplotlib)"
    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, seen, name in zip(figure.subplots(1, 2), (before, after), names, strict=True):
        axes.hist(seen.weight.flatten().numpy(), bins=80, color="#9aa7b4", label="weights")
        at, taken = levels(seen)
        axes.vlines(at.numpy(), 0.8, taken.numpy(), color="#c03a2b", label="levels, and how many")
        axes.set_yscale("log")
        axes.set_title(name)
        axes.set_xlabel("value")
        axes.legend()
    figure.savefig(path, dpi=110)
    return f"wrote {path}"


def print_values(before: bp.report.Values, after: bp.report.Values, count: int = 9) -> None:
    """Print the first weights of the channel with the largest error."""
    channel = before.channels.index(min(before.channels))
    print(f"channel {channel}: {before.channels[channel]:.1f} dB before, "
          f"{after.channels[channel]:.1f} dB after; its first weights:")  # fmt: skip
    rows = []
    for i in range(min(count, before.weight[channel].numel())):
        cells = [f"{float(before.weight[channel].flatten()[i]):+.4f}"]
        for seen in (before, after):
            assert seen.codes is not None
            code = int(seen.codes[channel].flatten()[i])
            cells += [f"{code:+d}", f"{float(seen.dequantized[channel].flatten()[i]):+.4f}"]
        rows.append(cells)
    print(command.table(["float", "before", "de-quantized", "after", "de-quantized"], rows))


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    options = parse(argv)
    torch.set_num_threads(1)  # more threads slow down a network this small
    data = digits(options.seed)
    x, _, test_x, test_y = data
    model = trained_in_float(LeNet(), data, options, Checkpoint.of(options), lr=0.05)
    specs, made, percents = {}, {}, {"float": accuracy(model, test_x, test_y)}
    for name, choice in (("before", options.before), ("after", options.after)):
        specs[name] = bp.QSpec(bits=options.bits, granularity=options.granularity, range=choice)
        made[name] = quantized(model, bp.QConfig(weight=specs[name]), x)
        percents[name] = accuracy(made[name], test_x, test_y)

    print(f"\nfloat {percents['float']:.1f} %; weights of {options.bits} bits, one scale for each "
          f"{'layer' if options.granularity == 'tensor' else 'channel'}, "
          f"range {options.before}: {percents['before']:.1f} %\n")  # fmt: skip
    worst = print_losses(model, made["before"], specs["before"], data)
    before, after = (bp.report.values(made[name], worst) for name in ("before", "after"))
    print(f"\n{worst} disturbs the output most. Its weights, with the range {options.before} and "
          f"with {options.after}:\n")  # fmt: skip
    print_distribution(before, after)
    print()
    print_values(before, after)
    print(f"\nall layers with the range {options.after}: {percents['after']:.1f} %")
    titles = [f"{worst}, {options.before}", f"{worst}, {options.after}"]
    print(draw(before, after, titles, options.output / "weights.png"))
    path = options.output / "report.html"
    batches = test_x.split(250)
    bp.report.html(made["before"], path, float_model=model, data=batches, title="LeNet, layers")
    print(f"wrote {path}")
    return {**percents, "worst": worst}


if __name__ == "__main__":
    command.run(main)
