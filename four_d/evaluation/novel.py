"""Novel views of held-out clips: their choice among the frames that are no inputs, renders and scores."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d import fields
from four_d.evaluation.features import Features
from four_d.metrics.renders import score_renders
from four_d.rendering import render
from four_d.similarity import LPIPS
from four_d.types import Cameras, Clip, Gaussians, Segment, Views, map_tensors, same_time, segment_at

FAR = 1e6
"""Distance of a camera of unknown pose: farther than any known camera, nearer than one of another time."""


def novel_frames(times: Sequence[float], chosen: Sequence[int]) -> list[int]:
    """Other frames of a clip within the time span of ``chosen``, of any camera."""
    spanned = np.asarray(times)[list(chosen)]
    inside = (np.asarray(times) >= spanned.min()) & (np.asarray(times) <= spanned.max())
    return [int(index) for index in np.flatnonzero(inside) if int(index) not in set(chosen)]


def novel_scores(
    segments: Sequence[Segment],
    clip: Clip,
    scale: float = 1.0,
    lpips: LPIPS | None = None,
    device: torch.device | None = None,
    features: Features | None = None,
) -> dict[str, float]:
    """Scores of an unbatched clip's ``views`` (`score_renders`), and of those from the input's cameras.

    Each view is rendered from the segment of Gaussians at its time, on ``device`` (None: that of the Gaussians), after
    multiplying their lengths by ``scale``. ``lpips`` is a network with loaded weights on the CPU, where scores are
    computed. ``features`` collects those of the renders, for figures of all clips together.

    ``render_psnr`` … are over all views, ``render_novel_time_psnr`` … over views of input cameras at other times.
    Views of unknown cameras do not count; without any others nothing is scored.
    """
    views = _known(clip.views)
    if views is None or views.cameras is None:
        return {}
    renders = _renders(segments, views, scale, device)
    scores = score_renders(renders, views, lpips=lpips)
    seen = torch.isin(views.camera_ids, clip.camera_ids)
    if bool(seen.any()) and not bool(seen.all()):
        some = fields.take(renders, "v", seen), fields.take(views, "f", seen)
        scores |= score_renders(*some, lpips=lpips, prefix="render_novel_time_")
    if features is not None:
        features.add(renders, views)
    return scores


def copy_scores(clip: Clip, lpips: LPIPS | None = None, features: Features | None = None) -> dict[str, float]:
    """Scores of the nearest input frames (`copies`) as renders of an unbatched clip's ``views``; as `novel_scores`."""
    views = _known(clip.views)
    if views is None:
        return {}
    copied = copies(clip, views)
    if features is not None:
        features.add(copied, views)
    return score_renders(copied, views, lpips=lpips)


def _known(views: Clip | None) -> Clip | None:
    """Views of known cameras; None without any."""
    if views is None or views.cameras is None or views.cameras.known is None:
        return views
    known = views.cameras.known.nonzero()[:, 0]
    return fields.take(views, "f", known) if len(known) else None


def _renders(segments: Sequence[Segment], views: Clip, scale: float, device: torch.device | None) -> Views:
    chosen = [segment_at(segments, time) for time in views.times.tolist()]
    parts: list[Views] = []
    order: list[int] = []
    for segment in segments:
        rows = [row for row, other in enumerate(chosen) if other is segment]
        if rows:
            sized = fields.scale(segment.gaussians, scale)
            parts.append(render_views(sized, fields.take(views, "f", rows), device))
            order += rows
    return fields.take(fields.join(parts, "v"), "v", torch.tensor(order).argsort())


def render_views(gaussians: Gaussians, views: Clip, device: torch.device | str | None = None) -> Views:
    """Render unbatched Gaussians for the cameras and times of views on ``device`` (None: theirs); result on the CPU."""
    assert views.cameras is not None
    plain = Cameras(world_from_camera=views.cameras.world_from_camera, intrinsics=views.cameras.intrinsics)
    batch = map_tensors((gaussians, plain, views.times), lambda tensor: tensor[None].float().to(device))
    with torch.inference_mode():
        return map_tensors(render(*batch, size_of(views)), lambda tensor: tensor[0].cpu())


def size_of(clip: Clip) -> tuple[int, int]:
    """Height and width of a clip's images."""
    return clip.images.shape[-2], clip.images.shape[-1]


def copies(clip: Clip, views: Clip) -> Views:
    """Input frame nearest in time to each view; among equals, that of the nearest camera."""
    nearest = nearest_frames(clip, views)
    images = clip.images[nearest]
    ones = torch.ones_like(images[:, 0])
    return Views(colour=images, alpha=ones, depth=ones)


def nearest_frames(clip: Clip, views: Clip) -> Int[Tensor, "v"]:
    """Index of the input frame nearest in time to each view, then by camera distance; unknown cameras come last."""
    apart = (views.times[:, None] - clip.times).abs()
    if clip.cameras is None or views.cameras is None:
        return apart.argmin(1)
    away = (_centres(views.cameras)[:, None] - _centres(clip.cameras)).norm(dim=-1)
    if clip.cameras.known is not None:
        away = away.masked_fill(~clip.cameras.known, FAR)
    tied = same_time(apart, apart.amin(1, keepdim=True))
    return torch.where(tied, away, torch.inf).argmin(1)


def _centres(cameras: Cameras) -> Float[Tensor, "f 3"]:
    return cameras.world_from_camera[:, :3, 3]
