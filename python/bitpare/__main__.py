"""python -m bitpare: the command line, which is bitpare_cli."""

import sys

from bitpare_cli import main

if __name__ == "__main__":
    sys.exit(main())
