"""Visualisations as arrays: colour maps, depth, masks, tracks and labelled contact sheets. Images are uint8 h w 3.

A `Style` says how the maps of a field look; `types.drawn` gives one to a field.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

RgbImage = NDArray[np.uint8]
Map = NDArray[np.float32]
"""Values of one frame or of several, of whatever type they were."""
Scale = tuple[float, float]
"""Two numbers that all frames of a map share, such as the nearest and the farthest depth."""

INVALID_COLOUR = (70, 70, 70)
MASK_COLOUR = (255, 40, 90)
_INK, _PAPER = (30, 30, 30), (255, 255, 255)
_ANCHORS = np.array(
    [
        (48, 18, 59),
        (69, 85, 205),
        (62, 155, 254),
        (24, 214, 203),
        (72, 248, 130),
        (164, 252, 60),
        (226, 220, 56),
        (254, 163, 49),
        (239, 89, 17),
        (194, 36, 3),
        (122, 4, 3),
    ],
    dtype=np.float64,
)
"""A rainbow of even brightness steps, from dark violet over green to dark red."""


def colour_map(values: NDArray[np.floating]) -> RgbImage:
    """Map numbers in [0, 1] (clipped; NaN as 0) of any shape to RGB in a last axis: 0 is violet, 1 dark red."""
    position = np.nan_to_num(np.asarray(values, np.float64)).clip(0, 1)
    knots = np.linspace(0, 1, len(_ANCHORS))
    channels = [np.interp(position, knots, _ANCHORS[:, c]) for c in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def depth_limits(depth: NDArray[np.floating], valid: NDArray[np.bool_] | None = None) -> tuple[float, float]:
    """Nearest and farthest coloured depth: the 2 and 98 % quantiles of valid positive depth; (1, 2) if none."""
    usable = (depth > 0) & np.isfinite(depth) & (True if valid is None else valid)
    if not usable.any():
        return 1.0, 2.0
    near, far = (float(limit) for limit in np.quantile(depth[usable], (0.02, 0.98)))
    return near, max(far, near * 1.001)


def depth_image(
    depth: NDArray[np.floating],
    valid: NDArray[np.bool_] | None = None,
    limits: tuple[float, float] | None = None,
) -> RgbImage:
    """Colour depth of any shape, linear in 1/depth: near is red, far violet, invalid grey.

    ``limits`` (near, far) default to `depth_limits`; images for comparison need equal ones.
    """
    usable = (depth > 0) & np.isfinite(depth) & (True if valid is None else valid)
    near, far = limits or depth_limits(depth, valid)
    inverse = 1 / np.where(usable, depth, 1.0)
    image = colour_map((inverse - 1 / far) / max(1 / near - 1 / far, 1e-12))
    image[~usable] = INVALID_COLOUR
    return image


class Files(Enum):
    """Form of the files that `inference.infer` writes of a map: numbers where an image file can hold them."""

    COLOURS = "RGB of 8 bits, as in the report"
    GREY = "grey of 8 bits, 255 for 1"
    COUNTS = "grey of 16 bits, with the size of a count (`formats.depth`)"


def no_scale(values: Map) -> Scale:  # noqa: ARG001 - a scale of a `Style`
    """Scale (0, 1), whatever the values."""
    return 0.0, 1.0


@dataclass(frozen=True, kw_only=True)
class Style:
    """Look of a field's maps. Ready ones are `DEPTH`, `CONFIDENCE`, `PROBABILITY` and `NORMALS`."""

    image: Callable[[Map, Scale], RgbImage]
    """Image of a frame's values in the scale of all frames."""
    scale: Callable[[Map], Scale] = no_scale
    """Scale of the values of several frames, whose first axis is frames."""
    legend: tuple[str, str] | None = None
    """Texts at the ends of `colour_map`'s colours, such as ``"far {1:.2g}"``, which the scale fills; None: none."""
    files: Files = Files.COLOURS

    @staticmethod
    def of(function: Callable[[Map], RgbImage]) -> Style:
        """Style of a function that draws a frame by its values alone."""
        return Style(image=lambda values, _: function(values))


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Declaration of how a field is drawn (`types.drawn`)."""

    title: str
    style: Style
    legend: tuple[str, str] | None
    folder: str | None
    """Folder of `inference.infer`'s files; None: no files."""

    def image(self, values: Map, scale: Scale) -> RgbImage:
        """Draw a frame. TypeError where the style gives anything but uint8 h w 3."""
        image = self.style.image(values, scale)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise TypeError(f"{self.title} is drawn as {image.dtype} {image.shape}; give uint8 (height, width, 3)")
        return image

    def ends(self, scale: Scale) -> tuple[str, str] | None:
        """Texts at the left and the right end of the legend."""
        return None if self.legend is None else (self.legend[0].format(*scale), self.legend[1].format(*scale))


def inner_range(values: Map) -> Scale:
    """The 2 and 98 % quantiles."""
    low, high = (float(limit) for limit in np.quantile(values, (0.02, 0.98)))
    return low, high


def range_image(values: Map, scale: Scale) -> RgbImage:
    """Colour numbers of any shape: violet at the scale's low end, dark red at the high one."""
    low, high = scale
    return colour_map((values - low) / max(high - low, 1e-9))


def normals_image(values: Map) -> RgbImage:
    """Colour directions h w 3 of any length in a camera's axes, such as a prediction's world: red to the right, green
    up, blue towards the camera.

    Invalid ones, of length 0, are grey.
    """
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    unit = values / np.maximum(length, 1e-9) * np.array([1, -1, -1], np.float32)
    image = np.rint((unit + 1) * 127.5).astype(np.uint8)
    image[length[..., 0] < 1e-9] = INVALID_COLOUR
    return image


DEPTH = Style(
    image=lambda values, scale: depth_image(values, limits=scale),
    scale=depth_limits,
    legend=("far {1:.2g}", "near {0:.2g}"),
    files=Files.COUNTS,
)
"""Positive numbers h w, coloured as `depth_image` does; all others are invalid."""
CONFIDENCE = Style(image=range_image, scale=inner_range, legend=("{0:.3g} unsure", "sure {1:.3g}"))
"""Numbers h w without bounds, coloured between their 2 and 98 % quantiles."""
PROBABILITY = Style(image=range_image, legend=("0", "1"), files=Files.GREY)
"""Numbers h w from 0, violet, to 1, dark red."""
NORMALS = Style.of(normals_image)
"""Directions h w 3 in a camera's axes (`normals_image`)."""


def scale_bar(limits: tuple[float, float], unit: str, width: int = 320) -> RgbImage:
    """Legend for `depth_image`: the colours between ``limits``, labelled with five depths."""
    near, far = limits
    depth = 1 / np.linspace(1 / near, 1 / far, width - 40)
    sheet = np.full((34, width, 3), 255, np.uint8)
    sheet[2:14, 20:-20] = depth_image(depth, limits=limits)
    picture = Image.fromarray(sheet)
    pen = ImageDraw.Draw(picture)
    for share in np.linspace(0, 1, 5):
        x = 20 + share * (width - 41)
        text = f"{depth[round(share * (len(depth) - 1))]:.3g}" + (f" {unit}" if share == 1 else "")
        pen.line([x, 13, x, 17], fill=_INK)
        pen.text((x, 18), text, fill=_INK, font=font(11), anchor="ma")
    return np.asarray(picture)


def mask_overlay(
    image: RgbImage, mask: NDArray[np.bool_], colour: tuple[int, int, int] = MASK_COLOUR, strength: float = 0.6
) -> RgbImage:
    """Dim an image and tint ``mask``."""
    base = image * 0.6 + 25
    tinted = base * (1 - strength) + np.array(colour) * strength
    return np.rint(np.where(mask[..., None], tinted, base)).astype(np.uint8)


def draw_tracks(
    image: RgbImage,
    pixels: NDArray[np.floating],
    visible: NDArray[np.bool_],
    colours: RgbImage,
    scale: int = 1,
) -> RgbImage:
    """Draw tracks on an image enlarged ``scale`` times: ``pixels`` n t 2 of the times up to the current one, the last.

    A full dot is a visible point, a ring a hidden one; trail segments are drawn where both ends were visible.
    """
    picture = Image.fromarray(enlarge(image, scale))
    pen = ImageDraw.Draw(picture)
    radius = max(1.5, 0.75 * scale)
    limit = 4.0 * max(image.shape)
    near = np.isfinite(pixels).all(-1) & (np.abs(pixels) < limit).all(-1)
    for path, seen, close, colour in zip(pixels * scale, visible, near, colours.tolist()):
        ink = (int(colour[0]), int(colour[1]), int(colour[2]))
        for t in range(1, len(path)):
            if seen[t - 1] and seen[t] and close[t - 1] and close[t]:
                pen.line([*path[t - 1], *path[t]], fill=ink, width=max(1, scale // 2))
        if close[-1]:
            x, y = path[-1]
            box = [x - radius, y - radius, x + radius, y + radius]
            pen.ellipse(box, fill=ink if seen[-1] else None, outline=(255, 255, 255) if seen[-1] else ink)
    return np.asarray(picture)


def draw_skeleton(
    image: RgbImage,
    pixels: NDArray[np.floating],
    known: NDArray[np.bool_],
    visible: NDArray[np.bool_],
    edges: Sequence[tuple[int, int]],
    scale: int = 1,
) -> RgbImage:
    """Draw n keypoints, ``pixels`` n 2, and the bones between known ones on an image enlarged ``scale`` times.

    A full dot is a visible point, a ring a hidden one. Colours go by the index (`point_colours`).
    """
    picture = Image.fromarray(enlarge(image, scale))
    pen = ImageDraw.Draw(picture)
    radius, limit = max(2.0, scale, max(picture.size) / 120), 4.0 * max(image.shape)
    drawn = known & np.isfinite(pixels).all(-1) & (np.abs(pixels) < limit).all(-1)
    places, inks = np.where(drawn[:, None], pixels, 0) * scale, point_colours(len(pixels))
    for start, end in edges:
        if drawn[start] and drawn[end] and start != end:
            line = [*places[start].tolist(), *places[end].tolist()]
            pen.line(line, fill=inks[end], width=max(1, round(radius / 2)))
    for (x, y), ink, there, seen in zip(places.tolist(), inks, drawn, visible):
        if there:
            box = [x - radius, y - radius, x + radius, y + radius]
            pen.ellipse(box, fill=ink if seen else None, outline=(255, 255, 255) if seen else ink)
    return np.asarray(picture)


def point_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours of ``count`` points, of all hues."""
    hues = (colorsys.hsv_to_rgb(index / max(count, 1), 0.9, 1.0) for index in range(count))
    return [(round(red * 255), round(green * 255), round(blue * 255)) for red, green, blue in hues]


def legend(names: Sequence[str], width: int = 480) -> RgbImage:
    """Names of points in their colours, in rows of ``width`` pixels."""
    text, rows, at = font(13), 1, 0
    places: list[tuple[int, int]] = []
    for name in names:
        long = int(text.getlength(name)) + 28
        if at and at + long > width:
            rows, at = rows + 1, 0
        places.append((at, rows - 1))
        at += long
    sheet = Image.new("RGB", (width, 20 * rows), _PAPER)
    pen = ImageDraw.Draw(sheet)
    for name, (x, row), ink in zip(names, places, point_colours(len(names))):
        pen.ellipse([x + 4, 20 * row + 5, x + 14, 20 * row + 15], fill=ink, outline=_INK)
        pen.text((x + 18, 20 * row + 10), name, fill=_INK, font=text, anchor="lm")
    return np.asarray(sheet)


def enlarge(image: RgbImage, scale: int) -> RgbImage:
    """Enlarge each pixel to a square of ``scale`` × ``scale``."""
    return image.repeat(scale, axis=0).repeat(scale, axis=1)


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that images look the same on every machine."""
    return ImageFont.load_default(size)


def grid(
    rows: Sequence[Sequence[RgbImage]],
    row_labels: Sequence[str] | None = None,
    column_labels: Sequence[str] | None = None,
    title: str = "",
    cell: int = 128,
) -> RgbImage:
    """Compose a contact sheet: images in rows (of any lengths and sizes), labels beside and above, a title on top.

    A row of one image, such as a legend, may span all columns. Images smaller than ``cell`` are enlarged by a whole
    factor, larger ones stay. ValueError without images.
    """
    if not any(rows):
        raise ValueError("a contact sheet needs at least one image")
    shown = [[enlarge(image, max(1, cell // max(image.shape[:2]))) for image in row] for row in rows]
    text = font(13)
    pad = 4
    left = pad + max((int(text.getlength(label)) + 8 for label in row_labels or [] if label), default=0)
    top = pad + (22 if title else 0) + (18 if column_labels else 0)
    columns = max(len(row) for row in shown)
    full = [row for row in shown if len(row) > 1 or columns == 1]  # a single image may span all columns
    widths = [max(row[i].shape[1] for row in full if i < len(row)) for i in range(columns)]
    heights = [max((image.shape[0] for image in row), default=0) for row in shown]
    lone = max((row[0].shape[1] for row in shown if row), default=0)
    width = max(left + max(sum(widths) + pad * columns, lone + pad), int(font(16).getlength(title)) + 2 * pad)
    sheet = Image.new("RGB", (width, top + sum(heights) + pad * len(heights)), _PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((pad, pad), title, fill=_INK, font=font(16))
    xs = [left + sum(widths[:i]) + pad * i for i in range(columns)]
    for x, w, label in zip(xs, widths, column_labels or []):
        pen.text((x + w / 2, top - 5), label, fill=_INK, font=text, anchor="ms")
    y = top
    for row, height, label in zip(shown, heights, row_labels or [""] * len(shown)):
        pen.text((pad, y + height / 2), label, fill=_INK, font=text, anchor="lm")
        for x, image in zip(xs, row):
            sheet.paste(Image.fromarray(image), (x, y))
        y += height + pad
    return np.asarray(sheet)
