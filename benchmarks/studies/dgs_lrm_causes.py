"""Limits of new views of what moves: depth, motion, or sharpness. Parts of a model's Gaussians are replaced by truth.

    python -m benchmarks.studies.dgs_lrm_causes [--run deformable-0] [--clips 24]

Takes a run of `make study-dgs-lrm` and the study's held-out videos. Each Gaussian is of a pixel of a key frame, whose
true depth and motion are known. Prints one JSON object: for each row the mean PSNR in dB over all views, and over what
moves in them.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch
from torch import Tensor

from benchmarks.studies.dgs_lrm import STUDY
from benchmarks.studies.dgs_lrm_pictures import HELD_OUT
from four_d import checkpoints, geometry
from four_d.evaluation import Videos
from four_d.evaluation.novel import copy_scores, novel_scores
from four_d.progress import progress
from four_d.rendering.harmonics import DEGREE_0
from four_d.types import Clip, Gaussians, Prediction, Segment, map_tensors, same_time

WIDTH = 0.6
"""Standard deviation in pixels; 0.35 and 1 are within 0.1 dB of it."""
PARTS = ("means", "scales", "opacities", "harmonics", "offsets")
METRICS = ("render_psnr", "render_psnr_dynamic")


def true_motion(clip: Clip, frames: Tensor, times: Tensor) -> Tensor:
    """Motion t n 3 of the pixels of ``frames`` (k) to ``times`` (t)."""
    assert clip.motion is not None
    assert clip.query_times is not None
    queries = same_time(times[:, None], clip.query_times).float().argmax(1)
    return clip.motion[queries][:, frames].flatten(1, 3)


def at_true_depth(gaussians: Gaussians, clip: Clip, frames: Tensor) -> Gaussians:
    """Gaussians where the pixels of ``frames`` (k) truly are, as wide as before in these frames' pictures."""
    assert clip.depth is not None
    assert clip.valid is not None
    assert clip.cameras is not None
    places = geometry.unproject(clip.depth, clip.cameras)[frames].flatten(0, 2)
    centres = clip.cameras.world_from_camera[frames, :3, 3].repeat_interleave(clip.depth[0].numel(), dim=0)
    known = clip.valid[frames].flatten()
    lengths = [(each - centres).norm(dim=-1).clamp_min(1e-6) for each in (places, gaussians.means)]
    factor = torch.where(known, lengths[0] / lengths[1], 1.0)
    return replace(
        gaussians,
        means=torch.where(known[:, None], places, gaussians.means),
        scales=gaussians.scales * factor[:, None],
    )


def sharper(gaussians: Gaussians, width: float, layers: int) -> Gaussians:
    """Gaussians ``width`` times as wide, each as opaque as so many of it behind each other."""
    return replace(gaussians, scales=gaussians.scales * width, opacities=1 - (1 - gaussians.opacities) ** layers)


def pixels_themselves(gaussians: Gaussians, clip: Clip, frames: Tensor) -> Gaussians:
    """Gaussians of the pixels' own colours, most opaque, round, and about a pixel wide where they are."""
    assert clip.cameras is not None
    assert clip.valid is not None
    count = clip.images[0, 0].numel()
    centres = clip.cameras.world_from_camera[frames, :3, 3].repeat_interleave(count, dim=0)
    focal = clip.cameras.intrinsics[frames, 0, 0].repeat_interleave(count)
    width = WIDTH * (gaussians.means - centres).norm(dim=-1) / focal
    colours = clip.images[frames].movedim(1, -1).flatten(0, 2)
    return replace(
        gaussians,
        scales=width[:, None].expand(-1, 3),
        opacities=0.95 * clip.valid[frames].flatten().float(),
        harmonics=(colours[:, None] - 0.5) / DEGREE_0,
    )


def of_moving(true: Gaussians, own: Gaussians, clip: Clip, frames: Tensor) -> Gaussians:
    """Gaussians of ``true`` for the pixels that move, of ``own`` for the rest."""
    assert clip.dynamic is not None
    moves = clip.dynamic[frames].flatten()

    def chosen(name: str) -> Tensor:
        here, there = getattr(true, name), getattr(own, name)
        along = 1 if name == "offsets" else 0
        return torch.where(moves.view(*[1] * along, -1, *[1] * (here.dim() - along - 1)), here, there)

    return replace(own, **{name: chosen(name) for name in PARTS})


def rows(prediction: Prediction, clip: Clip) -> dict[str, Gaussians]:
    """Gaussians of one video, as they are and with parts replaced."""
    assert prediction.gaussians is not None
    assert prediction.key_frames is not None
    own = map_tensors(prediction.gaussians, lambda tensor: tensor[0].float())
    frames = prediction.key_frames[0]
    assert own.offsets is not None
    assert own.offset_times is not None
    moved = replace(own, offsets=true_motion(clip, frames, own.offset_times))
    both = at_true_depth(moved, clip, frames)
    pixels = pixels_themselves(both, clip, frames)
    return {
        "no motion": replace(own, offsets=torch.zeros_like(own.offsets)),
        "as they are": own,
        "true motion": moved,
        "true depth": at_true_depth(own, clip, frames),
        "true depth and motion": both,
        **{
            f"true depth and motion, {w} as wide, {k} as opaque": sharper(both, w, k) for w, k in ((0.6, 4), (0.35, 16))
        },
        "all from truth, colours of the pixels": pixels,
        "what moves all from truth, the rest as it is": of_moving(pixels, own, clip, frames),
        "one key frame, true depth and motion": replace(both, opacities=both.opacities * _of_first(both, len(frames))),
    }


def _of_first(gaussians: Gaussians, key_frames: int) -> Tensor:
    """Ones for the Gaussians of the first key frame, zeros for those of the others."""
    count = len(gaussians.means)
    return (torch.arange(count) < count // key_frames).float()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="deformable-0")
    parser.add_argument("--clips", type=int, default=24)
    given = parser.parse_args()
    model = checkpoints.read(Path("runs/studies") / STUDY.name / given.run).model.eval()
    config = replace(HELD_OUT, motion=True)
    found: dict[str, list[dict[str, float]]] = {}
    videos = Videos.open(Path(config.data), config, given.clips)
    with progress(given.run, len(videos.lists), "video") as bar:
        for example in videos:
            clip = map_tensors(example.targets, lambda tensor: tensor[0])
            with torch.inference_mode():
                prediction = model(example.inputs)
            found.setdefault("copies", []).append(copy_scores(clip))
            for name, gaussians in rows(prediction, clip).items():
                segments = [Segment(gaussians=gaussians, start=-math.inf)]
                found.setdefault(name, []).append(novel_scores(segments, clip))
            bar.advance()
    table = {
        name: {key: round(mean(line[key] for line in lines if key in line), 3) for key in METRICS}
        for name, lines in found.items()
    }
    print(json.dumps({"run": given.run, "clips": given.clips, "psnr_db": table}, indent=1))


if __name__ == "__main__":
    main()
