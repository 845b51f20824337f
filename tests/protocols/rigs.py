"""A scene of MV-Kubric as MVTracker is evaluated on it, from a known world, and a model that knows it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d import geometry, surface
from four_d.abilities import Abilities, Hint, Model, Use
from four_d.datasets import rig_tracks
from four_d.types import Cameras, Clip, Prediction
from tests.helpers import box_clip, torch_cameras
from tests.protocols.built import FLIP, npz, text
from tests.protocols.written import picture

HEIGHT, WIDTH, TIMES, VIEWS = 24, 32, 4, 4
STEP = 5
"""Every so many pixels of the first time's views is a track."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Frames are ordered time by time, views within; float64, in the set's world."""

    images: NDArray[np.uint8]
    cameras: Cameras
    depth: Tensor
    places: Tensor
    """q f h w 3: where what a pixel of a frame shows is at time q."""
    seen: Tensor
    """g f h w: whether frame g sees it at its own time."""


@cache
def scene() -> Scene:
    clip = box_clip(seed=3, frames=TIMES, cameras=VIEWS, size=(HEIGHT, WIDTH))
    assert clip.surface is not None
    decoded, stored = surface.decode(clip.surface, clip.info), torch_cameras(clip)
    times = torch.tensor(clip.info.times)
    order = [view * TIMES + time for time in range(TIMES) for view in range(VIEWS)]
    pixels = geometry.pixel_centres(HEIGHT, WIDTH, torch.zeros(())).reshape(-1, 2)
    places, seen = [], []
    for frame in order:
        found = surface.tracks(decoded, stored, times, torch.full((len(pixels),), frame), pixels)
        places.append(found.points[:, :TIMES].transpose(0, 1).double())  # the first view's frames, one a time
        seen.append(found.visible.T[order])
    shape = HEIGHT, WIDTH
    return Scene(
        images=clip.images[order],
        cameras=Cameras(
            world_from_camera=stored.world_from_camera[order].double(), intrinsics=stored.intrinsics[order].double()
        ),
        depth=surface.depth(decoded, stored, times)[order].double(),
        places=torch.stack(places, dim=1).unflatten(2, shape),
        seen=torch.stack(seen, dim=1).unflatten(2, shape),
    )


def tracks() -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Queries n, points t n 3 and visibility v t n of pixels of all views at the first and the third time.

    At its query each point is seen by the view whose pixel it is and no other: only there is it at a pixel's centre.
    """
    known = scene()
    y, x = np.mgrid[2:HEIGHT:STEP, 2:WIDTH:STEP].reshape(2, -1)
    frames = [0, 1, 2, 3, 2 * VIEWS, 2 * VIEWS + 1]
    points = np.concatenate([known.places[:, frame, y, x].numpy() for frame in frames], axis=1)
    seen = np.concatenate([known.seen[:, frame, y, x].numpy() for frame in frames], axis=1)
    queries = np.repeat([frame // VIEWS for frame in frames], len(x))
    views = np.repeat([frame % VIEWS for frame in frames], len(x))
    visible = seen.reshape(TIMES, VIEWS, -1).transpose(1, 0, 2)
    visible[:, queries, np.arange(len(queries))] = np.arange(VIEWS)[:, None] == views
    return queries, points, visible


@dataclass
class RigOracle(Model):
    """Says the truth in a unit of its own; ``wrong`` is added to all displacements, in the set's world and unit."""

    unit: float = 1.0
    moving: bool = True
    wrong: float = 0.0
    hints: tuple[Hint, ...] = ()
    still: bool = False
    """Says that all cameras stand in one place."""

    @property
    def abilities(self) -> Abilities:
        hints: dict[Hint, Use] = dict.fromkeys(self.hints, "optional")
        return Abilities(outputs=frozenset({"motion"}), queried=frozenset({"motion"}), hints=hints)

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        known, count = scene(), clip.images.shape[1]
        assert clip.images.shape[-2:] == (HEIGHT, WIDTH)
        assert clip.camera_ids[0].tolist() == [frame % VIEWS for frame in range(count)]
        assert clip.query_times is not None
        images = torch.from_numpy(known.images).movedim(-1, 1) / 255
        start = int((images - clip.images[0, 0].cpu()).abs().flatten(1).mean(1).argmin())  # of a window
        part = slice(start, start + count)
        first = geometry.invert_pose(known.cameras.world_from_camera[start])
        poses = first @ known.cameras.world_from_camera[part]
        poses[:, :3, 3] *= 0 if self.still else self.unit
        own = torch.stack([known.places[frame // VIEWS, frame] for frame in range(start, start + count)])
        times = clip.times[0].unique().tolist()
        for number, time in enumerate(clip.query_times[0].tolist()):
            at = start // VIEWS + times.index(time)
            apart = (known.places[at, part] - own) * self.moving + torch.tensor([self.wrong, 0, 0]).double()
            seen = known.seen.unflatten(0, (TIMES, VIEWS))[at, :, part].any(0)
            yield Prediction(
                cameras=None
                if number
                else Cameras(world_from_camera=poses[None], intrinsics=known.cameras.intrinsics[None, part]),
                depth=None if number else self.unit * known.depth[None, part],
                motion=(self.unit * apart @ first[:3, :3].mT)[None, None],
                motion_visible=seen[None, None].double(),
            )

    def __call__(self, clip: Clip) -> Prediction:
        raise AssertionError(f"tracks are scored by passes, and this was called with {clip.images.shape}")


def mvtracker_kubric(root: Path, names: tuple[str, ...] = ("0",)) -> None:
    """Scenes of `scene`, with the file of tracks and queries that the published code keeps."""
    known = scene()
    queries, points, seen = tracks()
    poses = known.cameras.world_from_camera.numpy() @ FLIP
    turns = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(torch.from_numpy(poses[:, :3, :3]))).numpy()
    for name in names:
        for view in range(VIEWS):
            where = root / name / f"view_{view}"
            own = slice(view, None, VIEWS)
            for at, (image, depth) in enumerate(zip(known.images[own], known.depth[own], strict=True)):
                picture(where / f"rgba_{at:05d}.png", np.dstack([image, np.full((HEIGHT, WIDTH), 255, np.uint8)]))
                Image.fromarray(depth.numpy().astype(np.float32)).save(where / f"depth_{at:05d}.tiff")
            k = np.diag([1 / WIDTH, 1 / HEIGHT, 1]) @ known.cameras.intrinsics[view].numpy() @ FLIP[:3, :3]
            camera = {"positions": poses[own, :3, 3].tolist(), "quaternions": turns[own].tolist(), "K": k.tolist()}
            text(where / "metadata.json", json.dumps({"camera": camera, "metadata": {"frame_rate": 12}}))
        asked = np.concatenate([queries[:, None], points[queries, np.arange(len(queries))]], axis=1)
        cached(root / name, rig_tracks.KUBRIC_CACHE, points, seen, asked)


def cached(
    scene_folder: Path,
    name: str,
    points: NDArray[np.float64],
    seen: NDArray[np.bool_],
    asked: NDArray[np.float64],
) -> None:
    """The file in which the published code keeps its draw, with all of its keys."""
    count = points.shape[1]
    npz(
        scene_folder / "cache" / name,
        track_indices=np.arange(count),
        traj2d_w_z=np.zeros((*seen.shape, 3), np.float32),
        traj3d_world=points.astype(np.float32),
        visibility=seen,
        valids=np.ones(points.shape[:2]),
        query_points=asked.astype(np.float32),
    )
