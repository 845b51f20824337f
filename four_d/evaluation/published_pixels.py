"""Scores of points followed in the image under TAP-Vid's protocol (`metrics.pixel_tracks` has the definitions).

A track head's pixels count where a model has one, else the pixels of 3D tracks through dense motion or Gaussians, as
``four-d infer --points`` gives both. Beside the model stands ``static_pixels``: each point stays at its pixel, visible.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.abilities import Model
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.evaluation.published_result import Row
from four_d.metrics.pixel_tracks import tapvid
from four_d.types import LIKELY, Clip
from four_d.windows.clips import ClipSource, as_given
from four_d.windows.cut import Cut
from four_d.windows.sliding import Sliding

Tracks = tuple[Float[Tensor, "n t 2"], Bool[Tensor, "n t"]]
"""Fractions of the image's width and height, and visibility."""


def check_follows(model: Model) -> None:
    """Raise UserError for a model that follows no points."""
    if not (model.abilities.follows or model.abilities.gives_gaussians):
        raise UserError(
            "this model follows no points (it has no track head, no motion and no Gaussians); take one that does"
        )


def score_pixel_tracks(
    model: Model,
    sequence: Sequence,
    *,
    name: str,
    window: Cut | None,
    device: str,
    shown: Callable[[np.ndarray, tuple[float, ...]], Clip],
) -> Row:
    """Scores of one video.

    Args:
        model: accepted by `check_follows`.
        sequence: has pixel tracks.
        name: last word of the scores' names.
        window: windows in which the model sees the video; None: all in one pass.
        device: device of the model.
        shown: from images (f h w 3) and times to an unbatched clip at the size of the model's input.

    """
    assert sequence.pixel_tracks is not None
    stored = sequence.pixel_tracks()
    clip = shown(sequence.images(), sequence.times)
    sides = torch.tensor([clip.images.shape[-1], clip.images.shape[-2]], dtype=torch.float64)
    queries = torch.from_numpy(stored.queries)
    queries = torch.cat([queries[:, :1], queries[:, 1:] * sides], dim=1).float()
    mine = _follow(model, clip, queries, window, device, sequence.name)
    still = torch.from_numpy(stored.queries[:, None, 1:]).expand(-1, sequence.frames, -1)
    truth = tuple(torch.from_numpy(part) for part in (stored.points, stored.visible, stored.counted))
    rows = {
        who: vars(tapvid(points, visible, *truth))
        for who, (points, visible) in {
            "model": mine,
            "static_pixels": (still, torch.ones(still.shape[:2], dtype=torch.bool)),
        }.items()
    }
    words = {"jaccard": "aj", "within": "apd", "occlusion": "oa"}
    named = {who: {f"{words[key]}_{name}": value for key, value in row.items()} for who, row in rows.items()}
    return Row(
        sequence=sequence.name,
        task="pixel_tracks",
        frames=sequence.frames,
        scores=named["model"],
        baselines={"static_pixels": named["static_pixels"]},
    )


def _follow(
    model: Model, clip: Clip, queries: Float[Tensor, "n 3"], window: Cut | None, device: str, name: str
) -> Tracks:
    chosen = model.without("gaussians") if model.abilities.follows else model
    source = ClipSource(model=chosen, clip=clip, prepare=as_given(device), queries=queries, name=name)
    sliding = Sliding(source, window or Cut(frames=len(clip.times), overlap=1), chosen.abilities)
    prediction, tracks = sliding.followed(sliding.collect().prediction)
    if prediction.pixel_tracks is not None:
        pixels, visible = prediction.pixel_tracks.transpose(0, 1), prediction.pixel_tracks_visible
        seen = torch.ones(pixels.shape[:2]) if visible is None else visible.T
    elif tracks is not None and tracks.pixels is not None:
        pixels, seen = tracks.pixels, tracks.visible
    else:
        raise UserError("the model predicts no cameras, through which its tracks would be pixels; take another")
    return pixels.double() / torch.tensor([clip.images.shape[-1], clip.images.shape[-2]]), seen > LIKELY
