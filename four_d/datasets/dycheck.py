"""DyCheck's iPhone captures: the moving phone (camera 0) with its lidar depth, and two static ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import numpy as np

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import Depth, Keypoints, Sequence, Task, ViewTruth
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = "apple/{rgb/1x/0_00000.png,depth/1x/0_00000.npy,camera/0_00000.json} and so on"
NAMES = (
    *("apple", "backpack", "block", "handwavy", "haru-sit", "mochi-high-five", "paper-windmill", "pillow"),
    *("space-out", "spin", "sriracha-tree", "teddy", "wheel"),
)
"""Thirteen of the set's fourteen captures: published code leaves out creeper."""
VIEWS_LAYOUT = (
    "apple/{splits/{train,val}.json,rgb/2x/0_00000.png,camera/0_00000.json,covisible/2x/val/1_00000.png} and so on; "
    "keypoint/2x/train/0_00000.json for PCK-T"
)
VIEW_NAMES = ("apple", "block", "paper-windmill", "space-out", "spin", "teddy", "wheel")
"""Captures with additional static cameras."""
FACTOR = 2
"""Divisor of the full images' sides where extra.json has none."""
DEPTH_FRAMES = 120
POSE_STRIDE = 10
FPS = 30.0
"""Frame rate where extra.json has none."""


def read_dycheck(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List each capture twice, as PAGE-4D: its first 120 frames for depth, every tenth frame for the rest."""
    base = _base(root)
    return [entry for name in files.chosen(NAMES, only) for entry in _capture(base / name)]


def read_all(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List all frames of camera 0 of every capture that is there."""
    base = _base(root)
    names = [path.parents[1].name for path in in_order(files.folder(base, LAYOUT).glob("*/rgb/1x"))]
    if not names:
        raise files.missing(base / "*" / "rgb" / "1x", LAYOUT)
    return [_listed(base / name, _images(base / name), ()) for name in files.chosen(names, only)]


def _base(root: Path) -> Path:
    inner = root / "iphone"
    return inner if inner.is_dir() else root


def _images(capture: Path) -> list[Path]:
    return files.listed(capture / "rgb" / "1x", "0_*.png", LAYOUT, key=files.number)


def _capture(capture: Path) -> list[Sequence]:
    image_paths = _images(capture)
    first, tenth = image_paths[:DEPTH_FRAMES], image_paths[::POSE_STRIDE]
    selections: list[tuple[list[Path], tuple[Task, ...]]] = [
        (first, ("video_depth", "depth")),
        (tenth, ("pose", "points")),
    ]
    return [_listed(capture, chosen, tasks) for chosen, tasks in selections]


def _listed(capture: Path, chosen: list[Path], tasks: tuple[Task, ...]) -> Sequence:
    """List some images of a capture, with their depth and cameras."""
    rate = _rate(capture / "extra.json")
    maps = [files.file(capture / "depth" / "1x" / f"{path.stem}.npy", LAYOUT) for path in chosen]
    stored = [files.file(capture / "camera" / f"{path.stem}.json", LAYOUT) for path in chosen]
    return Sequence(
        name=capture.name,
        frames=len(chosen),
        times=tuple((files.number(path) - files.number(chosen[0])) / rate for path in chosen),
        tasks=tasks,
        images=files.image_loader(chosen),
        cameras=partial(_scaled_cameras, stored, chosen[0]),
        depth=files.depth_loader(maps, decode.depth_npy),
        listing=tuple(path for path in (capture / "extra.json",) if path.is_file()),
    )


def _scaled_cameras(stored: list[Path], first_image: Path) -> Cameras:
    """Read cameras, whose pixels have a corner origin; intrinsics are scaled from ``image_size`` to the images'."""
    height, width = decode.image_size(first_image)
    decoded = [decode.camera_nerfies(path) for path in stored]
    scales = np.array([[[width / size[1]], [height / size[0]], [1.0]] for _, _, size in decoded])
    return files.cameras(np.stack([pose for pose, _, _ in decoded]), np.stack([k for _, k, _ in decoded]) * scales)


def _rate(extra: Path) -> float:
    return FPS if not extra.is_file() else _number(extra, "fps")


def _number(extra: Path, name: str) -> float:
    content = decode.json_object(extra)
    try:
        return float(cast(float, content[name]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{extra} has no readable {name} ({error!r}); unpack it again") from error


@dataclass(frozen=True, kw_only=True)
class _Split:
    """Frames of one of the set's lists, in its order."""

    names: tuple[str, ...]
    times: tuple[int, ...]
    cameras: tuple[int, ...]


def read_views(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List the seven captures with held-out cameras: all of camera 0's frames, and the images of the others.

    Sizes are DyCheck's own for them, half of the captured ones (``rgb/2x``). Keypoints are those of the annotated
    frames that exist (ten per capture). Without any, `Sequence.keypoints` is None; so is depth without files.
    """
    base = _base(root)
    return [_views(base / name) for name in files.chosen(VIEW_NAMES, only)]


def _views(capture: Path) -> Sequence:
    extra = capture / "extra.json"
    factor, rate = int(_number(extra, "factor")) if extra.is_file() else FACTOR, _rate(extra)
    train, held = (_split(files.file(capture / "splits" / f"{name}.json", VIEWS_LAYOUT)) for name in ("train", "val"))
    image_paths, cameras = _posed(capture, train, factor)
    masks = [
        files.file(capture / "covisible" / f"{factor}x" / "val" / f"{name}.png", VIEWS_LAYOUT) for name in held.names
    ]
    first = train.times[0]
    marked = sorted((capture / "keypoint" / f"{factor}x" / "train").glob("*_*.json"), key=files.number)
    return Sequence(
        name=capture.name,
        frames=len(image_paths),
        times=tuple((time - first) / rate for time in train.times),
        tasks=("views",),
        images=files.image_loader(image_paths),
        cameras=cameras,
        depth=_lidar(capture, train, factor),
        views=partial(_held_out, held, _posed(capture, held, factor), masks, first, rate),
        keypoints=partial(_keypoints, marked, train.names) if marked else None,
    )


def _lidar(capture: Path, split: _Split, factor: int) -> Callable[[], Depth] | None:
    """Loader of a split's depth, at its images' size or the full one; None where the capture has no depth files."""
    for folder in (capture / "depth" / f"{size}x" for size in (factor, 1)):
        if paths := files.partly(folder, [folder / f"{name}.npy" for name in split.names]):
            return files.depth_loader(paths, decode.depth_npy)
    return None


def _posed(capture: Path, split: _Split, factor: int) -> tuple[list[Path], Callable[[], Cameras]]:
    """Images of a split, and the loader of their cameras."""
    image_paths = [files.file(capture / "rgb" / f"{factor}x" / f"{name}.png", VIEWS_LAYOUT) for name in split.names]
    stored = [files.file(capture / "camera" / f"{name}.json", VIEWS_LAYOUT) for name in split.names]
    return image_paths, partial(_scaled_cameras, stored, image_paths[0])


def _held_out(
    split: _Split, posed: tuple[list[Path], Callable[[], Cameras]], masks: list[Path], first: int, rate: float
) -> ViewTruth:
    image_paths, cameras = posed
    return ViewTruth(
        images=files.images(image_paths),
        times=tuple((time - first) / rate for time in split.times),
        camera_ids=split.cameras,
        cameras=cameras(),
        covisible=files.masks(masks),
    )


def _split(path: Path) -> _Split:
    content = decode.json_object(path)
    try:
        lists = [cast(list[object], content[name]) for name in ("frame_names", "time_ids", "camera_ids")]
        names, times, cameras = map(str, lists[0]), map(_whole, lists[1]), map(_whole, lists[2])
        split = _Split(names=tuple(names), times=tuple(times), cameras=tuple(cameras))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a split of DyCheck ({error!r}); unpack it again") from error
    if not split.names or not len(split.names) == len(split.times) == len(split.cameras):
        raise UserError(f"{path} lists no frames, or not as many times and cameras; unpack it again")
    return split


def _whole(value: object) -> int:
    return int(cast(int, value))


def _keypoints(paths: list[Path], names: tuple[str, ...]) -> Keypoints:
    """Read keypoints; files count pixels from the centre of the first, hence + ½."""
    unknown = [path for path in paths if path.stem not in names]
    if unknown:
        raise UserError(f"{unknown[0]} marks a frame that splits/train.json does not list; unpack the capture again")
    stored = [decode.json_value(path) for path in paths]
    try:
        marked = np.stack([np.array(each, np.float64) for each in stored])
        points, visible = marked[..., :2] + 0.5, marked[..., 2] > 0.5
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(
            f"{paths[0].parent} holds something other than lists of x, y, seen ({error}); unpack it again"
        ) from error
    return Keypoints(
        frames=tuple(names.index(path.stem) for path in paths),
        points=np.where(visible[..., None], points, 0),
        visible=visible,
    )


DYCHECK = DataSet(
    name="dycheck",
    title="DyCheck, iPhone captures, camera 0",
    home="github.com/KAIR-BAIR/dycheck, iPhone captures",
    licences=(Licence(text="code Apache-2.0; data: see there"),),
    layout=LAYOUT,
    reader=read_all,
    depth_tolerance=0.05,
)
