"""The Gaussian head: on the rays of the key frames, static at the start, one offset per time, and it learns."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.spacetime import SpacetimeConfig
from four_d.errors import UserError
from four_d.geometry import make_pose, pixel_centres, project, rebase
from four_d.heads.gaussian import DEGREE_0, GaussianHeadConfig
from four_d.model import FourD, ModelConfig
from four_d.rendering import render
from four_d.types import Cameras, Clip, Gaussians, Prediction, map_tensors
from tests.test_spacetime import posed_clip, take

SPACETIME = SpacetimeConfig(width=32, depth=1, heads=2, stride=2, patch_size=8)
ALTERNATING = AlternatingConfig(patch_size=8, width=32, rounds=2, heads=2, registers=2, special_std=0.5)
POINTS = GaussianHeadConfig(frames=4, position="point", every=2)


def build(head: GaussianHeadConfig, backbone: SpacetimeConfig | AlternatingConfig = SPACETIME) -> FourD:
    torch.manual_seed(0)
    return ModelConfig(backbone=backbone, heads={"gaussian": head}).build()


def gaussians_of(prediction: Prediction) -> Gaussians:
    assert prediction.gaussians is not None
    return prediction.gaussians


def key_frames_of(prediction: Prediction) -> list[list[int]]:
    assert prediction.key_frames is not None
    return prediction.key_frames.tolist()


def test_one_gaussian_per_pixel_of_each_key_frame_and_it_starts_static() -> None:
    clip = posed_clip(b=2)
    prediction = build(GaussianHeadConfig(frames=4))(clip)
    found, n = gaussians_of(prediction), 2 * 16 * 24
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    assert values.pop("turns") is None
    shapes = {name: tuple(value.shape) for name, value in values.items()}
    assert shapes == {
        "means": (2, n, 3),
        "quats": (2, n, 4),
        "scales": (2, n, 3),
        "opacities": (2, n),
        "harmonics": (2, n, 1, 3),
        "offsets": (2, 4, n, 3),
        "offset_times": (2, 4),
    }
    assert key_frames_of(prediction) == [[0, 2]] * 2
    assert found.offsets is not None
    assert not found.offsets.any()
    torch.testing.assert_close(found.offset_times, clip.times)


@pytest.mark.parametrize("depth", ["sigmoid_linear", "sigmoid_disparity", "exp"])
def test_means_lie_on_the_rays_of_their_pixels(depth: str) -> None:
    clip = posed_clip(b=2)
    assert clip.cameras is not None
    head = GaussianHeadConfig(frames=4, depth=depth, near=0.5, far=9.0, start=2.0)  # pyright: ignore[reportArgumentType]
    prediction = build(head)(clip)
    means = gaussians_of(prediction).means.unflatten(1, (2, 16 * 24))
    keys = map_tensors(rebase(clip.cameras), lambda tensor: tensor[:, [0, 2]])
    pixels, z = project(means, keys)
    torch.testing.assert_close(pixels.unflatten(2, (16, 24)), pixel_centres(16, 24, pixels).expand(2, 2, -1, -1, -1))
    along = (means - keys.world_from_camera[..., None, :3, 3]).norm(dim=-1)
    assert (z > 0).all()
    assert 0.5 < along.min() < along.max() < 9
    assert abs(float(along.detach().mean()) - 2) < 0.2


def test_colours_start_as_the_pixels() -> None:
    clip = posed_clip()
    colour = gaussians_of(build(GaussianHeadConfig(frames=4))(clip)).harmonics[0, :, 0] * DEGREE_0 + 0.5
    pixels = clip.images[0, [0, 2]].movedim(1, -1).reshape(-1, 3)
    assert (colour - pixels).abs().mean() < 0.1
    own = gaussians_of(build(GaussianHeadConfig(frames=4, from_pixels=False))(clip)).harmonics[0, :, 0] * DEGREE_0 + 0.5
    assert (own - pixels).abs().mean() > 0.15


def test_scales_and_opacities_keep_their_bounds() -> None:
    network = build(GaussianHeadConfig(frames=4, unit=0.5, largest=0.2))
    found = gaussians_of(network(posed_clip()))
    assert abs(float(found.scales.detach().log().mean()) - math.log(0.5) + 2.3) < 0.1
    assert abs(float(found.opacities.detach().logit().mean()) + 2) < 0.1
    with torch.no_grad():
        network.heads["gaussian"].out.weight.mul_(1e4)
    wild = gaussians_of(network(posed_clip()))
    assert float(wild.scales.detach().max()) == pytest.approx(0.2)
    assert wild.means.isfinite().all()
    assert wild.opacities.min() >= 0
    assert wild.opacities.max() <= 1


def learned(head: GaussianHeadConfig) -> FourD:
    """With offsets that are not nothing any more."""
    network = build(head)
    with torch.no_grad():
        torch.nn.init.normal_(network.heads["gaussian"].out.weight, std=0.1)
    return network


def test_static_is_the_same_network_that_moves_nothing() -> None:
    moving, static = (learned(GaussianHeadConfig(frames=4, offsets=each)) for each in (True, False))
    assert {n: p.shape for n, p in moving.named_parameters()} == {n: p.shape for n, p in static.named_parameters()}
    one, two = (gaussians_of(each(posed_clip())) for each in (moving, static))
    assert one.offsets is not None
    assert two.offsets is not None
    assert one.offsets.abs().min() > 0
    assert not two.offsets.any()
    torch.testing.assert_close(one.means, two.means)


def test_offsets_follow_time_not_the_order_of_frames() -> None:
    network, clip = learned(GaussianHeadConfig(frames=4)), posed_clip()
    straight, shuffled = (gaussians_of(network(each)) for each in (clip, take(clip, [0, 3, 1, 2])))
    for field in dataclasses.fields(straight):
        torch.testing.assert_close(getattr(shuffled, field.name), getattr(straight, field.name))


def test_key_frames_on_a_backbone_with_a_row_per_frame() -> None:
    clip = dataclasses.replace(posed_clip(), cameras=None)
    network = build(POINTS, ALTERNATING)
    assert key_frames_of(network(clip)) == [[0, 2]]
    assert key_frames_of(network(take(clip, [1, 3, 0, 2]))) == [[2, 3]]  # times 0 and 2
    every = build(dataclasses.replace(POINTS, every=None), ALTERNATING)
    assert key_frames_of(every(clip)) == [[0, 1, 2, 3]]
    one = torch.tensor([[False, True, False, False]])
    with_one = dataclasses.replace(take(clip, [0, 0, 1, 2, 3]), references=torch.cat([one, one[:, :1]], dim=1))
    assert key_frames_of(network(with_one)) == [[0, 3]]


def test_frames_of_a_rig_share_times_and_the_first_camera_gives_the_key_frames() -> None:
    clip = dataclasses.replace(posed_clip(f=8), cameras=None)
    rig = dataclasses.replace(
        clip, times=torch.arange(4.0).repeat_interleave(2)[None], camera_ids=torch.tensor([[7, 3] * 4])
    )
    prediction = build(POINTS, ALTERNATING)(rig)
    assert key_frames_of(prediction) == [[0, 4]]
    assert gaussians_of(prediction).offset_times.tolist() == [[0, 1, 2, 3]]


def test_points_start_where_the_first_camera_may_see_them() -> None:
    clip = dataclasses.replace(posed_clip(), cameras=None)
    means = (
        gaussians_of(build(dataclasses.replace(POINTS, start=2.0), ALTERNATING)(clip)).means.detach().view(2, 16, 24, 3)
    )
    assert abs(float(means[..., 2].mean()) - 2) < 0.2
    x, y = means[..., 0] / means[..., 2], means[..., 1] / means[..., 2]
    assert (x.mean((0, 1)).diff() > 0).float().mean() > 0.9
    assert float(x.abs().max()) < 0.8
    assert float(y.abs().max()) < 0.6


def test_mistakes_are_named_with_their_remedy() -> None:
    clip = posed_clip()
    with pytest.raises(UserError, match=r"to 6 times, and a clip has frames of 4 .* the head's frames=4"):
        build(GaussianHeadConfig(frames=6))(clip)
    bare = dataclasses.replace(clip, cameras=None)
    with pytest.raises(UserError, match=r"on rays of known cameras, and a frame has none; give them \(--cameras\)"):
        build(GaussianHeadConfig(frames=4, every=2), ALTERNATING)(bare)
    two = dataclasses.replace(posed_clip(b=2, f=8), cameras=None)
    times = torch.stack([torch.arange(4.0).repeat(2)] * 2)
    ids = torch.tensor([[0] * 4 + [1] * 4, [0] * 6 + [1] * 2])
    with pytest.raises(UserError, match=r"have 4 to 6 frames to take Gaussians from; give each as many"):
        build(POINTS, ALTERNATING)(dataclasses.replace(two, times=times, camera_ids=ids))
    with pytest.raises(UserError, match="0 < near < start < far"):
        GaussianHeadConfig(near=2.0)
    with pytest.raises(UserError, match="must be at least 1"):
        GaussianHeadConfig(every=0)


def moving_scene(seed: int) -> tuple[Clip, Cameras]:
    """Six pictures of 40 blobs, half of which move, by a camera that does too."""
    generator = torch.Generator().manual_seed(seed)
    n, f = 40, 6
    spread = torch.tensor([0.8, 0.8, 0.3])
    means = (torch.rand(1, n, 3, generator=generator) - 0.5) * 2 * spread + torch.tensor([0.0, 0, 1])
    velocity = torch.randn(1, n, 3, generator=generator) * 0.15
    velocity[:, : n // 2] = 0
    times = torch.arange(f)[None] / 5
    blobs = Gaussians(
        means=means,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(1, n, 4),
        scales=0.05 + 0.1 * torch.rand(1, n, 3, generator=generator),
        opacities=torch.full((1, n), 0.95),
        harmonics=torch.randn(1, n, 1, 3, generator=generator),
        offsets=velocity[:, None] * times[:, :, None, None],
        offset_times=times,
    )
    shift = torch.tensor([0.1, 0.02, 0.0]) * times[..., None]
    intrinsics = torch.tensor([[32.0, 0, 16], [0, 32, 16], [0, 0, 1]]).expand(1, f, 3, 3)
    cameras = Cameras(world_from_camera=make_pose(torch.eye(3).expand(1, f, 3, 3), shift), intrinsics=intrinsics)
    grey = torch.full((3,), 0.5)
    images = render(blobs, cameras, times, (32, 32), background=grey).colour.clamp(0, 1)
    return Clip(images=images, times=times, camera_ids=torch.zeros(1, f, dtype=torch.long), cameras=cameras), cameras


def error(network: FourD, clip: Clip) -> Tensor:
    assert clip.cameras is not None
    found = gaussians_of(network(clip))
    pictures = render(found, clip.cameras, clip.times, (32, 32), background=torch.full((3,), 0.5)).colour
    return (pictures - clip.images).square().mean()


def test_it_learns_two_moving_scenes() -> None:
    """By pictures alone: 5 dB and more, and offsets that are not nothing any more."""
    clips = [moving_scene(seed)[0] for seed in (0, 1)]
    backbone = SpacetimeConfig(width=64, depth=2, heads=2, stride=3, patch_size=8)
    network = build(GaussianHeadConfig(frames=6, near=0.2, far=8.0, unit=0.3), backbone)
    optimiser = torch.optim.Adam(network.parameters(), lr=3e-3)
    with torch.no_grad():
        before = sum(float(error(network, clip)) for clip in clips)
    for step in range(80):
        optimiser.zero_grad()
        error(network, clips[step % 2]).backward()
        optimiser.step()
    with torch.no_grad():
        after = sum(float(error(network, clip)) for clip in clips)
    assert 10 * math.log10(before / after) >= 5
    offsets = gaussians_of(network(clips[0])).offsets
    assert offsets is not None
    assert offsets.abs().mean() > 1e-3
