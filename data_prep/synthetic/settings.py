"""What can be asked of the generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from four_d.errors import UserError

HELD_OUT_SEED = 1_000_000
"""Seeds from here on use textures and shapes that smaller seeds never do."""
CameraKind = Literal["handheld", "orbit", "dolly", "pan", "follow", "static"]
Start = Literal["dropped", "thrown", "slid", "rolled"]


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """One clip's size and content. Everything else is drawn from the seed."""

    width: int = 128
    height: int = 128
    cameras: int = 4
    """Synchronised cameras; each has its own motion and intrinsics."""
    frames: int = 24
    """Frames per camera."""
    objects: tuple[int, int] = (3, 12)
    """Fewest and most objects, both included; at least two of them can move."""
    moving: tuple[float, float] = (0.035, 0.4)
    """Least and largest share of a camera's picture that moves, as a coarse look at a few moments finds it."""
    duration_s: tuple[float, float] = (1.0, 2.0)
    """Range of a clip's length, independent of its frame count: the frame rate follows."""
    paths: tuple[CameraKind, ...] = get_args(CameraKind)
    """How cameras may move. Orbits, dollies and pans cover their way in one clip, however short it is."""
    starts: tuple[Start, ...] = get_args(Start)
    """How things may set out."""
    spin: float = 1.0
    """Factor on the spin with which things are dropped, thrown or slid; 0: they turn only where they hit."""
    rig_m: float | None = None
    """The cameras of a clip move as one, each at most this far from the first, in metres. None: each by itself."""
    antialias: bool = True
    """Average four rays per pixel in the image where two surfaces meet."""

    def __post_init__(self) -> None:
        for name, low, high in (("width", 8, 4096), ("height", 8, 4096), ("cameras", 1, 16), ("frames", 2, 999)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"world setting {name} is {value}; choose a number from {low} to {high}")
        if not 3 <= self.objects[0] <= self.objects[1] <= 40:
            raise UserError(f"world setting objects is {self.objects}; choose 3 ≤ fewest ≤ most ≤ 40")
        if not 0 <= self.moving[0] <= self.moving[1] <= 1 or self.moving[1] - self.moving[0] < 0.05:
            raise UserError(f"world setting moving is {self.moving}; choose shares 0 ≤ least < most ≤ 1, 0.05 apart")
        if not 0.2 <= self.duration_s[0] <= self.duration_s[1] <= 10:
            raise UserError(f"world setting duration_s is {self.duration_s}; choose 0.2 ≤ shortest ≤ longest ≤ 10")
        unknown = [path for path in self.paths if path not in get_args(CameraKind)]
        if unknown or not self.paths:
            known = ", ".join(get_args(CameraKind))
            raise UserError(f"world setting paths is {','.join(self.paths) or 'empty'}; choose among {known}")
        wrong = [start for start in self.starts if start not in get_args(Start)]
        if wrong or not self.starts:
            known = ", ".join(get_args(Start))
            raise UserError(f"world setting starts is {','.join(self.starts) or 'empty'}; choose among {known}")
        if not 0 <= self.spin <= 5:
            raise UserError(f"world setting spin is {self.spin}; choose a factor from 0 to 5")
        if self.rig_m is not None and not 0 < self.rig_m <= 3:
            raise UserError(f"world setting rig_m is {self.rig_m}; choose metres above 0, up to 3")
        if self.cameras * self.frames > 999:
            raise UserError(f"{self.cameras} cameras × {self.frames} frames exceed the layout's 999 frames per clip")
