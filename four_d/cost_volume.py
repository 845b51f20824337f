"""Depth of key frames' cells by plane sweep: features compared along their rays with those of other posed frames.

The cost volume of MVSplat (arXiv 2403.14627) and DepthSplat (arXiv 2410.13862): at each of some depths a cell is warped
into the other frames, and the dot products there, averaged over frames and refined, become a distribution over depths.
Warped features need never be made: the dot product with a feature interpolated between four cells is the dot product
with each of them, interpolated (as RAFT, arXiv 2003.12039, looks correlation up). What moves is not where the epipolar
line says, except in frames of the same time; so those come first, then the nearest times, and learned weights decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from four_d.constants import vector
from four_d.correlation import by_patch, pick
from four_d.errors import UserError
from four_d.geometry import invert_pose, pixel_centres, rays
from four_d.layers import full_precision
from four_d.types import Cameras, Clip, Sweep

NEAREST = 1e-4
"""Depth below which a point counts as behind a camera."""
DESCRIBED = 3
"""Numbers per cell and frame by which frames are weighted: gap in time, baseline, likeness."""
HIDDEN = 16
GAIN = 2.0
"""Initial factor on the mean of the frames' dot products."""


@dataclass(frozen=True, kw_only=True)
class CostVolumeConfig:
    """Depths and frames of a `CostVolume`."""

    hypotheses: int = 32
    """Number of depths at which cells are compared, evenly spaced in ``spacing``."""
    near: float = 0.1
    """Least depth, in the data's unit of length."""
    far: float = 10.0
    """Largest depth, in the data's unit of length."""
    spacing: Literal["inverse", "log"] = "log"
    """Space in which depths are evenly spaced: 1 / depth, in which a step is so many pixels, or its logarithm."""
    sources: int = 8
    """Most frames that a key frame is compared with: those of its own time first, then the nearest in time."""

    def __post_init__(self) -> None:
        if self.hypotheses < 3 or self.sources < 1 or not 0 < self.near < self.far:
            raise UserError(
                f"cost_volume: hypotheses {self.hypotheses}, sources {self.sources}, near {self.near:g}, far "
                f"{self.far:g}; choose at least 3 hypotheses, 1 source, and 0 < near < far"
            )

    def build(self, width: int, cells: int) -> CostVolume:
        """Build the module for tokens of ``width`` channels and patches of ``cells`` × ``cells`` cells."""
        return CostVolume(self, width, cells)


def sources_of(clip: Clip, keys: Int[Tensor, "b k"], count: int) -> Int[Tensor, "b k s"]:
    """Frames to compare each key frame with: ``count`` others, or all; by gap in time, then time, then camera."""
    rows = clip.camera_ids.argsort(dim=1, stable=True)
    rows = rows.gather(1, clip.times.gather(1, rows).argsort(dim=1, stable=True))
    gaps = (pick(clip.times, rows)[:, None] - pick(clip.times, keys)[..., None]).abs()  # b k f
    itself = rows[:, None] == keys[..., None]
    order = torch.where(itself, torch.inf, gaps).argsort(dim=-1, stable=True)
    nearest = order[..., : min(count, clip.times.shape[1] - 1)]
    return rows[:, None].expand(-1, keys.shape[1], -1).gather(2, nearest)


def sweep(
    features: Float[Tensor, "b f d y x"],
    keys: Int[Tensor, "b k"],
    sources: Int[Tensor, "b k s"],
    cameras: Cameras,
    depths: Float[Tensor, "n"],
    size: tuple[int, int],
) -> tuple[Float[Tensor, "b k s y x n"], Bool[Tensor, "b k s y x n"]]:
    """Dot product of each key frame's cells with each source frame where depths (z) put them, and masks of places seen.

    ``size`` is that of the images (rows, columns) that the cameras are of. Memory: numbers of cells squared per pair.
    """
    height, width = features.shape[-2:]
    pixels = pixel_centres(height, width, features) * vector([size[1] / width, size[0] / height], features)
    poses, intrinsics = cameras.world_from_camera.to(features), cameras.intrinsics.to(features)
    local = rays(pick(intrinsics, keys), pixels.flatten(0, 1).expand(*keys.shape, -1, -1))  # b k p 3
    source_from_key = invert_pose(pick(poses, sources)) @ pick(poses, keys)[:, :, None]
    lens = pick(intrinsics, sources)
    turned = local[:, :, None] @ (lens @ source_from_key[..., :3, :3]).mT  # b k s p 3
    shift = (lens @ source_from_key[..., :3, 3:])[..., 0]
    places = depths[:, None] * turned[..., None, :] + shift[..., None, None, :]  # b k s p n 3
    z = places[..., 2:]
    limit = vector([size[1], size[0]], features)
    where = 2 * places[..., :2] / z.clamp_min(NEAREST) / limit - 1
    seen = (z[..., 0] > NEAREST) & (where.abs() <= 1).all(-1)
    own = pick(features, keys).flatten(3).mT[:, :, None]
    products = own @ pick(features, sources).flatten(4)  # b k s p (y x)
    found = functional.grid_sample(
        products.flatten(0, 3).unflatten(1, (1, height, width)),
        where.clamp(-2, 2).flatten(0, 3)[:, :, None],
        padding_mode="border",
        align_corners=False,
    )
    similarity = found.reshape(seen.shape)
    return similarity.unflatten(3, (height, width)), seen.unflatten(3, (height, width))


class CostVolume(nn.Module):
    """Distribution over depths of key frames' cells, their mean depth, and what it adds to their tokens.

    Initially it adds nothing, and all frames count alike.
    """

    depths: Tensor

    def __init__(self, config: CostVolumeConfig, width: int, cells: int) -> None:
        super().__init__()
        self.config, self.cells = config, cells
        count = config.hypotheses
        ends = torch.tensor([config.far, config.near], dtype=torch.float64)
        ends = ends.log() if config.spacing == "log" else 1 / ends
        steps = ends[0] + (ends[1] - ends[0]) * torch.linspace(0, 1, count, dtype=torch.float64)
        depths = steps.exp() if config.spacing == "log" else 1 / steps
        self.register_buffer("depths", depths.float(), persistent=False)
        # the features' temperature is one frame's; several that agree are surer
        self.log_gain = nn.Parameter(torch.tensor(math.log(GAIN)))
        self.weigh = nn.Sequential(nn.Linear(DESCRIBED, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1))
        self.refine = nn.Sequential(
            nn.Conv2d(count, 2 * count, 3, padding=1), nn.GELU(), nn.Conv2d(2 * count, count, 3, padding=1)
        )
        self.project = nn.Linear((count + 2) * cells**2, width)
        for last in (self.weigh[-1], self.refine[-1], self.project):
            for parameter in last.parameters():
                nn.init.zeros_(parameter)

    def forward(
        self, features: Float[Tensor, "b f d y x"], clip: Clip, cameras: Cameras, keys: Int[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b k p e"], Sweep]:
        """Compute the addition and the depths; ``features`` are those of `correlation.Features`, of all frames.

        Cameras are the clip's, in the world of any of its frames. UserError if there is but one frame.
        """
        if clip.times.shape[1] < 2:
            raise UserError("the cost volume compares frames, and the clip has one; give two or more")
        with full_precision(features.device):
            sources = sources_of(clip, keys, self.config.sources)
            size = (clip.images.shape[-2], clip.images.shape[-1])
            similarity, seen = sweep(features, keys, sources, cameras, self.depths, size)
            weights = self.weights(similarity, seen, features, clip, cameras, keys, sources)
            counted = weights[..., None] * seen
            total = counted.sum(2)
            evidence = (counted * similarity).sum(2) / total.clamp_min(1e-6)  # b k y x n; 0 where no frame sees
            logits = (self.log_gain.exp() * evidence).movedim(-1, 2).flatten(0, 1)
            # from chances, which are bounded: from logits the convolutions made every cell sure of one depth
            logits = (logits + self.refine(logits.softmax(1))).unflatten(0, keys.shape).movedim(2, -1)
            chances = logits.softmax(-1)
            found = expected(chances, self.depths, self.config.spacing)
            squared = pick(features, keys).square().sum(2)
            likeness = (evidence * chances).sum(-1) / squared.clamp_min(1e-6)
            covered = (total * chances).sum(-1) / weights.sum(2)
            described = torch.cat([chances, likeness[..., None], covered[..., None]], dim=-1)
        return self.project(by_patch(described, self.cells)), found

    def weights(
        self,
        similarity: Float[Tensor, "b k s y x n"],
        seen: Bool[Tensor, "b k s y x n"],
        features: Float[Tensor, "b f d y x"],
        clip: Clip,
        cameras: Cameras,
        keys: Int[Tensor, "b k"],
        sources: Int[Tensor, "b k s"],
    ) -> Float[Tensor, "b k s y x"]:
        """Weight of each source frame for each cell, by its gap in time, its baseline, and its greatest likeness."""
        span = clip.times.amax(1) - clip.times.amin(1)
        gaps = (pick(clip.times, sources) - pick(clip.times, keys)[..., None]).abs()
        gaps = gaps / span.clamp_min(1e-6)[:, None, None]
        centres = cameras.world_from_camera[..., :3, 3].to(features)
        baselines = (pick(centres, sources) - pick(centres, keys)[:, :, None]).norm(dim=-1)
        squared = pick(features, keys).square().sum(2)[:, :, None]
        likeness = torch.where(seen, similarity, 0).amax(-1) / squared.clamp_min(1e-6)
        by_frame = torch.stack([gaps.to(features), (baselines + 1e-3).log()], dim=-1)[..., None, None, :]
        described = torch.cat([by_frame.expand(*likeness.shape, -1), likeness[..., None]], dim=-1)
        return self.weigh(described)[..., 0].clamp(-6, 6).exp()


def expected(
    chances: Float[Tensor, "*b y x n"], depths: Float[Tensor, "n"], spacing: Literal["inverse", "log"]
) -> Sweep:
    """Mean depth in the hypotheses' spacing, and the probability of the likeliest depth and its two neighbours."""
    steps = depths.log() if spacing == "log" else 1 / depths
    mean = (chances * steps).sum(-1)
    index = chances.argmax(-1, keepdim=True).clamp(1, chances.shape[-1] - 2)
    near = chances.gather(-1, index + torch.arange(-1, 2, device=chances.device))
    return Sweep(depth=mean.exp() if spacing == "log" else 1 / mean, confidence=near.sum(-1))
