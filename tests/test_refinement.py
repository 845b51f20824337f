"""Cameras by points and depth: exact where these are, untouched where they tell nothing, robust to what moves."""

from __future__ import annotations

import dataclasses
from unittest import mock

import pytest
import roma
import torch
from torch import Tensor

from four_d import tracing
from four_d.errors import UserError
from four_d.geometry import encode_cameras, make_pose, pixel_centres, rays, rotation_angle, transform, unproject
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.memory import pass_bytes
from four_d.model import FourD, ModelConfig
from four_d.refinement import MaskRefinementConfig, RefinementConfig, refined, robust_rigid, weighted_rigid
from four_d.registration import two_view
from four_d.registration.changes import changes
from four_d.types import Cameras, Clip, Prediction
from tests.test_model import BACKBONE, DENSE, make_clip

EYE = torch.eye(4, dtype=torch.float64)


def poses(count: int, turn: float = 0.3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    rotation = roma.rotvec_to_rotmat(turn * torch.randn(count, 3, generator=generator, dtype=torch.float64))
    return make_pose(rotation, 0.4 * torch.randn(count, 3, generator=generator, dtype=torch.float64))


def off(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Largest angle in radians and distance between poses."""
    one, other = one.detach(), other.detach()
    angle = rotation_angle(one[..., :3, :3].mT @ other[..., :3, :3]).max()
    return float(angle), float((one[..., :3, 3] - other[..., :3, 3]).norm(dim=-1).max())


def fit(rest: Tensor, places: Tensor, weights: Tensor, prior: Tensor | None = None, pull: float = 1e-9) -> Tensor:
    start = EYE.expand(len(rest), 4, 4) if prior is None else prior
    return robust_rigid(rest, places, weights, start, iterations=4, pull=pull)


def test_exact_points_give_the_exact_pose() -> None:
    true = poses(5)
    rest = torch.randn(5, 40, 3, dtype=torch.float64) + torch.tensor([0.0, 0.0, 3.0])
    angle, distance = off(fit(rest, transform(true, rest), torch.rand(5, 40, dtype=torch.float64)), true)
    assert angle < 1e-6
    assert distance < 1e-6


def test_outliers_count_little() -> None:
    """A fourth of the points moved by a body of its own, and some noise: the pose is that of the rest."""
    true = poses(5, turn=0.1)
    rest = torch.randn(5, 200, 3, dtype=torch.float64) + torch.tensor([0.0, 0.0, 3.0])
    places = transform(true, rest) + 0.005 * torch.randn(5, 200, 3, dtype=torch.float64)
    places[:, :50] += torch.tensor([0.8, 0.3, 0.0])
    weights = torch.ones(5, 200, dtype=torch.float64)
    plain = weighted_rigid(rest, places, weights, EYE.expand(5, 4, 4), 1e-9)
    robust = robust_rigid(rest, places, weights, EYE.expand(5, 4, 4), iterations=8, pull=1e-9)
    assert off(robust, true)[1] < 0.25 * off(plain, true)[1]
    assert off(robust, true)[0] < 0.02
    masked = weights.clone()
    masked[:, :50] = 0.0
    angle, distance = off(fit(rest, places, masked), true)
    assert angle < 5e-3
    assert distance < 0.02


DEGENERATE = {
    "no weights": (torch.rand(1, 10, 3), torch.zeros(1, 10)),
    "one point": (torch.rand(1, 1, 3).expand(1, 10, 3), torch.ones(1, 10)),
    "a line": (torch.linspace(0, 1, 10)[None, :, None] * torch.tensor([1.0, 2.0, 0.5]), torch.ones(1, 10)),
    "a plane": (torch.rand(1, 10, 3) * torch.tensor([1.0, 1.0, 0.0]), torch.ones(1, 10)),
    "nothing but the origin": (torch.zeros(1, 10, 3), torch.ones(1, 10)),
}


@pytest.mark.parametrize("name", sorted(DEGENERATE))
def test_what_points_do_not_tell_the_prior_does_with_finite_gradients(name: str) -> None:
    rest, weights = (each.double() for each in DEGENERATE[name])
    prior = poses(1, seed=3)
    moved = transform(prior, rest).clone().requires_grad_()
    rest = rest.clone().requires_grad_()
    found = fit(rest, moved, weights, prior, pull=0.01)
    angle, distance = off(found, prior)
    assert angle < 1e-4
    assert distance < 1e-4
    (found * torch.randn(4, 4, dtype=torch.float64)).sum().backward()
    for each in (rest, moved):
        assert each.grad is not None
        assert each.grad.isfinite().all()


def test_gradients_are_those_of_differences() -> None:
    torch.manual_seed(0)
    rest = torch.randn(1, 6, 3, dtype=torch.float64) + torch.tensor([0.0, 0.0, 3.0])
    places = (transform(poses(1), rest) + 0.05 * torch.randn(1, 6, 3)).requires_grad_()
    weights = torch.rand(1, 6, dtype=torch.float64)

    def pose(moved: Tensor) -> Tensor:
        return weighted_rigid(rest, moved, weights, EYE[None], 0.01)

    assert torch.autograd.gradcheck(pose, places)


def scene(error: float = 0.2) -> tuple[Prediction, Tensor]:
    """A prediction with true depth and points, and poses that are off; the true poses."""
    true = torch.cat([EYE[None], poses(3)])[None]
    generator = torch.Generator().manual_seed(1)
    depth = 1 + torch.rand(1, 4, 16, 24, generator=generator, dtype=torch.float64)
    lens = torch.tensor([[20.0, 0, 12], [0, 20.0, 8], [0, 0, 1]], dtype=torch.float64).expand(1, 4, 3, 3)
    points = unproject(depth, Cameras(world_from_camera=true, intrinsics=lens))
    wrong = true @ torch.cat([EYE[None], poses(3, error, seed=5)])[None]
    cameras = Cameras(world_from_camera=wrong, intrinsics=lens)
    prediction = Prediction(
        cameras=cameras, pose_encodings=encode_cameras(cameras, 16, 24)[None], depth=depth, points=points
    )
    return prediction, true


def test_a_prediction_gets_the_cameras_that_its_depth_and_points_tell() -> None:
    prediction, true = scene()
    found = refined(prediction, make_clip(), RefinementConfig(pull=1e-6))
    angle, distance = off(found.cameras.world_from_camera, true)
    assert angle < 1e-4
    assert distance < 1e-4
    assert found.pose_encodings.shape == (2, 1, 4, 9)
    torch.testing.assert_close(found.pose_encodings[0], prediction.pose_encodings[0])
    torch.testing.assert_close(found.pose_encodings[1], encode_cameras(found.cameras, 16, 24))
    assert torch.equal(found.cameras.intrinsics, prediction.cameras.intrinsics)


def test_what_moves_does_not_steer_the_cameras() -> None:
    prediction, true = scene()
    points = prediction.points.clone()
    points[:, :, :, :14] += torch.tensor([0.5, 0.0, 0.0])  # more than half of each picture
    dynamic = torch.zeros(1, 4, 16, 24, dtype=torch.float64)
    dynamic[..., :14] = 1.0
    moved = dataclasses.replace(prediction, points=points)
    config = RefinementConfig(pull=1e-6, iterations=1)
    told = refined(dataclasses.replace(moved, dynamic=dynamic), make_clip(), config)
    assert (
        off(told.cameras.world_from_camera, true)[1]
        < 1e-3
        < off(refined(moved, make_clip(), config).cameras.world_from_camera, true)[1]
    )


def test_a_model_refines_where_its_config_says_so() -> None:
    heads = {
        "camera": CameraHeadConfig(width=32, depth=1, heads=2, start=(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)),
        "depth": DENSE,
        "points": dataclasses.replace(DENSE, output="points"),
    }
    clip: Clip = make_clip()
    found: list[Prediction] = []
    for refine in (None, RefinementConfig()):
        torch.manual_seed(0)
        model = ModelConfig(backbone=BACKBONE, heads=heads, refine=refine).build()
        found.append(model(clip))
    plain, better = found
    assert torch.equal(plain.pose_encodings, better.pose_encodings[:-1])
    assert (plain.cameras.world_from_camera - better.cameras.world_from_camera).abs().max() > 1e-3
    better.pose_encodings[-1].sum().backward()
    gradients = [p.grad for p in model.heads["points"].parameters()]
    assert all(each is not None and each.isfinite().all() for each in gradients)
    bare = ModelConfig(backbone=BACKBONE, heads={"depth": DenseHeadConfig(channels=(8, 8, 8, 8), features=16)})
    with pytest.raises(UserError, match=r"model.refine needs .* and no head gives cameras"):
        dataclasses.replace(bare, refine=RefinementConfig()).build()
    with pytest.raises(UserError, match="pull above 0"):
        RefinementConfig(pull=0.0)


LENS = torch.tensor([[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]], dtype=torch.float64)


def inside_a_ball(order: list[int], cameras: list[int]) -> tuple[Clip, Cameras, Tensor]:
    """Coloured inside of a ball of radius 3 seen by cameras that turn and move; depth, and their true poses.

    Frames are in this ``order`` in time, from these ``cameras``.
    """
    moments = torch.tensor(order, dtype=torch.float64)
    turn = torch.stack([0.04 * moments, 0.06 * moments, 0.03 * moments], dim=-1)
    place = torch.stack([0.05 * moments, 0.02 * moments, 0.08 * moments], dim=-1)
    aside = torch.tensor(cameras, dtype=torch.float64)[:, None]
    poses = make_pose(roma.rotvec_to_rotmat(turn + 0.2 * aside), place + 0.3 * aside)[None]
    lens = LENS.expand(1, len(order), 3, 3)
    ways = rays(lens, pixel_centres(48, 64, LENS).reshape(-1, 2).expand(1, len(order), -1, 2))
    ahead, start = ways @ poses[..., :3, :3].mT, poses[..., None, :3, 3]
    half, square = (ahead * start).sum(-1), ahead.square().sum(-1)
    depth = (-half + (half.square() - square * (start.square().sum(-1) - 9)).sqrt()) / square
    waves = torch.randn(24, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4
    colours = torch.sin((start + ahead * depth[..., None]) @ waves.T).unflatten(-1, (3, 8)).mean(-1)
    images = (0.5 + 0.5 * colours).mT.unflatten(-1, (48, 64)).float()
    clip = Clip(images=images, times=moments[None].float() / 10, camera_ids=torch.tensor([cameras]), cameras=None)
    return clip, Cameras(world_from_camera=poses, intrinsics=lens), depth.unflatten(-1, (48, 64))


def seen(cameras: Cameras, depth: Tensor, poses: Tensor) -> Prediction:
    told = Cameras(world_from_camera=poses, intrinsics=cameras.intrinsics)
    return Prediction(cameras=told, pose_encodings=encode_cameras(told, 48, 64)[None], depth=depth)


def registered(clip: Clip, cameras: Cameras, depth: Tensor, told: Tensor | None = None) -> Cameras:
    """Cameras by matches of a model that says ``told`` (no motion), with this depth and these intrinsics."""
    told = EYE.expand(cameras.world_from_camera.shape) if told is None else told
    found = refined(seen(cameras, depth, told), clip, RefinementConfig(by="matches"))
    assert found.pose_encodings.shape == (2, 1, depth.shape[1], 9)
    return found.cameras


def from_first(cameras: Cameras) -> Tensor:
    return torch.linalg.inv(cameras.world_from_camera[:, :1]) @ cameras.world_from_camera


def test_windows_found_again_tell_the_cameras_of_a_shuffled_clip() -> None:
    clip, cameras, depth = inside_a_ball([2, 0, 3, 1], [0, 0, 0, 0])
    true = from_first(cameras)
    assert off(EYE.expand(1, 4, 4, 4), true)[0] > 0.1
    angle, distance = off(registered(clip, cameras, depth).world_from_camera, true)
    assert angle < 3e-3
    assert distance < 0.01


@pytest.mark.parametrize("order", [[0, 0, 1, 1], [1, 0, 1, 0]])
def test_cameras_that_see_the_same_are_placed_beside_each_other(order: list[int]) -> None:
    clip, cameras, depth = inside_a_ball(order, [0, 1, 1, 0])
    true = from_first(cameras)
    angle, distance = off(registered(clip, cameras, depth).world_from_camera, true)  # said to be in one spot
    assert off(EYE.expand(1, 4, 4, 4), true)[1] > 0.3
    assert angle < 0.01
    assert distance < 0.03


def test_a_camera_that_sees_nothing_of_the_first_goes_on_from_where_the_head_puts_its_first_frame() -> None:
    clip, cameras, depth = inside_a_ball([0, 0, 1, 1], [0, 1, 0, 1])
    true = from_first(cameras)
    told = true.clone()
    told[:, 2:] = told[:, :2]  # the second frame of each is said not to move
    images = clip.images.clone()
    images[:, 1::2] = 1 - images[:, 1::2].flip(-1)  # another room, whose depth is the same
    pretended = dataclasses.replace(clip, images=images)
    found = registered(pretended, cameras, depth, told).world_from_camera
    torch.testing.assert_close(found[:, :2], true[:, :2])
    assert off(found[:, 2], true[:, 2])[0] < 5e-3
    turned = found[:, 1, :3, :3].mT @ found[:, 3, :3, :3]
    assert float(rotation_angle(turned)) == pytest.approx(
        float(rotation_angle(true[:, 1, :3, :3].mT @ true[:, 3, :3, :3])), abs=0.02
    )


def test_poses_that_are_known_stay_in_the_unit_of_the_depth() -> None:
    clip, cameras, depth = inside_a_ball([0, 1, 2], [0, 0, 0])
    true = from_first(cameras)
    in_feet = make_pose(true[..., :3, :3], true[..., :3, 3] * 3.3)
    told = Cameras(world_from_camera=in_feet, intrinsics=cameras.intrinsics, known=torch.ones(1, 3, dtype=torch.bool))
    found = registered(dataclasses.replace(clip, cameras=told), cameras, depth).world_from_camera
    torch.testing.assert_close(found[..., :3, :3], true[..., :3, :3], rtol=0, atol=1e-9)
    torch.testing.assert_close(found, true, rtol=0.02, atol=0.01)
    partly = dataclasses.replace(told, known=torch.tensor([[True, True, False]]))
    found = registered(dataclasses.replace(clip, cameras=partly), cameras, depth).world_from_camera
    assert 1e-9 < off(found, true)[0] < 3e-3


def test_a_camera_that_begins_later_is_placed_beside_the_frame_before_it() -> None:
    """The first frame of all shows the other side of the room."""
    clip, cameras, depth = inside_a_ball([0, 8, 9, 9], [0, 0, 0, 1])
    true = from_first(cameras)
    assert off(true[:, 3], true[:, 0])[0] > 0.8
    told = true.clone()
    told[:, 3] = true[:, 2]  # 0.35 rad off
    found = registered(clip, cameras, depth, told)
    beside = [torch.linalg.inv(each[:, 2]) @ each[:, 3] for each in (found.world_from_camera, true)]
    angle, distance = off(*beside)
    assert angle < 0.03
    assert distance < 0.05


def test_a_still_camera_beside_another_has_one_pose_to_the_bit() -> None:
    clip, cameras, depth = inside_a_ball([0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1])
    again = torch.tensor([0, 1, 2, 1, 4, 1])  # the second camera's frames are all its first
    held = dataclasses.replace(clip, images=clip.images[:, again])
    cameras = Cameras(world_from_camera=cameras.world_from_camera[:, again], intrinsics=cameras.intrinsics)
    found = registered(held, cameras, depth[:, again]).world_from_camera
    assert torch.equal(found[:, 1], found[:, 3])
    assert torch.equal(found[:, 1], found[:, 5])
    angle, distance = off(found, from_first(cameras))
    assert angle < 0.01
    assert distance < 0.03


def test_a_mask_of_everything_does_not_say_that_the_camera_stands_still() -> None:
    clip, cameras, depth = inside_a_ball([0, 1, 2], [0, 0, 0])
    true = from_first(cameras)
    said = dataclasses.replace(seen(cameras, depth, true), dynamic=torch.ones_like(depth))
    found = refined(said, clip, RefinementConfig(by="matches")).cameras
    torch.testing.assert_close(found.world_from_camera, true, rtol=0, atol=1e-6)


def test_a_focal_length_that_is_off_is_mended_and_a_known_one_stays() -> None:
    clip, cameras, depth = inside_a_ball([0, 2, 4, 6], [0, 0, 0, 0])
    wrong = cameras.intrinsics.clone()
    wrong[..., 0, 0] *= 1.15
    wrong[..., 1, 1] *= 1.15
    told = dataclasses.replace(cameras, intrinsics=wrong)
    mended = registered(clip, told, depth)
    assert float((mended.intrinsics[..., 0, 0] / cameras.intrinsics[..., 0, 0] - 1).abs().max()) < 0.08
    known = dataclasses.replace(
        cameras, known=torch.zeros(1, 4, dtype=torch.bool), intrinsics_known=torch.ones(1, 4, dtype=torch.bool)
    )
    found = registered(dataclasses.replace(clip, cameras=known), told, depth)
    torch.testing.assert_close(found.intrinsics, cameras.intrinsics)


def test_brightness_and_contrast_may_change() -> None:
    clip, cameras, depth = inside_a_ball([0, 1, 2, 3], [0, 0, 0, 0])
    gains = torch.tensor([1.0, 0.75, 0.9, 0.7])[:, None, None, None]
    clip = dataclasses.replace(clip, images=0.2 + gains * (clip.images - 0.2))
    angle, distance = off(registered(clip, cameras, depth).world_from_camera, from_first(cameras))
    assert angle < 5e-3
    assert distance < 0.02


def test_depth_that_is_off_by_a_factor_for_each_frame_still_gives_the_turns() -> None:
    clip, cameras, depth = inside_a_ball([0, 1, 2, 3], [0, 0, 0, 0])
    uneven = depth * torch.tensor([1.0, 1.2, 0.85, 1.1], dtype=torch.float64)[:, None, None]
    assert off(registered(clip, cameras, uneven).world_from_camera, from_first(cameras))[0] < 0.02


def standing(moving: bool) -> tuple[Clip, Cameras, Tensor]:
    """A camera that stands, before which a third of the picture moves by itself, with noise in all pixels."""
    clip, cameras, depth = inside_a_ball([0, 0, 0, 0, 0], [0] * 5)
    images = clip.images.clone()
    for frame in range(5 if moving else 0):
        images[0, frame, :, 10:40, 4 * frame : 24 + 4 * frame] = clip.images[0, 0, :, 16:46, 30:54]
    noise = 0.005 * torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    return dataclasses.replace(clip, images=images + noise, times=torch.arange(5.0)[None]), cameras, depth


@pytest.mark.parametrize("moving", [False, True])
def test_a_camera_that_stands_still_is_still_to_the_bit(moving: bool) -> None:
    clip, cameras, depth = standing(moving)
    found = registered(clip, cameras, depth)
    torch.testing.assert_close(found.world_from_camera, EYE.expand(1, 5, 4, 4), rtol=0, atol=1e-9)


def test_what_a_mask_says_moves_does_not_steer_matches() -> None:
    """Much of each picture moves as if the camera stood still; the mask tells."""
    clip, cameras, depth = inside_a_ball([0, 1, 2, 3], [0, 0, 0, 0])
    images = clip.images.clone()
    images[:, :, :, :, :28] = clip.images[:, :1, :, :, :28]
    clip = dataclasses.replace(clip, images=images)
    dynamic = torch.zeros(1, 4, 48, 64, dtype=torch.float64)
    dynamic[..., :31] = 1.0
    true, still = from_first(cameras), EYE.expand(1, 4, 4, 4)
    prediction = dataclasses.replace(seen(cameras, depth, still), dynamic=dynamic)
    found = refined(prediction, clip, RefinementConfig(by="matches")).cameras.world_from_camera
    unmasked = refined(seen(cameras, depth, still), clip, RefinementConfig(by="matches")).cameras.world_from_camera
    assert off(found, true)[0] < min(0.03, 0.5 * off(unmasked, true)[0])


def test_a_large_turn_and_roll_between_frames_is_found() -> None:
    clip, cameras, depth = inside_a_ball([0, 4], [0, 0])
    true = from_first(cameras)
    assert off(EYE.expand(1, 2, 4, 4), true)[0] > 0.25
    assert off(registered(clip, cameras, depth).world_from_camera, true)[0] < 0.01


def test_where_nothing_is_found_again_the_heads_cameras_stay() -> None:
    clip, cameras, depth = inside_a_ball([0, 1, 2], [0, 0, 0])
    told = from_first(cameras).clone()
    grey = dataclasses.replace(clip, images=torch.full_like(clip.images, 0.5))
    angle, distance = off(registered(grey, cameras, depth, told).world_from_camera, told)
    assert angle < 1e-3
    assert distance < 1e-3


def test_a_single_frame_keeps_its_camera() -> None:
    clip, cameras, depth = inside_a_ball([0], [0])
    torch.testing.assert_close(registered(clip, cameras, depth).world_from_camera, EYE.expand(1, 1, 4, 4))


def test_matches_need_no_points_and_teach_nothing() -> None:
    heads = {
        "camera": CameraHeadConfig(width=32, depth=1, heads=2, start=(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)),
        "depth": DENSE,
    }
    model = ModelConfig(backbone=BACKBONE, heads=heads, refine=RefinementConfig(by="matches")).build()
    taught = model(make_clip())  # in training the head's own cameras are the model's
    found = model.eval()(make_clip())
    assert not found.cameras.world_from_camera.requires_grad
    assert len(found.pose_encodings) == len(taught.pose_encodings) + 1
    taught.pose_encodings.square().sum().backward()
    with mock.patch("four_d.refinement.register") as register:  # takes seconds on tensors without values
        assert pass_bytes(model, make_clip()) > 0
    register.assert_not_called()
    gradients = [p.grad for p in model.heads["camera"].parameters()]
    assert any(each is not None and bool(each.any()) for each in gradients)
    assert all(p.grad is None for p in model.heads["depth"].parameters())


def test_a_still_scene_does_not_change_and_a_body_changes_on_both_sides_of_time() -> None:
    clip, cameras, depth = inside_a_ball([2, 0, 3, 1], [0, 0, 0, 0])
    still = changes(clip, cameras, depth)
    earlier, before, later, after = still.unbind(2)
    assert before[:, 1].max() == 0, "nothing is before the first"
    assert after[:, 2].max() == 0
    assert before[:, [0, 2, 3]].mean() > 0.5
    assert max(float(earlier.max()), float(later.max())) < 0.05
    images = clip.images.clone()
    for frame, moment in enumerate((2, 0, 3, 1)):  # a bright square that goes to the right
        images[:, frame, :, 20:28, 8 + 12 * moment : 16 + 12 * moment] = 1.0
    earlier, _, later, _ = changes(dataclasses.replace(clip, images=images), cameras, depth).unbind(2)
    both = torch.minimum(earlier, later)[0, 0, 22:26]  # the frame of moment 2
    assert both[:, 34:38].min() > 0.1
    assert both[:, 22:26].max() < 0.05, "what it uncovered differs on one side of time only"
    assert earlier[0, 0, 22:26, 22:26].max() > 0.1


MASKED = RefinementConfig(by="matches", mask=MaskRefinementConfig(channels=4, depth=2))


def masked_model(refine: RefinementConfig | None) -> FourD:
    heads = {
        "camera": CameraHeadConfig(width=32, depth=1, heads=2, start=(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)),
        "depth": DENSE,
        "dynamic": dataclasses.replace(DENSE, output="dynamic"),
    }
    torch.manual_seed(0)
    return ModelConfig(backbone=BACKBONE, heads=heads, refine=refine).build()


def test_the_mask_is_corrected_by_weights_that_begin_with_nothing_and_learn() -> None:
    clip = make_clip()
    plain, model = (masked_model(each) for each in (RefinementConfig(by="matches"), MASKED))
    expected = plain.eval()(clip)
    torch.testing.assert_close(model.eval()(clip).dynamic_logits, expected.dynamic_logits, rtol=0, atol=0)
    assert {name for name in model.state_dict() if name not in plain.state_dict()} == {
        name for name in model.state_dict() if name.startswith("refine.mask.")
    }
    model.train()
    found = model(clip)
    assert found.pose_encodings.shape[0] == expected.pose_encodings.shape[0] - 1, "training keeps the head's cameras"
    found.dynamic_logits.square().sum().backward()
    assert model.refine.mask.out.bias.grad.abs() > 0
    assert model.heads["dynamic"].out.weight.grad.abs().max() > 0, "the head learns through the correction"
    assert "refine" in model.freeze_untaught(frozenset({"depth"}))
    assert model(clip).dynamic_logits.shape == expected.dynamic_logits.shape
    assert model.without("dynamic").eval()(clip).dynamic is None
    with pytest.raises(UserError, match="no head gives dynamic"):
        ModelConfig(
            backbone=BACKBONE, heads={k: v.config for k, v in model.heads.items() if k != "dynamic"}, refine=MASKED
        ).build()
    with pytest.raises(UserError, match="channels and depth"):
        MaskRefinementConfig(depth=0)


def test_a_program_refines_by_matches_at_a_fixed_number_of_frames() -> None:
    """It says the same cameras as the model: no values are there while it is traced, and yet pixels are searched."""
    heads = {"camera": CameraHeadConfig(width=32, depth=1, heads=2), "depth": DENSE}
    model = ModelConfig(backbone=BACKBONE, heads=heads, refine=RefinementConfig(by="matches")).build().eval()
    with pytest.raises(UserError, match="fixed number of frames"):
        tracing.trace(model, (32, 32))
    taken = tracing.signature(model.abilities, (32, 32))
    module, inputs = tracing.as_function(model, taken), taken.example(3, torch.Generator().manual_seed(0))

    def halved(_: Clip, cameras: Cameras, *__: object) -> Cameras:
        return dataclasses.replace(cameras, intrinsics=cameras.intrinsics / 2)

    with (
        mock.patch("four_d.refinement.register", halved),
        tracing.eagerly(),
    ):  # the search itself takes a minute to trace
        program = torch.export.export(module, inputs).module()
        torch.testing.assert_close(program(*inputs)["intrinsics"], module(*inputs)["intrinsics"])


class Rotations(torch.nn.Module):
    def forward(self, rays: Tensor, seen: Tensor, weights: Tensor) -> Tensor:
        return two_view._rotations(rays, seen, weights)


def test_a_program_draws_the_same_pairs_at_each_call() -> None:
    inputs = torch.randn(1, 12, 3), torch.randn(1, 12, 2), torch.rand(1, 12)
    program, expected = torch.export.export(Rotations(), inputs).module(), Rotations()(*inputs)
    for _ in range(2):
        torch.testing.assert_close(program(*inputs), expected)
