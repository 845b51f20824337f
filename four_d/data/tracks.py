"""Consistency checks of a clip's tracks: they lie on the surfaces that cameras see, and keep their colour."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import geometry
from four_d import surface as surfaces
from four_d.data.contract import RawClip
from four_d.data.evidence import EDGE_RATIO, depth_range
from four_d.data.measures import Finding, Measure, Unchecked
from four_d.data.truth import Truth
from four_d.types import SAME_TIME, Cameras

ON_SURFACE, KEEP_COLOUR = "tracks on surfaces", "tracks keep colour"
NO_DEPTH = "there is no depth"
ON_SURFACE_LIMIT = 0.9
"""Fraction of the visible track points that lie on the surface seen there."""
TRACK_RATIO_LIMIT = 0.6
"""Colour change along a track over that between tracks."""
COLOUR_FLOOR = 0.03
"""Difference of colours (of 1) below which they are equal."""
TRACKS_PER_FRAME = 30
"""Tracks of a frame below which their colours are inconclusive."""
TRACKS = 300
"""Number of tracks followed in a clip with a surface."""


def track_findings(clip: RawClip, known: Truth, tolerance: float) -> Iterator[Finding]:
    """Check that visible tracks lie on the surfaces (to a fraction ``tolerance`` of depth) and keep their colour."""
    if clip.tracks is not None and known.depth is None:
        yield Unchecked(what="tracks", why=NO_DEPTH)
    tracks = _track_points(clip, known)
    if tracks is None or known.cameras is None or known.depth is None:
        return
    measured = list(_measures(clip, known.depth, known.cameras, tracks, tolerance))
    yield from measured
    if clip.tracks is not None:
        for name in sorted({ON_SURFACE, KEEP_COLOUR} - {m.check for m in measured}):
            yield Unchecked(what=name, why="too few tracks are seen in two frames, or their colours are alike")


def _measures(
    clip: RawClip,
    depth: Float[Tensor, "f h w"],
    cameras: Cameras,
    tracks: tuple[Float[Tensor, "f n 3"], Bool[Tensor, "f n"]],
    tolerance: float,
) -> Iterator[Measure]:
    points, visible = tracks
    pixels, z = geometry.project(points, cameras)
    on_surface, edge = torch.zeros_like(visible), torch.zeros_like(visible)
    colours = torch.zeros(*visible.shape, 3)
    for frame in range(len(points)):
        low, high, inside = depth_range(depth[frame], pixels[frame])
        near = (z[frame] >= low * (1 - tolerance)) & (z[frame] <= high * (1 + tolerance))
        on_surface[frame], edge[frame] = inside & near, high > low * EDGE_RATIO
        image = torch.from_numpy(clip.images[frame].copy()).float().permute(2, 0, 1) / 255
        colours[frame] = _sample(image, pixels[frame]).T
    # places at the image's edge have no four depths around them: neither right nor wrong
    border = (pixels < 0.5).any(-1) | (pixels > torch.tensor([clip.info.width, clip.info.height]) - 0.5).any(-1)
    outside = (pixels < 0).any(-1) | (pixels > torch.tensor([clip.info.width, clip.info.height])).any(-1)
    rated = visible & (~border | outside)
    yield from _track_on_surface(clip, rated, on_surface)
    yield from _track_colour(clip, visible & on_surface & ~edge, colours)


def _track_on_surface(clip: RawClip, rated: Bool[Tensor, "f n"], on_surface: Bool[Tensor, "f n"]) -> Iterator[Measure]:
    if clip.tracks is not None and len(set(clip.info.camera_ids)) > 1:
        rated, on_surface = _any_camera(clip, rated), _any_camera(clip, on_surface)
    counts = rated.sum(-1)
    if int(counts.sum()) < 10:
        return
    per_frame = torch.where(counts > 3, (rated & on_surface).sum(-1) / counts.clamp_min(1), torch.ones(()))
    yield Measure(
        check=ON_SURFACE,
        value=float((rated & on_surface).sum() / counts.sum()),
        limit=ON_SURFACE_LIMIT,
        above=False,
        frame=int(per_frame.argmin()),
        what="fraction of the visible track points that lie on the surface seen there",
        remedy="tracks are world positions, one per entry of track_times; visible means seen by a camera at that time",
    )


def _any_camera(clip: RawClip, value: Bool[Tensor, "f n"]) -> Bool[Tensor, "f n"]:
    """Visibility by any camera at a frame's time, which is how stored tracks define it."""
    times = np.array(clip.info.times)
    same = torch.from_numpy(np.abs(times[:, None] - times) <= SAME_TIME)
    return (same[..., None] & value[None]).any(1)


def _track_colour(clip: RawClip, rated: Bool[Tensor, "f n"], colours: Float[Tensor, "f n 3"]) -> Iterator[Measure]:
    """Measure tracks' colours per camera, since another one may see a texture from far closer."""
    cameras = torch.tensor(clip.info.camera_ids)
    ratios = torch.zeros(len(rated))
    for camera in cameras.unique():
        ratios[cameras == camera] = _colour_ratios(rated[cameras == camera], colours[cameras == camera])
    if not bool(ratios.any()):
        return
    yield Measure(
        check=KEEP_COLOUR,
        value=float(ratios.max()),
        limit=TRACK_RATIO_LIMIT,
        frame=int(ratios.argmax()),
        what="colour change along visible tracks over the difference between tracks",
        remedy="track points jump between surfaces: keep the order of tracks (or of vertices) the same at every time",
    )


def _colour_ratios(rated: Bool[Tensor, "f n"], colours: Float[Tensor, "f n 3"]) -> Float[Tensor, "f"]:
    """Colour change since a track's first sighting over the difference to other tracks' first sightings, per frame."""
    first = colours[rated.float().argmax(0), torch.arange(rated.shape[1])]
    later = rated & (rated.cumsum(0) > 1)
    ratios = torch.zeros(len(rated))
    for frame in (later.sum(-1) >= TRACKS_PER_FRAME).nonzero()[:, 0].tolist():
        current, initial = colours[frame, later[frame]], first[later[frame]]
        along = float((current - initial).abs().mean(-1).median())
        between = float((current[:, None] - initial).abs().mean(-1).median())
        if between > 3 * COLOUR_FLOOR:
            ratios[frame] = along / between
    return ratios


def _track_points(clip: RawClip, known: Truth) -> tuple[Float[Tensor, "f n 3"], Bool[Tensor, "f n"]] | None:
    """World points and visibility at every frame: stored tracks, or some that the surface gives."""
    if clip.tracks is not None and clip.info.track_times is not None:
        at = np.abs(np.subtract.outer(clip.info.times, clip.info.track_times)).argmin(-1)
        visible = torch.from_numpy(clip.tracks.visible & clip.tracks.valid)
        return torch.from_numpy(clip.tracks.points).transpose(0, 1)[at], visible.T[at]
    if known.surface is None or known.cameras is None:
        return None
    f, h, w = known.surface.faces.shape
    chosen = np.linspace(0, f * h * w - 1, TRACKS).astype(np.int64)
    frame, y, x = (torch.from_numpy(part) for part in np.unravel_index(chosen, (f, h, w)))
    pixels = torch.stack([x, y], dim=-1) + 0.5
    tracked = surfaces.tracks(known.surface, known.cameras, known.times, frame, pixels)
    return tracked.points.transpose(0, 1), tracked.visible.T


def _sample(image: Float[Tensor, "3 h w"], pixels: Float[Tensor, "n 2"]) -> Float[Tensor, "3 n"]:
    size = torch.tensor([image.shape[2], image.shape[1]])
    place = (pixels / size * 2 - 1)[None, None].clamp(-2, 2)
    return torch.nn.functional.grid_sample(image[None], place, padding_mode="border", align_corners=False)[0, :, 0]
