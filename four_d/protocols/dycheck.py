"""DyCheck's iPhone captures: the moving phone (camera 0) with its lidar depth, and the two that stand still."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from four_d.errors import UserError
from four_d.protocols import decode, files
from four_d.protocols.sequence import Depth, Keypoints, Sequence, Task, ViewTruth
from four_d.types import Cameras

LAYOUT = "apple/{rgb/1x/0_00000.png,depth/1x/0_00000.npy,camera/0_00000.json} and so on"
NAMES = (
    *("apple", "backpack", "block", "handwavy", "haru-sit", "mochi-high-five", "paper-windmill", "pillow"),
    *("space-out", "spin", "sriracha-tree", "teddy", "wheel"),
)
"""Thirteen of the set's fourteen: published code leaves out creeper."""
VIEWS_LAYOUT = (
    "apple/{splits/{train,val}.json,rgb/2x/0_00000.png,camera/0_00000.json,covisible/2x/val/1_00000.png} and so on; "
    "keypoint/2x/train/0_00000.json for PCK-T"
)
VIEW_NAMES = ("apple", "block", "paper-windmill", "space-out", "spin", "teddy", "wheel")
"""Those that were filmed by phones that stand still, too."""
FACTOR = 2
"""What sides of the full pictures are divided by, where extra.json says nothing."""
DEPTH_FRAMES = 120
POSE_STRIDE = 10
FPS = 30.0
"""Where extra.json says none."""


def read(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """Two entries for each capture, as PAGE-4D runs them: its first 120 frames for depth, every tenth for the rest."""
    inner = root / "iphone"
    base = inner if inner.is_dir() else root
    return [entry for name in files.chosen(NAMES, only) for entry in _capture(base / name)]


def _capture(where: Path) -> list[Sequence]:
    pictures = files.listed(where / "rgb" / "1x", "0_*.png", LAYOUT, key=files.number)
    rate = _rate(where / "extra.json")
    first, tenth = pictures[:DEPTH_FRAMES], pictures[::POSE_STRIDE]
    parts: list[tuple[list[Path], tuple[Task, ...]]] = [(first, ("video_depth", "depth")), (tenth, ("pose", "points"))]
    result: list[Sequence] = []
    for chosen, tasks in parts:
        maps = [files.file(where / "depth" / "1x" / f"{path.stem}.npy", LAYOUT) for path in chosen]
        stored = [files.file(where / "camera" / f"{path.stem}.json", LAYOUT) for path in chosen]
        result.append(
            Sequence(
                name=where.name,
                frames=len(chosen),
                times=tuple((files.number(path) - files.number(chosen[0])) / rate for path in chosen),
                tasks=tasks,
                images=partial(files.images, chosen),
                cameras=partial(_cameras, stored, chosen[0]),
                depth=partial(files.depth, maps, decode.depth_npy),
            )
        )
    return result


def _cameras(stored: list[Path], picture: Path) -> Cameras:
    """Pixels count from the corner already; intrinsics are for ``image_size`` and follow the pictures' own."""
    height, width = decode.image_size(picture)
    found = [decode.camera_nerfies(path) for path in stored]
    scales = np.array([[[width / size[1]], [height / size[0]], [1.0]] for _, _, size in found])
    return files.cameras(np.stack([pose for pose, _, _ in found]), np.stack([k for _, k, _ in found]) * scales)


def _rate(extra: Path) -> float:
    return FPS if not extra.is_file() else _number(extra, "fps")


def _number(extra: Path, name: str) -> float:
    try:
        return float(json.loads(extra.read_text())[name])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{extra} says no {name} ({error!r}); unpack it again") from error


@dataclass(frozen=True, kw_only=True)
class _Split:
    """The frames of a list of the set's, in its order."""

    names: tuple[str, ...]
    times: tuple[int, ...]
    cameras: tuple[int, ...]


def read_views(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """The seven captures with held-out cameras: all of camera 0's frames, and the pictures of the others.

    Sizes are DyCheck's own for them, half of what was filmed (``rgb/2x``). Frames marked with keypoints are those found
    (ten per capture); without any, `Sequence.keypoints` is None; likewise depth.
    """
    inner = root / "iphone"
    base = inner if inner.is_dir() else root
    return [_views(base / name) for name in files.chosen(VIEW_NAMES, only)]


def _views(where: Path) -> Sequence:
    extra = where / "extra.json"
    factor, rate = int(_number(extra, "factor")) if extra.is_file() else FACTOR, _rate(extra)
    train, held = (_split(files.file(where / "splits" / f"{name}.json", VIEWS_LAYOUT)) for name in ("train", "val"))
    pictures, cameras = _posed(where, train, factor)
    masks = [
        files.file(where / "covisible" / f"{factor}x" / "val" / f"{name}.png", VIEWS_LAYOUT) for name in held.names
    ]
    first = train.times[0]
    marked = sorted((where / "keypoint" / f"{factor}x" / "train").glob("*_*.json"), key=files.number)
    return Sequence(
        name=where.name,
        frames=len(pictures),
        times=tuple((time - first) / rate for time in train.times),
        tasks=("views",),
        images=partial(files.images, pictures),
        cameras=cameras,
        depth=_lidar(where, train, factor),
        views=partial(_held_out, held, _posed(where, held, factor), masks, first, rate),
        keypoints=partial(_keypoints, marked, train.names) if marked else None,
    )


def _lidar(where: Path, split: _Split, factor: int) -> Callable[[], Depth] | None:
    """Depth of a split, as large as its pictures or as the full ones; None where the capture was unpacked without."""
    for folder in (where / "depth" / f"{size}x" for size in (factor, 1)):
        paths = [folder / f"{name}.npy" for name in split.names]
        if all(path.is_file() for path in paths):
            return partial(files.depth, paths, decode.depth_npy)
    return None


def _posed(where: Path, split: _Split, factor: int) -> tuple[list[Path], Callable[[], Cameras]]:
    """The pictures of a split, and what loads their cameras."""
    pictures = [files.file(where / "rgb" / f"{factor}x" / f"{name}.png", VIEWS_LAYOUT) for name in split.names]
    stored = [files.file(where / "camera" / f"{name}.json", VIEWS_LAYOUT) for name in split.names]
    return pictures, partial(_cameras, stored, pictures[0])


def _held_out(
    split: _Split, posed: tuple[list[Path], Callable[[], Cameras]], masks: list[Path], first: int, rate: float
) -> ViewTruth:
    pictures, cameras = posed
    return ViewTruth(
        images=files.images(pictures),
        times=tuple((time - first) / rate for time in split.times),
        camera_ids=split.cameras,
        cameras=cameras(),
        covisible=files.masks(masks),
    )


def _split(path: Path) -> _Split:
    try:
        content = json.loads(path.read_text())
        lists = [content[name] for name in ("frame_names", "time_ids", "camera_ids")]
        names, times, cameras = map(str, lists[0]), map(int, lists[1]), map(int, lists[2])
        found = _Split(names=tuple(names), times=tuple(times), cameras=tuple(cameras))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no split of DyCheck ({error!r}); unpack it again") from error
    if not found.names or not len(found.names) == len(found.times) == len(found.cameras):
        raise UserError(f"{path} lists no frames, or not as many times and cameras; unpack it again")
    return found


def _keypoints(paths: list[Path], names: tuple[str, ...]) -> Keypoints:
    """Files count pixels from the middle of the first; hence + ½."""
    unknown = [path for path in paths if path.stem not in names]
    if unknown:
        raise UserError(f"{unknown[0]} marks a frame that splits/train.json does not list; unpack the capture again")
    try:
        marked = np.stack([np.array(json.loads(path.read_text()), np.float64) for path in paths])
        points, visible = marked[..., :2] + 0.5, marked[..., 2] > 0.5
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{paths[0].parent} holds what are no lists of x, y, seen ({error}); unpack it again"
        ) from error
    return Keypoints(
        frames=tuple(names.index(path.stem) for path in paths),
        points=np.where(visible[..., None], points, 0),
        visible=visible,
    )
