"""Rendering of a world into one clip of the shard layout."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.cameras import CameraPath
from data_prep.synthetic.keypoints import Recorder, keypoints_of
from data_prep.synthetic.render import Hits, Lens, Moment, make_moment, pixel_grid, ray_directions, shade
from data_prep.synthetic.settings import WorldSettings
from data_prep.synthetic.stage import Stage
from data_prep.synthetic.world import World, compose
from four_d.data.contract import ClipInfo, ObjectInfo, RawClip, SurfaceArrays

VERSION = 1
Array = NDArray[np.float64]
Floats = NDArray[np.float32]
SUBPIXELS = np.array([[0.09, 0.36], [0.27, -0.26], [-0.36, -0.1]])
"""Pixel offsets of the extra rays from the centre of a border pixel."""


def generate(seed: int, settings: WorldSettings) -> RawClip:
    """Generate the clip of ``seed``, deterministically. Frames are ordered by camera, then time; metres, world z up."""
    world = compose(seed, settings)
    rng = np.random.default_rng([seed, 1 << 20])  # apart from the streams [seed, attempt] of `compose`
    shape = (settings.cameras, settings.frames, settings.height, settings.width)
    faces = np.zeros(shape, np.int32)
    barycentric = np.zeros((*shape[:2], 2, *shape[2:]), np.uint16)
    radiance = np.zeros((*shape, 3), np.float32)
    vertices: list[Floats] = []
    keypoints = _recorder(world, settings)
    for time in range(settings.frames):
        moment = make_moment(world.stage, time)
        vertices.append(moment.vertices)
        for camera, path in enumerate(world.cameras):
            at = (camera, time)
            film(moment, path, time, faces[at], barycentric[at], radiance[at], antialias=settings.antialias)
            if keypoints is not None:
                keypoints.record(moment, path, camera, time)
    images = np.stack([develop(rng, frames) for frames in radiance])
    clip = _assemble(seed, settings, world, np.stack(vertices), faces, barycentric, images)
    if keypoints is None:
        return clip
    return replace(clip, info=replace(clip.info, keypoints=keypoints.info), keypoints=keypoints.arrays())


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
) -> None:
    """Render one frame into ``faces`` (h w), ``barycentric`` (2 h w) and ``radiance`` (h w 3)."""
    height, width = faces.shape
    pose, pixel_angle = path.world_from_camera[time], 1 / float(path.intrinsics[0, 0])
    lens, pixels = Lens(moment, pose[:3, 3]), pixel_grid(width, height)

    def cast(at: Array) -> tuple[Hits, Floats]:
        directions = ray_directions(pose, path.intrinsics, at)
        hits = lens.hits(directions)
        return hits, shade(moment, pose[:3, 3], directions, hits, pixel_angle)

    hits, colours = cast(pixels)
    faces[:] = hits.faces.reshape(height, width)
    barycentric[:] = np.round(hits.weights[:, 1:].T * 65535).astype(np.uint16).reshape(2, height, width)
    if antialias:
        border = np.flatnonzero(borders(moment.stage, faces, hits.depth.reshape(height, width)))
        _, extra = cast((pixels[border][:, None] + SUBPIXELS).reshape(-1, 2))
        colours[border] = (colours[border] + extra.reshape(-1, len(SUBPIXELS), 3).sum(1)) / (len(SUBPIXELS) + 1)
    radiance[:] = colours.reshape(height, width, 3)


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


def _assemble(
    seed: int,
    settings: WorldSettings,
    world: World,
    vertices: Floats,
    faces: NDArray[np.int32],
    barycentric: NDArray[np.uint16],
    images: NDArray[np.uint8],
) -> RawClip:
    moving = np.flatnonzero((vertices != vertices[0]).any((0, 2))).astype(np.int32)
    times = [float(t) for t in world.times]
    info = ClipInfo(
        source="synthetic",
        licence="CC0-1.0",
        metric=True,
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
        },
    )
    return RawClip(
        key=f"synthetic-{seed:09d}",
        info=info,
        images=images.reshape(-1, *images.shape[2:]),
        world_from_camera=np.concatenate([path.world_from_camera for path in world.cameras]),
        intrinsics=np.concatenate([np.broadcast_to(p.intrinsics, (len(times), 3, 3)) for p in world.cameras]),
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
