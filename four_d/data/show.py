"""`four-d data show`: images of one clip for inspection: frames, depth, mask, tracks and cameras."""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from four_d import drawing, geometry
from four_d import surface as surfaces
from four_d.data.contract import ClipInfo, KeypointArrays, KeypointInfo, RawClip
from four_d.data.shards import open_shards
from four_d.data.truth import Truth, truth
from four_d.drawing import RgbImage
from four_d.outputs import keep_apart, new_file
from four_d.types import Cameras

COLUMNS = 6
"""Frames per camera in a sheet."""
POINTS = 40
"""Tracks per camera; half of them start on moving pixels."""
CLOUD = 30_000
"""Scene points drawn in the image of the cameras."""
TRACK_CELL = 240
"""Least size in pixels of an image with tracks or keypoints."""
SIDE = 560
"""Size in pixels of each view of the cameras."""


def show(folder: str | Path, clip: int | str, out: Path) -> list[Path]:
    """Draw a clip of a folder or an address, given by index or key, into PNG files in the folder ``out``, and return
    their paths.

    ``KEY-frames.png`` has images, depth and moving parts; ``KEY-keypoints.png`` keypoints and bones;
    ``KEY-tracks.png`` the tracks; ``KEY-cameras.png`` the cameras from above and obliquely; each only where the clip
    has the data. UserError if there is no such clip.
    """
    keep_apart(out / "frames.png", [folder])
    with open_shards(folder, kept=1) as reader:
        index = clip if isinstance(clip, int) else reader.index(clip)
        if not 0 <= index < len(reader):
            index = reader.index(str(clip))
        raw = reader.read(index)
    paths: list[Path] = []
    for name, image in draw(raw).items():
        path = out / f"{raw.key}-{name}.png"
        with new_file(path, [folder]) as partial:
            Image.fromarray(image).save(partial)
        paths.append(path)
    return paths


def draw(clip: RawClip) -> dict[str, RgbImage]:
    """Draw the images of a clip, by name: frames, keypoints, tracks, cameras."""
    known = truth(clip)
    rows = [np.flatnonzero(np.array(clip.info.camera_ids) == camera) for camera in sorted(set(clip.info.camera_ids))]
    drawn = {"frames": _frame_sheet(clip, known, rows)}
    if clip.keypoints is not None and clip.info.keypoints is not None:
        drawn["keypoints"] = _keypoint_sheet(clip, clip.keypoints, clip.info.keypoints, rows)
    if known.cameras is not None:
        tracks = [_track_row(clip, known, row) for row in rows]
        if all(tracks):
            labels = [f"camera {clip.info.camera_ids[int(row[0])]}" for row in rows]
            times = [f"{clip.info.times[int(i)]:.2f} s" for i in _evenly(rows[0], 4)]
            drawn["tracks"] = drawing.grid(
                tracks, labels, times, f"{clip.key}: tracks (rings: hidden)", cell=TRACK_CELL
            )
        drawn["cameras"] = _camera_views(clip, known, rows)
    return drawn


def _evenly(row: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    return row[np.unique(np.linspace(0, len(row) - 1, count).round().astype(int))]


def _frame_sheet(clip: RawClip, known: Truth, rows: Sequence[NDArray[np.intp]]) -> RgbImage:
    sheet: list[list[RgbImage]] = []
    labels: list[str] = []
    depth = None if known.depth is None else known.depth.numpy()
    limits = None if depth is None else drawing.depth_limits(depth)
    for row in rows:
        chosen = _evenly(row, COLUMNS)
        sheet.append(list(clip.images[chosen]))
        labels.append(f"camera {clip.info.camera_ids[int(row[0])]}")
        if depth is not None:
            sheet.append(list(drawing.depth_image(depth[chosen], limits=limits)))
            labels.append("depth")
        if known.dynamic is not None:
            masks = known.dynamic[torch.from_numpy(chosen)].numpy()
            sheet.append([drawing.mask_overlay(clip.images[i], mask) for i, mask in zip(chosen, masks)])
            labels.append("moving")
    if limits is not None:
        sheet.append([drawing.scale_bar(limits, "m" if clip.info.metric else "units", 420)])
        labels.append("")
    times = [f"{clip.info.times[int(i)]:.2f} s" for i in _evenly(rows[0], COLUMNS)]
    title = f"{clip.key}: {clip.info.source}, {len(rows)} cameras, {len(clip.images)} frames"
    return drawing.grid(sheet, labels, times, title)


def _keypoint_sheet(
    clip: RawClip, keypoints: KeypointArrays, said: KeypointInfo, rows: Sequence[NDArray[np.intp]]
) -> RgbImage:
    scale = -(-TRACK_CELL // max(clip.images.shape[1:3]))
    sheet = [
        [
            drawing.draw_skeleton(
                clip.images[frame],
                keypoints.pixels[frame],
                keypoints.pixels_valid[frame],
                keypoints.visible[frame],
                said.edges,
                scale,
            )
            for frame in _evenly(row, 4)
        ]
        for row in rows
    ]
    labels = [*(f"camera {clip.info.camera_ids[int(row[0])]}" for row in rows), ""]
    sheet.append([drawing.legend(said.names, sum(image.shape[1] for image in sheet[0]))])
    times = [f"{clip.info.times[int(i)]:.2f} s" for i in _evenly(rows[0], 4)]
    return drawing.grid(sheet, labels, times, f"{clip.key}: keypoints (rings: hidden)", cell=TRACK_CELL)


def _track_row(clip: RawClip, known: Truth, row: NDArray[np.intp]) -> list[RgbImage]:
    """One camera's frames with the trails of points up to each; empty if the clip has no tracks."""
    followed = _trails(clip, known, row)
    if followed is None:
        return []
    pixels, visible = followed
    ink = np.array(drawing.point_colours(len(pixels)), np.uint8).reshape(-1, 3)
    drawn: list[RgbImage] = []
    scale = -(-TRACK_CELL // max(clip.images.shape[1:3]))
    for frame in _evenly(row, 4):
        until = int(np.flatnonzero(row == frame)[0]) + 1
        image = drawing.mask_overlay(clip.images[frame], np.zeros(clip.images.shape[1:3], bool))
        drawn.append(drawing.draw_tracks(image, pixels[:, :until], visible[:, :until], ink, scale))
    return drawn


def _trails(clip: RawClip, known: Truth, row: NDArray[np.intp]) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    """Pixels n t 2 and visibility of some points in one camera's frames, sorted by where they begin."""
    if known.cameras is None:
        return None
    frames = torch.from_numpy(row)
    cameras = Cameras(
        world_from_camera=known.cameras.world_from_camera[frames], intrinsics=known.cameras.intrinsics[frames]
    )
    if clip.tracks is not None and clip.info.track_times is not None:
        at = np.abs(np.subtract.outer(np.array(clip.info.times)[row], clip.info.track_times)).argmin(-1)
        chosen = np.unique(np.linspace(0, len(clip.tracks.points) - 1, POINTS).astype(int))
        points = torch.from_numpy(clip.tracks.points[chosen][:, at])
        visible = clip.tracks.visible[chosen][:, at]
    elif known.surface is not None and known.dynamic is not None:
        part = dataclasses.replace(
            known.surface, faces=known.surface.faces[frames], barycentric=known.surface.barycentric[frames]
        )
        start = _starts(known.dynamic[frames[0]].numpy(), part.faces[0].numpy() >= 0)
        first = torch.zeros(len(start), dtype=torch.long)
        tracks = surfaces.tracks(part, cameras, known.times[frames], first, torch.from_numpy(start))
        points, visible = tracks.points, tracks.visible.numpy()
    else:
        return None
    pixels, z = geometry.project(points.transpose(0, 1), cameras)
    pixels = torch.where(z[..., None] > 1e-3, pixels, torch.full_like(pixels, torch.inf)).transpose(0, 1)
    order = np.argsort(pixels[:, 0, 0].numpy(), kind="stable")
    return pixels.numpy()[order], visible[order]


def _starts(moving: NDArray[np.bool_], hit: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Choose pixels n 2: half on moving, half on static parts, evenly over each."""
    chosen: list[NDArray[np.float32]] = []
    for mask in (moving & hit, ~moving & hit):
        y, x = np.nonzero(mask)
        if len(x):
            pick = np.unique(np.linspace(0, len(x) - 1, POINTS // 2).astype(int))
            chosen.append(np.stack([x[pick], y[pick]], axis=-1).astype(np.float32) + np.float32(0.5))
    return np.concatenate(chosen) if chosen else np.zeros((0, 2), np.float32)


def _camera_views(clip: RawClip, known: Truth, rows: Sequence[NDArray[np.intp]]) -> RgbImage:
    """The scene's points with the cameras' paths, and their frusta at the first and the last time; two views."""
    assert known.cameras is not None
    poses = known.cameras.world_from_camera.double().numpy()
    points, colours = _cloud(clip, known)
    up = -poses[:, :3, 1].mean(0)
    up /= max(float(np.linalg.norm(up)), 1e-9)
    size = _frustum_size(poses, points)
    frusta = [
        (_frustum(poses[i], known.cameras.intrinsics[int(i)].numpy(), clip.info, size), k, is_last)
        for k, row in enumerate(rows)
        for is_last, i in enumerate((row[0], row[-1]))
    ]
    above = _view(up, np.pi / 2, poses)
    aslant = _view(up, np.deg2rad(35), poses)
    views = [
        _draw_view(axes, points, colours, [poses[row, :3, 3] for row in rows], frusta, clip.info.metric)
        for axes in (above, aslant)
    ]
    title = (
        f"{clip.key}: cameras at the first time (thick) and the last (thin), their paths, and the scene at the first"
    )
    return drawing.grid([views], None, ["from above", "aslant"], title, cell=SIDE)


def _cloud(clip: RawClip, known: Truth) -> tuple[NDArray[np.float64], RgbImage]:
    """Points of every camera's first frame and their colours."""
    assert known.cameras is not None
    if known.depth is None:
        return np.zeros((0, 3)), np.zeros((0, 3), np.uint8)
    ids = np.array(clip.info.camera_ids)
    first = torch.from_numpy(np.unique(ids, return_index=True)[1])
    cameras = Cameras(
        world_from_camera=known.cameras.world_from_camera[first], intrinsics=known.cameras.intrinsics[first]
    )
    valid = (known.depth[first] > 0).numpy()
    points = geometry.unproject(known.depth[first], cameras).double().numpy()[valid]
    colours = clip.images[first.numpy()][valid]
    step = max(1, len(points) // CLOUD)
    return points[::step], colours[::step]


def _frustum_size(poses: NDArray[np.float64], points: NDArray[np.float64]) -> float:
    every = np.concatenate([poses[:, :3, 3], points])
    extent = np.quantile(every, 0.98, axis=0) - np.quantile(every, 0.02, axis=0)
    return float(max(extent.max(), 1e-3)) * 0.07


def _frustum(pose: NDArray[np.float64], k: NDArray[np.float32], info: ClipInfo, size: float) -> NDArray[np.float64]:
    """Centre and the image's four corners at depth ``size``, in the world."""
    width, height = info.width, info.height
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], float)
    rays = np.stack([(corners[:, 0] - k[0, 2]) / k[0, 0], (corners[:, 1] - k[1, 2]) / k[1, 1], np.ones(4)], axis=-1)
    local = np.concatenate([np.zeros((1, 3)), rays * size])
    return local @ pose[:3, :3].T + pose[:3, 3]


def _view(up: NDArray[np.float64], elevation: float, poses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Axes (rows: right, down, inward) of an orthographic view from behind the first camera, at an ``elevation``."""
    ahead = poses[0, :3, 2] - up * (poses[0, :3, 2] @ up)
    if np.linalg.norm(ahead) < 1e-6:
        ahead = poses[0, :3, 0]
    ahead /= np.linalg.norm(ahead)
    into = float(np.cos(elevation)) * ahead - float(np.sin(elevation)) * up
    right = np.cross(ahead, up)
    return np.stack([right, np.cross(into, right), into]).astype(np.float64)


def _draw_view(
    axes: NDArray[np.float64],
    points: NDArray[np.float64],
    colours: RgbImage,
    ways: list[NDArray[np.float64]],
    frusta: list[tuple[NDArray[np.float64], int, int]],
    metric: bool,
) -> RgbImage:
    cameras = np.concatenate([*ways, *(corners for corners, _, _ in frusta)]) @ axes.T
    cloud = points @ axes.T
    both = np.concatenate([cameras, cloud])[:, :2]
    low = np.minimum(np.quantile(both, 0.005, axis=0), cameras[:, :2].min(0))
    high = np.maximum(np.quantile(both, 0.995, axis=0), cameras[:, :2].max(0))
    scale = (SIDE - 40) / max(float((high - low).max()), 1e-6)
    middle = (low + high) / 2

    def to_sheet(xyz: NDArray[np.float64]) -> list[tuple[float, float]]:
        xy = (xyz @ axes.T)[:, :2]
        return [(float(x), float(y)) for x, y in (xy - middle) * scale + SIDE / 2]

    sheet = Image.fromarray(_dots(cloud, colours, middle, scale))
    pen = ImageDraw.Draw(sheet)
    for camera, way in enumerate(ways):
        pen.line(to_sheet(way), fill=_camera_ink(camera, len(ways)), width=2)
    for corners, camera, is_last in frusta:
        centre, *rim = to_sheet(corners)
        ink = _camera_ink(camera, len(ways))
        pen.line([*rim, rim[0]], fill=ink, width=1 if is_last else 3)
        for corner in rim:
            pen.line([centre, corner], fill=ink, width=1 if is_last else 2)
        if not is_last:
            pen.text(
                centre,
                str(camera),
                fill=(0, 0, 0),
                font=drawing.font(15),
                anchor="mm",
                stroke_width=2,
                stroke_fill=(255, 255, 255),
            )
    _length_mark(pen, scale, "m" if metric else "units")
    return np.asarray(sheet)


def _dots(cloud: NDArray[np.float64], colours: RgbImage, middle: NDArray[np.float64], scale: float) -> RgbImage:
    """Draw points as pale 2 × 2 dots, the near over the far."""
    sheet = np.full((SIDE, SIDE, 3), 255, np.uint8)
    order = np.argsort(-cloud[:, 2])
    xy = np.rint((cloud[order, :2] - middle) * scale + SIDE / 2).astype(int)
    pale = (colours[order] * 0.6 + 102).astype(np.uint8)
    inside = ((xy >= 0) & (xy < SIDE - 1)).all(-1)
    for dy, dx in ((0, 0), (0, 1), (1, 0), (1, 1)):
        sheet[xy[inside, 1] + dy, xy[inside, 0] + dx] = pale[inside]
    return sheet


def _camera_ink(camera: int, count: int) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(camera / max(1, count), 1.0, 0.75)
    return round(red * 255), round(green * 255), round(blue * 255)


def _length_mark(pen: ImageDraw.ImageDraw, scale: float, unit: str) -> None:
    """Draw a scale bar of a round length at the lower left."""
    target = 100 / scale
    power = 10.0 ** np.floor(np.log10(target))
    length = float(max(m * power for m in (1, 2, 5) if m * power <= target))
    pen.line([12, SIDE - 12, 12 + length * scale, SIDE - 12], fill=(0, 0, 0), width=3)
    pen.text(
        (12, SIDE - 18),
        f"{length:g} {unit}",
        fill=(0, 0, 0),
        font=drawing.font(13),
        anchor="ls",
        stroke_width=2,
        stroke_fill=(255, 255, 255),
    )
