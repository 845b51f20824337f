"""2D displacement of a scene between two frames, rendered in the first, against that of 2D tracks.

Lab4D's flow term (lab4d-org/lab4d, `projects/diffgs`, by one of PAD3R's authors; frame gaps 2, 4 and 8): each Gaussian
has the displacement of its projection as its value, which is composited as a colour is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from four_d import fields
from four_d.constants import also_kept, move, vector
from four_d.errors import UserError
from four_d.geometry import NEAREST, project
from four_d.losses.photometric import required, untouched
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need
from four_d.losses.term import LossInputs, LossSpec, rendered
from four_d.losses.tracked_pixels import LEAST_ALPHA, SEEN, TracksTerm, entries, huber, smallest
from four_d.rendering.scene import means_at, still
from four_d.types import Cameras, Gaussians, map_tensors


@dataclass(frozen=True, kw_only=True)
class RenderedFlowLossConfig(LossSpec):
    """Distance between rendered displacements of a frame's pixels to another frame and those of the tracks there.

    A step's frames are paired where they are ``gaps`` apart. Displacements are in units of the image's longer side, and
    read between pixels, of what the object covers alone. Dense 2D motion is given as tracks that are visible in two
    frames.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    teaches: ClassVar[tuple[str, ...]] = ("gaussians", "cameras")
    kind: Literal["rendered_flow"] = "rendered_flow"
    file: str
    """NPZ with ``times`` t (s), ``pixels`` n t 2 (x, y, of images of the run's size) and ``visible`` n t (0 to 1)."""
    weight: Weight = 0.2
    gaps: tuple[int, ...] = (2, 4, 8)
    """Numbers of frames between the two of a pair, in either direction (Lab4D's)."""
    pairs: int = 2
    """Pairs of a clip at most, drawn anew at every step: each is one more render."""
    huber: float = 0.02
    """Distance beyond which errors count linearly, in units of the longer side."""
    trim: float = 0.98
    """Share of the errors that counts, the smallest."""

    def __post_init__(self) -> None:
        if not self.gaps or min(self.gaps) < 1 or self.pairs < 1:
            raise UserError("gaps are numbers of frames, at least one and each 1 or more; pairs is at least 1")
        if not 0 < self.trim <= 1 or self.huber <= 0:
            raise UserError("trim is a share above 0 and up to 1, and huber positive")

    def build(self) -> RenderedFlowLoss:
        """Build the term. UserError where the file cannot be used."""
        return RenderedFlowLoss(self)


class RenderedFlowLoss(TracksTerm[RenderedFlowLossConfig]):
    """The term of `RenderedFlowLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term: 0 for a step without such pairs. UserError without Gaussians or cameras, or for frames
        that the tracks do not have.
        """
        prediction, targets = inputs.prediction, inputs.targets
        gaussians, cameras = required(prediction, self.config.kind), self.cameras(prediction)
        size = (targets.images.shape[-2], targets.images.shape[-1])
        values = list[Tensor]()
        for index in range(len(targets.times)):
            own = slice(index, index + 1)
            alone = map_tensors(cameras, lambda tensor, own=own: tensor[own])
            times = also_kept(targets.times, lambda each, index=index: each[index])
            values.append(self.of_clip(fields.take(gaussians, "b", own), alone, times, size))
        return torch.stack(values).mean() + untouched(gaussians)

    def of_clip(
        self, gaussians: Gaussians, cameras: Cameras, times: Float[Tensor, "f"], size: tuple[int, int]
    ) -> Float[Tensor, ""]:
        """Value of one clip, over all tracks of the pairs that are drawn; 0 where no track is in a pair's frames."""
        frames = entries(self.times, times, self.config.file)
        pairs = self.drawn(frames)
        if not len(pairs):
            return gaussians.means.new_zeros(())
        device = gaussians.means.device
        shown, alpha = displacements(gaussians, cameras, times, move(pairs, device), size)
        first, second = frames[pairs].unbind(-1)
        at, to = (move(self.pixels[:, each].movedim(1, 0), device).to(shown) for each in (first, second))
        seen = move(self.visible[:, first].minimum(self.visible[:, second]).mT, device).to(shown)
        moved, covered = read(shown, alpha, at)
        counts = covered & (seen > SEEN)
        away = moved - (to - at) / max(size)
        squares = torch.where(counts[..., None], away, 1).square().sum(-1)
        errors = huber(squares, self.config.huber)
        weights = torch.where(counts & smallest(errors, counts, self.config.trim), seen, 0)
        return (weights * torch.where(counts, errors, 0)).sum() / weights.sum().clamp_min(1e-9)

    def drawn(self, frames: Int[Tensor, "f"]) -> Int[Tensor, "p 2"]:
        """Pairs of a clip's frames, by their place in it, that are as far apart as configured; on the host."""
        apart = (frames[:, None] - frames).abs()
        found = torch.isin(apart, torch.tensor(self.config.gaps)).nonzero()
        return found[torch.randperm(len(found))[: self.config.pairs]]


def displacements(
    gaussians: Gaussians, cameras: Cameras, times: Float[Tensor, "f"], pairs: Int[Tensor, "p 2"], size: tuple[int, int]
) -> tuple[Float[Tensor, "p 2 h w"], Float[Tensor, "p h w"]]:
    """Render how far the Gaussians' projections move from each pair's first frame to its second.

    Displacements are in units of the longer side of ``size`` (rows, columns), weighed by alpha, which comes with them.
    A Gaussian that is behind the second camera is left out.
    """
    places = means_at(gaussians, times[None])[0]
    pixels, depth = project(places[None], cameras)
    first, second = pairs.unbind(-1)
    before = (depth[0] > NEAREST)[first] & (depth[0] > NEAREST)[second]
    moved = torch.where(before[..., None], pixels[0, second] - pixels[0, first], 0) / max(size)
    there = still(gaussians, times[None, first])
    there = replace(there, opacities=torch.where(before, there.opacities, 0))
    camera = map_tensors(cameras, lambda tensor: tensor[0, first][:, None])
    views = rendered(there, camera, times[first][:, None], size, features=moved)
    assert views.features is not None
    return views.features[:, 0], views.alpha[:, 0]


def read(
    shown: Float[Tensor, "p 2 h w"], alpha: Float[Tensor, "p h w"], pixels: Float[Tensor, "p n 2"]
) -> tuple[Float[Tensor, "p n 2"], Bool[Tensor, "p n"]]:
    """Displacements at pixels (x, y), between the four nearest by what each shows, and which are covered.

    Outside the image nothing is.
    """
    rows, columns = alpha.shape[-2:]
    places = 2 * pixels / vector([columns, rows], pixels) - 1
    both = torch.cat([shown, alpha[:, None]], dim=1)
    found = functional.grid_sample(both, places[:, None], align_corners=False, padding_mode="zeros")[:, :, 0].mT
    cover = found[..., 2]
    covered = cover > LEAST_ALPHA
    return found[..., :2] / torch.where(covered, cover, 1)[..., None], covered
