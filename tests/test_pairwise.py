from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from four_d.errors import UserError
from four_d.evaluation.pairwise import Pairwise
from four_d.types import Cameras, Clip, Prediction
from tests.helpers import Says
from tests.motion_scene import FRAMES, TIMES, Oracle, scene


def geometry_of(prediction: Prediction) -> Cameras:
    assert prediction.cameras is not None
    return prediction.cameras


def assert_same(left: Prediction, right: Prediction) -> None:
    pairs = [(getattr(left, name), getattr(right, name)) for name in ("points", "depth", "motion")]
    pairs.append((geometry_of(left).world_from_camera, geometry_of(right).world_from_camera))
    pairs.append((geometry_of(left).intrinsics, geometry_of(right).intrinsics))
    for mine, other in pairs:
        assert (mine is None) == (other is None)
        if mine is not None:
            torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("points", [True, False])
@pytest.mark.parametrize("unit", [lambda _: 1.0, lambda frames: 1.0 + frames[0] + 0.5 * frames[1] - 0.5])
def test_pairs_of_a_perfect_model_are_the_perfect_model(points: bool, unit: Callable[[list[int]], float]) -> None:
    example = scene()
    oracle = Oracle(example, points=points, unit=unit)
    pairwise = Pairwise(model=oracle)(example.inputs)
    assert_same(pairwise, Oracle(example, points=points)(example.inputs))
    assert all(len(frames) == 2 for frames in oracle.clips)
    assert len(oracle.clips) == FRAMES * (FRAMES - 1)


def test_visibility_comes_from_the_pair_and_a_frame_sees_its_own_points() -> None:
    example = scene()
    visible = Pairwise(model=Oracle(example))(example.inputs).motion_visible
    truth = example.targets.motion_visible
    assert visible is not None
    assert truth is not None
    own = torch.eye(FRAMES, dtype=torch.bool)
    assert torch.equal(visible[0][~own], truth[0][~own].float())
    assert bool((visible[0][own] == 1).all())


def test_of_two_frames_at_a_query_time_the_first_is_asked() -> None:
    times = torch.tensor([0.0, 0.3, 0.3, 1.1])
    example = scene(times=times)
    oracle = Oracle(example)
    pairwise = Pairwise(model=oracle)(example.inputs)
    assert_same(pairwise, Oracle(example)(example.inputs))
    assert [0, 1] in oracle.clips
    assert [3, 1] in oracle.clips
    assert [3, 2] not in oracle.clips
    assert [1, 2] not in oracle.clips
    assert pairwise.motion is not None
    assert not bool(pairwise.motion[0, 1, [1, 2]].any())  # at their own time


def test_clips_of_a_batch_and_query_times_in_any_order() -> None:
    one, two = scene(), scene()
    turned = torch.tensor([[2, 0, 3, 1], [1, 3, 0, 2]])
    images = torch.cat([one.inputs.images, two.inputs.images])
    clip = Clip(
        images=images,
        times=TIMES.expand(2, -1),
        camera_ids=torch.zeros(2, FRAMES, dtype=torch.long),
        query_times=TIMES[turned],
    )
    assert_same(Pairwise(model=Oracle(one))(clip), Oracle(one)(clip))


def test_without_query_times_only_the_first_frames_pairs_are_shown() -> None:
    example = scene()
    oracle = Oracle(example)
    said = Pairwise(model=oracle)(dataclasses.replace(example.inputs, query_times=None))
    assert said.motion is None
    assert oracle.clips == [[0, t] for t in range(1, FRAMES)]


def test_hints_are_those_of_the_pair_in_its_first_frames_camera() -> None:
    example = scene()
    assert example.targets.cameras is not None
    flags = torch.ones(1, FRAMES, dtype=torch.bool)
    cameras = dataclasses.replace(example.targets.cameras, known=flags, intrinsics_known=flags)
    shown: list[Clip] = []
    oracle = Oracle(example)

    def model(clip: Clip) -> Prediction:
        shown.append(clip)
        return oracle(clip)

    hinted = dataclasses.replace(example.inputs, cameras=cameras, depth=example.targets.depth)
    Pairwise(model=Says(model))(hinted)
    pairs = torch.cat([geometry_of_clip(clip) for clip in shown])
    true = cameras.world_from_camera[0].double()
    for frames, poses in zip(oracle.clips, pairs, strict=True):
        relative = torch.linalg.inv(true[frames[0]]) @ true[frames]
        torch.testing.assert_close(poses.double(), relative, atol=1e-5, rtol=0)
    assert all(clip.depth is not None and clip.depth.shape[1] == 2 for clip in shown)


def geometry_of_clip(clip: Clip) -> torch.Tensor:
    assert clip.cameras is not None
    assert clip.cameras.known is not None
    assert bool(clip.cameras.known.all())
    return clip.cameras.world_from_camera


def test_what_pairs_cannot_do_is_named() -> None:
    example = scene()
    with pytest.raises(UserError, match="no camera head"):
        Pairwise(model=Says(lambda _: Prediction(depth=torch.ones(1, 2, 6, 8))))(example.inputs)
    one = Clip(
        images=example.inputs.images[:, :1], times=TIMES[None, :1], camera_ids=torch.zeros(1, 1, dtype=torch.long)
    )
    with pytest.raises(UserError, match="two frames"):
        Pairwise(model=Oracle(example))(one)
    late = dataclasses.replace(example.inputs, query_times=torch.tensor([[0.0, 9.0]]))
    with pytest.raises(UserError, match="time of no frame"):
        Pairwise(model=Oracle(example))(late)


def test_passes_answer_one_query_time_each() -> None:
    example = scene()
    pairwise = Pairwise(model=Oracle(example))
    whole, passes = pairwise(example.inputs).motion, list(pairwise.passes(example.inputs))
    assert whole is not None
    assert [each.motion.shape[1] for each in passes if each.motion is not None] == [1] * len(TIMES)
    assert torch.equal(torch.cat([each.motion for each in passes if each.motion is not None], dim=1), whole)
