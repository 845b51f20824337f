"""Camera paths: hand-held, orbit, dolly, pan, follow and static, each with its own intrinsics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.settings import CameraKind, WorldSettings

Array = NDArray[np.float64]
Random = np.random.Generator
KIND_PROBABILITIES = (0.25, 0.27, 0.2, 0.1, 0.1, 0.08)
"""Probability of each kind of path if all are allowed."""


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """One camera over time: OpenCV axes, pixel origin at the image corner."""

    kind: CameraKind
    world_from_camera: Array
    """t 4 4"""
    intrinsics: Array
    """3 3"""


@dataclass(frozen=True, kw_only=True)
class Action:
    """Region that cameras look at."""

    centre: Array
    radius: float
    room: Array
    """2 3: low and high corner."""
    followed: Array
    """t 3: positions of a moving body."""


def look_at(positions: Array, targets: Array, roll: Array) -> Array:
    """Poses (t 4 4) at ``positions`` (t 3) that look at ``targets`` (t 3); ``roll`` (t) in radians; world z is up."""
    forward = targets - positions
    forward = forward / np.linalg.norm(forward, axis=-1, keepdims=True)
    right = np.cross(forward, np.array([0.0, 0.0, 1.0]))
    right /= np.linalg.norm(right, axis=-1, keepdims=True)
    down = np.cross(forward, right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    poses = np.zeros((len(positions), 4, 4))
    poses[:, :3, 0], poses[:, :3, 1] = c * right + s * down, c * down - s * right
    poses[:, :3, 2], poses[:, :3, 3], poses[:, 3, 3] = forward, positions, 1
    return poses


def make_intrinsics(rng: Random, width: int, height: int) -> Array:
    """Intrinsics (3 3): square pixels, field of view 48–82° along the longer side, principal point near the centre."""
    focal = max(width, height) / 2 / np.tan(np.radians(rng.uniform(48, 82)) / 2)
    x, y = (rng.uniform(0.49, 0.51, 2)) * (width, height)
    return np.array([[focal, 0, x], [0, focal, y], [0, 0, 1.0]])


def sway(rng: Random, times: Array, amount: float, lowest_hz: float = 0.3, highest_hz: float = 2.2) -> Array:
    """Smooth random motion (t 3) of about ``amount``: a sum of sines whose amplitude falls with frequency."""
    hertz = np.geomspace(lowest_hz, highest_hz, 5)
    phases = rng.uniform(0, 2 * np.pi, (5, 3))
    strength = rng.normal(0, 1, (5, 3)) * (lowest_hz / hertz)[:, None]
    waves = np.sin(2 * np.pi * hertz[None, :, None] * times[:, None, None] + phases)
    return amount * (waves * strength).sum(1)


def propose(rng: Random, action: Action, times: Array, settings: WorldSettings) -> CameraPath:
    """Random path that looks at the action; the caller tests that it is clear and sees enough."""
    kinds = get_args(CameraKind)
    probabilities = np.array(
        [probability if kind in settings.paths else 0.0 for kind, probability in zip(kinds, KIND_PROBABILITIES)]
    )
    # with all kinds allowed the division could change last bits, and with them the worlds of all seeds
    kind = kinds[
        int(rng.choice(len(kinds), p=probabilities if probabilities.all() else probabilities / probabilities.sum()))
    ]
    ceiling = action.room[1, 2]
    start_angle, height_m = rng.uniform(0, 2 * np.pi), rng.uniform(0.5, min(ceiling - 0.5, 2.4))
    distance = rng.uniform(1.1, 2.6) + action.radius
    target = action.centre + np.array([*rng.normal(0, 0.3, 2), rng.uniform(0.1, 0.6)])
    duration = max(float(times[-1]), 1e-6)
    phase = times / duration
    ease = phase if rng.random() < 0.5 else phase * phase * (3 - 2 * phase)
    angle = np.full(len(times), start_angle)
    targets = np.broadcast_to(target, (len(times), 3)).copy()
    if kind == "orbit":
        angle = start_angle + np.radians(rng.uniform(14, 65)) * rng.choice([-1, 1]) * ease
    outward = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], -1)
    positions = action.centre + outward * distance
    positions[:, 2] = height_m
    if kind == "dolly":
        direction = rng.normal(0, 1, 3) * np.array([1, 1, 0.35])
        travel = rng.uniform(0.5, 1.6) * direction / np.linalg.norm(direction)
        positions = positions + (ease - 0.5)[:, None] * travel
        targets = targets + rng.uniform(0, 0.6) * (ease - 0.5)[:, None] * travel
    if kind == "pan":
        side = np.cross(outward[0], [0, 0, 1.0])
        targets = targets + (ease - rng.uniform(0.3, 0.7))[:, None] * side * distance * rng.uniform(0.25, 0.8)
    if kind == "follow":
        targets = 0.35 * targets + 0.65 * action.followed
    if kind == "handheld":
        walk = rng.normal(0, 0.28, 3) * np.array([1, 1, 0.2])
        positions = positions + times[:, None] * walk
        targets = targets + times[:, None] * rng.normal(0, 0.22, 3)
    shake = 0.0 if kind == "static" else (1.0 if kind == "handheld" else rng.choice([0.0, 0.25]))
    positions = positions + sway(rng, times, 0.018 * shake)
    targets = targets + sway(rng, times, 0.03 * shake)
    roll = rng.normal(0, 0.05) + sway(rng, times, 0.012 * shake)[:, 0]
    poses = look_at(positions, targets, roll)
    intrinsics = make_intrinsics(rng, settings.width, settings.height)
    return CameraPath(kind=kind, world_from_camera=poses, intrinsics=intrinsics)


def on_rig(rng: Random, first: CameraPath, centre: Array, settings: WorldSettings) -> CameraPath:
    """Camera on the rig of ``first``: rigidly attached, up to ``rig_m`` metres away, looking at the same place."""
    assert settings.rig_m is not None
    direction = rng.normal(0, 1, 3)
    away = settings.rig_m * rng.uniform(0.3, 1.0) * direction / np.linalg.norm(direction)
    position, axes = first.world_from_camera[:, :3, 3], first.world_from_camera[:, :3, :3]
    reach = np.linalg.norm(position[0] - centre)
    poses = look_at(
        position + axes @ away, position + reach * axes[:, :, 2], np.full(len(position), rng.normal(0, 0.05))
    )
    intrinsics = make_intrinsics(rng, settings.width, settings.height)
    return CameraPath(kind=first.kind, world_from_camera=poses, intrinsics=intrinsics)
