"""Agreement of a clip's frames with each other: depth, colours and tracks, warped from one frame into another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import fields, geometry
from four_d import surface as surfaces
from four_d.data.contract import RawClip
from four_d.data.truth import Truth
from four_d.types import SAME_TIME, Cameras

AGREEMENT_LIMIT = 0.9
"""Fraction of the pixels that another frame confirms, of those that it confirms or contradicts."""
DEPTH_TOLERANCE = 0.02
"""Relative difference below which two depths are equal, unless a data set's depth is declared rougher."""
COLOUR_RATIO_LIMIT = 1.5
"""Colour change under the stored geometry over the smallest under a wrong one."""
COLOUR_EXPLAINED = 0.5
"""Colour change below which a wrong geometry counts; 1 is chance."""
COLOUR_FLOOR = 0.03
"""Difference of colours (of 1) below which they are equal."""
TRACK_RATIO_LIMIT = 0.6
"""Colour change along a track over that between tracks."""
COLOUR_CHANGE_FLOOR = 0.1
"""Colour change below which all are equally good: sampling alone does as much to a fine texture."""
EDGE_RATIO = 1.1
"""Ratio of neighbouring depths above which there is an edge, where colours mix."""
TRACKS_PER_FRAME = 30
"""Tracks of a frame below which their colours are inconclusive."""
CLEARLY_RIGHT, CLEARLY_BETTER = 0.6, 0.25
"""Fraction of the pixels that other frames confirm under corrected poses, and its excess over that under the given
poses, from which the given poses count as mistaken."""
ROUGH_DEPTH_TOLERANCE = 0.05
"""Counterpart of `DEPTH_TOLERANCE` for depth of a model or a sensor, and wherever readings of depth are compared."""
UNIT_FACTORS = (1e-3, 1e-2, 0.1, 0.2, 0.256, 1 / 0.256, 5.0, 10.0, 100.0, 1e3)
"""Factors that correct depth after usual mistakes with units: millimetres and centimetres, counts of 1/5000 m (TUM) or
1/256 m (KITTI) taken for millimetres, and the reverse."""
PAIRS = 6
"""Number of frame pairs of each kind compared in a clip."""
PIXELS = 3000
"""Approximate number of pixels compared in a pair."""
TRACKS = 300
"""Number of tracks followed in a clip with a surface."""


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


def depth_mistakes(known: Truth) -> dict[str, Truth]:
    """Usual mistakes with depth: remedy → truth corrected by it."""
    assert known.depth is not None
    assert known.cameras is not None
    height, width = known.depth.shape[-2:]
    pixels = geometry.pixel_centres(height, width, known.depth).reshape(-1, 2)
    rays = geometry.rays(known.cameras.intrinsics, pixels.expand(len(known.depth), -1, -1))
    depths = {
        f"depth and poses are in different units: depth times {factor:.4g} fits them": known.depth * factor
        for factor in UNIT_FACTORS
    }
    depths["depth is the distance along the ray: store z-depth"] = known.depth / rays.norm(dim=-1).unflatten(
        1, (height, width)
    )
    return {remedy: dataclasses.replace(known, depth=depth) for remedy, depth in depths.items()}


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """Evidence of frame ``b`` on the pixels of frame ``a`` under some cameras."""

    a: int
    b: int
    agreement: float
    """Fraction confirmed, of those confirmed or contradicted; NaN if too few."""
    confirmed: float
    """Fraction confirmed, of those inside the image."""
    depth_error: float
    """Median difference of the two depths, as a fraction; NaN if too few."""
    colour: float
    """`_colour_change` of the confirmed pixels."""
    moved: float
    """Median displacement in pixels."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Alternative reading of given poses that fits the depth where they do not."""

    remedy: str
    given: float
    """Fraction of the pixels that other frames confirm under the given poses."""
    mended: float


def pose_mistake(images: Float[Tensor, "f 3 h w"], known: Truth) -> Mistake | None:
    """Detect a usual mistake in poses from the frames' depth; None where there is none, or depth is inconclusive.

    It is inconclusive where the camera hardly moves or no two frames overlap. Poses must be as given: a change of the
    world hides some mistakes. All floats are of one type.
    """
    assert known.cameras is not None
    mistakes = pose_mistakes(known.cameras)
    readings = {"": known} | {
        name: dataclasses.replace(known, cameras=corrected) for name, corrected in mistakes.items()
    }
    rows = [
        [_compare(images, reading, *pair, tolerance=ROUGH_DEPTH_TOLERANCE) for reading in readings.values()]
        for pair in _pairs_apart(len(images))
    ]
    conclusive = [row for row in rows if any(np.isfinite(pair.agreement) for pair in row)]
    if not conclusive:
        return None
    scores = np.array([[np.nan_to_num(pair.agreement) * pair.confirmed for pair in row] for row in conclusive]).mean(0)
    best = int(scores.argmax())
    if scores[best] < max(CLEARLY_RIGHT, scores[0] + CLEARLY_BETTER):
        return None
    return Mistake(remedy=list(readings)[best], given=float(scores[0]), mended=float(scores[best]))


def _pairs_apart(count: int) -> list[tuple[int, int]]:
    """Pairs of frames near to each other and far apart."""
    steps = {max(count // part, 1) for part in (8, 3, 2)} if count > 1 else set[int]()
    return [(a, a + step) for step in sorted(steps) for a in sorted({0, (count - step) // 2, count - 1 - step})]


def pair_measures(clip: RawClip, known: Truth, tolerance: float = DEPTH_TOLERANCE) -> Iterator[Measure]:
    """Measure depth and colours across frames, where cameras and depth are known and enough pixels overlap.

    Depths within a relative difference of ``tolerance`` are equal.
    """
    cameras = known.cameras
    assert cameras is not None
    images = torch.from_numpy(clip.images).float().permute(0, 3, 1, 2) / 255
    pairs = _choose_pairs(clip)
    posed = {name: dataclasses.replace(known, cameras=wrong) for name, wrong in pose_mistakes(cameras).items()}
    compared = [_compare(images, known, *pair, tolerance=tolerance) for pair in pairs]
    stored = [pair for pair in compared if np.isfinite(pair.agreement)]
    readings = {"": known} | posed | ({} if clip.surface is not None else depth_mistakes(known))

    def score_readings(tolerance: float) -> dict[str, float]:
        """Score each reading by the agreement of frames, on the pairs that are conclusive under any."""
        rows = [[_compare(images, truth, *pair, tolerance=tolerance) for truth in readings.values()] for pair in pairs]
        conclusive = [row for row in rows if any(np.isfinite(pair.agreement) for pair in row)]
        return {name: _score(list(column)) for name, column in zip(readings, zip(*conclusive))}

    if stored:
        yield _agreement_measure(stored, lambda: score_readings(tolerance), tolerance)
    reading_measures = list(_reading_measure(score_readings(max(tolerance, ROUGH_DEPTH_TOLERANCE))))
    yield from reading_measures
    rated = [pair for pair in stored if pair.moved > 2 and np.isfinite(pair.colour)]
    if not rated or not all(measure.ok for measure in reading_measures):
        return  # colours mislead under a geometry that depth refutes
    alternatives = {
        remedy: [_compare(images, wrong, pair.a, pair.b, tolerance=tolerance) for pair in stored]
        for remedy, wrong in posed.items()
    }
    for name, axis in (("left to right", -1), ("upside down", -2)):
        remedy = f"the images are mirrored {name} against poses and depth: mirror them back"
        alternatives[remedy] = [
            _compare(images.flip(axis), known, pair.a, pair.b, tolerance=tolerance) for pair in stored
        ]
    yield _colour_measure(images, rated, stored, alternatives)


def _agreement_measure(
    stored: list[_Pair], score_readings: Callable[[], dict[str, float]], tolerance: float
) -> Measure:
    """Measure the agreement of depth; if it is low, ``score_readings`` scores each reading, the stored one as ""."""
    worst, agreement = min(stored, key=lambda pair: pair.agreement), np.median([pair.agreement for pair in stored])
    scores = score_readings() if agreement < AGREEMENT_LIMIT else {"": 0.0}
    best = max(scores, key=lambda name: scores[name])
    depth_error = 100 * float(np.median([pair.depth_error for pair in stored]))
    unexplained = (
        f"half of the depths are off by more than {depth_error:.2g} %, and no usual mistake explains it: check the "
        "poses for a wrong scale or drift; for a noisy depth sensor raise --depth-tolerance, for example to 0.05"
    )
    return Measure(
        check="depth across frames",
        value=float(agreement),
        limit=AGREEMENT_LIMIT,
        above=False,
        frame=worst.a,
        what=f"fraction of pixels whose depth frame {worst.b} and others confirm, to {tolerance:.2g} of it",
        remedy=best if scores[best] > scores[""] + 0.1 else unexplained,
    )


def _reading_measure(scores: dict[str, float]) -> Iterator[Measure]:
    """Compare the stored reading, "", which may be inconclusive, with others under which depth may agree far better."""
    best = max(scores, key=lambda name: scores[name], default="")
    if scores and scores[best] >= CLEARLY_RIGHT:
        yield Measure(
            check="other readings",
            value=scores[best] - scores[""],
            limit=CLEARLY_BETTER,
            what=f"gain, to {scores[best]:.2f}, in the fraction of pixels that others confirm under another reading",
            remedy=best,
        )


def _score(pairs: list[_Pair]) -> float:
    return float(np.median([np.nan_to_num(pair.agreement) * pair.confirmed for pair in pairs]))


def _colour_measure(
    images: Float[Tensor, "f 3 h w"], rated: list[_Pair], stored: list[_Pair], alternatives: dict[str, list[_Pair]]
) -> Measure:
    """Compare the stored warp with wrong ones and none; if it loses, the poses' handedness or direction is wrong."""
    chosen = [number for number, pair in enumerate(stored) if pair in rated]
    true = min(max(float(np.median([pair.colour for pair in rated])), COLOUR_CHANGE_FLOOR), 1.0)
    still = [_colour_change(images[pair.a].flatten(1), images[pair.b].flatten(1)) for pair in rated]
    wrong = {"the images do not belong to these poses: check their order": still}
    for remedy, pairs in alternatives.items():
        if _score([pairs[number] for number in chosen]) > 0.9 * _score([stored[number] for number in chosen]):
            # a reading that depth refutes is no rival: its few pixels are chosen to match
            wrong[remedy] = [pairs[number].colour for number in chosen]
    medians = {remedy: float(np.median(np.nan_to_num(values, nan=1.0))) for remedy, values in wrong.items()}
    best = min(medians, key=lambda remedy: medians[remedy])
    rival = max(medians[best], COLOUR_CHANGE_FLOOR) if medians[best] < COLOUR_EXPLAINED else 1.0
    return Measure(
        check="colours across frames",
        value=true / rival,
        limit=COLOUR_RATIO_LIMIT,
        frame=rated[0].a,
        what=f"colour change to other frames under the stored geometry ({true:.2f}) over that under a wrong one",
        remedy=best,
    )


def _choose_pairs(clip: RawClip) -> list[tuple[int, int]]:
    """Pairs of cameras at one time, and pairs of times of one camera, spread over the clip."""
    cameras, times = np.array(clip.info.camera_ids), np.array(clip.info.times)
    same_time = [
        (a, b)
        for a in range(len(times))
        for b in np.flatnonzero(np.abs(times - times[a]) <= SAME_TIME).tolist()
        if a != b
    ]
    same_camera: list[tuple[int, int]] = []
    for camera in np.unique(cameras):
        frames = np.flatnonzero(cameras == camera).tolist()
        step = max(1, len(frames) // 3)
        same_camera += list(zip(frames, frames[step:]))
    # different cameras at one time test extrinsics, one camera at two times the motion: both kinds are needed
    return [
        pairs[i]
        for pairs in (same_time, same_camera)
        for i in np.unique(np.linspace(0, len(pairs) - 1, PAIRS).round().astype(int)).tolist()
        if pairs
    ]


def _compare(images: Float[Tensor, "f 3 h w"], known: Truth, a: int, b: int, *, tolerance: float) -> _Pair:
    """Warp frame a's static pixels (at one time: all) into frame b; depths equal to ``tolerance`` agree."""
    assert known.depth is not None
    assert known.cameras is not None
    h, w = known.depth.shape[-2:]
    use = known.depth[a] > 0
    if float(known.times[a]) != float(known.times[b]) and known.dynamic is not None:
        use &= ~known.dynamic[a]
    chosen = use.flatten().nonzero()[:, 0]
    chosen = chosen[:: max(1, len(chosen) // PIXELS)]
    pixels_a = geometry.pixel_centres(h, w, images).reshape(-1, 2)[chosen]
    camera_a, camera_b = fields.unstack(known.cameras, a), fields.unstack(known.cameras, b)
    points = geometry.rays(camera_a.intrinsics, pixels_a) * known.depth[a].flatten()[chosen, None]
    pixels_b, z = geometry.project(geometry.transform(camera_a.world_from_camera, points), camera_b)
    low, high, inside = _depth_range(known.depth[b], pixels_b)
    inside &= z > 0
    agree = inside & (z >= low * (1 - tolerance)) & (z <= high * (1 + tolerance))
    contradict = inside & (z < low * (1 - tolerance))
    counted = int(agree.sum() + contradict.sum())
    # an overlap below 5 % of the image (scaled to the sampled pixels) says more about its border than about the poses
    enough = int(inside.sum()) > max(30, 0.05 * h * w * len(chosen) / max(1, int(use.sum()))) and counted > 20
    colours = _sample(images[a], pixels_a), _sample(images[b], pixels_b)
    return _Pair(
        a=a,
        b=b,
        agreement=float(agree.sum()) / counted if enough else float("nan"),
        confirmed=float(agree.sum() / inside.sum().clamp_min(1)),
        depth_error=float((z / ((low + high) / 2) - 1).abs()[agree | contradict].median()) if enough else float("nan"),
        colour=_colour_change(colours[0][:, agree], colours[1][:, agree]),
        moved=float((pixels_b - pixels_a).norm(dim=-1)[inside].median()) if enough else 0.0,
    )


def _colour_change(a: Float[Tensor, "3 n"], b: Float[Tensor, "3 n"]) -> float:
    """Difference of colours that should be equal, over that of colours from different places; NaN if this is small.

    With this ratio, matching one bare wall with another is no success.
    """
    n = a.shape[1]
    if n <= 20:
        return float("nan")
    between = torch.stack([(a - b.roll(n * k // 7, 1)).abs().mean(0).median() for k in range(1, 7)]).median()
    same = (a - b).abs().mean(0).median()
    return float(same / between) if float(between) > 2 * COLOUR_FLOOR else float("nan")


def _depth_range(
    depth: Float[Tensor, "h w"], pixels: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Bool[Tensor, "n"]]:
    """Minimum and maximum of the four depths around each place, and a mask of places where all four exist."""
    h, w = depth.shape
    corner = (pixels - 0.5).floor()
    inside = ((corner >= 0) & (corner < torch.tensor([w - 1, h - 1]))).all(-1)
    x, y = corner.where(inside[:, None], torch.zeros(())).long().unbind(-1)
    around = torch.stack([depth[y, x], depth[y, x + 1], depth[y + 1, x], depth[y + 1, x + 1]])
    return around.amin(0), around.amax(0), inside & (around > 0).all(0)


def _sample(image: Float[Tensor, "3 h w"], pixels: Float[Tensor, "n 2"]) -> Float[Tensor, "3 n"]:
    size = torch.tensor([image.shape[2], image.shape[1]])
    place = (pixels / size * 2 - 1)[None, None].clamp(-2, 2)
    return torch.nn.functional.grid_sample(image[None], place, padding_mode="border", align_corners=False)[0, :, 0]


def track_measures(clip: RawClip, known: Truth, tolerance: float = DEPTH_TOLERANCE) -> Iterator[Measure]:
    """Check that visible tracks lie on the surfaces (to a fraction ``tolerance`` of depth) and keep their colour."""
    tracks = _track_points(clip, known)
    cameras = known.cameras
    if tracks is None or cameras is None or known.depth is None:
        return
    points, visible = tracks
    images = torch.from_numpy(clip.images).float().permute(0, 3, 1, 2) / 255
    pixels, z = geometry.project(points, cameras)
    on_surface, edge = torch.zeros_like(visible), torch.zeros_like(visible)
    colours = torch.zeros(*visible.shape, 3)
    for frame in range(len(points)):
        low, high, inside = _depth_range(known.depth[frame], pixels[frame])
        near = (z[frame] >= low * (1 - tolerance)) & (z[frame] <= high * (1 + tolerance))
        on_surface[frame], edge[frame] = inside & near, high > low * EDGE_RATIO
        colours[frame] = _sample(images[frame], pixels[frame]).T
    # places at the image's edge have no four depths around them: neither right nor wrong
    border = (pixels < 0.5).any(-1) | (pixels > torch.tensor([clip.info.width, clip.info.height]) - 0.5).any(-1)
    outside = (pixels < 0).any(-1) | (pixels > torch.tensor([clip.info.width, clip.info.height])).any(-1)
    rated = visible & (~border | outside)
    yield from _track_on_surface(clip, rated, on_surface)
    yield from _track_colour(clip, visible & on_surface & ~edge, colours)


def _track_on_surface(clip: RawClip, rated: Bool[Tensor, "f n"], on_surface: Bool[Tensor, "f n"]) -> Iterator[Measure]:
    if clip.tracks is not None and len(set(clip.info.camera_ids)) > 1:
        rated, on_surface = _any_camera(clip, rated), _any_camera(clip, on_surface)
    counts = rated.sum(-1)
    if int(counts.sum()) < 10:
        return
    per_frame = torch.where(counts > 3, (rated & on_surface).sum(-1) / counts.clamp_min(1), torch.ones(()))
    yield Measure(
        check="tracks on surfaces",
        value=float((rated & on_surface).sum() / counts.sum()),
        limit=AGREEMENT_LIMIT,
        above=False,
        frame=int(per_frame.argmin()),
        what="fraction of the visible track points that lie on the surface seen there",
        remedy="tracks are world positions, one per entry of track_times; visible means seen by a camera at that time",
    )


def _any_camera(clip: RawClip, value: Bool[Tensor, "f n"]) -> Bool[Tensor, "f n"]:
    """Visibility by any camera at a frame's time, which is how stored tracks define it."""
    times = np.array(clip.info.times)
    same = torch.from_numpy(np.abs(times[:, None] - times) <= SAME_TIME)
    return (same[..., None] & value[None]).any(1)


def _track_colour(clip: RawClip, rated: Bool[Tensor, "f n"], colours: Float[Tensor, "f n 3"]) -> Iterator[Measure]:
    """Measure tracks' colours per camera, since another one may see a texture from far closer."""
    cameras = torch.tensor(clip.info.camera_ids)
    ratios = torch.zeros(len(rated))
    for camera in cameras.unique():
        ratios[cameras == camera] = _colour_ratios(rated[cameras == camera], colours[cameras == camera])
    if not bool(ratios.any()):
        return
    yield Measure(
        check="tracks keep colour",
        value=float(ratios.max()),
        limit=TRACK_RATIO_LIMIT,
        frame=int(ratios.argmax()),
        what="colour change along visible tracks over the difference between tracks",
        remedy="track points jump between surfaces: keep the order of tracks (or of vertices) the same at every time",
    )


def _colour_ratios(rated: Bool[Tensor, "f n"], colours: Float[Tensor, "f n 3"]) -> Float[Tensor, "f"]:
    """Colour change since a track's first sighting over the difference to other tracks' first sightings, per frame."""
    first = colours[rated.float().argmax(0), torch.arange(rated.shape[1])]
    later = rated & (rated.cumsum(0) > 1)
    ratios = torch.zeros(len(rated))
    for frame in (later.sum(-1) >= TRACKS_PER_FRAME).nonzero()[:, 0].tolist():
        current, initial = colours[frame, later[frame]], first[later[frame]]
        along = float((current - initial).abs().mean(-1).median())
        between = float((current[:, None] - initial).abs().mean(-1).median())
        if between > 3 * COLOUR_FLOOR:
            ratios[frame] = along / between
    return ratios


def _track_points(clip: RawClip, known: Truth) -> tuple[Float[Tensor, "f n 3"], Bool[Tensor, "f n"]] | None:
    """World points and visibility at every frame: stored tracks, or some that the surface gives."""
    if clip.tracks is not None and clip.info.track_times is not None:
        at = np.abs(np.subtract.outer(clip.info.times, clip.info.track_times)).argmin(-1)
        visible = torch.from_numpy(clip.tracks.visible & clip.tracks.valid)
        return torch.from_numpy(clip.tracks.points).transpose(0, 1)[at], visible.T[at]
    if known.surface is None or known.cameras is None:
        return None
    f, h, w = known.surface.faces.shape
    chosen = np.linspace(0, f * h * w - 1, TRACKS).astype(np.int64)
    frame, y, x = (torch.from_numpy(part) for part in np.unravel_index(chosen, (f, h, w)))
    pixels = torch.stack([x, y], dim=-1) + 0.5
    tracked = surfaces.tracks(known.surface, known.cameras, known.times, frame, pixels)
    return tracked.points.transpose(0, 1), tracked.visible.T
