"""Source of pictures that are rendered as they are read: one object from random cameras, with its poses as truth."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from four_d.data.contract import ClipInfo, RawClip
from four_d.data.manifest import SampleIndex
from four_d.errors import UserError
from four_d.fields import named
from four_d.geometry import invert_pose, make_pose
from four_d.objects import Up, read_object
from four_d.rendering import render
from four_d.types import Cameras, Gaussians, map_tensors
from four_d.viewpoints import FOCAL, NEAREST, framed, view_rotation

OPAQUE = 0.5
"""Alpha from which a pixel shows the object."""
LONGEST, BUMPS = 0.3, 4
"""Longest side of an occluding box, in sides of the picture; number of places that a deformation moves."""


@dataclass(frozen=True, kw_only=True)
class RendersConfig:
    """One object rendered from random cameras on random backgrounds, each picture a clip of one frame.

    The world is the object's own: centred, of radius 1 (``data.world=stored`` keeps it). Ranges: Lab4D's.
    """

    path: str
    """File of the object: a mesh (PLY, glTF, OBJ) or Gaussians (PLY, SPZ, glTF, USD)."""
    kind: Literal["renders"] = "renders"
    weight: float = 1.0
    """Share of the examples that come from here, relative to the other sources' weights; above 0. Validation reads
    every set alike."""
    licence: str = "unknown"
    """Licence of the object, which the cards of models trained on it name."""
    count: int = 10_000
    """Number of different pictures; the next pass shows them again."""
    size: int = 64
    """Rows and columns."""
    gaussians: int = 5_000
    """Maximum number of Gaussians of the object: more are sharper, and slower."""
    up: Up | None = None
    """Axis that points up in the file; null: the one usual for such files."""
    azimuth: float = 180.0
    """Range of angles around the object's vertical axis, ± degrees from its front."""
    elevation: float = 45.0
    """Range of angles above the horizon, ± degrees."""
    roll: float = 30.0
    """Range of turns about the viewing direction, ± degrees."""
    distance: float = 0.2
    """Standard deviation of the logarithm of the distance, about that at which the object fills the picture."""
    shift: float = 0.05
    """Standard deviation of the object's place, in distances from the camera."""
    occluders: int = 5
    """Maximum number of boxes of the picture's mean colour that hide parts of it."""
    deformation: float = 0.05
    """Standard deviation of smooth displacements, in radii of the object."""
    seed: int = 0
    """Seed of all draws; validation needs another one than training."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise UserError(f"weight is {self.weight}; choose a positive number or remove the source")
        if min(self.count, self.size, self.gaussians) < 1:
            raise UserError("count, size and gaussians must be at least 1")
        names = ("azimuth", "elevation", "roll", "distance", "shift", "occluders", "deformation", "seed")
        for name in names:
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; choose 0 or more")

    def open(self) -> RenderReader:
        """Read the object. UserError as in `objects.read_object`."""
        return RenderReader(self)


class RenderReader:
    """Random access to the pictures of a `RendersConfig`, each a function of its seed and number alone."""

    def __init__(self, config: RendersConfig) -> None:
        self.config = config
        self.gaussians = read_object(Path(config.path), gaussians=config.gaussians, up=config.up).gaussians
        """The object at rest, unbatched."""
        name, key = f"renders-{self._digest()[:16]}", f"{config.seed}-"
        self.samples = [
            SampleIndex(
                key=f"{key}{index:07d}",
                source="renders",
                shard=name,
                width=config.size,
                height=config.size,
                times=[0.0],
                camera_ids=[0],
                modalities=["cameras", "depth", "dynamic"],
                members={},
            )
            for index in range(config.count)
        ]
        """All pictures; ``shard`` names the object's content and all settings that pictures depend on."""

    def _digest(self) -> str:
        settings = {
            name: value for name, value in asdict(self.config).items() if name not in ("path", "weight", "licence")
        }
        digest = hashlib.sha256(repr(sorted(settings.items())).encode())
        for name, tensor in sorted(named(self.gaussians).items()):
            digest.update(name.encode() + tensor.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def _outline(self) -> Tensor:
        """Mask of the Gaussians that are seen."""
        return self.gaussians.opacities >= min(OPAQUE, float(self.gaussians.opacities.max()))

    def read(self, index: int, frames: Sequence[int] | None = None) -> RawClip:
        """Render a picture, repeated for every one of ``frames``, which are all 0.

        Cameras are in the object's world, depth is where the object is seen, ``dynamic`` is its mask.
        """
        sample, size = self.samples[index], self.config.size
        if frames is not None and any(frames):
            raise IndexError(f"{sample.key} has frame 0 only, not {list(frames)}")
        rng = np.random.default_rng((self.config.seed, index))
        deformed = self._deformed(rng)
        camera_from_object = self._pose(deformed.means[self._outline], rng)
        lens = torch.tensor([[FOCAL * size, 0, size / 2], [0, FOCAL * size, size / 2], [0, 0, 1]], dtype=torch.float64)
        pose = invert_pose(camera_from_object)
        cameras = Cameras(world_from_camera=pose.float()[None, None], intrinsics=lens.float()[None, None])
        batched = map_tensors(deformed, lambda tensor: tensor[None])
        with torch.no_grad():
            seen = render(batched, cameras, torch.zeros(1, 1), (size, size))
        alpha = seen.alpha[0, 0]
        picture = seen.colour[0, 0] + (1 - alpha) * background(size, rng)
        hidden = self._hide(picture, rng)
        mask = (alpha >= OPAQUE) & ~hidden
        count = 1 if frames is None else len(frames)
        pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
        info = ClipInfo(
            source=sample.source,
            licence=self.config.licence,
            metric=False,
            width=size,
            height=size,
            times=[0.0] * count,
            camera_ids=[0] * count,
        )
        return RawClip(
            key=sample.key,
            info=info,
            images=pixels.numpy()[None].repeat(count, axis=0),
            world_from_camera=pose.numpy()[None].repeat(count, axis=0),
            intrinsics=lens.numpy()[None].repeat(count, axis=0),
            depth=torch.where(mask, seen.depth[0, 0], 0).numpy()[None].repeat(count, axis=0),
            dynamic=mask.numpy()[None].repeat(count, axis=0),
        )

    def _deformed(self, rng: np.random.Generator) -> Gaussians:
        """Move the surroundings of some Gaussians smoothly."""
        means = self.gaussians.means
        centres = means[torch.from_numpy(rng.integers(len(means), size=BUMPS))]
        steps = torch.from_numpy(rng.normal(0, self.config.deformation, (BUMPS, 3))).float()
        near = (-2 * torch.cdist(means, centres).square()).exp()  # half a radius wide
        return replace(self.gaussians, means=means + near @ steps)

    def _pose(self, points: Float[Tensor, "n 3"], rng: np.random.Generator) -> Float[Tensor, "4 4"]:
        """Draw camera_from_object, in float64."""
        config = self.config
        limits = (config.azimuth, config.elevation, config.roll)
        angles = torch.from_numpy(rng.uniform(-1, 1, 3) * np.radians(limits))
        rotation = view_rotation(*angles)
        shift = framed(points.double(), rotation) * math.exp(config.distance * rng.normal())
        shift = shift * max(1.0, NEAREST / float(shift[2]))
        aside = torch.from_numpy(rng.normal(0, config.shift, 2)) * shift[2]
        return make_pose(rotation, torch.cat([shift[:2] + aside, shift[2:]]))

    def _hide(self, picture: Float[Tensor, "3 h w"], rng: np.random.Generator) -> Tensor:
        """Paint boxes of the mean colour onto a picture, in place; return their mask h w."""
        size = self.config.size
        hidden = torch.zeros(size, size, dtype=torch.bool)
        for _ in range(int(rng.integers(self.config.occluders + 1))):
            corner, sides = rng.integers(size, size=2), rng.uniform(0, LONGEST, 2) * size
            (y, x), (height, width) = corner, sides.round().astype(int)
            hidden[y : y + height, x : x + width] = True
        picture[:, hidden] = picture.mean((-1, -2))[:, None]
        return hidden


def background(size: int, rng: np.random.Generator) -> Float[Tensor, "3 h w"]:
    """Draw a square picture: one colour, or random colours of 2 to 16 cells a side, smooth between."""
    cells = 1 if rng.random() < 0.3 else int(rng.integers(2, 17))
    noise = torch.from_numpy(rng.random((1, 3, cells, cells))).float()
    return functional.interpolate(noise, (size, size), mode="bilinear", align_corners=False)[0]
