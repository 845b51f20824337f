"""Effects of camera, light and air on pictures. The correspondence of pixels stays that of each frame's own time."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from PIL import Image

from data_prep.synthetic.cameras import CameraPath
from data_prep.synthetic.settings import WorldSettings
from data_prep.synthetic.stage import Light, Stage

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
Random = np.random.Generator
EXPOSURES = 8
"""Number of times within a shutter's opening whose light is summed."""
SUN_M = 20.0
"""Reach from which a light is a sun, which moves on an arc."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Effects of one clip; those that it lacks change nothing."""

    shutter: float = 0.0
    """Time for which the shutter is open, about a frame's own time, in intervals of frames; 0: no motion blur."""
    gains: Array | None = None
    """c t: factor on the light of each frame."""
    vignette: float = 0.0
    """Fraction of light that is lost in the corners."""
    shot_noise: float = 0.0
    """Variance per light, both in medians of the clip's light."""
    read_noise: float = 0.0
    """Standard deviation in the dark, in medians of the clip's light."""
    quality: int | None = None
    """Quality of a JPEG, 1 to 95, with colours at half resolution; None: no further compression."""
    fog: float = 0.0
    """Fraction of light that one metre takes, to first order."""

    def offsets(self) -> Array:
        """Times at which light is collected, in intervals from the frame's own; the time itself without blur."""
        if not self.shutter:
            return np.zeros(1)
        return ((np.arange(EXPOSURES) + 0.5) / EXPOSURES - 0.5) * self.shutter

    def expose(self, rng: Random, radiance: Floats, camera: int) -> Floats:
        """Light that the sensor of one camera measures (f h w 3)."""
        if self.gains is not None:
            radiance = radiance * self.gains[camera].astype(np.float32)[:, None, None, None]
        if self.vignette:
            height, width = radiance.shape[1:3]
            y, x = np.mgrid[:height, :width] + 0.5
            r2 = ((2 * x / width - 1) ** 2 + (2 * y / height - 1) ** 2) / 2
            radiance = radiance * (1 - self.vignette * r2).astype(np.float32)[None, :, :, None]
        if self.shot_noise or self.read_noise:
            light = max(float(np.median(radiance)), 1e-3)
            spread = np.sqrt(self.shot_noise * radiance / light + self.read_noise**2).astype(np.float32)
            noise = rng.standard_normal(radiance.shape, dtype=np.float32)
            radiance = np.maximum(radiance + np.float32(light) * spread * noise, 0).astype(np.float32)
        return radiance

    def compress(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Images (f h w 3) after storage as JPEG."""
        if self.quality is None:
            return images
        return np.stack([_as_jpeg(image, self.quality) for image in images])


def _as_jpeg(image: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "jpeg", quality=quality, subsampling=2)
    with Image.open(stream) as stored:
        return np.asarray(stored)


def draw_effects(rng: Random, settings: WorldSettings) -> Effects:
    """Draw the strength of each effect of ``settings.effects``; of others nothing, so that each is as it is alone."""
    seeds = dict(zip(("blur", "exposure", "noise", "compression", "fog"), rng.spawn(5), strict=True))
    drawn = {name: seeds[name] for name in settings.effects if name in seeds}
    effects = Effects()
    if own := drawn.get("blur"):
        effects = replace(effects, shutter=own.uniform(0.3, 0.9))
    if own := drawn.get("exposure"):
        effects = replace(effects, gains=_gains(own, settings.cameras, settings.frames))
    if own := drawn.get("noise"):
        effects = replace(
            effects,
            vignette=own.uniform(0, 0.5),
            shot_noise=own.uniform(0.002, 0.03),
            read_noise=own.uniform(0.005, 0.04),
        )
    if own := drawn.get("compression"):
        effects = replace(effects, quality=int(own.integers(15, 60)))
    if own := drawn.get("fog"):
        effects = replace(effects, fog=own.uniform(0.06, 0.25))
    return effects


def _gains(rng: Random, cameras: int, frames: int) -> Array:
    """Smooth changes of 0.4 to 1.2 stops either way, of each camera by itself."""
    stops, turns, start = (rng.uniform(low, high, (cameras, 1)) for low, high in ((0.4, 1.2), (0.4, 1.5), (0, 1)))
    return 2 ** (stops * np.sin(2 * np.pi * (start + turns * np.arange(frames) / frames)))


def with_moving_lights(rng: Random, stage: Stage, bounds: Array) -> Stage:
    """Stage whose lights move: lamps around circles within ``bounds`` (2 3), a sun by up to 60°."""
    return replace(stage, lights=[_moving(rng, light, len(stage.positions), bounds) for light in stage.lights])


def _moving(rng: Random, light: Light, times: int, bounds: Array) -> Light:
    share = np.arange(times) / max(times - 1, 1)
    if light.reach >= SUN_M:
        angle = rng.uniform(0.3, 1.05) * rng.choice([-1, 1]) * share
        x, y, z = light.position
        arc = np.stack([x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)], -1)
        return replace(light, path=np.concatenate([arc, np.full((times, 1), z)], -1))
    angle = rng.uniform(0, 2 * np.pi) + rng.uniform(1.0, 4.0) * rng.choice([-1, 1]) * share
    circle = rng.uniform(0.6, 1.5) * np.stack([np.cos(angle), np.sin(angle), np.zeros(times)], -1)
    return replace(light, path=np.clip(light.position + circle - circle[0], bounds[0] * 0.9, bounds[1] * 0.97))


def between(stage: Stage, time: float) -> Stage:
    """Stage of one time alone, a fraction between two frames (clamped to the clip's ends).

    Bodies turn evenly; vertices of bodies that deform go straight.
    """
    first, share = _place(time, len(stage.positions))
    positions, rotations = _blend(stage.positions, stage.rotations, first, share)
    lights = [
        light if light.path is None else replace(light, path=_mix(light.path, first, share)) for light in stage.lights
    ]
    bends = tuple(replace(bend, path=_mix(bend.path, first, share)) for bend in stage.bends)
    return replace(stage, positions=positions, rotations=rotations, lights=lights, bends=bends)


def camera_between(path: CameraPath, time: float) -> CameraPath:
    """Camera at one time alone, as `between`."""
    first, share = _place(time, len(path.world_from_camera))
    poses = path.world_from_camera
    position, rotation = _blend(poses[:, None, :3, 3], poses[:, None, :3, :3], first, share)
    pose = np.eye(4)[None]
    pose[0, :3, :3], pose[0, :3, 3] = rotation[0, 0], position[0, 0]
    return replace(path, world_from_camera=pose)


def _place(time: float, count: int) -> tuple[int, float]:
    time = float(np.clip(time, 0, count - 1))
    first = min(int(time), max(count - 2, 0))
    return first, time - first


def _mix(values: Array, first: int, share: float) -> Array:
    """Value (1 …) between two of ``values`` (t …)."""
    return ((1 - share) * values[first] + share * values[min(first + 1, len(values) - 1)])[None]


def _blend(positions: Array, rotations: Array, first: int, share: float) -> tuple[Array, Array]:
    """Positions (1 n 3) and rotations (1 n 3 3) between two times."""
    a, b = torch.from_numpy(rotations[first]), torch.from_numpy(rotations[min(first + 1, len(rotations) - 1)])
    turned = roma.rotmat_slerp(a, b, torch.tensor(share, dtype=a.dtype))
    return _mix(positions, first, share), turned.numpy()[None]
