"""Files of 3D tracks in TAPVid-3D's form, written from a world that is known exactly, and a model that knows it."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d import geometry, surface
from four_d.abilities import Abilities, Hint, Model, Use
from four_d.types import Cameras, Clip, Prediction
from tests.helpers import box_clip, torch_cameras

HEIGHT, WIDTH, FRAMES = 24, 32, 5
WORLDTRACK = ("adt_mini", "pstudio_mini", "po_mini", "ds_mini")
TAPVID3D = ("adt", "drivetrack", "pstudio")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Of every pixel of every frame; float64, world coordinates are the first camera's."""

    images: NDArray[np.uint8]
    cameras: Cameras
    depth: Tensor
    places: Tensor
    """q f h w 3: where what a pixel shows is at the time of frame q."""
    visible: Tensor
    """q f h w."""


@cache
def scene() -> Scene:
    clip = box_clip(seed=3, frames=FRAMES, cameras=1, size=(HEIGHT, WIDTH))
    assert clip.surface is not None
    decoded, stored = surface.decode(clip.surface, clip.info), torch_cameras(clip)
    times = torch.tensor(clip.info.times)
    cameras = geometry.rebase(
        Cameras(world_from_camera=stored.world_from_camera.double(), intrinsics=stored.intrinsics.double())
    )
    first = geometry.invert_pose(stored.world_from_camera[0])
    pixels = geometry.pixel_centres(HEIGHT, WIDTH, torch.zeros(())).reshape(-1, 2)
    places, visible = [], []
    for frame in range(FRAMES):
        found = surface.tracks(decoded, stored, times, torch.full((len(pixels),), frame), pixels)
        assert found.valid.all()
        places.append(geometry.transform(first, found.points.transpose(0, 1)).double())
        visible.append(found.visible.T)
    shape = FRAMES, FRAMES, HEIGHT, WIDTH
    return Scene(
        images=clip.images,
        cameras=cameras,
        depth=surface.depth(decoded, stored, times).double(),
        places=torch.stack(places, dim=1).reshape(*shape, 3),
        visible=torch.stack(visible, dim=1).reshape(shape),
    )


@dataclass
class Oracle(Model):
    """Says the truth of the scene's first frames in a unit of its own, or that nothing moves; keeps what it was shown.

    ``frozen``: the camera stands still, as in files without poses.
    """

    unit: float = 1.0
    moving: bool = True
    frozen: bool = False
    moves: bool = True
    hints: dict[Hint, Use] = field(default_factory=dict[Hint, Use])
    shown: list[Clip] = field(default_factory=list[Clip])

    @property
    def abilities(self) -> Abilities:
        return Abilities(
            outputs=frozenset({"motion"} if self.moves else ()), queried=frozenset({"motion"}), hints=self.hints
        )

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        self.shown.append(clip)
        known, (_, count, _, height, width) = scene(), clip.images.shape
        assert (height, width) == (HEIGHT, WIDTH)
        assert clip.query_times is not None
        poses = known.cameras.world_from_camera[:count].clone()
        own = torch.stack([known.places[frame, frame] for frame in range(count)])
        if self.frozen:
            poses = torch.eye(4).double().repeat(count, 1, 1)
        poses[:, :3, 3] *= self.unit
        whole = Prediction(
            cameras=Cameras(world_from_camera=poses[None], intrinsics=known.cameras.intrinsics[None, :count]),
            depth=self.unit * known.depth[None, :count],
        )
        for number, time in enumerate(clip.query_times[0].tolist()):
            at = clip.times[0].tolist().index(time)
            motion = self.unit * (known.places[at, :count] - own) * self.moving
            said = Prediction(motion=motion[None, None], motion_visible=known.visible[None, at, :count][None].double())
            yield said if number else _merged(whole, said)

    def __call__(self, clip: Clip) -> Prediction:
        raise AssertionError(f"tracks are scored by passes, and this was called with {clip.images.shape}")


def _merged(whole: Prediction, said: Prediction) -> Prediction:
    return Prediction(cameras=whole.cameras, depth=whole.depth, motion=said.motion, motion_visible=said.motion_visible)


def queries(frames: tuple[int, ...] = (0,), step: int = 3) -> NDArray[np.float64]:
    """(x, y, t): the centre of every ``step``-th pixel of some frames."""
    y, x = np.meshgrid(np.arange(0, HEIGHT, step) + 0.5, np.arange(0, WIDTH, step) + 0.5, indexing="ij")
    return np.concatenate([np.stack([x, y, np.full_like(x, t)], axis=-1).reshape(-1, 3) for t in frames])


def content(asked: NDArray[np.float64], *, poses: bool, objects: bool = False) -> dict[str, NDArray[np.generic]]:
    """What a file holds. Without ``poses`` the camera is said to stand where the first one is.

    ``objects``: pictures in an array of objects, as some writers leave them; else of byte strings.
    """
    known = scene()
    x, y, t = asked.astype(int).T
    world = known.places[:, t, y, x]
    from_world = geometry.invert_pose(known.cameras.world_from_camera)
    if not poses:
        from_world = torch.eye(4).double().expand_as(from_world)
    k = known.cameras.intrinsics[0]
    away = geometry.make_pose(torch.linalg.qr(torch.arange(9.0).reshape(3, 3) ** 2).Q, torch.ones(3)).double()
    away[:3, :3] *= away[:3, :3].det()
    pictures = [_jpeg(image) for image in known.images]
    result: dict[str, NDArray[np.generic]] = {
        "images_jpeg_bytes": np.array(pictures, dtype=object if objects else None),
        "tracks_XYZ": geometry.transform(from_world, world).numpy(),
        "visibility": known.visible[:, t, y, x].numpy(),
        "fx_fy_cx_cy": np.array([k[0, 0], k[1, 1], k[0, 2], k[1, 2]]),
        "queries_xyt": asked,
    }
    # the world of the files is any: not the first camera's
    return result | ({"extrinsics_w2c": (from_world @ away).numpy()} if poses else {})


def _jpeg(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=95)
    return file.getvalue()


def write(path: Path, arrays: dict[str, NDArray[np.generic]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return path


def worldtrack(root: Path, names: tuple[str, ...] = ("clip",)) -> None:
    for source in WORLDTRACK:
        for name in names:
            write(root / source / f"{name}.npz", content(queries(), poses=not source.startswith("pstudio")))


def tapvid3d(root: Path) -> None:
    """Queries in the first and in the third frame; no poses, as the generation scripts leave them."""
    for source in TAPVID3D:
        arrays = content(queries((0, 2)), poses=True)
        del arrays["extrinsics_w2c"]
        write(root / source / "clip.npz", arrays)


def tapvid(root: Path, frames: tuple[int, ...] = (0, 2), *, jpeg: bool = False) -> dict[str, Any]:
    """Write a pickle of one video as DAVIS has it (a dict) or, with ``jpeg``, as Kinetics (a list); its content."""
    known, asked = scene(), queries(frames)
    x, y, t = asked.astype(int).T
    pixels, z = geometry.project(known.places[:, t, y, x], known.cameras)
    video = {
        "video": [_jpeg(image) for image in known.images] if jpeg else known.images,
        "points": (pixels / torch.tensor([WIDTH, HEIGHT])).transpose(0, 1).numpy(),
        "occluded": ~(known.visible[:, t, y, x] & (z > 0)).T.numpy(),
    }
    path = root / ("tapvid_kinetics/0000_of_0010.pkl" if jpeg else "tapvid_davis/tapvid_davis.pkl")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps([video] if jpeg else {"clip": video}))
    return video
