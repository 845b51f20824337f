"""Variation of a model's outputs between clips and between frames.

A head with a constant output ignores the images. Its loss alone does not reveal that: the best constant is a fair
guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from four_d import fields
from four_d.geometry import encode_cameras, unproject
from four_d.types import Clip, Gaussians, Prediction

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


def rows(prediction: Prediction, targets: Clip) -> Rows:
    """Numbers of each output for each frame. ``targets`` gives the image size and the validity of truth.

    Every field with numbers for each frame counts, whoever declares it, but those that only losses read or that say
    how sure another one is (`types.CERTAINTY`). Batches of one clip; everything on the CPU in float32.
    """
    found: Rows = {}
    if prediction.cameras is not None:
        found["cameras"] = prediction.cameras.world_from_camera[0, :, :3].flatten(1)
        found["field_of_view"] = encode_cameras(prediction.cameras, *targets.images.shape[-2:])[0, :, 7:]
    if prediction.gaussians is not None and prediction.key_frames is not None:
        found["gaussians"] = _means(prediction.gaussians, prediction.key_frames.shape[-1])
    valid = _validity(targets)
    for leaf, value in fields.leaves(prediction):
        if leaf.name.partition(".")[0] not in found and _watched(leaf, value):
            found[leaf.name] = _of_frames(leaf, value, valid.get(leaf.name))
    return {name: value.detach().float().cpu() for name, value in found.items()}


def truth(targets: Clip) -> Prediction:
    """Ground truth as a prediction, as far as known."""
    cameras = targets.cameras
    if cameras is not None and cameras.known is not None and not bool(cameras.known.all()):
        cameras = None
    points = None if cameras is None or targets.depth is None else unproject(targets.depth, cameras)
    motion = targets.motion if targets.motion_frames is None else None  # some frames' compares with no output
    return Prediction(cameras=cameras, depth=targets.depth, points=points, motion=motion)


def _validity(targets: Clip) -> dict[str, Bool[Tensor, "f h w"]]:
    """Validity of each dense field of `truth`; of motion that of the first query time."""
    found: dict[str, Tensor] = {}
    if targets.valid is not None:
        found |= {"depth": targets.valid[0], "points": targets.valid[0]}
    if targets.motion_valid is not None and targets.motion_frames is None and targets.motion_valid.shape[1]:
        found["motion"] = targets.motion_valid[0, 0]
    return found


def _watched(leaf: fields.Leaf, value: Tensor) -> bool:
    counted = value.is_floating_point() and value.numel() > 0 and "f" in leaf.axes
    return counted and not (leaf.internal or leaf.certainty)


def _of_frames(leaf: fields.Leaf, value: Tensor, valid: Bool[Tensor, "f h w"] | None) -> Float[Tensor, "f _"]:
    """Numbers of each frame, of maps their means over cells; of several query times, the first's."""
    query = leaf.dim("q", value)
    value = value if query is None else value.narrow(query, 0, 1)
    names = ("f", "h", "w") if {"h", "w"} <= set(leaf.axes) else ("f",)
    value = value.movedim([cast(int, leaf.dim(name, value)) for name in names], list(range(-len(names), 0)))
    value = value.flatten(0, -len(names) - 1).movedim(1, 0)
    return value.flatten(1) if len(names) == 1 else _cells(value, valid)


def _cells(maps: Float[Tensor, "f c h w"], valid: Bool[Tensor, "f h w"] | None) -> Float[Tensor, "f cells"]:
    """Means of valid values over the cells of each map; a cell without any gets the frame's mean."""
    weights = torch.ones_like(maps[:, :1]) if valid is None else valid[:, None].to(maps.dtype)
    sums, counts = (functional.adaptive_avg_pool2d(each.float(), CELLS) for each in (maps * weights, weights))
    whole = sums.mean((-2, -1), keepdim=True) / counts.mean((-2, -1), keepdim=True).clamp_min(1e-9)
    return torch.where(counts > 0, sums / counts.clamp_min(1e-9), whole).flatten(1)


def _means(gaussians: Gaussians, key_frames: int) -> Float[Tensor, "k cells"]:
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
