"""Loaded models, for clips and videos: `load`, call, `infer`."""

from __future__ import annotations

import dataclasses
import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Unpack, overload

import torch

from four_d import checkpoints, hub, programs
from four_d.abilities import UNITS, Abilities, Model, ModelModule
from four_d.checkpoints import ModelInfo
from four_d.constants import move
from four_d.devices import Precision, device_of, told_when_full, usable
from four_d.errors import UserError
from four_d.inference.request import Asked, Request
from four_d.inference.result import Result
from four_d.inference.sinks import Folder, Memory
from four_d.inference.stream import run
from four_d.memory import check_fits
from four_d.outputs import check_folder, new_folder
from four_d.tracking import CLEARLY, SPAN, moving
from four_d.types import Clip, Prediction, map_tensors
from four_d.video.inputs import Frames
from four_d.viewer import report

LOGGER = logging.getLogger(__name__)

KIND = "inference"
"""Kind of result folders (`outputs.new_folder`)."""
_FITTING: set[tuple[str, str, str, tuple[int, ...], int]] = set()
"""Combinations of device, model and clip that fit into memory, checked once so that no run is refused halfway."""


@dataclass(frozen=True)
class LoadedModel(Model):
    """Model in evaluation mode that takes a `Clip`, as in training, or a video in any form."""

    model: ModelModule
    info: ModelInfo
    path: Path | None = None
    """File or folder of the model, if any."""

    @property
    def abilities(self) -> Abilities:
        """Abilities of the model, with its training's unit of length."""
        return dataclasses.replace(
            self.model.abilities,
            trained_frames=self.info.frames,
            normalisation=self.info.normalisation,
            precision=self.model.precision,
        )

    @overload
    def __call__(self, frames: Clip, /) -> Prediction: ...
    @overload
    def __call__(self, frames: Frames | Request, /, **asked: Unpack[Asked]) -> Result: ...
    def __call__(self, frames: Clip | Frames | Request, /, **asked: Unpack[Asked]) -> Prediction | Result:
        """Predict a batched `Clip` (batched `Prediction` on the model's device) or a video (`Result` of its frames).

        Keywords beside a video are the fields of a `Request`. A video is cropped and resized as little as the model
        allows (`fit`). The result holds all frames of a long video in memory; `infer` writes them to disk instead.

        Raises:
            UserError: an input of another kind, shape or range, a file that does not decode, a mask, points or hints
                for a model that does not take them, missing hints that the model requires, points without tracks.

        """
        if isinstance(frames, Clip):
            if asked:
                raise UserError(
                    "a clip brings its own mask, points and hints; "
                    "set Clip.dynamic, Clip.query_points, Clip.cameras and Clip.depth"
                )
            self.check_fits(frames)
            with torch.no_grad():
                return self.model(self.here(frames))
        request = frames if isinstance(frames, Request) else Request(video=frames, **asked)
        return run(self, request, Memory())

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """Yield one prediction per query time of a batched clip; see `Model.passes`. `TooLarge` as in `check_fits`."""
        self.check_fits(clip)
        return self.model.passes(self.here(clip))

    def check_fits(self, clip: Clip) -> None:
        """Raise `TooLarge` if a pass over a batched clip would not fit into memory; checked once per kind of clip.

        Clips no larger than in training are not checked.
        """
        pixels = clip.images.shape[:2].numel() * clip.images.shape[-2:].numel()
        if not self.abilities.outputs or pixels <= self.info.frames * math.prod(self.info.image_size):
            return
        queries = 1 if clip.query_times is None else min(clip.query_times.shape[1], 2)
        kind = (
            str(self.device),
            f"{self.info.model} {sorted(self.abilities.outputs)}",
            str(self.model.precision),
            tuple(clip.images.shape),
            queries,
        )
        if kind not in _FITTING:
            check_fits(self.model, clip)
            _FITTING.add(kind)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return device_of([*self.model.parameters(), *self.model.buffers()])

    def here(self, clip: Clip) -> Clip:
        """Move a clip to the model's device."""
        device = self.device
        return map_tensors(clip, lambda tensor: move(tensor, device))

    def to(self, device: str | torch.device, precision: Precision | None = None) -> LoadedModel:
        """Move the model (no copy) to a device and set the precision of its arithmetic.

        Args:
            device: name, or "auto" (`devices.usable`).
            precision: None leaves it unchanged; a model just loaded follows torch's settings and autocast.

        Raises:
            UserError: no such device, or the model does not fit into its memory.

        """
        with told_when_full("choose --device cpu, or a GPU with more memory"):
            moved = self.model.to(usable(str(device)))
        if precision is not None:
            moved.set_precision(precision)
        return dataclasses.replace(self, model=moved)

    @property
    def unit(self) -> str:
        """Unit of length of results, in words, if no poses are given."""
        return UNITS[self.info.normalisation]

    def without(self, *outputs: str) -> LoadedModel:
        """Copy of the model without these output fields (`Model.without`).

        Without ``gaussians`` it takes any number of frames, unless it is a program (`programs`), whose number is fixed.
        """
        return dataclasses.replace(self, model=self.model.without(*outputs))


def load(path: str | Path) -> LoadedModel:
    """Load a model, ready to call: an exported folder or a run folder (`checkpoints.read`), a program, ``model.pt2`` of
    an exported folder (`programs.read`), or ``org/name`` of the Hugging Face hub (`hub.fetch`).

    What is here wins over the hub: a name is looked for there only if neither it nor its ``org`` is a file or folder.
    """
    if hub.is_id(path):
        folder = hub.fetch(str(path))
        LOGGER.warning(f"{path} is no folder here: taken from the hub, commit {folder.name[:12]}")
        path = folder
    if Path(path).suffix == checkpoints.PROGRAM_SUFFIX:
        return LoadedModel(*programs.read(Path(path)), Path(path))
    saved = checkpoints.read(path)
    return LoadedModel(saved.model, saved.info, Path(path))


def check_output(out: Path, request: Request, model: Path | None, *, overwrite: bool) -> None:
    """Raise UserError if a result must not be written to ``out``: an input, or a folder with foreign files."""
    check_folder(out, KIND, inputs=[*request.files, model], overwrite=overwrite)


@told_when_full(
    "let the model see fewer frames at once (--window), take --precision bf16, or --device cpu with more memory"
)
def infer(
    model: LoadedModel,
    video: Frames | Request,
    out: str | Path,
    *,
    static_points: bool = False,
    novel_views: bool = True,
    overwrite: bool = False,
    page: Callable[[Result, Path], None] | Literal["report"] | None = "report",
    **asked: Unpack[Asked],
) -> Result:
    """Run a model on a video and write all outputs into the folder ``out``, atomically.

    Args:
        model: from `load`.
        video: a video, or a whole `Request`.
        out: folder to create, apart from all inputs; an earlier result there is replaced.
        static_points: leave moving points out of ``points.ply`` and of the COLMAP projects.
        novel_views: render the Gaussians into ``novel_views.mp4``: up to 250 frames, which take a while.
        overwrite: replace also another result of four_d there, or a modified one (`outputs.check_folder`).
        page: "report" writes ``report.html`` (`viewer.report`), if the extra `viz` is installed; a function instead
            writes any files into the folder that it is given; None writes nothing.
        asked: fields of the `Request`, unless ``video`` is one.

    Returns:
        The result; for a video longer than a window, only some of its frames, since one window is held at a time.

    Raises:
        UserError: a folder that must not or cannot be written (before anything is read), or bad input.

    """
    request = video if isinstance(video, Request) else Request(video=video, **asked)
    with new_folder(Path(out), KIND, inputs=[*request.files, model.path], overwrite=overwrite) as folder:
        result = run(model, request, Folder(folder, static_points=static_points, novel_views=novel_views))
        if page == "report":
            _write_report(folder / "report.html", result, model, request, static_points=static_points)
        elif page is not None:
            page(result, folder)
    _tell_if_still(result)
    return result


def _write_report(path: Path, result: Result, model: LoadedModel, request: Request, *, static_points: bool) -> None:
    if importlib.util.find_spec("viser") is None:
        LOGGER.warning("no report.html: the page takes viser; pip install 'four_d[viz]'")
        return
    names = [Path(each).name for each in request.videos if isinstance(each, str | Path)]
    sizes = {"model trained at": model.info.image_size, "sees this video at": result.fits.model}
    report(
        path,
        result,
        title=", ".join(names) or "video",
        summary=f"Seen by {model.path or model.info.name or 'a model'}",
        facts=[(name, f"{width} × {height}") for name, (height, width) in sizes.items()],
        cloud=result.cloud(static=static_points),
        tracks=result.track_table,
        selected=range(0 if result.queries is None else len(result.queries)),
        gaussians=result.gaussians,
    )


def _tell_if_still(result: Result) -> None:
    if result.tracks is not None and len(result.tracks.times) > 1 and not moving(result.tracks).any():
        least = max(SPAN, CLEARLY * result.tracks.jitter)
        told = f"nothing moves: no point that was followed spans {least:.0%} of its distance to the first camera"
        LOGGER.warning(told)
