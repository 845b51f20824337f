"""Conversion of stored clips to `Example`s: choice of frames, coordinate frame and scale; and batching."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from four_d import fields, geometry
from four_d import surface as surfaces
from four_d.abilities import HINTS, Hint, Normalisation, World
from four_d.data.contract import RawClip
from four_d.data.crops import cropped
from four_d.errors import UserError
from four_d.keypoints import NAME_BYTES, encode_names, queries_of
from four_d.types import Cameras, Clip, Example, Keypoints, Surface, Tracks

SCALE_RANGE = (1e-6, 1e6)
"""VGGT's bounds of the scale divisor (training/train_utils/normalization.py)."""
DISPARITY, DISPARITY_QUANTILE = 2.0, 0.2
"""DGS-LRM's unit of length: the disparity, and the fraction of pixels with less."""

FILLED = ("cameras", "depth", "dynamic", "metric", "scale")
"""Fields that some clips of a batch may lack: placeholders fill them, with a flag (`fill`)."""


@dataclass(frozen=True, kw_only=True)
class HintProbabilities:
    """Probability of giving the model each truth beforehand as a hint, drawn independently."""

    intrinsics: float = 0.0
    """Probability of giving the intrinsics of all frames, 0 to 1."""
    poses: float = 0.0
    """Probability of giving the cameras' poses, 0 to 1."""
    depth: float = 0.0
    """Probability of giving depth maps, 0 to 1."""
    masks: float = 0.0
    """Probability of giving masks of moving pixels, 0 to 1."""
    boxes: float = 0.0
    """Probability of giving the boxes of the things whose keypoints are asked for, 0 to 1."""

    def __post_init__(self) -> None:
        if not all(0 <= probability <= 1 for probability in vars(self).values()):
            raise UserError(f"{self}: each is a probability; choose it in [0, 1]")

    def draw(self, rng: np.random.Generator) -> tuple[Hint, ...]:
        """Draw the hints of one example."""
        return tuple(name for name in HINTS if rng.random() < getattr(self, name))

    def likely(self) -> tuple[Hint, ...]:
        """Hints that at least half of the examples have: those of validation."""
        return tuple(name for name in HINTS if getattr(self, name) >= 0.5)


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Choice of a clip's frames for an example. Their number, one per batch, is uniform in [min_frames, max_frames]."""

    min_frames: int = 2
    """Least number of frames of an example, at least 1. 2: VGGT's."""
    max_frames: int = 24
    """Largest number of frames of an example, over all its cameras. 24: VGGT's."""
    max_cameras: int = 4
    """Maximum number of cameras in an example."""
    one_camera_share: float = 0.5
    """Fraction of the examples that take all frames from one camera, where the clip has several."""
    max_stride: int = 4
    """Maximum stride between neighbouring frames, drawn from 1 … max_stride, where the clip is long enough."""
    shuffle_share: float = 0.0
    """Fraction of the examples whose frames are shuffled; the others are sorted by time."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_frames <= self.max_frames:
            raise UserError(f"min_frames is {self.min_frames}, max_frames {self.max_frames}: need 1 <= min <= max")
        if self.max_cameras < 1 or self.max_stride < 1:
            raise UserError("max_cameras and max_stride must be at least 1")

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        if self.one_camera_share >= 1:
            return {"max_cameras": "where one_camera_share is 1"}
        return {"one_camera_share": "where max_cameras is 1"} if self.max_cameras == 1 else {}


def choose_frames(
    times: Sequence[float], camera_ids: Sequence[int], count: int, config: SamplingConfig, rng: np.random.Generator
) -> list[int]:
    """Choose ``count`` frame indices of a clip; the first one carries the coordinate frame.

    Frames come from one camera or from several that see the same times, in a window of random place and stride. Where
    the clip has fewer frames than ``count``, some repeat (as in VGGT, which draws with replacement).
    """
    cameras = _choose_cameras(np.asarray(camera_ids), count, config, rng)
    table = [np.flatnonzero(np.asarray(camera_ids) == camera) for camera in cameras]
    table = [rows[np.argsort(np.asarray(times)[rows], kind="stable")] for rows in table]
    length = min(len(rows) for rows in table)
    steps = min(-(-count // len(cameras)), length)
    max_stride = (length - 1) // (steps - 1) if steps > 1 else 1
    stride = int(rng.integers(1, min(config.max_stride, max_stride) + 1))
    start = int(rng.integers(0, length - (steps - 1) * stride))
    window = start + stride * np.arange(steps)
    chosen = np.stack([rows[window] for rows in table], axis=1).reshape(-1)
    chosen = _exactly(chosen, count, rng)
    return [int(i) for i in (rng.permutation(chosen) if rng.random() < config.shuffle_share else chosen)]


def _choose_cameras(
    camera_ids: NDArray[np.int64], count: int, config: SamplingConfig, rng: np.random.Generator
) -> NDArray[np.int64]:
    present = np.unique(camera_ids)
    limit = min(len(present), config.max_cameras, count)
    use_several = rng.random() >= config.one_camera_share
    number = int(rng.integers(2, limit + 1)) if use_several and limit >= 2 else 1
    return rng.choice(present, size=number, replace=False)


def _exactly(chosen: NDArray[np.int64], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Choose exactly ``count`` candidates in their order: a random subset, or all with some repeated."""
    positions = np.arange(len(chosen))
    if len(chosen) > count:
        positions = np.sort(rng.choice(positions, size=count, replace=False))
    elif len(chosen) < count:
        positions = np.sort(np.concatenate([positions, rng.choice(positions, size=count - len(chosen))]))
    return chosen[positions]


def to_clip(
    raw: RawClip,
    *,
    with_surface: bool = False,
    world: World = "first_camera",
    into: Float[Tensor, "f 3 h w"] | None = None,
) -> Clip:
    """Convert a decoded sample to unbatched tensors in the source's units; absent modalities stay None.

    World = the first frame's camera, or the source's own (``stored``, and where poses are unknown). Depth, ``valid``
    and ``dynamic`` come from the surface where there is one, else from the source. ``with_surface`` keeps the
    correspondence as well. A sample that was read with a crop gives the cropped clip. ``into``: memory for the images.
    """
    info = raw.info
    cameras, new_from_world = _cameras(raw, world)
    stored = torch.from_numpy(raw.images).permute(0, 3, 1, 2).contiguous()
    images = torch.empty(stored.shape) if into is None else into
    images.copy_(stored).mul_(1 / 255)  # five times as fast as a product of two types
    clip = Clip(
        # in place of whole images, which no one decoded and `cropped` replaces: takes no memory
        images=images if raw.crop is None else torch.zeros(()).expand(len(images), 3, info.height, info.width),
        times=torch.tensor(info.times, dtype=torch.float32),
        camera_ids=torch.tensor(info.camera_ids, dtype=torch.int64),
        cameras=cameras,
        depth=None if raw.depth is None else torch.from_numpy(raw.depth),
        dynamic=None if raw.dynamic is None else torch.tensor(raw.dynamic),
        tracks=_tracks(raw, new_from_world),
        keypoints=_keypoints(raw, new_from_world),
        metric=torch.tensor(info.metric),
        scale=torch.tensor(1.0),
    )
    if raw.surface is not None and cameras is not None and raw.world_from_camera is not None:
        surface = surfaces.transform_surface(surfaces.decode(raw.surface, info), new_from_world.float())
        depth, dynamic = surfaces.depth_and_dynamic(surface, cameras, clip.times)
        kept = surface if with_surface else None
        clip = dataclasses.replace(clip, depth=depth, dynamic=dynamic, surface=kept)
    clip = clip if raw.crop is None else cropped(clip, raw.crop, images)
    return clip if clip.depth is None else dataclasses.replace(clip, valid=clip.depth > 0)


def _cameras(raw: RawClip, world: World) -> tuple[Cameras | None, Float[Tensor, "4 4"]]:
    """Cameras in the new world, and new_from_world; computed in float64, since a world may be large."""
    same = torch.eye(4, dtype=torch.float64)
    if raw.intrinsics is None:
        return None, same
    if raw.world_from_camera is None:
        unknown = torch.zeros(len(raw.intrinsics), dtype=torch.bool)
        lenses = torch.from_numpy(raw.intrinsics).float()
        poses = same.float().expand(len(lenses), 4, 4)
        return Cameras(world_from_camera=poses, intrinsics=lenses, known=unknown, intrinsics_known=~unknown), same
    poses = torch.from_numpy(raw.world_from_camera)
    new_from_world = same if world == "stored" else geometry.invert_pose(poses[0])
    intrinsics = torch.from_numpy(raw.intrinsics).float()
    return Cameras(world_from_camera=(new_from_world @ poses).float(), intrinsics=intrinsics), new_from_world


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


def _keypoints(raw: RawClip, new_from_world: Float[Tensor, "4 4"]) -> Keypoints | None:
    stored, said = raw.keypoints, raw.info.keypoints
    if stored is None or said is None:
        return None
    # without cameras the source's world is nothing that a model could know: only the pixels count then
    valid = torch.tensor(stored.valid) & (raw.world_from_camera is not None)
    points = geometry.transform(new_from_world, torch.tensor(stored.points, dtype=torch.float64)).float()
    return Keypoints(
        names=encode_names(said.names),
        instances=torch.tensor(said.instances, dtype=torch.int64),
        points=torch.where(valid[..., None], points, 0),
        valid=valid,
        pixels=torch.tensor(stored.pixels),
        pixels_valid=torch.tensor(stored.pixels_valid),
        visible=torch.tensor(stored.visible),
        edges=torch.tensor(said.edges, dtype=torch.int64).view(-1, 2),
        rigid=torch.tensor(said.rigid, dtype=torch.bool),
    )


def normalise(clip: Clip, rule: Normalisation = "mean_distance") -> Clip:
    """Divide a clip's lengths by one number, recorded in ``scale``. World = the first frame's camera.

    ``stored`` leaves them as they are, in any world. ``disparity`` needs depth: UserError without. ``mean_distance`` is
    VGGT's: the mean distance of all valid points to the origin (training/train_utils/normalization.py: sum / (count +
    1e-3), clamped to [1e-6, 1e6]). Without depth it is that of the valid keypoints, or else the mean distance of the
    other cameras from the first; without cameras the mean depth; and 1 where there is none of these, or no camera
    moves.
    """
    scales = {"mean_distance": _mean_distance_scale, "disparity": disparity_scale, "stored": _no_scale}
    scale = scales[rule](clip)
    clip = clip if clip.scale is not None else dataclasses.replace(clip, scale=torch.tensor(1.0))
    return fields.divide(clip, scale.clamp(*SCALE_RANGE))


def disparity_scale(clip: Clip) -> Float[Tensor, ""]:
    """Divisor of lengths for a 20th percentile of disparity (1 / depth) of 2 (DGS-LRM). UserError without depth."""
    if clip.depth is None or clip.valid is None or not bool(clip.valid.any()):
        raise UserError("normalisation by disparity needs depth; give it, or set data.normalisation=mean_distance")
    return DISPARITY / (1 / clip.depth[clip.valid]).quantile(DISPARITY_QUANTILE)


def _no_scale(clip: Clip) -> Float[Tensor, ""]:  # noqa: ARG001 - as the other rules
    return torch.tensor(1.0)


def _mean_distance_scale(clip: Clip) -> Float[Tensor, ""]:
    if clip.depth is not None and clip.valid is not None and bool(clip.valid.any()):
        if clip.cameras is None:
            return clip.depth[clip.valid].mean()
        distances = geometry.distances(clip.depth, clip.cameras)  # infinite of damaged cameras, beyond 1e19
        return torch.where(clip.valid, distances, 0).sum() / (clip.valid.sum() + 1e-3)
    if clip.keypoints is not None and bool(clip.keypoints.valid.any()):
        return clip.keypoints.points[clip.keypoints.valid].norm(dim=-1).mean()
    if clip.cameras is None:
        return torch.tensor(1.0)
    distance = clip.cameras.world_from_camera[1:, :3, 3].norm(dim=-1)
    moving = distance.numel() > 0 and float(distance.mean()) > SCALE_RANGE[0]
    return distance.mean() if moving else torch.tensor(1.0)


def model_inputs(clip: Clip, hints: Collection[Hint]) -> Clip:
    """Inputs of a model from a clip: the fields declared `types.INPUT`, and the truth that ``hints`` name.

    A clip with keypoints that asks for none asks for these by name, and with the hint ``boxes`` says where they are.
    """
    inputs = fields.inputs(clip)
    if clip.keypoints is not None and clip.keypoint_names is None:
        names, boxes = queries_of(clip.keypoints, (clip.images.shape[-2], clip.images.shape[-1]))
        given = boxes if "boxes" in hints else None
        inputs = dataclasses.replace(inputs, keypoint_names=names, keypoint_boxes=given)
    cameras = clip.cameras
    if cameras is not None and ("intrinsics" in hints or "poses" in hints):
        known = torch.ones_like(clip.times, dtype=torch.bool) if cameras.known is None else cameras.known
        lenses_known = known if cameras.intrinsics_known is None else cameras.intrinsics_known
        poses, lenses = known & ("poses" in hints), lenses_known & ("intrinsics" in hints)
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
    """Split an unbatched clip: the model sees `model_inputs`, the losses everything."""
    return Example(inputs=model_inputs(clip, hints), targets=clip, key=[key])


def collate(examples: Sequence[Example], images: Float[Tensor, "b f 3 h w"] | None = None) -> Example:
    """Collate unbatched examples with equal frame counts and image sizes into one batch.

    ``images``: memory for the batch's, in which those of the examples may lie already (`to_clip`'s ``into``).

    Missing fields are filled: cameras are identity with ``known`` False, depth is 0 with ``valid`` False, ``dynamic``
    is False with ``dynamic_known`` False. Surface, tracks and keypoints are padded to the longest, with faces that
    nothing refers to and points that are never ``valid``; they are None if no clip has them, as are hints among the
    inputs. Keypoints to find are padded with such as have no name.
    ValueError for other fields that only some clips have.
    """
    counts = {len(example.inputs.times) for example in examples}
    if len(counts) != 1:
        raise ValueError(f"examples of one batch have {sorted(counts)} frames; they must have equally many")
    inputs = [example.inputs for example in examples]
    present = [name for name in FILLED if any(getattr(clip, name) is not None for clip in inputs)]
    if images is not None:
        for place, example in zip(images, examples, strict=True):
            if example.targets.images.data_ptr() != place.data_ptr():
                place.copy_(example.targets.images)
    ready = None if images is None else {"images": images}
    targets = _batch([example.targets for example in examples], FILLED, ready)
    same = all(example.inputs.images is example.targets.images for example in examples)
    return Example(
        inputs=_batch(inputs, present, {"images": targets.images} if same else None),  # held and sent once
        targets=targets,
        key=[key for example in examples for key in example.key],
    )


def _batch(clips: Sequence[Clip], names: Collection[str], done: Mapping[str, Tensor] | None = None) -> Clip:
    surface = next((clip.surface for clip in clips if clip.surface is not None), None)
    tracks = next((clip.tracks for clip in clips if clip.tracks is not None), None)
    return fields.stack(
        [_with_empty_keypoints(_with_empty(fill(clip, names), surface, tracks), clips) for clip in clips], done
    )


def fill(clip: Clip, names: Collection[str] = FILLED) -> Clip:
    """Fill the missing ones of these fields of an unbatched clip and its views with placeholders and flags."""
    frames, _, height, width = clip.images.shape
    no_pixels = torch.zeros(frames, height, width, dtype=torch.bool)
    placeholders: dict[str, dict[str, object]] = {
        "cameras": {"cameras": _with_flags(clip.cameras, frames)},
        "depth": {"depth": torch.zeros(frames, height, width), "valid": no_pixels},
        "dynamic": {"dynamic": no_pixels, "dynamic_known": torch.full((frames,), clip.dynamic is not None)},
        "metric": {"metric": torch.tensor(False)},
        "scale": {"scale": torch.tensor(1.0)},
    }
    placeholders_wanted = {name: value for each in names for name, value in placeholders[each].items()}
    missing = {
        name: value for name, value in placeholders_wanted.items() if name == "cameras" or getattr(clip, name) is None
    }
    views = None if clip.views is None else fill(clip.views, names)
    return dataclasses.replace(clip, **missing, views=views)


def _with_flags(cameras: Cameras | None, frames: int) -> Cameras:
    """Cameras with both flags; identity and unknown where there are none."""
    if cameras is None:
        unknown = torch.zeros(frames, dtype=torch.bool)
        return Cameras(
            world_from_camera=torch.eye(4).repeat(frames, 1, 1),
            intrinsics=torch.eye(3).repeat(frames, 1, 1),
            known=unknown,
            intrinsics_known=unknown,
        )
    known = torch.ones(frames, dtype=torch.bool) if cameras.known is None else cameras.known
    lenses_known = known if cameras.intrinsics_known is None else cameras.intrinsics_known
    return dataclasses.replace(cameras, known=known, intrinsics_known=lenses_known)


def _with_empty(clip: Clip, surface: Surface | None, tracks: Tracks | None) -> Clip:
    """Add an empty surface and empty tracks, shaped like these, where the clip has none of its own."""
    if surface is not None and clip.surface is None:
        frames, _, height, width = clip.images.shape
        empty = Surface(
            faces=torch.full((frames, height, width), -1, dtype=surface.faces.dtype),
            barycentric=torch.zeros(frames, 2, height, width),
            triangles=surface.triangles[:0],
            instances=surface.instances[:0],
            vertices=surface.vertices[:1, :0],
            times=surface.times[:1],
        )
        clip = dataclasses.replace(clip, surface=empty)
    if tracks is not None and clip.tracks is None:
        clip = dataclasses.replace(clip, tracks=fields.take(tracks, "n", slice(0)))
    return clip


def _with_empty_keypoints(clip: Clip, clips: Sequence[Clip]) -> Clip:
    """Add no keypoints, and none to find, where the clip has nothing of the kind and one of ``clips`` has."""
    frames, _, height, width = clip.images.shape
    names = torch.zeros(0, NAME_BYTES, dtype=torch.int64)
    if clip.keypoints is None and any(other.keypoints is not None for other in clips):
        never = torch.zeros(frames, 0, dtype=torch.bool)
        nothing = Keypoints(
            names=names,
            instances=names[:, 0],
            points=torch.zeros(frames, 0, 3),
            valid=never,
            pixels=torch.zeros(frames, 0, 2),
            pixels_valid=never,
            visible=never,
            edges=torch.zeros(0, 2, dtype=torch.int64),
            rigid=torch.zeros(0, dtype=torch.bool),
        )
        clip = dataclasses.replace(clip, keypoints=nothing)
    if clip.keypoint_names is None and any(other.keypoint_names is not None for other in clips):
        # what `model_inputs` asks for
        asked = names if clip.keypoints is None else clip.keypoints.names
        clip = dataclasses.replace(clip, keypoint_names=asked)
    if clip.keypoint_boxes is None and any(other.keypoint_boxes is not None for other in clips):
        count = 0 if clip.keypoint_names is None else len(clip.keypoint_names)
        whole = torch.tensor([[0.0, 0.0], [width, height]]).repeat(count, 1, 1)
        clip = dataclasses.replace(clip, keypoint_boxes=whole)
    return clip
