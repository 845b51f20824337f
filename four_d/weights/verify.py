"""Comparison of our outputs with other code's, for equal weights and inputs: one row per output."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from four_d.backbones.alternating import AlternatingBackbone
from four_d.geometry import invert_pose
from four_d.heads.track import TrackHead
from four_d.model import FourD
from four_d.parts import Backbone
from four_d.types import Clip, Prediction, Tokens
from four_d.weights import vggt
from four_d.weights.cases import Case, read_case
from four_d.weights.convert import KINDS

FLOORS, MIN_TOLERANCE = 5.0, 1e-5
"""Tolerance in float32: multiple of the noise floor, and its minimum."""
EXACT = 1e-6
"""Tolerance in float64, relative to the output's largest entry (the reference rounds its embeddings to float32)."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """Comparison of one output by the largest absolute difference, infinite where missing or of another shape."""

    name: str
    error: float
    tolerance: float
    exact: bool = False
    """True if both are in float64."""
    note: str = ""

    @property
    def good(self) -> bool:
        """True if within tolerance; NaN never is."""
        return self.error <= self.tolerance


@dataclass(frozen=True, kw_only=True)
class Report:
    """All rows of a case."""

    case: str
    rows: list[Row]

    @property
    def good(self) -> bool:
        """True if there are outputs and every one is within its tolerance."""
        return bool(self.rows) and all(row.good for row in self.rows)

    def print(self, console: Console | None = None) -> None:
        """Print a table and the result in one line."""
        table = Table("output", "numbers", "largest error", "tolerance", "", title=self.case)
        for row in self.rows:
            verdict = "ok" if row.good else f"[red]differs {row.note}[/red]"
            table.add_row(
                row.name, "fp64" if row.exact else "fp32", f"{row.error:.2e}", f"{row.tolerance:.2e}", verdict
            )
        wrong = sum(not row.good for row in self.rows)
        result = f"{wrong} of {len(self.rows)} outputs differ" if wrong else f"all {len(self.rows)} outputs agree"
        console = console or Console()
        console.print(table)
        console.print(f"{self.case}: {result if self.rows else 'nothing to compare'}")


def verify(folder: str | Path) -> Report:
    """Build the model a golden case describes, load its weights, run its inputs and compare every output it has.

    Raises:
        UserError: the directory is no golden case, or its weights do not fit the sizes in it.

    """
    return compare(read_case(folder))


def compare(case: Case) -> Report:
    """Compare our outputs with those of a golden case. UserError if its weights do not fit its sizes."""
    model = build(case)
    rows = _compare(case, case.outputs, run_case(model, case), exact=False)
    if case.outputs_fp64:
        rows += _compare(case, case.outputs_fp64, run_case(model.double(), case), exact=True)
    return Report(case=case.name, rows=rows)


class Headless(nn.Module):
    """Backbone without heads, for cases of the aggregator alone."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone, self.heads, self.rounds = backbone, nn.ModuleDict(), tuple[int, ...]()

    def forward(self, clip: Clip) -> Prediction:
        """Run the backbone; hooks collect its outputs."""
        self.backbone(clip, self.rounds)
        return Prediction()


def build(case: Case) -> FourD | Headless:
    """Build the case's model with its weights, in eval mode, with the backbone returning every round's tokens."""
    model = case.model.build() if case.model.heads else Headless(case.model.backbone.build())
    adapter = KINDS["vggt" if case.alphas is None else "page_4d"].adapter
    model.load_state_dict(adapter.to_ours(case.weights, model.state_dict(), case.name))
    model.rounds = tuple(range(case.model.backbone.shape.rounds))
    return model.eval().requires_grad_(False)


def _backbone(model: FourD | Headless) -> AlternatingBackbone:
    backbone = model.backbone
    assert isinstance(backbone, AlternatingBackbone)
    return backbone


def clip_of(case: Case, dtype: torch.dtype) -> Clip:
    """Convert the case's inputs to ours: query points are of the first frame, corner origin."""
    b, f = case.images.shape[:2]
    queries = case.query_points
    if queries is not None:
        queries = nn.functional.pad(queries.to(dtype) + 0.5, (1, 0))
    return Clip(
        images=case.images.to(dtype),
        times=torch.zeros(b, f),
        camera_ids=torch.zeros(b, f, dtype=torch.long),
        query_points=queries,
    )


def run_case(model: FourD | Headless, case: Case) -> dict[str, Tensor]:
    """Compute all outputs of a case, under the published names."""
    clip, dynamics = clip_of(case, next(model.parameters()).dtype), _backbone(model).dynamics
    if dynamics is None:
        return _run(model, clip)
    outputs: dict[str, Tensor] = {}
    for prefix, alpha in (case.alphas or {}).items():
        dynamics.alpha.fill_(alpha)
        outputs |= {prefix + name: value for name, value in _run(model, clip).items()}
    return outputs


@torch.no_grad()
def _run(model: FourD | Headless, clip: Clip) -> dict[str, Tensor]:
    """Run one forward pass, collecting inner outputs by hooks."""
    backbone, frames = _backbone(model), clip.images.shape[:2]
    watched = {"patch_tokens": backbone.patches, "tokens": backbone}
    if backbone.dynamics is not None:
        watched["mask_head_input"] = backbone.frame_blocks[backbone.dynamics.after]
    with _catching(watched) as caught:
        prediction: Prediction = model(clip)
    tokens = cast(Tokens, caught.pop("tokens"))
    within = {name: cast(Tensor, value).unflatten(0, frames) for name, value in caught.items()}
    return {
        **within,
        **_blocks(tokens),
        **_features(model, tokens),
        **_mask(backbone, tokens),
        **in_their_terms(prediction),
    }


@contextmanager
def _catching(modules: Mapping[str, nn.Module]) -> Generator[dict[str, object]]:
    """Collect the modules' outputs by name within the block."""
    caught: dict[str, object] = {}

    def keep(name: str) -> Callable[[nn.Module, object, object], None]:
        return lambda _module, _inputs, output: caught.update({name: output})

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    try:
        yield caught
    finally:
        for handle in handles:
            handle.remove()


def _features(model: FourD | Headless, tokens: Tokens) -> dict[str, Tensor]:
    track = dict(model.heads.named_children()).get("track")
    return {"track_feature_maps": track.features.maps(tokens)} if isinstance(track, TrackHead) else {}


def _mask(backbone: AlternatingBackbone, tokens: Tokens) -> dict[str, Tensor]:
    if backbone.dynamics is None or tokens.dynamic_logits is None:
        return {}
    rows, keys = backbone.dynamics.bias(tokens.dynamic_logits, tokens.special[0].shape[2])
    return {"mask_rows": rows, "mask_keys": keys[:, None]}


def _blocks(tokens: Tokens) -> dict[str, Tensor]:
    """Every round's tokens, also under the aggregator's own names."""
    maps = {
        f"block_{index:02d}": torch.cat([special, patches], dim=2)
        for index, special, patches in zip(tokens.rounds, tokens.special, tokens.patches, strict=True)
    }
    return maps | {f"aggregator.{name}": value for name, value in maps.items()}


def in_their_terms(prediction: Prediction) -> dict[str, Tensor]:
    """Convert a prediction to VGGT's names and conventions."""
    outputs: dict[str, Tensor | None] = {
        "depth": None if prediction.depth is None else prediction.depth[..., None],
        "depth_conf": prediction.depth_confidence,
        "world_points": prediction.points,
        "world_points_conf": prediction.points_confidence,
        "vis": prediction.pixel_tracks_visible,
        "conf": prediction.pixel_tracks_confidence,
    }
    result = {name: value for name, value in outputs.items() if value is not None}
    if prediction.pose_encodings is not None:
        result |= _stages("pose_enc", vggt.POSE.to_theirs(prediction.pose_encodings, -1))
    if prediction.pixel_track_stages is not None:
        result |= _stages("track", prediction.pixel_track_stages - 0.5)
    if prediction.cameras is not None:
        result["extrinsic"] = invert_pose(prediction.cameras.world_from_camera)[..., :3, :]
        result["intrinsic"] = prediction.cameras.intrinsics
    return result


def _stages(name: str, stages: Tensor) -> dict[str, Tensor]:
    return {**{f"{name}_list.{k}": stage for k, stage in enumerate(stages)}, name: stages[-1]}


def _compare(case: Case, theirs: Mapping[str, Tensor], ours: Mapping[str, Tensor], *, exact: bool) -> list[Row]:
    return [_row(name, ours.get(name), value, case.noise.get(name, 0.0), exact=exact) for name, value in theirs.items()]


def _row(name: str, ours: Tensor | None, theirs: Tensor, noise: float, *, exact: bool) -> Row:
    largest = float(theirs.abs().max()) if theirs.numel() else 0.0
    tolerance = EXACT * max(1.0, largest) if exact else max(FLOORS * noise, MIN_TOLERANCE)
    if ours is None or ours.shape != theirs.shape:
        note = "(the model does not give it)" if ours is None else f"({list(ours.shape)}, not {list(theirs.shape)})"
        return Row(name=name, error=math.inf, tolerance=tolerance, exact=exact, note=note)
    error = float((ours - theirs).abs().max()) if theirs.numel() else 0.0
    return Row(name=name, error=error, tolerance=tolerance, exact=exact)
