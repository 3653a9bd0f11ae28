"""Code that the examples' command lines share: options, errors, tables."""

import argparse
import contextlib
import math
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

import bitpare as bp
import torch
import torch.distributed
from torch import nn

# Options that may differ between a run and the one that takes it up.
_NOT_SETTINGS = ("resume", "output", "tensorboard", "quick", "device", "download")


def fail(message: str) -> NoReturn:
    """Ends the program with a message for its user."""
    name = pathlib.Path(sys.argv[0]).name
    raise SystemExit(f"{name}: {message}")


def run(main: Callable[[], object]) -> None:
    """Run an example; Ctrl-C ends it with a line that says how it goes on."""
    try:
        main()
    except KeyboardInterrupt:
        if processes()[0] == 0:
            print(f"\nstopped: {_way_on}", file=sys.stderr)
        raise SystemExit(130) from None


_way_on = "no epoch is done yet, so the same command begins anew"


def can_resume(path: pathlib.Path) -> None:
    """Note that a run which is stopped from now on can go on from this checkpoint."""
    global _way_on
    _way_on = f"the same command with --resume goes on from {path}"


def processes() -> tuple[int, int]:
    """The number of this process, and of how many: (0, 1) where there is one."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def number(kind: type, interval: str) -> Callable[[str], Any]:
    """The type of an option whose values lie in an interval, such as [1, inf) or (0, 1]."""
    low, high = map(float, interval[1:-1].split(","))

    def parsed(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        at_end = (value == low and interval[0] == "[") or (value == high and interval[-1] == "]")
        if low < value < high or at_end:
            return value
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"must be {what} in {interval}, got {text}")

    return parsed


COUNT, BITS = number(int, "[1, inf)"), number(int, "[2, 8]")
SHARE, PART, POSITIVE = (number(float, at) for at in ("[0, 1)", "[0, 1]", "(0, inf)"))


def device(text: str) -> torch.device:
    """The type of an option that names a device, on which torch must be able to compute."""
    try:
        return torch.zeros(1, device=text).add(1).device
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"torch cannot use {text} ({reason})") from None


def parser(documentation: str | None, name: str) -> argparse.ArgumentParser:
    """The options of every example. --help begins with the example's own text."""
    made = argparse.ArgumentParser(
        description=documentation, formatter_class=_Formatter, allow_abbrev=False
    )
    seed = number(int, "[0, 1e9]")
    made.add_argument("--seed", type=seed, default=0, help="of weights and of the order of images")
    made.add_argument("--quick", action="store_true", help="a few images and epochs, to try it out")
    folder = pathlib.Path("out") / name
    made.add_argument("--output", type=pathlib.Path, default=folder, help="folder of the results")
    made.add_argument("--resume", action="store_true", help="go on from the folder's checkpoint")
    made.add_argument("--tensorboard", metavar="DIR", help="write TensorBoard's events there")
    return made


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Text as it was written, and each option's default."""


def parse(
    made: argparse.ArgumentParser, argv: Sequence[str] | None, *, quick: dict[str, Any]
) -> argparse.Namespace:
    """Options; ``quick`` has the defaults that hold with --quick. Seeds torch."""
    options = made.parse_args(argv)
    if options.quick:
        made.set_defaults(**quick)
        options = made.parse_args(argv)
    if options.tensorboard is not None:
        _need_tensorboard()
    torch.manual_seed(options.seed)
    return options


def _need_tensorboard() -> None:
    """Before anything is trained."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        fail("--tensorboard needs the tensorboard package: pip install tensorboard")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """The options that the results depend on, in plain types."""
    return {
        name: value if isinstance(value, int | float | str | list | None) else str(value)
        for name, value in vars(options).items()
        if name not in _NOT_SETTINGS
    }


@contextlib.contextmanager
def recorder(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: argparse.Namespace,
    stage: str,
    *,
    oscillations: bp.QatSchedule | None = None,
) -> Iterator[bp.report.Recorder]:
    """Notes what happens to the model every ten steps; with --tensorboard the first process writes
    it there too, in a folder for each stage of training. Call it after the pruner and the schedules
    were attached."""
    if options.tensorboard is None or processes()[0] > 0:
        yield bp.report.Recorder(model, every=10, oscillations=oscillations).attach(optimizer)
        return
    folder = pathlib.Path(options.tensorboard) / stage
    board = bp.report.TensorBoard(folder, model, every=10, oscillations=oscillations)
    board.attach(optimizer)
    try:
        yield board.recorder
    finally:
        board.close()


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Columns: names on the left, figures on the right."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for name, *figures in cells:
        shown = [f.rjust(w) for f, w in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *shown]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)
