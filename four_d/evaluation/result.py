"""The figures of an evaluation: a table of predictors and metrics, with errors and differences."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from four_d.data.manifest import atomic
from four_d.similarity import LPIPS

HIGHER = (
    "depth_delta",
    "pose_rra",
    "pose_rta",
    "pose_auc",
    "mask_",
    "points_nc",
    "motion_apd",
    "track_apd",
    "track_visible",
    "motion_visible",
    "apd_",
    "aj_",
    "oa_",
    "sceneflow_strict",
    "sceneflow_relaxed",
    *(f"pictures_{part}{figure}" for part in ("", "copy_", "novel_time_", "m") for figure in ("psnr", "ssim")),
    "pck_",
)
"""What metrics begin with that are better when higher; the others are errors."""
HEADLINES = (
    "depth_absrel_median_frame",
    "depth_absrel_scaleshift_clip",
    "pose_rot_pairs_deg",
    "pose_auc30",
    "pose_ate_sim3",
    "pose_rpe_trans_sim3",
    "depth_absrel_median_dynamic",
    "points_accuracy",
    "mask_iou",
    "motion_epe_dynamic",
    "motion_apd_dynamic",
    "track_epe_dynamic",
    "track_epe",
    "track_epe_static",
    "pictures_psnr",
    "pictures_psnr_dynamic",
    "pictures_ssim",
)
STUDY = {
    "ate": "pose_ate_sim3",
    "rot_error_deg": "pose_rot_pairs_deg",
    "absrel": "depth_absrel_median_frame",
    "absrel_dynamic": "depth_absrel_median_dynamic",
    "points_accuracy": "points_accuracy",
    "mask_iou": "mask_iou",
    "epe_dynamic": "motion_epe_dynamic",
    "apd_dynamic": "motion_apd_dynamic",
    "track_epe_dynamic": "track_epe_dynamic",
    "track_epe": "track_epe",
    "track_epe_static": "track_epe_static",
    "track_epe_motion": "track_epe_motion",
    "track_epe_motion_static": "track_epe_motion_static",
    "psnr": "pictures_psnr",
    "psnr_dynamic": "pictures_psnr_dynamic",
    "copy_psnr": "pictures_copy_psnr",
    "copy_psnr_dynamic": "pictures_copy_psnr_dynamic",
    "seconds_per_clip": "seconds_per_clip",
    "dynamic_share": "motion_dynamic_share",
}
"""What studies call the metrics they compare."""
BEST = "best_image_free"
FACTS = ("seconds_per_clip", "motion_dynamic_share")
"""Not better or worse: no predictor is the best at them."""
LOG_WIDTH = 160


@dataclass(frozen=True, kw_only=True)
class Score:
    """A metric over videos."""

    mean: float
    """Over videos, each counting alike."""
    standard_error: float
    """How far the mean may be off for the choice of clips; the videos of one clip count as one draw. 0 for one clip."""
    videos: int
    excluded: int
    """Videos whose truth does not allow this metric: no valid depth, no known camera, a camera that stands still."""


@dataclass(frozen=True, kw_only=True)
class LpipsFacts:
    """Which network scored pictures."""

    network: str
    """alex or vgg."""
    weights: str
    """A digest of its weights: equal for equal ones, whatever files they came from."""

    @staticmethod
    def of(network: LPIPS | None) -> LpipsFacts | None:
        """Of a network with loaded weights; None of none."""
        if network is None:
            return None
        digest = hashlib.sha256()
        for name, value in sorted(network.state_dict().items()):
            digest.update(name.encode() + value.detach().float().cpu().numpy().tobytes())
        return LpipsFacts(network=network.network, weights=digest.hexdigest()[:12])


def facts(lpips: LpipsFacts | None) -> dict[str, str | None]:
    """For JSON: a ``network`` of null where there was none."""
    return {"network": None, "weights": None} if lpips is None else dict(vars(lpips))


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The model's scores and the image-free predictors' on the same videos."""

    name: str
    rows: dict[str, dict[str, Score]]
    """Predictor → metric → score; the model under ``name`` comes first."""
    keys: tuple[str, ...]
    """Videos in order; ``clip/camera`` where a clip gives several."""
    per_video: dict[str, dict[str, tuple[float | None, ...]]]
    """Predictor → metric → one value per video."""
    digest: str
    """Of keys, cameras, times and image sizes of all that was scored, in order; of the hints that the model was given,
    and of whether it saw two frames at a time."""
    note: str = ""
    """What the videos are, in words."""
    lpips: LpipsFacts | None = None
    """What scored ``lpips`` of pictures; None: nothing did, and ``structure`` stands in its place."""

    def best_image_free(self, metric: str) -> tuple[str, Score] | None:
        """The image-free predictor with the best mean of a metric; None if none has it, and for `FACTS`."""
        if metric in FACTS:
            return None
        rows = [(name, scores[metric]) for name, scores in self.rows.items() if name != self.name and metric in scores]
        if not rows:
            return None
        return (max if higher_is_better(metric) else min)(rows, key=lambda row: row[1].mean)

    def difference(self, metric: str, minuend: str, subtrahend: str) -> Score:
        """Mean difference of two predictors over the videos, paired: its standard error is that of the difference."""
        pairs = zip(self.per_video[minuend][metric], self.per_video[subtrahend][metric], strict=True)
        return score_of([None if a is None or b is None else a - b for a, b in pairs], self.keys)

    def to_dict(self) -> dict[str, object]:
        """Plain containers for JSON: every row with every metric, the best image-free row, and the values per video."""
        rows: dict[str, object] = {
            name: {metric: vars(score) for metric, score in scores.items()} for name, scores in self.rows.items()
        }
        best = {metric: self.best_image_free(metric) for metric in self.rows[self.name]}
        rows[BEST] = {metric: {"predictor": row[0], **vars(row[1])} for metric, row in best.items() if row is not None}
        return {
            "model": self.name,
            "videos": len(self.keys),
            "clips": len({scene(key) for key in self.keys}),
            "digest": self.digest,
            "note": self.note,
            "lpips": facts(self.lpips),
            "summary": {**summary(self), "image_free": image_free(self), "predictors": predictors(self)},
            "rows": rows,
            "per_video": {"keys": list(self.keys), **self.per_video},
        }

    def write(self, path: Path) -> None:
        """`to_dict` as JSON; the file appears whole or not at all. `UserError` where it cannot be written."""
        with atomic(path) as file:
            file.write((json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n").encode())

    def table(self) -> Table:
        """The headline metrics, one row per predictor and the model first."""
        metrics = [metric for metric in HEADLINES if metric in self.rows[self.name]]
        table = Table(title=f"{len(self.keys)} videos, digest {self.digest}", caption=self.note or None)
        table.add_column("predictor")
        for metric in metrics:
            table.add_column(f"{metric} {'↑' if higher_is_better(metric) else '↓'}", justify="right", overflow="fold")
        for name, scores in self.rows.items():
            cells = [_cell(scores.get(metric)) for metric in metrics]
            if name == self.name or any(cells):
                table.add_row(name, *cells, style="bold" if name == self.name else None, end_section=name == self.name)
        return table

    def details(self) -> Table:
        """Every metric: the model, the best image-free predictor, and their paired difference."""
        table = Table(title="all metrics: mean over videos ± standard error by clips")
        for heading in ("metric", self.name, "best image-free", "", "difference", "videos"):
            table.add_column(heading, justify="left" if heading in ("metric", "") else "right")
        for metric, score in self.rows[self.name].items():
            best = self.best_image_free(metric)
            arrow = "↑" if higher_is_better(metric) else "↓"
            videos = f"{score.videos}" + (f" (−{score.excluded})" if score.excluded else "")
            if best is None:
                table.add_row(f"{metric} {arrow}", _cell(score), "", "", "", videos)
            else:
                gap = self.difference(metric, self.name, best[0])
                table.add_row(f"{metric} {arrow}", _cell(score), _cell(best[1]), best[0], _cell(gap), videos)
        return table

    def print(self) -> None:
        """Both tables on stdout."""
        console = Console()
        if not console.is_terminal:  # a log has no width, and 80 columns would cut names
            console = Console(width=LOG_WIDTH)
        console.print(self.details())
        console.print(self.table())


def _cell(score: Score | None) -> str:
    return "" if score is None else f"{score.mean:.4g} ± {score.standard_error:.2g}"


def higher_is_better(metric: str) -> bool:
    """True for shares of right pixels or pairs, False for errors."""
    return metric.startswith(HIGHER)


def summary(evaluation: Evaluation) -> dict[str, float]:
    """The demo's figures and the studies' (`STUDY`), as far as the model and the data have them.

    ``depth_absrel_baseline`` is the per-pixel mean map's (the best image-free predictor's if there is no such map);
    ``rot_baseline_deg`` and ``ate_baseline`` are the best image-free predictor's. Rotation is the mean error of the
    relative rotations of all pairs of frames, ATE is in source units (metres where the data is metric).
    """
    rows = evaluation.rows
    figures: dict[str, float] = {}
    for metric, name, baseline in (
        ("depth_absrel_median_frame", "depth_absrel_median", "depth_absrel_baseline"),
        ("pose_rot_pairs_deg", "rot_error_deg", "rot_baseline_deg"),
        ("pose_ate_sim3", "ate_sim3", "ate_baseline"),
    ):
        best = evaluation.best_image_free(metric)
        if metric == "depth_absrel_median_frame" and "mean_depth" in rows and metric in rows["mean_depth"]:
            best = ("mean_depth", rows["mean_depth"][metric])
        if metric in rows[evaluation.name]:
            figures[name] = rows[evaluation.name][metric].mean
        if best is not None:
            figures[baseline] = best[1].mean
    mine = rows[evaluation.name]
    return figures | {name: mine[metric].mean for name, metric in STUDY.items() if metric in mine}


def image_free(evaluation: Evaluation) -> dict[str, float]:
    """The best image-free predictor's value of each of the studies' figures."""
    best = {name: evaluation.best_image_free(metric) for name, metric in STUDY.items()}
    return {name: row[1].mean for name, row in best.items() if row is not None}


def predictors(evaluation: Evaluation) -> dict[str, dict[str, float]]:
    """Every image-free predictor's value of the studies' figures that it has."""
    others = {name: scores for name, scores in evaluation.rows.items() if name != evaluation.name}
    return {
        name: {figure: scores[metric].mean for figure, metric in STUDY.items() if metric in scores}
        for name, scores in others.items()
    }


def score_of(values: Sequence[float | None], keys: Sequence[str]) -> Score:
    """Mean and its cluster-robust standard error, the clips being the clusters (Liang and Zeger 1986)."""
    present = [(value, scene(key)) for value, key in zip(values, keys, strict=True) if value is not None]
    count = len(present)
    mean = sum(value for value, _ in present) / max(count, 1)
    sums: dict[str, float] = {}
    for value, name in present:
        sums[name] = sums.get(name, 0.0) + value - mean
    spread = sum(deviation**2 for deviation in sums.values()) * len(sums) / max(len(sums) - 1, 1)
    error = math.sqrt(spread) / max(count, 1) if len(sums) > 1 else 0.0
    return Score(mean=mean, standard_error=error, videos=count, excluded=len(values) - count)


def scene(key: str) -> str:
    """The clip of a video: videos of one scene err alike and are no independent evidence."""
    return key.rpartition("/")[0] or key
