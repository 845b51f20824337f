"""Facts of a data set that its own file states once: origin, licence, layout, and how to read all of it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from four_d.datasets.sequence import Sequence
from four_d.errors import UserError

Reader = Callable[[Path, tuple[str, ...] | None], list[Sequence]]
"""Reader of the folder of a set: its sequences, or those named."""

STRICTEST = (
    ("none stated", r"none stated|unknown|see there|not stated|not checked"),
    ("agreement", r"agreement|terms|permission"),
    ("research", r"research|academic"),
    ("non-commercial", r"\bNC\b|non-?commercial"),
    ("share-alike", r"\bSA\b|GPL"),
    ("attribution", r"\bBY\b"),
    ("permissive", r"MIT|BSD|Apache|CC0|public domain"),
)
"""Kinds of licence by the words that tell them, the strictest first."""


@dataclass(frozen=True, kw_only=True)
class Licence:
    """One statement of a licence."""

    text: str
    said_by: str = ""
    """Place of the statement, such as "its page"; needed where there are several."""

    @property
    def strictness(self) -> int:
        """Rank of the kind in `STRICTEST`: 0 is the strictest; a text of no known kind counts as unknown."""
        ranks = [rank for rank, (_, words) in enumerate(STRICTEST) if re.search(words, self.text)]
        return min(ranks, default=0)


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A set that `four-d data import` and protocols read."""

    name: str
    """Its word in commands and source in manifests."""
    title: str
    home: str
    """Place to get it from."""
    licences: tuple[Licence, ...]
    """Every statement that there is; if they differ, the strictest rules."""
    layout: str
    """Layout under the root, in one line."""
    reader: Reader
    """Reader of all that is there, each sequence whole and at its full rate."""
    metric: bool = True
    """True if lengths are metres."""
    moving: bool = True
    """True if `Sequence.masks` are what moves, so that they become the dynamics mask; False: any foreground."""
    depth_tolerance: float | None = None
    """Relative difference up to which depths of two frames agree, for a noisy sensor; None: that of exact depth."""
    takes_files: bool = False
    """True if the root may also be a file."""
    notes: str = ""
    """Omissions and conversions, in one line."""

    def open(self, root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
        """List the sequences under ``root`` without reading images or depth. UserError if there are none."""
        if not (root.is_dir() or (self.takes_files and root.is_file())):
            raise UserError(f"{root} is not a folder; {self.name} expects there: {self.layout}")
        return self.reader(root if root.name not in ("", "..") else root.resolve(), only)  # its name becomes a clip's

    @property
    def licence(self) -> str:
        """The licence, or all statements of it and which of them rules."""
        return stated(self.licences)


def stated(licences: tuple[Licence, ...]) -> str:
    """Join statements of a licence; of several that differ, the strictest is said to rule."""
    if len({licence.text for licence in licences}) == 1:
        return licences[0].text
    strictest = min(licences, key=lambda licence: licence.strictness)
    listed = "; ".join(f"{each.text} ({each.said_by})" for each in licences)
    return f"{listed}: stated differently, the stricter rules: {strictest.text}"
