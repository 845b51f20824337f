"""Mask of what moves and tracks of the object, as a feed-forward model sees them in a fit's video.

Both are written as files of the kind that a user gives (`FitRequest.mask`, `FitRequest.tracks`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from four_d.checkpoints import best_reference
from four_d.errors import UserError
from four_d.fitting.clip import WINDOW, FittedClip
from four_d.geometry import pixel_centres
from four_d.inference import LoadedModel, load
from four_d.outputs import new_file, new_folder
from four_d.progress import progress
from four_d.types import LIKELY, Clip
from four_d.video.fit import Fit, Fits, fit, resize, sizes_of
from four_d.video.footage import Selection, footage, stream
from four_d.windows.cut import Cut
from four_d.windows.sliding import predict

LOGGER = logging.getLogger(__name__)

INTERVALS = (1, 2, 4, 8)
"""Frames between the neighbouring frames of a block (PAD3R's intervals)."""
ANCHORS = 12
"""Most frames from which points are followed."""
POINTS = 64
"""Most points of an anchor frame."""
MASK_INTERVALS = (1, 2, 4)
"""Frames between the neighbouring frames that the model sees at once, for the mask."""
FAINT = 0.2
"""Probability above which a pixel moves that hangs together with one that is likely to."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A whole video at the size that a model sees it."""

    model: LoadedModel
    clip: Clip
    """Unbatched, without hints."""
    fits: Fits
    """Fit of each frame to its original pixels."""
    video: Path

    @property
    def name(self) -> str:
        """Name of the model in messages."""
        return str(self.model.path)

    def window(self, rows: Sequence[int], times: Float[Tensor, "f"]) -> Clip:
        """Batch of one clip of some of the frames, on the model's device."""
        part = Clip(
            images=self.clip.images[list(rows)][None],
            times=times[None].float(),
            camera_ids=torch.zeros(1, len(rows), dtype=torch.long),
        )
        return self.model.here(part)


def find_model(path: Path | None, device: str = "auto") -> LoadedModel:
    """Load a model by its path, or the best reference model, which stderr names. UserError for one that needs hints."""
    if path is None:
        path, reference = best_reference()
        LOGGER.warning(f"no --model given: taking {path} ({reference.summary}; {reference.licence})")
    model = load(path).to(device)
    needs = sorted(model.abilities.required)
    if needs or not model.abilities.looks:
        lack = f"needs {' and '.join(needs)}" if needs else "is a scene of one video"
        raise UserError(f"{path} {lack}, and a fit has a video alone; name another model with --model")
    return model


def look(model: LoadedModel, video: Path, most: int) -> Seen:
    """Read up to ``most`` frames, those that a fit takes, at the model's size."""
    frames = stream(footage(video, silent=True), Selection(max_frames=most))
    plan = [range(start, min(start + WINDOW, len(frames))) for start in range(0, len(frames), WINDOW)]
    able, images, fits = model.abilities, list[Tensor](), list[Fits]()
    for part in frames.windows(plan):
        to = fit(sizes_of(part.frames), model.info.image_size, able.multiple, exact=able.image_size)
        images.append(resize(part.frames, to))
        fits.append(to)
    count = len(frames)
    clip = Clip(
        images=torch.cat(images),
        times=torch.from_numpy(frames.times).float(),
        camera_ids=torch.zeros(count, dtype=torch.long),
    )
    return Seen(model=model, clip=clip, fits=Fits.join(fits), video=video)


def write_masks(seen: Seen, out: Path) -> None:
    """Write what moves as a folder of PNGs of the original size, one a frame: 255 where it moves.

    UserError where the model predicts no such mask, or sees nothing that moves in any frame.
    """
    if "dynamic" not in seen.model.abilities.outputs:
        raise UserError(
            f"{seen.name} does not say what moves, so that no mask follows from it; give the object's with --mask, or "
            "another model with --model"
        )
    found = moving(seen)
    if not bool(found.any()):
        raise UserError(
            f"{seen.name} sees nothing that moves in {seen.video}; give the object's mask with --mask, or another "
            "model with --model"
        )
    with new_folder(out, "masks") as folder:
        for index, (mask, own) in enumerate(zip(found, seen.fits.of_frames, strict=True)):
            Image.fromarray(to_original(mask.numpy(), own)).save(folder / f"{index:05d}.png")


@torch.no_grad()
def moving(seen: Seen) -> Bool[Tensor, "f r c"]:
    """Pixels of what moves: those likely to, and fainter ones that hang together with them (`grow`).

    The model looks at frames 1, 2 and 4 apart, since what rests between neighbouring frames moves between distant ones;
    the largest probability of a pixel counts.
    """
    able, count = seen.model.abilities, len(seen.clip.times)
    model = seen.model.without(*(able.outputs - {"dynamic", "dynamic_logits"}))
    length = able.frames or max(seen.model.info.frames, 2)
    blocks = [
        [start + interval * index for index in part]
        for interval in MASK_INTERVALS
        for start in range(min(interval, count))
        for part in Cut(frames=length, overlap=length // 2).plan(len(range(start, count, interval)))
    ]
    likely = torch.zeros(count, *seen.fits.model)
    with progress("masks", len(blocks), "block") as bar:
        for rows in blocks:
            found = model(seen.window(rows, seen.clip.times[rows] - seen.clip.times[rows[0]])).dynamic
            assert found is not None
            likely[rows] = likely[rows].maximum(found[0].float().cpu())
            bar.advance()
    return grow(likely > LIKELY, likely > FAINT)


def grow(seeds: Bool[Tensor, "f r c"], within: Bool[Tensor, "f r c"]) -> Bool[Tensor, "f r c"]:
    """Seeds, and all that hangs together with them through neighbouring pixels and frames ``within`` a region."""
    found = seeds & within
    while True:
        near = functional.max_pool3d(found.float()[None, None], 3, stride=1, padding=1)[0, 0] > 0
        wider = near & within
        if torch.equal(wider, found):
            return found
        found = wider


def to_original(mask: Bool[np.ndarray, "r c"], own: Fit) -> NDArray[np.uint8]:
    """Mask of a frame at its original size, 255 where it is set; nothing is where the model does not look."""
    height, width = own.original
    y = np.floor((np.arange(height) + 0.5 - own.top) * own.scale).astype(int)
    x = np.floor((np.arange(width) + 0.5 - own.left) * own.scale).astype(int)
    rows, columns = mask.shape
    inside = ((y >= 0) & (y < rows))[:, None] & ((x >= 0) & (x < columns))
    found = mask[y.clip(0, rows - 1)[:, None], x.clip(0, columns - 1)] & inside
    return found.astype(np.uint8) * np.uint8(255)


def write_tracks(seen: Seen, clip: FittedClip, out: Path) -> int:
    """Write tracks of the object in CoTracker's form, in original pixels; returns their number.

    Points of the object in anchor frames are followed forward and backward in time, in blocks of as many frames as the
    model was trained on, `INTERVALS` apart. A point counts as seen where the model says so and the object's mask is.

    UserError where the model follows no points, or none is seen in a second frame.
    """
    able = seen.model.abilities
    if not able.follows:
        raise UserError(f"{seen.name} follows no points; leave out --tracks auto, or name another model with --model")
    blocks = plan_blocks(
        np.asarray(clip.masks.any((1, 2))), able.frames or max(seen.model.info.frames, 2), exact=able.frames
    )
    pixels, visible = list[Tensor](), list[Tensor]()
    with progress("tracks", len(blocks), "block") as bar:
        for rows in blocks:
            found = follow_block(seen, clip, rows)
            if found is not None:
                pixels.append(found[0])
                visible.append(found[1])
            bar.advance()
    if not pixels:
        raise UserError(
            f"{seen.name} follows no point of the object in {seen.video}; leave out --tracks auto, or give the file "
            "of a tracker with --tracks"
        )
    with new_file(out) as partial, partial.open("wb") as file:
        np.savez_compressed(
            file,
            tracks=torch.cat(pixels).movedim(0, 1).numpy(),
            visibility=torch.cat(visible).T.numpy(),
        )
    return sum(len(each) for each in pixels)


def plan_blocks(shown: Bool[np.ndarray, "f"], length: int, *, exact: int | None = None) -> list[list[int]]:
    """Frames of every block, the anchor first: anchors are evenly spaced among the frames that show the object.

    Blocks at the ends of the video are shorter, or left out where a model takes ``exact`` so many frames.
    """
    count, there = len(shown), np.flatnonzero(shown)
    anchors = there[np.unique(np.linspace(0, len(there) - 1, min(ANCHORS, len(there))).round().astype(int))]
    blocks: list[list[int]] = []
    for anchor in anchors.tolist():
        for step in (way * interval for interval in INTERVALS for way in (1, -1)):
            rows = list(range(anchor, count if step > 0 else -1, step))[:length]
            if len(rows) >= (exact or 2):
                blocks.append(rows)
    return blocks


def follow_block(
    seen: Seen, clip: FittedClip, rows: list[int]
) -> tuple[Float[Tensor, "n t 2"], Float[Tensor, "n t"]] | None:
    """Tracks of the object's points from the first of some frames, in original pixels, through all of the video.

    Frames outside the block are unseen. None where no point is seen in a second frame.
    """
    queries = object_points(seen, clip, rows[0])
    if not len(queries):
        return None
    times = (seen.clip.times[rows] - seen.clip.times[rows[0]]).abs()
    window = seen.model.here(replace(seen.window(rows, times), query_points=queries[None]))
    prediction, tracked = predict(seen.model.without("gaussians", "dynamic"), window, tracks=True)
    if tracked is not None and tracked.pixels is not None:
        places, likely = tracked.pixels.cpu().float(), tracked.visible.cpu().float()
    else:
        assert prediction.pixel_tracks is not None
        places, likely = prediction.pixel_tracks[0].movedim(0, 1).cpu().float(), torch.ones(len(queries), len(rows))
        if prediction.pixel_tracks_visible is not None:
            likely = prediction.pixel_tracks_visible[0].T.cpu().float()
    places[:, 0], likely[:, 0] = queries[:, 1:], 1.0  # by definition
    index = torch.tensor(rows)
    originals = seen.fits.points_to_original(places, index)
    likely = likely * on_object(clip, originals, index)
    kept = (likely[:, 1:] > LIKELY).any(-1)
    if not bool(kept.any()):
        return None
    whole = torch.full((int(kept.sum()), len(clip.times), 2), torch.nan)
    shown = torch.zeros(whole.shape[:2])
    whole[:, index], shown[:, index] = originals[kept], likely[kept]
    return whole, shown


def object_points(seen: Seen, clip: FittedClip, frame: int) -> Float[Tensor, "n 3"]:
    """Up to `POINTS` pixels of the object in one frame, evenly chosen, as (0, x, y) in the model's pixels."""
    mask = torch.from_numpy(clip.masks[frame])
    pixels = pixel_centres(mask.shape[0], mask.shape[1], torch.zeros(()))[mask]
    index = torch.tensor(frame).expand(len(pixels))
    places = seen.fits.points_to_model(clip.fits.points_to_original(pixels, index), index)
    rows, columns = seen.fits.model
    places = places[((places > 0) & (places < torch.tensor([columns, rows]))).all(-1)]
    chosen = torch.linspace(0, len(places) - 1, min(POINTS, len(places))).round().long()
    return torch.cat([torch.zeros(len(chosen), 1), places[chosen]], dim=-1)


def on_object(clip: FittedClip, pixels: Float[Tensor, "n k 2"], frames: Int[Tensor, "k"]) -> Bool[Tensor, "n k"]:
    """Tell which original pixels of frames are on the object's mask there."""
    places = clip.fits.points_to_model(pixels, frames.expand(pixels.shape[:2])).nan_to_num(-1, -1, -1)
    rows, columns = clip.masks.shape[1:]
    inside = ((places >= 0) & (places < torch.tensor([columns, rows]))).all(-1)
    column, row = places.long().clamp_min(0).unbind(-1)
    return inside & torch.from_numpy(clip.masks)[frames, row.clamp_max(rows - 1), column.clamp_max(columns - 1)]
