"""Long video: overlapping windows, each seen alone, joined in the coordinates and unit of the first.

A model's coordinates and unit are those of the frames it sees at once, so two windows differ by a similarity. It is
found on the frames that both see (`align`), and every later window is brought into the world of the first (`join`).
What is off at a seam stays off for all later windows: errors add up, and `Seam` says how large each one looks.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.clouds import reliable, world_points
from four_d.geometry import align_points, make_pose, project, rotation_angle
from four_d.inference.fit import Fit
from four_d.tracking import EDGE, PointTracks
from four_d.types import Cameras, Prediction, map_tensors

SHORT = 24
"""Frames up to which a video is one window with any model."""
MOST_POINTS = 40_000
"""That an alignment looks at."""
FEWEST_POINTS = 20
"""With fewer, or with all on one line, cameras align the windows."""
POOR = 0.2
"""Median residual, as a share of the distance, above which windows are said not to fit."""
SEEN = 0.5
"""Probability from which a followed point counts as seen."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How a video is cut."""

    frames: int
    """Of a window."""
    overlap: int
    """Frames that neighbouring windows share; the last two share more where the video's length asks for it."""

    def __post_init__(self) -> None:
        """Refuse what cannot be joined."""
        if self.frames < 2:
            raise UserError(f"window is {self.frames}; take at least 2 frames at once")
        if self.overlap < 1:
            raise UserError(f"overlap is {self.overlap}; windows are joined by frames that both see: share at least 1")
        if self.overlap >= self.frames:
            raise UserError(f"overlap is {self.overlap}, and a window has {self.frames} frames; share fewer")

    def plan(self, count: int) -> list[range]:
        """Windows over ``count`` frames, all of one length; one if they fit into one."""
        if count <= self.frames:
            return [range(count)]
        step, last = self.frames - self.overlap, count - self.frames
        return [range(start, start + self.frames) for start in [*range(0, last, step), last]]


def choose(window: int | None, overlap: int | None, trained: int) -> Windows:
    """The user's window and overlap; else twice the frames of training but at least `SHORT`, and a quarter of it."""
    frames = max(SHORT, 2 * trained) if window is None else window
    return Windows(frames=frames, overlap=max(1, frames // 4) if overlap is None else overlap)


def border(earlier: range, later: range) -> int:
    """The first frame that is taken of the later window: the one nearer to its middle than to the earlier one's."""
    return (earlier.start + earlier.stop + later.start + later.stop - 2) // 4 + 1


# similarities


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """a = scale · rotation · b + shift, in float64 on the CPU."""

    scale: float
    rotation: Float[Tensor, "3 3"]
    shift: Float[Tensor, "3"]

    @staticmethod
    def identity() -> Similarity:
        """Changes nothing."""
        return Similarity(
            scale=1.0, rotation=torch.eye(3, dtype=torch.float64), shift=torch.zeros(3, dtype=torch.float64)
        )

    def points(self, points: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Places of b in a."""
        return (self.scale * points.double() @ self.rotation.mT + self.shift).to(points.dtype)

    def steps(self, steps: Float[Tensor, "*n 3"]) -> Float[Tensor, "*n 3"]:
        """Differences of places of b in a."""
        return (self.scale * steps.double() @ self.rotation.mT).to(steps.dtype)

    def cameras(self, cameras: Cameras) -> Cameras:
        """The same cameras with a as the world."""
        poses = cameras.world_from_camera.double()
        moved = make_pose(self.rotation @ poses[..., :3, :3], self.points(poses[..., :3, 3]))
        return dataclasses.replace(cameras, world_from_camera=moved.to(cameras.world_from_camera.dtype))

    def prediction(self, prediction: Prediction) -> Prediction:
        """The same prediction with a as the world, in a's unit."""
        cameras, depth, points, motion = prediction.cameras, prediction.depth, prediction.points, prediction.motion
        return dataclasses.replace(
            prediction,
            cameras=None if cameras is None else self.cameras(cameras),
            depth=None if depth is None else depth * self.scale,
            points=None if points is None else self.points(points),
            motion=None if motion is None else self.steps(motion),
        )


@dataclass(frozen=True, kw_only=True)
class Seam:
    """How well a window fits onto the one before; what tells of drift."""

    method: str
    """What aligned them: points, cameras, depth (scale alone) or none."""
    scale: float
    """What lengths of the later window were multiplied by to be in the result's unit."""
    points: int
    """That were compared."""
    residual: float | None
    """Median distance of a point's two places, as a share of its distance from the camera."""
    residual_90: float | None
    """The same, of which 90 % of the points stay below."""
    camera_shift: float | None
    """Mean distance of a shared frame's two camera centres, in the unit of the result."""
    camera_turn_deg: float | None
    """Mean angle between a shared frame's two camera rotations."""


def align(before: Prediction, after: Prediction) -> tuple[Similarity, Seam]:
    """What brings ``after`` onto ``before``: two predictions of the same frames, unbatched.

    Points of the same pixels, weighed by confidence and the nearer the more, outliers discounted until they no longer
    count; what is said to move counts less. Without enough points the cameras' poses, without those the depths' ratio.
    """
    pairs = _pairs(before, after)
    method, move = _otherwise(before, after)
    found = None if pairs is None else _by_points(pairs, None if method == "none" else move)
    if found is not None:
        method, move = "points", found
    residuals = None if pairs is None or method == "none" else pairs.residuals(move)
    shift, turn = _disagreement(before.cameras, None if after.cameras is None else move.cameras(after.cameras))
    return move, Seam(
        method=method,
        scale=move.scale,
        points=0 if residuals is None else len(residuals),
        residual=_quantile(residuals, 0.5),
        residual_90=_quantile(residuals, 0.9),
        camera_shift=shift,
        camera_turn_deg=turn,
    )


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Places of the same n pixels in two windows."""

    source: Float[Tensor, "n 3"]
    target: Float[Tensor, "n 3"]
    distance: Float[Tensor, "n"]
    """From the camera, in the target's unit."""
    weight: Float[Tensor, "n"]

    def take(self, chosen: slice | Tensor) -> _Pairs:
        return _Pairs(
            source=self.source[chosen],
            target=self.target[chosen],
            distance=self.distance[chosen],
            weight=self.weight[chosen],
        )

    def residuals(self, move: Similarity) -> Float[Tensor, "n"]:
        return (move.points(self.source) - self.target).norm(dim=-1) / self.distance


def _pairs(before: Prediction, after: Prediction) -> _Pairs | None:
    """The reliable pixels of both; None if there are no points or too few."""
    ours, theirs = world_points(after), world_points(before)
    if ours is None or theirs is None or ours[1].numel() == 0:
        return None
    (source, depth, certain), (target, distance, sure) = ours, theirs
    keep = reliable(depth, certain) & reliable(distance, sure) & (source + target).isfinite().all(-1)
    chosen = keep.flatten().nonzero()[:, 0]
    if len(chosen) < FEWEST_POINTS:
        return None
    chosen = chosen[:: -(-len(chosen) // MOST_POINTS)]
    weight = (certain.flatten()[chosen] * sure.flatten()[chosen]).clamp_min(0).sqrt().double()
    for moving in (before.dynamic, after.dynamic):
        weight = weight if moving is None else weight * (1.01 - moving.flatten()[chosen].double())
    away = distance.flatten()[chosen].double()
    return _Pairs(
        source=source.reshape(-1, 3)[chosen].double(),
        target=target.reshape(-1, 3)[chosen].double(),
        distance=away,
        weight=weight / away**2,
    )


def _by_points(pairs: _Pairs, start: Similarity | None, rounds: int = 15) -> Similarity | None:
    """Iteratively reweighted from the best of several starts, outliers ever less (Geman-McClure). None on a line."""
    if _on_a_line(pairs.target, pairs.weight) or _on_a_line(pairs.source, pairs.weight):
        return None
    starts = [_least_squares(pairs, pairs.weight), *_samples(pairs), *([] if start is None else [start])]
    few = pairs.take(slice(None, None, -(-len(pairs.weight) // 1000)))
    move = min(starts, key=lambda each: float(few.residuals(each).median()))
    for _ in range(rounds):
        residuals = pairs.residuals(move)
        spread = (1.4826 * residuals.median()).clamp_min(1e-7)
        move = _least_squares(pairs, pairs.weight / (1 + (residuals / spread / 2) ** 2) ** 2)
    return move


def _samples(pairs: _Pairs, count: int = 100, size: int = 4) -> list[Similarity]:
    """Similarities of a few points each, drawn by weight: some are of no outlier."""
    generator = torch.Generator().manual_seed(0)
    many = pairs.take(torch.linspace(0, len(pairs.weight) - 1, min(len(pairs.weight), 5000)).long())
    drawn = torch.multinomial(many.weight.expand(count, -1) + 1e-30, size, generator=generator)
    scales, rotations, shifts = align_points(many.source[drawn], many.target[drawn])
    return [
        Similarity(scale=float(scale), rotation=rotation, shift=shift)
        for scale, rotation, shift in zip(scales, rotations, shifts, strict=True)
        if bool(scale > 1e-6)
    ]


def _least_squares(pairs: _Pairs, weight: Float[Tensor, "n"]) -> Similarity:
    scale, rotation, shift = align_points(pairs.source, pairs.target, weight)
    return Similarity(scale=float(scale), rotation=rotation, shift=shift)


def _on_a_line(points: Float[Tensor, "n 3"], weight: Float[Tensor, "n"]) -> bool:
    """Or at one place: then a rotation is not determined."""
    share = weight[:, None] / weight.sum().clamp_min(1e-30)
    centred = points - (points * share).sum(0)
    spread = torch.linalg.eigvalsh(centred.mT @ (centred * share))
    return not bool(spread[1] > 1e-8 * (points**2 * share).sum())


def _otherwise(before: Prediction, after: Prediction) -> tuple[str, Similarity]:
    ratio = _depth_ratio(before.depth, after.depth)
    if before.cameras is not None and after.cameras is not None and len(before.cameras.world_from_camera) > 0:
        return "cameras", _by_cameras(before.cameras, after.cameras, ratio)
    if ratio is not None:
        return "depth", dataclasses.replace(Similarity.identity(), scale=ratio)
    return "none", Similarity.identity()


def _by_cameras(before: Cameras, after: Cameras, ratio: float | None) -> Similarity:
    """The mean rotation between the poses; scale by the depths' ratio or else by how far apart the centres are."""
    target, source = before.world_from_camera.double(), after.world_from_camera.double()
    u, _, vh = torch.linalg.svd((target[:, :3, :3] @ source[:, :3, :3].mT).sum(0))
    sign = torch.tensor([1, 1, float(torch.det(u @ vh).sign())], dtype=torch.float64)
    rotation = (u * sign) @ vh
    here, there = source[:, :3, 3], target[:, :3, 3]
    width, wanted = (float((centres - centres.mean(0)).norm(dim=-1).mean()) for centres in (here, there))
    still = min(width, wanted) < 1e-3
    scale = ratio if ratio is not None else 1.0 if still else wanted / width
    return Similarity(scale=scale, rotation=rotation, shift=(there - scale * here @ rotation.mT).mean(0))


def _depth_ratio(before: Tensor | None, after: Tensor | None) -> float | None:
    if before is None or after is None:
        return None
    sound = before.isfinite() & after.isfinite() & (before > 1e-6) & (after > 1e-6)
    return float((before[sound].double() / after[sound].double()).median()) if bool(sound.any()) else None


def _disagreement(before: Cameras | None, after: Cameras | None) -> tuple[float | None, float | None]:
    """Mean distance of centres, mean angle in degrees."""
    if before is None or after is None or len(before.world_from_camera) == 0:
        return None, None
    one, other = before.world_from_camera.double(), after.world_from_camera.double()
    angle = rotation_angle(one[:, :3, :3].mT @ other[:, :3, :3]).rad2deg().mean()
    return float((one - other)[:, :3, 3].norm(dim=-1).mean()), float(angle)


def _quantile(values: Tensor | None, share: float) -> float | None:
    return None if values is None else float(values.kthvalue(max(1, round(share * len(values)))).values)


# joining


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a window gave of some frames; unbatched, on the CPU."""

    frames: range
    """Which of the video's."""
    prediction: Prediction
    """Motion is to the time of the window's first frame."""
    fit: Fit
    images: Float[Tensor, "f 3 r c"]
    originals: UInt8[np.ndarray, "f h w 3"]
    mask: Bool[Tensor, "f r c"] | None = None
    tracks: PointTracks | None = None
    """Of the whole window; pixels are original ones and frames are counted from the window's first."""

    def take(self, frames: range) -> Part:
        """Some neighbouring frames of these, without tracks."""
        part = slice(frames.start - self.frames.start, frames.stop - self.frames.start)
        return Part(
            frames=frames,
            fit=self.fit,
            prediction=take_frames(self.prediction, part),
            images=self.images[part],
            originals=self.originals[part],
            mask=None if self.mask is None else self.mask[part],
        )

    def moved(self, move: Similarity) -> Part:
        """The same in another world."""
        tracks = self.tracks
        if tracks is not None:
            tracks = dataclasses.replace(tracks, points=move.points(tracks.points))
        return dataclasses.replace(self, prediction=move.prediction(self.prediction), tracks=tracks)


_MOTION = frozenset({"motion", "motion_confidence", "motion_visible"})
"""Fields whose frames are the second axis."""
_LEFT_OUT = frozenset({"pose_encodings", "pixel_track_stages", "gaussians"})
_OF_POINTS = frozenset({"pixel_tracks", "pixel_tracks_visible", "pixel_tracks_confidence"})
"""Fields whose points differ from window to window."""


def take_frames(prediction: Prediction, part: slice | Sequence[int]) -> Prediction:
    """Some frames of an unbatched prediction, without what was followed and what has no frames."""
    index = part if isinstance(part, slice) else list(part)
    return Prediction(
        **{
            name: map_tensors(value, (lambda tensor: tensor[:, index]) if name in _MOTION else lambda t: t[index])
            for name, value in vars(prediction).items()
            if value is not None and name not in _LEFT_OUT | _OF_POINTS
        }
    )


def join_frames(parts: Sequence[Prediction]) -> Prediction:
    """The inverse of `take_frames`: frames of several predictions one after the other."""
    joined: dict[str, object] = {}
    for name, first in vars(parts[0]).items():
        values = [getattr(part, name) for part in parts]
        if isinstance(first, Tensor):
            joined[name] = torch.cat(values, dim=1 if name in _MOTION else 0)
        elif isinstance(first, Cameras):
            joined[name] = Cameras(
                world_from_camera=torch.cat([value.world_from_camera for value in values]),
                intrinsics=torch.cat([value.intrinsics for value in values]),
            )
    return Prediction(**joined)  # pyright: ignore[reportArgumentType]


def join(parts: Iterable[Part], seams: list[Seam], chain: Chain | None = None) -> Iterator[Part]:
    """Bring windows, in the video's order, into the first one's world; yield every frame once, as soon as it is final.

    Of the two windows that see a frame the one counts in whose middle it lies (`border`). Holds two windows at once.
    A seam that cannot be aligned stays as the model gave it; that, and one that fits badly, is said on stderr.

    Args:
        parts: one of each window; made one at a time.
        seams: gets one more with every window after the first.
        chain: is told every window once it is in the world of the first.

    """
    held: Part | None = None
    start = 0
    for part in parts:
        here = part
        if held is not None:
            shared = range(part.frames.start, held.frames.stop)
            move, seam = align(held.take(shared).prediction, part.take(shared).prediction)
            here = part.moved(move)
            seams.append(seam)
            _complain(seam, shared)
            stop = border(held.frames, here.frames)
            yield held.take(range(start, stop))
            start = stop
        if chain is not None:
            chain.add(here)
        held = here
    if held is not None:
        yield held.take(range(start, held.frames.stop))


def _complain(seam: Seam, shared: range) -> None:
    where = f"frames {shared.start} to {shared.stop - 1}, on which two windows meet,"
    if seam.method == "none":
        print(f"{where} show nothing to align by: what follows stands as the model gave it", file=sys.stderr)
    elif seam.residual is not None and seam.residual > POOR:
        print(
            f"{where} fit badly: half of the points are off by {seam.residual:.0%} of their distance", file=sys.stderr
        )


# followed points


class Chain:
    """Points followed from window to window.

    A point goes on from a frame that both windows share: where it was seen there, from its pixel. Where no shared frame
    sees it, from the pixel whose point was nearest to it in space (of a model without motion: from its last pixel, and
    it never counts as seen again); it then keeps its distance to that point, and counts as seen again where the depth
    at its place says so. A point begins in the first window that has its frame; in frames before that window it stands
    where it is first known, unseen. Of two windows the one counts in whose middle a frame lies (`border`).
    """

    def __init__(self, times: Sequence[float], points: Sequence[tuple[float, ...]] | None) -> None:
        self._times = torch.tensor(list(times), dtype=torch.float64)
        self._last: Part | None = None
        self._asked = torch.zeros(0, dtype=torch.long)
        self._state: _State | None = None
        self._users = points is not None
        if points is not None:
            self._state = _State.empty(torch.tensor([(0.0, *point)[-3:] for point in points]), len(self._times))

    def ask(self, frames: range) -> list[tuple[float, float, float]] | None:
        """What to ask of the next window: its own frame, x, y in original pixels of every point that it has to follow.

        None: nothing. UserError for a point of a frame that is not there.
        """
        state, last = self._state, self._last
        if state is None:
            return None
        begun = state.begun.nonzero()[:, 0]
        starts = state.queries[:, 0]
        _check_frames(starts, len(self._times))
        new = (~state.begun & (starts >= frames.start) & (starts < frames.stop)).nonzero()[:, 0]
        queries = state.queries[new]
        if last is not None and len(begun):
            queries = torch.cat([self._onwards(state, last, begun, frames), queries])
        self._asked = torch.cat([begun, new])
        local = queries - torch.tensor([float(frames.start), 0, 0])
        return [(frame, x, y) for frame, x, y in local.tolist()] or None

    def add(self, part: Part) -> None:
        """Take what the window that was asked gave; it is in the world of the result."""
        found = _found(part, self._times)
        if found is not None and (self._state is None or len(self._asked)):
            if self._state is None:
                self._state = _State.empty(found.queries, len(self._times))
                self._asked = torch.arange(len(found.queries))
            self._keep(self._state, found, part)
        self._last = part

    @property
    def asked_for(self) -> Float[Tensor, "n 3"] | None:
        """The points that the user asked for: frame of the video, x, y; None if the model chose."""
        return self._state.queries if self._users and self._state is not None else None

    def tracks(self) -> PointTracks | None:
        """Of the whole video, in original pixels; None if no window gave points in 3D."""
        state = self._state
        if state is None or state.points is None:
            return None
        times, index = np.unique(self._times.numpy().astype(np.float32), return_index=True)
        return PointTracks(
            queries=state.queries,
            points=state.points[:, index],
            visible=state.visible[:, index],
            confidence=state.confidence[:, index],
            times=torch.from_numpy(times),
            pixels=state.pixels,
        )

    def pixel_tracks(self, to: Fit) -> Prediction:
        """The fields of a track head's points, for the whole video; empty if the model has none."""
        state = self._state
        if state is None or state.points is not None or state.pixels is None or not bool(state.begun.any()):
            return Prediction()
        return Prediction(
            pixel_tracks=((state.pixels - torch.tensor([to.left, to.top])) * to.scale).transpose(0, 1),
            pixel_tracks_visible=state.visible.T,
            pixel_tracks_confidence=state.confidence.T,
        )

    def _onwards(self, state: _State, last: Part, rows: Int[Tensor, "k"], frames: range) -> Float[Tensor, "k 3"]:
        """Frame of the video, x, y from which begun points go on."""
        shared = range(frames.start, last.frames.stop)
        middle = min(border(last.frames, frames), shared.stop - 1)
        order = torch.tensor(sorted(shared, key=lambda frame: abs(frame - middle)))
        pixels = torch.zeros(len(rows), len(order), 2) if state.pixels is None else state.pixels[rows][:, order]
        inside = (pixels == _clamp(pixels, last.fit)).all(-1)
        seen = (state.visible[rows][:, order] > SEEN) & inside & (state.pixels is not None)
        first = seen.int().argmax(1)
        found = torch.cat([order[first, None].float(), pixels[torch.arange(len(rows)), first]], dim=-1)
        lost = ~seen.any(1)
        state.lost[rows], state.offset[rows] = lost, 0.0
        if bool(lost.any()):
            found[lost], state.offset[rows[lost]] = _carried(state, last, rows[lost], middle)
        return found

    def _keep(self, state: _State, found: _Found, part: Part) -> None:
        """Of points that go on the frames from the border on; of those that begin here all, and those before held."""
        rows, start, stop = self._asked, part.frames.start, part.frames.stop
        found = _offset(found, state.offset[rows], state.lost[rows], part)
        begun = state.begun[rows]
        first = start if self._last is None else max(border(self._last.frames, part.frames), start)
        state.write(rows[begun], range(first, stop), found.take(begun, first - start))
        state.write(rows[~begun], range(start, stop), found.take(~begun, 0))
        state.hold(rows[~begun], start)
        state.begun[rows] = True


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Points of one window, at its f frames."""

    queries: Float[Tensor, "n 3"]
    visible: Float[Tensor, "n f"]
    confidence: Float[Tensor, "n f"]
    points: Float[Tensor, "n f 3"] | None
    pixels: Float[Tensor, "n f 2"] | None

    def take(self, rows: Bool[Tensor, "n"], first: int) -> _Found:
        return _Found(
            queries=self.queries[rows],
            visible=self.visible[rows, first:],
            confidence=self.confidence[rows, first:],
            points=None if self.points is None else self.points[rows, first:],
            pixels=None if self.pixels is None else self.pixels[rows, first:],
        )


@dataclass(kw_only=True)
class _State:
    """Points of the whole video, at its f frames, as far as they are known; and how each goes on in the next window."""

    queries: Float[Tensor, "n 3"]
    visible: Float[Tensor, "n f"]
    confidence: Float[Tensor, "n f"]
    begun: Bool[Tensor, "n"]
    lost: Bool[Tensor, "n"]
    """No frame of the last overlap saw it: another pixel stands for it."""
    offset: Float[Tensor, "n 3"]
    """From the point of that pixel."""
    points: Float[Tensor, "n f 3"] | None = None
    pixels: Float[Tensor, "n f 2"] | None = None

    @staticmethod
    def empty(queries: Tensor, frames: int) -> _State:
        n = len(queries)
        no = torch.zeros(n, dtype=torch.bool)
        return _State(
            queries=queries.float(),
            visible=torch.zeros(n, frames),
            confidence=torch.zeros(n, frames),
            begun=no,
            lost=no.clone(),
            offset=torch.zeros(n, 3),
        )

    def write(self, rows: Int[Tensor, "k"], frames: range, found: _Found) -> None:
        n, f = self.visible.shape
        for name in ("visible", "confidence", "points", "pixels"):
            value: Tensor | None = getattr(found, name)
            if value is None:
                continue
            if getattr(self, name) is None:
                setattr(self, name, torch.zeros(n, f, value.shape[-1]))
            getattr(self, name)[rows, frames.start : frames.stop] = value.float()

    def hold(self, rows: Int[Tensor, "k"], until: int) -> None:
        """Frames before ``until`` as at it, unseen."""
        for value in (self.points, self.pixels):
            if value is not None and until < self.visible.shape[1]:
                value[rows, :until] = value[rows, until : until + 1]


def _check_frames(starts: Tensor, count: int) -> None:
    for frame in starts.tolist():
        if frame not in range(count):
            raise UserError(f"frame {frame:g} of a point is outside the video; choose 0 to {count - 1}")


def _found(part: Part, times: Float[Tensor, "f"]) -> _Found | None:
    tracks, prediction = part.tracks, part.prediction
    if tracks is not None:
        own = times[part.frames.start : part.frames.stop]
        index = ((own - own[0])[:, None] - tracks.times.double()).abs().argmin(1)
        return _Found(
            queries=tracks.queries,
            visible=tracks.visible[:, index],
            confidence=tracks.confidence[:, index],
            points=tracks.points[:, index],
            pixels=tracks.pixels,
        )
    if prediction.pixel_tracks is None:
        return None
    pixels = part.fit.points_to_original(prediction.pixel_tracks).transpose(0, 1)
    ones = torch.ones_like(pixels[..., 0])
    visible, confidence = prediction.pixel_tracks_visible, prediction.pixel_tracks_confidence
    return _Found(
        queries=torch.zeros(len(pixels), 3),
        visible=ones if visible is None else visible.T,
        confidence=ones if confidence is None else confidence.T,
        points=None,
        pixels=pixels,
    )


def _clamp(pixels: Float[Tensor, "*n 2"], fit: Fit) -> Float[Tensor, "*n 2"]:
    """Original pixels moved into what the model sees."""
    low = fit.points_to_original(torch.full((2,), 1e-3))
    high = fit.points_to_original(torch.tensor(fit.model[::-1]) - 1e-3)
    return pixels.maximum(low).minimum(high)


def _carried(
    state: _State, last: Part, rows: Int[Tensor, "k"], frame: int
) -> tuple[Float[Tensor, "k 3"], Float[Tensor, "k 3"]]:
    """Queries at the pixels whose points are nearest, and how far off the followed points are from those."""
    pixels = torch.zeros(len(rows), 2) if state.pixels is None else state.pixels[rows, frame]
    offset = torch.zeros(len(rows), 3)
    maps = None if state.points is None else world_points(last.take(range(frame, frame + 1)).prediction)
    if maps is not None and state.points is not None:
        points, depth, confidence = maps
        usable = (reliable(depth, confidence) & points.isfinite().all(-1))[0].nonzero()
        if len(usable):
            places = points[0, usable[:, 0], usable[:, 1]]
            wanted = state.points[rows, frame]
            near = torch.cat([torch.cdist(some, places).argmin(1) for some in wanted.split(32)])
            pixels = last.fit.points_to_original(usable[near].flip(-1) + 0.5)
            offset = wanted - places[near]
    at = torch.full((len(rows), 1), float(frame))
    return torch.cat([at, _clamp(pixels, last.fit)], dim=-1), offset


def _offset(found: _Found, offset: Float[Tensor, "n 3"], lost: Bool[Tensor, "n"], part: Part) -> _Found:
    """Points for which another pixel stands, at their own places, and seen only where the depth there agrees."""
    if not bool(lost.any()):
        return found
    if found.points is None:
        return dataclasses.replace(found, visible=found.visible.masked_fill(lost[:, None], 0))
    points = found.points + offset[:, None]
    maps, cameras = world_points(part.prediction), part.prediction.cameras
    if maps is None or cameras is None:
        return dataclasses.replace(found, points=points)
    pixels, z = project(points.transpose(0, 1), cameras)
    agree = _agree(pixels, z, maps[1]).T
    own = part.fit.points_to_original(pixels).transpose(0, 1)
    visible = torch.where(lost[:, None], found.visible * agree, found.visible)
    old = own if found.pixels is None else found.pixels
    return dataclasses.replace(found, points=points, visible=visible, pixels=torch.where(lost[:, None, None], own, old))


def _agree(
    pixels: Float[Tensor, "f n 2"], z: Float[Tensor, "f n"], depth: Float[Tensor, "f h w"]
) -> Bool[Tensor, "f n"]:
    """Whether a place is in the picture, at the depth that the picture has there."""
    height, width = depth.shape[-2:]
    x, y = pixels.floor().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    rows, columns = y.clamp(0, height - 1).long(), x.clamp(0, width - 1).long()
    there = depth[torch.arange(len(depth))[:, None], rows, columns]
    return inside & ((there - z).abs() <= EDGE * z)
