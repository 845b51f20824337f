"""Layers of key frames merged where they agree: one of two is left, in the place between them, as opaque as both."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import make_pose, unproject
from four_d.rendering import render
from four_d.rendering.merging import merged
from four_d.types import Cameras, Gaussians

SIZE = (12, 16)
PIXELS = SIZE[0] * SIZE[1]
TIMES = torch.tensor([[0.0, 1.0]])


def rig(step: float = 0.0) -> Cameras:
    lens = torch.tensor([[16.0, 0, 8], [0, 16, 6], [0, 0, 1]]).expand(1, 2, 3, 3)
    poses = make_pose(torch.eye(3).expand(1, 2, 3, 3), torch.tensor([[[0.0, 0, 0], [step, 0, 0]]]))
    return Cameras(world_from_camera=poses, intrinsics=lens)


def layers(cameras: Cameras, depths: tuple[float, float], opacities: tuple[float, float] = (0.6, 0.4)) -> Gaussians:
    """A plane seen by two key frames, at these depths."""
    maps = torch.stack([torch.full(SIZE, depth) for depth in depths])[None]
    means = unproject(maps, cameras).flatten(1, 3)
    count = 2 * PIXELS
    return Gaussians(
        means=means,
        quats=torch.tensor([1.0, 0, 0, 0]).expand(1, count, 4),
        scales=torch.full((1, count, 3), 0.06),
        opacities=torch.tensor(opacities).repeat_interleave(PIXELS)[None],
        harmonics=torch.linspace(0, 1, count)[None, :, None, None].expand(1, count, 1, 3),
        offsets=torch.zeros(1, 2, count, 3),
        offset_times=TIMES,
    )


def opacities_of(gaussians: Gaussians) -> Tensor:
    return gaussians.opacities[0].unflatten(0, (2, PIXELS))


def test_two_layers_of_one_surface_become_one() -> None:
    cameras = rig()
    found, left = merged(layers(cameras, (2.0, 2.1)), cameras, TIMES, SIZE)
    assert left[0, :PIXELS].all()
    assert not left[0, PIXELS:].any()
    torch.testing.assert_close(opacities_of(found)[0], torch.full((PIXELS,), 1 - 0.4 * 0.6))
    assert not opacities_of(found)[1].any()
    depth = found.means[0, :PIXELS, 2]
    torch.testing.assert_close(depth, torch.full_like(depth, 0.6 * 2.0 + 0.4 * 2.1))


def test_layers_that_disagree_stay_to_the_bit() -> None:
    cameras = rig()
    before = layers(cameras, (2.0, 2.5))
    for tolerance in (0.1, 0.0):
        found, left = merged(before, cameras, TIMES, SIZE, tolerance)
        assert left.all()
        for field in dataclasses.fields(Gaussians):
            value = getattr(before, field.name)
            assert value is None or torch.equal(getattr(found, field.name), value), field.name


def test_what_one_key_frame_alone_sees_stays() -> None:
    cameras = rig(step=1.0)  # half of the view, at depth 2
    _, left = merged(layers(cameras, (2.0, 2.0)), cameras, TIMES, SIZE)
    kept = left[0].unflatten(0, (2, *SIZE))
    assert kept[0].all()
    assert kept[1, :, 8:].all(), "the first key frame does not see it"
    assert not kept[1, :, :8].any()


def test_they_are_compared_where_they_are_at_the_other_time() -> None:
    """Something comes nearer between the key frames' times: its layers agree by its motion alone."""
    cameras = rig()
    still = layers(cameras, (2.0, 1.5), (0.4, 0.6))
    assert still.offsets is not None
    _, left = merged(still, cameras, TIMES, SIZE)
    assert left.all()
    offsets = torch.zeros_like(still.offsets)
    offsets[:, 1, :PIXELS] = still.means[:, PIXELS:] - still.means[:, :PIXELS]
    moving = dataclasses.replace(still, offsets=offsets)
    found, left = merged(moving, cameras, TIMES, SIZE)
    assert int(left.sum()) == PIXELS
    assert left[0, PIXELS:].all()
    torch.testing.assert_close(found.means[:, PIXELS:], still.means[:, PIXELS:])


def test_a_view_of_the_merged_looks_as_before() -> None:
    cameras = rig()
    before = layers(cameras, (2.0, 2.0))
    flat = dataclasses.replace(before, harmonics=torch.ones_like(before.harmonics))
    after, _ = merged(flat, cameras, TIMES, SIZE)
    one, two = (render(each, cameras, TIMES, SIZE).colour for each in (flat, after))
    assert (one - two).abs().max() < 0.05


def test_gaussians_that_are_not_pixels_are_refused() -> None:
    cameras = rig()
    with pytest.raises(UserError, match="one per pixel"):
        merged(layers(cameras, (2.0, 2.0)), cameras, TIMES, (3, 3))
