from __future__ import annotations

import dataclasses

import pytest
import roma
import torch
from torch import Tensor

from four_d import geometry
from four_d.errors import UserError
from four_d.metrics import baselines, pose
from four_d.metrics.depth import masked_mean
from four_d.types import Cameras, Clip, Example


def example(depth: Tensor, poses: Tensor, times: Tensor, ids: Tensor | None = None, key: str = "clip") -> Example:
    """A batch of one clip; depth f h w, poses f 4 4."""
    frames, height, width = depth.shape
    inputs = Clip(
        images=torch.zeros(1, frames, 3, height, width),
        times=times[None],
        camera_ids=torch.zeros(1, frames, dtype=torch.long) if ids is None else ids[None],
    )
    intrinsics = torch.tensor([[width * 0.8, 0, width / 2], [0, height * 1.2, height / 2], [0, 0, 1]])
    cameras = Cameras(
        world_from_camera=poses[None].float(),
        intrinsics=intrinsics.expand(1, frames, 3, 3),
        known=torch.ones(1, frames).bool(),
    )
    targets = dataclasses.replace(inputs, depth=depth[None], valid=depth[None] > 0, cameras=cameras)
    return Example(inputs=inputs, targets=targets, key=[key])


def path(centres: Tensor, angles_deg: Tensor | None = None) -> Tensor:
    """Poses at f 3 centres, turned about y."""
    vectors = torch.zeros_like(centres)
    if angles_deg is not None:
        vectors[:, 1] = angles_deg.deg2rad()
    return geometry.make_pose(roma.rotvec_to_rotmat(vectors), centres)


def forward(speed: float, times: Tensor) -> Tensor:
    return path(speed * times[:, None] * torch.tensor([0.0, 0, 1]))


TIMES = torch.tensor([0.0, 1, 2, 3])


def test_the_mean_map_is_the_mean_of_depth_over_the_frames_median() -> None:
    first = torch.tensor([[1.0, 2, 3], [1, 2, 3]]).expand(4, 2, 3)  # median 2
    second = torch.tensor([[30.0, 10, 0], [30, 10, 0]]).expand(4, 2, 3)  # median 20, last column unknown
    models = baselines.fit_baselines(example(d, forward(1, TIMES), TIMES) for d in (first, second))
    clip = example(first, forward(1, TIMES), TIMES).inputs
    predicted = models["mean_depth"](clip).depth
    assert predicted is not None
    shape = torch.tensor([(0.5 + 1.5) / 2, (1 + 0.5) / 2, 1.5])
    expected = shape * 11  # the mean of the medians 2 and 20
    torch.testing.assert_close(predicted, expected.expand(1, 4, 2, 3))
    flat = models["flat_depth"](clip).depth
    assert flat is not None
    assert flat.unique().tolist() == [11]


def test_the_median_map_has_the_least_absrel_of_all_maps() -> None:
    g = torch.Generator().manual_seed(0)
    frames = torch.rand(31, 3, 4, generator=g) * 3 + 0.2
    frames[torch.rand(frames.shape, generator=g) < 0.2] = 0
    best = baselines.absrel_median(frames, 1.0)

    def error(p: Tensor) -> Tensor:
        ratio = (p - frames).abs() / frames.clamp_min(1e-6)
        return masked_mean(ratio.flatten(1).T, (frames > 0).flatten(1).T)

    for other in (best * 1.02, best * 0.98, frames.mean(0), frames.median(0).values):
        assert bool((error(other) >= error(best) - 1e-6).all())
    assert baselines.absrel_median(torch.zeros(3, 1, 1), 7.0).item() == 7


def test_maps_fit_other_image_sizes() -> None:
    ramp = torch.linspace(1, 3, 8).expand(4, 6, 8)
    models = baselines.fit_baselines([example(ramp, forward(1, TIMES), TIMES)])
    small = example(torch.ones(2, 3, 4), forward(1, TIMES[:2]), TIMES[:2]).inputs
    predicted = models["mean_depth"](small).depth
    assert predicted is not None
    assert predicted.shape == (1, 2, 3, 4)
    assert bool((predicted.diff(dim=-1) > 0).all())
    assert models["mean_depth"](example(torch.ones(2, 6, 8), forward(1, TIMES[:2]), TIMES[:2]).inputs).depth is not None


def test_frames_of_another_size_and_without_depth_are_fine() -> None:
    clips = [
        example(torch.full((4, 6, 8), 2.0), forward(1, TIMES), TIMES),
        example(torch.full((4, 3, 4), 4.0), forward(1, TIMES), TIMES),
        example(torch.zeros(4, 6, 8), forward(1, TIMES), TIMES),
    ]
    predicted = baselines.fit_baselines(clips)["mean_depth"](clips[0].inputs).depth
    assert predicted is not None
    torch.testing.assert_close(predicted, torch.full((1, 4, 6, 8), 3.0))


def test_the_static_camera_stands_and_has_the_mean_focal_length() -> None:
    clip = example(torch.ones(4, 10, 20), forward(1, TIMES), TIMES)
    cameras = baselines.fit_baselines([clip])["static_camera"](clip.inputs).cameras
    assert cameras is not None
    assert torch.equal(cameras.world_from_camera, torch.eye(4).expand(1, 4, 4, 4))
    torch.testing.assert_close(cameras.intrinsics[0, 0], torch.tensor([[16.0, 0, 10], [0, 12, 5], [0, 0, 1]]))


def test_the_line_takes_direction_and_speed_from_training_and_place_from_time() -> None:
    sideways = path(TIMES[:, None] * torch.tensor([2.0, 0, 0]))
    line = baselines.fit_baselines([example(torch.ones(4, 2, 2), sideways, TIMES)])["line_camera"]
    uneven = torch.tensor([5.0, 5.5, 9.0])
    cameras = line(example(torch.ones(3, 2, 2), forward(1, uneven), uneven).inputs).cameras
    assert cameras is not None
    assert cameras.world_from_camera[0, :, 0, 3].tolist() == pytest.approx([0, 1, 8])
    truth = path(uneven[:, None] * torch.tensor([1.0, -2, 3]))[None]
    assert pose.ate(cameras.world_from_camera, truth, "sim3").item() < 1e-5


def test_the_mean_trajectory_is_relative_to_the_first_frame_and_its_rotation_the_mean() -> None:
    turns = [torch.tensor([0.0, 10, 20, 30]), torch.tensor([0.0, 30, 40, 50])]
    ends = [path(TIMES[:, None] * torch.tensor([0.0, y, 1.0]), a) for y, a in zip((1, -1), turns)]
    world = path(torch.tensor([[5.0, 6, 7]]), torch.tensor([77.0]))
    models = baselines.fit_baselines(example(torch.ones(4, 2, 2), world @ end, TIMES) for end in ends)
    cameras = models["mean_trajectory"](
        example(torch.ones(6, 2, 2), forward(1, torch.arange(6.0)), torch.arange(6.0)).inputs
    ).cameras
    assert cameras is not None
    expected = path(TIMES[:, None] * torch.tensor([0.0, 0, 1.0]), torch.tensor([0.0, 20, 30, 40]))
    torch.testing.assert_close(cameras.world_from_camera[0, :4], expected, rtol=0, atol=1e-5)
    assert torch.equal(cameras.world_from_camera[0, 5], cameras.world_from_camera[0, 3])  # beyond the table: its end


def test_no_image_free_predictor_looks_at_the_image() -> None:
    clip = example(torch.rand(4, 6, 8) + 1, forward(1, TIMES), TIMES)
    noise = dataclasses.replace(clip.inputs, images=torch.rand(1, 4, 3, 6, 8))
    for model in baselines.fit_baselines([clip]).values():
        a, b = model(clip.inputs), model(noise)
        for left, right in ((a.depth, b.depth), (a.cameras, b.cameras)):
            if isinstance(left, Tensor) and isinstance(right, Tensor):
                assert torch.equal(left, right)
            if isinstance(left, Cameras) and isinstance(right, Cameras):
                assert torch.equal(left.world_from_camera, right.world_from_camera)


def test_unknown_cameras_teach_nothing_and_no_clip_at_all_is_an_error() -> None:
    clip = example(torch.ones(4, 2, 2), forward(1, TIMES), TIMES)
    assert clip.targets.cameras is not None
    unknown = dataclasses.replace(clip.targets.cameras, known=torch.zeros(1, 4, dtype=torch.bool))
    blind = dataclasses.replace(clip, targets=dataclasses.replace(clip.targets, cameras=unknown))
    assert "mean_trajectory" not in baselines.fit_baselines([blind])
    assert "mean_depth" in baselines.fit_baselines([blind])
    with pytest.raises(UserError, match="no training clip"):
        baselines.fit_baselines([])


def test_a_clip_whose_camera_stands_still_gives_no_direction() -> None:
    still = example(torch.ones(4, 2, 2), path(torch.zeros(4, 3)), TIMES)
    cameras = baselines.fit_baselines([still])["line_camera"](still.inputs).cameras
    assert cameras is not None
    assert cameras.world_from_camera[0, :, 2, 3].tolist() == [0, 1, 2, 3]  # forward, as untrained


def test_the_usual_direction_is_a_line_that_most_follow_not_the_mean() -> None:
    ways = torch.tensor([[1.0, 0.05, 0], [-1, 0.05, 0], [-1, 0, 0.05], [0, 0, 1], [0, 1, 0], [0, 0.7, 0.7]])
    usual = baselines.usual_direction(torch.nn.functional.normalize(ways, dim=-1))
    assert usual.tolist() == [-1, 0, 0]  # sideways by three, two of them to the left
    sideways = [path(TIMES[:, None] * torch.tensor([sign, 0.0, 0])) for sign in (1.0, -1.0, -1.0)]
    onward = forward(1, TIMES)
    clips = [example(torch.ones(4, 2, 2), poses, TIMES) for poses in (*sideways, onward)]
    cameras = baselines.fit_baselines(clips)["line_camera"](clips[0].inputs).cameras
    assert cameras is not None
    assert cameras.world_from_camera[0, 1, :3, 3].tolist() == pytest.approx([-1, 0, 0])
