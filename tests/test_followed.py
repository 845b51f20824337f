"""Motion that comparing frames found: on the ray of the place found, the least there is, none of what stands still."""

from __future__ import annotations

import dataclasses
from typing import cast

import pytest
import torch
from torch import Tensor

from four_d.backbones import BackboneConfig
from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.spacetime import SpacetimeBackbone, SpacetimeConfig, frames_for
from four_d.correlation import CorrelationConfig
from four_d.errors import UserError
from four_d.geometry import project, rebase, unproject
from four_d.heads.followed import Followed, least_motion
from four_d.heads.gaussian import GaussianHead, GaussianHeadConfig
from four_d.losses.matching import MatchingLossConfig
from four_d.model import FourD, ModelConfig
from four_d.types import Cameras, Clip, Gaussians, map_tensors
from tests.helpers import loss_value
from tests.test_spacetime import BACKBONE, posed_clip

COMPARES = dataclasses.replace(BACKBONE, correlation=CorrelationConfig(channels=8, cells=2, radius=2), times=4)
FOLLOWS = GaussianHeadConfig(frames=4, follow=True)


def model(head: GaussianHeadConfig = FOLLOWS, backbone: SpacetimeConfig = COMPARES) -> FourD:
    torch.manual_seed(0)
    return ModelConfig(backbone=backbone, heads={"gaussian": head}).build()


def gaussians_of(network: FourD, clip: Clip) -> Gaussians:
    with torch.no_grad():
        found = network(clip).gaussians
    assert found is not None
    return found


def scene() -> tuple[Clip, Cameras, Tensor]:
    """A posed clip, its cameras, and the points of its first and third frames at depth 2."""
    clip = posed_clip()
    assert clip.cameras is not None
    keys = map_tensors(
        Cameras(world_from_camera=clip.cameras.world_from_camera, intrinsics=clip.cameras.intrinsics),
        lambda tensor: tensor[:, [0, 2]],
    )
    return clip, clip.cameras, unproject(torch.full((1, 2, 16, 24), 2.0), keys)


def seen_from(cameras: Cameras, frame: int, points: Tensor) -> Tensor:
    """Pixels, of points b k h w 3, in one frame."""
    camera = Cameras(world_from_camera=cameras.world_from_camera[:, frame], intrinsics=cameras.intrinsics[:, frame])
    pixels, _ = project(points.flatten(1, 3), camera)
    return pixels.view(*points.shape[:-1], 2)


def places(clip: Clip, cameras: Cameras, points: Tensor) -> tuple[Tensor, Tensor]:
    """Steps, one per pixel, by which all four frames show the key frames' points; and those frames."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
    own = torch.stack([x + 0.5, y + 0.5], dim=-1)
    steps = torch.stack([seen_from(cameras, frame, points) - own for frame in range(4)], dim=1)
    return steps, torch.arange(4)[None, :, None].expand(1, 4, 2)


def test_what_stands_still_where_it_was_found_does_not_move() -> None:
    clip, cameras, points = scene()
    steps, frames = places(clip, cameras, points)
    motion = least_motion(points, steps, frames, cameras)
    assert motion.abs().max() < 1e-4, "the cameras moved, the points did not"


def test_the_motion_ends_on_the_ray_and_is_the_shortest_that_does() -> None:
    clip, cameras, points = scene()
    steps, frames = places(clip, cameras, points + torch.tensor([0.2, -0.1, 0.1]))
    motion = least_motion(points, steps, frames, cameras)
    for frame in range(4):
        moved = points + motion[:, frame]
        y, x = torch.meshgrid(torch.arange(16.0), torch.arange(24.0), indexing="ij")
        wanted = torch.stack([x + 0.5, y + 0.5], dim=-1) + steps[:, frame]
        torch.testing.assert_close(seen_from(cameras, frame, moved), wanted.expand(1, 2, -1, -1, -1), atol=1e-3, rtol=0)
        away = moved - cameras.world_from_camera[:, frame, :3, 3]
        assert (away * motion[:, frame]).sum(-1).abs().max() < 1e-4
    assert (motion.norm(dim=-1) <= torch.tensor([0.2, -0.1, 0.1]).norm() + 1e-4).all()
    assert motion.norm(dim=-1).mean() > 0.1


def test_a_model_that_follows_starts_static_and_its_share_moves_it() -> None:
    clip, network = posed_clip(), model()
    still = gaussians_of(network, clip)
    assert still.offsets is not None
    assert not still.offsets.any()
    head = cast(GaussianHead, network.heads["gaussian"])
    followed = cast(Followed, head.followed)
    with torch.no_grad():
        assert followed.share.bias is not None
        followed.share.bias.fill_(1.0)
    moved = gaussians_of(network, clip)
    assert clip.cameras is not None
    assert moved.offsets is not None
    matches = cast(SpacetimeBackbone, network.backbone)(clip).matches
    assert matches is not None
    points = still.means.unflatten(1, (2, 16, 24))
    expected = least_motion(points, matches.steps, matches.frames, rebase(clip.cameras))
    torch.testing.assert_close(moved.offsets, expected.flatten(2, 4))
    assert moved.offsets.any()


def test_what_was_found_is_followed_in_bf16_too() -> None:
    clip, network = posed_clip(), model()
    followed = cast(Followed, cast(GaussianHead, network.heads["gaussian"]).followed)
    assert followed.share.bias is not None
    torch.nn.init.constant_(followed.share.bias, 1.0)
    exact = gaussians_of(network, clip).offsets
    with torch.autocast("cpu", torch.bfloat16):
        rough = gaussians_of(network, clip).offsets
    assert exact is not None
    assert rough is not None
    assert rough.dtype == torch.float32
    assert rough.isfinite().all()
    assert (rough - exact).norm() < 0.1 * exact.norm()


def test_offsets_at_zero_follow_nothing() -> None:
    head = cast(GaussianHead, model(dataclasses.replace(FOLLOWS, offsets=False)).heads["gaussian"])
    assert head.followed is None


@pytest.mark.parametrize("backbone", [BACKBONE, AlternatingConfig()])
def test_following_needs_a_comparison(backbone: BackboneConfig) -> None:
    with pytest.raises(
        UserError, match=r"heads.gaussian requires matches .* 'model.backbone.correlation.*heads.gaussian.follow=false"
    ):
        ModelConfig(backbone=backbone, heads={"gaussian": FOLLOWS}).build()


@pytest.mark.parametrize("times", [None, 2])
def test_a_comparison_needs_the_number_of_times(times: int | None) -> None:
    with pytest.raises(UserError, match=r"backbone.times.*model.heads.gaussian.frames"):
        model(backbone=dataclasses.replace(COMPARES, times=times))


def test_key_frames_are_the_backbones() -> None:
    with pytest.raises(
        UserError, match=r"heads.gaussian requires tokens of every frame.* model.heads.gaussian.every=null"
    ):
        model(dataclasses.replace(FOLLOWS, every=2))


def test_a_query_time_of_no_frame_is_refused() -> None:
    with pytest.raises(UserError, match=r"query time 9.9 s is no frame's time"):
        model()(dataclasses.replace(posed_clip(), query_times=torch.tensor([[9.9]])))


def test_in_its_own_frame_nothing_was_found_elsewhere() -> None:
    matches = cast(SpacetimeBackbone, model().backbone)(posed_clip()).matches
    assert matches is not None
    own = matches.frames == torch.tensor([0, 2])
    assert own.sum() == 2
    assert not matches.steps[own].any()
    assert matches.steps[~own].any()


def test_points_behind_a_camera_do_not_jump_into_it() -> None:
    clip, cameras, points = scene()
    steps, frames = places(clip, cameras, points)
    behind = least_motion(-points - 3, steps, frames, cameras)
    assert behind.norm(dim=-1).max() < 4
    assert (behind == 0).all(-1).any()


def test_every_parameter_of_what_follows_learns() -> None:
    clip, network = posed_clip(), model()
    head = cast(GaussianHead, network.heads["gaussian"])
    torch.nn.init.normal_(cast(Followed, head.followed).share.weight, std=0.1)
    torch.nn.init.normal_(head.out.weight, std=0.1)
    across = cast(SpacetimeBackbone, network.backbone).across
    assert across is not None
    torch.nn.init.normal_(across.project.weight, std=0.1)
    found = network(clip).gaussians
    assert found is not None
    values = [getattr(found, field.name) for field in dataclasses.fields(found)]
    torch.stack([value.square().sum() for value in values if value is not None]).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


def test_a_time_is_searched_in_the_key_frames_own_camera() -> None:
    clip = dataclasses.replace(
        posed_clip(),
        times=torch.tensor([[0.0, 0.1, 0.0, 0.1]]),
        camera_ids=torch.tensor([[0, 0, 1, 1]]),
    )
    assert frames_for(clip, torch.tensor([[0, 2]]), torch.tensor([0.1])).tolist() == [[1, 3]]


def test_the_matching_loss_teaches_the_features_of_key_frames() -> None:
    clip, network = posed_clip(), model()
    asked = dataclasses.replace(clip, query_times=clip.times[:, [3, 1]])
    prediction = network(asked)
    assert prediction.match_logits is not None
    assert prediction.match_logits.shape == (1, 2, 2, 4, 6, 25)
    assert prediction.match_frames is not None
    assert prediction.match_frames.tolist() == [[0, 2]]
    shape = (1, 2, 4, 16, 24)
    targets = dataclasses.replace(
        asked,
        depth=torch.full((1, 4, 16, 24), 2.0),
        valid=torch.ones(1, 4, 16, 24, dtype=torch.bool),
        motion=torch.zeros(*shape, 3),
        motion_valid=torch.ones(shape, dtype=torch.bool),
        motion_visible=torch.ones(shape, dtype=torch.bool),
    )
    loss = loss_value(MatchingLossConfig(), prediction, targets)
    loss.backward()
    features = cast(SpacetimeBackbone, network.backbone).features
    assert features is not None
    assert loss > 0
    assert all(p.grad is not None and p.grad.any() for p in features.encoder.parameters())
    # The same question for one time at a time gives the same logits: they are of the times asked for, in that order.
    alone = network(dataclasses.replace(clip, query_times=clip.times[:, [1]])).match_logits
    torch.testing.assert_close(alone, prediction.match_logits[:, 1:])
