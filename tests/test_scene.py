"""A scene as a model: what it predicts, how it is trained, split, stored and resumed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import roma
import torch
from PIL import Image

from four_d import checkpoints, fields
from four_d.deformation import DeformationConfig
from four_d.deformation.prediction import ScenePrediction
from four_d.errors import UserError
from four_d.fitting import FitRequest, fit
from four_d.formats.splats import write_ply
from four_d.geometry import invert_pose, make_pose, project
from four_d.losses.reconstruction import ReconstructionLossConfig
from four_d.losses.scene import CameraPriorLossConfig, RigidityLossConfig
from four_d.losses.siren_pose import SirenPoseLossConfig
from four_d.losses.term import LossInputs
from four_d.losses.tracked_pixels import TrackedPixelsLossConfig, huber
from four_d.rendering import render
from four_d.rendering.harmonics import constant
from four_d.rendering.scene import means_at
from four_d.scene import DeformableScene, DeformableSceneConfig, DensityConfig, initial_scene
from four_d.scene.density import chosen
from four_d.training.record import read_metrics
from four_d.types import Cameras, Clip, Gaussians, Prediction
from tests.training.runs import crash

FRAMES, SIZE = 6, 32
TIMES = torch.arange(FRAMES) / 10


def thing(count: int = 300) -> Gaussians:
    """A coloured ellipsoid of radius 1."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(count, 3, generator=generator)
    points = points / points.norm(dim=-1, keepdim=True) * torch.tensor([1.0, 0.5, 0.4])
    return Gaussians(
        means=points,
        quats=torch.tensor([1.0, 0, 0, 0]).repeat(count, 1),
        scales=torch.full((count, 3), 0.08),
        opacities=torch.full((count,), 0.9),
        harmonics=constant(0.5 + 0.4 * torch.sin(4 * points + torch.tensor([0.0, 2, 4]))),
    )


def cameras() -> Cameras:
    """Cameras on an arc about the object."""
    angles = torch.linspace(-0.5, 0.5, FRAMES)
    zero, one = torch.zeros_like(angles), torch.ones_like(angles)
    rotation = torch.stack(
        [angles.cos(), zero, angles.sin(), zero, one, zero, -angles.sin(), zero, angles.cos()], dim=-1
    ).view(-1, 3, 3)
    lens = torch.tensor([[40.0, 0, 16], [0, 40, 16], [0, 0, 1]])
    return Cameras(
        world_from_camera=make_pose(rotation, rotation @ torch.tensor([0.0, 0, -3])),
        intrinsics=lens.repeat(FRAMES, 1, 1),
    )


def config(**settings: object) -> DeformableSceneConfig:
    given = {"deformation": DeformationConfig(nodes=12, bound=3), "density": None, **settings}
    return DeformableSceneConfig(frames=FRAMES, gaussians=300, image_size=(SIZE, SIZE), **given)  # pyright: ignore[reportArgumentType]


def scene(**settings: object) -> DeformableScene:
    seen = cameras()
    return initial_scene(config(**settings), thing(), TIMES, seen.world_from_camera, seen.intrinsics)


def pictures(bent: bool = False) -> Clip:
    """The object's own frames: what a scene of it shows that has not been trained, or that waves."""
    made = scene()
    if bent:
        wave(made)
    with torch.no_grad():
        shown = made.at(TIMES)
        assert shown.gaussians is not None
        assert shown.cameras is not None
        views = render(fields.stack([shown.gaussians]), fields.stack([shown.cameras]), TIMES[None], (SIZE, SIZE))
    return Clip(
        images=views.colour.clamp(0, 1),
        times=TIMES[None],
        camera_ids=torch.zeros(1, FRAMES, dtype=torch.long),
        dynamic=views.alpha > 0.5,
    )


def wave(made: DeformableScene) -> None:
    """Move nodes of one side by the time."""
    motion = made.deformation.motion
    with torch.no_grad():
        for parameter in list(motion.parameters())[-1:]:
            parameter[-3:] += torch.tensor([0.0, 0.15, 0.05])


def test_it_is_in_the_first_cameras_world_and_looks_as_from_its_own() -> None:
    made, seen = scene(), cameras()
    found = made.at(TIMES[2:])
    assert found.cameras is not None
    assert found.gaussians is not None
    torch.testing.assert_close(found.cameras.world_from_camera[0], torch.eye(4))
    own = invert_pose(seen.world_from_camera[2]) @ seen.world_from_camera[2:]
    torch.testing.assert_close(found.cameras.world_from_camera, own)
    direct = render(fields.stack([thing()]), fields.stack([seen]), TIMES[None], (SIZE, SIZE))
    moved = render(fields.stack([found.gaussians]), fields.stack([found.cameras]), TIMES[None, 2:], (SIZE, SIZE))
    torch.testing.assert_close(moved.colour, direct.colour[:, 2:], atol=2e-3, rtol=0)


def test_a_batch_of_clips_and_a_wrong_size() -> None:
    made = scene()
    clip = Clip(
        images=torch.rand(2, 3, 3, SIZE, SIZE),
        times=torch.stack([TIMES[:3], TIMES[3:]]),
        camera_ids=torch.zeros(2, 3, dtype=torch.long),
    )
    found = made(clip)
    assert isinstance(found, ScenePrediction)
    assert found.gaussians is not None
    assert found.gaussians.offsets is not None
    assert found.gaussians.offsets.shape == (2, 3, 300, 3)
    with pytest.raises(UserError, match="cameras are for images of 32 × 32"):
        made(replace(clip, images=torch.rand(2, 3, 3, SIZE, SIZE + 8)))


def inputs(made: DeformableScene, clip: Clip, progress: float = 0.0) -> LossInputs:
    return LossInputs(prediction=made(clip), targets=clip, progress=progress)


def test_its_own_pictures_are_best_and_every_weight_gets_a_gradient() -> None:
    made, clip = scene(), pictures()
    term = ReconstructionLossConfig().build()
    torch.manual_seed(0)
    best = term(inputs(made, clip))
    with torch.no_grad():
        made.means.add_(0.1 * torch.randn_like(made.means))
        made.corrections[:, 3] += 0.1
    torch.manual_seed(0)
    worse = term(inputs(made, clip))
    assert best < worse / 2
    worse.backward()
    assert [name for name, each in made.named_parameters() if each.grad is None] == []
    assert made.corrections.grad is not None
    assert (made.corrections.grad.norm(dim=-1) > 0).all()
    assert term(inputs(made, replace(clip, dynamic=None))) == 0


def test_rigidity_is_zero_at_rest_and_the_prior_where_nothing_is_corrected() -> None:
    made, clip = scene(), pictures()
    rigid, prior = RigidityLossConfig(smooth=1.0).build(), CameraPriorLossConfig().build()
    assert rigid(inputs(made, clip)).item() == pytest.approx(0, abs=1e-10)
    assert prior(inputs(made, clip)) == 0
    wave(made)
    with torch.no_grad():
        made.corrections[1, 0] = 0.3
        next(made.deformation.motion.parameters()).add_(0.1)
        list(made.deformation.motion.parameters())[-2].add_(0.1 * torch.randn(7, 64))
    assert rigid(inputs(made, clip)) > 1e-6
    assert prior(inputs(made, clip)).item() == pytest.approx(0.3**2 / FRAMES)


def tracks(made: DeformableScene, folder: Path, every: int = 10) -> Path:
    """Exact tracks of every so many Gaussians, visible where nothing is before them."""
    found = made.at(TIMES)
    assert found.gaussians is not None
    assert found.cameras is not None
    places = means_at(fields.stack([found.gaussians]), TIMES[None])[0, :, ::every]
    pixels, depth = project(places, found.cameras)
    views = render(fields.stack([found.gaussians]), fields.stack([found.cameras]), TIMES[None], (SIZE, SIZE))
    column, row = pixels.detach().long().clamp(0, SIZE - 1).unbind(-1)
    front = views.depth[0, torch.arange(FRAMES)[:, None], row, column]
    seen = (depth < front + 0.05).mT
    file = folder / "tracks.npz"
    np.savez(file, times=TIMES, pixels=pixels.detach().movedim(0, 1), visible=seen)
    return file


def apart() -> DeformableScene:
    """A scene of a few Gaussians that hide nothing of each other."""
    x, y = torch.meshgrid(torch.linspace(-0.8, 0.8, 4), torch.linspace(-0.8, 0.8, 4), indexing="ij")
    points = torch.stack([x, y, torch.zeros_like(x)], dim=-1).flatten(0, 1)
    few = fields.take(thing(), "n", list(range(len(points))))
    few = replace(few, means=points, scales=torch.full_like(points, 0.05))
    seen = cameras()
    own = replace(config(), gaussians=len(points))
    return initial_scene(own, few, TIMES, seen.world_from_camera, seen.intrinsics)


def test_exact_tracks_cost_nothing_and_a_wrong_camera_its_displacement(tmp_path: Path) -> None:
    made, clip = apart(), pictures()
    wave(made)
    term = TrackedPixelsLossConfig(
        file=str(tracks(made, tmp_path, 1)), directions="forward", fade=0.0, trim=1.0
    ).build()
    exact = term(inputs(made, clip))
    assert exact.item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        made.corrections[1:, 3] += 0.15  # along its own x axis: pixels of a focal length of 40
    wrong = term(inputs(made, clip))
    away = 40 * 0.15 / cameras().world_from_camera[:, :3, 3].norm(dim=-1).mean() / SIZE
    assert wrong.item() == pytest.approx(float(away) - 0.01, rel=0.1), "less half the Huber threshold"
    wrong.backward()
    assert made.corrections.grad is not None
    assert (made.corrections.grad[1:].norm(dim=-1) > 0).all()


def test_a_corrected_camera_turns_about_the_object() -> None:
    made = apart()
    before = made.cameras(torch.arange(FRAMES)).detach()
    with torch.no_grad():
        made.corrections[:, 1] += 0.3
    after = made.cameras(torch.arange(FRAMES)).detach()
    middle = torch.zeros(FRAMES, 1, 3)
    shown = [
        project(middle, Cameras(world_from_camera=each, intrinsics=made.intrinsics))[0] for each in (before, after)
    ]
    torch.testing.assert_close(shown[1], shown[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(after[:, :3, 3].norm(dim=-1), before[:, :3, 3].norm(dim=-1))
    torch.testing.assert_close(
        roma.rotmat_geodesic_distance(before[:, :3, :3], after[:, :3, :3]), torch.full((FRAMES,), 0.3)
    )


def test_an_error_of_exactly_nothing_has_a_gradient() -> None:
    squares = torch.tensor([0.0, 1e-6, 4e-4, 0.25], requires_grad=True)
    values = huber(squares, 0.02)
    distances = squares.detach().sqrt()
    expected = torch.where(distances <= 0.02, distances.square() / 0.04, distances - 0.01)
    torch.testing.assert_close(values, expected)
    values.sum().backward()
    assert squares.grad is not None
    assert squares.grad.isfinite().all()


def test_forward_and_backward_agree_on_a_sequence_that_is_its_own_mirror(tmp_path: Path) -> None:
    seen = cameras()
    poses = torch.cat([seen.world_from_camera[:3], seen.world_from_camera[:3].flip(0)])
    made = initial_scene(config(), thing(), TIMES, poses, seen.intrinsics)
    file = tracks(made, tmp_path)
    with torch.no_grad():
        made.means.add_(0.05 * torch.randn(made.means.shape, generator=torch.Generator().manual_seed(1)))
    clip = pictures()
    one, both = (
        TrackedPixelsLossConfig(file=str(file), directions=each, points=1000).build()(inputs(made, clip))
        for each in ("forward", "both")
    )
    torch.testing.assert_close(one, both)


def test_tracks_of_another_video_are_refused(tmp_path: Path) -> None:
    made = scene()
    file = tracks(made, tmp_path)
    term = TrackedPixelsLossConfig(file=str(file)).build()
    late = pictures()
    with pytest.raises(UserError, match=r"not those of this video's frames"):
        term(inputs(made, replace(late, times=late.times + 3)))
    np.savez(file, times=TIMES, pixels=np.zeros((3, 5, 2)), visible=np.ones((3, 5)))
    with pytest.raises(UserError, match="give n t 2 and n t of the same video"):
        TrackedPixelsLossConfig(file=str(file)).build()
    np.savez(file, times=TIMES)
    with pytest.raises(UserError, match="has no array pixels"):
        TrackedPixelsLossConfig(file=str(file)).build()


def test_what_is_chosen_to_split_and_to_go() -> None:
    opacities = torch.tensor([0.9, 0.01, 0.5, 0.5, 0.5])
    gradients = torch.tensor([0.1, 9.0, 3.0, 0.0, 2.0])
    stays, split = chosen(DensityConfig(split=0.5, most=10), opacities, gradients)
    assert stays.tolist() == [True, False, True, True, True]
    assert split.tolist() == [2, 4]
    assert chosen(DensityConfig(split=1.0, most=5), opacities, gradients)[1].tolist() == [2]
    stays, split = chosen(DensityConfig(), torch.full((3,), 0.01), torch.zeros(3))
    assert stays.sum() == 1
    assert not len(split)


def test_splitting_keeps_the_picture_about_and_tells_which_rows_go_on() -> None:
    made, clip = scene(density=DensityConfig(every=2, start=2, split=0.2)), pictures()
    before = made.means.detach().clone()
    with torch.no_grad():
        made.opacity_logits[:7] = -9.0
    ReconstructionLossConfig().build()(inputs(made, clip)).backward()
    assert made.gradient_counts.sum() > 0
    assert made.at_step(1) == {}
    told = made.at_step(2)
    split = round(0.2 * 293 - 0.5)
    assert len(made.means) == 293 + split
    assert (told["means"] == -1).sum() == 2 * split
    kept = told["means"] >= 0
    torch.testing.assert_close(made.means[kept], before[told["means"][kept]])
    assert made.gradient_sums.sum() == 0
    again = ReconstructionLossConfig().build()
    assert again(inputs(made, clip)) < 0.1
    other = config().build()
    other.fit_shapes(made.state_dict())
    other.load_state_dict(made.state_dict())
    assert other.means.shape == made.means.shape


def footage(folder: Path) -> FitRequest:
    """Frames, masks and object of the waving scene as files."""
    clip = pictures(bent=True)
    assert clip.dynamic is not None
    for name, values in (("frames", clip.images[0].permute(0, 2, 3, 1)), ("masks", clip.dynamic[0].float())):
        (folder / name).mkdir(parents=True)
        for index, value in enumerate(values):
            Image.fromarray((value * 255).byte().numpy()).save(folder / name / f"{index:02d}.png")
    write_ply(folder / "object.ply", thing())
    return FitRequest(
        video=folder / "frames",
        mask=folder / "masks",
        object=folder / "object.ply",
        size=SIZE,
        focal=1.25,
        gaussians=300,
        pose_steps=0,
        steps=6,
    )


def masks_of(request: FitRequest) -> Path:
    """Folder of the masks that `footage` gave."""
    assert request.mask is not None
    return request.mask


SMALL = (
    "loop.epoch_steps=3",
    "loop.accelerator=cpu",
    "loop.ema=0.9",
    "model.deformation.nodes=12",
    "data.sampling.max_stride=2",
    "model.density={every: 2, start: 2, split: 0.1}",
)


def test_siren_pose_holds_a_scene_smooth(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="set without_truth=true"):
        SirenPoseLossConfig(source="scene")
    term = SirenPoseLossConfig(source="scene", without_truth=True).build()
    made, clip = scene(), pictures()
    still = term.parts(inputs(made, clip))
    assert still["acceleration"].item() == pytest.approx(0, abs=1e-9)
    wave(made)
    with torch.no_grad():
        list(made.deformation.motion.parameters())[-2].add_(0.1 * torch.randn(7, 64))
    parts = term.parts(inputs(made, clip))
    assert {name for name, value in parts.items() if value > 1e-7} == {"velocity", "acceleration", "siren"}
    (parts["velocity"] + parts["acceleration"] + parts["siren"]).backward()
    nodes = list(made.deformation.motion.parameters())[-2]
    assert nodes.grad is not None
    assert nodes.grad.norm() > 0
    assert made.corrections.grad is None or made.corrections.grad.abs().max() < 1e-6, "cameras are not its concern"
    with pytest.raises(UserError, match=r"needs a scene that is fitted to one clip"):
        term.parts(LossInputs(prediction=Prediction(), targets=clip))
    smooth = "losses.siren_pose={kind: siren_pose, source: scene, without_truth: true}"
    result = fit(replace(footage(tmp_path / "video"), steps=3), tmp_path / "fit", [*SMALL, smooth, "logging.every=1"])
    lines = [line for line in read_metrics(result.folder) if line["split"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert all(cast(float, line["siren_pose"]) > 0 for line in lines)


def test_a_fit_that_is_broken_off_goes_on_to_the_same_scene_through_a_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = footage(tmp_path / "video")
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    result = fit(request, whole, SMALL)
    assert result.steps == 6
    crash(monkeypatch, 3, lambda: fit(request, broken, SMALL))
    fit(request, broken, SMALL)
    found = [checkpoints.read(folder / "scene").model for folder in (whole, broken)]
    for (name, one), (_, other) in zip(*(each.state_dict().items() for each in found), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, msg=name)
    assert len(found[0].means) != 300  # pyright: ignore[reportArgumentType]
