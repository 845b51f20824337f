"""Hints of the user for a model: known intrinsics, poses and depth."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d.abilities import Abilities
from four_d.data.agreement import pose_mistake
from four_d.data.truth import Truth
from four_d.errors import UserError
from four_d.formats.cameras import read_cameras
from four_d.formats.depth import read_depth
from four_d.geometry import rebase
from four_d.inference.lens import Given
from four_d.types import Cameras, Clip, map_tensors
from four_d.video.fit import Fits, cover, regrid, resize_depth, sizes_of
from four_d.video.footage import Video
from four_d.video.foreign import check_there
from four_d.video.images import listed
from four_d.video.remarks import Remarks

LOGGER = logging.getLogger(__name__)

_Number = int | float
Pinhole = tuple[_Number, _Number, _Number, _Number]
"""Focal lengths and principal point: fx, fy, cx, cy."""
RIGID = 1e-3
"""Tolerance for the entries of R·Rᵀ − I, of a rotation R."""
SKEW = 1e-3
"""Tolerance for the entries of intrinsics beside those of a pinhole, as a fraction of the focal length."""
LATE = 0.02
"""Difference in seconds between the times of a camera and its frame above which it is reported."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """Known cameras and depth of a video, all optional, in original pixels."""

    intrinsics: Sequence[Pinhole] | None = None
    """Intrinsics of all frames, or of each of several synchronised cameras, in pixels of its own images."""
    cameras: str | Path | Cameras | None = None
    """Poses in any world and intrinsics, of each frame (or one for all): a ``cameras.json`` as `infer` writes it, or
    tensors. In any unit of length, which ``depth`` must share."""
    depth: str | Path | Float[np.ndarray, "_f _h _w"] | Sequence[Float[np.ndarray, "_h _w"]] | None = None
    """z-depth of each frame (or one for all), 0 if unknown, at the size of the frame or of the model's input: a folder
    as `infer` writes it, a folder of 16-bit PNGs, an array, or a list of one for each frame."""
    depth_unit: float | None = None
    """Length per unit of the values of 16-bit PNGs."""

    def __post_init__(self) -> None:
        """Raise UserError for values that exclude each other."""
        if self.intrinsics is not None and self.cameras is not None:
            raise UserError("cameras hold intrinsics already; give intrinsics or cameras, not both")
        if self.depth_unit is not None and (self.depth is None or not 0 < self.depth_unit < float("inf")):
            raise UserError(f"depth_unit is {self.depth_unit}; give a positive number, along with a folder of depth")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Names of the hints that are given."""
        names = ("intrinsics", "poses", "depth")
        values = (self.intrinsics or self.cameras, self.cameras, self.depth)
        return tuple(name for name, value in zip(names, values, strict=True) if value is not None)


def check(known: Known, model: Abilities) -> None:
    """Raise UserError for a hint that the model does not take; reports if it takes only the intrinsics of cameras."""
    taken = model.hints
    refused = [kind for kind in known.kinds if kind not in taken]
    if refused == ["poses"] and "intrinsics" in taken:
        LOGGER.warning("this model takes no poses: of the cameras only the intrinsics are used")
    elif refused and not (refused == ["intrinsics"] and known.cameras is not None):
        raise UserError(
            f"this model {model.hints_text}, not {refused[0]}; leave {refused[0]} out, or take another model"
        )
    if isinstance(known.depth, str | Path):
        depth_files(Path(known.depth), known.depth_unit, Remarks(known.depth))


def add(
    clip: Clip, known: Known, model: Abilities, video: Video, to: Fits, remarks: Remarks
) -> tuple[Clip, Given | None]:
    """Add hints to a clip (batch axis of one), in model pixels and the first frame's world.

    The second value holds the cameras as given; None without any. ``remarks`` on the cameras are told once per video.

    Raises:
        UserError: a count or size that does not match the frames, invalid cameras or depth, or poses that depth clearly
            shows to be of another convention.

    """
    if known.depth is not None:
        depth = _depth(known.depth, known.depth_unit, video, to)
        clip = dataclasses.replace(clip, depth=depth[None], valid=(depth > 0)[None])
    if known.intrinsics is not None or known.cameras is not None:
        with_poses = known.cameras is not None and "poses" in model.hints
        given = _cameras(known, with_poses, video, remarks)
        _check_convention(given, clip, to)
        clip = dataclasses.replace(clip, cameras=_batched(_placed(given, to)))
        return clip, Given(cameras=given, origin=given.world_from_camera[0])
    return clip, None


def _batched(cameras: Cameras) -> Cameras:
    batched = map_tensors(cameras, lambda tensor: tensor[None])
    return dataclasses.replace(
        batched, world_from_camera=batched.world_from_camera.float(), intrinsics=batched.intrinsics.float()
    )


def _cameras(known: Known, with_poses: bool, video: Video, remarks: Remarks) -> Cameras:
    """Cameras of every frame as given, in float64; poses are the identity, and not ``known``, if the user marks them so
    or the model takes none.
    """
    count = len(video.frames)
    every = torch.ones(count, dtype=torch.bool)
    with_pose, with_lens = every & with_poses, every
    if known.cameras is None:
        assert known.intrinsics is not None
        intrinsics = _pinholes(known.intrinsics, video)
        poses = torch.eye(4, dtype=torch.float64).expand(count, 4, 4)
    else:
        given = known.cameras
        found = given if isinstance(given, Cameras) else _read_cameras(Path(given), video, remarks)
        rows = video.rows_of(len(found.intrinsics), "cameras")
        _check_one_for_all(found.intrinsics[rows], video)
        intrinsics = found.intrinsics[rows].double().expand(count, 3, 3)
        poses = found.world_from_camera[rows].double().expand(count, 4, 4)
        with_pose = with_pose & (every if found.known is None else found.known[rows])
        lens = found.known if found.intrinsics_known is None else found.intrinsics_known
        with_lens = with_lens & (every if lens is None else lens[rows])
    _check_intrinsics(intrinsics, with_lens, video)
    _check_poses(poses, with_pose)
    poses = torch.where(with_pose[:, None, None], poses, torch.eye(4, dtype=torch.float64))
    return Cameras(world_from_camera=poses, intrinsics=intrinsics, known=with_pose, intrinsics_known=with_lens)


def _placed(given: Cameras, to: Fits) -> Cameras:
    """Poses relative to the first frame's camera, intrinsics in model pixels; the identity if unknown."""
    assert given.known is not None
    assert given.intrinsics_known is not None
    identity = torch.eye(4, dtype=torch.float64)
    poses = rebase(given).world_from_camera
    return dataclasses.replace(
        given,
        world_from_camera=torch.where(given.known[:, None, None], poses, identity),
        intrinsics=torch.where(given.intrinsics_known[:, None, None], to.to_model(given.intrinsics), identity[:3, :3]),
    )


def _check_convention(given: Cameras, clip: Clip, to: Fits) -> None:
    """Raise UserError for poses that the frames' depth clearly shows to be of another convention (`pose_mistake`)."""
    assert given.known is not None
    assert given.intrinsics_known is not None
    chosen = (given.known & given.intrinsics_known).nonzero()[:, 0]
    if clip.depth is None or len(chosen) < 2:
        return
    known = Truth(
        times=clip.times[0, chosen],
        cameras=Cameras(
            world_from_camera=given.world_from_camera[chosen], intrinsics=to.to_model(given.intrinsics)[chosen]
        ),
        surface=None,
        depth=clip.depth[0, chosen].double(),
        dynamic=None if clip.dynamic is None else clip.dynamic[0, chosen],
    )
    mistake = pose_mistake(known)
    if mistake is not None:
        raise UserError(
            f"the poses contradict the depth: frames confirm {mistake.given:.0%} of each other's pixels, and "
            f"{mistake.mended:.0%} if {mistake.remedy}"
        )


def check_count(values: Sequence[Pinhole], cameras: int) -> None:
    """Raise UserError unless there is one entry of intrinsics, or one per camera."""
    if len(values) not in (1, cameras):
        each = "one" if cameras == 1 else f"one, or one for each of the {cameras} cameras"
        raise UserError(f"there are {len(values)} intrinsics; give {each}")


def _pinholes(values: Sequence[Pinhole], video: Video) -> Float[Tensor, "f 3 3"]:
    check_count(values, video.cameras)
    rows = [[[fx, 0, cx], [0, fy, cy], [0, 0, 1]] for fx, fy, cx, cy in values]
    chosen = torch.tensor(rows, dtype=torch.float64)
    _check_one_for_all(chosen, video)
    return chosen.repeat(len(video.frames) // len(chosen), 1, 1)


def _check_one_for_all(intrinsics: Float[Tensor, "n 3 3"], video: Video) -> None:
    if len(intrinsics) == 1 and len(set(sizes_of(video.frames))) > 1:
        raise UserError("the cameras have pictures of several sizes; give intrinsics for each of them")


def _check_intrinsics(intrinsics: Float[Tensor, "f 3 3"], known: Bool[Tensor, "f"], video: Video) -> None:
    for frame, k in ((frame, k) for frame, k in enumerate(intrinsics.tolist()) if known[frame]):
        fx, fy, cx, cy = k[0][0], k[1][1], k[0][2], k[1][2]
        numbers = f"intrinsics {fx:g},{fy:g},{cx:g},{cy:g} (fx,fy,cx,cy) of frame {frame}"
        if not (0 < fx < float("inf") and 0 < fy < float("inf")):
            raise UserError(f"{numbers} have no positive focal lengths; give them in pixels")
        if k[1][0] != 0 or k[2] != [0, 0, 1] or not abs(k[0][1]) <= SKEW * fx:
            raise UserError(
                f"intrinsics {k} of frame {frame} are no pinhole camera's; give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"
            )
        height, width = video.frames[frame].shape[:2]
        if not (0 < cx < width and 0 < cy < height):
            raise UserError(
                f"{numbers} have their principal point outside the {width}×{height} picture; "
                "give them in pixels of this video, not of another size"
            )


def _check_poses(poses: Float[Tensor, "f 4 4"], known: Bool[Tensor, "f"]) -> None:
    if bool(known.any()) and not bool(known[0]):
        raise UserError("the first frame's pose is not known, and the others are told from it; give it, or no pose")
    rotation = poses[:, :3, :3]
    off = (rotation @ rotation.mT - torch.eye(3).to(poses)).abs().flatten(1).amax(-1)
    rigid = (off < RIGID) & (torch.det(rotation) > 0) & (poses[:, 3] == torch.eye(4).to(poses)[3]).all(-1)
    wrong = (known & ~(rigid & poses.isfinite().flatten(1).all(-1))).nonzero().flatten().tolist()
    if wrong:
        raise UserError(
            f"the pose of frame {wrong[0]} is no rigid motion; give world_from_camera as a rotation and a translation"
        )


def _read_cameras(path: Path, video: Video, remarks: Remarks) -> Cameras:
    """Read cameras in original pixels; remarks once on a camera whose time differs from its frame's."""
    table = read_cameras(path)
    rows = video.rows_of(len(table.times), "cameras")
    for index, size in enumerate(sizes_of(video.frames)):
        own = table.original_sizes[rows[index % len(rows)]]
        if own != size:
            sizes = f"camera is of {own[1]}×{own[0]} pictures, frame {index} is {size[1]}×{size[0]}"
            raise UserError(f"{path}: a {sizes}; give this video's cameras")
    if len(rows) == len(video.times):
        for frame, (row, time) in enumerate(zip(rows, video.times, strict=True)):
            if abs(table.times[row] - time) > LATE:
                told = f"frame {frame} is of {time:.2f} s, its camera of {table.times[row]:.2f} s"
                remarks.say(f"{told}; are these the same frames?", kind="times")
                break
    return table.original


def _depth(
    depth: str | Path | NDArray[np.floating] | Sequence[NDArray[np.floating]],
    unit: float | None,
    video: Video,
    to: Fits,
) -> Float[Tensor, "f r c"]:
    """Depth at the model's resolution, 0 if unknown; files of ``four-d infer`` may have another model's grid."""
    if isinstance(depth, str | Path):
        maps, name = _read_depth(Path(depth), unit, video), str(depth)
    else:
        maps, name = [depth[row] for row in video.rows_of(len(depth), "depth maps")], "depth"
    maps = [np.where(np.isfinite(one) & (one > 0), one, 0).astype(np.float32) for one in maps]
    if not any(one.any() for one in maps):
        raise UserError(f"{name} has no positive depth; give z-depth, with 0 only where it is not known")
    written = isinstance(depth, str | Path) and (Path(depth) / "depth.json").is_file()
    placed: list[Tensor] = []
    for index, own in enumerate(to.of_frames):
        one = maps[index % len(maps)]
        if one.shape == own.original:
            one = resize_depth(one, own)
        elif one.shape != own.model and written and one.shape[0] <= own.original[0] and one.shape[1] <= own.original[1]:
            one = regrid(one, cover(own.original, (one.shape[0], one.shape[1])), own)  # what another model saw
        elif one.shape != own.model:
            sizes = [f"{width}×{height}" for height, width in (one.shape, own.original, own.model)]
            told = f"{name} is {sizes[0]}, frame {index} is {sizes[1]}"
            raise UserError(f"{told}; give it at that size (or at {sizes[2]})")
        placed.append(torch.from_numpy(one))
    return torch.stack(placed)


def depth_files(folder: Path, unit: float | None, remarks: Remarks | None = None) -> list[Path] | None:
    """PNGs of depth, whose unit the user gives; None if ``depth.json`` gives it. UserError for neither or both."""
    if (folder / "depth.json").is_file():
        if unit is not None:
            raise UserError(f"{folder} says in depth.json what a count is; leave the depth unit out")
        return None
    check_there(folder, "a folder of 16-bit PNGs")
    files = listed(folder, "16-bit PNGs of depth", remarks, frozenset({".png"}))
    if unit is None:
        raise UserError(f"{folder} has no depth.json; say what one count of its PNGs is, as --depth-unit 0.001")
    return files


def _read_depth(folder: Path, unit: float | None, video: Video) -> list[NDArray[np.floating]]:
    """Depth maps of the chosen frames."""
    files = depth_files(folder, unit)
    if files is None or unit is None:
        maps = read_depth(folder)
        return [maps[row] for row in video.rows_of(len(maps), "depth maps")]
    return [_read_png(files[row]) * unit for row in video.rows_of(len(files), "depth maps")]


def _read_png(file: Path) -> NDArray[np.float64]:
    try:
        with Image.open(file) as image:
            if not image.mode.startswith("I"):
                raise UserError(f"depth {file} is no 16-bit grey picture (its mode is {image.mode}); save it as one")
            return np.asarray(image).astype(np.float64)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"depth {file} does not decode as an image ({error}); save it as 16-bit PNG") from error
