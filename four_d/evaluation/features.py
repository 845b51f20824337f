"""FID and FVD of the renders of held-out clips: features, collected clip by clip and compared as sets."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.evaluation.result import Score
from four_d.metrics.frechet import FEWEST_FRAMES, Extractor, Kind, frechet_distance
from four_d.types import Clip, Views

FEWEST = 2
"""Minimum number of images or videos of a Fréchet distance."""
SAMPLES: dict[Kind, str] = {"fid": "images", "fvd": f"videos of {FEWEST_FRAMES} frames or more"}


class Features:
    """Features of the rendered and the real images of one predictor, by the networks that are given.

    All of a clip's views count for FID. The views of one camera in temporal order, if they are `FEWEST_FRAMES` or more,
    are a video for FVD.
    """

    def __init__(self, extractors: Sequence[Extractor] = ()) -> None:
        self._extractors: dict[Kind, Extractor] = {extractor.kind: extractor for extractor in extractors}
        self._found: dict[Kind, list[tuple[Tensor, Tensor]]] = {kind: [] for kind in self._extractors}

    def add(self, renders: Views, views: Clip) -> None:
        """Add the renders of an unbatched clip's views, and the true images."""
        videos = videos_of(views)
        for kind, extractor in self._extractors.items():
            if kind == "fid":
                pair = extractor.images(renders.colour), extractor.images(views.images)
            elif videos:
                pair = _of_videos(extractor, renders.colour, videos), _of_videos(extractor, views.images, videos)
            else:
                continue
            self._found[kind].append(pair)

    def scores(self, videos: int) -> dict[str, Score]:
        """Distances by `Kind`, of at least `FEWEST` samples each; ``videos`` is the number of those evaluated."""
        found: dict[str, Score] = {}
        for kind, pairs in self._found.items():
            if self._count(kind) >= FEWEST:
                rendered, real = (torch.cat(each) for each in zip(*pairs, strict=True))
                distance = frechet_distance(rendered, real)
                excluded = videos - len(pairs)
                found[kind] = Score(mean=distance, standard_error=None, videos=len(pairs), excluded=excluded)
        return found

    def note(self) -> str:
        """Number of samples and network of each figure, or the reason why there is none."""
        if not self._extractors:
            return "FID, FVD: not computed, no network given"
        return "; ".join(self._told(kind) for kind in SAMPLES)

    def _told(self, kind: Kind) -> str:
        name = kind.upper()
        if kind not in self._extractors:
            return f"{name}: not computed, no network given"
        counted = f"{self._count(kind)} {SAMPLES[kind]}"
        if self._count(kind) < FEWEST:
            return f"{name}: not computed, {counted}, and it needs {FEWEST}"
        return f"{name} of {counted} by network {self._extractors[kind].digest}"

    def _count(self, kind: Kind) -> int:
        return sum(len(rendered) for rendered, _ in self._found[kind])


def videos_of(views: Clip) -> list[Int[Tensor, "_"]]:
    """Indices of the views of each camera in temporal order, where they are enough for FVD."""
    found: list[Tensor] = []
    for camera in views.camera_ids.unique():
        own = (views.camera_ids == camera).nonzero()[:, 0]
        if len(own) >= FEWEST_FRAMES:
            found.append(own[views.times[own].argsort(stable=True)])
    return found


def _of_videos(
    extractor: Extractor, images: Float[Tensor, "v 3 h w"], videos: Sequence[Int[Tensor, "_"]]
) -> Float[Tensor, "n d"]:
    return torch.cat([extractor.video(images[own]) for own in videos])
