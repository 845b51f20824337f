"""Settings of the generator."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
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
Effect = Literal["blur", "exposure", "lights", "noise", "compression", "fog"]
Scene = Literal["room", "corridor", "table", "open", "furnished"]
Views = Literal["steady", "varied"]


RIGID_ONLY = ("objects", "starts", "spin", "soft", "cloths", "rolling_shutter_s")
"""Settings of objects, which worlds of articulated bodies do not have."""
BODIES_ONLY = ("creatures", "species", "obstacles")
LATER = (
    *("effects", "scenes", "views", "soft", "cloths", "photographs", "meshes", "assets_licence"),
    *("rolling_shutter_s", "samples", "hdri"),
)
"""Settings that clips leave out where they are as usual, since there were worlds before them."""


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
    soft: tuple[int, int] = (0, 0)
    """Minimum and maximum number of soft bodies, which deform as they hit; fewer if they find no room."""
    cloths: tuple[int, int] = (0, 0)
    """Minimum and maximum number of cloths, which fall over things, fly or hang; fewer if they find no room."""
    photographs: Path | None = None
    """Folder of images: textures of surfaces and pictures that cover walls, beside the usual textures. Worlds, cameras
    and truth stay those of the seed without. Clips name the photographs that they show."""
    meshes: Path | None = None
    """Folder of textured meshes, in the layouts of GSO, ShapeNet or Objaverse: most objects are drawn from them. They
    collide as their convex hulls. Clips name the meshes that they show."""
    assets_licence: str = "unknown"
    """Licence of the photographs and meshes, which becomes that of the clips that may show them."""
    blender: Path | None = None
    """Python that has Blender's module bpy: Cycles then renders the pictures, in a program of its own. World, cameras
    and truth are those of the seed without."""
    samples: int = 64
    """Rays per pixel that Cycles starts from the camera, before it removes noise."""
    hdri: Path | None = None
    """Panorama (.hdr or .exr) that Cycles lights the world with, and shows where there is no wall; not given: a sky
    where there is no ceiling."""
    rig_m: float | None = None
    """Move all cameras as one rig, each at most this many metres from the first; None: each moves by itself."""
    scenes: tuple[Scene, ...] = ("room",)
    """Kinds of surroundings: a room; a corridor; a platform in a room, which cameras may look over or up at; open
    ground, with or without sky above the horizon; a room full of furniture, whose walls are near."""
    views: Views = "steady"
    """``steady``: cameras at eye level, some metres from what happens and turned to it. ``varied``: as hand-held and
    head-worn cameras do, they also look from near the floor or the ceiling, down, up or at a wall, at things close by,
    and aslant, through lenses from narrow to wide."""
    effects: tuple[Effect, ...] = ()
    """Effects on pictures, with strengths drawn from the seed: motion blur of a shutter that is open about each frame's
    time; exposure that changes; lights that move; noise of sensors and dark corners; compression; fog. The ground truth
    is that of each frame's time, to the pixel."""
    rolling_shutter_s: float | None = None
    """Seconds from the exposure of the first row to that of the last, at most the time between frames. A frame's time
    and pose are those of its middle; what each pixel shows is what was there at its row's time."""
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
        strange = [scene for scene in self.scenes if scene not in get_args(Scene)]
        if strange or not self.scenes:
            known = ", ".join(get_args(Scene))
            raise UserError(f"world setting scenes is {','.join(self.scenes) or 'empty'}; choose among {known}")
        odd = [effect for effect in self.effects if effect not in get_args(Effect)]
        if odd:
            raise UserError(f"world setting effects has {odd[0]!r}; choose among {', '.join(get_args(Effect))}")
        if self.views not in get_args(Views):
            raise UserError(f"world setting views is {self.views}; choose among {', '.join(get_args(Views))}")
        if self.rig_m is not None and not 0 < self.rig_m <= 3:
            raise UserError(f"world setting rig_m is {self.rig_m}; choose metres above 0, up to 3")
        if self.cameras * self.frames > 999:
            raise UserError(f"{self.cameras} cameras × {self.frames} frames exceed the layout's 999 frames per clip")
        fastest = self.duration_s[0] / self.frames
        if self.rolling_shutter_s is not None and not 0 < self.rolling_shutter_s <= fastest:
            raise UserError(
                f"world setting rolling_shutter_s is {self.rolling_shutter_s}; choose seconds above 0, up to the "
                f"time between frames, here as short as {fastest:.3g} s"
            )
        for name in ("soft", "cloths"):
            low, high = getattr(self, name)
            if not 0 <= low <= high <= 6:
                raise UserError(f"world setting {name} is {low, high}; choose 0 ≤ fewest ≤ most ≤ 6")
        self._check_blender()
        if self.assets_licence != "unknown" and not self.has_assets:
            raise UserError("world setting assets_licence is of photographs, meshes and HDRIs; give some too")
        self._check_bodies()

    @property
    def has_assets(self) -> bool:
        """True if clips may show files of others."""
        return self.photographs is not None or self.meshes is not None or self.hdri is not None

    def _check_blender(self) -> None:
        if self.blender is None:
            for name in ("samples", "hdri"):
                if getattr(self, name) != getattr(type(self), name):
                    raise UserError(f"world setting {name} is of Blender's pictures; set blender too")
            return
        if not 1 <= self.samples <= 4096:
            raise UserError(f"world setting samples is {self.samples}; choose a number from 1 to 4096")
        if "fog" in self.effects or self.rolling_shutter_s is not None:
            lacking = "fog" if "fog" in self.effects else "rolling shutter"
            raise UserError(f"Blender's pictures have no {lacking}; leave it out")

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
            kind = "worlds of objects" if self.bodies else "worlds of articulated bodies"
            raise UserError(f"world setting {changed[0]} is of {kind}; {remedy}")

    def to_dict(self) -> dict[str, object]:
        """Settings as clips store them: without those that say nothing."""
        idle = RIGID_ONLY if self.bodies else (*BODIES_ONLY, "bodies")
        # so that clips keep the bytes that they had before there were these
        later = {name: getattr(WorldSettings, name) for name in LATER}
        idle = (*idle, *(name for name, usual in later.items() if getattr(self, name) == usual))
        idle = (*idle, "blender")  # a place on one machine; clips say that Cycles rendered them
        found = {name: value for name, value in asdict(self).items() if name not in idle}
        return {name: _plain(value) for name, value in found.items()}


def _plain(value: object) -> object:
    """Value for JSON: of a folder its name, wherever it lies."""
    if isinstance(value, Path):
        return value.resolve().name
    return list(value) if isinstance(value, tuple) else value
