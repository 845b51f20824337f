"""One world out of one seed: a room, its things, how they move, light and cameras."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.bodies import make_bodies
from data_prep.synthetic.cameras import Action, CameraPath, beside, propose
from data_prep.synthetic.physics import Body, Motion, simulate
from data_prep.synthetic.render import Lens, Moment, make_moment, pixel_grid, ray_directions
from data_prep.synthetic.room import Painter, make_bounds, make_fittings, make_lights, make_shell
from data_prep.synthetic.settings import HELD_OUT_SEED, WorldSettings
from data_prep.synthetic.stage import Piece, Stage, make_stage
from data_prep.synthetic.textures import make_atlas

Array = NDArray[np.float64]
Random = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything of a clip but its pixels."""

    stage: Stage
    bodies: list[Body]
    """Body i is instance i + 1."""
    cameras: list[CameraPath]
    times: Array


class RejectedError(Exception):
    """An attempt's world is no good; the next one may be."""


def compose(seed: int, settings: WorldSettings) -> World:
    """The world of ``seed``: of a row of attempts, the first that teaches enough."""
    for attempt in range(200):
        try:
            return _attempt(np.random.default_rng([seed, attempt]), seed >= HELD_OUT_SEED, settings)
        except RejectedError:
            continue
    raise RuntimeError(f"no world found for seed {seed} with {settings}")


def _attempt(rng: Random, held_out: bool, settings: WorldSettings) -> World:
    bounds, lid = make_bounds(rng), bool(rng.random() < 0.75)
    duration = rng.uniform(*settings.duration_s)
    times = np.arange(settings.frames, dtype=np.float64) * (duration / settings.frames)
    centre = np.array([*rng.uniform(-0.12, 0.12, 2) * (bounds[1] - bounds[0])[:2], 0.0])
    count = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
    radius = rng.uniform(0.8, 1.1) + 0.03 * count
    bodies = make_bodies(rng, count, centre, radius, bounds, held_out, settings)
    if len(bodies) < settings.objects[0] or sum(b.motion in settings.starts for b in bodies) < 2:
        raise RejectedError("too few objects found room")
    motion = simulate(bodies, bounds, times + rng.uniform(0.0, 0.25))
    _require_sane(motion, bounds)
    painter = Painter(rng, held_out, 256 if max(settings.width, settings.height) >= 112 else 128)
    pieces = make_shell(rng, bounds, lid, painter) + make_fittings(rng, bounds, painter)
    for number, body in enumerate(bodies):
        extent = float(np.ptp(body.mesh.vertices, axis=0).max())
        material = painter.material(extent * rng.uniform(0.5, 1.3))
        pieces.append(Piece(mesh=body.mesh, instance=number + 1, body=number, material=material))
    lights, sky = make_lights(rng, bounds, lid)
    stage = make_stage(pieces, motion.positions, motion.rotations, make_atlas(painter.tiles), lights, sky)
    movers = [i for i, body in enumerate(bodies) if body.motion in settings.starts]
    followed = motion.positions[:, movers[int(rng.integers(len(movers)))]]
    action = Action(centre=centre, radius=radius, room=bounds, followed=followed)
    return World(
        stage=stage, bodies=bodies, cameras=choose_cameras(rng, action, stage, pieces, times, settings), times=times
    )


def _require_sane(motion: Motion, bounds: Array) -> None:
    """Nothing starts inside another, leaves the room or flies apart."""
    where = motion.positions
    inside = (where[..., :2] > bounds[0, :2]) & (where[..., :2] < bounds[1, :2])
    sound = motion.stable and motion.deepest <= 0.01 and np.isfinite(where).all()
    if not sound or not inside.all() or (where[..., 2] < 0).any():
        raise RejectedError("physics")


def is_clear(path: CameraPath, stage: Stage, pieces: list[Piece], bounds: Array, margin: float) -> bool:
    """Whether the camera keeps ``margin`` metres from the room's sides and from every piece's box at all times."""
    where = path.world_from_camera[:, :3, 3]
    if (where < bounds[0] + margin).any() or (where > bounds[1] - margin).any():
        return False
    for piece in pieces:
        if not piece.mesh.parts:
            continue
        local = where
        if piece.body >= 0:
            local = np.einsum("tji,tj->ti", stage.rotations[:, piece.body], where - stage.positions[:, piece.body])
        low, high = piece.mesh.vertices.min(0) - margin, piece.mesh.vertices.max(0) + margin
        if ((local > low) & (local < high)).all(-1).any():
            return False
    return True


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What a few coarse looks through a camera find."""

    depth_ratio: float
    """95 % over 5 % depth quantile, the least of the looks."""
    nearest: float
    moving: float
    """Share of pixels on bodies that move at that moment."""
    bodies: float
    largest: float
    """Share of the picture that the largest flat piece of the surroundings takes."""


def choose_cameras(
    rng: Random, action: Action, stage: Stage, pieces: list[Piece], times: Array, settings: WorldSettings
) -> list[CameraPath]:
    """Draw paths until enough are clear and see enough."""
    looks = sorted({0, len(times) // 2, len(times) - 1})
    moments = {time: make_moment(stage, time) for time in looks}
    chosen: list[CameraPath] = []
    for _ in range(40 + 15 * settings.cameras):
        path = propose(rng, action, times, settings)
        if chosen and settings.rig_m is not None:
            path = beside(rng, chosen[0], action.centre, settings)
        if is_clear(path, stage, pieces, action.room, 0.3) and _teaches(
            probe(path, moments, times, settings), settings
        ):
            chosen.append(path)
        if len(chosen) == settings.cameras:
            return chosen
    raise RejectedError("too few cameras see enough")


def _teaches(seen: Probe, settings: WorldSettings) -> bool:
    return (
        seen.depth_ratio >= 3.1
        and seen.nearest >= 0.35
        and settings.moving[0] <= seen.moving <= settings.moving[1]
        and seen.bodies <= max(0.65, settings.moving[1])
        and seen.largest <= 0.6
    )


def probe(path: CameraPath, moments: dict[int, Moment], times: Array, settings: WorldSettings) -> Probe:
    """Look at a few moments with about 20 × 20 rays."""
    side = max(settings.width, settings.height) / 20
    columns, rows = max(int(settings.width / side), 4), max(int(settings.height / side), 4)
    pixels = pixel_grid(columns, rows) * (settings.width / columns, settings.height / rows)
    ratios, nearest, moving, bodies, largest = [], [], [], [], []
    for time, moment in moments.items():
        pose, stage = path.world_from_camera[time], moment.stage
        hits = Lens(moment, pose[:3, 3]).hits(ray_directions(pose, path.intrinsics, pixels))
        seen = hits.faces >= 0
        low, high = np.quantile(hits.depth[seen], [0.05, 0.95]) if seen.mean() > 0.6 else (1.0, 0.0)
        ratios.append(float(high / low))
        nearest.append(float(hits.depth[seen].min()) if seen.any() else 0.0)
        near = time + 1 if time + 1 < len(times) else time - 1
        speed = np.linalg.norm(stage.positions[near] - stage.positions[time], axis=-1) / abs(times[near] - times[time])
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
