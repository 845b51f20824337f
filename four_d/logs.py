"""Messages to the user through the logger ``four_d``, which the program `four-d` shows on stderr.

``logging.getLogger("four_d").setLevel("CRITICAL")`` silences them in a notebook. Of several processes of one run only
the first one's are shown, except errors. All are warnings, which `logging` shows by default.
"""

from __future__ import annotations

import logging
import os
import sys


class _Stderr(logging.Handler):
    """Handler that writes to the current ``sys.stderr``."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write the plain message."""
        print(self.format(record), file=sys.stderr, flush=True)


def _of_first(record: logging.LogRecord) -> bool:
    """True for records of rank 0 (torchrun's ``RANK``), and for errors of any rank."""
    return record.levelno >= logging.ERROR or os.environ.get("RANK", "0") == "0"


def to_stderr() -> None:
    """Show four_d's messages on stderr. Calling it again changes nothing."""
    logger = logging.getLogger("four_d")
    if not any(isinstance(each, _Stderr) for each in logger.handlers):
        handler = _Stderr()
        handler.addFilter(_of_first)
        logger.addHandler(handler)
