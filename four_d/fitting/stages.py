"""From a video and an object to a scene: the clip, the tracks, the beginning, the run, and what is delivered."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from four_d import checkpoints, config, fields
from four_d.config import RunConfig
from four_d.data.shards import shard_done
from four_d.errors import UserError
from four_d.fitting.clip import FittedClip, write_clip
from four_d.fitting.feed_forward import Begun, begin, named_model
from four_d.fitting.request import AUTO, FitRequest
from four_d.fitting.seen import Seen, find_model, look, write_masks, write_tracks
from four_d.fitting.tracks import write_fit_tracks
from four_d.formats.splats import write_ply
from four_d.geometry import make_pose
from four_d.inference import Request, infer, load
from four_d.metrics.comparison import Comparison
from four_d.metrics.metric import Metric
from four_d.objects import read_object
from four_d.outputs import keep_apart, new_file, new_folder, write_json
from four_d.pose_net import follow_object, place_object
from four_d.rendering import render
from four_d.scene import DeformableSceneConfig, initial_scene
from four_d.training.run import TrainResult, train
from four_d.video.footage import Selection

LOGGER = logging.getLogger(__name__)

CONFIG = "pad3r"
CLIP, POSES, START, RUN, TRACKS, REQUEST, RESULT = (
    "clip",
    "pose_net",
    "start",
    "scene",
    "tracks.npz",
    "fit.json",
    "result",
)
"""Names in a fit's folder."""
OF_TRACKS = ("tracks", "flow")
"""Losses of configs/pad3r.yaml that need tracks."""
OBJECT = "object.ply"
"""Name of an object that no file of the user's gives."""
MODEL_MASKS, MODEL_TRACKS = "model_masks", "model_tracks.npz"
"""Names of what a model sees, where no mask or no tracks are given."""
POSE_SIZE = 64
"""Side of the pictures that the pose network sees."""
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

    ``out`` gets the clip as shards, the tracks, the pose network, the weights of the beginning, and the run, a model
    like any other.

    Args:
        request: video, object, and how long.
        out: the fit's folder, apart from the inputs.
        overrides: ``key=value`` of the run's config (configs/pad3r.yaml).

    Raises:
        UserError: inputs that cannot be read or do not belong together, or a folder of something else or of another
            request.

    """
    keep_apart(out, request.files)
    check_model(request)
    check_request(request, out)
    if not is_written(request, out):  # else the video is not decoded again
        stopped = write_start(request, write_inputs(request, out), out, overrides)
        if stopped is not None:
            return stopped
    scene = checkpoints.read_info(out / START / checkpoints.CONFIG).model
    assert isinstance(scene, DeformableSceneConfig)
    return train(run_config(request, scene, out, overrides), metrics=[FRAME_PSNR])


def check_model(request: FitRequest) -> None:
    """UserError for a ``model`` that nothing asks: all is given, and ``init`` finds its own cameras."""
    asked = request.mask is None or request.tracks == AUTO
    if request.model is None or request.init is None or asked:
        return
    named = named_model(request.init)
    if not load(named).abilities.required:
        raise UserError(
            f"{named} finds the cameras of --init by itself, and the mask is given: nothing asks --model "
            f"{request.model}; leave it out, or the mask"
        )


def is_written(request: FitRequest, out: Path) -> bool:
    """Tell if an earlier call has written all that the run reads: it writes the beginning last."""
    tracked = request.tracks is None or (out / TRACKS).is_file()
    return tracked and shard_done(out / CLIP, 0) and (out / START / checkpoints.CONFIG).is_file()


def write_inputs(request: FitRequest, out: Path) -> FittedClip:
    """Write the clip and its tracks; a mask and tracks of the model first, where they are asked for and not there."""
    seen: Seen | None = None
    mask, tracks = request.mask, request.tracks
    if mask is None:
        mask = out / MODEL_MASKS
        if not mask.is_dir():
            seen = look(find_model(request.model, request.device), request.video, request.max_frames)
            write_masks(seen, mask)
    clip = write_clip(request.video, mask, request.size, out / CLIP, most=request.max_frames)
    if tracks == AUTO:
        tracks = out / MODEL_TRACKS
        if not tracks.is_file():
            seen = seen or look(find_model(request.model, request.device), request.video, request.max_frames)
            write_tracks(seen, clip, tracks)
    if isinstance(tracks, Path):
        write_fit_tracks(tracks, clip, out / TRACKS)
    return clip


def deliver(request: FitRequest, out: Path) -> None:
    """Write ``out/result`` as ``four-d infer`` does: cameras, Gaussians, pictures of new views, the report page."""
    infer(
        load(out / RUN).to(request.device),
        Request(video=request.video, selection=Selection(max_frames=request.max_frames)),
        out / RESULT,
        overwrite=True,
    )


def check_request(request: FitRequest, out: Path) -> None:
    """Record the request in ``out``. UserError if another one is recorded there, or other files are."""
    file = out / REQUEST
    if file.is_file():
        before = cast("dict[str, object]", json.loads(file.read_text()))
        for name, value in request.same_inputs().items():
            earlier = before.get(name, str(getattr(FitRequest, name, None)))  # a choice that is newer than the fit
            if earlier != value:
                raise UserError(f"{out} holds a fit with {name} {earlier}, and now it is {value}; choose another --out")
        return
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} holds files and no fit; choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_json(file, request.same_inputs())


def write_start(request: FitRequest, clip: FittedClip, out: Path, overrides: Sequence[str] = ()) -> TrainResult | None:
    """Write the scene of the beginning as an export; the pose network's result instead, if a signal stopped it."""
    count = len(clip.times)
    lenses = pinhole(request.focal, clip.fits.model).expand(count, 3, 3)
    begun = None if request.init is None else begin_by(request, request.init, clip, lenses[0])
    file = object_file(request, begun, out)
    found = read_object(file, gaussians=request.gaussians, up=request.up)
    if found.gaussians.harmonics.shape[1] > 1:
        LOGGER.warning(f"{file}: colours that depend on the direction are left out, since a scene turns the world")
    poses = from_the_front(lenses[0], clip.fits.model).expand(count, 4, 4)
    if request.trained:
        network = request.pose_net
        if network is None:
            result = train(pose_config(request, file, out))
            if result.exit_code:
                return result
            network = out / POSES
        images = torch.from_numpy(clip.images).permute(0, 3, 1, 2).float() / 255
        path = follow_object(
            load(network), found.gaussians, images, torch.from_numpy(clip.masks), lenses, size=POSE_SIZE
        )
        poses = path.cameras.world_from_camera
    elif begun is not None:
        placed = place_object(found.gaussians, begun.turns, torch.from_numpy(clip.masks), lenses, size=POSE_SIZE)
        poses = placed.world_from_camera
    sizes = DeformableSceneConfig(frames=count, gaussians=len(found.gaussians.means), image_size=clip.fits.model)
    model = run_config(request, sizes, out, overrides).model
    if not isinstance(model, DeformableSceneConfig):
        raise UserError("a fit's model is a scene; leave model.kind as it is")
    torch.manual_seed(request.seed)
    scene = initial_scene(model, found.gaussians, torch.from_numpy(clip.times).float(), poses, lenses)
    info = checkpoints.ModelInfo(model=model, image_size=model.image_size, frames=count, name=request.video.stem)
    with new_folder(out / START, "export") as folder:
        weights = {name: value.contiguous() for name, value in scene.state_dict().items()}
        save_file(weights, folder / checkpoints.WEIGHTS)
        checkpoints.write_info(folder / checkpoints.CONFIG, info)
    return None


def begin_by(request: FitRequest, name: str, clip: FittedClip, lens: Float[Tensor, "3 3"]) -> Begun:
    """Run the feed-forward model of that name, with the cameras of another one if it needs them."""
    model = load(named_model(name)).to(request.device)
    poser = find_model(request.model, request.device) if model.abilities.required else model
    return begin(model, poser, clip, lens)


def object_file(request: FitRequest, begun: Begun | None, out: Path) -> Path:
    """File of the object: the user's, or one in the fit's folder of what another provider makes."""
    if isinstance(request.object, Path):
        return request.object
    provider = begun if request.object is None else request.object
    assert provider is not None
    with new_file(out / OBJECT) as partial:
        write_ply(partial, provider.provide(request.gaussians).gaussians)
    return out / OBJECT


def pose_config(request: FitRequest, file: Path, out: Path) -> RunConfig:
    """Config of the pose network's run: configs/pose_net.yaml with this object."""
    return config.load(
        ["pose_net"],
        [
            f"folder={out}",
            f"name={POSES}",
            f"seed={request.seed}",
            f"data.sources.renders.path={file}",
            f"data.sources.renders.size={POSE_SIZE}",
            f"data.sources.renders.up={'null' if request.up is None else request.up}",
            f"loop.max_steps={request.trained}",
            f"loop.accelerator={request.device}",
        ],
    )


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
        f"loop.accelerator={request.device}",
    ]
    given += [
        f"losses.{name}=null" if request.tracks is None else f"losses.{name}.file={out / TRACKS}" for name in OF_TRACKS
    ]
    return config.load([CONFIG], [*given, *overrides])
