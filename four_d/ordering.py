"""Natural order of a sequence's files, with or without zero-padded numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path

_DIGITS = re.compile(r"([0-9]+)")
_DECIMAL = re.compile(r"^(.*?)([0-9]+\.[0-9]+)$", re.DOTALL)
"""Pattern of a stem that ends in a decimal number, such as a time in seconds: its prefix, and the number."""


def natural(name: str) -> tuple[tuple[tuple[str, int], ...], str]:
    """Sort key with digits as numbers: frame_2 comes before frame_10, as 002 before 010."""
    *parts, rest = _DIGITS.split(name.casefold())
    # the 0 stands for the number that follows: against other characters it sorts as digits do
    texts = [*(text + "0" for text in parts[::2]), rest]
    return tuple(zip(texts, [*map(int, parts[1::2]), 0], strict=True)), name


def in_order(paths: Iterable[Path]) -> list[Path]:
    """Sort paths by their folders and names in natural order.

    Names that end in decimals (12.5.png, 12.25.png: times) go by value, as long as all do and no two are equal.
    """
    found = sorted(paths, key=lambda path: ([natural(part) for part in path.parent.parts], natural(path.name)))
    decimals = [_DECIMAL.match(path.stem) for path in found]
    values = [(match[1], Decimal(match[2])) for match in decimals if match]
    if len(values) < len(found) or len(set(values)) < len(found) or len({path.parent for path in found}) > 1:
        return found
    return [path for _, path in sorted(zip(values, found, strict=True))]
