"""From a video and an object to a scene: the clip, the tracks, the beginning, the run, and what is delivered."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from four_d import checkpoints, config, fields
from four_d.config import RunConfig
from four_d.fitting.clip import FittedClip, write_clip
from four_d.fitting.request import FitRequest
from four_d.fitting.tracks import write_fit_tracks
from four_d.geometry import make_pose
from four_d.metrics.comparison import Comparison
from four_d.metrics.metric import Metric
from four_d.objects import read_object
from four_d.outputs import new_folder
from four_d.rendering import render
from four_d.scene import DeformableSceneConfig, initial_scene
from four_d.training.run import TrainResult, train

LOGGER = logging.getLogger(__name__)

CONFIG = "pad3r"
CLIP, START, RUN, TRACKS = "clip", "start", "scene", "tracks.npz"
"""Names in a fit's folder."""
FILLS = 0.8
"""Share of the frame's shorter side that the object's diameter fills in the cameras of the beginning."""


def frame_psnr(video: Comparison) -> float | None:
    """PSNR of a scene's own frames, with black where the object is not."""
    prediction, truth = video.prediction, video.targets
    if prediction.gaussians is None or prediction.cameras is None or truth.dynamic is None:
        return None
    gaussians, cameras = fields.stack([prediction.gaussians]), fields.stack([prediction.cameras])
    with torch.no_grad():
        size = (truth.images.shape[-2], truth.images.shape[-1])
        shown = render(gaussians, cameras, truth.times[None], size).colour[0]
    error = float((shown.clamp(0, 1) - truth.images * truth.dynamic[:, None]).square().mean())
    return -10 * math.log10(max(error, 1e-10))


FRAME_PSNR = Metric("frame_psnr", frame_psnr.__doc__ or "", unit="dB", better="higher", compute=frame_psnr)


def fit(request: FitRequest, out: Path, overrides: Sequence[str] = ()) -> TrainResult:
    """Fit a scene, going on where an earlier call with the same request stopped.

    ``out`` gets the clip as shards, the tracks, the weights of the beginning, and the run, a model like any other.

    Args:
        request: video, object, and how long.
        out: the fit's folder.
        overrides: ``key=value`` of the run's config (configs/pad3r.yaml).

    Raises:
        UserError: inputs that cannot be read or do not belong together, or a folder of something else.

    """
    out.mkdir(parents=True, exist_ok=True)
    clip = write_clip(request.video, request.mask, request.size, out / CLIP)
    if request.tracks is not None:
        write_fit_tracks(request.tracks, clip.times, clip.fits, out / TRACKS)
    scene = write_start(request, clip, out / START)
    return train(run_config(request, scene, out, overrides), metrics=[FRAME_PSNR])


def write_start(request: FitRequest, clip: FittedClip, out: Path) -> DeformableSceneConfig:
    """Write the scene of the beginning as an export, and return its config."""
    found = read_object(request.object, gaussians=request.gaussians, up=request.up)
    count = len(clip.times)
    model = DeformableSceneConfig(frames=count, gaussians=len(found.gaussians.means), image_size=clip.fits.model)
    lenses = pinhole(request.focal, clip.fits.model).expand(count, 3, 3)
    poses = from_the_front(lenses[0], clip.fits.model).expand(count, 4, 4)
    torch.manual_seed(request.seed)
    scene = initial_scene(model, found.gaussians, torch.from_numpy(clip.times).float(), poses, lenses)
    info = checkpoints.ModelInfo(model=model, image_size=model.image_size, frames=count, name=request.video.stem)
    with new_folder(out, "export", overwrite=True) as folder:
        save_file(
            {name: value.contiguous() for name, value in scene.state_dict().items()}, folder / checkpoints.WEIGHTS
        )
        checkpoints.write_info(folder / checkpoints.CONFIG, info)
    return model


def pinhole(focal: float, size: tuple[int, int]) -> Float[Tensor, "3 3"]:
    """Intrinsics with the principal point in the middle; ``focal`` in units of the longer side."""
    length = focal * max(size)
    return torch.tensor([[length, 0, size[1] / 2], [0, length, size[0] / 2], [0, 0, 1]])


def from_the_front(lens: Float[Tensor, "3 3"], size: tuple[int, int]) -> Float[Tensor, "4 4"]:
    """object_from_camera of a camera before the object, in which it fills the frame."""
    distance = 2 * float(lens[0, 0]) / (FILLS * min(size))
    return make_pose(torch.eye(3), torch.tensor([0.0, 0.0, -distance]))


def run_config(request: FitRequest, scene: DeformableSceneConfig, out: Path, overrides: Sequence[str]) -> RunConfig:
    """Config of the run: configs/pad3r.yaml with this video's sizes."""
    rows, columns = scene.image_size
    given = [
        f"folder={out}",
        f"name={RUN}",
        f"seed={request.seed}",
        f"weights.path={out / START}",
        f"model.frames={scene.frames}",
        f"model.gaussians={scene.gaussians}",
        f"model.image_size=[{rows},{columns}]",
        f"data.image_size=[{rows},{columns}]",
        f"data.sources.clip.path={out / CLIP}",
        f"data.validation.clip.path={out / CLIP}",
        f"loop.max_steps={request.steps}",
    ]
    if request.tracks is not None:
        given += ["losses.tracks.kind=tracked_pixels", f"losses.tracks.file={out / TRACKS}"]
    return config.load([CONFIG], [*given, *overrides])
