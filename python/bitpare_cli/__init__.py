"""The command line. It is a separate package, so that it works without importing torch, and even
if bitpare cannot be loaded.

Each command imports what it needs when it runs.
"""

import argparse
import importlib.metadata
import sys


def main(words: list[str] | None = None) -> int:
    """Run the command that ``words`` name, by default those of the command line."""
    parser = argparse.ArgumentParser(
        prog="bitpare", description="Quantization-aware training for PyTorch."
    )
    version = f"bitpare {importlib.metadata.version('bitpare')}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_doctor(commands.add_parser("doctor", help="print what a bug report needs"))
    _add_report(commands.add_parser("report", help="write a page about a saved model"))
    arguments = parser.parse_args(words)
    return int(arguments.run(arguments))


def _add_doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--brief", action="store_true", help="the build alone, on two lines")
    parser.set_defaults(run=_doctor)


def _doctor(arguments: argparse.Namespace) -> int:
    from bitpare_cli.doctor import main as run_doctor

    return run_doctor(brief=arguments.brief)


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        help="an integer model of bp.deploy.save; or of torch.save: a model, its state dict, or a "
        "checkpoint of a training script that holds one",
    )
    parser.add_argument("--html", metavar="FILE", help="where to write the page")
    parser.add_argument("--json", metavar="FILE", help="where to write its numbers")
    parser.add_argument("--title", help="of the page")
    parser.add_argument(
        "--key",
        help="which of a checkpoint's models, as stages/qat/model; by default the last one under "
        "model, state_dict or model_state_dict, or the last",
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="unpickle the checkpoint, which runs code that it names: if you trust its author",
    )
    parser.add_argument(
        "--input",
        metavar="SHAPE",
        type=_shape,
        help="shape of the input that an integer model is timed with, as 1,3,224,224",
    )
    parser.set_defaults(run=_report)


def _shape(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or min(found) < 1:
        raise argparse.ArgumentTypeError(f"must be sizes as 1,3,224,224, got {text!r}")
    return found


def _report(arguments: argparse.Namespace) -> int:
    try:
        from bitpare.report.checkpoint import main as run_report
    except ImportError as error:
        print(f"bitpare: {error}", file=sys.stderr)
        return 1
    return run_report(arguments)
