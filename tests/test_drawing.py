"""Drawing primitives: what a colour means, and where things land; and fields that say how they are drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from four_d import drawing, fields
from four_d.drawing import CONFIDENCE, DEPTH, NORMALS, PROBABILITY, RgbImage
from four_d.training.validation import draw
from four_d.types import LENGTH, NONE, NORMAL, Clip, Prediction, drawn, truth


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


# how fields are drawn


def test_normals_are_red_to_the_right_green_up_and_blue_towards_the_camera() -> None:
    turned = np.array([[[1, 0, 0], [0, -2, 0], [0, 0, -0.1], [0, 0, 0]]], np.float32)
    image = NORMALS.image(turned, NORMALS.scale(turned[None]))
    grey = drawing.INVALID_COLOUR
    np.testing.assert_array_equal(image[0], [(255, 128, 128), (128, 255, 128), (128, 128, 255), grey])


def test_styles_scale_all_frames_alike_and_say_their_ends() -> None:
    values = np.linspace(1, 3, 101, dtype=np.float32).repeat(2).reshape(1, 2, 101)
    for style, scale, told in (
        (DEPTH, (1.04, 2.96), ("far 3", "near 1")),
        (CONFIDENCE, (1.04, 2.96), ("1.04 unsure", "sure 2.96")),
        (PROBABILITY, (0, 1), ("0", "1")),
    ):
        assert style.scale(values) == pytest.approx(scale, abs=0.02)
        shown = drawing.Drawing(title="x", style=style, legend=style.legend, folder=None)
        assert shown.ends(style.scale(values)) == told
        assert shown.image(values[0], style.scale(values)).shape == (2, 101, 3)
    ends = PROBABILITY.image(np.array([[0, 1]], np.float32), (0.0, 1.0))
    np.testing.assert_array_equal(ends[0], drawing.colour_map(np.array([0.0, 1.0])))


@dataclass(frozen=True, kw_only=True)
class Stained(Prediction):
    stains: Float[Tensor, "*b f h w"] | None = field(
        default=None, metadata=NONE | drawn(lambda values: values[..., None].repeat(3, -1), "Stains", folder="spots")
    )


@dataclass(frozen=True, kw_only=True)
class Turned(Prediction):
    normals: Float[Tensor, "*b f h w 3"] | None = field(
        default=None,
        metadata=NORMAL | truth(lambda clip: (clip.images.movedim(2, -1), clip.valid)) | drawn(NORMALS, "Normals"),
    )


def test_a_drawing_that_is_no_image_is_an_error() -> None:
    ((leaf, shown, values),) = fields.drawings(Stained(stains=torch.ones(1, 2, 3, dtype=torch.bfloat16)))
    assert (leaf.label, shown.title, shown.folder) == ("stains", "Stains", "spots")
    with pytest.raises(TypeError, match=r"Stains is drawn as float32 \(2, 3, 3\); give uint8 \(height, width, 3\)"):
        shown.image(values[0], shown.style.scale(values))


@dataclass(frozen=True, kw_only=True)
class Flat(Prediction):
    slab: Float[Tensor, "*b h w"] | None = field(default=None, metadata=LENGTH | drawn(DEPTH, "Slab"))


def test_only_what_has_frames_is_drawn() -> None:
    with pytest.raises(TypeError, match=r"Flat\.slab is drawn, frame by frame; let its axes begin with '\*b f'"):
        fields.declared(Flat)


def rows(sheet: RgbImage, frames: int, side: int) -> list[NDArray[np.uint8]]:
    """Images of a contact sheet, row by row, each the first of its row and ``frames`` wide."""
    width = frames * (side + 4)
    count = (sheet.shape[0] - 44) // (side + 4)
    cells = sheet[44:, -width:].reshape(-1, width, 3)
    return [cells[i * (side + 4) : i * (side + 4) + side] for i in range(count)]


def test_validation_draws_every_field_beside_its_truth() -> None:
    """Lengths in the truth's scale; what is not known is grey; how sure a model is has no truth, and is left out."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 3, 128, 128, generator=generator)
    depth = 1 + torch.rand(1, 3, 128, 128, generator=generator)
    valid = torch.rand(1, 3, 128, 128, generator=generator) > 0.1
    times = torch.zeros(1, 3)
    clip = Clip(images=images, times=times, camera_ids=times.long(), depth=depth * valid, valid=valid)
    clip = replace(clip, dynamic=depth > 1.5, dynamic_known=torch.tensor([[True, False, True]]))
    assert draw(Prediction(depth_confidence=depth), clip, "x") is None
    said = Prediction(depth=3 * depth * valid, depth_confidence=depth, dynamic=(depth > 1.5).float())
    sheet = draw(said, clip, "x")
    assert sheet is not None
    image, true_depth, own_depth, true_moving, moving = rows(sheet, 3, 128)
    np.testing.assert_array_equal(image[:, :128], (images[0, 0].movedim(0, -1) * 255).round().byte().numpy())
    np.testing.assert_allclose(own_depth.astype(int), true_depth, atol=1)
    np.testing.assert_array_equal((true_depth[:, :128] == drawing.INVALID_COLOUR).all(-1), ~valid[0, 0].numpy())
    assert (true_moving[:, 132:260] == drawing.INVALID_COLOUR).all()
    assert not (true_moving[:, :128] == drawing.INVALID_COLOUR).all(-1).any()
    np.testing.assert_array_equal(true_moving[:, :128], moving[:, :128])
    _, true_normals, normals = rows(draw(Turned(normals=images.movedim(2, -1)), clip, "x"), 3, 128)  # pyright: ignore[reportArgumentType]
    known = valid[0, 0].numpy()
    np.testing.assert_array_equal(true_normals[:, :128][known], normals[:, :128][known])
    assert (true_normals[:, :128][~known] == drawing.INVALID_COLOUR).all()
    other = draw(Turned(normals=images[..., :64].movedim(2, -1)), clip, "x")
    assert other is not None
    assert len(rows(other, 3, 128)) == 2, "a truth of another shape is not of these"
    assert len(rows(draw(said, replace(clip, depth=None, valid=None), "x"), 3, 128)) == 4  # pyright: ignore[reportArgumentType]
