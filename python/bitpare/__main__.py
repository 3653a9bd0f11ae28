"""python -m bitpare: the command line."""

import argparse
import sys


def main() -> int:
    """Runs the command that the arguments name."""
    parser = argparse.ArgumentParser(prog="python -m bitpare")
    commands = parser.add_subparsers(dest="command", required=True)
    doctor = commands.add_parser("doctor", help="print what a bug report needs")
    doctor.add_argument("--brief", action="store_true", help="the build alone, on two lines")
    arguments = parser.parse_args()

    from bitpare.doctor import main as run_doctor

    return run_doctor(brief=arguments.brief)


if __name__ == "__main__":
    sys.exit(main())
