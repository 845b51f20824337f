"""Variation of a model's outputs between clips and between frames.

A head with a constant output ignores the images. Its loss alone does not reveal that: the best constant is a fair
guess. An output is measured by its truth where its field declares one (`types.truth`) and the clips have it, else by
its own size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from four_d import fields
from four_d.geometry import encode_cameras, unproject
from four_d.types import Cameras, Clip, Gaussians, Prediction

LEAST_OF_TRUTH, LEAST_OF_SIZE = 0.02, 1e-3
"""Fractions, of its truth's variation or, without truth, of its own size, below which an output's variation counts as
none."""
LEAST_STEPS = 100
"""Step before which constant outputs are not reported, since heads start out constant."""
SAME_FOR = "_same_for"
"""Suffix of an output's name in the run's figures for the index that it does not depend on, "clip" or "frame"."""
CELLS = 4
"""Cells along each side of a map, by whose means maps are compared."""

Rows = dict[str, Float[Tensor, "_ _"]]
"""Output, mostly a field of `Prediction` → numbers for each frame of a clip."""


@dataclass(frozen=True, kw_only=True)
class Variation:
    """Standard deviation of an output, as a fraction of its truth's, or of its own RMS where it has no truth.

    NaN where the truth does not vary either, or there is nothing to compare.
    """

    clips: float
    """Between clips, in the same frame of each."""
    frames: float
    """Between the frames of a clip."""
    least: float
    """Variation below which the output counts as constant."""

    @property
    def same_for(self) -> str | None:
        """Index that the output does not depend on, "clip" or "frame"; None if it varies."""
        return "clip" if self.clips < self.least else "frame" if self.frames < self.least else None


def stuck(output: str, same_for: str) -> str:
    """Sentence about a constant output and its remedy."""
    where = "every clip" if same_for == "clip" else "every frame of a clip"
    return (
        f"the output {output} is the same for {where}: the head that makes it has stopped looking at the images; lower "
        "optimiser.lr, or warm up for longer (optimiser.warmup_share, optimiser.min_warmup_steps)"
    )


def rows(prediction: Prediction, targets: Clip) -> tuple[Rows, Rows]:
    """Numbers of each output for each frame, and those of its truth, where ``targets`` have it.

    Every field with numbers for each frame counts, whoever declares it, but those that only losses read or that say
    how sure another one is (`types.CERTAINTY`). The truth is what the field declares (`types.truth`); that of cameras
    and points, which takes geometry, stands here. Batches of one clip; everything on the CPU in float32.
    """
    own, true = Rows(), Rows()
    size, known = (targets.images.shape[-2], targets.images.shape[-1]), _true_cameras(targets)
    if prediction.cameras is not None:
        own |= _of_cameras(prediction.cameras, size)
        true |= {} if known is None else _of_cameras(known, size)
    if prediction.gaussians is not None and prediction.key_frames is not None:
        own["gaussians"] = _of_gaussians(prediction.gaussians, prediction.key_frames.shape[-1])
    for leaf, value in fields.leaves(prediction):
        if leaf.name.partition(".")[0] not in own and _watched(leaf, value):
            real, valid = _truth(leaf, targets)
            if real is not None and real.shape != value.shape:  # a truth of other points, or of other times
                real, valid = None, None
            counts = None if valid is None else _spread(valid, value)
            own[leaf.name] = _of_frames(leaf, value, counts)
            if real is not None:
                true[leaf.name] = _of_frames(leaf, real.to(value), counts)
    return _plain(own), _plain(true)


def _plain(found: Rows) -> Rows:
    return {name: value.detach().float().cpu() for name, value in found.items()}


def _truth(leaf: fields.Leaf, targets: Clip) -> tuple[Tensor | None, Tensor | None]:
    """Truth of an output and its validity."""
    of = DERIVED.get(leaf.name, leaf.truth)
    return (None, None) if of is None else of(targets)


def _true_cameras(targets: Clip) -> Cameras | None:
    """True cameras, where all are known."""
    cameras = targets.cameras
    return None if cameras is None or not (cameras.known is None or bool(cameras.known.all())) else cameras


def _true_points(targets: Clip) -> tuple[Tensor | None, Tensor | None]:
    cameras = _true_cameras(targets)
    points = None if cameras is None or targets.depth is None else unproject(targets.depth, cameras)
    return points, targets.valid


DERIVED: dict[str, fields.Truth] = {"points": _true_points}
"""Truths that take geometry, which the fields' declarations cannot know."""


def _of_cameras(cameras: Cameras, size: tuple[int, int]) -> Rows:
    return {
        "cameras": cameras.world_from_camera[0, :, :3].flatten(1),
        "field_of_view": encode_cameras(cameras, *size)[0, :, 7:],
    }


def _watched(leaf: fields.Leaf, value: Tensor) -> bool:
    counted = value.is_floating_point() and value.numel() > 0 and "f" in leaf.axes
    return counted and not (leaf.internal or leaf.certainty)


def _spread(valid: Tensor, value: Tensor) -> Tensor:
    """Validity, whose axes are the first of the value's, as weights of every number."""
    return valid.reshape(*valid.shape, *[1] * (value.ndim - valid.ndim)).expand_as(value).to(value)


def _of_frames(leaf: fields.Leaf, value: Tensor, counts: Tensor | None) -> Float[Tensor, "f _"]:
    """Numbers of each frame, of maps their means over cells; of several query times, the first's.

    ``counts`` are 1 where the value has truth, else 0. A number that has none in some frame is 0 in all.
    """
    weights = _by_frame(leaf, torch.ones_like(value) if counts is None else counts)
    numbers = _by_frame(leaf, value)
    if numbers.ndim > 2:
        return _cells(numbers, weights)
    return numbers * weights.amin(0)


def _by_frame(leaf: fields.Leaf, value: Tensor) -> Tensor:
    """Values as f c, of maps as f c h w."""
    query = leaf.dim("q", value)
    value = value if query is None else value.narrow(query, 0, 1)
    names = ("f", "h", "w") if {"h", "w"} <= set(leaf.axes) else ("f",)
    value = value.movedim([cast(int, leaf.dim(name, value)) for name in names], list(range(-len(names), 0)))
    return value.flatten(0, -len(names) - 1).movedim(1, 0)


def _cells(maps: Float[Tensor, "f c h w"], weights: Float[Tensor, "f c h w"]) -> Float[Tensor, "f cells"]:
    """Means of valid values over the cells of each map; a cell without any gets the frame's mean."""
    sums, counts = (functional.adaptive_avg_pool2d(each.float(), CELLS) for each in (maps * weights, weights))
    whole = sums.mean((-2, -1), keepdim=True) / counts.mean((-2, -1), keepdim=True).clamp_min(1e-9)
    return torch.where(counts > 0, sums / counts.clamp_min(1e-9), whole).flatten(1)


def _of_gaussians(gaussians: Gaussians, key_frames: int) -> Float[Tensor, "k cells"]:
    """Means of position and colour over stretches of each key frame's Gaussians."""
    each = torch.cat([gaussians.means[0], gaussians.harmonics[0, :, 0]], dim=-1).float()
    return functional.adaptive_avg_pool1d(each.unflatten(0, (key_frames, -1)).mT, CELLS * CELLS).flatten(1)


def variation(found: Sequence[Rows], true: Sequence[Rows]) -> dict[str, Variation]:
    """Variation of each output over some clips, relative to its truth's; `rows` of both for every clip."""
    result: dict[str, Variation] = {}
    for name in dict.fromkeys(name for each in found for name in each):
        own = [each[name] for each in found if name in each]
        real = [each[name] for each in true if name in each]
        if len(real) == len(own):
            deviations, whole, least = _deviations(own), _deviations(real), LEAST_OF_TRUTH
        else:
            size = math.sqrt(sum(float(each.square().sum(-1).mean()) for each in own) / len(own))
            deviations, whole, least = _deviations(own), (size, size), LEAST_OF_SIZE
        clips, frames = (a / b if b > 1e-6 else math.nan for a, b in zip(deviations, whole))
        result[name] = Variation(clips=clips, frames=frames, least=least)
    return result


def _deviations(clips: Sequence[Float[Tensor, "_ c"]]) -> tuple[float, float]:
    """Root mean square deviation between clips and between frames; NaN with less than two of them."""
    frames = min(len(each) for each in clips)
    if len({each.shape[1] for each in clips}) > 1:  # pixel tracks of different numbers of points
        return math.nan, math.nan
    together = torch.stack([each[:frames] for each in clips]).double()
    between = float(together.var(0, correction=0).sum(-1).mean().sqrt()) if len(clips) > 1 else math.nan
    within = float(together.var(1, correction=0).sum(-1).mean().sqrt()) if frames > 1 else math.nan
    return between, within
