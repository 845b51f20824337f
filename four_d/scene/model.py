"""`DeformableScene`: a model whose weights are the scene, trained on a data set of one clip (PAD3R, arXiv 2509.25183).

PAD3R publishes neither formulas nor code; where it is silent this follows its relatives (docs/pad3r.md says which).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast

import roma
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from four_d import fields
from four_d.abilities import Abilities, ModelModule, ModelSpec
from four_d.constants import also_kept, move, on_host
from four_d.deformation import DeformationConfig
from four_d.deformation.prediction import ScenePrediction
from four_d.errors import UserError
from four_d.geometry import Similarity, invert_pose, make_pose, rotate, unit_quaternions
from four_d.layers import full_precision
from four_d.scene.density import DensityConfig, chosen
from four_d.types import Cameras, Clip, Gaussians

ROWS = ("means", "quats", "log_scales", "opacity_logits", "harmonics")
"""Parameters with a row for each Gaussian."""
SMALLEST = 1e-4
"""Least standard deviation of a Gaussian, of the object's radius 1."""
LARGEST = 0.2
"""Largest one."""


@dataclass(frozen=True, kw_only=True)
class DeformableSceneConfig(ModelSpec):
    """Sizes of a scene; what it shows is in its weights (`initial_scene`, ``four-d fit``)."""

    kind: Literal["scene"] = "scene"
    frames: int
    """Frames of the video, each with a camera and a time."""
    gaussians: int
    """Gaussians at the beginning."""
    image_size: tuple[int, int]
    """Rows and columns of the frames that the cameras are for."""
    deformation: DeformationConfig = field(default_factory=DeformationConfig)
    """Control nodes and their motion."""
    density: DensityConfig | None = field(default_factory=DensityConfig)
    """None: the Gaussians stay as many as they are."""

    def __post_init__(self) -> None:
        if min(self.frames, self.gaussians, *self.image_size) < 1:
            raise UserError("frames, gaussians and image_size must be at least 1")

    @property
    def abilities(self) -> Abilities:
        """Cameras and Gaussians of the clip's times."""
        return Abilities(
            outputs=frozenset({"cameras", "gaussians"}),
            predictions=(ScenePrediction,),
            image_size=self.image_size,
            looks=False,
        )

    def build(self) -> DeformableScene:
        """Build a scene of these sizes, of which all that it shows has yet to be loaded."""
        points = torch.randn(self.gaussians, 3)
        return DeformableScene(self, points / points.norm(dim=-1).max(), torch.arange(self.frames, dtype=torch.float32))


class DeformableScene(ModelModule):
    """Gaussians of one object that control nodes move, and the camera of every frame.

    Everything is in the object's coordinates, where its radius is 1; a prediction is in the first camera's, as every
    model's. A clip's images are not looked at: its times say what to show.
    """

    times: Tensor
    poses: Tensor
    intrinsics: Tensor
    gradient_sums: Tensor
    gradient_counts: Tensor

    def __init__(self, config: DeformableSceneConfig, points: Float[Tensor, "n 3"], times: Float[Tensor, "t"]) -> None:
        super().__init__()
        self.config = config
        n, t = len(points), len(times)
        self.means = nn.Parameter(points.float().clone())
        self.quats = nn.Parameter(torch.tensor([1.0, 0, 0, 0]).repeat(n, 1))
        self.log_scales = nn.Parameter(torch.full((n, 3), -4.0))
        self.opacity_logits = nn.Parameter(torch.full((n,), 2.0))
        self.harmonics = nn.Parameter(torch.zeros(n, 1, 3))
        self.corrections = nn.Parameter(torch.zeros(t, 6))
        self.deformation = config.deformation.build(self.means, times)
        focal = 1.5 * max(config.image_size)
        middle = torch.tensor([config.image_size[1] / 2, config.image_size[0] / 2])
        lens = torch.diag(torch.tensor([focal, focal, 1.0]))
        lens[:2, 2] = middle
        pose = torch.eye(4)
        pose[2, 3] = -3.0
        self.register_buffer("times", times.float().clone())
        self.register_buffer("poses", pose.repeat(t, 1, 1))
        self.register_buffer("intrinsics", lens.repeat(t, 1, 1))
        # sums since the last change of density, which a run must resume with exactly
        self.register_buffer("gradient_sums", torch.zeros(n))
        self.register_buffer("gradient_counts", torch.zeros(n))
        self.means.register_post_accumulate_grad_hook(self._note)

    @property
    def abilities(self) -> Abilities:
        """Cameras and Gaussians of the clip's times."""
        return self.config.abilities

    def forward(self, clip: Clip) -> ScenePrediction:
        """Show the clip's times. UserError for images of another size than the cameras are for."""
        if tuple(clip.images.shape[-2:]) != self.config.image_size:
            rows, columns = self.config.image_size
            raise UserError(f"this scene's cameras are for images of {columns} × {rows}; give those of its own video")
        with full_precision(self.means.device):
            each = (also_kept(clip.times, lambda times, i=i: times[i]) for i in range(len(clip.times)))
            return fields.stack([self.at(times) for times in each])

    def at(self, times: Float[Tensor, "f"]) -> ScenePrediction:
        """Predict unbatched frames at these times (s). A camera is that of the frame of the nearest time."""
        moments = move(on_host(times).unique(), times.device)
        states = self.deformation.states(moments)
        frames = self.frames_at(times)
        poses = self.cameras(frames)
        places, turns = self.deformation(self.means, states)
        gaussians = self.gaussians()
        moved = Gaussians(
            means=gaussians.means,
            quats=gaussians.quats,
            scales=gaussians.scales,
            opacities=gaussians.opacities,
            harmonics=gaussians.harmonics,
            offsets=places - gaussians.means,
            offset_times=moments,
            turns=turns,
        )
        first = invert_pose(poses[0])
        return ScenePrediction(
            cameras=Cameras(world_from_camera=first @ poses, intrinsics=self.intrinsics[frames]),
            gaussians=fields.move(moved, Similarity.of_pose(first)),
            nodes=self.deformation.nodes,
            node_edges=self.deformation.edges,
            node_times=moments,
            node_quats=states.quats,
            node_shifts=states.shifts,
            world_from_object=first,
            camera_corrections=self.corrections[frames],
        )

    def gaussians(self) -> Gaussians:
        """Gaussians at rest, in the object's coordinates."""
        return Gaussians(
            means=self.means,
            quats=unit_quaternions(self.quats),
            scales=self.log_scales.exp().clamp(SMALLEST, LARGEST),
            opacities=self.opacity_logits.sigmoid(),
            harmonics=self.harmonics,
        )

    def frames_at(self, times: Float[Tensor, "f"]) -> Int[Tensor, "f"]:
        """Frame of the nearest time to each."""
        return (times[:, None] - self.times).abs().argmin(-1)

    def cameras(self, frames: Int[Tensor, "f"]) -> Float[Tensor, "f 4 4"]:
        """object_from_camera of these frames: the poses given at the beginning, with the learned corrections.

        A correction turns a camera about the object's middle, not about itself, which would move the object out of
        the picture; then it shifts it along its own axes.
        """
        learned = self.corrections[frames]
        turn = make_pose(roma.rotvec_to_rotmat(learned[:, :3]), torch.zeros_like(learned[:, 3:]))
        shift = make_pose(torch.eye(3, dtype=turn.dtype, device=turn.device).expand(len(turn), 3, 3), learned[:, 3:])
        return turn @ self.poses[frames] @ shift

    @torch.no_grad()
    def _note(self, means: Tensor) -> None:
        """Add a step's gradients to the sums."""
        if means.grad is None or self.config.density is None:
            return
        lengths = means.grad.norm(dim=-1).nan_to_num(0, 0, 0)
        self.gradient_sums += lengths
        self.gradient_counts += lengths > 0

    @torch.no_grad()
    def at_step(self, step: int) -> Mapping[str, Tensor]:
        """Prune and split when it is time (`DensityConfig`)."""
        density = self.config.density
        if density is None or not density.due(step):
            return {}
        means = self.gradient_sums / self.gradient_counts.clamp_min(1)
        stays, split = chosen(density, self.opacity_logits.sigmoid(), means)
        kept = stays.nonzero()[:, 0]
        former = torch.cat([kept, split])
        rows = {name: cast(nn.Parameter, getattr(self, name)) for name in ROWS}
        values = {name: parameter.data[former] for name, parameter in rows.items()}
        halves = torch.isin(former, split)
        self._separate(values, halves, density)
        for name, parameter in rows.items():
            parameter.data, parameter.grad = values[name], None
        self.deformation.follow_rows(former, halves, self.means)
        self.gradient_sums = torch.zeros(len(former), device=former.device)
        self.gradient_counts = torch.zeros(len(former), device=former.device)
        told = torch.where(halves, -1, former)
        return dict.fromkeys(ROWS, told)

    def _separate(self, values: dict[str, Tensor], halves: Tensor, density: DensityConfig) -> None:
        """Draw both halves of what is split from it, smaller."""
        spread = values["log_scales"].exp() * torch.randn(values["means"].shape).to(values["means"])
        moved = values["means"] + rotate(unit_quaternions(values["quats"]), spread)
        values["means"] = torch.where(halves[:, None], moved, values["means"])
        smaller = values["log_scales"] - torch.log(torch.tensor(density.shrink))
        values["log_scales"] = torch.where(halves[:, None], smaller, values["log_scales"])

    def fit_shapes(self, state: Mapping[str, Tensor]) -> None:
        """Take the shapes of another scene's weights."""
        for name, own in (*self.named_parameters(), *self.named_buffers()):
            given = state.get(name)
            if given is not None and given.shape != own.shape:
                own.data = torch.empty(given.shape, dtype=own.dtype, device=own.device)
