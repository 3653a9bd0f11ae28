"""Run the command line of bitpare_cli by python -m bitpare."""

import sys

from bitpare_cli import main

if __name__ == "__main__":
    sys.exit(main())
