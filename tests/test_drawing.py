"""Drawing primitives: what a colour means, and where things land."""

from __future__ import annotations

import numpy as np
import pytest

from four_d import drawing


def test_the_colour_map_is_one_to_one_and_clips() -> None:
    colours = drawing.colour_map(np.linspace(0, 1, 101))
    assert len(np.unique(colours, axis=0)) == 101
    ends = drawing.colour_map(np.array([-1.0, 0.0, 1.0, 2.0, np.nan]))
    np.testing.assert_array_equal(ends[[0, 2, 4]], ends[[1, 3, 1]])
    assert drawing.colour_map(np.zeros((2, 3))).shape == (2, 3, 3)


def test_near_is_red_and_invalid_grey() -> None:
    depth = np.array([[1.0, 2.0, 4.0, 0.0, np.nan]])
    image = drawing.depth_image(depth, limits=(1.0, 4.0))
    np.testing.assert_array_equal(image[0, 0], drawing.colour_map(np.array(1.0)))
    np.testing.assert_array_equal(image[0, 2], drawing.colour_map(np.array(0.0)))
    np.testing.assert_array_equal(image[0, 1], drawing.colour_map(np.array((1 / 2 - 1 / 4) / (1 - 1 / 4))))
    assert (image[0, 3:] == drawing.INVALID_COLOUR).all()
    masked = drawing.depth_image(depth, np.array([[False, True, True, True, True]]))
    assert (masked[0, 0] == drawing.INVALID_COLOUR).all()


def test_limits_of_nothing() -> None:
    assert drawing.depth_limits(np.zeros((3, 3))) == (1.0, 2.0)
    near, far = drawing.depth_limits(np.full((3, 3), 5.0))
    assert near < far


def test_the_scale_bar_agrees_with_the_picture() -> None:
    bar = drawing.scale_bar((1.0, 4.0), "m", 240)
    image = drawing.depth_image(np.array([1.0, 4.0]), limits=(1.0, 4.0))
    np.testing.assert_array_equal(bar[8, 20], image[0])
    np.testing.assert_array_equal(bar[8, 219], image[1])


def test_a_mask_tints_only_itself() -> None:
    image = np.full((4, 4, 3), 100, np.uint8)
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    shown = drawing.mask_overlay(image, mask)
    plain = drawing.mask_overlay(image, np.zeros_like(mask))
    assert (shown[~mask] == plain[~mask]).all()
    assert shown[1, 2, 0] > plain[1, 2, 0]


def test_tracks_land_on_their_pixels() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    pixels = np.array([[[5.0, 10.0], [15.0, 10.0]], [[np.inf, 3.0], [25.0, 5.0]]])
    colours = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    drawn = drawing.draw_tracks(image, pixels, np.array([[True, True], [False, True]]), colours, scale=4)
    assert drawn.shape == (80, 120, 3)
    assert tuple(drawn[40, 40]) == (255, 0, 0)  # the trail
    assert tuple(drawn[20, 100]) == (0, 255, 0)  # the dot
    hidden = drawing.draw_tracks(image, pixels, np.zeros((2, 2), bool), colours, scale=4)
    assert tuple(hidden[40, 40]) == (0, 0, 0)
    assert tuple(hidden[20, 100]) == (0, 0, 0)  # a ring


def test_a_grid_holds_its_images_whole() -> None:
    rng = np.random.default_rng(0)
    rows = [[rng.integers(0, 255, (16, 20, 3)).astype(np.uint8) for _ in range(n)] for n in (3, 2)]
    sheet = drawing.grid(rows, ["a", "long label"], ["x", "y", "z"], "title", cell=40)
    for image in (rows[0][2], rows[1][1]):
        wanted = drawing.enlarge(image, 2)
        h, w = wanted.shape[:2]
        starts = np.argwhere((sheet[: 1 - h, : 1 - w] == wanted[0, 0]).all(-1))
        assert any((sheet[y : y + h, x : x + w] == wanted).all() for y, x in starts)
    with pytest.raises(ValueError, match="at least one image"):
        drawing.grid([[]])
