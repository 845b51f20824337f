"""Clips shown backwards: the same pictures and truth, in the other order of time."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from four_d.data.augment import NO_AUGMENT
from four_d.data.contract import RawClip, problems
from four_d.data.crops import Crop
from four_d.data.loading import turned
from four_d.data.motion import with_motion
from four_d.data.reversal import reverse
from four_d.data.sampling import to_clip
from four_d.data.truth import truth
from four_d.types import Clip
from tests.helpers import box_clip, without_surface

COUNT = 5


@pytest.fixture(scope="module")
def clip() -> RawClip:
    return box_clip(seed=4, frames=COUNT, cameras=1, size=24)


@pytest.mark.parametrize("surface", [True, False])
def test_truth_is_that_of_the_same_frames(clip: RawClip, surface: bool) -> None:
    forward = clip if surface else without_surface(clip)
    backward = reverse(forward, COUNT)
    assert problems(backward) == []
    assert backward.info.times == sorted(backward.info.times)
    np.testing.assert_allclose(np.diff(backward.info.times), np.diff(clip.info.times)[::-1])
    one, other = truth(forward), truth(backward)
    for name in ("depth", "dynamic"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name).flip(0))
    np.testing.assert_array_equal(backward.images, clip.images[::-1])
    again = reverse(backward, COUNT)
    np.testing.assert_allclose(again.info.times, clip.info.times, atol=1e-9)
    np.testing.assert_array_equal(again.images, clip.images)
    if surface:
        assert backward.surface is not None
        assert clip.surface is not None
        np.testing.assert_array_equal(
            backward.surface.vertices[clip.surface.moving], backward.surface.moving_vertices[0]
        )


@pytest.mark.parametrize("surface", [True, False])
def test_motion_to_a_frame_is_the_same_backwards(clip: RawClip, surface: bool) -> None:
    """In each clip's own coordinates, those of its first frame, so lengths are compared."""
    forward = clip if surface else without_surface(clip)
    found: list[Clip] = []
    for raw in (forward, reverse(forward, COUNT)):
        whole = to_clip(raw, with_surface=True)
        chosen = whole.times[1:2] if raw is forward else whole.times[COUNT - 2 : COUNT - 1]
        found.append(with_motion(whole, chosen))
    one, other = found
    assert one.motion is not None
    assert other.motion is not None
    assert one.motion_valid is not None
    assert other.motion_valid is not None
    torch.testing.assert_close(other.motion_valid.flip(1), one.motion_valid)
    torch.testing.assert_close(other.motion.flip(1).norm(dim=-1), one.motion.norm(dim=-1), atol=1e-4, rtol=1e-3)
    assert (one.motion.norm(dim=-1) > 0.01).any()


def test_frames_after_the_example_s_keep_their_place(clip: RawClip) -> None:
    backward = reverse(clip, 3)
    np.testing.assert_array_equal(backward.images[3:], clip.images[3:])
    np.testing.assert_array_equal(backward.images[:3], clip.images[2::-1])
    turn = clip.info.times[0] + clip.info.times[2]
    np.testing.assert_allclose(backward.info.times[3:], [turn - time for time in clip.info.times[3:]])


def test_only_a_share_of_the_clips_is_turned_and_none_draws_nothing(clip: RawClip) -> None:
    rng = np.random.default_rng(0)
    state = rng.bit_generator.state
    assert turned(clip, COUNT, NO_AUGMENT, rng) is clip
    assert rng.bit_generator.state == state
    half = dataclasses.replace(NO_AUGMENT, reverse_share=0.5)
    same = sum(turned(clip, COUNT, half, rng) is clip for _ in range(40))
    assert 8 < same < 32


def test_windows_of_frames_are_turned_with_them(clip: RawClip) -> None:
    corner = np.arange(2 * len(clip.images)).reshape(-1, 2)
    crop = Crop(corner=corner, pixel=np.asarray(corner + 1.0, np.float64), size=clip.images.shape[1:3], reduction=1)
    found = reverse(dataclasses.replace(clip, crop=crop), 3).crop
    assert found is not None
    order = [2, 1, 0, *range(3, len(corner))]
    np.testing.assert_array_equal(found.corner, corner[order])
    np.testing.assert_array_equal(found.pixel, crop.pixel[order])
