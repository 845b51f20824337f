"""The beginning of a fit out of a feed-forward model's pass: the Gaussians of a key frame's object, and cameras."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d import checkpoints, fields
from four_d.errors import UserError
from four_d.fitting.clip import FittedClip
from four_d.formats.splats import state_at
from four_d.geometry import pixel_centres, project
from four_d.inference import Known, LoadedModel, Request, Result
from four_d.objects import CanonicalObject, of_gaussians
from four_d.types import Cameras, Gaussians, map_tensors
from four_d.video.footage import Video

LEAST = 16
"""Least number of Gaussians of an object."""
SOLID = 0.8
"""Least opacity of an object's Gaussians: the others of the model's pictures, which help to cover it, are left out."""
INNER = 0.02
"""Share of the Gaussians on either side that does not count for the object's width and height."""


@dataclass(frozen=True, kw_only=True)
class Begun:
    """Object of one key frame and cameras of all frames, as a feed-forward model sees them."""

    gaussians: Gaussians
    """Unbatched, at rest, in the key frame's camera coordinates."""
    key: int
    """The key frame."""
    turns: Float[Tensor, "f 3 3"]
    """Rotation of each frame's camera from the key frame's coordinates (camera_from_key), which are the object's."""
    model: Path | None = None

    def provide(self, gaussians: int | None = None) -> CanonicalObject:
        """Centre and scale it: the axes stay those of the key frame's camera."""
        return of_gaussians(self.gaussians, str(self), gaussians=gaussians)

    def __str__(self) -> str:
        return f"the object of frame {self.key}, by {self.model}"


def named_model(name: str) -> Path:
    """Path of a reference model by its name, with or without its size, or of a model's folder. UserError otherwise."""
    known: list[str] = []
    for folder in checkpoints.REFERENCES:
        for each in checkpoints.references(folder):
            short = each.name.partition("-")[0]
            known.append(short)
            if name in (short, each.name) and (folder / each.name / checkpoints.CONFIG).is_file():
                return folder / each.name
    if Path(name).exists():
        return Path(name)
    choices = ", ".join(dict.fromkeys(known)) or "none is installed"
    raise UserError(f"init is {name!r}, which is neither a reference model ({choices}) nor a path; give one of these")


def begin(model: LoadedModel, poser: LoadedModel, clip: FittedClip, lens: Float[Tensor, "3 3"]) -> Begun:
    """Begin with the Gaussians of the frame in which the object is largest, and with the cameras of all frames.

    Args:
        model: makes Gaussians.
        poser: finds the cameras and, for a ``model`` that needs them, the depth; may be the same model.
        clip: frames and masks.
        lens: intrinsics of the frames, a hint for models that take them.

    Raises:
        UserError: a model without Gaussians, or without cameras, or too few Gaussians inside the mask.

    """
    if not (model.abilities.gives_gaussians and model.abilities.looks):
        raise UserError(f"{model.path} makes no Gaussians of videos; begin with another model (--init), or --object")
    if "cameras" not in poser.abilities.outputs or poser.abilities.required:
        raise UserError(f"{poser.path} finds no cameras by itself; name a model that does with --model")
    pinhole = (float(lens[0, 0]), float(lens[1, 1]), float(lens[0, 2]), float(lens[1, 2]))
    key = int(clip.masks.sum((1, 2)).argmax())
    whole = run(poser.without("gaussians", *poser.abilities.queried), clip, list(range(len(clip.times))), pinhole)
    assert whole.cameras is not None
    poses = whole.cameras.world_from_camera.float()
    rows = window_of(key, len(clip.times), model.abilities.times or model.info.frames)
    found = made(model, poser, clip, rows, pinhole)
    return Begun(
        gaussians=of_object(model, found, torch.from_numpy(clip.masks[key])),
        key=key,
        turns=poses[:, :3, :3].mT @ poses[key, :3, :3],
        model=model.path,
    )


def window_of(key: int, count: int, length: int) -> list[int]:
    """Frames of a window that begins with the key frame, forward or else backward; at an end as many as there are."""
    forward, backward = list(range(key, count))[:length], list(range(key, -1, -1))[:length]
    return forward if len(forward) >= len(backward) else backward


def made(
    model: LoadedModel, poser: LoadedModel, clip: FittedClip, rows: list[int], lens: tuple[float, float, float, float]
) -> Result:
    """Gaussians of a window; for a model that needs poses, by those and the depth of ``poser`` in the same window."""
    bare = model.without(*(model.abilities.queried - {"gaussians"}))
    if "poses" not in model.abilities.required:
        return run(bare, clip, rows, lens)
    first = run(poser.without("gaussians", *poser.abilities.queried), clip, rows, lens)
    assert first.cameras is not None
    cameras = Cameras(world_from_camera=first.cameras.world_from_camera, intrinsics=first.cameras.intrinsics)
    depth = None if first.depth is None or "depth" not in model.abilities.hints else first.depth.numpy()
    return bare(Request(video=part(clip, rows), known=Known(cameras=cameras, depth=depth), tracks=False))


def run(model: LoadedModel, clip: FittedClip, rows: list[int], lens: tuple[float, float, float, float]) -> Result:
    """Run a model on some of the frames."""
    known = Known(intrinsics=[lens]) if "intrinsics" in model.abilities.hints else None
    return model(Request(video=part(clip, rows), known=known, tracks=False))


def part(clip: FittedClip, rows: list[int]) -> Video:
    """Take some frames in that order, at seconds from the first: backward in time they are a film played backward."""
    times = np.abs(clip.times[rows] - clip.times[rows[0]])
    return Video(frames=list(clip.images[rows]), times=times, total=len(rows))


def of_object(model: LoadedModel, found: Result, mask: Bool[Tensor, "h w"]) -> Gaussians:
    """Gaussians of the first frame's pixels that the mask covers, at that frame's time.

    Those that the mask does not cover where they are, and those that are farther from the others' middle depth than the
    object is wide, are left out: pixels of its outline, or of what is behind it. UserError where fewer than `LEAST`
    are left.
    """
    everything, frames = found.prediction.gaussians, found.prediction.key_frames
    assert everything is not None
    rows, columns = found.fits.model
    if frames is None or 0 not in frames.tolist():
        raise UserError(
            f"{model.path} makes no Gaussians of the first frame's pixels; begin with another model (--init)"
        )
    place, pixels = frames.tolist().index(0), rows * columns
    inside = covers(mask, centres_in_frame(found, rows, columns))
    chosen = inside.nonzero()[:, 0] + place * pixels
    at_rest = state_at(everything, 0.0) if everything.offsets is not None else everything
    own = fields.take(at_rest, "n", chosen)
    if found.cameras is not None:
        places, z = project(own.means[None].double(), map_tensors(found.cameras, lambda tensor: tensor[:1].double()))
        own = fields.take(own, "n", covers(mask, places[0]) & (z[0] > 0))
    if len(own.means) >= LEAST:
        ordered = own.means.sort(dim=0).values
        last = len(own.means) - 1
        low, high = ordered[round(INNER * last)], ordered[round((1 - INNER) * last)]
        near = (own.means[:, 2] - ordered[last // 2, 2]).abs() <= (high - low)[:2].max()
        own = fields.take(own, "n", near)
    if len(own.means) < LEAST:
        raise UserError(
            f"{model.path} makes {len(own.means)} Gaussians of the object, which covers {int(inside.sum())} pixels of "
            "what it sees; give the object with --object, or another model with --init"
        )
    return replace(own, opacities=own.opacities.clamp_min(SOLID))


def centres_in_frame(found: Result, rows: int, columns: int) -> Float[Tensor, "p 2"]:
    """Centres of the model's pixels in the first frame's own pixels."""
    centres = pixel_centres(rows, columns, torch.zeros(())).flatten(0, 1)
    return found.fits.points_to_original(centres, torch.zeros(rows * columns, dtype=torch.long))


def covers(mask: Bool[Tensor, "h w"], pixels: Float[Tensor, "p 2"]) -> Bool[Tensor, "p"]:
    """Tell which places of a frame a mask covers."""
    height, width = mask.shape
    inside = ((pixels >= 0) & (pixels < torch.tensor([width, height]))).all(-1)
    at = pixels.nan_to_num(0, 0, 0).long()
    return inside & mask[at[:, 1].clamp(0, height - 1), at[:, 0].clamp(0, width - 1)]
