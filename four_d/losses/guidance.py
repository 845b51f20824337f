"""A prior of one's own, such as a picture diffusion model, on a fitted scene seen from new cameras (PAD3R, Lab4D).

The package has none: one is a `Guidance` and its config a `GuidanceSpec`, made known by `four_d.extend`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from four_d import fields
from four_d.constants import move, precise, vector
from four_d.errors import UserError
from four_d.extension import OneOf, Spec
from four_d.geometry import invert_pose, make_pose, transform
from four_d.losses.photometric import required, untouched
from four_d.losses.reduction import nothing
from four_d.losses.scene import scene_of
from four_d.losses.schedule import Weight
from four_d.losses.supervision import Need
from four_d.losses.term import LossInputs, LossSpec, LossTerm, rendered
from four_d.rendering.scene import still
from four_d.types import Cameras
from four_d.viewpoints import FOCAL, framed, view_rotation

MARGIN = 1.25
"""Factor of the distance at which the Gaussians' middles fill a picture as pose networks see them: they have widths."""


@dataclass(frozen=True, kw_only=True)
class GuidedViews:
    """Renders of a scene's object from n cameras that the video does not have, and what the video shows.

    Poses are object_from_camera, in the object's own axes (x right, y down, z forward) and unit (radius 1).
    """

    colour: Float[Tensor, "n 3 h w"]
    """Over black, with a path to the scene; over other colours c it is colour + (1 − alpha) · c."""
    alpha: Float[Tensor, "n h w"]
    azimuths: Float[Tensor, "n"]
    """Radians about the object's vertical axis, 0 before its front (`viewpoints.view_rotation`)."""
    elevations: Float[Tensor, "n"]
    """Radians above the object's middle."""
    times: Float[Tensor, "n"]
    """Seconds."""
    poses: Float[Tensor, "n 4 4"]
    frames: Float[Tensor, "n 3 H W"]
    """The video's frame of each render's time."""
    masks: Float[Tensor, "n H W"] | None
    """1 where those frames show the object, else 0; None where nothing is known of it."""
    frame_poses: Float[Tensor, "n 4 4"]
    """Cameras of those frames, as they are fitted, without gradient."""
    step: int
    progress: float
    """Completed fraction of the run."""


class Guidance(nn.Module):
    """Judge of pictures: 0 or more, the lower the likelier. Its parameters are trained unless it freezes them."""

    def forward(self, views: GuidedViews) -> Float[Tensor, ""]:
        """Compute the value, with a gradient to ``views.colour`` and ``views.alpha`` (`distilled` makes one).

        What is kept of ``views`` after the call is to be detached: the scene changes its number of Gaussians.
        """
        raise NotImplementedError


@runtime_checkable
class GuidanceSpec(Spec, Protocol):
    """Config of a prior: a frozen dataclass with a ``kind``."""

    def build(self) -> Guidance:
        """Build the prior. UserError where its weights are missing."""
        ...


@dataclass(frozen=True, kw_only=True)
class NoGuidanceConfig(GuidanceSpec):
    """No prior: all pictures are alike."""

    kind: Literal["none"] = "none"

    def build(self) -> NoGuidance:
        """Build it."""
        return NoGuidance()


class NoGuidance(Guidance):
    """The prior of `NoGuidanceConfig`."""

    def forward(self, views: GuidedViews) -> Float[Tensor, ""]:
        """Give 0."""
        return nothing(views.colour, views.alpha)


GuidanceConfig = Annotated[GuidanceSpec, OneOf(NoGuidanceConfig)]
"""Config of any prior, chosen by its ``kind``."""


def distilled(pictures: Float[Tensor, "n 3 h w"], gradient: Float[Tensor, "n 3 h w"]) -> Float[Tensor, ""]:
    """Give the pictures this gradient, as score distillation does: half the squared distance from where it leads."""
    aim = (pictures - gradient).detach()
    return (pictures - aim).square().sum() / 2


@dataclass(frozen=True, kw_only=True)
class GuidanceLossConfig(LossSpec):
    """Value that a prior of one's own gives renders of a fitted scene from random cameras, at the step's times."""

    needs: ClassVar[tuple[Need, ...]] = ()
    teaches: ClassVar[tuple[str, ...]] = ("gaussians",)
    kind: Literal["guidance"] = "guidance"
    prior: GuidanceConfig = field(default_factory=NoGuidanceConfig)
    """Prior, of a kind that `four_d.extend` has made known; ``none`` gives 0."""
    weight: Weight = 0.1
    views: int = 1
    """Renders of a step."""
    size: int = 64
    """Side of the renders, in pixels."""
    azimuth: float = 180.0
    """Largest angle from the object's front, degrees."""
    elevation: float = 45.0
    """Largest angle above and below the object, degrees."""

    def __post_init__(self) -> None:
        if self.views < 1 or self.size < 1:
            raise UserError("views and size must be at least 1")
        if not (0 <= self.azimuth <= 180 and 0 <= self.elevation < 90):
            raise UserError("azimuth is from 0 to 180 degrees, and elevation from 0 to below 90")

    def build(self) -> GuidanceLoss:
        """Build the term and its prior."""
        return GuidanceLoss(self)


class GuidanceLoss(LossTerm[GuidanceLossConfig]):
    """The term of `GuidanceLossConfig`."""

    def __init__(self, config: GuidanceLossConfig) -> None:
        super().__init__(config)
        self.prior = config.prior.build()

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        """Compute the term; cameras of the video get no gradient. UserError for a model that is no scene."""
        return self.prior(self.views(inputs)) + untouched(required(inputs.prediction, self.config.kind))

    def views(self, inputs: LossInputs) -> GuidedViews:
        """Render the scene from cameras drawn anew."""
        scene, targets = scene_of(inputs.prediction, self.config.kind), inputs.targets
        gaussians, cameras, world = required(scene, self.config.kind), scene.cameras, scene.world_from_object
        assert cameras is not None
        assert world is not None
        clips, frames = self.drawn(targets.times)
        azimuths, elevations = self.angles(targets.times)
        # relative to the object, so that a change of the first camera, whose world this is, changes nothing
        times = targets.times[clips, frames]
        there = still(fields.take(gaussians, "b", clips), times[:, None])
        size = (self.config.size, self.config.size)
        poses = self.poses(there.means.detach(), world[clips].detach(), azimuths, elevations)
        focal, middle = FOCAL * size[0], size[0] / 2
        lens = vector([focal, 0, middle, 0, focal, middle, 0, 0, 1], poses).view(3, 3)
        shown = Cameras(world_from_camera=(world[clips] @ poses)[:, None], intrinsics=lens.expand(len(poses), 1, 3, 3))
        views = rendered(there, shown, times[:, None], size)
        known = targets.dynamic
        return GuidedViews(
            colour=views.colour[:, 0],
            alpha=views.alpha[:, 0],
            azimuths=azimuths,
            elevations=elevations,
            times=times,
            poses=poses,
            frames=targets.images[clips, frames],
            masks=None if known is None else known[clips, frames].to(views.alpha),
            frame_poses=(invert_pose(world[clips]) @ cameras.world_from_camera[clips, frames]).detach(),
            step=inputs.step,
            progress=inputs.progress,
        )

    def drawn(self, times: Float[Tensor, "b f"]) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        """Clip and frame of each render."""
        chosen = move(torch.randint(times.numel(), (self.config.views,)), times.device)
        return chosen // times.shape[1], chosen % times.shape[1]

    def angles(self, like: Tensor) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"]]:
        """Azimuth and elevation of each render, radians."""
        shares = 2 * move(torch.rand(2, self.config.views), like.device).to(like) - 1
        azimuths, elevations = torch.deg2rad(
            shares * vector([self.config.azimuth, self.config.elevation], like)[:, None]
        )
        return azimuths, elevations

    def poses(
        self,
        means: Float[Tensor, "v n 3"],
        world: Float[Tensor, "v 4 4"],
        azimuths: Float[Tensor, "v"],
        elevations: Float[Tensor, "v"],
    ) -> Float[Tensor, "v 4 4"]:
        """object_from_camera of cameras whose pictures the object fills."""
        turns = view_rotation(azimuths, elevations, torch.zeros_like(azimuths))
        found, kind = list[Tensor](), precise(means.device)
        for points, pose, turn in zip(means, world, turns, strict=True):
            own = transform(invert_pose(pose), points)
            found.append(invert_pose(make_pose(turn, MARGIN * framed(own.to(kind), turn.to(kind)).to(turn))))
        return torch.stack(found)
