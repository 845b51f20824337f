"""Procedural textures: periodic colour tiles with mip levels in one atlas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Atlas:
    """k square tiles of linear RGB with their mip levels, flattened and concatenated."""

    texels: Array
    """n 3: tile by tile, each from its finest level to a single texel."""
    sizes: NDArray[np.int32]
    """k: side of each tile's finest level, a power of two."""
    starts: NDArray[np.int32]
    """k: first texel of each tile."""

    def finest(self, tile: int) -> Array:
        """Finest level (s s 3) of a tile, linear RGB."""
        side, start = int(self.sizes[tile]), int(self.starts[tile])
        return self.texels[start : start + side * side].reshape(side, side, 3)

    def sample(self, tile: NDArray[np.int32], uv: Array, footprint: Array) -> Array:
        """Linear RGB (n 3) at ``uv`` (n 2; one unit per tile, wrapping); ``footprint``: width of a pixel in tiles."""
        size = self.sizes[tile]
        finest = np.log2(size).astype(np.int32)
        level = np.clip(
            np.round(np.log2(np.maximum(footprint, 1e-6) * size.astype(np.float32))).astype(np.int32), 0, finest
        )
        side = size >> level
        position = uv * side[:, None].astype(np.float32) - np.float32(0.5)
        base = np.floor(position)
        fraction = position - base
        mask = side - 1
        x0, y0 = base[:, 0].astype(np.int32) & mask, base[:, 1].astype(np.int32) & mask
        x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
        start = self.starts[tile] + (size * size - side * side) // 3 * 4  # after the finer levels, a geometric series
        row0, row1 = start + y0 * side, start + y1 * side
        fx, fy = fraction[:, :1], fraction[:, 1:]
        top = self.texels[row0 + x0] * (1 - fx) + self.texels[row0 + x1] * fx
        bottom = self.texels[row1 + x0] * (1 - fx) + self.texels[row1 + x1] * fx
        return (top * (1 - fy) + bottom * fy).astype(np.float32, copy=False)


def make_atlas(tiles: list[Array]) -> Atlas:
    """Build the atlas of tiles (s s 3), whose sides are powers of two."""
    texels: list[Array] = []
    for tile in tiles:
        level = tile
        texels.append(level.reshape(-1, 3))
        while len(level) > 1:
            half = len(level) // 2
            level = level.reshape(half, 2, half, 2, 3).mean((1, 3))
            texels.append(level.reshape(-1, 3))
    sizes = np.array([len(tile) for tile in tiles], np.int32)
    counts = (4 * sizes.astype(np.int64) ** 2 - 1) // 3
    starts = (np.cumsum(counts) - counts).astype(np.int32)
    return Atlas(texels=np.concatenate(texels).astype(np.float32), sizes=sizes, starts=starts)


def _noise(rng: Random, size: int, exponent: float = 1.6, lowest: float = 1.0) -> Array:
    """Periodic noise with spectrum 1/f^exponent from ``lowest`` cycles per tile on, scaled to [0, 1]."""
    fx, fy = np.fft.rfftfreq(size) * size, np.fft.fftfreq(size) * size
    frequency = np.hypot(fx[None], fy[:, None])
    amplitude = np.where(frequency >= lowest, np.maximum(frequency, 0.5) ** -exponent, 0.0)
    spectrum = amplitude * np.exp(2j * np.pi * rng.random(frequency.shape))
    field = np.fft.irfft2(spectrum, s=(size, size))
    low, high = np.percentile(field[::4, ::4], [1, 99])  # a sixteenth of the values is enough, and faster to sort
    return np.clip((field - low) / (high - low), 0, 1).astype(np.float32)


def _grid(size: int) -> tuple[Array, Array]:
    """Coordinates u of columns and v of rows (s s each), in [0, 1)."""
    axis = ((np.arange(size) + 0.5) / size).astype(np.float32)
    return axis[None].repeat(size, 0), axis[:, None].repeat(size, 1)


def _colour(rng: Random, saturation: float | None = None, value: float | None = None) -> Array:
    """Random linear colour of uniform hue."""
    hue, s = rng.random(), rng.beta(1.6, 2.0) if saturation is None else saturation
    v = rng.uniform(0.12, 0.85) if value is None else value
    k = (np.array([5.0, 3.0, 1.0]) + hue * 6) % 6
    srgb = v - v * s * np.clip(np.minimum(k, 4 - k), 0, 1)
    return (srgb**2.2).astype(np.float32)


def _palette(rng: Random, count: int) -> Array:
    """Colours (count 3) of different brightness."""
    values = np.linspace(0.25, 0.92, count) + rng.uniform(-0.12, 0.08, count)
    return np.stack([_colour(rng, value=float(v)) for v in rng.permutation(np.clip(values, 0.08, 0.95))])


def _blend(weight: Array, low: Array, high: Array) -> Array:
    return (low + weight[..., None] * (high - low)).astype(np.float32, copy=False)


def _ramp(rng: Random, field: Array, count: int = 4) -> Array:
    """Map a field in [0, 1] through a random colour ramp."""
    colours, positions = _palette(rng, count), np.linspace(0, 1, count)
    return np.stack([np.interp(field, positions, colours[:, i]) for i in range(3)], -1).astype(np.float32)


def _clouds(rng: Random, size: int) -> Array:
    return _ramp(rng, _noise(rng, size, rng.uniform(1.1, 1.7), float(rng.integers(1, 5))))


def _checker(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    count = 2 * int(rng.integers(1, 6))
    low, high = _palette(rng, 2)
    return _blend(((np.floor(u * count) + np.floor(v * count)) % 2).astype(np.float32), low, high)


def _stripes(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    a, b = (int(x) for x in rng.integers(0, 5, 2))
    phase = u * a + v * (b if a + b else 3)
    colours = _palette(rng, int(rng.integers(2, 6)))
    edges = np.sort(rng.random(len(colours) - 1))
    wobble = (_noise(rng, size, 2.2) - 0.5) * rng.choice([0.0, 0.15, 0.5])
    return colours[np.searchsorted(edges, (phase + wobble) % 1)]


def _bricks(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    rows, columns = 2 * int(rng.integers(2, 6)), int(rng.integers(2, 6))
    row = np.floor(v * rows)
    shift = u * columns + (row % 2) * rng.choice([0.5, 0.33])
    column = np.floor(shift) % columns
    joint = rng.uniform(0.02, 0.07)
    inside = ((shift % 1) > joint) & ((v * rows % 1) > joint * rows / columns)
    tint = rng.uniform(0.6, 1.25, (rows, columns)).astype(np.float32)
    body = _colour(rng)[None, None] * tint[row.astype(int), column.astype(int)][..., None]
    return _blend(inside.astype(np.float32), _colour(rng), body)


def _planks(rng: Random, size: int) -> Array:
    """Boards with grain along u."""
    _, v = _grid(size)
    boards = int(rng.integers(3, 9))
    board = np.floor(v * boards).astype(int)
    grain = np.take_along_axis(_noise(rng, size, 1.3), (np.arange(size)[None] // 8 + board * 37) % size, 1)
    base = _blend(grain, _colour(rng, 0.6, 0.3), _colour(rng, 0.5, 0.75))
    tint = rng.uniform(0.65, 1.2, boards).astype(np.float32)[board][..., None]
    return base * tint * np.where((v * boards % 1) < 0.05, 0.3, 1.0)[..., None].astype(np.float32)


def _marble(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    a, b = (int(x) for x in rng.integers(1, 4, 2))
    veins = np.abs(np.sin(np.pi * (u * a + v * b + 3 * _noise(rng, size, 1.8)))) ** rng.uniform(0.3, 1.0)
    return _ramp(rng, veins.astype(np.float32), 3)


def _dots(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    count = int(rng.integers(2, 8))
    ground, *colours = _palette(rng, 4)
    which = rng.integers(0, 3, (count, count))[(v * count).astype(int), (u * count).astype(int)]
    inside = np.hypot(u * count % 1 - 0.5, v * count % 1 - 0.5) < rng.uniform(0.2, 0.45)
    return np.where(inside[..., None], np.stack(colours)[which], ground)


def _tiles(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    count = int(rng.integers(2, 7))
    cell = (v * count).astype(int) * count + (u * count).astype(int)
    shade = rng.uniform(0.7, 1.15, (count * count, 1)).astype(np.float32)
    colours = _palette(rng, 3)[rng.integers(0, 3, count * count)] if rng.random() < 0.5 else _colour(rng)[None]
    joint = rng.uniform(0.02, 0.06)
    inside = ((u * count % 1) > joint) & ((v * count % 1) > joint)
    return np.where(inside[..., None], (colours * shade)[cell], _colour(rng))


def _camouflage(rng: Random, size: int) -> Array:
    colours = _palette(rng, int(rng.integers(3, 6)))
    field = _noise(rng, size, rng.uniform(1.6, 2.4), float(rng.integers(1, 5)))
    return colours[np.minimum((field * len(colours)).astype(int), len(colours) - 1)]


def _plaid(rng: Random, size: int) -> Array:
    colours, axis = _palette(rng, 4), np.arange(size) * 4 // size * 4
    bands = rng.integers(0, 4, size)[axis + (np.arange(size) * 16 // size) % 4]
    weave = colours[bands]
    return ((weave[None] + weave[:, None]) / 2).astype(np.float32, copy=False)


def _terrazzo(rng: Random, size: int) -> Array:
    ground, *chips = _palette(rng, 5)
    image = np.broadcast_to(ground, (size, size, 3)).copy()
    for chip in chips:
        image[_noise(rng, size, 0.9, float(rng.integers(6, 20))) > 0.74] = chip
    return image


def _weave(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    count = 4 * int(rng.integers(2, 5))
    over = np.sin(np.pi * u * count) ** 2 > np.sin(np.pi * v * count) ** 2
    low, high = _palette(rng, 2)
    shade = (0.7 + 0.3 * _noise(rng, size, 1.0))[..., None]
    return np.where(over[..., None], low, high) * shade


def _glyphs(rng: Random, size: int) -> Array:
    """Lines of random letters on 5 × 7 cells."""
    rows, columns = int(rng.integers(4, 9)), int(rng.integers(5, 11))
    letters = rng.random((rows, columns, 7, 5)) < 0.5
    letters[..., 0, :] |= rng.random((rows, columns, 1)) < 0.5
    letters &= (rng.random((rows, columns)) < 0.85)[..., None, None]
    padded = np.zeros((rows, columns, 10, 7), bool)
    padded[:, :, 1:8, 1:6] = letters
    page = padded.transpose(0, 2, 1, 3).reshape(rows * 10, columns * 7)
    index_v, index_u = np.arange(size) * len(page) // size, np.arange(size) * page.shape[1] // size
    paper, ink = _colour(rng, 0.15, 0.9), _colour(rng, 0.6, 0.2)
    return np.where(page[index_v][:, index_u][..., None], ink, paper)


def _patches(rng: Random, size: int) -> Array:
    """Overlapping rectangles, like posters on a wall."""
    image = np.broadcast_to(_colour(rng), (size, size, 3)).copy()
    for _ in range(24):
        h, w = (rng.uniform(0.08, 0.4, 2) * size).astype(int)
        y, x = rng.integers(0, size, 2)
        rows, columns = np.arange(y, y + h) % size, np.arange(x, x + w) % size
        image[np.ix_(rows, columns)] = _colour(rng)
    return image


def _cells(rng: Random, size: int) -> Array:
    """Voronoi cells with dark borders."""
    u, v = _grid(size)
    count = int(rng.integers(10, 36))
    seeds = rng.random((count, 2)).astype(np.float32)
    nearest, second = np.full((size, size), 9, np.float32), np.full((size, size), 9, np.float32)
    which = np.zeros((size, size), np.int32)
    for i, (x, y) in enumerate(seeds):
        dx, dy = np.abs(u - x), np.abs(v - y)
        d = np.hypot(np.minimum(dx, 1 - dx), np.minimum(dy, 1 - dy))
        closer = d < nearest
        second = np.where(closer, nearest, np.minimum(second, d))
        which[closer] = i
        nearest = np.minimum(nearest, d)
    colours = np.stack([_colour(rng) for _ in range(count)])[which]
    return (colours * np.clip((second - nearest) / 0.03, 0.15, 1)[..., None]).astype(np.float32, copy=False)


def _hexagons(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    count = int(rng.integers(2, 6))
    x, y = u * count * 2, v * count
    ground, *colours = _palette(rng, 4)
    best, which = np.full((size, size), 9.0, np.float32), np.zeros((size, size), np.int32)
    for i, (ox, oy) in enumerate(((0.0, 0.0), (0.5, 0.5))):
        dx, dy = (x - ox) % 1 - 0.5, (y - oy) % 1 - 0.5
        d = np.maximum(np.abs(dx) * 0.87, np.abs(dx) * 0.43 + np.abs(dy) * 0.9)
        which = np.where(d < best, (np.floor(x - ox) + 2 * np.floor(y - oy) + i).astype(np.int32) % 3, which)
        best = np.minimum(best, d)
    return np.where((best < 0.36)[..., None], np.stack(colours)[which], ground)


def _zigzag(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    across, along = int(rng.integers(2, 7)), int(rng.integers(2, 6))
    phase = (v * along + np.abs(u * across % 1 - 0.5) * rng.uniform(0.6, 1.6)) % 1
    colours = _palette(rng, int(rng.integers(2, 5)))
    return colours[np.minimum((phase * len(colours)).astype(int), len(colours) - 1)]


def _rings(rng: Random, size: int) -> Array:
    u, v = _grid(size)
    count = int(rng.integers(1, 4))
    radius = np.hypot(u * count % 1 - 0.5, v * count % 1 - 0.5) * rng.uniform(5, 12)
    wobble = (_noise(rng, size, 2.0) - 0.5) * rng.uniform(0.0, 2.0)
    colours = _palette(rng, 3)
    return colours[np.floor(radius + wobble).astype(int) % 3]


def _leopard(rng: Random, size: int) -> Array:
    field = _noise(rng, size, 0.8, float(rng.integers(4, 10)))
    field = np.abs(_noise(rng, size, 2.0, 5.0) - field)
    dark, middle, light = _palette(rng, 3)
    return np.where((field < 0.08)[..., None], dark, np.where((field < 0.22)[..., None], middle, light))


def _scribble(rng: Random, size: int) -> Array:
    """Curved lines over a soft background."""
    image = _ramp(rng, _noise(rng, size, 2.2), 2)
    for colour in _palette(rng, 3):
        field = _noise(rng, size, rng.uniform(1.8, 2.4), float(rng.integers(1, 5)))
        image[np.abs(field - 0.5) < rng.uniform(0.015, 0.05)] = colour
    return image


Maker = Callable[[Random, int], Array]

TRAIN_TEXTURES: dict[str, Maker] = {
    "clouds": _clouds,
    "checker": _checker,
    "stripes": _stripes,
    "bricks": _bricks,
    "planks": _planks,
    "marble": _marble,
    "dots": _dots,
    "tiles": _tiles,
    "camouflage": _camouflage,
    "plaid": _plaid,
    "terrazzo": _terrazzo,
    "weave": _weave,
    "glyphs": _glyphs,
    "patches": _patches,
}
HELD_OUT_TEXTURES: dict[str, Maker] = {
    "cells": _cells,
    "hexagons": _hexagons,
    "zigzag": _zigzag,
    "rings": _rings,
    "leopard": _leopard,
    "scribble": _scribble,
}


def make_texture(rng: Random, textures: dict[str, Maker], size: int) -> Array:
    """Draw a tile (size size 3, linear albedo in [0.02, 0.9]) from a table, with stains and fine grain on top."""
    tile = textures[str(rng.choice(list(textures)))](rng, size)
    stains = 1 + rng.uniform(0.1, 0.5) * (_noise(rng, size, 1.9) - 0.5)
    grain = 1 + rng.uniform(0.1, 0.45) * (_noise(rng, size, rng.uniform(0.4, 1.0), 4.0) - 0.5)
    return np.clip(tile * (stains * grain)[..., None], 0.02, 0.9).astype(np.float32)
