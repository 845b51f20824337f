"""Source of pictures that are rendered as they are read: one object from random cameras, with its poses as truth."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import roma
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from four_d.data.contract import ClipInfo, RawClip
from four_d.data.crops import CropRule, principal_points
from four_d.data.manifest import Contents, SampleIndex, ShardInfo
from four_d.data.remote import CacheConfig
from four_d.deformation import Bends
from four_d.errors import UserError
from four_d.fields import named
from four_d.geometry import invert_pose, make_pose, quaternion_product, rigid_part
from four_d.objects import Up, read_object
from four_d.rendering import render
from four_d.types import Cameras, Gaussians, map_tensors
from four_d.viewpoints import FOCAL, NEAREST, framed, view_rotation

KEPT = 1 << 28
"""Bytes of pictures that a reader keeps in memory, so that later passes over them cost no renders."""
OPAQUE = 0.5
"""Alpha from which a pixel shows the object."""
LONGEST, BUMPS = 0.3, 4
"""Longest side of an occluding box, in sides of the picture; number of places that a deformation moves."""
BENDS, REACH = 4, (0.3, 0.9)
"""Number of parts that are bent, and how far they reach, in radii of the object along its surface."""


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
    """Number of different pictures; the next pass shows them again, without rendering what fits into 256 MiB."""
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
    bend: float = 0.4
    """Standard deviation, in radians, of turns of parts that hang together along the surface, as limbs do. The pose is
    that of the whole object: the rigid motion that brings all points at rest nearest to their places."""
    seed: int = 0
    """Seed of all draws; validation needs another one than training."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise UserError(f"weight is {self.weight}; choose a positive number or remove the source")
        if min(self.count, self.size, self.gaussians) < 1:
            raise UserError("count, size and gaussians must be at least 1")
        names = ("azimuth", "elevation", "roll", "distance", "shift", "occluders", "deformation", "bend", "seed")
        for name in names:
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; choose 0 or more")

    def open(self, cache: CacheConfig | None = None, kept: int | None = None) -> RenderReader:  # noqa: ARG002 - as of shards
        """Read the object. UserError as in `objects.read_object`."""
        return RenderReader(self)


@dataclass(frozen=True, kw_only=True)
class _Picture:
    """Content of a `RawClip` for one picture, without the frames' axis."""

    pixels: NDArray[np.uint8]
    world_from_camera: NDArray[np.float64]
    intrinsics: NDArray[np.float64]
    depth: NDArray[np.float32]
    mask: NDArray[np.bool_]

    @property
    def bytes(self) -> int:
        """Size in memory."""
        arrays = (self.pixels, self.world_from_camera, self.intrinsics, self.depth, self.mask)
        return sum(array.nbytes for array in arrays)


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
        kind = Contents(modalities=tuple(self.samples[0].modalities), cameras=1, times=1, clips=config.count)
        self.shards = [ShardInfo(shard=name, sidecar="", clips=config.count, bytes=0, sha256="", contents=(kind,))]
        """All pictures as one shard."""
        self._kept: dict[int, _Picture] = {}

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

    def expect(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Do nothing: pictures are made when they are read."""

    @cached_property
    def _outline(self) -> Tensor:
        """Mask of the Gaussians that are seen."""
        return self.gaussians.opacities >= min(OPAQUE, float(self.gaussians.opacities.max()))

    def read(self, index: int, frames: Sequence[int] | None = None, *, rule: CropRule | None = None) -> RawClip:
        """Give a picture, repeated for every one of ``frames``, which are all 0.

        It is cropped by ``rule``. Cameras are in the object's world, depth is where the object is seen, ``dynamic`` is
        its mask. It is rendered the first time, and kept while `KEPT` lasts.
        """
        key = self.samples[index].key
        if frames is not None and any(frames):
            raise IndexError(f"{key} has frame 0 only, not {list(frames)}")
        picture = self._kept.get(index) or self._rendered(index)
        if index not in self._kept and (len(self._kept) + 1) * picture.bytes <= KEPT:
            self._kept[index] = picture
        count, size = 1 if frames is None else len(frames), self.config.size
        info = ClipInfo(
            source=self.samples[index].source,
            licence=self.config.licence,
            metric=False,
            width=size,
            height=size,
            times=[0.0] * count,
            camera_ids=[0] * count,
        )

        def repeated(array: NDArray[Any]) -> NDArray[Any]:
            return array[None].repeat(count, axis=0)  # a copy: the kept picture stays whatever its reader does

        intrinsics = repeated(picture.intrinsics)
        crop = rule and rule.at(principal_points(intrinsics, count, (size, size)), (size, size))
        return RawClip(
            key=key,
            info=info,
            images=repeated(picture.pixels if crop is None else crop.pixels(0, picture.pixels).transpose(1, 2, 0)),
            world_from_camera=repeated(picture.world_from_camera),
            intrinsics=intrinsics,
            crop=crop,
            depth=repeated(picture.depth),
            dynamic=repeated(picture.mask),
        )

    def _rendered(self, index: int) -> _Picture:
        size = self.config.size
        rng = np.random.default_rng((self.config.seed, index))
        deformed = self.deformed(rng)
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
        pixels = (picture.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
        return _Picture(
            pixels=pixels.numpy(),
            world_from_camera=pose.numpy(),
            intrinsics=lens.numpy(),
            depth=torch.where(mask, seen.depth[0, 0], 0).numpy(),
            mask=mask.numpy(),
        )

    @cached_property
    def _bends(self) -> Bends:
        return Bends.of(self.gaussians.means, REACH[1])

    def deformed(self, rng: np.random.Generator) -> Gaussians:
        """Bend parts and move the surroundings of some Gaussians smoothly, without a rigid motion of the whole."""
        means, quats = self.gaussians.means, self.gaussians.quats
        centres = means[torch.from_numpy(rng.integers(len(means), size=BUMPS))]
        steps = torch.from_numpy(rng.normal(0, self.config.deformation, (BUMPS, 3))).float()
        near = (-2 * torch.cdist(means, centres).square()).exp()  # half a radius wide
        means = means + near @ steps
        if self.config.bend:
            parts = rng.integers(len(self._bends.distances), size=BENDS).tolist()
            reaches = rng.uniform(*REACH, BENDS).tolist()
            # of a random axis, and of an angle as far as `bend` says
            turns = torch.from_numpy(rng.normal(0, 1, (BENDS, 3))).float()
            angles = torch.from_numpy(rng.normal(0, self.config.bend, (BENDS, 1))).float()
            for part, reach, turn in zip(parts, reaches, angles * functional.normalize(turns, dim=-1)):
                means, quats = self._bends.bend(means, quats, part, reach, turn)
        pose = rigid_part(self.gaussians.means, means)
        back = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(pose[:3, :3].mT))
        return replace(
            self.gaussians,
            means=(means - pose[:3, 3]) @ pose[:3, :3],
            quats=quaternion_product(back, quats),
        )

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
