"""A scene whose dense motion is known, and a model that knows it: what tests of motion's scores are made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import roma
import torch
from torch import Tensor

from four_d import geometry
from four_d.abilities import Abilities, Model
from four_d.types import Cameras, Clip, Example, Prediction

FRAMES, HEIGHT, WIDTH = 4, 6, 8
TIMES = torch.tensor([0.0, 0.3, 0.5, 1.1])
SPEED = 0.4
"""Velocity of the left half of the picture, units per second; the right half stands still."""


def scene(seed: int = 0, scale: float = 2.0, times: Tensor = TIMES) -> Example:
    """A batch of one video; every pixel moves uniformly, in a direction of its own."""
    generator = torch.Generator().manual_seed(seed)
    depth = 1 + torch.rand(FRAMES, HEIGHT, WIDTH, generator=generator)
    turns = (0.2 * torch.randn(FRAMES, 3, generator=generator)).cumsum(0)
    centres = (0.2 * torch.randn(FRAMES, 3, generator=generator)).cumsum(0)
    intrinsics = torch.tensor([[9.0, 0, WIDTH / 2], [0, 9, HEIGHT / 2], [0, 0, 1]]).expand(FRAMES, 3, 3)
    cameras = geometry.rebase(
        Cameras(world_from_camera=geometry.make_pose(roma.rotvec_to_rotmat(turns), centres), intrinsics=intrinsics)
    )
    query_times = times.unique()
    inputs = Clip(
        images=torch.rand(1, FRAMES, 3, HEIGHT, WIDTH, generator=generator),
        times=times[None],
        camera_ids=torch.zeros(1, FRAMES, dtype=torch.long),
        query_times=query_times[None],
    )
    moved = (query_times[:, None] - times)[..., None, None, None] * velocity(seed)
    seen = torch.rand(moved.shape[:-1], generator=generator) < 0.7
    targets = dataclasses.replace(
        inputs,
        cameras=Cameras(world_from_camera=cameras.world_from_camera[None], intrinsics=intrinsics[None]),
        depth=depth[None],
        valid=torch.ones(1, FRAMES, HEIGHT, WIDTH, dtype=torch.bool),
        motion=moved[None],
        motion_valid=torch.ones(1, *moved.shape[:-1], dtype=torch.bool),
        motion_visible=seen[None],
        scale=torch.tensor([scale]),
    )
    return Example(inputs=inputs, targets=targets, key=[f"clip-{seed}"])


def velocity(seed: int) -> Tensor:
    """F h w 3, in the first frame's camera."""
    generator = torch.Generator().manual_seed(1000 + seed)
    directions = torch.randn(FRAMES, HEIGHT, WIDTH, 3, generator=generator)
    speeds = SPEED * directions / directions.norm(dim=-1, keepdim=True)
    speeds[:, :, WIDTH // 2 :] = 0
    return speeds


@dataclasses.dataclass(frozen=True)
class Oracle(Model):
    """Knows the scene; finds a clip's frames by their images. Says lengths in a unit that may depend on them."""

    example: Example
    seed: int = 0
    unit: Callable[[list[int]], float] = lambda _: 1.0
    points: bool = True
    """A point map; else depth."""
    clips: list[list[int]] = dataclasses.field(default_factory=list[list[int]])
    """The frames of every clip that it was shown."""

    @property
    def abilities(self) -> Abilities:
        """All of the scene."""
        outputs = ("cameras", "points", "depth", "motion", "motion_visible")
        return Abilities(outputs=frozenset(outputs), queried=frozenset({"motion"}))

    def __call__(self, clip: Clip) -> Prediction:
        """The truth, clip by clip of the batch."""
        return _stacked([self._one(clip, index) for index in range(len(clip.times))])

    def _one(self, clip: Clip, index: int) -> Prediction:
        truth = self.example.targets
        assert truth.cameras is not None
        assert truth.depth is not None
        assert truth.motion_visible is not None
        assert truth.query_times is not None
        frames = [self._frame(image) for image in clip.images[index]]
        self.clips.append(frames)
        unit = self.unit(frames)
        poses = truth.cameras.world_from_camera[0, frames]
        here = geometry.invert_pose(poses[:1]) @ poses
        cameras = Cameras(world_from_camera=here, intrinsics=truth.cameras.intrinsics[0, frames])
        depth = truth.depth[0, frames]
        pose = geometry.make_pose(here[:, :3, :3], here[:, :3, 3] * unit)
        said = Prediction(
            cameras=Cameras(world_from_camera=pose, intrinsics=cameras.intrinsics),
            points=geometry.unproject(depth, cameras) * unit if self.points else None,
            depth=None if self.points else depth * unit,
        )
        if clip.query_times is None:
            return said
        asked = clip.query_times[index]
        moved = (asked[:, None] - clip.times[index])[..., None, None, None] * velocity(self.seed)[frames]
        places = [int((truth.query_times[0] - time).abs().argmin()) for time in asked]
        return dataclasses.replace(
            said,
            motion=moved @ poses[0, :3, :3] * unit,
            motion_visible=truth.motion_visible[0, places][:, frames].float(),
        )

    def _frame(self, image: Tensor) -> int:
        return int((self.example.inputs.images[0] - image).abs().flatten(1).amax(-1).argmin())


def _stacked(parts: list[Prediction]) -> Prediction:
    cameras = [part.cameras for part in parts if part.cameras is not None]
    given = {
        name: torch.stack([getattr(part, name) for part in parts])
        for name in ("points", "depth", "motion", "motion_visible")
        if getattr(parts[0], name) is not None
    }
    return Prediction(
        cameras=Cameras(
            world_from_camera=torch.stack([c.world_from_camera for c in cameras]),
            intrinsics=torch.stack([c.intrinsics for c in cameras]),
        ),
        **given,
    )
