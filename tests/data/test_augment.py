"""What is done to an image is done to its truth: reprojection holds after every augmentation."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from four_d import fields, geometry, surface
from four_d.data.augment import (
    NO_AUGMENT,
    AugmentConfig,
    augment,
    blurred,
    hue_rotations,
    jitter_,
)
from four_d.data.crops import CropRule, crop, resample_depth
from four_d.data.sampling import to_clip
from four_d.data.shards import ShardReader, finalise, write_shard
from four_d.errors import UserError
from four_d.types import Cameras, Clip, map_tensors
from tests.helpers import box_clip


@pytest.fixture(scope="module")
def clip() -> Clip:
    return to_clip(box_clip(5, frames=3, cameras=2, size=(48, 64)), with_surface=True)


def plane_clip(normal: tuple[float, float, float], size: tuple[int, int] = (24, 40)) -> Clip:
    """Two cameras, far principal points, before the plane n·x = 4; the image shows the point's place on it."""
    intrinsics = torch.tensor([[30.0, 0, 17.3], [0, 32, 13.1], [0, 0, 1]]).repeat(2, 1, 1)
    poses = torch.eye(4).repeat(2, 1, 1)
    poses[1, :3, :3] = torch.linalg.matrix_exp(torch.tensor([[0.0, -0.1, 0.2], [0.1, 0, -0.05], [-0.2, 0.05, 0]]))
    poses[1, :3, 3] = torch.tensor([0.3, -0.2, 0.1])
    cameras = Cameras(world_from_camera=poses, intrinsics=intrinsics)
    n = torch.tensor(normal)
    pixels = geometry.pixel_centres(*size, n).reshape(-1, 2)
    directions = geometry.rays(intrinsics, pixels.expand(2, -1, -1)) @ poses[:, :3, :3].mT
    depth = (4 - poses[:, :3, 3] @ n)[:, None] / (directions @ n)
    points = poses[:, None, :3, 3] + directions * depth[..., None]
    images = ((points / 12) + 0.5).clamp(0, 1).mT.reshape(2, 3, *size)
    depth = depth.reshape(2, *size)
    return Clip(
        images=images,
        times=torch.zeros(2),
        camera_ids=torch.arange(2),
        cameras=cameras,
        depth=depth,
        valid=depth > 0,
        dynamic=torch.zeros_like(depth, dtype=torch.bool),
    )


def cropped_and_augmented(clip: Clip, size: tuple[int, int], config: AugmentConfig, rng: np.random.Generator) -> Clip:
    return augment(crop(clip, config.crop_rule(size, rng)), config, rng)


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    height=st.integers(4, 60),
    width=st.integers(4, 60),
    mirrored=st.booleans(),
)
def test_reprojection_holds_on_a_slanted_plane(seed: int, height: int, width: int, mirrored: bool) -> None:
    normal = (0.25, -0.2, 1.0)
    config = dataclasses.replace(NO_AUGMENT, zoom=0.5, mirror_share=float(mirrored))
    changed = cropped_and_augmented(plane_clip(normal), (height, width), config, np.random.default_rng(seed))
    assert changed.cameras is not None
    assert changed.depth is not None
    assert changed.valid is not None
    points = geometry.unproject(changed.depth, changed.cameras)
    flip = torch.tensor([-1.0 if mirrored else 1.0, 1, 1])
    assert bool(changed.valid.all())
    off = ((points * flip) @ torch.tensor(normal) - 4).abs()
    assert float(off.max()) < 2e-4
    if min(height, width) > 8:
        # the colour was the place: it still is, but for the filter's blur at the border
        shown = (changed.images.movedim(1, -1) - 0.5) * 12 * flip
        inside = (slice(None), slice(2, -2), slice(2, -2))
        assert float((shown - points)[inside].abs().max()) < 0.12


@settings(max_examples=20)
@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(16, 70), st.integers(16, 70)))
def test_depth_agrees_with_the_surface_seen_by_the_changed_camera(seed: int, size: tuple[int, int]) -> None:
    clip = to_clip(box_clip(5, frames=2, cameras=1, size=(48, 64)), with_surface=True)
    config = dataclasses.replace(NO_AUGMENT, zoom=0.6, mirror_share=0.5)
    changed = cropped_and_augmented(clip, size, config, np.random.default_rng(seed))
    assert changed.surface is not None
    assert changed.cameras is not None
    assert changed.depth is not None
    stored = surface.points(changed.surface, changed.times)
    pixels, z = geometry.project(stored.flatten(1, 2), changed.cameras)
    centres = geometry.pixel_centres(*size, z).reshape(-1, 2)
    # the nearest source pixel's surface lies within half a source pixel of the new centre
    assert clip.cameras is not None
    pixel = (clip.cameras.intrinsics / changed.cameras.intrinsics)[0, [0, 1], [0, 1]]
    assert float(((pixels - centres).abs() * pixel).max()) <= 0.5 + 2e-3
    close = (z.view_as(changed.depth) - changed.depth).abs() < 0.06 * changed.depth
    assert float(close.float().mean()) > 0.97


def test_the_principal_point_lands_on_the_centre_and_focal_lengths_scale(clip: Clip) -> None:
    assert clip.cameras is not None
    for size in ((48, 64), (30, 20), (64, 96)):
        changed = crop(clip, CropRule(size=size, zoom=0.8))
        assert changed.cameras is not None
        expected = torch.tensor([size[1] / 2, size[0] / 2]).expand(6, 2)
        torch.testing.assert_close(changed.cameras.intrinsics[:, :2, 2], expected, atol=1e-4, rtol=0)
        ratio = changed.cameras.intrinsics[:, [0, 1], [0, 1]] / clip.cameras.intrinsics[:, [0, 1], [0, 1]]
        # windows begin at whole pixels, and half of one is 19 of them or more
        torch.testing.assert_close(ratio, ratio[:1, :1].expand_as(ratio), rtol=1 / 19, atol=0)
        for camera in clip.camera_ids.unique():
            own = ratio[clip.camera_ids == camera]
            torch.testing.assert_close(own, own[:1].expand_as(own))


def test_a_clip_that_fits_already_stays(clip: Clip) -> None:
    assert clip.cameras is not None
    intrinsics = clip.cameras.intrinsics.clone()
    intrinsics[:, 0, 2], intrinsics[:, 1, 2] = 32, 24
    centred = dataclasses.replace(clip, cameras=dataclasses.replace(clip.cameras, intrinsics=intrinsics))
    assert crop(centred, CropRule(size=(48, 64))) is centred


def test_a_principal_point_outside_its_image_is_refused(clip: Clip) -> None:
    assert clip.cameras is not None
    intrinsics = clip.cameras.intrinsics.clone()
    intrinsics[0, 0, 2] = 70
    bad = dataclasses.replace(clip, cameras=dataclasses.replace(clip.cameras, intrinsics=intrinsics))
    with pytest.raises(UserError, match="principal point lies outside"):
        crop(bad, CropRule(size=(24, 32)))


def test_a_clip_without_truth_is_cropped_about_its_centre(clip: Clip) -> None:
    plain = Clip(images=clip.images, times=clip.times, camera_ids=clip.camera_ids)
    changed = crop(plain, CropRule(size=(24, 24)))
    assert changed.images.shape == (6, 3, 24, 24)
    expected = torch.nn.functional.interpolate(clip.images[..., 8:56], (24, 24), mode="bilinear", antialias=True)
    torch.testing.assert_close(changed.images, expected, atol=1e-5, rtol=0)


def test_resizing_down_equals_the_antialiased_filter_of_torch() -> None:
    image = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    for size in ((10, 15), (8, 12), (40, 60)):
        clip = Clip(images=image, times=torch.zeros(2), camera_ids=torch.arange(2))
        expected = torch.nn.functional.interpolate(image, size, mode="bilinear", antialias=True)
        torch.testing.assert_close(crop(clip, CropRule(size=size)).images, expected, atol=1e-5, rtol=0)


@settings(max_examples=60)
@given(
    centre=st.tuples(st.floats(0.1, 99.9), st.floats(0.1, 59.9)),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    zoom=st.floats(0.05, 1),
)
def test_windows_are_within_the_image_and_about_the_principal_point(
    centre: tuple[float, float], size: tuple[int, int], zoom: float
) -> None:
    window = CropRule(size=size, zoom=zoom).at(np.array([centre]), (60, 100))
    end = window.corner + window.pixel * size[::-1]
    assert (window.pixel > 0).all()
    assert (window.corner >= 0).all()
    assert (end < np.array([101, 61])).all()  # a window of less than a pixel takes the whole of it
    np.testing.assert_allclose((window.corner + end) / 2, [centre])
    image = torch.rand(1, 3, 60, 100)
    assert window.image(0, image).shape == (1, 3, *size)


@pytest.mark.parametrize("zoom", [1.0, 0.7])
def test_images_that_are_cropped_as_they_are_read_are_those_that_are_cropped_afterwards(
    tmp_path: Path, zoom: float
) -> None:
    """PNGs nearly bit for bit, JPEGs that are decoded to half their size nearly so where they are smooth."""
    raw = box_clip(5, frames=3, cameras=2, size=(96, 128))
    smooth = np.stack([np.asarray(Image.fromarray(image).resize((16, 12)).resize((128, 96))) for image in raw.images])
    rule = CropRule(size=(31, 36), zoom=zoom)
    for lossless, most in ((True, 1.01), (False, 12)):
        folder = tmp_path / str(lossless)
        write_shard(folder, 0, [dataclasses.replace(raw, images=smooth)], lossless=lossless)
        finalise(folder, "test")
        with ShardReader(folder) as reader:
            whole = to_clip(reader.read(0, [4, 0, 1]), with_surface=True)
            found = to_clip(reader.read(0, [4, 0, 1], rule=rule), with_surface=True)
        expected = crop(whole, rule)
        assert float((found.images - expected.images).abs().max()) <= most / 255
        for name in ("cameras", "depth", "valid", "dynamic", "surface", "times"):
            assert_same(getattr(found, name), getattr(expected, name))


def assert_same(a: object, b: object) -> None:
    tensors: list[list[torch.Tensor]] = [[], []]
    for value, into in zip((a, b), tensors, strict=True):
        map_tensors(value, lambda tensor, into=into: (into.append(tensor), tensor)[1])
    assert tensors[0]
    for one, other in zip(*tensors, strict=True):
        torch.testing.assert_close(one, other)


def test_depth_is_never_mixed_across_an_edge_or_with_invalid_pixels() -> None:
    depth = torch.tensor([[[1.0, 1.0, 5.0, 5.0, 0.0]]]).expand(1, 3, 5)
    places = torch.linspace(0.5, 4.5, 33)[None]
    found = resample_depth(depth, torch.tensor([[0.5, 1.5, 2.5]]), places)
    assert set(found.unique().tolist()) == {0.0, 1.0, 5.0}
    valid = found > 0
    assert valid[0, :, places[0] < 3.9].all()
    assert not valid[0, :, places[0] > 4.1].any()


def test_depth_that_is_no_number_is_invalid() -> None:
    depth = torch.tensor([[[1.0, torch.nan, torch.inf, 2.0]]]).expand(1, 3, 4)
    found = resample_depth(depth, torch.tensor([[0.5, 1.5, 2.5]]), torch.tensor([[0.5, 1.5, 2.5, 3.5]]))
    assert found[0, 1].tolist() == [1, 0, 0, 2]


def test_everything_of_a_pixel_is_cropped_with_it() -> None:
    """Points to follow, and maps that the crop does not know: half of the image, around its centre."""
    size, image = (4, 8), torch.rand(1, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    clip = Clip(
        images=image,
        times=torch.zeros(1),
        camera_ids=torch.zeros(1, dtype=torch.long),
        valid=torch.rand(1, *size, generator=torch.Generator().manual_seed(1)) > 0.5,
        query_points=torch.tensor([[0.0, 3, 1], [0, 4, 2]]),
    )
    assert clip.valid is not None
    found = crop(clip, CropRule(size=(2, 4), zoom=0.5))
    assert found.query_points is not None
    assert found.query_points.tolist() == [[0, 1, 0], [0, 2, 1]]
    assert torch.equal(found.valid, clip.valid[:, 1:3, 2:6])  # pyright: ignore[reportArgumentType]
    moving = dataclasses.replace(clip, motion=torch.zeros(1, 1, 4, 8, 3))
    with pytest.raises(
        ValueError, match=r"motion \('\*b q k h w 3'\) does not have all axes f, h and w, and cannot be cropped"
    ):
        crop(moving, CropRule(size=(2, 4), zoom=0.5))


def test_mirroring_twice_is_nothing_and_once_keeps_reprojection(clip: Clip) -> None:
    once = fields.mirror(clip, clip.images.shape[-1])
    twice = fields.mirror(once, clip.images.shape[-1])
    assert twice.cameras is not None
    assert clip.cameras is not None
    torch.testing.assert_close(twice.cameras.world_from_camera, clip.cameras.world_from_camera)
    torch.testing.assert_close(twice.cameras.intrinsics, clip.cameras.intrinsics)
    assert torch.equal(twice.images, clip.images)
    assert once.surface is not None
    assert once.cameras is not None
    assert float(torch.linalg.det(once.cameras.world_from_camera[:, :3, :3]).min()) == pytest.approx(1, abs=1e-5)
    derived = surface.depth(once.surface, once.cameras, once.times)
    torch.testing.assert_close(derived, once.depth, atol=1e-4, rtol=0)


def test_a_seed_gives_the_same_clip_and_another_gives_another(clip: Clip) -> None:
    config = AugmentConfig(mirror_share=0.5)
    a, b, c = (cropped_and_augmented(clip, (24, 32), config, np.random.default_rng(s)) for s in (1, 1, 2))
    assert torch.equal(a.images, b.images)
    assert not torch.equal(a.images, c.images)


def test_what_looks_alike_in_two_frames_still_does_where_frames_are_to_stay_alike() -> None:
    """A bright and a dark frame with one colour in common: contrast is about the clip's mean, not each frame's."""
    frames = (
        torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([0.9, 0.3])[:, None, None, None]
    )
    frames[:, :, 2:4, 2:4] = torch.tensor([0.4, 0.3, 0.2])[:, None, None]
    for seed in range(10):
        changed = frames.clone()
        jitter_(changed, AugmentConfig(per_frame_share=1.0), np.random.default_rng(seed), alike=True)
        assert torch.equal(changed[0, :, 2:4, 2:4], changed[1, :, 2:4, 2:4])
        assert (changed - frames).abs().max() > 0.01


def test_colours_change_for_the_clip_or_for_each_frame(clip: Clip) -> None:
    still = clip.images[:1].repeat(4, 1, 1, 1)
    together, apart, rng = still.clone(), still.clone(), np.random.default_rng(0)
    jitter_(together, AugmentConfig(per_frame_share=0.0), rng)
    jitter_(apart, AugmentConfig(per_frame_share=1.0), rng)
    assert torch.equal(together[0], together[3])
    assert not torch.equal(together[0], still[0])
    assert float((apart[0] - apart[1]).abs().mean()) > 0.01
    for images in (together, apart):
        assert 0 <= float(images.min()) <= float(images.max()) <= 1


def test_hue_turns_red_to_green_to_blue_and_leaves_grey() -> None:
    red, third = torch.tensor([1.0, 0, 0]), 2 * math.pi / 3
    green, blue = hue_rotations(torch.tensor([third, -third])) @ red
    torch.testing.assert_close(green, torch.tensor([0.0, 1, 0]), atol=1e-6, rtol=0)
    torch.testing.assert_close(blue, torch.tensor([0.0, 0, 1]), atol=1e-6, rtol=0)
    grey = torch.full((3,), 0.4)
    torch.testing.assert_close(hue_rotations(torch.tensor([1.0]))[0] @ grey, grey)


def test_no_augmentation_changes_no_colour(clip: Clip) -> None:
    assert augment(clip, NO_AUGMENT, np.random.default_rng(0)).images is clip.images


@pytest.mark.parametrize("deviation", [0.6, 1.0, 2.5])
def test_blur_has_its_width_and_keeps_what_is_even(deviation: float) -> None:
    images = torch.full((2, 3, 31, 31), 0.3)
    torch.testing.assert_close(blurred(images, deviation), images)
    images[:, :, 15, 15] += 0.5
    spread = blurred(images, deviation)[0, 0] - 0.3
    offsets = torch.arange(31) - 15.0
    assert float(spread.sum()) == pytest.approx(0.5, rel=1e-3)
    for axis in (0, 1):
        assert float((spread.sum(axis) * offsets**2).sum() / 0.5) == pytest.approx(deviation**2, rel=0.05, abs=0.05)


def test_a_share_of_the_clips_is_blurred_and_the_others_are_as_without(clip: Clip) -> None:
    soft = dataclasses.replace(NO_AUGMENT, blur_share=0.5)
    found = {
        seed: augment(map_tensors(clip, torch.clone), soft, np.random.default_rng(seed)).images for seed in range(12)
    }
    same = [torch.equal(images, clip.images) for images in found.values()]
    assert any(same)
    assert not all(same)
    rough = (clip.images - blurred(clip.images, 2.0)).square().mean()
    assert all((images - blurred(images, 2.0)).square().mean() <= rough for images in found.values())


def test_a_blur_of_no_width_is_refused() -> None:
    with pytest.raises(UserError, match=r"blur is 0\.0; choose a width in pixels above 0"):
        AugmentConfig(blur=0.0)
