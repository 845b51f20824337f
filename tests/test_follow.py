"""An object followed through a video: crops and the way back, hypotheses, smoothness, and what cannot be told."""

from __future__ import annotations

import itertools
import logging
import math

import pytest
import roma
import torch
from torch import Tensor

from four_d.abilities import Abilities, ModelModule
from four_d.errors import UserError
from four_d.geometry import invert_pose, make_pose, project, rotation_angle
from four_d.pose_net import FollowConfig, ObjectPath, PoseNetConfig, PosePrediction, follow_object
from four_d.pose_net.crops import Crops, crop_cameras, crop_object
from four_d.pose_net.follow import cheapest, different
from four_d.rendering import render
from four_d.types import Cameras, Clip, Gaussians, Prediction, Views, map_tensors
from four_d.viewpoints import FILL, FOCAL, ObjectPose, decode_pose, view_rotation
from tests.object_scene import SIDES, box

SIZE = (60, 96)
LENS = torch.tensor([[110.0, 0, 50], [0, 104, 28], [0, 0, 1]])
"""Of unequal focal lengths, with its principal point beside the middle."""
FLIPS = torch.stack([torch.diag(torch.tensor(each)) for each in ((1.0, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))])


def video(gaussians: Gaussians, frames: int = 4) -> tuple[Tensor, Tensor, Cameras]:
    """Pictures, masks and cameras of an object that turns, on the left of the picture and far off its middle."""
    steps = torch.arange(frames) * 0.2
    rotations = view_rotation(0.7 + steps, 0.4 - steps / 3, 0.1 * steps)
    shift = torch.stack([-0.8 + 0.2 * steps, 0.2 + 0 * steps, 4.0 + steps], dim=-1)
    cameras = Cameras(
        world_from_camera=invert_pose(make_pose(rotations, shift)), intrinsics=LENS.expand(frames, 3, 3).clone()
    )
    views = seen(gaussians, cameras, SIZE)
    return views.colour[0], views.alpha[0] > 0.5, cameras


def seen(gaussians: Gaussians, cameras: Cameras, size: tuple[int, int]) -> Views:
    batched, own = map_tensors(gaussians, lambda t: t[None]), map_tensors(cameras, lambda t: t[None])
    return render(batched, own, torch.zeros(own.intrinsics.shape[:2]), size, background=torch.tensor([0.2, 0.5, 0.8]))


def test_a_crop_is_what_a_camera_turned_to_the_object_sees() -> None:
    thing = box()
    images, masks, cameras = video(thing)
    crops = crop_object(images, masks, cameras.intrinsics, 48)
    turned = torch.eye(4).repeat(4, 1, 1)
    turned[:, :3, :3] = crops.camera_from_crop
    lens = torch.zeros(4, 3, 3)
    lens[:, 0, 0] = lens[:, 1, 1] = crops.focal
    lens[:, :2, 2], lens[:, 2, 2] = 24, 1
    straight = Cameras(world_from_camera=cameras.world_from_camera @ turned, intrinsics=lens)
    views = seen(thing, straight, (48, 48))
    assert torch.allclose(crops.camera_from_crop @ crops.camera_from_crop.mT, torch.eye(3), atol=1e-5)
    inside = (views.alpha[0] > 0.99) & (crops.masks > 0.99)
    assert 0.2 < float(inside.float().mean()) < 0.8
    errors = (views.colour[0] - crops.images).abs().amax(1)[inside]
    assert float(errors.mean()) < 0.03
    assert float((crops.masks - views.alpha[0]).abs().mean()) < 0.03
    for mask in crops.masks > 0.5:
        y, x = mask.nonzero().unbind(-1)
        sides = [float(each.max() - each.min() + 1) / 48 for each in (x, y)]
        middles = [float(each.max() + each.min() + 1) / 2 for each in (x, y)]
        assert max(sides) == pytest.approx(FILL, abs=0.05)
        assert middles == pytest.approx([24, 24], abs=1)


def turned_crops(focal: float, size: int = 40) -> Crops:
    turns = roma.rotvec_to_rotmat(torch.tensor([[0.1, 0.3, 0], [-0.2, 0.05, 0]], dtype=torch.float64))
    empty = torch.zeros(2, size, size, dtype=torch.float64)
    focals = torch.full((2,), focal, dtype=torch.float64)
    return Crops(images=empty[:, None].expand(-1, 3, -1, -1), masks=empty, camera_from_crop=turns, focal=focals)


@pytest.mark.parametrize("zoom", [1.0, 2.5])
def test_poses_in_crops_become_cameras_of_the_video_exactly(zoom: float) -> None:
    """With the lens that poses assume every point keeps its pixel; with another one the centre, and the size there."""
    torch.manual_seed(0)
    crops = turned_crops(zoom * FOCAL * 40)
    pose = ObjectPose(
        rotation=roma.random_rotmat(2, dtype=torch.float64),
        offset=torch.tensor([[0.1, -0.05], [0.02, 0.2]], dtype=torch.float64),
        log_distance=torch.tensor([1.2, 1.5], dtype=torch.float64),
    )
    lenses = LENS.double().expand(2, 3, 3)
    found = crop_cameras(pose, crops, lenses)
    assert torch.equal(found.intrinsics, lenses)
    points = torch.randn(2, 20, 3, dtype=torch.float64) / (2 if zoom == 1 else 1e4)
    in_crop = project(points, decode_pose(pose, (40, 40)))[0]
    in_video, z = project(points, found)
    assert bool((z > 0).all())
    rays = (in_crop - 20) / crops.focal[:, None, None]  # the crop's picture has its own lens
    rays = torch.cat([rays, torch.ones_like(rays[..., :1])], dim=-1) @ crops.camera_from_crop.mT
    expected = (rays / rays[..., 2:]) @ lenses.mT
    assert torch.allclose(in_video, expected[..., :2], atol=1e-9 if zoom == 1 else 1e-6)


def test_the_cheapest_sequence_is_the_least_of_all() -> None:
    torch.manual_seed(0)
    errors, rotations = torch.rand(5, 3, dtype=torch.float64), roma.random_rotmat((5, 3), dtype=torch.float64)

    def cost(path: tuple[int, ...]) -> float:
        rows = torch.arange(5)
        chosen = rotations[rows, list(path)]
        turns = rotation_angle(chosen[:-1].mT @ chosen[1:]).sum()
        return float(errors[rows, list(path)].sum() + 0.3 * turns)

    best = min(itertools.product(range(3), repeat=5), key=cost)
    assert tuple(cheapest(errors, rotations, 0.3).tolist()) == best
    assert torch.equal(cheapest(errors, rotations, 0.0), errors.argmin(-1))


class Oracle(ModelModule):
    """Says the true rotation and three others half a turn away, of which it believes a wrong one."""

    def __init__(self, rotations: Tensor, scores: tuple[float, ...] = (0.0, 2.0, 1.0, 1.0)) -> None:
        super().__init__()
        self.rotations = rotations[:, None, None] @ FLIPS
        self.scores = torch.tensor(scores)

    @property
    def abilities(self) -> Abilities:
        return PoseNetConfig().abilities

    def forward(self, clip: Clip) -> Prediction:
        frames = len(clip.images)
        rotations = self.rotations[:frames]
        place = torch.zeros(frames, 1, 2)
        distance = torch.full((frames, 1), math.log(3.9))
        best = ObjectPose(rotation=rotations[:, :, 1], offset=place, log_distance=distance)
        return PosePrediction(
            cameras=decode_pose(best, (clip.images.shape[-2], clip.images.shape[-1])),
            pose_uncertainty=torch.full((frames, 1), 0.2),
            pose_logits=self.scores.expand(frames, 1, 4),
            pose_rotations=rotations,
            pose_classes=rotations,
            pose_offset=place,
            pose_log_distance=distance,
        )


def follow(sides: Tensor, scores: tuple[float, ...] = (0.0, 2.0, 1.0, 1.0)) -> tuple[ObjectPath, Cameras]:
    thing = box(sides)
    images, masks, cameras = video(thing)
    crops = crop_object(images, masks, cameras.intrinsics, 48)
    truth = invert_pose(cameras.world_from_camera)[:, :3, :3]
    model = Oracle(crops.camera_from_crop.mT @ truth, scores)
    return follow_object(model, thing, images, masks, cameras.intrinsics, size=48), cameras


def test_pictures_decide_among_hypotheses() -> None:
    found, cameras = follow(SIDES)
    turns = found.cameras.world_from_camera[:, :3, :3].mT @ cameras.world_from_camera[:, :3, :3]
    assert float(rotation_angle(turns).max()) < 0.02
    places, truth = (each.world_from_camera[:, :3, 3] for each in (found.cameras, cameras))
    assert float((places - truth).norm(dim=-1).max()) < 0.5, "of a distance of 4 to 5"
    assert not found.ambiguous
    assert found.alternative is None
    assert float(found.errors.max()) < 0.25
    assert float(found.confidence.min()) > 0.85


@pytest.mark.parametrize("believed", range(4))
def test_what_the_model_believes_decides_where_pictures_do_not(believed: int) -> None:
    found, cameras = follow(torch.full((6, 3), 0.9), tuple(3.0 * (place == believed) for place in range(4)))
    turns = found.cameras.world_from_camera[:, :3, :3].mT @ cameras.world_from_camera[:, :3, :3]
    away = [0.0, math.pi, math.pi, math.pi][believed]
    assert torch.allclose(rotation_angle(turns), torch.full((4,), away), atol=0.03)
    assert found.ambiguous


def test_a_symmetric_object_is_said_to_be_ambiguous(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found, _ = follow(torch.full((6, 3), 0.9))
    assert found.ambiguous
    assert "ambiguous" in caplog.text
    assert found.confidence.tolist() == [0.0] * 4
    assert found.alternative is not None
    turns = found.cameras.world_from_camera[:, :3, :3].mT @ found.alternative.world_from_camera[:, :3, :3]
    assert float(rotation_angle(turns).min()) > math.radians(90)


def test_frames_without_the_object_have_the_nearest_pose_and_no_confidence() -> None:
    thing = box()
    images, masks, cameras = video(thing)
    masks[1] = False
    crops = crop_object(images[masks.flatten(1).any(-1)], masks[[0, 2, 3]], cameras.intrinsics[:3], 48)
    truth = invert_pose(cameras.world_from_camera)[[0, 2, 3], :3, :3]
    model = Oracle(crops.camera_from_crop.mT @ truth)
    found = follow_object(model, thing, images, masks, cameras.intrinsics, size=48)
    assert found.seen.tolist() == [True, False, True, True]
    assert torch.equal(found.cameras.world_from_camera[1], found.cameras.world_from_camera[0])
    assert float(found.confidence[1]) == 0
    assert float(found.uncertainty[1]) == pytest.approx(math.pi)
    with pytest.raises(UserError, match="no mask shows the object"):
        follow_object(model, thing, images, torch.zeros_like(masks))


@pytest.mark.parametrize(
    ("masks", "lenses", "message"),
    [
        ((2, 8, 8), None, r"masks are \(2, 8, 8\) and images \(3, 3, 8, 8\); give one mask"),
        ((3, 8, 9), None, "give one mask of its size for each frame"),
        ((3, 8, 8), (1, 3, 3), r"intrinsics are \(1, 3, 3\); give one matrix for each of 3 frames"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    masks: tuple[int, ...], lenses: tuple[int, ...] | None, message: str
) -> None:
    given = torch.ones(masks, dtype=torch.bool)
    cameras = None if lenses is None else torch.eye(3).expand(lenses)
    with pytest.raises(UserError, match=message):
        follow_object(Oracle(torch.eye(3).expand(3, 3, 3)), box(), torch.zeros(3, 3, 8, 8), given, cameras)


def test_different_hypotheses_are_apart_and_the_likeliest_first() -> None:
    model = Oracle(torch.eye(3).expand(2, 3, 3))
    images = torch.zeros(2, 1, 3, 8, 8)
    clip = Clip(images=images, times=torch.zeros(2, 1), camera_ids=torch.zeros(2, 1, dtype=torch.int64))
    found, unlikely = different(model(clip), 3)
    assert torch.equal(found.rotation[0, 0], FLIPS[1])
    assert torch.allclose(unlikely[0], -model.scores.log_softmax(-1)[[1, 2, 3]])
    assert found.rotation.shape == (2, 3, 3, 3)
    near = Oracle(roma.rotvec_to_rotmat(torch.zeros(2, 3)))
    near.rotations = torch.eye(3).expand(2, 1, 4, 3, 3)
    again, _ = different(near(clip), 3)
    assert torch.equal(again.rotation, torch.eye(3).expand(2, 3, 3, 3)), "repeated where no others are apart"
    with pytest.raises(UserError, match=r"model\.kind=pose_net"):
        different(Prediction(), 3)
    with pytest.raises(UserError, match="hypotheses must be at least 1"):
        FollowConfig(hypotheses=0)
