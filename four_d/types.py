"""Data types of `four_d`: videos, model outputs, and the conventions of both.

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
- **The axis is frames**: a frame is an image with a time and a camera. Nothing assumes an order, except that the first
  frame of an example carries the coordinate frame.

Axis names: b batch, f frames, h w rows and columns of pixels, t times, q query times, n tracks or Gaussians,
v vertices, m faces, e bones, joints keypoints that are asked for, letters bytes of a name; y x and rows columns are
those of a coarser grid.

**Fields** describe themselves: the annotation names the axes, the metadata the geometry (`Geometry`, which every field
of floats has), and `fields` acts on both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import cache
from typing import TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from four_d.drawing import CONFIDENCE, DEPTH, PROBABILITY, Drawing, Map, RgbImage, Style


class Geometry(Enum):
    """Behaviour of values under a change of unit, of world coordinates, and under mirroring."""

    NONE = "not at all"
    LENGTH = "a number of units of length, such as z-depth"
    POINT = "x y z in the world"
    DISPLACEMENT = "difference of two points in the world"
    NORMAL = "unit normal of a surface, in the world's axes, towards the camera that sees it"
    POSE = "world_from_camera"
    QUATERNION = "rotation from the thing's own axes to the world's"
    TURN = "rotation of a thing in the world, from one state to another, in the world's axes"
    HARMONICS = "colours by direction: coefficients, then channels"
    INTRINSICS = "pinhole matrix"
    PIXEL = "ends with (x, y) in pixels: of the own frame or, without one, the first; or with (frame, x, y)"
    UNIT = "length of this value's unit of length"
    NAME = "bytes of a name, in which mirroring swaps left and right"
    FIXED = "bound to its coordinates: can neither be moved nor mirrored"


Metadata = dict[str, object]
"""Declarations of a field, for ``field(metadata=…)``; combine with ``|``."""
NONE: Metadata = {"geometry": Geometry.NONE}
LENGTH: Metadata = {"geometry": Geometry.LENGTH}
POINT: Metadata = {"geometry": Geometry.POINT}
DISPLACEMENT: Metadata = {"geometry": Geometry.DISPLACEMENT}
NORMAL: Metadata = {"geometry": Geometry.NORMAL}
POSE: Metadata = {"geometry": Geometry.POSE}
QUATERNION: Metadata = {"geometry": Geometry.QUATERNION}
TURN: Metadata = {"geometry": Geometry.TURN}
HARMONICS: Metadata = {"geometry": Geometry.HARMONICS}
INTRINSICS: Metadata = {"geometry": Geometry.INTRINSICS}
PIXEL: Metadata = {"geometry": Geometry.PIXEL}
UNIT: Metadata = {"geometry": Geometry.UNIT}
NAME: Metadata = {"geometry": Geometry.NAME}
FIXED: Metadata = {"geometry": Geometry.FIXED}
INTERNAL: Metadata = {"internal": True}
"""Field that only losses read, not part of a model's delivered outputs (`fields.delivered`)."""
CERTAINTY: Metadata = {"certainty": True}
"""Confidence or visibility of another output; exempt from the constant-output check."""

INPUT: Metadata = {"input": True}
"""Clip field that a model sees. The others are ground truth, shown only as a hint (`data.sampling.model_inputs`)."""


def truth(of: Callable[[Clip], tuple[Tensor | None, Tensor | None]]) -> Metadata:
    """Declare the ground truth of an output, by which `training.variation` measures it, and beside which it is drawn.

    ``of`` takes a batched clip of targets and returns values with the field's axes, None where the clip has none, and
    their validity (None: everywhere), whose axes are the values' or the first of them.
    """
    return {"truth": of}


def selects(axis: str) -> Metadata:
    """Declare indices into ``axis``, which the field's own last axis counts; of rows (frame, x, y) the first number.

    With a last axis of 2, entries are index pairs, dropped when either index is. Other fields of the class with that
    own axis are of these entries only; a subclass's cannot have it. A plain index that is None selects all.
    """
    return {"selects": axis}


def padded(*axes: str) -> Metadata:
    """Declare axes that may differ in length from value to value of a batch."""
    return {"padded": frozenset(axes)}


def drawn(
    style: Style | Callable[[Map], RgbImage],
    title: str,
    *,
    legend: tuple[str, str] | None = None,
    folder: str | None = "",
) -> Metadata:
    """Declare how a field is shown, whose axes begin with ``*b f``: by a picture of each frame.

    The report has a panel of it, pictures of validation a row (beside its `truth`, if it declares one; not of
    `CERTAINTY`), and `inference.infer` a folder.

    Args:
        style: a ready `Style` (`drawing.DEPTH`, `CONFIDENCE`, `PROBABILITY`, `NORMALS`), one of your own, or a function
            from the float32 array of a frame, without axes b and f, to uint8 (h, w, 3).
        title: heading of the panel.
        legend: texts at the ends of the colour scale; None: the style's.
        folder: folder of the files; "": named after the field; None: no files.

    """
    chosen = style if isinstance(style, Style) else Style.of(style)
    return {"drawing": Drawing(title=title, style=chosen, legend=legend or chosen.legend, folder=folder)}


def nested(*, prefix: str | None = None, padded: str = "", **axes: str) -> Metadata:
    """Declare the outer names of a nested value's axes: its b as well as its own names.

    Names that are not given stay private, ``tracks.n`` for the n of a field ``tracks``.

    Args:
        prefix: prefix of its fields' names in flat lists (`fields.named`); None: the field's name and ``_``.
        padded: axes, by their inner names, that may differ from value to value of a batch.
        axes: inner name = outer name; ``b="f"`` where the value's last batch axis is frames, ``n="k h w"`` where n
            counts the entries of several axes in row-major order.

    """
    return {"nested": axes, "padded": frozenset(padded.split()), "prefix": prefix}


@dataclass(frozen=True, kw_only=True)
class Cameras:
    """Pinhole cameras. ``known`` is False where pose and intrinsics are placeholders (identity)."""

    world_from_camera: Float[Tensor, "*b 4 4"] = field(metadata=POSE)
    intrinsics: Float[Tensor, "*b 3 3"] = field(metadata=INTRINSICS)
    known: Bool[Tensor, "*b"] | None = None
    intrinsics_known: Bool[Tensor, "*b"] | None = None
    """Validity of the intrinsics, whether the pose is known or not; None: as ``known``."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Correspondence of each pixel: its mesh face and the position on it. All dense truth derives from it (`surface`).

    ``barycentric`` holds the weights of the face's second and third vertex; the first has the rest.
    """

    faces: Int[Tensor, "*b f h w"]
    """Index into ``triangles``; -1 where nothing was hit."""
    barycentric: Float[Tensor, "*b f 2 h w"] = field(metadata=NONE)
    triangles: Int[Tensor, "*b m 3"]
    instances: Int[Tensor, "*b m"]
    """Object of each face; 0 is the static surroundings."""
    vertices: Float[Tensor, "*b t v 3"] = field(metadata=POINT)
    """World positions at every time."""
    times: Float[Tensor, "*b t"] = field(metadata=NONE)


@dataclass(frozen=True, kw_only=True)
class Tracks:
    """World positions of points over time, known also while occluded where ``valid``."""

    points: Float[Tensor, "*b n t 3"] = field(metadata=POINT)
    visible: Bool[Tensor, "*b n t"]
    valid: Bool[Tensor, "*b n t"]
    times: Float[Tensor, "*b t"] = field(metadata=NONE)


@dataclass(frozen=True, kw_only=True)
class Keypoints:
    """Named points of articulated things in every frame; several instances may have points of one name.

    Entries without a name are padding.
    """

    names: Int[Tensor, "*b n letters"] = field(metadata=NAME)
    """UTF-8, zero padded (`keypoints.encode_names`)."""
    instances: Int[Tensor, "*b n"]
    """Number of the thing that a point belongs to."""
    points: Float[Tensor, "*b f n 3"] = field(metadata=POINT)
    """World positions at the frame's time."""
    valid: Bool[Tensor, "*b f n"]
    """Validity of ``points``, visible or not."""
    pixels: Float[Tensor, "*b f n 2"] = field(metadata=PIXEL)
    """(x, y) in the frame, inside the image or not; of valid points their projection, where the camera is known."""
    pixels_valid: Bool[Tensor, "*b f n"]
    """Validity of ``pixels``."""
    visible: Bool[Tensor, "*b f n"]
    """True where the pixel is valid, inside the image, and nothing hides the point."""
    edges: Int[Tensor, "*b e 2"] = field(metadata=selects("n"))
    """Bones, each two points. One from a point to itself, such as padding, is none."""
    rigid: Bool[Tensor, "*b e"]
    """True for bones of constant length."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """A video of one camera or several. Everything beyond images, times and camera ids may be absent."""

    images: Float[Tensor, "*b f 3 h w"] = field(metadata=NONE | INPUT)
    """RGB in [0, 1]."""
    times: Float[Tensor, "*b f"] = field(metadata=NONE | INPUT)
    """Seconds from the clip's start."""
    camera_ids: Int[Tensor, "*b f"] = field(metadata=INPUT)
    cameras: Cameras | None = field(default=None, metadata=nested(b="f", prefix=""))
    depth: Float[Tensor, "*b f h w"] | None = field(default=None, metadata=LENGTH)
    valid: Bool[Tensor, "*b f h w"] | None = None
    """Validity of ``depth``."""
    dynamic: Bool[Tensor, "*b f h w"] | None = None
    dynamic_known: Bool[Tensor, "*b f"] | None = None
    """Frames whose ``dynamic`` mask is truth; the others hold False as a placeholder."""
    surface: Surface | None = field(default=None, metadata=nested(f="f", h="h", w="w", padded="m t v"))
    tracks: Tracks | None = field(default=None, metadata=nested(padded="n t"))
    keypoints: Keypoints | None = field(default=None, metadata=nested(f="f", padded="n e"))
    keypoint_names: Int[Tensor, "*b joints letters"] | None = field(
        default=None, metadata=NAME | padded("joints") | INPUT
    )
    """Names of the keypoints to find (`keypoints.encode_names`), in the order of ``keypoints`` where the clip has them.
    Those of zeros are padding."""
    keypoint_boxes: Float[Tensor, "*b joints 2 2"] | None = field(
        default=None, metadata=PIXEL | padded("joints") | INPUT
    )
    """Two opposite corners (x, y) of the thing that each keypoint to find belongs to, in the first frame. None: the
    whole image."""
    query_points: Float[Tensor, "*b n 3"] | None = field(default=None, metadata=PIXEL | selects("f") | INPUT)
    """(frame, x, y) of pixels to track through the video."""
    query_times: Float[Tensor, "*b q"] | None = field(default=None, metadata=NONE | INPUT)
    """Query times of motion in seconds, each the time of a frame. None: the first frame's time."""
    motion: Float[Tensor, "*b q k h w 3"] | None = field(default=None, metadata=DISPLACEMENT)
    """Ground truth: position of a pixel's point at the query time minus at the frame's own, seen or not."""
    motion_valid: Bool[Tensor, "*b q k h w"] | None = None
    """Validity of ``motion`` and ``motion_visible``."""
    motion_visible: Bool[Tensor, "*b q k h w"] | None = None
    """True where a frame at the query time sees the point."""
    motion_frames: Int[Tensor, "*b k"] | None = field(default=None, metadata=selects("f"))
    """Frames of ``motion``; None: all."""
    references: Bool[Tensor, "*b f"] | None = field(default=None, metadata=INPUT)
    """Frames far away in time, as context only: they give no Gaussians, and their times are not rendered."""
    views: Clip | None = field(default=None, metadata=nested())
    """Held-out frames that renders are compared with (targets only). Same coordinates and unit as this clip."""
    metric: Bool[Tensor, "*b"] | None = None
    """True where lengths times ``scale`` are metres."""
    scale: Float[Tensor, "*b"] | None = field(default=None, metadata=UNIT)
    """Divisor of the lengths: source units per unit of this clip."""


def _true_depth(clip: Clip) -> tuple[Tensor | None, Tensor | None]:
    return clip.depth, clip.valid


def _true_dynamic(clip: Clip) -> tuple[Tensor | None, Tensor | None]:
    return None if clip.dynamic is None else clip.dynamic.float(), clip.dynamic_known


def _true_motion(clip: Clip) -> tuple[Tensor | None, Tensor | None]:
    if clip.motion_frames is not None:
        return None, None  # some frames' compares with no output
    return clip.motion, clip.motion_valid


@dataclass(frozen=True, kw_only=True)
class Example:
    """Training example: ``inputs`` is all that a model may see, ``targets`` all that a loss may see."""

    inputs: Clip
    targets: Clip
    key: list[str]


@dataclass(frozen=True, kw_only=True)
class Matches:
    """Matches of token rows' cells at each of a clip's times, ascending."""

    steps: Float[Tensor, "b t r y x 2"]
    """Pixels (x, y) from the same place, for cells that fill the image."""
    frames: Int[Tensor, "b t r"]
    """Searched frame at that time."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Depth of token rows' cells by comparison along their rays (`cost_volume`)."""

    depth: Float[Tensor, "b r y x"]
    """z-depth in the row's frame, of cells that fill the image."""
    confidence: Float[Tensor, "b r y x"]
    """Probability of that depth, 0 to 1."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """Outputs of a backbone: token maps of the rounds that heads read, in ascending order."""

    patches: tuple[Float[Tensor, "b r p c"], ...]
    """One map per kept round; r token rows, p patches of the grid in row-major order."""
    special: tuple[Float[Tensor, "b r s c"], ...]
    """Camera token first, then registers; one per kept round."""
    grid: tuple[int, int]
    """Rows and columns of patches."""
    frames: Int[Tensor, "*b r"]
    """Frame of each token row; with a batch axis where clips differ."""
    rounds: tuple[int, ...]
    """Round of the backbone of each map, by which a head finds those it reads."""
    dynamic_logits: Float[Tensor, "b r p"] | None = None
    """Logit of each patch showing something that moves; None if the backbone does not predict it."""
    detail: Float[Tensor, "b r _c _y _x"] | None = None
    """Finest map of the encoder in the patch embedding; None if it has none."""
    features: Float[Tensor, "b r d y x"] | None = None
    """Feature vectors of y rows and x columns of cells for matching (`correlation`); None if the backbone has none."""
    match_logits: Float[Tensor, "b q r y x k"] | None = None
    """Logits of each cell's place in the query frames; None if not computed."""
    matches: Matches | None = None
    """Matches at all times; None if not computed."""
    sweep: Sweep | None = None
    """Depth by comparison along rays; None if not computed."""


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """Deformable 3D Gaussians in world coordinates.

    At an offset time a Gaussian is at ``means + offsets``, with the rotation turn ⊗ quat; harmonics stay in the
    world's axes (`rendering.scene.means_at`, `quats_at` for the times between).
    """

    means: Float[Tensor, "*b n 3"] = field(metadata=POINT)
    quats: Float[Tensor, "*b n 4"] = field(metadata=QUATERNION)
    scales: Float[Tensor, "*b n 3"] = field(metadata=LENGTH)
    opacities: Float[Tensor, "*b n"] = field(metadata=NONE)
    harmonics: Float[Tensor, "*b n k 3"] = field(metadata=HARMONICS)
    offsets: Float[Tensor, "*b t n 3"] | None = field(default=None, metadata=DISPLACEMENT)
    offset_times: Float[Tensor, "*b t"] | None = field(default=None, metadata=NONE)
    turns: Float[Tensor, "*b t n 4"] | None = field(default=None, metadata=TURN)
    """Rotation of each Gaussian about its own mean, unit quaternions; None: none turns. Only beside ``offsets``."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Gaussians of a part of a video, unbatched, shown from ``start`` until the next segment's."""

    gaussians: Gaussians = field(metadata=nested())
    start: float
    """Start in seconds; the first segment is shown before it too."""


def segment_at(segments: Sequence[Segment], time: float) -> Segment:
    """Segment shown at a time (s), of segments whose starts ascend."""
    begun = [segment for segment in segments if segment.start <= time]
    return begun[-1] if begun else segments[0]


@dataclass(frozen=True, kw_only=True)
class Views:
    """Rendered images."""

    colour: Float[Tensor, "*b v 3 h w"] = field(metadata=NONE)
    alpha: Float[Tensor, "*b v h w"] = field(metadata=NONE)
    depth: Float[Tensor, "*b v h w"] = field(metadata=LENGTH)
    features: Float[Tensor, "*b v c h w"] | None = field(default=None, metadata=NONE)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Outputs of a model for a clip. Each head sets its own fields; coordinates are the first frame's camera's."""

    cameras: Cameras | None = field(default=None, metadata=nested(b="f", prefix=""))
    pose_encodings: Float[Tensor, "i *b f 9"] | None = field(default=None, metadata=FIXED | INTERNAL)
    """Every refinement of the camera head, the last one last (`geometry.encode_cameras`)."""
    depth: Float[Tensor, "*b f h w"] | None = field(
        default=None, metadata=LENGTH | truth(_true_depth) | drawn(DEPTH, "Depth")
    )
    depth_confidence: Float[Tensor, "*b f h w"] | None = field(
        default=None, metadata=NONE | CERTAINTY | drawn(CONFIDENCE, "Confidence", folder=None)
    )
    points: Float[Tensor, "*b f h w 3"] | None = field(default=None, metadata=POINT)
    points_confidence: Float[Tensor, "*b f h w"] | None = field(default=None, metadata=NONE | CERTAINTY)
    dynamic: Float[Tensor, "*b f h w"] | None = field(
        default=None,
        metadata=NONE
        | truth(_true_dynamic)
        | drawn(PROBABILITY, "What moves", legend=("still", "moves"), folder="mask"),
    )
    """Probability that a pixel shows something that moves in the world."""
    dynamic_logits: Float[Tensor, "*b f rows columns"] | None = field(default=None, metadata=NONE | INTERNAL)
    """Logits of ``dynamic``, per patch."""
    pixel_tracks: Float[Tensor, "*b f n 2"] | None = field(default=None, metadata=PIXEL)
    """(x, y) of every query point in every frame."""
    pixel_tracks_visible: Float[Tensor, "*b f n"] | None = field(default=None, metadata=NONE | CERTAINTY)
    """Probability that the point is visible there."""
    pixel_tracks_confidence: Float[Tensor, "*b f n"] | None = field(default=None, metadata=NONE | CERTAINTY)
    """Probability that the position is correct within a few pixels."""
    pixel_tracks_visible_logits: Float[Tensor, "*b f n"] | None = field(default=None, metadata=NONE | INTERNAL)
    """Logits of ``pixel_tracks_visible``, which a loss needs where the sigmoid saturates; so the next field."""
    pixel_tracks_confidence_logits: Float[Tensor, "*b f n"] | None = field(default=None, metadata=NONE | INTERNAL)
    pixel_track_stages: Float[Tensor, "j *b f n 2"] | None = field(default=None, metadata=PIXEL | INTERNAL)
    """Every refinement of the track head, the last one last."""
    motion: Float[Tensor, "*b q f h w 3"] | None = field(default=None, metadata=DISPLACEMENT | truth(_true_motion))
    """Motion of the point that a pixel shows, from its own time to each query time (``Clip.query_times``)."""
    motion_confidence: Float[Tensor, "*b q f h w"] | None = field(default=None, metadata=NONE | INTERNAL)
    """Confidence of ``motion``, meaningful only if a loss trains it (``losses.motion.pixels.confidence`` > 0)."""
    motion_visible: Float[Tensor, "*b q f h w"] | None = field(default=None, metadata=NONE | CERTAINTY)
    """Probability that a frame of the query time sees the point."""
    motion_visible_logits: Float[Tensor, "*b q f h w"] | None = field(default=None, metadata=NONE | INTERNAL)
    """Logits of ``motion_visible``."""
    match_logits: Float[Tensor, "*b q r y x places"] | None = field(default=None, metadata=FIXED | INTERNAL)
    """Logits of each cell's match in the query frame: one for each of the cells around its own place."""
    match_frames: Int[Tensor, "*b r"] | None = field(default=None, metadata=selects("f") | INTERNAL)
    """Frames of ``match_logits`` and ``sweep_depth``; None: all."""
    sweep_depth: Float[Tensor, "*b r y x"] | None = field(default=None, metadata=LENGTH | INTERNAL)
    """z-depth of key frames' cells by comparison along their rays (`cost_volume`)."""
    gaussians: Gaussians | None = field(default=None, metadata=nested(n="k h w", prefix="gaussian_"))
    """Gaussians of each pixel of each key frame, in row-major order of key frame, row, column."""
    key_frames: Int[Tensor, "*b k"] | None = field(default=None, metadata=selects("f"))
    """Frames of ``gaussians``; None: of none in particular, so that they go with the first camera."""


LIKELY = 0.5
"""Probability above which a prediction counts as true: a point as visible, a pixel as moving."""
SAME_TIME = 1e-4
"""Seconds by which equal times may differ: more than single precision rounds, less than a camera's period."""


def same_time(one: Tensor, other: Tensor) -> Bool[Tensor, "*b"]:
    """True where times are the same instant (within `SAME_TIME`); shapes broadcast."""
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


HALVES = frozenset({torch.bfloat16, torch.float16})


def widened(value: T) -> T:
    """Give a value with all tensors of half precision in float32; the others stay as they are."""
    return map_tensors(value, lambda tensor: tensor.float() if tensor.dtype in HALVES else tensor)


def merge_predictions(parts: Sequence[Prediction]) -> Prediction:
    """Merge several heads' predictions into one, with the fields of all their classes.

    ValueError if two set one field, or declare one of their own by one name.
    """
    merged: dict[str, object] = {}
    for part in parts:
        for each in dataclasses.fields(part):
            value = getattr(part, each.name)
            if value is None:
                continue
            if each.name in merged:
                raise ValueError(f"two heads write Prediction.{each.name}; remove one of them from model.heads")
            merged[each.name] = value
    return _merged(frozenset(type(part) for part in parts))(**merged)  # pyright: ignore[reportArgumentType]


@cache
def _merged(kinds: frozenset[type[Prediction]]) -> type[Prediction]:
    """Class with the fields of all of these."""
    least = [kind for kind in kinds if not any(other is not kind and issubclass(other, kind) for other in kinds)]
    if len(least) < 2:
        return least[0] if least else Prediction
    bases = tuple(sorted(least, key=lambda kind: (kind.__module__, kind.__qualname__)))
    owners: dict[str, type] = {}
    for kind in bases:
        for base in reversed(kind.__mro__):
            for name in getattr(base, "__dataclass_fields__", {}):
                if not issubclass(kind, owners.setdefault(name, base)):
                    raise ValueError(f"two heads declare Prediction.{name}; rename it in one of them")
    return dataclass(frozen=True, kw_only=True)(type("And".join(kind.__name__ for kind in bases), bases, {}))
