"""Gaussians by matching: a cost volume, merged layers and regularised opacities, each at an equal budget.

    python benchmarks/gaussians.py [--variants plain,cost_volume,…] [--clips 25]

Trains what is missing in ``runs/gauss``, each variant from ``dgs_lrm-small`` (`benchmarks/former.py`) on worlds of the
reference model's first stages (``benchmarks/reference.py`` makes them), and scores all on its held-out worlds: new
views, depth of the Gaussians, and both again with the layers of key frames merged, beside dropping the faintest.
Figures go to ``docs/results/gaussians.json``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402 - this script is run by its path
from torch import Tensor  # noqa: E402

from benchmarks.former import FORMER, former  # noqa: E402
from benchmarks.real import provenance  # noqa: E402
from benchmarks.reference import call, four_d  # noqa: E402
from four_d import fields, load  # noqa: E402
from four_d.config import load as load_config  # noqa: E402
from four_d.correlation import pick  # noqa: E402
from four_d.data.loading import ValidationClips  # noqa: E402
from four_d.evaluation.novel import render_views  # noqa: E402
from four_d.geometry import rebase  # noqa: E402
from four_d.losses.gaussian import depths, own_offsets  # noqa: E402
from four_d.metrics.renders import score_renders  # noqa: E402
from four_d.outputs import write_json  # noqa: E402
from four_d.rendering.merging import merged  # noqa: E402
from four_d.types import Cameras, Example, Gaussians  # noqa: E402

Line = dict[str, Any]

FOLDER = Path("runs/gauss")
DATA = Path("runs/reference/data")
RESULTS = ROOT / "docs" / "results" / "gaussians.json"
START = "dgs_lrm-small"
HELD_OUT = ("varied", "fast", "calm")
STEPS = 150
COMMON = (
    "overlays/dgs_lrm_mini",
    *(f"data.sources.{kind}.path={DATA / 'plain_128-0' / kind}" for kind in HELD_OUT),
    *(f"data.validation.{kind}.path={DATA / 'held_out' / kind}" for kind in HELD_OUT),
    *("seed=0", "loop.precision=bf16", f"loop.max_steps={STEPS}", "loop.epoch_steps=75", "optimiser.lr=5.0e-4"),
    *("data.validation_clips=25", f"weights.path={FORMER / 'checkpoints' / START}"),
)
NEW = "[backbone.cost_volume.*,heads.gaussian.swept.*]"
COST_VOLUME = (
    *("model.backbone.cost_volume={near: 0.05, far: 2.0}", "model.heads.gaussian.sweep=true"),
    *(f"weights.fresh={NEW}", f"optimiser.groups.new.parameters={NEW}"),
)
TAUGHT = "losses.sweep={kind: sweep, weight: 0.5}"
DEPTH_ALONE = (
    *("losses.photometric=null", "losses.gaussian_flow=null", "data.views=null"),
    *("data.sources.calm=null", "data.validation.calm=null", "loop.max_steps=240", "loop.epoch_steps=120"),
    *("optimiser.lr=1.0e-3", "optimiser.min_warmup_steps=20", "logging.every=20", "logging.pictures=0"),
)
"""Without renders, a step takes a third of the time: depth of Gaussians learns alone, where cameras move."""
VARIANTS: dict[str, tuple[str, ...]] = {
    "start": (),
    "plain": (),
    "cost_volume": (*COST_VOLUME, "optimiser.groups.new.lr=2.0e-3", TAUGHT),
    "opacity": ("losses.opacity={kind: opacity, weight: 0.1}",),
    "depth_plain": DEPTH_ALONE,
    "depth_taught": (*DEPTH_ALONE, *COST_VOLUME, "optimiser.groups.new.lr=3.0e-3", TAUGHT),
}
MERGED = ("start", "plain")
"""Variants whose layers are merged too."""
TOLERANCES = (0.05, 0.1, 0.3)
FAINTEST = (0.1, 0.2, 0.3)
"""Fractions of the Gaussians, those of least opacity, that are dropped beside merging."""
FAR = 1.5
"""Parallax, in pixels at the unit's depth, from which a camera counts as moving: about 5 pixels at the mean depth."""


def train(name: str) -> None:
    """Train a variant whose run is not there."""
    if not (FOLDER / name / "checkpoints" / "last.ckpt").is_file():
        command = four_d("finetune", *COMMON, *VARIANTS[name], f"folder={FOLDER}", f"name={name}")
        call(command, FOLDER / "logs" / f"{name}.log", None, expected=(0,))


def examples(clips: int) -> Iterator[tuple[str, Example]]:
    """Held-out examples as validation takes them, each with the name of its worlds."""
    config = load_config(COMMON[:1], [*COMMON[1:], f"data.validation_clips={clips}"])
    shown = ValidationClips(config.data)
    for index in range(len(shown)):
        yield HELD_OUT[index * len(HELD_OUT) // len(shown)], shown[index].batches[0]


def fewer(gaussians: Gaussians, keys: Cameras, times: Tensor, size: tuple[int, int]) -> Iterator[tuple[str, Gaussians]]:
    """Gaussians with merged layers, and without the faintest."""
    for tolerance in TOLERANCES:
        found, left = merged(gaussians, keys, times, size, tolerance)
        yield f"merged_{tolerance}", fields.take(found, "n", left[0].nonzero()[:, 0])
    for share in FAINTEST:
        least = gaussians.opacities.quantile(share)
        yield f"without_faintest_{share}", fields.take(gaussians, "n", (gaussians.opacities[0] > least).nonzero()[:, 0])


def scores(gaussians: Gaussians, example: Example, total: int) -> dict[str, float]:
    views = example.targets.views
    assert views is not None
    own = fields.unstack(views, 0)
    found = score_renders(render_views(fields.unstack(gaussians, 0), own), own)
    chosen = {name: found[name] for name in ("render_psnr", "render_psnr_dynamic") if name in found}
    return {**chosen, "left": gaussians.means.shape[1] / total}


def depth_scores(gaussians: Gaussians, frames: Tensor, example: Example) -> dict[str, float]:
    """Mean |log| error of the depth of Gaussians at their own time, of what stands still and of what moves."""
    targets = example.targets
    assert targets.cameras is not None
    assert targets.depth is not None
    assert targets.valid is not None
    assert targets.dynamic is not None
    places = gaussians.means + own_offsets(gaussians, pick(targets.times, frames))
    z = depths(places.unflatten(1, (frames.shape[1], -1)), pick(targets.cameras.world_from_camera, frames)).flatten()
    truth, valid, moves = (pick(each, frames).flatten() for each in (targets.depth, targets.valid, targets.dynamic))
    errors = (z.clamp_min(1e-3).log() - truth.clamp_min(1e-6).log()).abs()
    parts = {"depth": valid, "depth_still": valid & ~moves, "depth_moving": valid & moves}
    return {name: float(errors[mask].mean()) for name, mask in parts.items() if bool(mask.any())}


def parallax(cameras: Cameras) -> float:
    """Pixels by which a point at the unit's depth moves at most, from the first camera to another."""
    centres = cameras.world_from_camera[0, :, :3, 3]
    return float((centres - centres[:1]).norm(dim=-1).max() * cameras.intrinsics[0, 0, 0, 0])


def scored(path: Path, shown: list[tuple[str, Example]], *, merges: bool) -> Line:
    """Means over the clips of each kind of worlds, and over those whose camera moves; with ``merges`` of fewer too."""
    model = load(path)
    rows: dict[str, dict[str, list[dict[str, float]]]] = {}
    with torch.inference_mode():
        for kind, example in shown:
            inputs = example.inputs
            found = model.model(inputs)
            assert found.gaussians is not None
            assert found.key_frames is not None
            assert inputs.cameras is not None
            cameras, frames = rebase(inputs.cameras), found.key_frames
            keys = Cameras(
                world_from_camera=pick(cameras.world_from_camera, frames), intrinsics=pick(cameras.intrinsics, frames)
            )
            size, total = (inputs.images.shape[-2], inputs.images.shape[-1]), found.gaussians.means.shape[1]
            whole = scores(found.gaussians, example, total) | depth_scores(found.gaussians, frames, example)
            whole["opacity"] = float(found.gaussians.opacities.mean())
            each = {"all": whole}
            if merges:
                less = fewer(found.gaussians, keys, pick(inputs.times, frames), size)
                each |= {name: scores(some, example, total) for name, some in less}
            moved = parallax(cameras)
            for group in (kind, "camera_moves" if moved > FAR else "camera_still"):
                for name, values in each.items():
                    rows.setdefault(name, {}).setdefault(group, []).append({**values, "parallax": moved})
    return {name: {group: averaged(lines) for group, lines in groups.items()} for name, groups in rows.items()}


def averaged(lines: list[dict[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for line in lines for name in line)
    means = {name: round(mean(line[name] for line in lines if name in line), 4) for name in names}
    return {"clips": len(lines), **means}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which to train and score")
    parser.add_argument("--clips", type=int, default=25, help="held-out clips of each kind of worlds")
    given = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    shown = list(examples(given.clips))
    start = former(START)
    for name in given.variants.split(","):
        if name != "start":
            train(name)
        path = start if name == "start" else FOLDER / name
        kept[name] = {
            "scores": scored(path, shown, merges=name in MERGED),
            "settings": list(VARIANTS[name]),
            **provenance(__file__),
        }
        print(name, json.dumps(kept[name]["scores"]["all"]), flush=True)
        write_json(RESULTS, kept)


if __name__ == "__main__":
    main()
