"""Depth along rays: true where features are exact, whatever the frames' order, learned end to end, and off if off."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from four_d.correlation import CorrelationConfig
from four_d.cost_volume import CostVolume, CostVolumeConfig, expected, sources_of, sweep
from four_d.errors import UserError
from four_d.geometry import make_pose, unproject
from four_d.heads.gaussian import GaussianHead, GaussianHeadConfig
from four_d.losses import SweepLossConfig
from four_d.model import FourD, ModelConfig
from four_d.types import Cameras, Clip, Sweep
from tests.helpers import loss_value
from tests.test_spacetime import BACKBONE, posed_clip, take

CONFIG = CostVolumeConfig(hypotheses=9, near=1.0, far=4.0)
COMPARES = dataclasses.replace(
    BACKBONE,
    correlation=CorrelationConfig(channels=8, cells=4, radius=2),
    times=4,
    cost_volume=dataclasses.replace(CONFIG, near=0.3),
)
HEAD = GaussianHeadConfig(frames=4, sweep=True)
CELLS = (20, 24)
SIZE = (40, 48)


def rig(shifts: list[list[float]]) -> Cameras:
    """Cameras side by side, at these places, that look the same way; one clip."""
    lens = torch.tensor([[40.0, 0, 24], [0, 44, 20], [0, 0, 1]])
    places = torch.tensor(shifts).float()
    poses = make_pose(torch.eye(3).expand(len(shifts), 3, 3), places)
    return Cameras(world_from_camera=poses[None], intrinsics=lens.expand(1, len(shifts), 3, 3))


def surface(cameras: Cameras, depth: Tensor) -> Tensor:
    """Features (b f d y x) by which a place in the world tells itself: waves of several lengths over the plane.

    ``depth`` (f y x) is the z-depth of the cells' centres.
    """
    small = Cameras(
        world_from_camera=cameras.world_from_camera[0],
        intrinsics=cameras.intrinsics[0] * torch.tensor([[CELLS[1] / SIZE[1]], [CELLS[0] / SIZE[0]], [1.0]]),
    )
    points = unproject(depth, small)
    generator = torch.Generator().manual_seed(0)
    waves = torch.randn(3, 64, generator=generator) * 3
    maps = (points @ waves + torch.rand(64, generator=generator) * 6.28).cos()
    return torch.nn.functional.normalize(maps, dim=-1).movedim(-1, 1)[None] * 40**0.5


def clip_of(cameras: Cameras, times: list[float], ids: list[int] | None = None) -> Clip:
    count = len(times)
    return Clip(
        images=torch.zeros(1, count, 3, *SIZE),
        times=torch.tensor([times]).float(),
        camera_ids=torch.tensor([ids or [0] * count]),
        cameras=cameras,
    )


@pytest.mark.parametrize("spacing", ["inverse", "log"])
def test_the_likeliest_depth_of_a_plane_is_the_true_one(spacing: str) -> None:
    cameras = rig([[0, 0, 0], [0.6, 0, 0], [-0.2, 0.5, 0.1]])
    volume = dataclasses.replace(CONFIG, spacing=spacing).build(8, 2)  # pyright: ignore[reportArgumentType]
    keys = torch.tensor([[0]])
    for index in (2, 4, 6):
        depth = volume.depths[index]
        heights = depth - cameras.world_from_camera[0, :, 2, 3]  # the plane z = depth of the world
        features = surface(cameras, heights[:, None, None].expand(-1, *CELLS))
        clip = clip_of(cameras, [0, 1, 2])
        similarity, seen = sweep(features, keys, sources_of(clip, keys, 8), cameras, volume.depths, SIZE)
        both = similarity.sum(2)[0, 0][seen[0, 0].all((0, -1))]
        assert len(both) > 50
        assert (both.argmax(-1) == index).float().mean() > 0.98
        _, found = volume(features, clip, cameras, keys)
        inside = seen[0, 0].all((0, -1))
        errors = (found.depth[0, 0][inside] / depth).log().abs()
        assert errors.median() < 0.02
        assert found.confidence[0, 0][inside].median() > 0.7


def test_unseen_places_say_nothing() -> None:
    cameras = rig([[0, 0, 0], [0, 0, 9]])  # the other frame is past everything
    volume = CONFIG.build(8, 2)
    keys = torch.tensor([[0]])
    features = torch.randn(1, 2, 8, *CELLS)
    added, found = volume(features, clip_of(cameras, [0, 1]), cameras, keys)
    assert added.isfinite().all()
    torch.testing.assert_close(found.confidence, torch.full_like(found.confidence, 3 / 9))
    torch.testing.assert_close(found.depth, torch.full_like(found.depth, 2.0))  # the geometric mean of 1 and 4


def test_sources_are_of_the_same_time_then_the_nearest() -> None:
    clip = clip_of(rig([[0, 0, 0]] * 6), [0, 1, 2, 0, 1, 2], [0, 0, 0, 1, 1, 1])
    assert sources_of(clip, torch.tensor([[0, 4]]), 3).tolist() == [[[3, 1, 4], [1, 0, 3]]]
    assert sources_of(clip, torch.tensor([[0]]), 99).shape == (1, 1, 5)


def model(sweeps: bool = True) -> FourD:
    torch.manual_seed(0)
    backbone = COMPARES if sweeps else dataclasses.replace(COMPARES, cost_volume=None)
    head = dataclasses.replace(HEAD, sweep=sweeps)
    return ModelConfig(backbone=backbone, heads={"gaussian": head}).build()


def woken(network: FourD) -> FourD:
    """With what begins at zero somewhere else."""
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "cost_volume" in name or "swept" in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return network


def test_it_begins_as_the_model_without_it_to_the_bit() -> None:
    clip = posed_clip(h=16, w=24)
    network, plain = model(True), model(False)
    found = network.load_state_dict(plain.state_dict(), strict=False)
    assert not found.unexpected_keys
    assert found.missing_keys
    assert all("cost_volume" in name or "swept" in name for name in found.missing_keys), "the rest is shared"
    with_it, without = network(clip).gaussians, plain(clip).gaussians
    assert with_it is not None
    assert without is not None
    for field in ("means", "scales", "opacities", "harmonics", "quats"):
        assert torch.equal(getattr(with_it, field), getattr(without, field)), field


def test_the_order_of_frames_does_not_matter() -> None:
    clip = posed_clip(h=16, w=24)
    network = woken(model())
    with torch.no_grad():
        first, second = network(clip).gaussians, network(take(clip, [0, 3, 1, 2])).gaussians
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first.means, second.means, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        off = model()(clip).gaussians
    assert off is not None
    assert (off.means - first.means).abs().max() > 1e-3, "it does something"


def test_half_precision_changes_little() -> None:
    """Cameras and comparison stay in single precision."""
    clip, network = posed_clip(h=16, w=24), woken(model())
    with torch.no_grad():
        plain = network(clip).gaussians
        with torch.autocast("cpu", torch.bfloat16):
            half = network(clip).gaussians
    assert plain is not None
    assert half is not None
    assert half.means.dtype == torch.float32
    torch.testing.assert_close(half.means, plain.means, atol=0.05, rtol=0.05)


def test_every_parameter_and_the_features_learn_from_the_depth_of_gaussians() -> None:
    network = woken(model())
    found = network(posed_clip(b=2, h=16, w=24)).gaussians
    assert found is not None
    found.means.square().sum().backward()
    for name, parameter in network.named_parameters():
        if any(each in name for each in ("cost_volume", "swept", "backbone.features")):
            assert parameter.grad is not None, name
            assert parameter.grad.abs().max() > 0, name


def test_the_head_starts_from_the_depth_that_was_found() -> None:
    network, clip = model(), posed_clip(h=16, w=24)
    head = network.heads["gaussian"]
    assert isinstance(head, GaussianHead)
    assert head.swept is not None
    assert head.swept.share.bias is not None

    def first_frame(confidence: float) -> Tensor:
        sure = torch.full_like(depth, confidence)
        found = head(dataclasses.replace(tokens, sweep=Sweep(depth=depth, confidence=sure)), clip).gaussians
        assert found is not None
        return found.means[0, : 16 * 24]

    with torch.no_grad():
        head.out.weight.zero_()
        head.swept.share.bias.fill_(1.0)  # all of the way
        tokens = network.backbone(clip, head.rounds)
        assert tokens.sweep is not None
        depth = torch.full_like(tokens.sweep.depth, 2.5)
        torch.testing.assert_close(first_frame(1.0)[:, 2], torch.full((16 * 24,), 2.5), atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(first_frame(0.0).norm(dim=-1), torch.full((16 * 24,), HEAD.start))


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UserError, match="0 < near < far"):
        CostVolumeConfig(near=2.0, far=1.0)
    with pytest.raises(UserError, match="correlation"):
        dataclasses.replace(COMPARES, correlation=None).build()
    with pytest.raises(UserError, match="cost_volume"):
        ModelConfig(backbone=dataclasses.replace(COMPARES, cost_volume=None), heads={"gaussian": HEAD}).build()
    with pytest.raises(UserError, match="position=ray"):
        GaussianHeadConfig(position="point", sweep=True)
    volume: CostVolume = CONFIG.build(8, 2)
    with pytest.raises(UserError, match="two or more"):
        volume(torch.zeros(1, 1, 8, *CELLS), clip_of(rig([[0, 0, 0]]), [0.0]), rig([[0, 0, 0]]), torch.tensor([[0]]))


def test_the_mean_depth_of_a_distribution() -> None:
    depths = torch.tensor([1.0, 2.0, 4.0, 8.0])
    chances = torch.tensor([0.0, 0.5, 0.5, 0.0]).expand(1, 1, 1, 1, 4)
    assert expected(chances, depths, "log").depth.item() == pytest.approx(8**0.5, rel=1e-5)
    assert expected(chances, depths, "inverse").depth.item() == pytest.approx(1 / 0.375, rel=1e-5)
    assert expected(chances, depths, "log").confidence.item() == 1


def test_the_volume_is_taught_by_true_depth_alone() -> None:
    clip, network = posed_clip(b=2, h=16, w=24), woken(model())
    prediction = network(clip)
    assert prediction.sweep_depth is not None
    assert prediction.match_frames is not None
    cells = torch.full((2, 4, 8, 12), 1.5)
    cells[:, [0, 2]] = prediction.sweep_depth.detach()  # the key frames'
    depth = cells.repeat_interleave(2, -1).repeat_interleave(2, -2)
    targets = dataclasses.replace(clip, depth=depth, valid=torch.ones_like(depth, dtype=torch.bool))
    assert loss_value(SweepLossConfig(), prediction, targets).item() == pytest.approx(0, abs=1e-6)
    twice = loss_value(SweepLossConfig(), prediction, dataclasses.replace(targets, depth=2 * depth))
    assert twice.item() == pytest.approx(math.log(2), rel=1e-5)
    twice.backward()
    learned = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert {"backbone.features.log_temperature", "backbone.cost_volume.log_gain"} <= learned
    assert loss_value(SweepLossConfig(), prediction, dataclasses.replace(targets, depth=None)).item() == 0
    with pytest.raises(UserError, match=r"backbone.cost_volume=\{\}"):
        loss_value(SweepLossConfig(), model(sweeps=False)(clip), targets)
