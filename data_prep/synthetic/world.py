"""Composition of a world from a seed: room, bodies and their motion, lights and cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.cameras import RANGES, Action, CameraPath, draw_aim, on_rig, propose
from data_prep.synthetic.cast import Cast, RejectedError, cast_bodies, cast_creatures
from data_prep.synthetic.pictures import photographs
from data_prep.synthetic.render import Lens, Moment, make_moment, pixel_grid, ray_directions
from data_prep.synthetic.room import Painter, make_lights, make_place, make_surroundings
from data_prep.synthetic.settings import HELD_OUT_SEED, WorldSettings
from data_prep.synthetic.stage import Piece, Stage, make_stage
from data_prep.synthetic.textures import make_atlas

Array = NDArray[np.float64]
Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that defines a clip, except its pixels."""

    stage: Stage
    cast: Cast
    cameras: list[CameraPath]
    times: Array
    bounds: Array
    """2 3: low and high corner of the surroundings."""
    lid: bool = True
    """True if there is a ceiling."""
    photographs: tuple[str, ...] = ()
    """Names of the files that surfaces show."""
    models: tuple[str, ...] = ()
    """Names of the files whose meshes are there."""


def compose(seed: int, settings: WorldSettings) -> World:
    """World of ``seed``: the first of its attempts that passes all checks. RuntimeError if none does."""
    for attempt in range(200):
        try:
            return _attempt(np.random.default_rng([seed, attempt]), seed >= HELD_OUT_SEED, settings)
        except RejectedError:
            continue
    raise RuntimeError(f"no world found for seed {seed} with {settings}")


def _attempt(rng: Random, held_out: bool, settings: WorldSettings) -> World:
    place = make_place(rng, settings.scenes)
    bounds = place.inner
    duration = rng.uniform(*settings.duration_s)
    times = np.arange(settings.frames, dtype=np.float64) * (duration / settings.frames)
    centre = np.array([*rng.uniform(-0.12, 0.12, 2) * (bounds[1] - bounds[0])[:2], 0.0])
    cast = (cast_creatures if settings.bodies else cast_bodies)(rng, settings, centre, bounds, held_out, times)
    motion = cast.motion
    shown = None if settings.photographs is None else photographs(settings.photographs)
    painter = Painter(rng, held_out, 256 if max(settings.width, settings.height) >= 112 else 128, shown)
    pieces = make_surroundings(rng, place, painter) + cast.pieces(rng, painter)
    lights, sky = make_lights(rng, bounds, place.lid)
    stage = make_stage(pieces, motion.positions, motion.rotations, make_atlas(painter.tiles), lights, sky)
    followed = motion.positions[:, cast.movers[int(rng.integers(len(cast.movers)))]]
    action = Action(
        centre=cast.centre, radius=cast.radius, room=place.outer, followed=followed, bodies=motion.positions[0]
    )
    cameras = choose_cameras(rng, action, stage, pieces, times, settings)
    return World(
        stage=stage,
        cast=cast,
        cameras=cameras,
        times=times,
        bounds=place.outer,
        lid=place.lid,
        photographs=tuple(sorted(painter.shown)),
        models=tuple(sorted({part.skin.name for part in cast.parts if part.skin is not None})),
    )


def is_clear(path: CameraPath, stage: Stage, pieces: list[Piece], bounds: Array, margin: float) -> bool:
    """True if the camera stays ``margin`` metres off the room's sides and every piece's bounding box at all times."""
    positions = path.world_from_camera[:, :3, 3]
    if (positions < bounds[0] + margin).any() or (positions > bounds[1] - margin).any():
        return False
    for piece in pieces:
        if piece.path is not None:
            low, high = piece.path.min(1) - margin, piece.path.max(1) + margin
            if ((positions > low) & (positions < high)).all(-1).any():
                return False
            continue
        if not piece.mesh.parts:
            continue
        local = positions
        if piece.body >= 0:
            local = np.einsum("tji,tj->ti", stage.rotations[:, piece.body], positions - stage.positions[:, piece.body])
        low, high = piece.mesh.vertices.min(0) - margin, piece.mesh.vertices.max(0) + margin
        if ((local > low) & (local < high)).all(-1).any():
            return False
    return True


@dataclass(frozen=True, kw_only=True)
class Probe:
    """Statistics of coarse renders through a camera at a few times."""

    depth_ratio: float
    """Ratio of the 95 % and 5 % depth quantiles, minimum over the times."""
    nearest: float
    moving: float
    """Fraction of pixels on bodies that are moving at the time, mean over the times."""
    bodies: float
    largest: float
    """Fraction of the image that the largest piece of the surroundings covers, maximum over the times."""


def choose_cameras(
    rng: Random, action: Action, stage: Stage, pieces: list[Piece], times: Array, settings: WorldSettings
) -> list[CameraPath]:
    """Draw paths until enough are clear and see enough. RejectedError if that takes too many."""
    looks = sorted({0, len(times) // 2, len(times) - 1})
    moments = {time: make_moment(stage, time) for time in looks}
    chosen: list[CameraPath] = []
    aim = draw_aim(rng, settings)
    for _ in range(40 + 15 * settings.cameras):
        path = propose(rng, action, times, settings, aim)
        if chosen and settings.rig_m is not None:
            path = on_rig(rng, chosen[0], action.centre, settings)
        margin = min(0.3, RANGES[settings.views].nearest_m)
        if is_clear(path, stage, pieces, action.room, margin) and _teaches(
            probe(path, moments, times, settings), path, settings
        ):
            chosen.append(path)
            aim = draw_aim(rng, settings)  # once for each camera: what is easily found would else be most of them
        if len(chosen) == settings.cameras:
            return chosen
    raise RejectedError("too few cameras see enough")


def _teaches(view: Probe, path: CameraPath, settings: WorldSettings) -> bool:
    ranges, least = RANGES[settings.views], 0.0 if path.aim == "anywhere" else settings.moving[0]
    return (
        view.depth_ratio >= ranges.depth_ratio
        and view.nearest >= ranges.nearest_m
        and least <= view.moving <= settings.moving[1]
        and view.bodies <= max(ranges.bodies, settings.moving[1])
        and view.largest <= ranges.largest
    )


def probe(path: CameraPath, moments: dict[int, Moment], times: Array, settings: WorldSettings) -> Probe:
    """Measure a path at a few times with about 20 × 20 rays."""
    side = max(settings.width, settings.height) / 20
    columns, rows = max(int(settings.width / side), 4), max(int(settings.height / side), 4)
    pixels = pixel_grid(columns, rows) * (settings.width / columns, settings.height / rows)
    ratios, nearest, moving, bodies, largest = [], [], [], [], []
    for time, moment in moments.items():
        pose, stage = path.world_from_camera[time], moment.stage
        hits = Lens(moment, pose[:3, 3]).hits(ray_directions(pose, path.intrinsics, pixels))
        seen = hits.faces >= 0
        enough = seen.mean() > RANGES[settings.views].seen
        low, high = np.quantile(hits.depth[seen], [0.05, 0.95]) if enough else (1.0, 0.0)
        ratios.append(float(high / low))
        nearest.append(float(hits.depth[seen].min()) if seen.any() else 0.0)
        neighbour = time + 1 if time + 1 < len(times) else time - 1
        speed = np.linalg.norm(stage.positions[neighbour] - stage.positions[time], axis=-1) / abs(
            times[neighbour] - times[time]
        )
        body = stage.face_body[hits.faces]
        on_body = seen & (body >= 0)
        moving.append(float((on_body & (speed[body] > 0.05)).mean()))
        bodies.append(float(on_body.mean()))
        tiles = stage.tiles[hits.faces[seen & (body < 0)]]
        largest.append(float(np.bincount(tiles).max() / len(pixels)) if len(tiles) else 0.0)
    return Probe(
        depth_ratio=float(np.min(ratios)),
        nearest=min(nearest),
        moving=float(np.mean(moving)),
        bodies=float(np.mean(bodies)),
        largest=max(largest),
    )
