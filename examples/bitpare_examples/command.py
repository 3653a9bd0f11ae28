"""Options, errors and tables that the examples' command lines share."""

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

# Options that may differ when a run is resumed.
_NOT_SETTINGS = ("resume", "output", "tensorboard", "quick", "device", "download")


def fail(message: str) -> NoReturn:
    """Exit with a message for the user."""
    name = pathlib.Path(sys.argv[0]).name
    raise SystemExit(f"{name}: {message}")


def run(main: Callable[[], object]) -> None:
    """Run an example. On Ctrl-C, print how to resume it."""
    try:
        main()
    except KeyboardInterrupt:
        if processes()[0] == 0:
            print(f"\nstopped: {_way_on}", file=sys.stderr)
        raise SystemExit(130) from None


_way_on = "no epoch is done yet, so the same command begins anew"


def can_resume(path: pathlib.Path) -> None:
    """Note that the run can be resumed from this checkpoint if it stops."""
    global _way_on
    _way_on = f"the same command with --resume goes on from {path}"


def processes() -> tuple[int, int]:
    """Return the rank of this process and the number of processes, (0, 1) for a single one."""
    if not torch.distributed.is_initialized():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def number(kind: type, interval: str) -> Callable[[str], Any]:
    """Return the type of an option whose values lie in an interval, such as [1, inf) or (0, 1]."""
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
    """Return the device that an option names, after checking that torch can use it."""
    try:
        return torch.zeros(1, device=text).add(1).device
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"torch cannot use {text} ({reason})") from None


def parser(documentation: str | None, name: str) -> argparse.ArgumentParser:
    """Return a parser with the options of every example. --help begins with the example's own
    text."""
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
    """Keeps the layout of the text, and shows the default of each option."""


def parse(
    made: argparse.ArgumentParser, argv: Sequence[str] | None, *, quick: dict[str, Any]
) -> argparse.Namespace:
    """Parse the options and seed torch. ``quick``: the defaults with --quick."""
    options = made.parse_args(argv)
    if options.quick:
        made.set_defaults(**quick)
        options = made.parse_args(argv)
    if options.tensorboard is not None:
        _need_tensorboard()
    torch.manual_seed(options.seed)
    return options


def _need_tensorboard() -> None:
    """Fail before training if tensorboard is needed and not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError:
        fail("--tensorboard needs the tensorboard package: pip install tensorboard")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return the options that results depend on, as plain types."""
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
    """Record the model every ten steps. With --tensorboard the first process also writes to
    TensorBoard, in a folder per training stage. Call it after the pruner and the schedules are
    attached."""
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
    """Return a table with names on the left and numbers on the right."""
    cells = [[str(c) for c in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    lines = []
    for name, *figures in cells:
        shown = [f.rjust(w) for f, w in zip(figures, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *shown]).rstrip())
    lines.insert(1, "-" * max(len(line) for line in lines))
    return "\n".join(lines)
