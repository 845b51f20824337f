"""The vocabulary of `four_d`: what a video is, what a model may say about it, and the conventions of both.

Conventions (each has a test; `docs/conventions.md` draws them):

- **Camera axes** x right, y down, z forward (OpenCV). **Poses** are named ``a_from_b``: b's coordinates to a's.
- **Pixels**: (0, 0) is the *corner* of the top-left pixel, whose centre is (0.5, 0.5). Order (x, y).
- **Depth** is z-depth, never distance along the ray.
- **Quaternions** are (w, x, y, z).
- **Times** are seconds from the clip's start.
- **World frame**: the data set's own in shards; the first frame's camera in examples and predictions.
- **Units**: metres in shards with ``metric``; examples are divided by one recorded ``scale``.
- **Invalid** is ``valid == False``; the value there is 0 and means nothing. Never NaN.
- **Dynamic**: the surface point moves in the world between neighbouring times (`surface.DYNAMIC_SPEED`).
- **The axis is frames**: a frame is an image with a time and a camera. Nothing assumes an order, but for the first
  frame of an example, which carries the coordinate frame.

Axis names: b batch, f frames, h w rows and columns of pixels, t times, q query times, n tracks or Gaussians,
v vertices, m faces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """Pinhole cameras. ``known`` is False where pose and intrinsics are placeholders (identity)."""

    world_from_camera: Float[Tensor, "*b 4 4"]
    intrinsics: Float[Tensor, "*b 3 3"]
    known: Bool[Tensor, "*b"] | None = None
    intrinsics_known: Bool[Tensor, "*b"] | None = None
    """Where the intrinsics mean something, whether the pose does or not; None: where ``known``."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """What each pixel saw, as correspondence: a mesh face and where on it. All dense truth derives from it (`surface`).

    ``barycentric`` holds the weights of the face's second and third vertex; the first has the rest.
    """

    faces: Int[Tensor, "*b f h w"]
    """Index into ``triangles``; -1 where nothing was hit."""
    barycentric: Float[Tensor, "*b f 2 h w"]
    triangles: Int[Tensor, "*b m 3"]
    instances: Int[Tensor, "*b m"]
    """Object of each face; 0 is the static surroundings."""
    vertices: Float[Tensor, "*b t v 3"]
    """World positions at every time."""
    times: Float[Tensor, "*b t"]


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """World positions of points over time, known also while occluded where ``valid``."""

    points: Float[Tensor, "*b n t 3"]
    visible: Bool[Tensor, "*b n t"]
    valid: Bool[Tensor, "*b n t"]
    times: Float[Tensor, "*b t"]


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video of one camera or several. Everything beyond images, times and camera ids may be absent."""

    images: Float[Tensor, "*b f 3 h w"]
    """RGB in [0, 1]."""
    times: Float[Tensor, "*b f"]
    """Seconds from the clip's start."""
    camera_ids: Int[Tensor, "*b f"]
    cameras: Cameras | None = None
    depth: Float[Tensor, "*b f h w"] | None = None
    valid: Bool[Tensor, "*b f h w"] | None = None
    """Where ``depth`` means something."""
    dynamic: Bool[Tensor, "*b f h w"] | None = None
    dynamic_known: Bool[Tensor, "*b f"] | None = None
    """Frames whose ``dynamic`` mask is truth; the others hold False as a placeholder."""
    surface: Surface | None = None
    tracks: Tracks | None = None
    query_points: Float[Tensor, "*b n 3"] | None = None
    """(frame, x, y) of pixels to follow through the video."""
    query_times: Float[Tensor, "*b q"] | None = None
    """Seconds, each the time of a frame: when motion is asked for. None: the first frame's time."""
    motion: Float[Tensor, "*b q f h w 3"] | None = None
    """Truth: the point that a pixel shows, at the query time minus at its own, seen or not."""
    motion_valid: Bool[Tensor, "*b q f h w"] | None = None
    """Where ``motion`` and ``motion_visible`` mean something."""
    motion_visible: Bool[Tensor, "*b q f h w"] | None = None
    """Whether a frame of the query time sees the point."""
    references: Bool[Tensor, "*b f"] | None = None
    """Frames far away in time that are only looked at: no Gaussians come of them, and their times are not rendered."""
    views: Clip | None = None
    """Of targets: the frames that pictures of Gaussians are compared with. Same coordinates and unit as this clip."""
    metric: Bool[Tensor, "*b"] | None = None
    """True where lengths times ``scale`` are metres."""
    scale: Float[Tensor, "*b"] | None = None
    """Source units per unit of this clip: what lengths were divided by."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One training value: ``inputs`` is all that a model may see, ``targets`` all that a loss may see."""

    inputs: Clip
    targets: Clip
    key: list[str]


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Where each of a clip's times, ascending, shows what the frames of token rows show."""

    steps: Float[Tensor, "b t r y x 2"]
    """Pixels (x, y) from the same place, for cells that fill the image."""
    frames: Int[Tensor, "b t r"]
    """The frame of that time that was searched."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What a backbone gives: token maps of the rounds that heads asked for, in ascending order."""

    patches: tuple[Float[Tensor, "b r p c"], ...]
    """One map per kept round; r token rows, p patches of the grid in row-major order."""
    special: tuple[Float[Tensor, "b r s c"], ...]
    """Camera token first, then registers; one per kept round."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    frames: Int[Tensor, "*b r"]
    """Frame of each token row; with a batch axis where clips differ."""
    rounds: tuple[int, ...]
    """Which round of the backbone each map is of, so that a head finds those it asked for."""
    dynamic_logits: Float[Tensor, "b r p"] | None = None
    """Of each patch showing something that moves; None if the backbone does not look for it."""
    features: Float[Tensor, "b r d y x"] | None = None
    """Vectors of y rows and x columns of cells, to compare frames by (`correlation`); None if the backbone has none."""
    match_logits: Float[Tensor, "b q r y x k"] | None = None
    """Where the query frames show what each cell shows; None if nothing looked for it."""
    matches: Matches | None = None
    """Where all times show it; None if the backbone does not look."""


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """Deformable 3D Gaussians in world coordinates."""

    means: Float[Tensor, "*b n 3"]
    quats: Float[Tensor, "*b n 4"]
    scales: Float[Tensor, "*b n 3"]
    opacities: Float[Tensor, "*b n"]
    harmonics: Float[Tensor, "*b n k 3"]
    offsets: Float[Tensor, "*b t n 3"] | None = None
    offset_times: Float[Tensor, "*b t"] | None = None


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Gaussians of a part of a video, unbatched: what is shown from a time on, until the next segment's."""

    gaussians: Gaussians
    start: float
    """Seconds. Before it the first segment is shown too."""


def segment_at(segments: Sequence[Segment], time: float) -> Segment:
    """Which of these, whose starts ascend, shows a time (s)."""
    begun = [segment for segment in segments if segment.start <= time]
    return begun[-1] if begun else segments[0]


@dataclass(frozen=True, kw_only=True)
class Views:
    """What rendering gives."""

    colour: Float[Tensor, "*b v 3 h w"]
    alpha: Float[Tensor, "*b v h w"]
    depth: Float[Tensor, "*b v h w"]
    features: Float[Tensor, "*b v c h w"] | None = None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model says of a clip. Each head sets its own fields; coordinates are the first frame's camera's."""

    cameras: Cameras | None = None
    pose_encodings: Float[Tensor, "i *b f 9"] | None = None
    """Every refinement of the camera head, the last one last (`geometry.encode_cameras`)."""
    depth: Float[Tensor, "*b f h w"] | None = None
    depth_confidence: Float[Tensor, "*b f h w"] | None = None
    points: Float[Tensor, "*b f h w 3"] | None = None
    points_confidence: Float[Tensor, "*b f h w"] | None = None
    dynamic: Float[Tensor, "*b f h w"] | None = None
    """Probability that a pixel shows something that moves in the world."""
    dynamic_logits: Float[Tensor, "*b f rows columns"] | None = None
    """The same per patch, before the sigmoid."""
    pixel_tracks: Float[Tensor, "*b f n 2"] | None = None
    """(x, y) of every query point in every frame."""
    pixel_tracks_visible: Float[Tensor, "*b f n"] | None = None
    """Probability that the point is seen there."""
    pixel_tracks_confidence: Float[Tensor, "*b f n"] | None = None
    """Probability that the position is right to within a few pixels."""
    pixel_track_stages: Float[Tensor, "j *b f n 2"] | None = None
    """Every refinement of the track head, the last one last."""
    motion: Float[Tensor, "*b q f h w 3"] | None = None
    """Where the point that a pixel shows is at each query time, minus where it is at its own (``Clip.query_times``)."""
    motion_confidence: Float[Tensor, "*b q f h w"] | None = None
    """Means something only if a loss trained it (``losses.motion.pixels.confidence``, 0 by default)."""
    motion_visible: Float[Tensor, "*b q f h w"] | None = None
    """Probability that a frame of the query time sees the point."""
    match_logits: Float[Tensor, "*b q r y x places"] | None = None
    """Where the query frame shows what each cell shows: one logit for each of the cells around the same place."""
    match_frames: Int[Tensor, "*b r"] | None = None
    """The frames whose cells ``match_logits`` are of; None: all."""
    gaussians: Gaussians | None = None
    """One for each pixel of each key frame: key frame, row, column, in row-major order."""
    key_frames: Int[Tensor, "*b k"] | None = None
    """The frames that ``gaussians`` are of."""


SAME_TIME = 1e-4
"""Seconds by which times that mean one may differ: more than single precision rounds, less than a camera's period."""


def same_time(one: Tensor, other: Tensor) -> Bool[Tensor, "*b"]:
    """Whether times mean the same instant; shapes broadcast."""
    return (one - other).abs() <= SAME_TIME


T = TypeVar("T")


def map_tensors(value: T, function: Callable[[Tensor], Tensor]) -> T:
    """Apply ``function`` to every tensor of one of the dataclasses above, however nested; the rest stays."""
    if isinstance(value, Tensor):
        return cast(T, function(value))
    if isinstance(value, tuple):
        return cast(T, tuple(map_tensors(item, function) for item in value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: map_tensors(getattr(value, f.name), function) for f in dataclasses.fields(value)}
        return dataclasses.replace(value, **fields)
    return value


def merge_predictions(parts: list[Prediction]) -> Prediction:
    """One prediction out of several heads'. ValueError if two set the same field."""
    merged: dict[str, object] = {}
    for part in parts:
        for field in dataclasses.fields(part):
            value = getattr(part, field.name)
            if value is None:
                continue
            if field.name in merged:
                raise ValueError(f"two heads write Prediction.{field.name}; remove one of them from model.heads")
            merged[field.name] = value
    return Prediction(**merged)  # pyright: ignore[reportArgumentType]


def join_queries(parts: list[Prediction]) -> Prediction:
    """One prediction out of one per query time: motion side by side, everything else the first's."""
    first, *others = parts
    if not others:
        return first
    names = ("motion", "motion_confidence", "motion_visible", "match_logits")
    maps = {name: [getattr(part, name) for part in parts] for name in names if getattr(first, name) is not None}
    return dataclasses.replace(first, **{name: torch.cat(each, dim=1) for name, each in maps.items()})
