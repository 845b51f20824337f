"""Results of checks: measured numbers with their limits, and what could not be measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Result of one check in one clip, at its worst frame."""

    check: str
    value: float
    limit: float
    what: str
    """Meaning of the value."""
    remedy: str
    above: bool = True
    """True if values above the limit are wrong; False: those below."""
    frame: int | None = None

    @property
    def ok(self) -> bool:
        """True if the value is within the limit; NaN never is."""
        return self.value <= self.limit if self.above else self.value >= self.limit


@dataclass(frozen=True, kw_only=True)
class Unchecked:
    """Property of a clip that its data cannot show."""

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Note:
    """Deviation that is tolerated, in a few words."""

    text: str
    frame: int | None = None


Finding = Measure | Unchecked | Note
"""Anything that a check says of a clip."""
