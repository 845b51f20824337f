"""Program `four-d`: parse a verb, call its function, and turn errors into one line and an exit code."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from four_d import __version__
from four_d.cli import data, fit, infer, runs, tools, weights
from four_d.cli.common import NUMBERS, Command, Verb
from four_d.errors import UserError
from four_d.logs import to_stderr
from four_d.stopping import stopping_cleanly

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "your quota is used up: free some space or choose another folder",
    errno.EACCES: "choose a folder that you may write to (or fix its permissions)",
    errno.EPERM: "choose a folder that you may write to (or fix its permissions)",
    errno.ENOTDIR: "a file is in the way of a folder: choose another place",
    errno.EEXIST: "something is in the way: choose another place",
    errno.EISDIR: "a folder is in the way of a file: choose another place",
    errno.EROFS: "the disk is read-only: choose another folder",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code.

    0 = done, 1 = a check failed, 2 = bad input, 128 + N = stopped by signal N (training saves first).
    """
    to_stderr()
    parsed = parse(arguments)
    command: Command = parsed.command
    try:
        with stopping_cleanly():
            code = command(parsed)
            sys.stdout.flush()
            return code
    except UserError as error:
        return _complain(str(error))
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # keeps the flush at exit from failing
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.errno not in _REMEDIES:
            raise
        name = f"{error.filename}: " if error.filename else ""
        return _complain(f"{name}{error.strerror}; {_REMEDIES[error.errno]}")
    except KeyboardInterrupt:
        print("four-d: interrupted", file=sys.stderr)
        return 130


def run() -> NoReturn:
    """Run the command line and end this process with its exit code.

    Threads of OpenMP sleep while they wait for each other, here and in worker processes, unless OMP_WAIT_POLICY is set.
    """
    # read once, when torch is imported, which no verb has done yet; spinning threads on a busy machine take the time of
    # those that they wait for (docs/scaling.md)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    code = main()
    if os.environ.get("WORLD_SIZE", "1") != "1":
        # what torch leaves of its process groups may abort at the interpreter's end, after all is done and written
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of one verb; ``command`` is the function to call with them."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        return parser().parse_args(arguments)
    except SystemExit as stopped:
        if stopped.code == 2:
            _explain_minus(arguments)
        raise


def _explain_minus(arguments: Sequence[str]) -> None:
    """Explain how to write a name that begins with a minus, which argparse takes for an option."""
    for each in arguments:
        if re.match("-[^-]", each) and each != "-h" and not NUMBERS.fullmatch(each):
            print(f"four-d: if {each} is a name, write ./{each}", file=sys.stderr)


def _complain(message: str) -> int:
    print(f"four-d: {message}", file=sys.stderr)
    return 2


def parser() -> argparse.ArgumentParser:
    """Build the parser of all verbs; each adds its flags on first use."""
    made = Verb(prog="four-d", description="Train, evaluate and export feed-forward 4D models.")
    made.add_argument("--version", action="version", version=f"four-d {__version__}")
    verbs = made.add_subparsers(required=True, metavar="VERB")
    for group in (runs, infer, fit, data, weights, tools):
        group.add_verbs(verbs)
    return made
