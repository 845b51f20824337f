"""Held-out pictures and hand-marked keypoints of published sets, by Gaussians of windows of their videos.

Each window is seen alone, with the set's cameras where the model takes them. A model that finds cameras itself has its
Gaussians brought to the set's by the poses that both say (`runs.laid`), window by window. Beside it stands ``copy``,
the frame of the video nearest in time, and of those the one whose camera is nearest.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Several
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from four_d.chaining import Window, chain
from four_d.data.sampling import Hint
from four_d.errors import UserError
from four_d.evaluation.abilities import gaussian_frames, hints_taken, unit_of
from four_d.evaluation.novel import nearest_frames, size_of
from four_d.evaluation.pictures import score_pictures
from four_d.evaluation.published_result import Row, Skip
from four_d.evaluation.runs import Refused, Run, RunSettings, window_of, windows
from four_d.metrics.baselines import Model
from four_d.metrics.keypoints import pck_of_video
from four_d.protocols.sequence import Keypoints, Sequence, ViewTruth
from four_d.rendering import render
from four_d.similarity import LPIPS
from four_d.types import Cameras, Clip, Views, map_tensors

COPY = "copy"
GIVEN: tuple[Hint, ...] = ("intrinsics", "poses")
"""What a model is given of the set's cameras, where it takes it."""
Scores = dict[str, float]
Shown = Callable[[np.ndarray, tuple[float, ...]], Clip]


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """How a video is cut, and what judges pictures."""

    window: tuple[int, int] | None = None
    """Frames and stride; None: as many frames as the model's head moves Gaussians to (else all), sharing one."""
    lpips: LPIPS | None = None
    device: str = "cpu"


def check_views(model: Model) -> None:
    """UserError for a model that is known to give no Gaussians."""
    if getattr(getattr(model, "model", model), "heads", None) and gaussian_frames(model) is None:
        raise UserError(
            "this model makes no Gaussians (it has no gaussian head), so it shows nothing from other cameras; take one "
            "of configs/dgs_lrm.yaml or configs/unified.yaml"
        )


def score_views(model: Model, sequence: Sequence, settings: ViewSettings, shown: Shown) -> Row:
    """The scores of one video; the row ``lacks`` keypoints that could not be followed.

    Args:
        model: one that `check_views` lets pass.
        sequence: has held-out pictures.
        settings: how it is run.
        shown: pictures f h w 3 and times to the clip that the model is given.

    Raises:
        UserError: cameras or depth that the model needs and the set has not, a video of too few frames, damaged files,
            and whatever model and renderer refuse.
        Skip: nothing to score: the model gives no Gaussians, or nothing tells how long their lengths are.

    """
    assert sequence.views is not None
    parts = list(windows(sequence.frames, *_cut(model, sequence, settings)))
    marked = None if sequence.keypoints is None else sequence.keypoints()
    truth, pictures = sequence.views(), sequence.images()
    seen = _posed(sequence, shown(pictures, sequence.times), pictures.shape[1:3])
    depth = depth_seen(sequence, size_of(seen), bounded=unit_of(model) == "disparity")
    valid = None if depth is None else depth > 0
    run = Run(key=sequence.name, clip=dataclasses.replace(seen, depth=depth, valid=valid))
    found: list[Window] = []
    rows: list[Scores] = []
    for span, mine in zip(parts, shares(run.clip.times, parts, torch.tensor(truth.times)), strict=True):
        window = _window(model, run, range(*span), settings)
        found += [] if marked is None else [window]
        rows += [_score(_picture(window, _one(truth, i), settings), _one(truth, i), settings) for i in mine]
    scores = {f"pictures_{name}": value for name, value in _means(rows).items()}
    carried, lacks = ({}, None) if marked is None else _carried(found, marked, pictures.shape[1:3])
    copied = _means(_copied(sequence, pictures, truth, settings))
    return Row(
        sequence=sequence.name,
        task="views",
        frames=sequence.frames,
        scores=scores | carried,
        baselines={COPY: {f"pictures_{name}": value for name, value in copied.items()}},
        lacks=lacks,
    )


def _window(model: Model, run: Run, frames: range, settings: ViewSettings) -> Window:
    try:
        return window_of(model, run, frames, _settings(model, settings))
    except Refused as reason:
        raise Skip(str(reason)) from None


def _carried(found: list[Window], marked: Keypoints, picture: Several[int]) -> tuple[Scores, str | None]:
    """The score of keypoints, or why there is none."""
    try:
        return {"pck_t": keypoints_pck(found, marked, picture)}, None
    except (Skip, UserError) as reason:
        return {}, f"no pck_t: {reason}"


def _settings(model: Model, settings: ViewSettings) -> RunSettings:
    taken = hints_taken(model)
    hints: list[Hint] = [hint for hint in GIVEN if taken is None or hint in taken]
    return RunSettings(
        frames=0,
        normalisation=unit_of(model),
        hints=tuple(hints),
        device=settings.device,
        own_cameras="poses" not in hints,
    )


def _cut(model: Model, sequence: Sequence, settings: ViewSettings) -> tuple[int, int]:
    """Frames and stride of windows; UserError where the model takes another number of frames."""
    moved = gaussian_frames(model)
    count = moved or sequence.frames
    frames, stride = settings.window or (count, max(count - 1, 1))
    if sequence.keypoints is not None and stride >= frames and sequence.frames > frames:
        raise UserError(
            f"window is {[frames, stride]}; keypoints are followed over frames that windows share: less stride"
        )
    if moved is not None and sequence.frames < moved:
        raise UserError(
            f"{sequence.name} has {sequence.frames} frames, and this model makes Gaussians of {moved}: leave it out "
            "(sequences), or take a model of fewer"
        )
    if moved is not None and frames != moved:
        raise UserError(f"window has {frames} frames, and this model makes Gaussians of {moved}: give that many")
    return frames, stride


def shares(times: Float[Tensor, "f"], parts: list[tuple[int, int]], asked: Float[Tensor, "v"]) -> Iterator[list[int]]:
    """Of each window the pictures whose time lies most in its middle; of equal windows the first has it."""
    inside = [torch.minimum(asked - times[first], times[last - 1] - asked) for first, last in parts]
    owner = torch.stack(inside).max(0).indices
    for index in range(len(parts)):
        yield (owner == index).nonzero()[:, 0].tolist()


def _posed(sequence: Sequence, clip: Clip, picture: Several[int]) -> Clip:
    """The clip, unbatched, with the sequence's cameras in the pixels that the model sees."""
    if sequence.cameras is None:
        raise UserError(f"{sequence.name} has no cameras, which pictures from others need")
    single = map_tensors(clip, lambda tensor: tensor[0].cpu())
    rows, columns = single.images.shape[-2:]
    cameras = sequence.cameras()
    if cameras.known is not None and not bool(cameras.known.all()):
        raise UserError(f"{sequence.name} has frames without a pose; unpack it again")
    scale = torch.tensor([columns / picture[1], rows / picture[0], 1.0], dtype=torch.float64)[:, None]
    posed = Cameras(
        world_from_camera=cameras.world_from_camera.float(), intrinsics=(scale * cameras.intrinsics).float()
    )
    return dataclasses.replace(single, cameras=posed)


def depth_seen(sequence: Sequence, size: tuple[int, int], *, bounded: bool) -> Float[Tensor, "f r c"] | None:
    """From the nearest pixel, 0 where invalid; for the unit of length only.

    ``bounded``: of a set that says only how near and far things are, disparities spread evenly in between; else None.
    """
    rows, columns = size
    if sequence.depth is not None:
        values, valid = (torch.from_numpy(part) for part in sequence.depth())
        places = [
            ((torch.arange(n) + 0.5) * m / n).long() for n, m in zip((rows, columns), values.shape[1:], strict=True)
        ]
        return (values * valid)[:, places[0]][:, :, places[1]]
    if sequence.bounds is None or not bounded:
        return None
    near, far = torch.from_numpy(sequence.bounds()).float()[:, :, None, None].unbind(1)
    share = ((torch.arange(rows * columns) + 0.5) / (rows * columns)).view(rows, columns)
    return 1 / (1 / far + share * (1 / near - 1 / far))


def _one(truth: ViewTruth, index: int) -> Clip:
    """One of the pictures; co-visible pixels stand in ``valid``."""
    cameras = Cameras(world_from_camera=truth.cameras.world_from_camera, intrinsics=truth.cameras.intrinsics)
    only = slice(index, index + 1)
    return Clip(
        images=_colours(truth.images[only]),
        times=torch.tensor(truth.times[only]),
        camera_ids=torch.tensor(truth.camera_ids[only]),
        cameras=map_tensors(cameras, lambda tensor: tensor[only].float()),
        dynamic=None if truth.dynamic is None else torch.from_numpy(truth.dynamic[only]),
        valid=None if truth.covisible is None else torch.from_numpy(truth.covisible[only]),
    )


def _colours(pictures: UInt8[np.ndarray, "v h w 3"]) -> Float[Tensor, "v 3 h w"]:
    return torch.from_numpy(pictures).movedim(-1, 1).float() / 255


def _picture(window: Window, view: Clip, settings: ViewSettings) -> Views:
    """What a window's Gaussians look like from there and then."""
    assert view.cameras is not None
    cameras = Cameras(world_from_camera=view.cameras.world_from_camera, intrinsics=view.cameras.intrinsics)
    batch = map_tensors((window.batched, cameras, view.times), lambda tensor: tensor.to(settings.device))
    where = map_tensors(batch[1:], lambda tensor: tensor[None])
    with torch.inference_mode():
        seen = render(batch[0], where[0], where[1], (view.images.shape[-2], view.images.shape[-1]))
    return map_tensors(seen, lambda tensor: tensor[0].cpu())


def _score(picture: Views, view: Clip, settings: ViewSettings) -> Scores:
    return score_pictures(picture, view, view.valid, settings.lpips)


def _copied(sequence: Sequence, pictures: np.ndarray, truth: ViewTruth, settings: ViewSettings) -> list[Scores]:
    """Scores of `COPY`, where the video's pictures are as large as those held out; else none."""
    if pictures.shape[1:3] != truth.images.shape[1:3] or sequence.cameras is None:
        return []
    times, cameras = torch.tensor(sequence.times), sequence.cameras()
    plain = Cameras(world_from_camera=cameras.world_from_camera.float(), intrinsics=cameras.intrinsics.float())
    ids = torch.zeros(len(times), dtype=torch.long)
    known = Clip(images=torch.empty(len(times), 3, 0, 0), times=times, camera_ids=ids, cameras=plain)
    rows: list[Scores] = []
    for index in range(len(truth.times)):
        view = _one(truth, index)
        colour = _colours(pictures[nearest_frames(known, view).numpy()])
        ones = torch.ones_like(colour[:, 0])
        rows.append(_score(Views(colour=colour, alpha=ones, depth=ones), view, settings))
    return rows


def _means(rows: list[Scores]) -> Scores:
    """Of each name over the pictures that have it."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: float(np.mean([row[name] for row in rows if name in row])) for name in names}


def keypoints_pck(found: list[Window], marked: Keypoints, picture: Several[int]) -> float:
    """DyCheck's PCK-T of keypoints that are carried by chaining from each marked frame to each other.

    `Skip` where none is marked twice; UserError as `chain`.
    """
    (height, width), size = picture, found[0].size
    scale = torch.tensor([size[1] / width, size[0] / height])
    points, visible = torch.from_numpy(marked.points).float(), torch.from_numpy(marked.visible)
    frames = torch.tensor(marked.frames)
    here, which = visible.nonzero(as_tuple=True)
    if not len(here) or not bool((visible.sum(0) > 1).any()):
        raise Skip("no keypoint is marked in two frames")
    pixels = (points[here, which] * scale).clamp(torch.zeros(2), torch.tensor([size[1], size[0]]).float())
    tracks = chain(found, torch.cat([frames[here, None].float(), pixels], dim=1))
    assert tracks.pixels is not None
    carried = points.new_full((len(frames), len(frames), points.shape[1], 2), torch.nan)
    carried[here, :, which] = tracks.pixels[:, frames].float() / scale
    return float(pck_of_video(carried, points, visible, (height, width)))
