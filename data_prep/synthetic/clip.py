"""Rendering of a world into one clip of the shard layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.blender import render
from data_prep.synthetic.cameras import CameraPath
from data_prep.synthetic.effects import Effects, between, camera_between, draw_effects, with_moving_lights
from data_prep.synthetic.keypoints import Recorder, keypoints_of
from data_prep.synthetic.render import Hits, Lens, Moment, make_moment, pixel_grid, ray_directions, shade
from data_prep.synthetic.settings import WorldSettings
from data_prep.synthetic.stage import Stage
from data_prep.synthetic.world import World, compose
from four_d.data.contract import MOST_PIXELS, ClipInfo, ObjectInfo, RawClip, SurfaceArrays

VERSION = 1
Array = NDArray[np.float64]
Floats = NDArray[np.float32]
SUBPIXELS = np.array([[0.09, 0.36], [0.27, -0.26], [-0.36, -0.1]])
"""Pixel offsets of the extra rays from the centre of a border pixel."""


def generate(seed: int, settings: WorldSettings) -> RawClip:
    """Generate the clip of ``seed``, deterministically. Frames are ordered by camera, then time; metres, world z up."""
    world = compose(seed, settings)
    rng = np.random.default_rng([seed, 1 << 20])  # apart from the streams [seed, attempt] of `compose`
    strengths = np.random.default_rng([seed, 1 << 21])  # effects leave all else of a world as it is
    effects = draw_effects(strengths, settings)
    if "lights" in settings.effects:
        world = replace(world, stage=with_moving_lights(strengths, world.stage, world.bounds))
    shape = (settings.cameras, settings.frames, settings.height, settings.width)
    faces = np.zeros(shape, np.int32)
    barycentric = np.zeros((*shape[:2], 2, *shape[2:]), np.uint16)
    radiance = np.zeros((*shape, 3), np.float32)
    vertices: list[Floats] = []
    keypoints = _recorder(world, settings)
    for time in range(settings.frames):
        moment = make_moment(world.stage, time, effects.fog)
        vertices.append(moment.vertices)
        own = (faces[:, time], barycentric[:, time], radiance[:, time])
        if settings.rolling_shutter_s is not None:
            roll(world, effects, time, settings, *own, antialias=settings.antialias)
        else:
            for camera, path in enumerate(world.cameras):
                film(moment, path, time, *(arrays[camera] for arrays in own), antialias=settings.antialias)
                if keypoints is not None:
                    keypoints.record(moment, path, camera, time)
        if effects.shutter and settings.blender is None:
            radiance[:, time] = blurred(world, effects, time, settings)
    if settings.blender is not None:
        radiance = render(world, effects, settings, seed)
    measured = [effects.expose(strengths, frames, camera) for camera, frames in enumerate(radiance)]
    images = np.stack([effects.compress(develop(rng, frames)) for frames in measured])
    clip = _assemble(seed, settings, world, np.stack(vertices), faces, barycentric, images)
    if keypoints is None:
        return clip
    return replace(clip, info=replace(clip.info, keypoints=keypoints.info), keypoints=keypoints.arrays())


def blurred(world: World, effects: Effects, time: int, settings: WorldSettings) -> Floats:
    """Mean radiance (c h w 3) of all cameras while their shutters are open about time index ``time``."""
    size = (settings.height, settings.width)
    offsets, shape = effects.offsets(), (settings.cameras, *size)
    total, scratch = np.zeros((*shape, 3), np.float32), np.zeros((*shape, 3), np.float32)
    faces, barycentric = np.zeros(shape, np.int32), np.zeros((settings.cameras, 2, *size), np.uint16)
    for offset in offsets:
        own = (faces, barycentric, scratch)
        # without antialiasing: there are as many rays per pixel as times
        if settings.rolling_shutter_s is not None:
            roll(world, effects, time + offset, settings, *own, antialias=False)
        else:
            moment = make_moment(between(world.stage, time + offset), 0, effects.fog)
            for camera, path in enumerate(world.cameras):
                film(moment, camera_between(path, time + offset), 0, *(a[camera] for a in own), antialias=False)
        total += scratch
    return total / np.float32(len(offsets))


def row_times(time: float, world: World, settings: WorldSettings) -> Array:
    """Time indices (h) at which the rows of the frame at index ``time`` are exposed, by a rolling shutter.

    Row r is exposed at the frame's time + ((r + ½) / h − ½) · ``rolling_shutter_s``.
    """
    assert settings.rolling_shutter_s is not None
    share = settings.rolling_shutter_s / float(world.times[1] - world.times[0])
    return time + ((np.arange(settings.height) + 0.5) / settings.height - 0.5) * share


def roll(
    world: World,
    effects: Effects,
    time: float,
    settings: WorldSettings,
    faces: NDArray[np.int32],
    barycentric: NDArray[np.uint16],
    radiance: Floats,
    *,
    antialias: bool,
) -> None:
    """Render a frame of all cameras row by row, each with world and camera at its own time (see `row_times`)."""
    for row, at in enumerate(row_times(time, world, settings)):
        moment = make_moment(between(world.stage, at), 0, effects.fog)
        for camera, path in enumerate(world.cameras):
            own = (faces[camera], barycentric[camera], radiance[camera])
            film(moment, camera_between(path, at), 0, *own, antialias=antialias, rows=(row, row + 1))


def _recorder(world: World, settings: WorldSettings) -> Recorder | None:
    """Recorder of the keypoints; None in a world without creatures."""
    if not world.cast.troupe.creatures:
        return None
    return Recorder(keypoints_of(world.cast), settings.cameras, (settings.width, settings.height))


def film(
    moment: Moment,
    path: CameraPath,
    time: int,
    faces: NDArray[np.int32],
    barycentric: NDArray[np.uint16],
    radiance: Floats,
    *,
    antialias: bool,
    rows: tuple[int, int] | None = None,
) -> None:
    """Render one frame into ``faces`` (h w), ``barycentric`` (2 h w) and ``radiance`` (h w 3).

    ``rows``: first row to render, and the one after the last; None: all.
    """
    height, width = faces.shape
    first, last = rows or (0, height)
    above, below = max(first - 1, 0), min(last + 1, height)  # a border is known from the rows beside it
    pose, pixel_angle = path.world_from_camera[time], 1 / float(path.intrinsics[0, 0])
    lens, pixels = Lens(moment, pose[:3, 3]), pixel_grid(width, height)[above * width : below * width]
    inner = slice((first - above) * width, (last - above) * width)

    def light(directions: Array, hits: Hits) -> Floats:
        return shade(moment, pose[:3, 3], directions, hits, pixel_angle)

    directions = ray_directions(pose, path.intrinsics, pixels)
    around = lens.hits(directions)
    hits = Hits(faces=around.faces[inner], weights=around.weights[inner], depth=around.depth[inner])
    colours = light(directions[inner], hits)
    shape = (last - first, width)
    faces[first:last] = hits.faces.reshape(shape)
    barycentric[:, first:last] = np.round(hits.weights[:, 1:].T * 65535).astype(np.uint16).reshape(2, *shape)
    if antialias:
        found = borders(moment.stage, around.faces.reshape(-1, width), around.depth.reshape(-1, width))
        border = np.flatnonzero(found.reshape(-1)[inner])
        extra = ray_directions(pose, path.intrinsics, (pixels[inner][border][:, None] + SUBPIXELS).reshape(-1, 2))
        more = light(extra, lens.hits(extra)).reshape(-1, len(SUBPIXELS), 3)
        colours[border] = (colours[border] + more.sum(1)) / (len(SUBPIXELS) + 1)
    radiance[first:last] = colours.reshape(*shape, 3)


def borders(stage: Stage, faces: NDArray[np.int32], depth: Array) -> NDArray[np.bool_]:
    """Mask (h w) of pixels with one of 4 neighbours on another surface or at a depth that differs by over 10 %."""
    surface = np.where(faces >= 0, stage.tiles[faces] + stage.instances[faces] * 4096, -1)
    border = np.zeros(faces.shape, bool)
    for axis in (0, 1):
        a, b = (np.take(depth, range(s, depth.shape[axis] - 1 + s), axis) for s in (0, 1))
        step = (np.diff(surface, axis=axis) != 0) | (np.abs(a - b) > 0.1 * np.minimum(a, b))
        border |= np.concatenate([step, np.zeros_like(np.take(step, [0], axis))], axis)
        border |= np.concatenate([np.zeros_like(np.take(step, [0], axis)), step], axis)
    return border


def develop(rng: np.random.Generator, radiance: Floats) -> NDArray[np.uint8]:
    """Linear radiance (f h w 3) of one camera to 8-bit sRGB: exposure, white balance, tone curve and a little noise."""
    exposure = rng.uniform(0.8, 1.25) * 0.42 / max(float(np.median(radiance)) * 2, 1e-3)
    balance = rng.uniform(0.94, 1.06, 3).astype(np.float32)
    linear = radiance * (np.float32(exposure) * balance)
    display = np.clip(linear / (1 + 0.35 * linear), 0, 1) ** np.float32(1 / 2.2)
    noise = rng.uniform(0, 0.012) * rng.standard_normal(display.shape, dtype=np.float32)
    return np.round(np.clip(display + noise, 0, 1) * 255).astype(np.uint8)


def farthest(
    triangles: NDArray[np.int32],
    vertices: Floats,
    faces: NDArray[np.int32],
    barycentric: NDArray[np.uint16],
    poses: Array,
    lenses: Array,
) -> float:
    """Largest distance in pixels, rounded up, of what pixels saw from them, projected by its frame's one pose.

    ``vertices`` t v 3; ``faces`` c t h w; ``barycentric`` c t 2 h w; ``poses`` c·t 4 4; ``lenses`` c·t 3 3.
    """
    found, (cameras, times, height, width) = 0.0, faces.shape
    centres = pixel_grid(width, height)
    for number, (camera, time) in enumerate(np.ndindex(cameras, times)):
        seen = np.flatnonzero(faces[camera, time].reshape(-1) >= 0)
        second, third = barycentric[camera, time].reshape(2, -1)[:, seen].astype(np.float64) / 65535
        corners = vertices[time][triangles[faces[camera, time].reshape(-1)[seen]]].astype(np.float64)
        points = np.einsum("nk,nki->ni", np.stack([1 - second - third, second, third], -1), corners)
        local = np.einsum("ni,ij->nj", points - poses[number, :3, 3], poses[number, :3, :3])
        image = np.einsum("nj,ij->ni", local, lenses[number])
        off = image[:, :2] / np.maximum(image[:, 2:], 1e-6) - centres[seen]
        found = max(found, float(np.linalg.norm(off, axis=-1).max(initial=0)))
    return min(float(np.ceil(100 * found) / 100) or 0.01, MOST_PIXELS)


def _assemble(
    seed: int,
    settings: WorldSettings,
    world: World,
    vertices: Floats,
    faces: NDArray[np.int32],
    barycentric: NDArray[np.uint16],
    images: NDArray[np.uint8],
) -> RawClip:
    poses = np.concatenate([path.world_from_camera for path in world.cameras])
    lenses = np.concatenate([np.broadcast_to(p.intrinsics, (len(world.times), 3, 3)) for p in world.cameras])
    off = None
    if settings.rolling_shutter_s is not None:
        off = farthest(world.stage.triangles, vertices, faces, barycentric, poses, lenses)
    moving = np.flatnonzero((vertices != vertices[0]).any((0, 2))).astype(np.int32)
    times = [float(t) for t in world.times]
    info = ClipInfo(
        source="synthetic",
        licence=settings.assets_licence if settings.has_assets else "CC0-1.0",
        metric=True,
        pixel_tolerance=off,
        width=settings.width,
        height=settings.height,
        times=times * settings.cameras,
        camera_ids=[c for c in range(settings.cameras) for _ in times],
        surface_times=times,
        objects=[ObjectInfo(name="surroundings"), *world.cast.objects],
        seed=seed,
        generator={
            "name": "four_d.synthetic",
            "version": VERSION,
            "settings": settings.to_dict(),
            "camera_motions": [path.kind for path in world.cameras],
            **({"photographs": list(world.photographs)} if world.photographs else {}),
            **({"renderer": "cycles"} if settings.blender is not None else {}),
            **({"meshes": list(world.models)} if world.models else {}),
        },
    )
    return RawClip(
        key=f"synthetic-{seed:09d}",
        info=info,
        images=images.reshape(-1, *images.shape[2:]),
        world_from_camera=poses,
        intrinsics=lenses,
        surface=SurfaceArrays(
            faces=faces.reshape(-1, *faces.shape[2:]),
            barycentric=barycentric.reshape(-1, *barycentric.shape[2:]),
            triangles=world.stage.triangles,
            instances=world.stage.instances,
            vertices=vertices[0],
            moving=moving,
            moving_vertices=np.ascontiguousarray(vertices[:, moving]),
        ),
    )
