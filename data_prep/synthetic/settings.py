"""Settings of the generator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal, get_args

from four_d.errors import UserError

HELD_OUT_SEED = 1_000_000
"""First held-out seed: from here on, worlds have textures and shapes that smaller seeds never use."""
STEP_S = 0.002
"""Time step of simulations."""
CONTACT_S = 0.008
"""Time constant of contacts: as stiff as the time step allows."""
CameraKind = Literal["handheld", "orbit", "dolly", "pan", "follow", "static"]
Species = Literal["chain", "animal", "person"]
Start = Literal["dropped", "thrown", "slid", "rolled"]


RIGID_ONLY = ("objects", "starts", "spin")
"""Settings of rigid objects, which worlds of articulated bodies do not have."""
BODIES_ONLY = ("creatures", "species", "obstacles")


@dataclass(frozen=True, kw_only=True)
class WorldSettings:
    """Size and content of a clip. Everything else is drawn from the seed."""

    width: int = 128
    """Columns of the images, 8 to 4096."""
    height: int = 128
    """Rows of the images, 8 to 4096."""
    cameras: int = 4
    """Number of synchronised cameras, each with its own motion and intrinsics."""
    frames: int = 24
    """Number of frames per camera."""
    objects: tuple[int, int] = (3, 12)
    """Minimum and maximum number of objects; at least two of them can move."""
    moving: tuple[float, float] = (0.035, 0.4)
    """Minimum and maximum fraction of a camera's pixels that move, estimated at a few times and coarse resolution."""
    duration_s: tuple[float, float] = (1.0, 2.0)
    """Range of a clip's duration, independent of its frame count: the frame rate follows."""
    paths: tuple[CameraKind, ...] = get_args(CameraKind)
    """Kinds of camera motion. Orbits, dollies and pans span the whole clip, however short it is."""
    starts: tuple[Start, ...] = get_args(Start)
    """Kinds of initial motion of objects."""
    spin: float = 1.0
    """Factor on the initial spin of objects that are dropped, thrown or slid; 0: they rotate only after collisions."""
    rig_m: float | None = None
    """Move all cameras as one rig, each at most this many metres from the first; None: each moves by itself."""
    antialias: bool = True
    """Average four rays per pixel where two surfaces meet."""
    bodies: bool = False
    """Make worlds of articulated creatures (chains, animals, people) with keypoints, instead of rigid objects."""
    creatures: tuple[int, int] = (1, 3)
    """Minimum and maximum number of creatures, with `bodies`."""
    species: tuple[Species, ...] = get_args(Species)
    """Kinds of creatures, with `bodies`."""
    obstacles: tuple[int, int] = (0, 4)
    """Minimum and maximum number of still objects that stand about, with `bodies`; fewer if they find no room."""

    def __post_init__(self) -> None:
        for name, low, high in (("width", 8, 4096), ("height", 8, 4096), ("cameras", 1, 16), ("frames", 2, 999)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise UserError(f"world setting {name} is {value}; choose a number from {low} to {high}")
        if not 3 <= self.objects[0] <= self.objects[1] <= 40:
            raise UserError(f"world setting objects is {self.objects}; choose 3 ≤ fewest ≤ most ≤ 40")
        if not 0 <= self.moving[0] <= self.moving[1] <= 1 or self.moving[1] - self.moving[0] < 0.05:
            raise UserError(
                f"world setting moving is {self.moving}; choose fractions 0 ≤ least < most ≤ 1, at least 0.05 apart"
            )
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
        self._check_bodies()

    def _check_bodies(self) -> None:
        if not 1 <= self.creatures[0] <= self.creatures[1] <= 6:
            raise UserError(f"world setting creatures is {self.creatures}; choose 1 ≤ fewest ≤ most ≤ 6")
        if not 0 <= self.obstacles[0] <= self.obstacles[1] <= 20:
            raise UserError(f"world setting obstacles is {self.obstacles}; choose 0 ≤ fewest ≤ most ≤ 20")
        unknown = [one for one in self.species if one not in get_args(Species)]
        if unknown or not self.species:
            known = ", ".join(get_args(Species))
            raise UserError(f"world setting species is {','.join(self.species) or 'empty'}; choose among {known}")
        idle = RIGID_ONLY if self.bodies else BODIES_ONLY
        changed = [name for name in idle if getattr(self, name) != getattr(type(self), name)]
        if changed:
            remedy = "leave it out" if self.bodies else "set bodies too"
            kind = "rigid objects" if self.bodies else "worlds of articulated bodies"
            raise UserError(f"world setting {changed[0]} is of {kind}; {remedy}")

    def to_dict(self) -> dict[str, object]:
        """Settings as clips store them: without those that say nothing."""
        idle = RIGID_ONLY if self.bodies else (*BODIES_ONLY, "bodies")
        found = {name: value for name, value in asdict(self).items() if name not in idle}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}
