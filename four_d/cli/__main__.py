"""Entry point of `python -m four_d.cli`, equivalent to `four-d`."""

import sys

from four_d.cli import run

if __name__ == "__main__":
    sys.argv[0] = "four-d"  # so that records of runs name the command
    run()
