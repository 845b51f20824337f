"""Score a model's cameras, as its head says them and refined by matches: docs/results/cameras.json.

    python benchmarks/cameras.py [--model NAME] [--worlds FOLDER] [--kinds varied,calm,fast] [--sizes 64,128]

On folders of worlds. Rows: the head's cameras, those of ``model.refine.by=matches`` (`four_d.registration`), and the
same with true intrinsics given; beside them the best row that ignores the image. ``--seconds`` times refinement alone,
on one core, per frame: machines differ, and so it is no part of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - this script is run by its path

from benchmarks.real import described, named, provenance  # noqa: E402
from four_d import evaluation  # noqa: E402
from four_d.abilities import Hint  # noqa: E402
from four_d.inference.model import LoadedModel  # noqa: E402
from four_d.model import FourD  # noqa: E402
from four_d.outputs import write_json  # noqa: E402
from four_d.refinement import RefinementConfig  # noqa: E402
from four_d.registration.video import register  # noqa: E402
from four_d.types import Cameras, Clip  # noqa: E402

Line = dict[str, Any]

RESULTS = ROOT / "docs" / "results" / "cameras.json"
METRICS = ("pose_rot_pairs_deg", "pose_rta15", "pose_auc30", "pose_ate_sim3")


def refining(model: LoadedModel, refine: RefinementConfig | None) -> LoadedModel:
    """Model without Gaussians and motion, whose cameras are refined so; weights are shared."""
    bare = model.without("gaussians", "motion")
    assert isinstance(bare.model, FourD), "only a model of a backbone and heads is refined"
    bare.model.refine = None if refine is None else refine.build().eval()
    return bare


def rows(
    model: LoadedModel, folder: Path, *, cameras: int, frames: int, stride: int | None, size: int, clips: int
) -> Line:
    """Figures of each row: the metrics' means. ``frames`` are those of all synchronised cameras together."""
    matches = RefinementConfig(by="matches")
    asked: dict[str, tuple[RefinementConfig | None, tuple[Hint, ...]]] = {"head": (None, ()), "matches": (matches, ())}
    if "intrinsics" in model.abilities.hints:
        asked["matches, intrinsics known"] = (matches, ("intrinsics",))
    table: Line = {}
    for name, (refine, hints) in asked.items():
        settings = evaluation.EvaluationConfig(
            data=str(folder),
            cameras=cameras,
            frames=frames,
            stride=stride,
            clips=clips,
            size=(size, size),
            tasks=("pose",),
            hints=hints,
        )
        found = evaluation.run(refining(model, refine), settings)
        own = found.rows[found.name]
        table[name] = {metric: round(own[metric].mean, 4) for metric in METRICS}
        best = {metric: found.best_image_free(metric) for metric in METRICS}
        table["image_free"] = {key: round(each[1].mean, 4) for key, each in best.items() if each is not None}
        table["digest"] = found.digest
    return table


def milliseconds(size: int, frames: int = 12) -> float:
    """Time of refinement alone per frame of a video of noise, the best of three."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(1, frames, 3, size, size, generator=generator)
    lens = torch.tensor([[size, 0, size / 2], [0, size, size / 2], [0, 0, 1.0]]).expand(1, frames, 3, 3)
    cameras = Cameras(world_from_camera=torch.eye(4).expand(1, frames, 4, 4), intrinsics=lens)
    ids = torch.zeros(1, frames, dtype=torch.long)
    clip = Clip(images=images, times=torch.arange(float(frames))[None], camera_ids=ids)
    took: list[float] = []
    for _ in range(3):
        began = time.process_time()
        register(clip, cameras, torch.ones(1, frames, size, size))
        took.append(time.process_time() - began)
    return 1000 * min(took) / frames


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="checkpoints/unified-base", help="as four_d.load takes it")
    parser.add_argument("--worlds", default="runs/reference/data/held_out", help="folder with a folder of each kind")
    parser.add_argument("--kinds", default="varied,calm,fast")
    parser.add_argument("--sizes", default="64,128", help="rows and columns")
    parser.add_argument("--cameras", type=int, default=1, help="synchronised cameras that are seen together")
    parser.add_argument("--frames", type=int, default=6, help="frames of a video, of all its cameras together")
    parser.add_argument("--stride", type=int, help="step between them (default: spread evenly)")
    parser.add_argument("--clips", type=int, default=40, help="videos of each kind")
    parser.add_argument("--seconds", action="store_true", help="only time refinement")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.seconds:
        print({size: round(milliseconds(size), 1) for size in (64, 128, 224)})
        return
    model = named(given.model)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    for kind in given.kinds.split(","):
        for size in map(int, given.sizes.split(",")):
            found = rows(
                model,
                Path(given.worlds) / kind,
                cameras=given.cameras,
                frames=given.frames,
                stride=given.stride,
                size=size,
                clips=given.clips,
            )
            rig = "" if given.cameras == 1 else f" of {given.cameras} cameras"
            name = f"{kind}, {given.frames} frames{rig}, {size} × {size}"
            kept[name] = {**found, "model": described(model), **provenance(__file__)}
            print(name, json.dumps(found), flush=True)
            write_json(RESULTS, kept)


if __name__ == "__main__":
    main()
