"""Camera paths: hand-held, orbit, dolly, pan, follow and static, each with its own intrinsics.

Two ranges of views: `STEADY`, and `VARIED` as those of hand-held and head-worn cameras.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.settings import CameraKind, Views, WorldSettings

Array = NDArray[np.float64]
Random = np.random.Generator
KIND_PROBABILITIES = (0.25, 0.27, 0.2, 0.1, 0.1, 0.08)
"""Probability of each kind of path if all are allowed."""


@dataclass(frozen=True, kw_only=True)
class ViewRanges:
    """Ranges that paths are drawn from, and what a view must show at least."""

    height_m: tuple[float, float]
    """Height above the ground; at most half a metre below a ceiling."""
    distance_m: tuple[float, float]
    """Distance to the region of the action."""
    fov_deg: tuple[float, float]
    """Field of view along the longer side."""
    roll: float
    """Standard deviation of the roll, in radians."""
    depth_ratio: float
    """Least ratio of the 95 % and 5 % depth quantiles."""
    nearest_m: float
    """Least depth."""
    seen: float
    """Least fraction of rays that meet anything but the sky."""
    largest: float
    """Largest fraction of the image that one surface of the surroundings may cover."""
    bodies: float
    """Largest fraction of the image that bodies may cover, unless so much is to move."""


STEADY = ViewRanges(
    height_m=(0.5, 2.4),
    distance_m=(1.1, 2.6),
    fov_deg=(48, 82),
    roll=0.05,
    depth_ratio=3.1,
    nearest_m=0.35,
    seen=0.6,
    largest=0.6,
    bodies=0.65,
)
VARIED = ViewRanges(
    height_m=(0.15, 3.0),
    distance_m=(0.3, 3.5),
    fov_deg=(35, 105),
    roll=0.17,
    depth_ratio=1.25,
    nearest_m=0.2,
    seen=0.4,
    largest=0.95,
    bodies=0.8,
)
RANGES: dict[Views, ViewRanges] = {"steady": STEADY, "varied": VARIED}
Aim = Literal["action", "body", "anywhere"]
AIM_PROBABILITIES: dict[Aim, float] = {"action": 0.35, "body": 0.2, "anywhere": 0.45}
"""Probability of each aim of varied views."""
CLOSE_M = (0.45, 1.2)
"""Distance of a camera that looks at one body from its middle."""
STEEPEST_RAD = 1.3
"""Largest angle between a line of sight and the horizon: straight up or down, a camera has no upright."""


@dataclass(frozen=True, kw_only=True)
class CameraPath:
    """One camera over time: OpenCV axes, pixel origin at the image corner."""

    kind: CameraKind
    world_from_camera: Array
    """t 4 4"""
    intrinsics: Array
    """3 3"""
    aim: Aim = "action"
    """Target of the view; ``anywhere``: nothing in particular, so that nothing need move in it."""


@dataclass(frozen=True, kw_only=True)
class Action:
    """Region that cameras look at."""

    centre: Array
    radius: float
    room: Array
    """2 3: low and high corner."""
    followed: Array
    """t 3: positions of a moving body."""
    bodies: Array
    """n 3: positions of all bodies at the first time."""


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


def make_intrinsics(rng: Random, settings: WorldSettings) -> Array:
    """Intrinsics (3 3): square pixels, principal point near the centre."""
    width, height = settings.width, settings.height
    focal = max(width, height) / 2 / np.tan(np.radians(rng.uniform(*RANGES[settings.views].fov_deg)) / 2)
    x, y = (rng.uniform(0.49, 0.51, 2)) * (width, height)
    return np.array([[focal, 0, x], [0, focal, y], [0, 0, 1.0]])


def sway(rng: Random, times: Array, amount: float, lowest_hz: float = 0.3, highest_hz: float = 2.2) -> Array:
    """Smooth random motion (t 3) of about ``amount``: a sum of sines whose amplitude falls with frequency."""
    hertz = np.geomspace(lowest_hz, highest_hz, 5)
    phases = rng.uniform(0, 2 * np.pi, (5, 3))
    strength = rng.normal(0, 1, (5, 3)) * (lowest_hz / hertz)[:, None]
    waves = np.sin(2 * np.pi * hertz[None, :, None] * times[:, None, None] + phases)
    return amount * (waves * strength).sum(1)


def draw_aim(rng: Random, settings: WorldSettings) -> Aim:
    """Aim of a camera: the action, in steady views."""
    if settings.views == "steady":
        return "action"
    aims = tuple(AIM_PROBABILITIES)
    return aims[int(rng.choice(len(aims), p=list(AIM_PROBABILITIES.values())))]


def propose(rng: Random, action: Action, times: Array, settings: WorldSettings, aim: Aim = "action") -> CameraPath:
    """Random path that looks at its aim; the caller tests that it is clear and sees enough."""
    ranges = RANGES[settings.views]
    kinds = get_args(CameraKind)
    probabilities = np.array(
        [probability if kind in settings.paths else 0.0 for kind, probability in zip(kinds, KIND_PROBABILITIES)]
    )
    # with all kinds allowed the division could change last bits, and with them the worlds of all seeds
    kind = kinds[
        int(rng.choice(len(kinds), p=probabilities if probabilities.all() else probabilities / probabilities.sum()))
    ]
    ceiling = action.room[1, 2]
    start_angle = rng.uniform(0, 2 * np.pi)
    ground = action.room[0, 2]
    height_m = ground + rng.uniform(ranges.height_m[0], min(ceiling - 0.5 - ground, ranges.height_m[1]))
    distance = rng.uniform(*ranges.distance_m) + action.radius
    target = action.centre + np.array([*rng.normal(0, 0.3, 2), rng.uniform(0.1, 0.6)])
    start_angle = _along(rng, start_angle, action)
    duration = max(float(times[-1]), 1e-6)
    phase = times / duration
    ease = phase if rng.random() < 0.5 else phase * phase * (3 - 2 * phase)
    angle, centre = np.full(len(times), start_angle), action.centre
    if aim == "body":
        centre = target = action.bodies[int(rng.integers(len(action.bodies)))]
        distance, rise = rng.uniform(*CLOSE_M), rng.uniform(-0.2, STEEPEST_RAD)
        height_m, distance = target[2] + distance * np.sin(rise), distance * np.cos(rise)
    elif aim == "anywhere":
        target = _anywhere(rng, action, start_angle, distance, height_m)
    targets = np.broadcast_to(target, (len(times), 3)).copy()
    if kind == "orbit":
        angle = start_angle + np.radians(rng.uniform(14, 65)) * rng.choice([-1, 1]) * ease
    outward = np.stack([np.cos(angle), np.sin(angle), np.zeros_like(angle)], -1)
    positions = centre + outward * distance
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
    roll = rng.normal(0, ranges.roll) + sway(rng, times, 0.012 * shake)[:, 0]
    poses = look_at(positions, targets, roll)
    intrinsics = make_intrinsics(rng, settings)
    return CameraPath(kind=kind, world_from_camera=poses, intrinsics=intrinsics, aim=aim)


def _along(rng: Random, angle: float, action: Action) -> float:
    """Angle at which a camera finds room: in a corridor, along it."""
    sides = (action.room[1] - action.room[0])[:2]
    if sides.max() < 2.5 * sides.min():
        return angle
    axis = (0.0 if sides[0] > sides[1] else np.pi / 2) + np.pi * rng.integers(0, 2)
    return float(axis + rng.normal(0, 0.2))


def _anywhere(rng: Random, action: Action, angle: float, distance: float, height_m: float) -> Array:
    """Target in any direction from the place of a camera, mostly within 50° of the horizon."""
    position = action.centre + distance * np.array([np.cos(angle), np.sin(angle), 0.0])
    position[2] = height_m
    heading, rise = rng.uniform(0, 2 * np.pi), float(np.clip(rng.normal(0.0, 0.5), -STEEPEST_RAD, STEEPEST_RAD))
    ahead = np.array([np.cos(heading) * np.cos(rise), np.sin(heading) * np.cos(rise), np.sin(rise)])
    return position + 2.0 * ahead


def on_rig(rng: Random, first: CameraPath, centre: Array, settings: WorldSettings) -> CameraPath:
    """Camera on the rig of ``first``: rigidly attached, up to ``rig_m`` metres away, looking at the same place."""
    assert settings.rig_m is not None
    direction = rng.normal(0, 1, 3)
    away = settings.rig_m * rng.uniform(0.3, 1.0) * direction / np.linalg.norm(direction)
    position, axes = first.world_from_camera[:, :3, 3], first.world_from_camera[:, :3, :3]
    reach = np.linalg.norm(position[0] - centre)
    roll = np.full(len(position), rng.normal(0, RANGES[settings.views].roll))
    poses = look_at(position + axes @ away, position + reach * axes[:, :, 2], roll)
    intrinsics = make_intrinsics(rng, settings)
    return CameraPath(kind=first.kind, world_from_camera=poses, intrinsics=intrinsics, aim=first.aim)
