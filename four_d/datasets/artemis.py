"""Dynamic Furry Animals of Artemis (Luo et al. 2022): CGI animals in motion, filmed by 36 still cameras around them.

Facts: HaiminLuo/Artemis at commit 9a0aee4, README.md and code/{render,utils/utils,utils/ray_sampling}.py. Cameras are
world_from_camera with OpenCV's axes; the principal point counts from pixel centres, since the code's rays go through
whole pixel numbers. The README states no unit of length, no frame rate (its videos are written at 30) and no licence.
Bones, skinning and voxels are not read.
"""

from __future__ import annotations

from collections.abc import Sequence as Several
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from four_d.datasets import decode, files
from four_d.datasets.facts import DataSet, Licence
from four_d.datasets.sequence import PerFrame, Sequence, ViewTruth
from four_d.errors import UserError
from four_d.ordering import in_order
from four_d.types import Cameras

LAYOUT = (
    "ANIMAL/{sequences,CamPose.inf,Intrinsic.inf,img/MOTION/0/{img_0000.jpg,img_0000_alpha.png}}: a folder a frame, a "
    "number a view"
)
RATE = 30.0
COVERAGES = (0, 40, 90, 140, 180)
"""Degrees around the animal that a video covers (PAD3R)."""
FRAMES = 30
"""Largest number of a motion's first frames in a video of `read_coverage`."""
HELD_TIMES, HELD_VIEWS = 8, 4
FARTHEST_VIEW = 20.0
"""Degrees from the wanted direction beyond which no view counts as being there."""


def read_artemis(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
    """List every motion of every animal, as ``cat/run``, all views of it; ``root`` may be one animal's folder."""
    places = _motions(root)
    return [_motion(name, *places[name]) for name in files.chosen(places, only)]


def read_coverage(root: Path, only: tuple[str, ...] | None = None, *, degrees: int = 0) -> list[Sequence]:
    """List the motions as videos of one moving camera that covers so many degrees around the animal.

    Frame by frame the view nearest to an even sweep from the first view on is taken. Held out are the views a quarter
    turn apart that are nearest to 45°, 135°, 225° and 315° from the first one, at 8 times of the video, but for a view
    that the video shows at that time.
    """
    return [_covering(sequence, degrees) for sequence in read_artemis(root, only)]


def _motions(root: Path) -> dict[str, tuple[Path, str, int]]:
    """Name → the animal's folder, the motion and its number of frames, of those whose images are there."""
    files.folder(root, LAYOUT)
    animals = [root] if (root / "sequences").is_file() else in_order(path.parent for path in root.glob("*/sequences"))
    found: dict[str, tuple[Path, str, int]] = {}
    for animal in animals:
        for motion, count in _listed(animal / "sequences"):
            if (animal / "img" / motion).is_dir():
                found[f"{animal.name}/{motion}"] = animal, motion, count
    if not found:
        raise files.missing(root / "ANIMAL" / "sequences", LAYOUT)
    return found


def _listed(path: Path) -> list[tuple[str, int]]:
    """Read a list of motions: name and number of frames in a line."""
    try:
        lines = [line.split() for line in path.read_text().splitlines() if line.strip()]
        return [(name, int(count)) for name, count in lines]
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not a list like 'run 30' ({error}); download it again") from error


def _motion(name: str, animal: Path, motion: str, count: int) -> Sequence:
    frames = in_order(path for path in (animal / "img" / motion).iterdir() if path.is_dir())
    if [path.name for path in frames] != [str(at) for at in range(count)]:
        raise UserError(
            f"{animal / 'img' / motion} has {len(frames)} folders of frames, not 0 to {count - 1} as sequences says; "
            "download it again"
        )
    poses, lenses = _lenses(animal)
    images = [files.file(frame / f"img_{view:04d}.jpg", LAYOUT) for view in range(len(poses)) for frame in frames]
    mattes = [files.file(path.with_name(f"{path.stem}_alpha.png"), LAYOUT) for path in images]
    return Sequence(
        name=name,
        frames=len(images),
        times=files.frame_times(count, RATE) * len(poses),
        camera_ids=tuple(view for view in range(len(poses)) for _ in range(count)),
        images=files.image_loader(images),
        cameras=partial(files.cameras, poses.repeat(count, axis=0), lenses.repeat(count, axis=0)),
        masks=PerFrame(_mattes, mattes),
        listing=(animal / "CamPose.inf", animal / "Intrinsic.inf"),
    )


def _mattes(paths: list[Path]) -> NDArray[np.bool_]:
    masks = [decode.matte(path) for path in paths]
    for path, mask in zip(paths, masks, strict=True):
        if mask.shape != masks[0].shape:
            raise UserError(f"{path} is of another size than {paths[0]}; download it again")
    return np.stack(masks)


def _lenses(animal: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read world_from_camera v 4 4 and intrinsics v 3 3 of the views.

    A row of CamPose.inf has the columns of a 3 × 4 pose in the order third, first, second, fourth.
    """
    stored = decode.matrices(files.file(animal / "CamPose.inf", LAYOUT), 4, 3)
    poses = np.tile(np.eye(4), (len(stored), 1, 1))
    poses[:, :3] = stored[:, [1, 2, 0, 3]].transpose(0, 2, 1)
    intrinsics = decode.matrices(files.file(animal / "Intrinsic.inf", LAYOUT), 1, 10)[:, 0]
    if len(intrinsics) != len(poses) or not (intrinsics[:, 0] == np.arange(len(poses))).all():
        raise UserError(
            f"{animal / 'Intrinsic.inf'} has {len(intrinsics)} views, CamPose.inf {len(poses)}; download both again"
        )
    lenses = intrinsics[:, 1:].reshape(-1, 3, 3) + files.HALF_PIXEL
    return poses, lenses


def _covering(whole: Sequence, degrees: int) -> Sequence:
    assert whole.cameras is not None
    assert whole.camera_ids is not None
    views = len(set(whole.camera_ids))
    total = whole.frames // views
    count = min(total, FRAMES)
    poses = whole.cameras().world_from_camera[::total].double().numpy()
    sweep = [degrees * at / max(count - 1, 1) for at in range(count)]
    chosen = nearest_views(poses, sweep, whole.name)
    held = nearest_views(poses, [45 + 360 * turn / HELD_VIEWS for turn in range(HELD_VIEWS)], whole.name)
    times = sorted({round(step) for step in np.linspace(0, count - 1, HELD_TIMES)})
    pairs = [(view, at) for at in times for view in dict.fromkeys(held) if view != chosen[at]]
    video = whole.take([view * total + at for at, view in enumerate(chosen)])
    others = whole.take([view * total + at for view, at in pairs])
    return replace(video, tasks=("views",), camera_ids=None, views=partial(_held_out, others))


def _held_out(others: Sequence) -> ViewTruth:
    assert others.cameras is not None
    assert others.camera_ids is not None
    cameras: Cameras = others.cameras()
    return ViewTruth(
        images=others.images(),
        times=others.times,
        camera_ids=others.camera_ids,
        cameras=cameras,
        dynamic=None if others.masks is None else others.masks(),
    )


def nearest_views(poses: NDArray[np.float64], degrees: Several[float], name: str) -> list[int]:
    """View nearest to each direction around the place that all views look at, in degrees from the first view.

    The axis is the mean of the views' upward directions; a positive angle turns around it counter-clockwise, seen from
    above. UserError if no view is within `FARTHEST_VIEW` of a direction; ``name`` is for it.

    Args:
        poses: world_from_camera v 4 4.
        degrees: wanted directions.
        name: name of the sequence.

    """
    centres, ahead, up = poses[:, :3, 3], poses[:, :3, 2], -poses[:, :3, 1].mean(0)
    across = (
        np.eye(3) - ahead[:, :, None] * ahead[:, None]
    )  # onto each view's image plane: the lines meet where all look
    middle = np.linalg.lstsq(across.sum(0), (across @ centres[..., None]).sum(0)[:, 0])[0]
    up /= np.linalg.norm(up)
    outward = (centres - middle) / np.linalg.norm(centres - middle, axis=-1, keepdims=True)
    first = outward[0]
    level = first - up * (first @ up)
    angles = np.radians(degrees)[:, None]
    wanted = level * np.cos(angles) + np.cross(up, level) * np.sin(angles) + up * (first @ up)
    apart = np.degrees(np.arccos((wanted @ outward.T).clip(-1, 1)))
    if (apart.min(1) > FARTHEST_VIEW).any():
        at = int(apart.min(1).argmax())
        raise UserError(
            f"{name}: no view stands within {FARTHEST_VIEW:g}° of {degrees[at]:g}° around the animal; the nearest is "
            f"{apart.min(1)[at]:.0f}° off"
        )
    return apart.argmin(1).tolist()


ARTEMIS = DataSet(
    name="artemis",
    title="Artemis' Dynamic Furry Animals",
    home="github.com/HaiminLuo/Artemis (its README links the files)",
    licences=(Licence(text="none stated"),),
    layout=LAYOUT,
    reader=read_artemis,
    metric=False,
    moving=False,
    notes="images, cameras and mattes; 30 frames a second are nominal, the unit of length is not stated",
)
