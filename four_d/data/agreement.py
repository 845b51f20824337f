"""Do a clip's frames agree with each other? Depth, colours and tracks, carried from one frame into another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import geometry
from four_d import surface as surfaces
from four_d.data.contract import RawClip
from four_d.data.truth import Truth
from four_d.types import SAME_TIME, Cameras

AGREEMENT_LIMIT = 0.9
"""Share of the pixels that another frame confirms, of those that it confirms or contradicts."""
DEPTH_SHARE = 0.02
"""Two depths within this share of each other are the same."""
COLOUR_RATIO_LIMIT = 1.5
"""Colour change under the stored geometry over the smallest under a wrong one."""
COLOUR_EXPLAINED = 0.5
"""A wrong geometry counts only if it leaves a colour change below this; 1 is chance."""
COLOUR_FLOOR = 0.03
"""Colours that differ by less (of 1) are the same."""
TRACK_RATIO_LIMIT = 0.6
"""Colour change along a track over that between tracks."""
COLOUR_CHANGE_FLOOR = 0.1
"""Colour changes below are equally good: what sampling alone does to a fine texture."""
EDGE_RATIO = 1.1
"""Neighbouring depths further apart are an edge, where colours mix."""
TRACKS_PER_FRAME = 30
"""Fewer tracks of a frame say nothing of their colours."""
CLEARLY_RIGHT, CLEARLY_BETTER = 0.6, 0.25
"""Share of the pixels that other frames confirm under mended poses, and by how much it exceeds that under the poses as
they are, from which these count as mistaken."""
ROUGH_SHARE = 0.05
"""As `DEPTH_SHARE`, of depth that a model or a sensor gave."""
PAIRS = 6
"""How many pairs of frames of each kind are compared in a clip."""
PIXELS = 3000
"""About how many pixels of a pair are compared."""
TRACKS = 300
"""How many tracks of a clip with a surface are followed."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What one check found in one clip, at its worst frame."""

    check: str
    value: float
    limit: float
    what: str
    """What the value is."""
    remedy: str
    above: bool = True
    """Whether values above the limit are wrong, or those below."""
    frame: int | None = None

    @property
    def ok(self) -> bool:
        """Whether the limit is kept; NaN never is."""
        return self.value <= self.limit if self.above else self.value >= self.limit


def pose_mistakes(cameras: Cameras) -> dict[str, Cameras]:
    """Usual mistakes with poses: the remedy, and the cameras as they are once it is applied."""
    pose = cameras.world_from_camera
    mirror, flip, other = (torch.diag(pose.new_tensor(d)) for d in ([-1, 1, 1, 1], [1, -1, -1, 1], [1, -1, 1, 1]))
    transposed = geometry.make_pose(pose[..., :3, :3].mT, pose[..., :3, 3])
    poses = {
        "the poses are stored as camera_from_world: invert them": geometry.invert_pose(pose),
        "the camera axes are those of OpenGL (y up, z backward): negate the poses' second and third column": pose
        @ flip,
        "the poses are camera_from_world with the axes of OpenGL: negate rows two and three, then invert": (
            geometry.invert_pose(flip @ pose)
        ),
        "the world is mirrored in x: use a right-handed one, camera axes x right, y down, z forward": mirror
        @ pose
        @ mirror,
        "the world is mirrored in y: use a right-handed one, camera axes x right, y down, z forward": other
        @ pose
        @ other,
        "the rotations are transposed: store world_from_camera": transposed,
    }
    return {name: dataclasses.replace(cameras, world_from_camera=value) for name, value in poses.items()}


@dataclass(frozen=True, kw_only=True)
class _Pair:
    """What frame ``b`` says of the pixels of frame ``a`` under some cameras."""

    a: int
    b: int
    agreement: float
    """Share confirmed, of those confirmed or contradicted; NaN if too few."""
    seen: float
    """Share confirmed, of those inside the image."""
    colour: float
    """`_colour_change` of what is confirmed."""
    moved: float
    """Median displacement in pixels."""


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """Another reading of given poses that fits the depth, as they do not."""

    remedy: str
    given: float
    """Share of the pixels that other frames confirm under the poses as they are."""
    mended: float


def pose_mistake(images: Float[Tensor, "f 3 h w"], known: Truth) -> Mistake | None:
    """The usual mistake that the depth of the frames clearly shows; None where it shows none, or does not tell.

    It cannot tell where the camera hardly moves or no two frames overlap. Poses are as they were given: a change of the
    world hides some mistakes. All floats are of one type.
    """
    assert known.cameras is not None
    readings = {"": known.cameras, **pose_mistakes(known.cameras)}
    rows = [
        [_compare(images, known, cameras, *pair, share=ROUGH_SHARE) for cameras in readings.values()]
        for pair in _pairs_apart(len(images))
    ]
    told = [row for row in rows if any(np.isfinite(pair.agreement) for pair in row)]
    if not told:
        return None
    scores = np.array([[np.nan_to_num(pair.agreement) * pair.seen for pair in row] for row in told]).mean(0)
    best = int(scores.argmax())
    if scores[best] < max(CLEARLY_RIGHT, scores[0] + CLEARLY_BETTER):
        return None
    return Mistake(remedy=list(readings)[best], given=float(scores[0]), mended=float(scores[best]))


def _pairs_apart(count: int) -> list[tuple[int, int]]:
    """Pairs of frames near to each other and far apart."""
    steps = {max(count // part, 1) for part in (8, 3, 2)} if count > 1 else set[int]()
    return [(a, a + step) for step in sorted(steps) for a in sorted({0, (count - step) // 2, count - 1 - step})]


def pair_measures(clip: RawClip, known: Truth) -> Iterator[Measure]:
    """Depth and colours across frames, where cameras and depth are known and enough pixels overlap."""
    cameras = known.cameras
    assert cameras is not None
    images = torch.from_numpy(clip.images).float().permute(0, 3, 1, 2) / 255
    pairs = _choose_pairs(clip)
    stored = [_compare(images, known, cameras, *pair) for pair in pairs]
    stored = [pair for pair in stored if np.isfinite(pair.agreement)]
    if not stored:
        return
    rated = [pair for pair in stored if pair.moved > 2 and np.isfinite(pair.colour)]
    others = {
        remedy: [_compare(images, known, wrong, pair.a, pair.b) for pair in stored]
        for remedy, wrong in pose_mistakes(cameras).items()
    }
    yield _agreement_measure(stored, others)
    for name, axis in (("left to right", -1), ("upside down", -2)):
        remedy = f"the images are mirrored {name} against poses and depth: mirror them back"
        others[remedy] = [_compare(images.flip(axis), known, cameras, pair.a, pair.b) for pair in stored]
    if rated:
        yield _colour_measure(images, rated, stored, others)


def _agreement_measure(stored: list[_Pair], others: dict[str, list[_Pair]]) -> Measure:
    values = np.array([pair.agreement for pair in stored])
    scores = {remedy: _score(pairs) for remedy, pairs in others.items()}
    best = max(scores, key=lambda remedy: scores[remedy])
    better = scores[best] > _score(stored) + 0.1
    return Measure(
        check="depth across frames",
        value=float(np.median(values)),
        limit=AGREEMENT_LIMIT,
        above=False,
        frame=stored[int(values.argmin())].a,
        what=f"share of pixels whose depth frame {stored[int(values.argmin())].b} and others confirm, not contradict",
        remedy=best
        if better
        else "depth and poses do not fit: check depth's unit (z-depth, not along the ray) and scale",
    )


def _score(pairs: list[_Pair]) -> float:
    return float(np.median([np.nan_to_num(pair.agreement) * pair.seen for pair in pairs]))


def _colour_measure(
    images: Float[Tensor, "f 3 h w"], rated: list[_Pair], stored: list[_Pair], others: dict[str, list[_Pair]]
) -> Measure:
    """The stored warp must beat wrong ones and no warp at all; else handedness or direction of the poses is wrong."""
    chosen = [number for number, pair in enumerate(stored) if pair in rated]
    true = min(max(float(np.median([pair.colour for pair in rated])), COLOUR_CHANGE_FLOOR), 1.0)
    still = [_colour_change(images[pair.a].flatten(1), images[pair.b].flatten(1)) for pair in rated]
    wrong = {"the images do not belong to these poses: check their order": still}
    for remedy, pairs in others.items():
        if _score([pairs[number] for number in chosen]) > 0.9 * _score([stored[number] for number in chosen]):
            # what depth refutes is no rival: its few pixels are chosen to match
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
    return [
        pairs[i]
        for pairs in (same_time, same_camera)
        for i in np.unique(np.linspace(0, len(pairs) - 1, PAIRS).round().astype(int)).tolist()
        if pairs
    ]


def _compare(
    images: Float[Tensor, "f 3 h w"], known: Truth, cameras: Cameras, a: int, b: int, share: float = DEPTH_SHARE
) -> _Pair:
    """Warp frame a's static pixels (at one time: all) into frame b; depths within ``share`` are the same."""
    assert known.depth is not None
    h, w = known.depth.shape[-2:]
    use = known.depth[a] > 0
    if float(known.times[a]) != float(known.times[b]) and known.dynamic is not None:
        use &= ~known.dynamic[a]
    chosen = use.flatten().nonzero()[:, 0]
    chosen = chosen[:: max(1, len(chosen) // PIXELS)]
    here = geometry.pixel_centres(h, w, images).reshape(-1, 2)[chosen]
    points = geometry.unproject(known.depth[a], select_cameras(cameras, a)).reshape(-1, 3)[chosen]
    there, z = geometry.project(points, select_cameras(cameras, b))
    low, high, inside = _depth_around(known.depth[b], there)
    inside &= z > 0
    agree = inside & (z >= low * (1 - share)) & (z <= high * (1 + share))
    contradict = inside & (z < low * (1 - share))
    counted = int(agree.sum() + contradict.sum())
    enough = int(inside.sum()) > max(30, 0.05 * h * w * len(chosen) / max(1, int(use.sum()))) and counted > 20
    colours = _sample(images[a], here), _sample(images[b], there)
    return _Pair(
        a=a,
        b=b,
        agreement=float(agree.sum()) / counted if enough else float("nan"),
        seen=float(agree.sum() / inside.sum().clamp_min(1)),
        colour=_colour_change(colours[0][:, agree], colours[1][:, agree]),
        moved=float((there - here).norm(dim=-1)[inside].median()) if enough else 0.0,
    )


def _colour_change(a: Float[Tensor, "3 n"], b: Float[Tensor, "3 n"]) -> float:
    """Difference of colours that should be the same over that of colours from different places; NaN if that is small.

    Taken so, matching one bare wall with another is no success.
    """
    n = a.shape[1]
    if n <= 20:
        return float("nan")
    between = torch.stack([(a - b.roll(n * k // 7, 1)).abs().mean(0).median() for k in range(1, 7)]).median()
    same = (a - b).abs().mean(0).median()
    return float(same / between) if float(between) > 2 * COLOUR_FLOOR else float("nan")


def _depth_around(
    depth: Float[Tensor, "h w"], pixels: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Bool[Tensor, "n"]]:
    """Least and greatest of the four depths around each place, and where all four exist."""
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


def select_cameras(cameras: Cameras, at: int | slice) -> Cameras:
    """Some frames' cameras."""
    return Cameras(world_from_camera=cameras.world_from_camera[at], intrinsics=cameras.intrinsics[at])


def track_measures(clip: RawClip, known: Truth) -> Iterator[Measure]:
    """Tracks must lie on the surfaces where they are said to be visible, and keep their colour."""
    found = _tracks(clip, known)
    cameras = known.cameras
    if found is None or cameras is None or known.depth is None:
        return
    points, visible = found
    images = torch.from_numpy(clip.images).float().permute(0, 3, 1, 2) / 255
    pixels, z = geometry.project(points, cameras)
    on_surface, edge = torch.zeros_like(visible), torch.zeros_like(visible)
    colours = torch.zeros(*visible.shape, 3)
    for frame in range(len(points)):
        low, high, inside = _depth_around(known.depth[frame], pixels[frame])
        near = (z[frame] >= low * (1 - DEPTH_SHARE)) & (z[frame] <= high * (1 + DEPTH_SHARE))
        on_surface[frame], edge[frame] = inside & near, high > low * EDGE_RATIO
        colours[frame] = _sample(images[frame], pixels[frame]).T
    # an edge of the image has no four depths around it: neither right nor wrong
    border = (pixels < 0.5).any(-1) | (pixels > torch.tensor([clip.info.width, clip.info.height]) - 0.5).any(-1)
    outside = (pixels < 0).any(-1) | (pixels > torch.tensor([clip.info.width, clip.info.height])).any(-1)
    rated = visible & (~border | outside)
    yield from _track_place(clip, rated, on_surface)
    yield from _track_colour(clip, visible & on_surface & ~edge, colours)


def _track_place(clip: RawClip, rated: Bool[Tensor, "f n"], on_surface: Bool[Tensor, "f n"]) -> Iterator[Measure]:
    if clip.tracks is not None and len(set(clip.info.camera_ids)) > 1:
        rated, on_surface = _any_camera(clip, rated), _any_camera(clip, on_surface)
    counts = rated.sum(-1)
    if int(counts.sum()) < 10:
        return
    shares = torch.where(counts > 3, (rated & on_surface).sum(-1) / counts.clamp_min(1), torch.ones(()))
    yield Measure(
        check="tracks on surfaces",
        value=float((rated & on_surface).sum() / counts.sum()),
        limit=AGREEMENT_LIMIT,
        above=False,
        frame=int(shares.argmin()),
        what="share of the visible track points that lie on what the frame shows",
        remedy="tracks are world positions, one per entry of track_times; visible means seen by a camera at that time",
    )


def _any_camera(clip: RawClip, value: Bool[Tensor, "f n"]) -> Bool[Tensor, "f n"]:
    """A stored track's visibility is that by any camera at its time."""
    times = np.array(clip.info.times)
    same = torch.from_numpy(np.abs(times[:, None] - times) <= SAME_TIME)
    return (same[..., None] & value[None]).any(1)


def _track_colour(clip: RawClip, rated: Bool[Tensor, "f n"], colours: Float[Tensor, "f n 3"]) -> Iterator[Measure]:
    """Per camera, since another one may see a texture from far closer."""
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
    """At each frame, the change since a track's first sighting over the difference to other tracks' first sightings."""
    first = colours[rated.float().argmax(0), torch.arange(rated.shape[1])]
    later = rated & (rated.cumsum(0) > 1)
    ratios = torch.zeros(len(rated))
    for frame in (later.sum(-1) >= TRACKS_PER_FRAME).nonzero()[:, 0].tolist():
        now, then = colours[frame, later[frame]], first[later[frame]]
        along = float((now - then).abs().mean(-1).median())
        between = float((now[:, None] - then).abs().mean(-1).median())
        if between > 3 * COLOUR_FLOOR:
            ratios[frame] = along / between
    return ratios


def _tracks(clip: RawClip, known: Truth) -> tuple[Float[Tensor, "f n 3"], Bool[Tensor, "f n"]] | None:
    """World points and visibility at every frame: stored tracks, or some that the surface gives."""
    if clip.tracks is not None and clip.info.track_times is not None:
        at = np.abs(np.subtract.outer(clip.info.times, clip.info.track_times)).argmin(-1)
        seen = torch.from_numpy(clip.tracks.visible & clip.tracks.valid)
        return torch.from_numpy(clip.tracks.points).transpose(0, 1)[at], seen.T[at]
    if known.surface is None or known.cameras is None:
        return None
    f, h, w = known.surface.faces.shape
    chosen = np.linspace(0, f * h * w - 1, TRACKS).astype(np.int64)
    frame, y, x = (torch.from_numpy(part) for part in np.unravel_index(chosen, (f, h, w)))
    pixels = torch.stack([x, y], dim=-1) + 0.5
    found = surfaces.tracks(known.surface, known.cameras, known.times, frame, pixels)
    return found.points.transpose(0, 1), found.visible.T
