"""Gaussians and cameras against 2D tracks of a video (PAD3R, arXiv 2509.25183: L_track and L_multi-track).

The paper publishes no formula. This one follows Shape of Motion (arXiv 2407.13764) and our reading of PAD3R's
ablations: each step's frames are a block, whose first frame (forward) and last (backward) are anchors in turn. Blocks
of several strides, at all places of the video, come from the sampling of frames (``data.sampling.max_stride``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol, TypeVar, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from four_d import fields
from four_d.constants import move, on_host
from four_d.errors import UserError
from four_d.geometry import NEAREST, project
from four_d.losses.photometric import required, untouched
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.rendering import contributors
from four_d.rendering.scene import means_at
from four_d.types import Cameras, Gaussians, Prediction, map_tensors, same_time

Directions = Literal["forward", "both"]
ARRAYS = ("times", "pixels", "visible")
LEAST_ALPHA = 0.5
"""Alpha below which the object does not cover a pixel, whose track then says nothing about it."""
SEEN = 0.5
"""Visibility above which a track counts."""


@dataclass(frozen=True, kw_only=True)
class TrackedPixelsLossConfig(LossSpec):
    """Distance between where a step's Gaussians carry the pixels of an anchor frame and where tracks say they go.

    A pixel's point is the mean of the Gaussians that show it in the anchor frame, by their weights there, which have no
    gradient. Distances are in units of the image's longer side.
    """

    needs: ClassVar[tuple[Need, ...]] = ()
    teaches: ClassVar[tuple[str, ...]] = ("gaussians", "cameras")
    kind: Literal["tracked_pixels"] = "tracked_pixels"
    file: str
    """NPZ with ``times`` t (s), ``pixels`` n t 2 (x, y, of images of the run's size) and ``visible`` n t (0 to 1)."""
    weight: Weight = 1.0
    directions: Directions = "both"
    """Anchors: the first frame of a step alone, or the last one too."""
    points: int = 256
    """Tracks of an anchor at most, drawn anew at every step."""
    contributors: int = 8
    """Gaussians of a pixel."""
    huber: float = 0.02
    """Distance beyond which errors count linearly, in units of the longer side."""
    trim: float = 0.98
    """Share of the errors that counts, the smallest (Shape of Motion's)."""
    fade: float = 2.0
    """Weights of frames fall as e^(−fade · |t − anchor| / the step's span)."""

    def __post_init__(self) -> None:
        if self.points < 1 or self.contributors < 1 or self.huber <= 0:
            raise UserError("points and contributors must be at least 1, and huber positive")
        if not 0 < self.trim <= 1 or self.fade < 0:
            raise UserError("trim is a share above 0 and up to 1, and fade at least 0")

    def build(self) -> TrackedPixelsLoss:
        """Build the term. UserError where the file cannot be used."""
        return TrackedPixelsLoss(self)


def read_tracks(file: Path) -> tuple[Float[Tensor, "t"], Float[Tensor, "n t 2"], Float[Tensor, "n t"]]:
    """Read times, pixels and visibility. UserError naming what is missing or does not fit."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            lacking = [name for name in ARRAYS if name not in archive]
            if lacking:
                raise UserError(f"{file} has no array {lacking[0]}; tracks are {', '.join(ARRAYS)}")
            found = [cast(NDArray[np.float32], archive[name]) for name in ARRAYS]
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read as NPZ ({error}); give tracks.npz") from error
    times, pixels, visible = (torch.from_numpy(np.asarray(each, dtype=np.float64)) for each in found)
    if pixels.shape != (*visible.shape, 2) or visible.shape[1:] != times.shape:
        raise UserError(
            f"{file}: pixels are {tuple(pixels.shape)} and visible {tuple(visible.shape)} for {len(times)} times; "
            "give n t 2 and n t of the same video"
        )
    known = pixels.isfinite().all(-1)
    return times.float(), torch.where(known[..., None], pixels, 0).float(), torch.where(known, visible, 0).float()


def entries(recorded: Float[Tensor, "t"], times: Float[Tensor, "f"], file: str) -> Int[Tensor, "f"]:
    """Entry of a file's tracks of each time, on the host as ``recorded``. UserError where there is none."""
    times = on_host(times)
    nearest = (times[:, None] - recorded).abs().argmin(-1)
    if not bool(same_time(recorded[nearest], times).all()):
        raise UserError(
            f"{file} has tracks of {float(recorded.min()):g} to {float(recorded.max()):g} s, and not those of this "
            "video's frames; give tracks of the same video"
        )
    return nearest


def huber(squares: Float[Tensor, "*b"], threshold: float) -> Float[Tensor, "*b"]:
    """Huber losses of squared distances, over the threshold: d² / 2t below it, d − t / 2 above.

    Of squares, since the root of one that is exactly 0 has no gradient.
    """
    near = squares <= threshold**2
    far = torch.where(near, threshold**2, squares).sqrt() - threshold / 2
    return torch.where(near, squares / (2 * threshold), far)


def smallest(errors: Float[Tensor, "*b"], counts: Bool[Tensor, "*b"], share: float) -> Bool[Tensor, "*b"]:
    """Mask of the errors within the smallest ``share`` of those that count; of others it says nothing."""
    if not errors.numel():
        return counts
    ordered = torch.where(counts, errors.detach(), torch.inf).flatten().sort().values
    last = (share * counts.sum()).ceil().long() - 1  # on the device
    return errors.detach() <= ordered.gather(0, last.clamp_min(0)[None])


@dataclass(frozen=True)
class Block:
    """Tracks that are seen in one frame of a clip, the anchor, through the clip's frames."""

    clip: int
    anchor: int
    """Frame of the clip."""
    starts: Float[Tensor, "p 2"]
    """Pixels in the anchor, on the host."""
    pixels: Float[Tensor, "p f 2"]
    seen: Float[Tensor, "f p"]


@runtime_checkable
class OfTracks(Protocol):
    """Config of a term that reads a file of tracks."""

    @property
    def kind(self) -> str:
        """Name of the term, for errors."""
        ...

    @property
    def file(self) -> str:
        """NPZ of `ARRAYS`."""
        ...


C = TypeVar("C", bound=OfTracks)


class TracksTerm(LossTerm[C]):
    """Term that holds a file's tracks: ``times`` t (s), ``pixels`` n t 2 (x, y) and ``visible`` n t (0 to 1).

    They stay on the host, which draws some of them in every step.
    """

    def __init__(self, config: C) -> None:
        super().__init__(config)
        self.times, self.pixels, self.visible = read_tracks(Path(config.file))

    def cameras(self, prediction: Prediction) -> Cameras:
        """Cameras of a prediction. UserError without them."""
        if prediction.cameras is None:
            raise UserError(f"the {self.config.kind} loss needs cameras; take a model that predicts them")
        return prediction.cameras


class TrackedPixelsLoss(TracksTerm[TrackedPixelsLossConfig]):
    """The term of `TrackedPixelsLossConfig`."""

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term. UserError without Gaussians or cameras, or for frames that the tracks do not have."""
        prediction, targets = inputs.prediction, inputs.targets
        gaussians, cameras = required(prediction, self.config.kind), self.cameras(prediction)
        size = (targets.images.shape[-2], targets.images.shape[-1])
        blocks = [
            block
            for clip, times in enumerate(on_host(targets.times))
            for block in self.blocks(clip, times, entries(self.times, times, self.config.file), gaussians.means.device)
        ]
        shown = self.shown(gaussians, cameras, targets.times, blocks, size)
        values = list[Tensor]()
        for clip, times in enumerate(targets.times):
            alone = map_tensors(cameras, lambda tensor, clip=clip: tensor[clip : clip + 1])
            places = means_at(fields.take(gaussians, "b", slice(clip, clip + 1)), times[None])[0]
            own = [
                self.of_block(block, places, alone, times, found, max(size))
                for block, found in zip(blocks, shown, strict=True)
                if block.clip == clip
            ]
            found, counted = (torch.stack(each) for each in zip(*own, strict=True))
            values.append((found * counted).sum() / counted.sum().clamp_min(1))
        return torch.stack(values).mean() + untouched(gaussians)

    def blocks(
        self, clip: int, times: Float[Tensor, "f"], frames: Int[Tensor, "f"], device: torch.device
    ) -> list[Block]:
        """Draw the tracks of each anchor of a clip, of those that are seen in it; times and frames are the host's."""
        order = times.argsort()
        anchors = order[:1] if self.config.directions == "forward" else order[[0, -1]]
        found = list[Block]()
        for anchor in anchors.unique().tolist():
            there = (self.visible[:, frames[anchor]] > SEEN).nonzero()[:, 0]
            there = there[torch.randperm(len(there))[: self.config.points]]
            pixels, seen = self.pixels[there][:, frames], self.visible[there][:, frames].mT.contiguous()
            sent = (move(each, device) for each in (pixels, seen))
            found.append(Block(clip, anchor, pixels[:, anchor], *sent))
        return found

    def shown(
        self,
        gaussians: Gaussians,
        cameras: Cameras,
        times: Float[Tensor, "b f"],
        blocks: Sequence[Block],
        size: tuple[int, int],
    ) -> list[tuple[Int[Tensor, "p k"], Float[Tensor, "p k"]]]:
        """Gaussians that show each block's pixels in its anchor, and their weights: of all blocks at once, since a call
        for each costs about as much as one for all.
        """
        most = max(len(block.pixels) for block in blocks)
        asked = torch.tensor([size[1] / 2, size[0] / 2]).repeat(len(blocks), 1, most, 1)
        for index, block in enumerate(blocks):
            asked[index, 0, : len(block.starts)] = block.starts
        clips = move(torch.tensor([block.clip for block in blocks]), times.device)
        anchors = move(torch.tensor([block.anchor for block in blocks]), times.device)
        found = contributors(
            fields.take(gaussians, "b", clips),
            map_tensors(cameras, lambda tensor: tensor[clips, anchors][:, None]),
            times[clips, anchors][:, None],
            move(asked, times.device),
            self.config.contributors,
            size=size,
            read_back=times.device.type == "cpu",
        )
        counts = [len(block.pixels) for block in blocks]
        return [
            (found.indices[index, 0, :count].clamp_min(0), found.weights[index, 0, :count])
            for index, count in enumerate(counts)
        ]

    def of_block(
        self,
        block: Block,
        places: Float[Tensor, "f n 3"],
        cameras: Cameras,
        times: Float[Tensor, "f"],
        shown: tuple[Int[Tensor, "p k"], Float[Tensor, "p k"]],
        side: int,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Value of the tracks seen in one frame, and 1; both 0 where there are none that the object covers."""
        members, shares = shown
        alpha = shares.sum(-1)
        covered = alpha > LEAST_ALPHA
        shares = torch.where(covered[:, None], shares / alpha.clamp_min(LEAST_ALPHA)[:, None], 0)
        carried = (places[:, members] * shares[..., None]).sum(2)  # of f p k 3
        at, depth = project(carried[None], cameras)
        away = (at[0] - block.pixels.movedim(1, 0)) / side
        counts = covered & (block.seen > SEEN) & (depth[0] > NEAREST)
        counts = counts & (torch.arange(len(times), device=counts.device) != block.anchor)[:, None]
        squares = torch.where(counts[..., None], away, 1).square().sum(-1)
        value = self.mean(huber(squares, self.config.huber), counts, block.seen, times, block.anchor)
        return value, counts.any().to(value)

    def mean(
        self,
        errors: Float[Tensor, "f p"],
        counts: Tensor,
        seen: Float[Tensor, "f p"],
        times: Float[Tensor, "f"],
        anchor: int,
    ) -> Float[Tensor, ""]:
        """Mean of the smallest errors, by visibility and nearness in time."""
        span = (times.max() - times.min()).clamp_min(1e-9)
        near = torch.exp(-self.config.fade * (times - times[anchor]).abs() / span)
        kept = counts & smallest(errors, counts, self.config.trim)
        weights = torch.where(kept, seen * near[:, None], 0)
        return (weights * torch.where(counts, errors, 0)).sum() / weights.sum().clamp_min(1e-9)
