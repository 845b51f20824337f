"""From a stored clip to an `Example`: which frames, in which coordinate frame, at which scale; and batches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from four_d import geometry
from four_d import surface as surfaces
from four_d.data.contract import RawClip
from four_d.errors import UserError
from four_d.types import Cameras, Clip, Example, Surface, Tracks

SCALE_RANGE = (1e-6, 1e6)
"""VGGT's bounds of the scale divisor (training/train_utils/normalization.py)."""
DISPARITY, DISPARITY_SHARE = 2.0, 0.2
"""DGS-LRM's unit of length, and the share of pixels with less disparity."""


Hint = Literal["intrinsics", "poses", "depth", "masks"]
HINT_FIELDS = ("cameras", "depth", "valid", "dynamic", "dynamic_known")
"""Of a clip among the inputs."""
OPTIONAL_FIELDS = ("references", "query_times", "motion", "motion_valid", "motion_visible")
"""Of a clip: all clips of a batch have them, or none has."""


@dataclass(frozen=True, kw_only=True)
class HintShares:
    """In which share of the examples the model is given a truth beforehand, each drawn by itself."""

    intrinsics: float = 0.0
    poses: float = 0.0
    depth: float = 0.0
    masks: float = 0.0

    def __post_init__(self) -> None:
        if not all(0 <= share <= 1 for share in vars(self).values()):
            raise UserError(f"{self} holds something else than shares; choose each in [0, 1]")

    def draw(self, rng: np.random.Generator) -> tuple[Hint, ...]:
        """The hints of one example."""
        return tuple(name for name in HINTS if rng.random() < getattr(self, name))

    def most(self) -> tuple[Hint, ...]:
        """The hints that at least half of the examples have: those of validation."""
        return tuple(name for name in HINTS if getattr(self, name) >= 0.5)


HINTS: tuple[Hint, ...] = ("intrinsics", "poses", "depth", "masks")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which frames of a clip make an example. The count is one per batch, uniform in [min_frames, max_frames]."""

    min_frames: int = 2
    max_frames: int = 24
    max_cameras: int = 4
    """At most so many cameras share an example."""
    one_camera_share: float = 0.5
    """Share of the examples that take all frames from one camera, where the clip has several."""
    max_stride: int = 4
    """Neighbouring frames are 1 … max_stride frames of the source apart, where the clip is long enough."""
    shuffle_share: float = 0.0
    """Share of the examples whose frames stand in random order; the others are sorted by time."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_frames <= self.max_frames:
            raise UserError(f"min_frames is {self.min_frames}, max_frames {self.max_frames}: need 1 <= min <= max")
        if self.max_cameras < 1 or self.max_stride < 1:
            raise UserError("max_cameras and max_stride must be at least 1")


def choose_frames(
    times: Sequence[float], camera_ids: Sequence[int], count: int, config: SamplingConfig, rng: np.random.Generator
) -> list[int]:
    """``count`` frame indices of a clip; the first chosen will carry the coordinate frame.

    Frames come from one camera or from several that see the same times, in a window of random place and stride. Where
    the clip has fewer frames than asked for, some come twice (as in VGGT, which draws with replacement).
    """
    cameras = _choose_cameras(np.asarray(camera_ids), count, config, rng)
    table = [np.flatnonzero(np.asarray(camera_ids) == camera) for camera in cameras]
    table = [rows[np.argsort(np.asarray(times)[rows], kind="stable")] for rows in table]
    length = min(len(rows) for rows in table)
    steps = min(-(-count // len(cameras)), length)
    most = (length - 1) // (steps - 1) if steps > 1 else 1
    stride = int(rng.integers(1, min(config.max_stride, most) + 1))
    start = int(rng.integers(0, length - (steps - 1) * stride))
    window = start + stride * np.arange(steps)
    chosen = np.stack([rows[window] for rows in table], axis=1).reshape(-1)
    chosen = _fit(chosen, count, rng)
    return [int(i) for i in (rng.permutation(chosen) if rng.random() < config.shuffle_share else chosen)]


def _choose_cameras(
    camera_ids: NDArray[np.int64], count: int, config: SamplingConfig, rng: np.random.Generator
) -> NDArray[np.int64]:
    present = np.unique(camera_ids)
    most = min(len(present), config.max_cameras, count)
    several = rng.random() >= config.one_camera_share
    number = int(rng.integers(2, most + 1)) if several and most >= 2 else 1
    return rng.choice(present, size=number, replace=False)


def _fit(chosen: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Exactly ``count`` of the candidates in their order: a random part of them, or all and some of them twice."""
    positions = np.arange(len(chosen))
    if len(chosen) > count:
        positions = np.sort(rng.choice(positions, size=count, replace=False))
    elif len(chosen) < count:
        positions = np.sort(np.concatenate([positions, rng.choice(positions, size=count - len(chosen))]))
    return chosen[positions]


def to_clip(raw: RawClip, *, with_surface: bool = False) -> Clip:
    """The tensors of a decoded sample, unbatched, in the source's units; absent modalities stay None.

    World = the first frame's camera (the source's own world where cameras are unknown). Depth, ``valid`` and
    ``dynamic`` come from the surface where there is one, else from what the source stored. ``with_surface`` keeps the
    correspondence itself as well.
    """
    info = raw.info
    cameras, new_from_world = _cameras(raw)
    clip = Clip(
        images=torch.from_numpy(raw.images).permute(0, 3, 1, 2).float() / 255,
        times=torch.tensor(info.times, dtype=torch.float32),
        camera_ids=torch.tensor(info.camera_ids, dtype=torch.int64),
        cameras=cameras,
        depth=None if raw.depth is None else torch.tensor(raw.depth, dtype=torch.float32),
        dynamic=None if raw.dynamic is None else torch.tensor(raw.dynamic),
        tracks=_tracks(raw, new_from_world),
        metric=torch.tensor(info.metric),
        scale=torch.tensor(1.0),
    )
    if raw.surface is not None and cameras is not None:
        surface = surfaces.transform_surface(surfaces.decode(raw.surface, info), new_from_world.float())
        depth, dynamic = surfaces.depth_and_dynamic(surface, cameras, clip.times)
        kept = surface if with_surface else None
        clip = dataclasses.replace(clip, depth=depth, dynamic=dynamic, surface=kept)
    return clip if clip.depth is None else dataclasses.replace(clip, valid=clip.depth > 0)


def _cameras(raw: RawClip) -> tuple[Cameras | None, Float[Tensor, "4 4"]]:
    """Cameras in the first one's coordinates and that change of coordinates, found in float64: a world may be wide."""
    if raw.world_from_camera is None or raw.intrinsics is None:
        return None, torch.eye(4, dtype=torch.float64)
    poses = torch.from_numpy(raw.world_from_camera)
    first_from_world = geometry.invert_pose(poses[0])
    intrinsics = torch.from_numpy(raw.intrinsics).float()
    return Cameras(world_from_camera=(first_from_world @ poses).float(), intrinsics=intrinsics), first_from_world


def _tracks(raw: RawClip, new_from_world: Float[Tensor, "4 4"]) -> Tracks | None:
    if raw.tracks is None or raw.info.track_times is None:
        return None
    points = geometry.transform(new_from_world, torch.tensor(raw.tracks.points, dtype=torch.float64))
    return Tracks(
        points=points.float(),
        visible=torch.tensor(raw.tracks.visible),
        valid=torch.tensor(raw.tracks.valid),
        times=torch.tensor(raw.info.track_times, dtype=torch.float32),
    )


Normalisation = Literal["mean_distance", "disparity"]
"""What has a fixed size in examples: the mean distance of points (VGGT: 1), or the disparity that a fifth of the pixels
fall below (DGS-LRM: 2)."""

UNITS: dict[Normalisation, str] = {
    "mean_distance": "model unit: the mean distance of the scene's points to the first camera is about 1; not metres",
    "disparity": "the unit of the cameras and depth that were given",
}
"""What the lengths are in that a model says, by how it was trained."""


def normalise(clip: Clip, rule: Normalisation = "mean_distance") -> Clip:
    """The clip with its lengths divided by one number, which ``scale`` records. World = the first frame's camera.

    ``disparity`` needs depth: UserError without. ``mean_distance`` is VGGT's: the mean distance of all valid points to
    the origin (training/train_utils/normalization.py: sum / (count + 1e-3), clamped to [1e-6, 1e6]). Without depth it
    is the mean distance of the other cameras from the first; without cameras the mean depth; and 1 where there is
    neither, or no camera moves.
    """
    scale = _scale(clip) if rule == "mean_distance" else disparity_scale(clip)
    return scale_lengths(clip, scale.clamp(*SCALE_RANGE))


def disparity_scale(clip: Clip) -> Float[Tensor, ""]:
    """Lengths over this have a 20th percentile of disparity (1 / depth) of 2 (DGS-LRM). UserError without depth."""
    if clip.depth is None or clip.valid is None or not bool(clip.valid.any()):
        raise UserError("normalisation by disparity needs depth; give it, or set data.normalisation=mean_distance")
    return DISPARITY / (1 / clip.depth[clip.valid]).quantile(DISPARITY_SHARE)


def _scale(clip: Clip) -> Float[Tensor, ""]:
    if clip.depth is not None and clip.valid is not None and bool(clip.valid.any()):
        if clip.cameras is None:
            return clip.depth[clip.valid].mean()
        distance = geometry.unproject(clip.depth, clip.cameras).norm(dim=-1)
        return (distance * clip.valid).sum() / (clip.valid.sum() + 1e-3)
    if clip.cameras is None:
        return torch.tensor(1.0)
    distance = clip.cameras.world_from_camera[1:, :3, 3].norm(dim=-1)
    moving = distance.numel() > 0 and float(distance.mean()) > SCALE_RANGE[0]
    return distance.mean() if moving else torch.tensor(1.0)


def scale_lengths(clip: Clip, divisor: Float[Tensor, ""]) -> Clip:
    """Every length of an unbatched clip divided by ``divisor``; its ``scale`` multiplied by it."""
    cameras, depth, surface, tracks = clip.cameras, clip.depth, clip.surface, clip.tracks
    if cameras is not None:
        poses = cameras.world_from_camera
        poses = geometry.make_pose(poses[..., :3, :3], poses[..., :3, 3] / divisor)
        cameras = dataclasses.replace(cameras, world_from_camera=poses)
    if surface is not None:
        surface = dataclasses.replace(surface, vertices=surface.vertices / divisor)
    if tracks is not None:
        tracks = dataclasses.replace(tracks, points=tracks.points / divisor)
    scale = divisor if clip.scale is None else clip.scale * divisor
    depth = None if depth is None else depth / divisor
    motion = None if clip.motion is None else clip.motion / divisor
    views = None if clip.views is None else scale_lengths(clip.views, divisor)
    lengths = {
        "cameras": cameras,
        "depth": depth,
        "surface": surface,
        "tracks": tracks,
        "motion": motion,
        "views": views,
    }
    return dataclasses.replace(clip, **lengths, scale=scale)


def hinted(clip: Clip, hints: Collection[Hint]) -> Clip:
    """What a model sees of a clip: images, times, camera ids, query times; and of the truth what ``hints`` name."""
    names = ("images", "times", "camera_ids", "references", "query_times")
    inputs = Clip(**{name: getattr(clip, name) for name in names})
    cameras = clip.cameras
    if cameras is not None and ("intrinsics" in hints or "poses" in hints):
        known = torch.ones_like(clip.times, dtype=torch.bool) if cameras.known is None else cameras.known
        lens = known if cameras.intrinsics_known is None else cameras.intrinsics_known
        poses, lenses = known & ("poses" in hints), lens & ("intrinsics" in hints)
        given = Cameras(
            world_from_camera=torch.where(poses[..., None, None], cameras.world_from_camera, torch.eye(4)),
            intrinsics=torch.where(lenses[..., None, None], cameras.intrinsics, torch.eye(3)),
            known=poses,
            intrinsics_known=lenses,
        )
        inputs = dataclasses.replace(inputs, cameras=given)
    if "depth" in hints:
        inputs = dataclasses.replace(inputs, depth=clip.depth, valid=clip.valid)
    if "masks" in hints:
        inputs = dataclasses.replace(inputs, dynamic=clip.dynamic, dynamic_known=clip.dynamic_known)
    return inputs


def to_example(clip: Clip, key: str, hints: Collection[Hint] = ()) -> Example:
    """Split an unbatched clip: the model sees `hinted`, the losses everything."""
    return Example(inputs=hinted(clip, hints), targets=clip, key=[key])


def collate(examples: Sequence[Example]) -> Example:
    """One batch of unbatched examples with equal frame counts and image sizes.

    What some or all lack is filled: cameras are identity with ``known`` False, depth is 0 with ``valid`` False,
    ``dynamic`` is False with ``dynamic_known`` False. Surface and tracks are padded to the longest, with faces that
    nothing refers to and points that are never ``valid``; a batch in which nobody has them has None. Likewise the
    hints among the inputs: a batch in which nobody has one has None.
    """
    counts = {len(example.inputs.times) for example in examples}
    if len(counts) != 1:
        raise ValueError(f"examples of one batch have {sorted(counts)} frames; they must have equally many")
    targets = _stack([fill(example.targets) for example in examples])
    inputs = _stack_inputs([example.inputs for example in examples])
    return Example(inputs=inputs, targets=targets, key=[key for example in examples for key in example.key])


def fill(clip: Clip) -> Clip:
    """An unbatched clip with placeholders and flags for the cameras, depth and masks that it lacks."""
    frames, _, height, width = clip.images.shape
    absent = torch.zeros(frames, height, width, dtype=torch.bool)
    cameras = clip.cameras
    if cameras is None:
        cameras = Cameras(
            world_from_camera=torch.eye(4).repeat(frames, 1, 1),
            intrinsics=torch.eye(3).repeat(frames, 1, 1),
            known=torch.zeros(frames, dtype=torch.bool),
        )
    elif cameras.known is None:
        cameras = dataclasses.replace(cameras, known=torch.ones(frames, dtype=torch.bool))
    if cameras.intrinsics_known is None:
        cameras = dataclasses.replace(cameras, intrinsics_known=cameras.known)
    known = torch.full((frames,), clip.dynamic is not None)
    return dataclasses.replace(
        clip,
        cameras=cameras,
        depth=absent.float() if clip.depth is None else clip.depth,
        valid=absent if clip.valid is None else clip.valid,
        dynamic=absent if clip.dynamic is None else clip.dynamic,
        dynamic_known=known if clip.dynamic_known is None else clip.dynamic_known,
        metric=torch.tensor(False) if clip.metric is None else clip.metric,
        scale=torch.tensor(1.0) if clip.scale is None else clip.scale,
    )


def _stack_inputs(clips: list[Clip]) -> Clip:
    """Hints that somebody has are filled for the others; those that nobody has stay None."""
    present = {name for name in HINT_FIELDS for clip in clips if getattr(clip, name) is not None}
    filled = _stack([fill(clip) for clip in clips])
    return dataclasses.replace(
        filled, **{name: None for name in HINT_FIELDS if name not in present}, metric=None, scale=None
    )


def _stack(clips: list[Clip]) -> Clip:
    def every(name: str) -> Tensor:
        return torch.stack([getattr(clip, name) for clip in clips])

    cameras = [clip.cameras for clip in clips if clip.cameras is not None]
    names = [f.name for f in dataclasses.fields(Cameras)]
    surfaces_given = [clip.surface for clip in clips]
    tracks_given = [clip.tracks for clip in clips]
    return Clip(
        **{name: every(name) for name in ("images", "times", "camera_ids", "depth", "valid", "dynamic")},
        **{name: every(name) for name in ("dynamic_known", "metric", "scale")},
        cameras=Cameras(**{name: torch.stack([getattr(c, name) for c in cameras]) for name in names}),
        surface=_stack_surfaces(surfaces_given, clips[0]),
        tracks=_stack_tracks(tracks_given),
        views=_stack([fill(clip.views) for clip in clips if clip.views is not None]) if clips[0].views else None,
        **{name: every(name) for name in OPTIONAL_FIELDS if getattr(clips[0], name) is not None},
    )


def _stack_surfaces(given: list[Surface | None], like: Clip) -> Surface | None:
    present = [surface for surface in given if surface is not None]
    if not present:
        return None
    frames, _, height, width = like.images.shape
    nothing = Surface(
        faces=torch.full((frames, height, width), -1, dtype=present[0].faces.dtype),
        barycentric=torch.zeros(frames, 2, height, width),
        triangles=present[0].triangles[:0],
        instances=present[0].instances[:0],
        vertices=present[0].vertices[:1, :0],
        times=present[0].times[:1],
    )
    every = [nothing if surface is None else surface for surface in given]
    return Surface(
        faces=torch.stack([s.faces for s in every]),
        barycentric=torch.stack([s.barycentric for s in every]),
        triangles=pad([s.triangles for s in every]),
        instances=pad([s.instances for s in every]),
        vertices=pad([s.vertices for s in every]),
        times=pad([s.times for s in every]),
    )


def _stack_tracks(given: list[Tracks | None]) -> Tracks | None:
    present = [tracks for tracks in given if tracks is not None]
    if not present:
        return None
    first = present[0]
    nothing = Tracks(points=first.points[:0], visible=first.visible[:0], valid=first.valid[:0], times=first.times)
    every = [nothing if tracks is None else tracks for tracks in given]
    names = [f.name for f in dataclasses.fields(Tracks)]
    return Tracks(**{name: pad([getattr(tracks, name) for tracks in every]) for name in names})


def pad(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of unequal sizes; each is filled up with zeros (False) at the ends of its axes."""
    size = torch.tensor([tensor.shape for tensor in tensors]).amax(0).tolist()
    stacked = tensors[0].new_zeros(len(tensors), *size)
    for row, tensor in zip(stacked, tensors):
        row[tuple(slice(0, n) for n in tensor.shape)] = tensor
    return stacked
