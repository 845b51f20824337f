"""A hand-made world for tests: a textured box room with one box that stands, one that flies and one that turns."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d import fields, geometry, surface
from four_d.abilities import Abilities, Model
from four_d.data.contract import ClipInfo, ObjectInfo, RawClip, SurfaceArrays, TrackArrays
from four_d.evaluation.scores import TASKS, Scores, compute
from four_d.losses.term import LossInputs, LossSpec, values_of
from four_d.metrics.catalogue import VIDEO
from four_d.metrics.comparison import Comparison
from four_d.metrics.motion import MotionScores
from four_d.types import Cameras, Clip, Gaussians, Geometry, Prediction, Views

FPS = 12.0
_CORNERS = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_QUADS = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
_TRIANGLES = np.array([[q[i] for i in ids] for q in _QUADS for ids in ((0, 1, 2), (0, 2, 3))], np.int32)
_SIZES = np.array([[6.0, 4.0, 8.0], [0.8, 0.8, 0.8], [0.7, 0.5, 0.6], [0.5, 0.9, 0.5]])


def box_clip(seed: int = 0, frames: int = 6, cameras: int = 2, size: int | tuple[int, int] = 48) -> RawClip:
    """``frames`` times seen by ``cameras`` moving cameras; the world's y points down, its unit is the metre.

    The truth is exact: every pixel's centre is intersected with every triangle. Colours are smooth functions of the
    place on the surface, without shading, so that a point looks the same from everywhere and at every time.
    """
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(seed)
    times = np.arange(frames) / FPS
    vertices = _vertices(rng, times)
    poses, intrinsics = _cameras(rng, times, cameras, height, width)
    triangles = np.concatenate([_TRIANGLES + 8 * i for i in range(len(_SIZES))])
    texture = _Texture(rng, triangles)
    images, faces, barycentric = [], [], []
    for f in range(frames * cameras):
        face, weights = _cast(vertices[f % frames], triangles, poses[f], intrinsics[f], height, width)
        faces.append(face)
        barycentric.append(np.rint(weights * 65535).astype(np.uint16))
        images.append(texture(face, weights))
    return RawClip(
        key=f"box-{seed:06d}",
        info=ClipInfo(
            source="box",
            licence="CC0-1.0",
            metric=True,
            width=width,
            height=height,
            times=np.tile(times, cameras).tolist(),
            camera_ids=np.repeat(np.arange(cameras), frames).tolist(),
            surface_times=times.tolist(),
            objects=[ObjectInfo(name=n, motion=m) for n, m in _OBJECTS],
            seed=seed,
        ),
        images=np.stack(images),
        world_from_camera=poses,
        intrinsics=intrinsics,
        surface=SurfaceArrays(
            faces=np.stack(faces),
            barycentric=np.stack(barycentric),
            triangles=triangles,
            instances=np.repeat(np.arange(len(_SIZES), dtype=np.int32), len(_TRIANGLES)),
            vertices=vertices[0].astype(np.float32),
            moving=np.arange(16, 32, dtype=np.int32),
            moving_vertices=vertices[:, 16:].astype(np.float32),
        ),
    )


_OBJECTS = [("room", "static"), ("block", "static"), ("flying box", "thrown"), ("turning box", "turned")]


def _vertices(rng: np.random.Generator, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """t v 3. The room rests, so does the first box, the second flies past, the third turns."""
    centres = np.array([[0, 0, 0], [-1.2, 1.6, 0.8], [-1.0, 0.3, -0.2], [1.2, 0.6, 1.0]])
    centres[1:] += rng.uniform(-0.2, 0.2, (3, 3))
    result = np.repeat((_CORNERS * _SIZES[:, None] + centres[:, None]).reshape(1, -1, 3), len(times), axis=0)
    velocity = np.array([1.8, -0.3, 0.4]) * rng.uniform(0.8, 1.2)
    result[:, 16:24] += velocity * times[:, None, None]
    for t, angle in enumerate(rng.uniform(1.5, 2.5) * times):
        turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
        result[t, 24:32] = (result[t, 24:32] - centres[3]) @ turn.T + centres[3]
    return result


def _cameras(
    rng: np.random.Generator, times: NDArray[np.float64], count: int, height: int, width: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    poses, intrinsics = [], []
    for camera in range(count):
        angle = (camera - (count - 1) / 2) * 0.35 + rng.uniform(-0.05, 0.05)
        focal = rng.uniform(0.8, 1.1) * max(height, width)
        for t in times:
            a = angle + 0.25 * t
            centre = np.array([3.0 * np.sin(a), -0.6 + 0.2 * t, 0.5 - 3.4 * np.cos(a)])
            poses.append(look_at(centre, np.array([0.1, 0.6, 0.5])))
            intrinsics.append([[focal, 0, width / 2 + 0.7], [0, focal * 1.02, height / 2 - 0.4], [0, 0, 1]])
    return np.stack(poses), np.array(intrinsics)


def look_at(centre: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """world_from_camera of a camera at ``centre`` that looks at ``target``, the world's y being down."""
    z = (target - centre) / np.linalg.norm(target - centre)
    x = np.cross([0.0, 1.0, 0.0], z)
    x /= np.linalg.norm(x)
    pose = np.eye(4)
    pose[:3] = np.stack([x, np.cross(z, x), z, centre], axis=1)
    return pose


def _cast(
    vertices: NDArray[np.float64],
    triangles: NDArray[np.int32],
    pose: NDArray[np.float64],
    intrinsics: NDArray[np.float64],
    height: int,
    width: int,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Face (h w) and weights of its second and third vertex (2 h w) at every pixel's centre (Möller & Trumbore)."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    camera = np.stack([x, y, np.ones_like(x)], axis=-1) @ np.linalg.inv(intrinsics).T
    rays = (camera @ pose[:3, :3].T).reshape(-1, 1, 3)
    a, b, c = (vertices[triangles[:, i]] for i in range(3))
    edge, other = b - a, c - a
    across = np.cross(rays, other)
    determinant = (across * edge).sum(-1)
    safe = np.where(np.abs(determinant) < 1e-12, 1e-12, determinant)
    offset = pose[:3, 3] - a
    u = (across * offset).sum(-1) / safe
    turned = np.cross(offset, edge)
    v = (rays * turned).sum(-1) / safe
    t = (turned * other).sum(-1) / safe
    t[(u < 0) | (v < 0) | (u + v > 1) | (t < 1e-6)] = np.inf
    face = t.argmin(-1)
    pick = np.arange(len(face)), face
    weights = np.stack([u[pick], v[pick]]).reshape(2, height, width)
    hit = np.isfinite(t[pick]).reshape(height, width)
    return np.where(hit, face.reshape(height, width), -1).astype(np.int32), weights * hit


class _Texture:
    def __init__(self, rng: np.random.Generator, triangles: NDArray[np.int32]) -> None:
        rest = (_CORNERS * _SIZES[:, None]).reshape(-1, 3)
        self._corners = rest[triangles]
        instances = np.repeat(np.arange(len(_SIZES)), len(_TRIANGLES))
        self._base = rng.uniform(0.35, 0.65, (len(_SIZES), 3))[instances] + rng.uniform(-0.1, 0.1, (len(triangles), 3))
        self._waves = rng.normal(size=(len(_SIZES), 3, 4, 3))[instances] * np.array([0.8, 1.6, 3.0, 4.5])[:, None]
        self._phases = rng.uniform(0, 2 * np.pi, (len(triangles) // 12, 3, 4))[instances]
        self._strength = np.array([0.16, 0.12, 0.08, 0.05])

    def __call__(self, faces: NDArray[np.int32], weights: NDArray[np.float64]) -> NDArray[np.uint8]:
        corners = self._corners[faces]
        place = corners[..., 0, :] + sum(
            weights[i, ..., None] * (corners[..., i + 1, :] - corners[..., 0, :]) for i in (0, 1)
        )
        angle = np.einsum("hwckd,hwd->hwck", self._waves[faces], place) + self._phases[faces]
        colour = self._base[faces] + (np.sin(angle) * self._strength).sum(-1)
        colour = np.where((faces >= 0)[..., None], colour, 0)
        return np.rint(colour.clip(0, 1) * 255).astype(np.uint8)


def torch_cameras(clip: RawClip) -> Cameras:
    """A clip's cameras in float32."""
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    return Cameras(
        world_from_camera=torch.from_numpy(clip.world_from_camera).float(),
        intrinsics=torch.from_numpy(clip.intrinsics).float(),
    )


def without_surface(clip: RawClip, tracks: int = 40, depth_unit: float = 0.001) -> RawClip:
    """The same clip as a source without meshes gives it: depth, mask and sparse tracks of the first camera's times."""
    assert clip.surface is not None
    assert clip.info.surface_times is not None
    decoded = surface.decode(clip.surface, clip.info)
    cameras, times = torch_cameras(clip), torch.tensor(clip.info.times)
    depth = surface.depth(decoded, cameras, times).numpy()
    first = len(clip.info.surface_times)
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, [clip.info.width, clip.info.height], (tracks, 2)) + 0.5
    found = surface.tracks(
        decoded, cameras, times, torch.zeros(tracks, dtype=torch.long), torch.from_numpy(pixels).float()
    )
    return dataclasses.replace(
        clip,
        info=dataclasses.replace(
            clip.info, surface_times=None, track_times=clip.info.surface_times, depth_unit=depth_unit
        ),
        depth=depth,
        dynamic=surface.dynamic(decoded, times).numpy(),
        surface=None,
        tracks=TrackArrays(
            points=found.points[:, :first].numpy(),
            visible=found.visible[:, :first].numpy(),
            valid=found.valid[:, :first].numpy(),
        ),
    )


def colmap_tracks(project: Path) -> list[tuple[float, list[int]]]:
    """Error in pixels of each point of a COLMAP text model, and the numbers, from 1, of the images that see it."""
    lines = (project / "points3D.txt").read_text().splitlines()
    rows = [line.split() for line in lines if not line.startswith("#")]
    return [(float(row[7]), [int(image) for image in row[8::2]]) for row in rows]


def loss_value(config: LossSpec, prediction: Prediction, targets: Clip, views: Views | None = None) -> Tensor:
    """A term's value, of ``views`` instead of renders where they are given."""
    inputs = LossInputs(prediction=prediction, targets=targets)
    if views is not None:
        vars(inputs)["views"] = views  # where the cached property keeps them
    return values_of([(config.kind, config.build())], inputs)[config.kind]


T = TypeVar("T")

SIZES = {
    "f": 5,
    "h": 2,
    "w": 3,
    "q": 2,
    "n": 4,
    "t": 3,
    "v": 6,
    "m": 7,
    "k": 5,
    "i": 2,
    "j": 2,
    "r": 5,
    "y": 2,
    "x": 3,
    "rows": 1,
    "columns": 2,
    "places": 9,
    "e": 3,
    "joints": 4,
    "letters": 32,
    "c": 2,
}


def full(kind: type[T], seed: int = 0, batch: tuple[int, ...] = (), **sizes: int) -> T:
    """A value of random numbers in which no field is None, but for those that would nest without end."""
    generator = torch.Generator().manual_seed(seed)
    lengths = SIZES | sizes
    written = {each.name: str(each.type) for each in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]

    def tensor(each: fields.Field) -> Tensor:
        shape = [n for axis in each.axes for n in (batch if axis == "*b" else (lengths.get(axis) or int(axis),))]
        if each.selects is not None and each.geometry is not Geometry.PIXEL:
            return torch.randperm(lengths[each.selects], generator=generator)[: shape[-1]].expand(shape)
        if each.geometry is Geometry.POSE:
            turns = roma.random_rotmat(size=tuple(shape[:-2]), generator=generator)
            return roma.Rigid(turns, torch.randn(*shape[:-2], 3, generator=generator)).to_homogeneous()
        found = torch.rand(shape, generator=generator)
        if each.selects is not None:
            found[..., 0] = (found[..., 0] * lengths[each.selects]).floor()
        if written[each.name].startswith("Bool"):
            return found > 0.5
        return (9 * found).long() if written[each.name].startswith("Int") else found

    values: dict[str, object] = {}
    for each in fields.declared(kind):
        if each.kind is None:
            values[each.name] = tensor(each)
        elif each.kind is not kind:
            inner = {"n": lengths["k"] * lengths["h"] * lengths["w"], "k": 1} if each.kind is Gaussians else {}
            extra = (lengths["f"],) if "b" in each.outer else ()
            values[each.name] = full(each.kind, seed + 1, (*batch, *extra), **(sizes | inner))
    return kind(**values)


class Says(Model):
    """A model out of a function of clips, nothing by default."""

    def __init__(self, say: Callable[[Clip], Prediction] = lambda _: Prediction(), **abilities: object) -> None:
        self.say, self._abilities = say, Abilities(**abilities)  # pyright: ignore[reportArgumentType]

    @property
    def abilities(self) -> Abilities:
        return self._abilities

    def __call__(self, clip: Clip) -> Prediction:
        return self.say(clip)


def score_clip(prediction: Prediction, targets: Clip) -> Scores:
    """All metrics of one unbatched clip; None if prediction or truth do not allow one."""
    points = geometry.world_points(prediction)
    motion = motion_scores(prediction, None if points is None else points.float(), targets)
    return compute(Comparison(prediction, targets), VIDEO, TASKS) | motion


def motion_scores(prediction: Prediction, points: Tensor | None, targets: Clip) -> Scores:
    """Motion metrics of one unbatched clip, with points f h w 3; none where prediction or truth has no motion."""
    if prediction.motion is None or targets.motion is None:
        return {}
    running = MotionScores(points, targets)
    running.add(prediction.motion, prediction.motion_visible)
    return running.result()
