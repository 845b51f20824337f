"""Remarks on inputs, each kind logged once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

LOGGER = logging.getLogger(__name__)


class Remarks:
    """Log of remarks on one input, without repetitions."""

    def __init__(self, about: Path | str, *, silent: bool = False) -> None:
        self._about, self._silent = about, silent
        self._said: set[str] = set()

    def say(self, text: str, kind: str | None = None) -> None:
        """Log ``text`` about the input, unless it, or a remark of this ``kind``, was logged before."""
        kind = kind or text
        if kind not in self._said:
            self._said.add(kind)
            if not self._silent:
                LOGGER.warning(f"{self._about}: {text}")


def some(names: Sequence[str], most: int = 3) -> str:
    """First few of many names: a.txt, b.txt, c.txt and 4 more."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
