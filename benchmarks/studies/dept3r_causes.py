"""Origin of the error of dense motion: far times, hidden points, the line of sight, or finding things again.

    python -m benchmarks.studies.dept3r_causes [--run dept3r-0 | --model checkpoints/unified-base]

Takes a run of `make study-dept3r`, or a model, and the study's held-out videos; dynamic points only. Prints one JSON
object: mean length and mean error of motion (metres) by the gap in frames, for points that the query frame sees and
does not see, and along and across the line of sight; how often the most likely cell is the right one or beside it; and
what error is left with places known (true ones, or those found) but no motion along the query camera's axis, or that to
the depth of the query frame there, by the model's depth and cameras and by the true ones.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.studies.dept3r import STUDY
from four_d import geometry
from four_d.config import load_plain
from four_d.correlation import offsets
from four_d.evaluation import EvaluationConfig
from four_d.evaluation.held_out import Videos
from four_d.inference import load
from four_d.losses.matching import true_places
from four_d.metrics import motion
from four_d.progress import progress
from four_d.query import frames_at, reference_frames
from four_d.schema import build
from four_d.types import Cameras, Clip, Prediction, map_tensors

RUNS = Path("runs/studies")


class Mean:
    """Running mean of true lengths and of errors, metres."""

    def __init__(self) -> None:
        self.length, self.error, self.count = 0.0, 0.0, 0

    def add(self, length: Tensor, error: Tensor) -> None:
        """Take in as many points as there are numbers."""
        self.length += float(length.sum())
        self.error += float(error.sum())
        self.count += length.numel()

    def result(self) -> dict[str, float]:
        """Means over all points."""
        count = max(self.count, 1)
        return {
            "length_m": round(self.length / count, 4),
            "error_m": round(self.error / count, 4),
            "ratio": round(self.error / max(self.length, 1e-9), 3),
            "points": self.count,
        }


def across(vectors: Tensor, sight: Tensor) -> Tensor:
    """Length of what is square to the line of sight."""
    return torch.linalg.cross(vectors, sight.expand_as(vectors)).norm(dim=-1)


def measure(found: dict[str, Mean], truth: Clip, predicted: Tensor) -> None:
    """Add an unbatched clip; ``predicted`` is its motion, q f h w 3."""
    assert truth.motion is not None
    assert truth.motion_visible is not None
    assert truth.cameras is not None
    unit = 1.0 if truth.scale is None else float(truth.scale)
    where = motion.counted(truth) & motion.dynamic(truth)
    error = (predicted - truth.motion) * unit
    frames = len(truth.times)
    order = truth.times.argsort().argsort()
    gap = (order[:, None] - order[None]).abs()[:, :, None, None].expand_as(where)

    sight = geometry.unproject(torch.ones_like(truth.depth), truth.cameras)  # pyright: ignore[reportArgumentType]
    sight = torch.nn.functional.normalize(sight - truth.cameras.world_from_camera[:, None, None, :3, 3], dim=-1)
    moved = truth.motion * unit
    sizes = {
        "all": (moved.norm(dim=-1), error.norm(dim=-1)),
        "along the line of sight": ((moved * sight).sum(-1).abs(), (error * sight).sum(-1).abs()),
        "across the line of sight": (across(moved, sight), across(error, sight)),
    }
    for part, (lengths, errors) in sizes.items():
        places = {part: where}
        if part == "all":
            places |= {f"gap {step}": where & (gap == step) for step in range(1, frames)}
            places |= {"seen at the query time": where & truth.motion_visible}
            places |= {"hidden at the query time": where & ~truth.motion_visible}
        for name, chosen in places.items():
            found.setdefault(name, Mean()).add(lengths[chosen], errors[chosen])


def sideways(
    depth: Tensor, cameras: Cameras, references: Tensor, step: Tensor, cells: tuple[slice, slice]
) -> tuple[Tensor, Tensor]:
    """Motion f y x 3 of the points in the middle of cells that goes ``step`` (f y x 2, pixels) in the camera of the
    frame referred to, at unchanged depth there; and where that is not behind it.
    """
    points = geometry.unproject(depth, cameras)[:, cells[0], cells[1]]
    there = map_tensors(cameras, lambda tensor: tensor[references])
    z = geometry.project(points.flatten(1, 2), there)[1].view(points.shape[:-1])
    focal = torch.stack([there.intrinsics[:, 0, 0], there.intrinsics[:, 1, 1]], dim=-1)
    across_axis = step * z[..., None] / focal[:, None, None]
    moved = torch.cat([across_axis, torch.zeros_like(z)[..., None]], dim=-1)
    return torch.einsum("fij,fyxj->fyxi", there.world_from_camera[:, :3, :3], moved), z > 0


def to_depth_there(
    depth: Tensor, cameras: Cameras, references: Tensor, pixels: Tensor, cells: tuple[slice, slice]
) -> Tensor:
    """Motion f y x 3 of the points in the middle of cells to ``pixels`` (f y x 2) of the frame referred to.

    There they have the depth that this frame has at that pixel.
    """
    there = map_tensors(cameras, lambda tensor: tensor[references])
    z = geometry.at_pixels(depth[references], pixels.flatten(1, 2))
    local = geometry.rays(there.intrinsics, pixels.flatten(1, 2)) * z[..., None]
    ends = geometry.transform(there.world_from_camera, local).view(*pixels.shape[:-1], 3)
    return ends - geometry.unproject(depth, cameras)[:, cells[0], cells[1]]


def measure_places(found: dict[str, Mean], right: dict[bool, list[int]], clip: Clip, prediction: Prediction) -> None:
    """Add what the search found, and what places alone would give, of a clip of one video."""
    truth = map_tensors(clip, lambda tensor: tensor[0])
    assert prediction.match_logits is not None
    assert prediction.depth is not None
    assert prediction.cameras is not None
    assert truth.depth is not None
    assert truth.cameras is not None
    assert truth.valid is not None
    assert truth.motion is not None
    assert clip.query_times is not None
    unit = 1.0 if truth.scale is None else float(truth.scale)
    known_scale = float((truth.depth[truth.valid] / prediction.depth[0][truth.valid]).median())
    own = map_tensors(prediction.cameras, lambda tensor: tensor[0].float())
    sources = {"own": (prediction.depth[0].float(), own, known_scale), "true": (truth.depth, truth.cameras, 1.0)}
    for index in range(clip.query_times.shape[1]):
        logits = prediction.match_logits[:, index]
        step, known, moves = true_places(clip, index, logits.shape[2:4], logits.shape[-1])
        side, cell = round(logits.shape[-1] ** 0.5), truth.depth.shape[-2] // logits.shape[2]
        best = offsets(side // 2, step)[logits.argmax(-1)]
        hit = (best - step).abs().amax(-1) <= 1
        for moving in (True, False):
            chosen = known & (moves == moving)
            right[moving][0] += int((hit & chosen).sum())
            right[moving][1] += int(chosen.sum())
        middle = slice(cell // 2, None, cell)
        references = reference_frames(frames_at(clip, clip.query_times[:, index]), clip.camera_ids)[0]
        motion_there = truth.motion[index][:, middle, middle]
        # A camera that moves shifts what stands still: only the rest of the step is motion.
        for name, (depth, cameras, scale) in sources.items():
            still = still_step(depth, cameras, references, (middle, middle))
            for which, places in (("true", step[0]), ("found", best[0])):
                moved, before = sideways(depth, cameras, references, places * cell - still, (middle, middle))
                where = known[0] & moves[0] & before
                error = (moved * scale - motion_there).norm(dim=-1) * unit
                key = f"{which} places, {name} depth and cameras, none along the axis"
                found.setdefault(key, Mean()).add((motion_there.norm(dim=-1) * unit)[where], error[where])
            centres = geometry.pixel_centres(depth.shape[1], depth.shape[2], depth)[middle, middle]
            moved = to_depth_there(depth, cameras, references, centres + step[0] * cell, (middle, middle))
            error = (moved * scale - motion_there).norm(dim=-1) * unit
            where = known[0] & moves[0]
            key = f"true places, {name} depth and cameras, to the query frame's depth there"
            found.setdefault(key, Mean()).add((motion_there.norm(dim=-1) * unit)[where], error[where])


def still_step(depth: Tensor, cameras: Cameras, references: Tensor, cells: tuple[slice, slice]) -> Tensor:
    """Displacement (f y x 2, pixels) of each cell's middle in the frame referred to, if nothing moved."""
    height, width = depth.shape[-2:]
    points = geometry.unproject(depth, cameras)[:, cells[0], cells[1]]
    there = map_tensors(cameras, lambda tensor: tensor[references])
    pixels = geometry.project(points.flatten(1, 2), there)[0].view(*points.shape[:-1], 2)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return pixels - torch.stack([x, y], dim=-1)[cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", default="dept3r-0")
    parser.add_argument("--model", type=Path, help="a model's folder, in place of a run of the study")
    parser.add_argument("--data", type=Path, help="held-out shards, in place of the study's")
    given = parser.parse_args()
    model = load(RUNS / STUDY.name / given.run if given.model is None else given.model)
    name = given.run if given.model is None else given.model.name
    values = load_plain([], STUDY.evaluation, EvaluationConfig)
    values |= {} if given.data is None else {"data": str(given.data)}
    config = build(EvaluationConfig, {"size": list(model.info.image_size), **values}, "eval")
    videos = Videos.open(Path(config.data), replace(config, motion=True), config.clips)
    found: dict[str, Mean] = {}
    right = {True: [0, 0], False: [0, 0]}
    with progress(name, len(videos.lists), "video") as bar:
        for example in videos:
            targets = map_tensors(example.targets, lambda tensor: tensor[0])
            assert targets.query_times is not None
            prediction = model(example.inputs)
            assert prediction.motion is not None
            measure(found, targets, prediction.motion[0])
            if prediction.match_logits is not None:
                measure_places(found, right, example.targets, prediction)
            bar.advance()
    shares = {moving: round(hits / max(count, 1), 3) for moving, (hits, count) in right.items()}
    result: dict[str, object] = {"run": name, "videos": len(videos.lists)}
    result |= {part: mean.result() for part, mean in found.items()}
    result["right place"] = {"moving": shares[True], "static": shares[False]}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
