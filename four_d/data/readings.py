"""Readings of a clip: which image, camera and depth belong together, and what else its numbers may have meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d import fields, geometry
from four_d.types import Cameras

UNIT_FACTORS = (1e-3, 1e-2, 0.1, 0.2, 0.256, 1 / 0.256, 5.0, 10.0, 100.0, 1e3)
"""Factors that correct depth after usual mistakes with units: millimetres and centimetres, counts of 1/5000 m (TUM) or
1/256 m (KITTI) taken for millimetres, and the reverse."""
SHIFTS = (1, -1, 2, -2, 3, -3)
"""Frames by which one stream may lag behind the others."""
FOCAL_FACTORS = (0.25, 0.5, 2 / 3, 0.75, 1.25, 4 / 3, 1.5, 2.0, 4.0)
"""Factors of focal lengths that are tried."""
POSES, TURN, ORDER, RESOLUTION, CENTRE, MIRRORING, DISTANCE, UNIT, TIME = (
    "direction and axes of the poses",
    "turn of the images",
    "order of the intrinsics",
    "resolution of the intrinsics",
    "principal point",
    "mirroring of the images",
    "z-depth or distance",
    "unit of depth against poses",
    "time stamps",
)
"""Groups of mistakes: the property that is wrong."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read a clip's numbers.

    Row i of the indices says which camera and depth the image i has; −1: none.
    """

    cameras: Cameras
    """Unbatched, of f frames."""
    depth: Float[Tensor, "f h w"] | None
    """Stored depth, 0 where unknown; `depth_of` reads it."""
    dynamic: Bool[Tensor, "f h w"] | None
    times: Float[Tensor, "f"]
    streams: tuple[int, ...]
    """Number of the run of neighbouring frames of one camera that each frame is of."""
    size: tuple[int, int]
    """Rows and columns."""
    camera_at: Int[Tensor, "f"]
    depth_at: Int[Tensor, "f"]
    mirrored: tuple[bool, bool] = (False, False)
    """True for (x, y) that count from the other side of the image."""
    turned: int = 0
    """Quarter turns clockwise, −1 to 1, that square images were turned by."""
    depth_factor: float = 1.0
    """Factor of the stored depth."""
    rays: bool = False
    """True if stored depth is the distance along the ray."""

    def depth_of(self, frame: int) -> Float[Tensor, "h w"] | None:
        """Read the z-depth that belongs to an image; None if there is none."""
        row = int(self.depth_at[frame])
        if self.depth is None or row < 0:
            return None
        depth = self.depth[row] * self.depth_factor
        return _along_ray(depth, fields.unstack(self.cameras, row)) if self.rays else depth


Change = Callable[[Reading], Reading]
Stream = Literal["images", "cameras", "depth"]


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A usual mistake: how it is undone, in words and as a function."""

    group: str
    """Property that is wrong, one of the groups above."""
    remedy: str
    undo: Change
    touches: Stream = "cameras"
    """Stream whose reading it changes."""


def pose_mistakes(cameras: Cameras) -> dict[str, Cameras]:
    """Usual mistakes with poses: remedy → cameras corrected by it."""
    pose = cameras.world_from_camera
    mirror_x, flip, mirror_y = (torch.diag(pose.new_tensor(d)) for d in ([-1, 1, 1, 1], [1, -1, -1, 1], [1, -1, 1, 1]))
    transposed = geometry.make_pose(pose[..., :3, :3].mT, pose[..., :3, 3])
    poses = {
        "the poses are stored as camera_from_world: invert them": geometry.invert_pose(pose),
        "the camera axes are those of OpenGL (y up, z backward): negate the poses' second and third column": pose
        @ flip,
        "the poses are camera_from_world with the axes of OpenGL: negate rows two and three, then invert": (
            geometry.invert_pose(flip @ pose)
        ),
        "the world is mirrored in x: use a right-handed one, camera axes x right, y down, z forward": mirror_x
        @ pose
        @ mirror_x,
        "the world is mirrored in y: use a right-handed one, camera axes x right, y down, z forward": mirror_y
        @ pose
        @ mirror_y,
        "the rotations are transposed: store world_from_camera": transposed,
    }
    return {name: dataclasses.replace(cameras, world_from_camera=value) for name, value in poses.items()}


def turned_cameras(cameras: Cameras, size: tuple[int, int], quarters: int) -> Cameras:
    """Cameras of pictures that were turned clockwise by ``quarters`` (1, 2 or −1) to their ``size`` (rows, columns)."""
    height, width = size
    k = cameras.intrinsics.clone()
    if quarters == 2:
        axes = [[-1, 0, 0], [0, -1, 0], [0, 0, 1]]
        k[..., 0, 2], k[..., 1, 2] = width - cameras.intrinsics[..., 0, 2], height - cameras.intrinsics[..., 1, 2]
    else:
        axes = [[0, quarters, 0], [-quarters, 0, 0], [0, 0, 1]]
        k[..., 0, 0], k[..., 1, 1] = cameras.intrinsics[..., 1, 1], cameras.intrinsics[..., 0, 0]
        cx, cy = cameras.intrinsics[..., 0, 2], cameras.intrinsics[..., 1, 2]
        k[..., 0, 2], k[..., 1, 2] = (width - cy, cx) if quarters == 1 else (cy, height - cx)
    pose = cameras.world_from_camera.clone()
    pose[..., :3, :3] = pose[..., :3, :3] @ pose.new_tensor(axes)
    return dataclasses.replace(cameras, world_from_camera=pose, intrinsics=k)


def _along_ray(depth: Float[Tensor, "h w"], camera: Cameras) -> Float[Tensor, "h w"]:
    """Read depth as distances along the ray, and return z-depth."""
    height, width = depth.shape
    pixels = geometry.pixel_centres(height, width, depth).reshape(-1, 2)
    return depth / geometry.rays(camera.intrinsics, pixels).norm(dim=-1).view(height, width)


def mistakes(reading: Reading) -> list[Mistake]:
    """List the usual mistakes that can be undone in a reading, simplest first."""
    streams: list[Stream] = ["images"] if reading.depth is None else ["images", "cameras", "depth"]
    return [
        *_of_poses(reading),
        *_of_intrinsics(reading),
        *_of_images(reading),
        *(_of_depth() if reading.depth is not None else []),
        *_of_time(reading, streams),
    ]


def of_images(reading: Reading) -> list[Mistake]:
    """List the mistakes of images alone, for clips whose geometry was checked by itself."""
    return [*_of_images(reading), *_of_time(reading, ["images"])]


def of_cameras(reading: Reading) -> list[Mistake]:
    """List the mistakes of cameras alone, for clips whose surface says where each pixel's point is."""
    return [*_of_poses(reading), *_of_intrinsics(reading), *_of_time(reading, ["cameras"])]


def groups(reading: Reading, *, surface: bool) -> list[str]:
    """List the properties that a reading has and that can be wrong, whether or not there is a way to tell.

    With a ``surface`` only images are in question. A principal point in the middle of the image is not.
    """
    if surface:
        return [MIRRORING, TIME]
    centred = CENTRE not in {mistake.group for mistake in _of_intrinsics(reading)}
    missing = {CENTRE} if centred else set[str]()
    missing |= {DISTANCE, UNIT} if reading.depth is None else set[str]()
    return [
        group
        for group in (POSES, TURN, ORDER, RESOLUTION, CENTRE, MIRRORING, DISTANCE, UNIT, TIME)
        if group not in missing
    ]


def _of_poses(reading: Reading) -> Iterator[Mistake]:
    for remedy in pose_mistakes(reading.cameras):
        yield Mistake(
            group=POSES,
            remedy=remedy,
            undo=lambda given, remedy=remedy: dataclasses.replace(given, cameras=pose_mistakes(given.cameras)[remedy]),
        )
    pictures = "images" if reading.depth is None else "images and their depth"
    for quarters, turn in ((1, "90 degrees clockwise"), (-1, "90 degrees anticlockwise"), (2, "180 degrees")):
        yield Mistake(
            group=TURN,
            remedy=f"the {pictures} are turned by {turn} against the cameras: turn them back",
            undo=lambda given, quarters=quarters: dataclasses.replace(
                given, cameras=turned_cameras(given.cameras, given.size, quarters)
            ),
        )


def _of_intrinsics(reading: Reading) -> Iterator[Mistake]:
    k = reading.cameras.intrinsics
    height, width = reading.size

    def change(group: str, remedy: str, make: Callable[[Tensor], Tensor]) -> Mistake:
        return Mistake(
            group=group,
            remedy=remedy,
            undo=lambda given: dataclasses.replace(
                given, cameras=dataclasses.replace(given.cameras, intrinsics=make(given.cameras.intrinsics))
            ),
        )

    def with_entries(order: Sequence[tuple[int, int]]) -> Callable[[Tensor], Tensor]:
        def make(given: Tensor) -> Tensor:
            made = given.clone()
            for to, source in zip(((0, 0), (1, 1), (0, 2), (1, 2)), order, strict=True):
                made[..., to[0], to[1]] = given[..., source[0], source[1]]
            return made

        return make

    fx, fy, cx, cy = (0, 0), (1, 1), (0, 2), (1, 2)
    group, order = ORDER, "their order is fx fy cx cy"
    yield change(group, f"fx and fy are swapped: {order}", with_entries((fy, fx, cx, cy)))
    yield change(group, f"cx and cy are swapped: {order}", with_entries((fx, fy, cy, cx)))
    yield change(group, f"fx, cx and fy, cy are swapped: {order}", with_entries((fy, fx, cy, cx)))
    group = RESOLUTION
    middle = float(((k[..., 0, 2] / width + k[..., 1, 2] / height) / 2).median())
    found = 0.5 / middle if middle > 0 else 1.0
    for factor in dict.fromkeys([_rounded(found)] if abs(found - 1) > 0.1 else []):
        yield change(group, _resolution(factor), lambda given, factor=factor: _scaled(given, factor, factor))
    for factor in FOCAL_FACTORS:
        remedy = f"the focal lengths do not belong to these images: {factor:.3g} times the stored ones fit better"
        yield change(group, remedy, lambda given, factor=factor: _scaled(given, factor, 1.0))
    centre = k.new_tensor([width / 2, height / 2])

    def centred(given: Tensor) -> Tensor:
        made = given.clone()
        made[..., :2, 2] = centre
        return made

    if float((k[..., :2, 2] - centre).norm(dim=-1).max()) > 0.02 * max(width, height):
        remedy = "the principal point is not that of these images (are they cropped?): their centre fits better"
        yield change(CENTRE, remedy, centred)


def _rounded(factor: float) -> float:
    """Return the simple fraction that a factor nearly is, or itself."""
    for simple in (0.125, 0.25, 1 / 3, 0.5, 2 / 3, 1.5, 2.0, 3.0, 4.0, 8.0):
        if abs(factor / simple - 1) < 0.1:
            return simple
    return factor


def _resolution(factor: float) -> str:
    words = {0.5: "twice as large", 2.0: "half as large", 0.25: "four times as large", 4.0: "a quarter as large"}
    size = words.get(factor, f"{1 / factor:.3g} times as large")
    return f"the intrinsics are those of images {size}: multiply fx, fy, cx and cy by {factor:.3g}"


def _scaled(intrinsics: Tensor, focal: float, centre: float) -> Tensor:
    made = intrinsics.clone()
    made[..., 0, 0] *= focal
    made[..., 1, 1] *= focal
    made[..., :2, 2] *= centre
    return made


def _of_images(reading: Reading) -> Iterator[Mistake]:
    for name, x, y in (("left to right", True, False), ("upside down", False, True), ("both ways", True, True)):
        turned = "turned by 180 degrees" if x and y else f"mirrored {name}"
        yield Mistake(
            group=MIRRORING,
            remedy=f"the images are {turned} against poses and depth: {'turn' if x and y else 'mirror'} them back",
            undo=lambda given, x=x, y=y: dataclasses.replace(
                given, mirrored=(given.mirrored[0] != x, given.mirrored[1] != y)
            ),
            touches="images",
        )
    if reading.size[0] != reading.size[1]:
        return
    for quarters, turn in ((1, "clockwise"), (-1, "anticlockwise")):
        yield Mistake(
            group=MIRRORING,
            remedy=f"the images are turned by 90 degrees {turn} against poses and depth: turn them back",
            undo=lambda given, quarters=quarters: dataclasses.replace(given, turned=quarters),
            touches="images",
        )


def _of_depth() -> Iterator[Mistake]:
    yield Mistake(
        group=DISTANCE,
        remedy="depth is the distance along the ray: store z-depth",
        undo=lambda given: dataclasses.replace(given, rays=True),
        touches="depth",
    )
    for factor in UNIT_FACTORS:
        yield unit_mistake(factor)


def unit_mistake(factor: float) -> Mistake:
    """Mistake of depth that a factor corrects."""
    return Mistake(
        group=UNIT,
        remedy=f"depth and poses are in different units: depth times {factor:.4g} fits them",
        undo=lambda given: dataclasses.replace(given, depth_factor=given.depth_factor * factor),
        touches="depth",
    )


def _of_time(reading: Reading, streams: Sequence[Stream]) -> Iterator[Mistake]:
    most = max(reading.streams.count(run) for run in set(reading.streams))
    # late images are early cameras and depth, so that the same pairs of images are compared
    signs: dict[Stream, dict[str, int]] = {
        "images": {"camera_at": -1, "depth_at": -1},
        "cameras": {"camera_at": 1},
        "depth": {"depth_at": 1},
    }
    for shift in (s for s in SHIFTS if abs(s) <= most - 2):
        for stream in streams:
            words = [f"{abs(shift)} frame{'s' * (abs(shift) > 1)} too {way}" for way in ("late", "early")]
            way, other = words if shift > 0 else words[::-1]
            alone = f" (or the cameras come {other})" if stream == "images" and reading.depth is None else ""
            come = "the depth comes" if stream == "depth" else f"the {stream} come"
            yield Mistake(
                group=TIME,
                remedy=f"{come} {way}{alone} against all else: shift the time stamps",
                undo=lambda given, ways=signs[stream], shift=shift: dataclasses.replace(
                    given,
                    **{at: _shifted(getattr(given, at), given.streams, shift * sign) for at, sign in ways.items()},
                ),
                touches=stream,
            )


def _shifted(index: Int[Tensor, "f"], streams: Sequence[int], shift: int) -> Int[Tensor, "f"]:
    """Give each frame what the frame ``shift`` later in its run had; −1 where there is none."""
    made = torch.full_like(index, -1)
    for run in set(streams):
        rows = torch.tensor([i for i, each in enumerate(streams) if each == run])
        source = torch.arange(len(rows)) + shift
        there = (source >= 0) & (source < len(rows))
        made[rows[there]] = index[rows[source[there]]]
    return made
