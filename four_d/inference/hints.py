"""What the user knows of a video beforehand, as a model takes it: intrinsics, poses, depth."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d.backbones.hints import HintsConfig
from four_d.data.agreement import pose_mistake
from four_d.data.truth import Truth
from four_d.errors import UserError
from four_d.formats.cameras import read_cameras
from four_d.formats.depth import read_depth
from four_d.geometry import rebase
from four_d.inference.fit import Fit, resize_depth
from four_d.inference.video import Video
from four_d.types import Cameras, Clip, map_tensors

_Number = int | float
Pinhole = tuple[_Number, _Number, _Number, _Number]
"""fx, fy, cx, cy."""
RIGID = 1e-3
"""By how much the entries of a rotation times its transpose may miss the identity's."""
SKEW = 1e-3
"""What intrinsics may have beside a pinhole's numbers, as a share of the focal length."""
LATE = 0.02
"""Seconds by which a camera's time may miss its frame's before that is said."""
KINDS = ("intrinsics", "poses", "depth", "masks")


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of a video; all of it optional. Pixels are original ones."""

    intrinsics: Sequence[Pinhole] | None = None
    """One for all frames, or one for each of several synchronised cameras."""
    cameras: str | Path | Cameras | None = None
    """Poses in any world and intrinsics, of each frame (or one for all): a ``cameras.json`` as `infer` writes it, or
    tensors. Its unit of length is any, but that of ``depth``."""
    depth: str | Path | Float[np.ndarray, "_f _h _w"] | None = None
    """z-depth of each frame (or one for all), 0 where it is not known, at the frames' size or the model's: a folder as
    `infer` writes it, a folder of 16-bit PNGs, or an array."""
    depth_unit: float | None = None
    """What one count of the PNGs is; for those only."""

    def __post_init__(self) -> None:
        """UserError for things that exclude each other."""
        if self.intrinsics is not None and self.cameras is not None:
            raise UserError("cameras hold intrinsics already; give intrinsics or cameras, not both")
        if self.depth_unit is not None and (self.depth is None or not 0 < self.depth_unit < float("inf")):
            raise UserError(f"depth_unit is {self.depth_unit}; give a positive number, along with a folder of depth")

    @property
    def kinds(self) -> tuple[str, ...]:
        """Which hints these are."""
        names = ("intrinsics", "poses", "depth")
        values = (self.intrinsics or self.cameras, self.cameras, self.depth)
        return tuple(name for name, value in zip(names, values, strict=True) if value is not None)


def check(known: Known, takes: HintsConfig | None) -> None:
    """UserError for a hint that the model does not take; of cameras it may take the intrinsics alone, which is said."""
    taken = [] if takes is None else [kind for kind in KINDS if getattr(takes, kind) != "off"]
    refused = [kind for kind in known.kinds if kind not in taken]
    if refused == ["poses"] and "intrinsics" in taken:
        print("this model takes no poses: of the cameras only the intrinsics are used", file=sys.stderr)
    elif refused and not (refused == ["intrinsics"] and known.cameras is not None):
        has = "takes no hints (backbone.hints is off)" if not taken else f"takes {' and '.join(taken)}"
        raise UserError(f"this model {has}, not {refused[0]}; leave {refused[0]} out, or take another model")


def add(clip: Clip, known: Known, takes: HintsConfig, video: Video, to: Fit) -> Clip:
    """The clip, which has a batch axis of one, with what is known of it in model pixels and the first frame's world.

    Raises:
        UserError: another count or size than the frames', numbers that no camera or depth has, or poses that depth
            clearly shows to be of another convention.

    """
    if known.depth is not None:
        depth = _depth(known.depth, known.depth_unit, video, to)
        clip = dataclasses.replace(clip, depth=depth[None], valid=(depth > 0)[None])
    if known.intrinsics is not None or known.cameras is not None:
        with_poses = known.cameras is not None and takes.poses != "off"
        given = _cameras(known, with_poses, video)
        _check_convention(given, clip, to)
        clip = dataclasses.replace(clip, cameras=_batched(_placed(given, to)))
    return clip


def _batched(cameras: Cameras) -> Cameras:
    batched = map_tensors(cameras, lambda tensor: tensor[None])
    return dataclasses.replace(
        batched, world_from_camera=batched.world_from_camera.float(), intrinsics=batched.intrinsics.float()
    )


def _cameras(known: Known, with_poses: bool, video: Video) -> Cameras:
    """Of every frame, as they were given, in float64; the identity and not ``known`` where the user says so or the
    model takes no poses.
    """
    count = len(video.frames)
    every = torch.ones(count, dtype=torch.bool)
    with_pose, with_lens = every & with_poses, every
    if known.cameras is None:
        assert known.intrinsics is not None
        intrinsics = _pinholes(known.intrinsics, video)
        poses = torch.eye(4, dtype=torch.float64).expand(count, 4, 4)
    else:
        found = known.cameras if isinstance(known.cameras, Cameras) else _read_cameras(Path(known.cameras), video)
        rows = video.rows_of(len(found.intrinsics), "cameras")
        intrinsics = found.intrinsics[rows].double().expand(count, 3, 3)
        poses = found.world_from_camera[rows].double().expand(count, 4, 4)
        with_pose = with_pose & (every if found.known is None else found.known[rows])
        lens = found.known if found.intrinsics_known is None else found.intrinsics_known
        with_lens = with_lens & (every if lens is None else lens[rows])
    _check_intrinsics(intrinsics, with_lens, video)
    _check_poses(poses, with_pose)
    poses = torch.where(with_pose[:, None, None], poses, torch.eye(4, dtype=torch.float64))
    return Cameras(world_from_camera=poses, intrinsics=intrinsics, known=with_pose, intrinsics_known=with_lens)


def _placed(given: Cameras, to: Fit) -> Cameras:
    """Poses in the first frame's camera, intrinsics in model pixels; the identity where unknown."""
    assert given.known is not None
    assert given.intrinsics_known is not None
    identity = torch.eye(4, dtype=torch.float64)
    poses = rebase(given).world_from_camera
    return dataclasses.replace(
        given,
        world_from_camera=torch.where(given.known[:, None, None], poses, identity),
        intrinsics=torch.where(given.intrinsics_known[:, None, None], to.to_model(given.intrinsics), identity[:3, :3]),
    )


def _check_convention(given: Cameras, clip: Clip, to: Fit) -> None:
    """UserError for poses that the depth of the frames clearly shows to be misread (`pose_mistake`)."""
    assert given.known is not None
    assert given.intrinsics_known is not None
    chosen = (given.known & given.intrinsics_known).nonzero()[:, 0]
    if clip.depth is None or len(chosen) < 2:
        return
    known = Truth(
        times=clip.times[0, chosen],
        cameras=Cameras(
            world_from_camera=given.world_from_camera[chosen], intrinsics=to.to_model(given.intrinsics[chosen])
        ),
        surface=None,
        depth=clip.depth[0, chosen].double(),
        dynamic=None if clip.dynamic is None else clip.dynamic[0, chosen],
    )
    found = pose_mistake(clip.images[0, chosen].double(), known)
    if found is not None:
        raise UserError(
            f"the poses contradict the depth: frames confirm {found.given:.0%} of each other's pixels, and "
            f"{found.mended:.0%} if {found.remedy}"
        )


def _pinholes(values: Sequence[Pinhole], video: Video) -> Float[Tensor, "f 3 3"]:
    if len(values) not in (1, video.cameras):
        each = "one" if video.cameras == 1 else f"one, or one for each of the {video.cameras} cameras"
        raise UserError(f"there are {len(values)} intrinsics; give {each}")
    rows = [[[fx, 0, cx], [0, fy, cy], [0, 0, 1]] for fx, fy, cx, cy in values]
    chosen = [rows[index % len(rows)] for index in range(len(video.frames))]
    return torch.tensor(chosen, dtype=torch.float64)


def _check_intrinsics(intrinsics: Float[Tensor, "f 3 3"], known: Bool[Tensor, "f"], video: Video) -> None:
    height, width = video.frames.shape[1:3]
    for frame, k in ((frame, k) for frame, k in enumerate(intrinsics.tolist()) if known[frame]):
        fx, fy, cx, cy = k[0][0], k[1][1], k[0][2], k[1][2]
        numbers = f"intrinsics {fx:g},{fy:g},{cx:g},{cy:g} (fx,fy,cx,cy) of frame {frame}"
        if not (0 < fx < float("inf") and 0 < fy < float("inf")):
            raise UserError(f"{numbers} have no positive focal lengths; give them in pixels")
        if k[1][0] != 0 or k[2] != [0, 0, 1] or not abs(k[0][1]) <= SKEW * fx:
            raise UserError(
                f"intrinsics {k} of frame {frame} are no pinhole camera's; give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]"
            )
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


def _read_cameras(path: Path, video: Video) -> Cameras:
    """In original pixels. Says on stderr when a camera's time is not its frame's."""
    table = read_cameras(path)
    height, width = video.frames.shape[1:3]
    if table.original_size != (height, width):
        size = f"{table.original_size[1]}×{table.original_size[0]}"
        raise UserError(f"{path} is of {size} pictures, the frames are {width}×{height}; give this video's cameras")
    rows = video.rows_of(len(table.times), "cameras")
    if len(rows) == len(video.times):
        for frame, (row, time) in enumerate(zip(rows, video.times, strict=True)):
            if abs(table.times[row] - time) > LATE:
                told = f"frame {frame} is of {time:.2f} s, its camera of {table.times[row]:.2f} s"
                print(f"{path}: {told}; are these the same frames?", file=sys.stderr)
                break
    return table.original


def _depth(
    depth: str | Path | NDArray[np.floating], unit: float | None, video: Video, to: Fit
) -> Float[Tensor, "f r c"]:
    """On the model's grid; 0 where nothing is known."""
    if isinstance(depth, str | Path):
        maps, name = _read_depth(Path(depth), unit, video), str(depth)
    else:
        maps, name = depth[video.rows_of(len(depth), "depth maps")], "depth"
    maps = np.where(np.isfinite(maps) & (maps > 0), maps, 0).astype(np.float32)
    if not maps.any():
        raise UserError(f"{name} has no positive depth; give z-depth, with 0 only where it is not known")
    if maps.shape[1:] == to.original:
        found = resize_depth(maps, to)
    elif maps.shape[1:] == to.model:
        found = torch.from_numpy(maps)
    else:
        sizes = [f"{width}×{height}" for height, width in (maps.shape[1:], to.original, to.model)]
        raise UserError(f"{name} is {sizes[0]}, the frames are {sizes[1]}; give it at that size (or at {sizes[2]})")
    return found.expand(len(video.frames), -1, -1)


def _read_depth(folder: Path, unit: float | None, video: Video) -> NDArray[np.float32]:
    """Of the frames that were taken."""
    if (folder / "depth.json").is_file():
        if unit is not None:
            raise UserError(f"{folder} says in depth.json what a count is; leave the depth unit out")
        maps = read_depth(folder)
        return maps[video.rows_of(len(maps), "depth maps")]
    files = sorted(folder.glob("*.png"))
    if not files:
        raise UserError(f"{folder} holds no depth (no PNG there); give a folder of 16-bit PNGs")
    if unit is None:
        raise UserError(f"{folder} has no depth.json; say what one count of its PNGs is, as --depth-unit 0.001")
    chosen = [_read_png(files[row]) for row in video.rows_of(len(files), "depth maps")]
    sizes = {one.shape for one in chosen}
    if len(sizes) > 1:
        raise UserError(f"{folder} holds depth of several sizes; make all one size")
    return (np.stack(chosen) * unit).astype(np.float32)


def _read_png(file: Path) -> NDArray[np.float64]:
    try:
        with Image.open(file) as image:
            if not image.mode.startswith("I"):
                raise UserError(f"depth {file} is no 16-bit grey picture (its mode is {image.mode}); save it as one")
            return np.asarray(image).astype(np.float64)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"depth {file} does not decode as an image ({error}); save it as 16-bit PNG") from error
