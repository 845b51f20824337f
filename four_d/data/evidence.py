"""Errors of a clip under one reading of its numbers: pixels of matches, and depths of one frame seen from another."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import fields, geometry
from four_d.data.matches import LEAST, Matched, Matches
from four_d.data.readings import Reading, Stream
from four_d.types import Cameras

STANDING = 1.0
"""Pixels by which most corners move before a camera that does not, from which on they are of what moves."""
PIXELS = 1500
"""Approximate number of pixels whose depth is compared in a pair."""
EDGE_RATIO = 1.1
"""Ratio of neighbouring depths above which there is an edge."""
LEAST_OVERLAP = 0.05
"""Share of a frame's pixels that must land in another for the two to overlap."""
KINDS = ("lines", "points", "depth")
"""Kinds of evidence: matches against the cameras, against cameras and depth, and depth against cameras."""
FLOORS = {"lines": 0.15, "points": 0.2, "depth": 0.003}
"""Errors (pixels, pixels, share of depth) below which all are equally good."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Evidence of one pair of frames under one reading; NaN where it has none."""

    lines: float = float("nan")
    """Median distance in pixels of matches from the epipolar half-line of the given cameras."""
    points: float = float("nan")
    """Median distance in pixels of matches from where depth and cameras say."""
    depth: float = float("nan")
    """Median relative difference of depth carried over, at most 1, which stands for no overlap too."""
    overlap: float = float("nan")
    """Share of the first frame's pixels with depth that land in the second."""
    agreement: float = float("nan")
    """Share of these pixels whose depth the second confirms, of those that it confirms or contradicts."""
    confirmed: float = float("nan")
    """Share whose depth the second confirms, of all that land where it has depth."""
    ratio: float = float("nan")
    """Median of triangulated over stored depth, where the cameras stand apart enough."""


def compare(
    reading: Reading,
    matches: Matches,
    pair: tuple[int, int],
    tolerance: float,
    *,
    before: Pair | None = None,
    touches: Stream = "cameras",
) -> Pair:
    """Measure a pair of frames; depths within a fraction ``tolerance`` confirm each other.

    What does not depend on the stream that the reading ``touches`` is taken from the evidence ``before``.
    """
    if min(int(reading.camera_at[i]) for i in pair) < 0:
        return Pair()
    a, b = (fields.unstack(reading.cameras, int(reading.camera_at[i])) for i in pair)
    rows = [int(reading.depth_at[i]) for i in pair]
    still = None
    if (
        reading.dynamic is not None
        and min(rows) >= 0
        and float(reading.times[pair[0]]) != float(reading.times[pair[1]])
    ):
        still = ~reading.dynamic[rows[0]]
    here, there = (reading.depth_of(i) for i in pair)
    if touches == "images" and before is not None:
        carry = before
    elif here is None or there is None:
        carry = Pair()
    else:
        carry = carried(here, there, a, b, still, tolerance)
    lines, points, ratio = _matched(reading, matches, pair, (a, b), None if there is None else here, still)
    if touches == "depth" and before is not None:
        lines = before.lines
    return dataclasses.replace(carry, lines=lines, points=points, ratio=ratio)


def _matched(
    reading: Reading,
    matches: Matches,
    pair: tuple[int, int],
    cameras: tuple[Cameras, Cameras],
    depth: Float[Tensor, "h w"] | None,
    still: Bool[Tensor, "h w"] | None,
) -> tuple[float, float, float]:
    if (found := matches(*pair)) is None:
        return float("nan"), float("nan"), float("nan")
    here, there = _undone(reading, found)
    off = half_line_distance(here, there, *cameras)
    stays = torch.ones(len(here), dtype=torch.bool)
    if still is not None:
        stays = geometry.at_pixels(still[None].float(), here[None])[0].bool()
    lines = float(off[stays].median()) if int(stays.sum()) >= LEAST // 2 else float("nan")
    if lines > STANDING and torch.equal(*(each.world_from_camera for each in cameras)):
        # a camera that stands still says nothing of what moves before it, which may be all that has corners
        return float("nan"), float("nan"), float("nan")
    if depth is None:
        return lines, float("nan"), float("nan")
    z, known = smooth_depth(depth, here)
    known &= stays
    if int(known.sum()) < LEAST // 2:
        return lines, float("nan"), float("nan")
    here, there, z = here[known], there[known], z[known]
    moved = _moved(cameras[0], cameras[1])
    points = geometry.transform(moved, geometry.rays(cameras[0].intrinsics, here) * z[:, None])
    pixels, ahead = _pixels(points, cameras[1])
    error = torch.where(ahead > 0, (pixels - there).norm(dim=-1), torch.full_like(z, float(max(reading.size))))
    return lines, float(error.clamp_max(max(reading.size)).median()), _depth_ratio(here, there, z, *cameras)


def _undone(reading: Reading, found: Matched) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    size = found.here.new_tensor([reading.size[1], reading.size[0]])
    flip = torch.tensor(reading.mirrored)

    def back(pixels: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        if reading.turned:
            x, y = pixels.unbind(-1)
            pixels = torch.stack([y, size[0] - x] if reading.turned == 1 else [size[1] - y, x], dim=-1)
        return torch.where(flip, size - pixels, pixels)

    return back(found.here), back(found.there)


def _moved(here: Cameras, there: Cameras) -> Float[Tensor, "4 4"]:
    return geometry.invert_pose(there.world_from_camera) @ here.world_from_camera


def _pixels(points: Float[Tensor, "n 3"], camera: Cameras) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n"]]:
    z = points[:, 2]
    homogeneous = points @ camera.intrinsics.mT
    return homogeneous[:, :2] / torch.where(z.abs() < 1e-9, torch.full_like(z, 1e-9), z)[:, None], z


def half_line_distance(
    here: Float[Tensor, "n 2"], there: Float[Tensor, "n 2"], a: Cameras, b: Cameras
) -> Float[Tensor, "n"]:
    """Distances in pixels of ``there`` from all places where camera b may see what camera a sees at ``here``.

    These are the images of points on the ray from half the distance of the cameras on: a half-line, or a single place
    where the camera only turns. Far off where none of them lies before camera b.
    """
    moved = _moved(a, b)
    far = geometry.rays(a.intrinsics, here) @ moved[:3, :3].mT @ b.intrinsics.mT  # homogeneous, of infinite depth
    start = b.intrinsics @ moved[:3, 3]
    near = float(moved[:3, 3].norm()) / 2
    line = torch.linalg.cross(far, start.expand_as(far))
    normal = line[:, :2]
    foot = there - normal * ((line[:, :2] * there).sum(-1) + line[:, 2])[:, None] / normal.square().sum(
        -1, keepdim=True
    ).clamp_min(1e-18)
    way = far[:, :2] - foot * far[:, 2:]
    depth = ((foot * start[2] - start[:2]) * way).sum(-1) / way.square().sum(-1).clamp_min(1e-18)
    best = torch.full_like(depth, 1e6)
    for place in (depth.clamp_min(near), torch.full_like(depth, near), torch.full_like(depth, torch.inf)):
        point = far.clone() if bool(place.isinf().all()) else far * place[:, None] + start
        pixel = point[:, :2] / point[:, 2:].clamp_min(1e-12)
        distance = torch.where(point[:, 2] > 1e-9, (pixel - there).norm(dim=-1), best)
        best = torch.minimum(best, distance)
    return best


def smooth_depth(depth: Float[Tensor, "h w"], pixels: Float[Tensor, "n 2"]) -> tuple[Tensor, Bool[Tensor, "n"]]:
    """Depth at pixels, between the four around each, and where these are known and of one surface."""
    low, high, inside = depth_range(depth, pixels)
    return (low * high).clamp_min(0).sqrt(), inside & (high < low * EDGE_RATIO)


def depth_range(
    depth: Float[Tensor, "h w"], pixels: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "n"], Float[Tensor, "n"], Bool[Tensor, "n"]]:
    """Minimum and maximum of the four depths around each place, and a mask of places where all four exist."""
    h, w = depth.shape
    corner = (pixels - 0.5).floor()
    inside = ((corner >= 0) & (corner < torch.tensor([w - 1, h - 1]))).all(-1)
    x, y = corner.where(inside[:, None], torch.zeros(())).long().unbind(-1)
    around = torch.stack([depth[y, x], depth[y, x + 1], depth[y + 1, x], depth[y + 1, x + 1]])
    return around.amin(0), around.amax(0), inside & (around > 0).all(0)


def _depth_ratio(
    here: Float[Tensor, "n 2"], there: Float[Tensor, "n 2"], z: Float[Tensor, "n"], a: Cameras, b: Cameras
) -> float:
    """Median of triangulated over stored depth of matches whose two rays are at least half a degree apart."""
    moved = _moved(a, b)
    first = geometry.rays(a.intrinsics, here) @ moved[:3, :3].mT
    second = geometry.rays(b.intrinsics, there)
    across = torch.linalg.cross(second, first)
    apart = across.norm(dim=-1) / (first.norm(dim=-1) * second.norm(dim=-1))
    offset = torch.linalg.cross(second, moved[:3, 3].expand_as(second))
    depth = -(across * offset).sum(-1) / across.square().sum(-1).clamp_min(1e-18)
    used = (apart > 0.0087) & (depth > 0)
    return float((depth / z)[used].median()) if int(used.sum()) >= LEAST // 2 else float("nan")


def carried(
    here: Float[Tensor, "h w"],
    there: Float[Tensor, "h w"],
    a: Cameras,
    b: Cameras,
    still: Bool[Tensor, "h w"] | None,
    tolerance: float,
) -> Pair:
    """Carry the depth of one frame into another, and compare it with the depth there."""
    height, width = here.shape
    chosen = torch.arange(0, height * width, max(1, height * width // (2 * PIXELS)))
    use = here.flatten()[chosen] > 0
    if still is not None:
        use &= still.flatten()[chosen]
    chosen = chosen[use][:: max(1, int(use.sum()) // PIXELS)]
    if len(chosen) < 2 * LEAST:
        return Pair()
    pixels = torch.stack([chosen % width, chosen // width], dim=-1).to(here) + 0.5
    points = geometry.rays(a.intrinsics, pixels) * here.flatten()[chosen, None]
    landed, z = _pixels(geometry.transform(_moved(a, b), points), b)
    overlap = float(geometry.inside(landed, z, (height, width)).float().mean())
    if overlap < LEAST_OVERLAP:
        return Pair(depth=1.0, overlap=overlap)
    low, high, inside = depth_range(there, landed)
    inside &= z > 0
    agree = inside & (z >= low * (1 - tolerance)) & (z <= high * (1 + tolerance))
    counted = int(agree.sum() + (inside & (z < low * (1 - tolerance))).sum())
    smooth = inside & (high < low * EDGE_RATIO)
    error = float("nan")
    if int(smooth.sum()) >= max(LEAST, LEAST_OVERLAP * len(chosen) / 2):
        error = min(float((z / (low * high).clamp_min(1e-18).sqrt() - 1).abs()[smooth].median()), 1.0)
    elif int(inside.sum()) < max(LEAST, LEAST_OVERLAP * len(chosen) / 2):
        return Pair(overlap=overlap)
    # depth that is smooth nowhere is rated too, for noise of each pixel is what makes it so
    return Pair(
        depth=error,
        overlap=overlap,
        agreement=float(agree.sum()) / counted if counted > LEAST else float("nan"),
        confirmed=float(agree.sum() / inside.sum()),
    )
