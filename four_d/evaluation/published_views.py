"""Scores of held-out views and hand-marked keypoints of published sets, from Gaussians as ``four-d infer`` makes them.

A model that takes cameras is given the set's. The Gaussians of a model that predicts cameras are aligned to the set's,
all windows together, by the poses of both (`align.by_poses`). The baseline ``copy`` takes the frame of the video
nearest in time and, among equals, that of the nearest camera.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from four_d import fields
from four_d.abilities import Hint, Model
from four_d.datasets.sequence import Keypoints, Sequence, ViewTruth
from four_d.errors import UserError
from four_d.evaluation.novel import nearest_frames, render_views, size_of
from four_d.evaluation.published_result import Row, Skip, means
from four_d.evaluation.result import COPY
from four_d.evaluation.runs import RunInputs, preparation
from four_d.geometry import Similarity, resize
from four_d.metrics.depth import resize_nearest
from four_d.metrics.keypoints import pck_of_video
from four_d.metrics.renders import score_renders
from four_d.similarity import LPIPS
from four_d.tracking import PointTracks
from four_d.types import Cameras, Clip, Segment, Views, map_tensors, segment_at
from four_d.windows.align import by_poses, depth_ratio
from four_d.windows.clips import ClipOutputs, ClipSource
from four_d.windows.cut import Cut
from four_d.windows.sliding import Sliding

GIVEN: tuple[Hint, ...] = ("intrinsics", "poses")
"""Hints of the set's cameras for a model that takes them."""
Scores = dict[str, float]
STANDS = 0.02
"""Minimum camera motion, as a fraction of the scene's distance, from which a model's scale can be estimated."""
Shown = Callable[[np.ndarray, tuple[float, ...]], Clip]
Follow = Callable[[Float[Tensor, "n 3"]], PointTracks]
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """Windows of a video, and the device and LPIPS network for its renders."""

    window: Cut | None = None
    """Windows; None: those of ``four-d infer``."""
    lpips: LPIPS | None = None
    device: str = "cpu"


def check_views(model: Model) -> None:
    """Raise UserError for a model that gives no Gaussians."""
    if not model.abilities.gives_gaussians:
        raise UserError(
            "this model makes no Gaussians (it has no gaussian head), so it shows nothing from other cameras; take one "
            "of configs/dgs_lrm.yaml or configs/unified.yaml"
        )


def score_views(model: Model, sequence: Sequence, settings: ViewSettings, shown: Shown) -> Row:
    """Scores of one video; the row ``lacks`` keypoints that could not be tracked.

    Args:
        model: accepted by `check_views`.
        sequence: has held-out views.
        settings: windows, device and LPIPS network.
        shown: from images (f h w 3) and times to an unbatched clip at the size of the model's input.

    Raises:
        UserError: cameras or depth that the model needs and the set lacks, damaged files, and errors of model and
            renderer.
        Skip: nothing to score: the model gives no Gaussians, or their unit of length cannot be determined.

    """
    assert sequence.views is not None
    marked = None if sequence.keypoints is None else sequence.keypoints()
    truth, pictures = sequence.views(), sequence.images()
    clip = _posed(sequence, shown(pictures, sequence.times), (pictures.shape[1], pictures.shape[2]))
    depth = depth_seen(sequence, size_of(clip), bounded=model.abilities.normalisation == "disparity")
    clip = dataclasses.replace(clip, depth=depth, valid=None if depth is None else depth > 0)
    source = ClipSource(model=model, clip=clip, prepare=preparation(_inputs(model, settings)))
    cut = settings.window or Cut.of(model.abilities.trained_frames or 0, model.abilities.frames)
    sliding = Sliding(source, cut, model.abilities, tracks=False)
    whole = sliding.collect()
    segments = placed(sliding.segments(), whole, clip)
    views = [_one(truth, index) for index in range(len(truth.times))]
    rows: list[Scores] = []
    for view in views:
        gaussians = segment_at(segments, float(view.times)).gaussians
        rows.append(_score(render_views(gaussians, view, settings.device), view, settings))
    follow = partial(sliding.through, whole.prediction)
    carried, lacks = ({}, None) if marked is None else _carried(follow, source.size(), marked, pictures.shape[1:3])
    return Row(
        sequence=sequence.name,
        task="views",
        frames=sequence.frames,
        scores=means((row, 1.0) for row in rows) | carried,
        baselines={COPY: means((row, 1.0) for row in _copied(sequence, pictures, truth, settings))},
        lacks=lacks,
    )


def placed(segments: Several[Segment], whole: ClipOutputs, clip: Clip) -> list[Segment]:
    """Gaussians of a clip in the world of its cameras.

    Raises:
        Skip: there are none, or nothing says how long the lengths of a model that predicts cameras are.

    """
    assert clip.cameras is not None
    if not segments:
        raise Skip("this model makes no Gaussians")
    true, cameras = clip.cameras.world_from_camera, whole.prediction.cameras
    if whole.origin is not None:
        move = Similarity.of_pose(whole.origin)
    elif cameras is None:
        move = Similarity.of_pose(true[0], whole.unit)
    else:
        depth, first = whole.prediction.depth, cameras.world_from_camera[0, :3, 3]
        distance = float((segments[0].gaussians.means - first).norm(dim=-1).median())
        ratio = None if depth is None or clip.depth is None else depth_ratio(depth, clip.depth, clip.valid)
        fitted = by_poses(cameras.world_from_camera, true, ratio, STANDS * distance)
        if fitted is None:
            raise Skip(
                "the cameras hardly move, truly or by the model, and there is no depth of both: nothing says how long "
                "the lengths of this model are"
            )
        move = fitted
    return [dataclasses.replace(each, gaussians=fields.move(each.gaussians, move)) for each in segments]


def _carried(follow: Follow, size: Size, marked: Keypoints, picture: Several[int]) -> tuple[Scores, str | None]:
    """Score of keypoints, or the reason why there is none."""
    try:
        return {"pck_t": keypoints_pck(follow, size, marked, picture)}, None
    except (Skip, UserError) as reason:
        return {}, f"no pck_t: {reason}"


def _inputs(model: Model, settings: ViewSettings) -> RunInputs:
    hints: list[Hint] = [hint for hint in GIVEN if hint in model.abilities.hints]
    return RunInputs(
        normalisation=model.abilities.normalisation,
        hints=tuple(hints),
        device=settings.device,
    )


def _posed(sequence: Sequence, clip: Clip, picture: tuple[int, int]) -> Clip:
    """Unbatched clip with the sequence's cameras in pixels of the model's input."""
    if sequence.cameras is None:
        raise UserError(f"{sequence.name} has no cameras, which pictures from others need")
    cameras = sequence.cameras()
    if cameras.known is not None and not bool(cameras.known.all()):
        raise UserError(f"{sequence.name} has frames without a pose; unpack it again")
    posed = dataclasses.replace(resize(cameras, picture, size_of(clip)), known=None)
    return dataclasses.replace(clip, cameras=map_tensors(posed, lambda tensor: tensor.float()))


def depth_seen(sequence: Sequence, size: tuple[int, int], *, bounded: bool) -> Float[Tensor, "f r c"] | None:
    """Depth at the model's resolution (nearest pixel, 0 if invalid); only for the unit of length.

    Without depth: disparities evenly spaced between the depth bounds if ``bounded`` and the set has bounds, else None.
    """
    rows, columns = size
    if sequence.depth is not None:
        values, valid = (torch.from_numpy(part) for part in sequence.depth())
        return resize_nearest(values * valid, size)
    if sequence.bounds is None or not bounded:
        return None
    near, far = torch.from_numpy(sequence.bounds()).float()[:, :, None, None].unbind(1)
    share = ((torch.arange(rows * columns) + 0.5) / (rows * columns)).view(rows, columns)
    return 1 / (1 / far + share * (1 / near - 1 / far))


def _one(truth: ViewTruth, index: int) -> Clip:
    """One of the held-out views as a clip; ``valid`` marks co-visible pixels."""
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


def _score(picture: Views, view: Clip, settings: ViewSettings) -> Scores:
    return score_renders(picture, view, view.valid, settings.lpips)


def _copied(sequence: Sequence, pictures: np.ndarray, truth: ViewTruth, settings: ViewSettings) -> list[Scores]:
    """Scores of `COPY`; empty if the video's images differ in size from the held-out views."""
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


def keypoints_pck(follow: Follow, size: Size, marked: Keypoints, picture: Several[int]) -> float:
    """PCK-T of DyCheck, of keypoints tracked from each marked frame to every other.

    Args:
        follow: tracks points (frame, x, y) through Gaussians (`Sliding.through`).
        size: rows and columns of the model's input, in whose pixels the points are.
        marked: true keypoints.
        picture: rows and columns of the video.

    Raises:
        Skip: no keypoint is marked twice.
        UserError: as ``follow`` does.

    """
    height, width = picture
    scale = torch.tensor([size[1] / width, size[0] / height])
    points, visible = torch.from_numpy(marked.points).float(), torch.from_numpy(marked.visible)
    frames = torch.tensor(marked.frames)
    here, which = visible.nonzero(as_tuple=True)
    if not len(here) or not bool((visible.sum(0) > 1).any()):
        raise Skip("no keypoint is marked in two frames")
    pixels = (points[here, which] * scale).clamp(torch.zeros(2), torch.tensor([size[1], size[0]]).float())
    tracks = follow(torch.cat([frames[here, None].float(), pixels], dim=1))
    assert tracks.pixels is not None
    carried = points.new_full((len(frames), len(frames), points.shape[1], 2), torch.nan)
    carried[here, :, which] = tracks.pixels[:, frames].float() / scale
    return float(pck_of_video(carried, points, visible, (height, width)))
