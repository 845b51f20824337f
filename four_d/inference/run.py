"""A model on a video: `load`, call, `infer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, overload

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from four_d import checkpoints
from four_d.checkpoints import ModelInfo
from four_d.errors import UserError
from four_d.formats.cameras import CameraTable, write_cameras, write_colmap
from four_d.formats.clouds import PointCloud, fuse, world_points, write_ply
from four_d.formats.depth import write_depth
from four_d.formats.folders import new_folder
from four_d.inference import video as videos
from four_d.inference.fit import Fit, fit, resize
from four_d.inference.video import Selection, Video
from four_d.model import FourD
from four_d.types import Cameras, Clip, Prediction, map_tensors

UNIT = "model unit: the mean distance of the scene's points to the first camera is about 1; not metres"
COLMAP_POINTS = 50_000

Frames = str | Path | UInt8[np.ndarray, "f h w 3"] | Float[Tensor, "f 3 h w"] | Sequence[Image.Image]
"""What a model can be called on: a video file or folder of images, uint8 or float frames, pictures."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a model says of a video: f frames, no batch axis, on the CPU. Coordinates are the first frame's camera's."""

    prediction: Prediction
    """At the model's resolution."""
    images: Float[Tensor, "f 3 r c"]
    """What the model saw."""
    frames: UInt8[np.ndarray, "f h w 3"]
    """The original frames."""
    times: list[float]
    """Seconds; 25 frames per second where the input does not say."""
    fit: Fit
    """How model pixels and original pixels belong together."""

    @property
    def depth(self) -> Float[Tensor, "f r c"] | None:
        """z-depth; None if the model has no such head."""
        return self.prediction.depth

    @property
    def points(self) -> Float[Tensor, "f r c 3"] | None:
        """World points of every pixel, from depth and cameras or else from the point map."""
        maps = world_points(self.prediction)
        return None if maps is None else maps[0]

    @property
    def cameras(self) -> Cameras | None:
        """Poses, and intrinsics in *original* pixels; those in model pixels are ``prediction.cameras``."""
        cameras = self.prediction.cameras
        return None if cameras is None else self.fit.original_cameras(cameras)

    def cloud(self) -> PointCloud | None:
        """The reliable points of all frames, coloured (`formats.clouds.fuse`)."""
        return fuse(self.images, self.prediction)


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode that takes a `Clip` as in training, or anything that is a video."""

    model: FourD
    info: ModelInfo

    @overload
    def __call__(self, frames: Clip) -> Prediction: ...
    @overload
    def __call__(self, frames: Frames, *, selection: Selection | None = None) -> Result: ...
    def __call__(self, frames: Clip | Frames, *, selection: Selection | None = None) -> Prediction | Result:
        """A batched `Clip` gives a batched `Prediction`; a video gives a `Result` of its frames.

        A video is cropped and resized as little as the model allows (`fit`). ``selection`` chooses frames of a file or
        folder (by default at most 24, spread evenly); arrays and lists are taken whole.

        Raises:
            UserError: an input of another kind, shape or range, or a file that does not decode.

        """
        if isinstance(frames, Clip):
            with torch.no_grad():
                return self.model(frames)
        if isinstance(frames, str | Path):
            return self._run(videos.read(Path(frames), selection))
        if selection is not None:
            raise UserError("selection chooses frames of a file; slice an array or list yourself")
        array, floats = as_frames(frames)
        times = np.arange(len(array)) / videos.IMAGE_RATE
        return self._run(Video(frames=array, times=times, total=len(array)), floats)

    def to(self, device: str | torch.device) -> LoadedModel:
        """The same model on a device (it is moved, not copied)."""
        return LoadedModel(self.model.to(device), self.info)

    def _run(self, video: Video, floats: Tensor | None = None) -> Result:
        height, width = video.frames.shape[1:3]
        chosen = fit((height, width), self.info.image_size, self.model.patch_size)
        images = resize(video.frames if floats is None else floats, chosen)
        device = next(self.model.parameters()).device
        times = torch.tensor(video.times, dtype=torch.float32)[None]
        clip = Clip(images=images[None], times=times, camera_ids=torch.zeros_like(times, dtype=torch.long))
        prediction = self(map_tensors(clip, lambda tensor: tensor.to(device)))
        return Result(
            prediction=_unbatch(prediction),
            images=images,
            frames=video.frames,
            times=[float(t) for t in video.times],
            fit=chosen,
        )


def as_frames(frames: object) -> tuple[NDArray[np.uint8], Tensor | None]:
    """Frames as uint8 ``f h w 3``, and floats as they came, so that none of their precision is lost.

    Raises:
        UserError: what it is instead of uint8 (f, h, w, 3), floats in [0, 1] (f, 3, h, w) or pictures of one size.

    """
    if isinstance(frames, Tensor):
        _check_floats(frames)
        return (frames.detach().cpu().permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy(), frames
    if isinstance(frames, Sequence):
        return _from_pictures(cast(Sequence[object], frames)), None
    if not isinstance(frames, np.ndarray):
        raise UserError(f"frames are a {type(frames).__name__}; give a path, an array, a tensor or a list of pictures")
    array = cast(NDArray[np.uint8], frames)
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise UserError(f"frames are {array.dtype} {array.shape}; give uint8 (frames, height, width, 3)")
    return array, None


def _check_floats(frames: Tensor) -> None:
    if not frames.is_floating_point() or frames.ndim != 4 or frames.shape[1] != 3 or 0 in frames.shape:
        raise UserError(
            f"frames are {frames.dtype} {tuple(frames.shape)}; give floats in [0, 1], (frames, 3, height, width)"
        )
    if not (frames.isfinite().all() and frames.min() >= 0 and frames.max() <= 1):
        raise UserError("frames hold values outside [0, 1]; divide by 255, or give uint8 (frames, height, width, 3)")


def _from_pictures(frames: Sequence[object]) -> NDArray[np.uint8]:
    pictures = [frame for frame in frames if isinstance(frame, Image.Image)]
    if not pictures or len(pictures) < len(frames):
        raise UserError("frames are a list of something else than PIL images, or empty; give pictures")
    sizes = {picture.size for picture in pictures}
    if len(sizes) > 1:
        raise UserError(f"pictures are of sizes {sorted(sizes)}; make all one size")
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def load(path: str | Path) -> LoadedModel:
    """The model in an exported folder or a run folder, ready to call; see `checkpoints.read`."""
    found = checkpoints.read(path)
    return LoadedModel(found.model, found.info)


def infer(
    model: LoadedModel,
    video: Path,
    out: Path,
    *,
    selection: Selection | None = None,
    overwrite: bool = False,
    page: Callable[[Result, Path], None] | None = None,
) -> Result:
    """Run a model on a video and write all it says into the folder ``out``, which appears whole or not at all.

    Args:
        model: from `load`.
        video: a file or a folder of images.
        out: is made; an earlier result there is replaced.
        selection: which frames.
        overwrite: replace whatever ``out`` holds.
        page: writes further files into the folder it is given, such as ``report.html``.

    Raises:
        UserError: bad input, or a folder that cannot be written.

    """
    result = model(video, selection=selection)
    with new_folder(out, "inference", overwrite=overwrite) as folder:
        write(result, folder)
        if page is not None:
            page(result, folder)
    return result


def write(result: Result, folder: Path) -> None:
    """Write ``cameras.json``, ``colmap/``, ``depth/``, ``points.ply`` and ``prediction.npz``: what the model gives."""
    cloud = result.cloud()
    if result.depth is not None:
        write_depth(folder / "depth", result.depth.numpy(), UNIT)
    if cloud is not None:
        write_ply(folder / "points.ply", cloud)
    if result.prediction.cameras is not None:
        _write_cameras(result, result.prediction.cameras, cloud, folder)
    arrays = _arrays(result)
    np.savez_compressed(folder / "prediction.npz", **arrays)  # pyright: ignore[reportArgumentType]


def _write_cameras(result: Result, cameras: Cameras, cloud: PointCloud | None, folder: Path) -> None:
    """Cameras as JSON, and two COLMAP projects, each with its images, which splatting tools open as they are."""
    names = [f"{i:06d}.png" for i in range(len(result.times))]
    table = CameraTable(
        times=result.times,
        images=names,
        model=cameras,
        model_size=result.fit.model,
        original=result.fit.original_cameras(cameras),
        original_size=result.fit.original,
        unit=UNIT,
    )
    write_cameras(folder / "cameras.json", table)
    few = None if cloud is None else cloud.thin(COLMAP_POINTS)
    seen = (result.images.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).numpy()
    for name, chosen, size, pictures in (
        ("model", table.model, table.model_size, seen),
        ("original", table.original, table.original_size, result.frames),
    ):
        project = folder / "colmap" / name
        write_colmap(project / "sparse" / "0", chosen, size, names, few)
        (project / "images").mkdir()
        for image, picture in zip(names, pictures, strict=True):
            Image.fromarray(picture).save(project / "images" / image, compress_level=3)


def _arrays(result: Result) -> dict[str, NDArray[np.generic]]:
    """What ``prediction.npz`` holds; fields that the model does not give are absent."""
    prediction, cameras = result.prediction, result.prediction.cameras
    tensors = {
        "depth": prediction.depth,
        "depth_confidence": prediction.depth_confidence,
        "points": prediction.points,
        "points_confidence": prediction.points_confidence,
        "world_from_camera": None if cameras is None else cameras.world_from_camera,
        "intrinsics": None if cameras is None else cameras.intrinsics,
        "intrinsics_original": None if cameras is None else result.fit.to_original(cameras.intrinsics),
    }
    arrays: dict[str, NDArray[np.generic]] = {k: v.float().numpy() for k, v in tensors.items() if v is not None}
    return {**arrays, "times": np.array(result.times)}


def _unbatch(prediction: Prediction) -> Prediction:
    """Drop the batch axis of one, on the CPU. Pose encodings, whose batch axis is the second, are a training matter."""
    rest = {**vars(prediction), "pose_encodings": None}
    return map_tensors(Prediction(**rest), lambda tensor: tensor[0].cpu())
