"""Novel views: which frames they are, what copying scores, and that Gaussians of the truth score well."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from four_d.errors import UserError
from four_d.evaluation.novel import copies, copy_scores, nearest_frames, novel_frames, novel_scores
from four_d.evaluation.scores import gaussian_scale
from four_d.types import Cameras, Clip, Gaussians, Prediction, Segment

TIMES = [0.0, 0.1, 0.2, 0.3] * 2


def make_clip() -> Clip:
    """Camera 0 at times 0 and 0.2; to be shown: camera 1 then, and camera 0 in between."""
    poses = torch.eye(4).repeat(5, 1, 1)
    poses[2:4, 0, 3] = 0.3
    lens = torch.tensor([[16.0, 0, 8], [0, 16, 8], [0, 0, 1]]).expand(5, 3, 3)
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    times, ids = torch.tensor([0.0, 0.2, 0.0, 0.2, 0.1]), torch.tensor([0, 0, 1, 1, 0])

    def part(rows: slice) -> Clip:
        return Clip(
            images=images[rows],
            times=times[rows],
            camera_ids=ids[rows],
            cameras=Cameras(world_from_camera=poses[rows], intrinsics=lens[rows]),
        )

    return dataclasses.replace(part(slice(0, 2)), views=part(slice(2, 5)))


def sheet(colour: float) -> Gaussians:
    """A dense grey wall at depth 2."""
    x = torch.linspace(-3, 3, 40)
    place = torch.stack([*torch.meshgrid(x, x, indexing="xy"), torch.full((40, 40), 2.0)], dim=-1).reshape(-1, 3)
    return Gaussians(
        means=place,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(1600, 4),
        scales=torch.tensor([0.1, 0.1, 0.01]).expand(1600, 3),
        opacities=torch.full((1600,), 0.99),
        harmonics=torch.full((1600, 1, 3), (colour - 0.5) / 0.28209479177387814),
    )


def wall(colour: float) -> list[Segment]:
    return [Segment(gaussians=sheet(colour), start=0.0)]


def test_novel_frames_are_all_others_within_the_examples_time() -> None:
    assert novel_frames(TIMES, [0, 2]) == [1, 4, 5, 6]
    assert novel_frames(TIMES, [1, 2]) == [5, 6]


def test_copies_are_nearest_in_time_then_in_place() -> None:
    clip = make_clip()
    assert nearest_frames(clip, clip.views).tolist()[:2] == [0, 1]
    assert torch.equal(copies(clip, clip.views).colour[1], clip.images[1])
    both = dataclasses.replace(clip, times=torch.zeros(2))
    both.cameras.world_from_camera[1, 0, 3] = 0.25
    assert nearest_frames(both, clip.views).tolist() == [1, 1, 0]


def test_the_right_gaussians_score_better_than_a_copy() -> None:
    clip = make_clip()
    grey = torch.full_like(clip.views.images, 0.7)
    clip = dataclasses.replace(clip, views=dataclasses.replace(clip.views, images=grey))
    scores = novel_scores(wall(0.7), clip)
    assert scores["render_psnr"] > 30
    assert scores["render_psnr"] > novel_scores(wall(0.2), clip)["render_psnr"] + 15
    assert copy_scores(clip)["render_psnr"] < 15
    assert scores["render_novel_time_psnr"] > 30
    assert scores["render_ssim"] == pytest.approx(1, abs=0.1)
    assert novel_scores(wall(0.7), dataclasses.replace(clip, views=None)) == {}


def test_only_views_whose_cameras_are_known_are_scored() -> None:
    clip = make_clip()
    grey = torch.full_like(clip.views.images, 0.7)
    grey[1] = 0.1  # whose camera is not known: a picture of it would mean nothing
    known = torch.tensor([True, False, True])
    cameras = dataclasses.replace(clip.views.cameras, known=known)
    views = dataclasses.replace(clip.views, images=grey, cameras=cameras)
    assert novel_scores(wall(0.7), dataclasses.replace(clip, views=views))["render_psnr"] > 30
    none = dataclasses.replace(views, cameras=dataclasses.replace(cameras, known=torch.zeros(3, dtype=torch.bool)))
    assert novel_scores(wall(0.7), dataclasses.replace(clip, views=none)) == {}


def test_frames_of_unknown_cameras_are_copied_only_where_there_are_no_others() -> None:
    clip = dataclasses.replace(make_clip(), times=torch.zeros(2))
    clip.cameras.world_from_camera[0, 0, 3] = 5.0
    some = dataclasses.replace(clip.cameras, known=torch.tensor([True, False]))
    assert nearest_frames(dataclasses.replace(clip, cameras=some), clip.views).tolist() == [0, 0, 0]


def test_the_scale_of_own_cameras_is_of_depth_and_never_guessed() -> None:
    clip, depth = make_clip(), torch.full((2, 16, 16), 3.0)
    told = dataclasses.replace(clip, depth=2 * depth, valid=depth > 0)
    own = Prediction(cameras=clip.cameras, depth=depth)
    assert gaussian_scale(own, told) == pytest.approx(2)
    assert gaussian_scale(own, clip) is None
    assert gaussian_scale(Prediction(), clip) == 1
    with pytest.raises(UserError, match=r"no depth head.*pictures=false"):
        gaussian_scale(Prediction(cameras=clip.cameras), told)
