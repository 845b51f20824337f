"""Sources of a fit's object behind one interface: a file, or whatever else makes one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from four_d.objects.canonical import CanonicalObject, Up, read_object


@runtime_checkable
class ObjectProvider(Protocol):
    """Source of one canonical object.

    In the package: `ObjectFile`; ``data_prep.synthetic.objects.SyntheticObject``, a creature or shape of the generator;
    and ``fitting.feed_forward.Begun``, what a feed-forward model makes of a key frame.
    """

    def provide(self, gaussians: int | None = None) -> CanonicalObject:
        """Make the object with at most so many Gaussians (None: as many as it has, or as cover its surface).

        Equal calls give equal objects. UserError where there is none.
        """
        ...

    def __str__(self) -> str:
        """Text that names it in records and messages, equal for equal objects."""
        ...


@dataclass(frozen=True, kw_only=True)
class ObjectFile:
    """Object of a file of splats or of a mesh (`read_object`)."""

    path: Path
    up: Up | None = None
    """Axis that points up in it; None: the format's own."""

    def provide(self, gaussians: int | None = None) -> CanonicalObject:
        """Read it."""
        return read_object(self.path, gaussians=gaussians, up=self.up)

    def __str__(self) -> str:
        return str(self.path)
