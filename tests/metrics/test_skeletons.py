from __future__ import annotations

import dataclasses

import pytest
import roma
import torch
from torch import Tensor

from four_d import fields
from four_d.heads.keypoint import KeypointPrediction
from four_d.keypoints import box_sides, encode_names
from four_d.losses.keypoint import KeypointLossConfig
from four_d.losses.term import LossInputs
from four_d.metrics import skeletons
from four_d.types import Clip, Keypoints

TIMES = torch.tensor([0.0, 0.1, 0.3, 0.35, 0.6])
EDGES = torch.tensor([[0, 1], [1, 2]])


def cloud() -> Tensor:
    return torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


ALL = torch.ones(5, 4, dtype=torch.bool)


def test_the_truth_has_no_error() -> None:
    truth = cloud()
    assert skeletons.mpjpe(truth, truth, ALL) == pytest.approx(0, abs=1e-9)
    assert skeletons.procrustes_mpjpe(truth, truth, ALL) == pytest.approx(0, abs=1e-12)
    assert skeletons.acceleration_error(truth, truth, ALL, TIMES) == pytest.approx(0, abs=1e-9)


def test_each_frames_similarity_is_forgiven_by_procrustes_only() -> None:
    truth = cloud()
    turns = roma.random_rotmat(5).double()
    moved = 2 * truth @ turns.mT + torch.randn(5, 1, 3, dtype=torch.float64)
    assert skeletons.procrustes_mpjpe(moved, truth, ALL) == pytest.approx(0, abs=1e-6)
    found = skeletons.mpjpe(moved, truth, ALL)
    assert found is not None
    assert found > 0.5


def test_procrustes_by_hand() -> None:
    """A square bent to a saddle: no rotation is better than none, and the best scale is 2 / (2 + h²)."""
    square = torch.tensor([[1.0, 1, 0], [-1, 1, 0], [-1, -1, 0], [1, -1, 0]], dtype=torch.float64)
    height = 0.5
    saddle = square + height * torch.tensor([[0.0, 0, 1], [0, 0, -1], [0, 0, 1], [0, 0, -1]], dtype=torch.float64)
    scale = 2 / (2 + height**2)
    expected = (2 * (1 - scale) ** 2 + (scale * height) ** 2) ** 0.5
    valid = torch.ones(1, 4, dtype=torch.bool)
    assert skeletons.procrustes_mpjpe(saddle[None], square[None], valid) == pytest.approx(expected)
    assert skeletons.procrustes_mpjpe(7 * saddle[None] + 3, square[None], valid) == pytest.approx(expected)
    assert skeletons.mpjpe(saddle[None], square[None], valid) == pytest.approx(height)


def test_points_without_truth_count_nowhere() -> None:
    truth, valid = cloud(), ALL.clone()
    valid[2, 1] = False
    wrong = truth.clone()
    wrong[2, 1] = torch.nan
    for score in (skeletons.mpjpe, skeletons.procrustes_mpjpe):
        assert score(wrong, truth, valid) == pytest.approx(0, abs=1e-12)
    assert skeletons.acceleration_error(wrong, truth, valid, TIMES) == pytest.approx(0, abs=1e-9)
    assert skeletons.bone_variance(wrong, valid, EDGES) == skeletons.bone_variance(truth, valid, EDGES)


def test_frames_of_two_points_have_no_similarity() -> None:
    valid = ALL.clone()
    valid[:, 2:] = False
    assert skeletons.procrustes_mpjpe(cloud(), cloud(), valid) is None


def test_acceleration_by_hand() -> None:
    """The acceleration of x = 3t² is 6 at any times; constant velocity and place do not matter."""
    truth = torch.zeros(5, 2, 3)
    moved = truth.clone()
    moved[..., 0] = (3 * TIMES**2 + 7 * TIMES + 1)[:, None]
    valid = torch.ones(5, 2, dtype=torch.bool)
    assert skeletons.acceleration_error(moved, truth, valid, TIMES) == pytest.approx(6, rel=1e-4)
    assert skeletons.jerk(moved, valid, TIMES) == pytest.approx(0, abs=1e-2)
    moved[..., 1] = (TIMES**3)[:, None]
    assert skeletons.jerk(moved, valid, TIMES) == pytest.approx(6, rel=1e-3)


def test_two_frames_have_no_acceleration_and_no_points_no_score() -> None:
    points, valid = torch.zeros(2, 1, 3), torch.ones(2, 1, dtype=torch.bool)
    assert skeletons.acceleration_error(points, points, valid, torch.tensor([0.0, 1.0])) is None
    assert skeletons.jerk(points, valid, torch.tensor([0.0, 1.0])) is None
    assert skeletons.mpjpe(points, points, ~valid) is None
    assert skeletons.bone_variance(points, valid, torch.zeros(0, 2, dtype=torch.long)) is None


def test_rigid_bones_vary_by_nothing_at_any_scale() -> None:
    rest = cloud()[0]
    rigid = rest @ roma.random_rotmat(5).double().mT
    for scale in (0.01, 1.0, 30.0):
        assert skeletons.bone_variance(scale * rigid, ALL, EDGES) == pytest.approx(0, abs=1e-12)
    grown = rigid * torch.tensor([1.0, 2, 1, 2, 1], dtype=torch.float64)[:, None, None]
    logs = torch.tensor([0.0, 2, 0, 2, 0], dtype=torch.float64).div(2).mul(torch.tensor(2.0).log())
    expected = float((logs - logs.mean()).square().mean())
    assert skeletons.bone_variance(grown, ALL, EDGES) == pytest.approx(expected, rel=1e-6)


def marked(pixels: Tensor, valid: Tensor, instances: list[int]) -> Keypoints:
    """Keypoints f n 2 in the images alone."""
    f, n = valid.shape
    return Keypoints(
        names=encode_names([f"p{index}" for index in range(n)]),
        instances=torch.tensor(instances, dtype=torch.long),
        points=torch.zeros(f, n, 3),
        valid=torch.zeros_like(valid),
        pixels=pixels,
        pixels_valid=valid,
        visible=valid,
        edges=torch.zeros(0, 2, dtype=torch.long),
        rigid=torch.zeros(0, dtype=torch.bool),
    )


def test_pck_goes_by_the_box_of_the_own_instance() -> None:
    pixels = torch.tensor([[[0.0, 0], [100, 40], [500, 500], [510, 500]]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    sides = box_sides(marked(pixels, valid, [0, 0, 1, 1]), valid)
    assert sides.tolist() == [[100.0, 100.0, 10.0, 10.0]]
    predicted = pixels + torch.tensor([4.0, 0])
    assert skeletons.pck(predicted, pixels, valid, sides, 0.05) == 0.5
    predicted[0, 0] = torch.nan
    assert skeletons.pck(predicted, pixels, valid, sides, 0.05) == 0.25
    assert box_sides(marked(pixels, valid, [0, 0, 1, 1]), ~valid).tolist() == [[0.0] * 4]
    nothing = marked(pixels[:, :0], valid[:, :0], [])
    assert box_sides(nothing, valid[:, :0]).shape == (1, 0)


def test_pixels_outside_the_image_count_neither_here_nor_in_the_loss() -> None:
    """A paw 5 pixels off: a tenth of a box to the image's edge, a twentieth of one to a nose far outside it."""
    pixels = torch.tensor([[[10.0, 10], [58.0, 10], [110.0, 10]]])
    truth = marked(pixels, torch.ones(1, 3, dtype=torch.bool), [0, 0, 0])
    found = pixels + torch.tensor([[5.0, 0], [0, 0], [40, 0]])
    points, times, cameras = torch.zeros(1, 3, 3), torch.zeros(1), torch.zeros(1, dtype=torch.long)

    def scored(size: tuple[int, int]) -> float | None:
        return skeletons.scores(points, found, truth, points, times, cameras, size).pck

    assert scored((32, 64)) == 0.5, "5 of 48 pixels is too far, and the nose is no third keypoint"
    assert scored((32, 256)) == pytest.approx(2 / 3), "5 of 100 pixels is near, 40 are not"
    assert scored((32, 40)) is None, "one alone has no box"
    prediction = KeypointPrediction(
        keypoints=points[None],
        keypoint_pixels=found[None],
        keypoint_depth=torch.ones(1, 1, 3),
        keypoint_visible_logits=torch.zeros(1, 1, 3),
        keypoint_confidence_logits=torch.zeros(1, 1, 3),
    )
    only = KeypointLossConfig(depth=0.0, points=0.0, visibility=0.0, confidence=0.0)
    for width, expected in ((64, 5 / 48 / 2), (256, 45 / 100 / 3)):
        clip = Clip(
            images=torch.zeros(1, 1, 3, 32, width),
            times=times[None],
            camera_ids=cameras[None],
            keypoints=fields.stack([truth]),
        )
        value = only.build()(LossInputs(prediction=prediction, targets=clip))
        assert value.item() == pytest.approx(expected)


def test_a_video_of_two_cameras_is_scored_camera_by_camera() -> None:
    """Frames of both cameras at one time would have no finite acceleration; padding has no bones."""
    rest = torch.tensor([[0.0, 0, 4], [0, 1, 4], [1, 1, 4], [0, 0, 0]])
    times = torch.tensor([0.0, 0.1, 0.3, 0.0, 0.1, 0.3])
    points = rest + torch.stack([times, times**2, times], dim=-1)[:, None]
    valid = torch.tensor([True, True, True, False]).expand(6, -1)
    truth = Keypoints(
        names=torch.cat([encode_names(["a", "b", "c"]), torch.zeros(1, 32, dtype=torch.int64)]),
        instances=torch.tensor([1, 1, 1, 0]),
        points=points,
        valid=valid,
        pixels=points[..., :2] * 100,
        pixels_valid=valid,
        visible=valid,
        edges=torch.tensor([[0, 1], [1, 2], [0, 0]]),
        rigid=torch.tensor([True, False, True]),
    )
    stretched = points.clone()
    stretched[3:, 1] += torch.tensor([0.0, 0.2, 0.0]) * times[3:, None]
    cameras = torch.tensor([0, 0, 0, 5, 5, 5])
    found = skeletons.scores(stretched, truth.pixels + 5, truth, points, times, cameras, (200, 200))
    assert found.pck == 1  # 5 √2 of 100 pixels
    assert found.mpjpe == pytest.approx(0.2 * 0.4 / (3 * 6), rel=1e-4)
    assert found.acceleration_error == pytest.approx(0, abs=1e-3)
    lengths = (1 + 0.2 * times[:3]).double().log()
    assert found.bone_variance == pytest.approx(float(lengths.var(correction=0)) / 2, rel=1e-4)
    same = skeletons.scores(points, None, truth, points, times, cameras, (200, 200))
    assert (same.mpjpe, same.pck) == (0, None)
    assert same.bone_variance == pytest.approx(0, abs=1e-9)


def test_repeated_frames_and_things_of_one_pixel_spoil_nothing() -> None:
    """Examples of short clips repeat frames; a thing of one known pixel has no box to measure it by."""
    times = torch.tensor([0.0, 0.1, 0.1, 0.3, 0.4])
    rest = torch.tensor([[0.0, 0, 4], [0, 1, 4], [1, 1, 4]])
    points, valid = rest + times[:, None, None], torch.ones(5, 3, dtype=torch.bool)
    truth = Keypoints(
        names=encode_names(["a", "b", "a"]),
        instances=torch.tensor([1, 1, 2]),
        points=points,
        valid=valid,
        pixels=points[..., :2] * 100,
        pixels_valid=valid,
        visible=valid,
        edges=torch.tensor([[0, 1]]),
        rigid=torch.tensor([True]),
    )
    cameras = torch.zeros(5, dtype=torch.long)
    found = skeletons.scores(points, truth.pixels, truth, points, times, cameras, (200, 200))
    assert found.pck == 1
    assert found.acceleration_error == 0
    assert found.jerk == pytest.approx(0, abs=1e-2)
    alone = valid & (truth.instances == 2)
    lonely = dataclasses.replace(truth, pixels_valid=alone)
    assert skeletons.scores(points, truth.pixels, lonely, points, times, cameras, (200, 200)).pck is None
