"""Short snippets of videos with tracks in the world, on which V-DPM and DPM score point maps at other times.

Papers: V-DPM (arXiv 2601.09499), tables 1 and 2, and DPM (2503.16318). Their evaluation code is not public
(eldar/vdpm @5e2a57c is inference alone), and which snippets they take is not stated: ours are spread evenly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from four_d.datasets.facts import Reader
from four_d.datasets.sequence import Sequence, TrackTruth, WorldTracks
from four_d.errors import UserError
from four_d.geometry import inside, invert_pose, project, transform
from four_d.types import SAME_TIME

SNIPPETS = 10
"""Largest number of snippets of a video."""
TRACKS = 10_000
"""Largest number of queries of a snippet; of more, so many are taken at even steps."""


def read_snippets(
    root: Path, only: tuple[str, ...] | None, *, reader: Reader, frames: int, step: int, queried: int
) -> list[Sequence]:
    """List snippets of every video of one camera that has tracks, named ``VIDEO/00012`` by their first frame.

    Args:
        root: folder of the set.
        only: names of videos; None = all.
        reader: reader of the set.
        frames: number of frames of a snippet.
        step: from one of them to the next, in frames of the video.
        queried: number of the first frames whose pixels are asked for.

    """
    span = (frames - 1) * step
    found: list[Sequence] = []
    for video in reader(root, only):
        if video.world_tracks is None or video.camera_ids is not None or video.frames <= span:
            continue
        last = video.frames - 1 - span
        starts = sorted({round(start) for start in np.linspace(0, last, min(SNIPPETS, last + 1))})
        found += [_snippet(video, [start + step * at for at in range(frames)], queried) for start in starts]
    if not found:
        raise UserError(f"{root} has no video of one camera with tracks and more than {span} frames, as snippets need")
    return found


def _snippet(video: Sequence, frames: list[int], queried: int) -> Sequence:
    part = video.take(frames)
    load = video.world_tracks
    assert load is not None
    return replace(
        part,
        name=f"{video.name}/{frames[0]:05d}",
        times=tuple(time - part.times[0] for time in part.times),
        tasks=("tracks",),
        depth=None,
        world_tracks=None,
        tracks=partial(_tracks, part, load, part.times, queried),
    )


def _tracks(part: Sequence, load: Callable[[], WorldTracks], times: tuple[float, ...], queried: int) -> TrackTruth:
    """Tracks of the points that the first ``queried`` frames show, each asked for at its pixel in each of these."""
    assert part.cameras is not None
    stored, cameras = load(), part.cameras()
    if cameras.known is not None and not bool(cameras.known.all()):
        raise UserError(f"{part.name} has a frame without a pose, in whose coordinates its tracks would be")
    at = np.abs(np.subtract.outer(times, stored.times)).argmin(-1)
    if (np.abs(np.array(stored.times)[at] - times) > SAME_TIME).any():
        raise UserError(f"the tracks of {part.name} lack the time of one of its frames")
    height, width = part.images().shape[1:3]
    places = torch.from_numpy(stored.points[:, at].transpose(1, 0, 2).copy())
    known, visible = stored.known[:, at].T, stored.visible[:, at].T
    pixels, z = project(places, replace(cameras, known=None))
    seen = visible & inside(pixels, z, (height, width)).numpy()
    points = transform(invert_pose(cameras.world_from_camera), places).numpy()
    frame, track = np.nonzero(seen[:queried])
    if not len(track):
        raise UserError(f"the first frames of {part.name} show no track")
    kept = np.unique(np.linspace(0, len(track) - 1, min(TRACKS, len(track))).astype(int))
    frame, track = frame[kept], track[kept]
    asked = pixels.numpy()[frame, track]
    return TrackTruth(
        queries=np.concatenate([frame[:, None].astype(np.float64), asked], axis=1),
        points=np.where(known[:, track, None], points[:, track], 0),
        known=known[:, track],
        visible=visible[:, track],
    )
