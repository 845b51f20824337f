"""Catalogue of all metrics of this package, as values: `METRICS` by name, and in groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, cast

from four_d.metrics import pose
from four_d.metrics.comparison import Comparison, Part
from four_d.metrics.depth import Alignment, Region
from four_d.metrics.metric import Metric, Shown
from four_d.metrics.points import PointScores
from four_d.metrics.pose import PairErrors
from four_d.metrics.published import APD, PUBLISHED

Compute = Callable[[Comparison], float | None]

DEPTH_FITS: tuple[tuple[Alignment, Region], ...] = (
    ("none", "clip"),
    ("median", "frame"),
    ("median", "clip"),
    ("scale", "frame"),
    ("scale", "clip"),
    ("scaleshift", "frame"),
    ("scaleshift", "clip"),
)
DEGREES = (5, 15, 30)
"""Thresholds of RRA and RTA."""


def _depth(score: Literal["absrel", "delta"], alignment: Alignment, region: Region, part: Part = "all") -> Compute:
    def compute(video: Comparison) -> float | None:
        scores = video.depth(alignment, region, part)
        return None if scores is None else float(scores.absrel if score == "absrel" else scores.delta)

    return compute


def _pairs(figure: Callable[[PairErrors], float | None]) -> Compute:
    return lambda video: None if video.pairs is None else figure(video.pairs)


def _points(figure: Callable[[PointScores], float]) -> Compute:
    return lambda video: None if video.points is None else figure(video.points)


def _skeletons(name: str) -> Compute:
    return lambda video: None if video.keypoints is None else cast("float | None", getattr(video.keypoints, name))


def _rta(degrees: int) -> Callable[[PairErrors], float | None]:
    return lambda pairs: float(pose.rta(pairs, degrees)) if bool(pairs.moving.any()) else None


def _first_pairs(video: Comparison) -> float | None:
    """Figure over the pairs with frame 0, which come first."""
    return None if video.pairs is None else float(video.pairs.rotation_deg[: len(video.targets.times) - 1].mean())


DEPTH_ABSREL = Metric(
    "depth_absrel_median_frame",
    r"mean of \|p − g\| / g over valid pixels",
    better="lower",
    compute=_depth("absrel", "median", "frame"),
    task="depth",
    shown="summary",
    validation="also",
)
ROTATION = Metric(
    "pose_rot_pairs_deg",
    "mean error of the relative rotations of all pairs of frames",
    unit="°",
    better="lower",
    compute=_pairs(lambda pairs: float(pairs.rotation_deg.mean())),
    task="pose",
    shown="summary",
    validation="also",
)
RELATIVE_MOTION = Metric(
    "motion_epe_relative",
    "mean error of the motion of what moves over its mean length; in training's validation only",
    better="lower",
    compute=lambda video: video.relative_motion_error,
    task="motion",
    validation="only",
)
OBJECT_ROTATION = Metric(
    "object_rot_deg",
    "mean error of the object's rotation in the camera, of models of one object; in training's validation only",
    unit="°",
    better="lower",
    compute=lambda video: video.object_rotation_error,
    task="pose",
    validation="only",
)


def _depth_metrics() -> list[Metric]:
    metrics: list[Metric] = []
    for alignment, region in DEPTH_FITS:
        summary = (alignment, region) in (("median", "frame"), ("scaleshift", "clip"))
        absrel = Metric(
            f"depth_absrel_{alignment}_{region}",
            DEPTH_ABSREL.description,
            better="lower",
            compute=_depth("absrel", alignment, region),
            task="depth",
            shown="summary" if summary else "tables",
        )
        delta = Metric(
            f"depth_delta125_{alignment}_{region}",
            "fraction of pixels with max(p/g, g/p) < 1.25; p ≤ 0 is wrong",
            better="higher",
            compute=_depth("delta", alignment, region),
            task="depth",
        )
        metrics += [DEPTH_ABSREL if absrel.name == DEPTH_ABSREL.name else absrel, delta]
    for part, wording in (("dynamic", "that move"), ("static", "that do not move")):
        metrics.append(
            Metric(
                f"depth_absrel_median_{part}",
                f"`depth_absrel_median_frame` over pixels {wording} by the true mask; fitted over all valid pixels",
                better="lower",
                compute=_depth("absrel", "median", "frame", cast(Part, part)),
                task="depth",
                shown="summary" if part == "dynamic" else "tables",
            )
        )
    return metrics


def _accuracies() -> list[Metric]:
    rotations = [
        Metric(
            f"pose_rra{degrees}",
            "fraction of pairs with a rotation error below 5, 15, 30°",
            better="higher",
            compute=_pairs(lambda pairs, degrees=degrees: float(pose.rra(pairs, degrees))),
            task="pose",
        )
        for degrees in DEGREES
    ]
    translations = [
        Metric(
            f"pose_rta{degrees}",
            "fraction of moving pairs whose translation direction errs by less than 5, 15, 30°; up to sign, as in "
            "VGGT; a prediction that does not move errs by 90°",
            better="higher",
            compute=_pairs(_rta(degrees)),
            task="pose",
        )
        for degrees in DEGREES
    ]
    return rotations + translations


def _motions() -> list[Metric]:
    metrics: list[Metric] = []
    for part in ("dynamic", "all"):
        shown: Shown = "summary" if part == "dynamic" else "tables"
        epe = "mean distance from the predicted to the true displacement, of dynamic and of all pixels"
        metrics += [
            Metric(f"motion_epe_{part}", epe, unit="m", better="lower", task="motion", shown=shown),
            Metric(f"motion_apd_{part}", f"{APD}, of the same", better="higher", task="motion", shown=shown),
        ]
    return metrics


DEPTH = tuple(_depth_metrics())
POSE = (
    ROTATION,
    Metric(
        "pose_rot_first_deg",
        "the same over pairs with the first frame",
        unit="°",
        better="lower",
        compute=_first_pairs,
        task="pose",
    ),
    Metric(
        "pose_auc30",
        "mean over 1, 2, …, 30° of the fraction of pairs whose larger error of the two is below; pairs that do not "
        "move count by rotation",
        better="higher",
        compute=_pairs(lambda pairs: float(pose.auc(pairs))),
        task="pose",
        shown="summary",
    ),
    *_accuracies(),
    Metric(
        "pose_ate_sim3",
        "RMS distance of camera centres after the best similarity (Umeyama); needs three frames",
        unit="m",
        better="lower",
        compute=lambda video: video.ate,
        task="pose",
        shown="summary",
    ),
    Metric(
        "pose_rpe_trans_sim3",
        "RPE (Sturm et al. 2012; MonST3R), one frame apart: RMS translation error from each frame to the next of the "
        "same camera, after that similarity",
        unit="m",
        better="lower",
        compute=lambda video: None if video.steps is None else float(video.steps.translation) * video.unit,
        task="pose",
        shown="summary",
    ),
    Metric(
        "pose_rpe_rot_deg_sim3",
        "RPE one frame apart: RMS rotation error from each frame to the next of the same camera",
        unit="°",
        better="lower",
        compute=lambda video: None if video.steps is None else float(video.steps.rotation_deg),
        task="pose",
    ),
)
POINTS = (
    Metric(
        "points_accuracy",
        "mean distance from a predicted point to the nearest true one",
        unit="m",
        better="lower",
        compute=_points(lambda found: found.accuracy),
        task="points",
        shown="summary",
    ),
    Metric(
        "points_accuracy_median",
        "median of the same",
        unit="m",
        better="lower",
        compute=_points(lambda found: found.accuracy_median),
        task="points",
    ),
    Metric(
        "points_completeness",
        "mean distance from a true point to the nearest predicted one",
        unit="m",
        better="lower",
        compute=_points(lambda found: found.completeness),
        task="points",
    ),
    Metric(
        "points_completeness_median",
        "median of these distances",
        unit="m",
        better="lower",
        compute=_points(lambda found: found.completeness_median),
        task="points",
    ),
)
MASKS = (
    Metric(
        "mask_iou",
        "J: intersection over union of the pixels with a predicted probability above ½ and the truth, per frame; 1 "
        "where both are empty",
        better="higher",
        compute=lambda video: None if video.masks is None else video.masks[0],
        task="mask",
        shown="summary",
    ),
    Metric(
        "mask_f",
        "F: harmonic mean of the fractions of either contour within 0.8 % of the diagonal (rounded up) of the other, "
        "as in DAVIS",
        better="higher",
        compute=lambda video: None if video.masks is None else video.masks[1],
        task="mask",
    ),
)
MOTION = (
    *_motions(),
    Metric(
        "motion_dynamic_fraction",
        "fraction of the pixels that are dynamic: the truth's, the same in every row",
        task="motion",
        shown="summary",
    ),
    Metric(
        "motion_scale_error",
        r"\|log\| of the scale: 0 where the model's unit is the example's own",
        better="lower",
        task="motion",
    ),
    Metric(
        "track_epe_dynamic",
        "`motion_epe_dynamic` of positions, P + M: errors of geometry and motion together",
        unit="m",
        better="lower",
        task="motion",
        shown="summary",
    ),
    Metric("track_apd_dynamic", "`motion_apd_dynamic` of positions", better="higher", task="motion"),
    Metric(
        "motion_visible_accuracy",
        'fraction of pixels and times for which "seen by a frame of that time" is right (probability above ½)',
        better="higher",
        task="motion",
    ),
    Metric(
        "motion_visible_balanced",
        "mean of that fraction among those seen and among those not seen; a constant has ½",
        better="higher",
        task="motion",
    ),
    Metric(
        "seconds_per_clip",
        "mean wall time of the model's answer for one video, all query times together; the model's row only",
        unit="s",
        better="lower",
        shown="summary",
    ),
)
TRACKS = (
    Metric("track_epe", "mean distance of predicted from true positions", unit="m", better="lower", shown="summary"),
    Metric(
        "track_epe_static",
        "the same if every point stays where the model has it in the first frame",
        unit="m",
        better="lower",
        shown="summary",
    ),
    Metric("track_apd", APD, better="higher"),
    Metric("track_apd_static", "the same if every point stays where it is", better="higher"),
    Metric(
        "track_epe_motion",
        "mean distance of predicted from true displacements since the first frame: independent of the predicted "
        "positions",
        unit="m",
        better="lower",
        shown="summary",
    ),
    Metric(
        "track_epe_motion_static",
        "the same of standing still: the truth's mean displacement",
        unit="m",
        better="lower",
        shown="summary",
    ),
    Metric(
        "track_visible_accuracy",
        'fraction of points and times for which "seen by the frame of that time" is right',
        better="higher",
    ),
    Metric(
        "track_scale_error",
        r"\|log\| of the scale, over the example's own unit; only where lengths are aligned",
        better="lower",
    ),
)

KEYPOINTS = (
    Metric(
        "keypoint_mpjpe",
        "mean distance of predicted from true 3D keypoints, without alignment",
        unit="m",
        better="lower",
        compute=_skeletons("mpjpe"),
        task="keypoints",
        shown="summary",
    ),
    Metric(
        "keypoint_mpjpe_procrustes",
        "the same after each frame's best similarity, of frames with three keypoints or more",
        unit="m",
        better="lower",
        compute=_skeletons("procrustes_mpjpe"),
        task="keypoints",
    ),
    Metric(
        "keypoint_pck",
        "fraction of the keypoints inside the image whose pixel errs by less than 0.1 of the longer side of the box of "
        "their instance's true ones there",
        better="higher",
        compute=_skeletons("pck"),
        task="keypoints",
        shown="summary",
    ),
    Metric(
        "keypoint_acceleration_error",
        "mean distance of predicted from true accelerations of keypoints, by finite differences over the frames' times",
        unit="m/s²",
        better="lower",
        compute=_skeletons("acceleration_error"),
        task="keypoints",
        shown="summary",
    ),
    Metric(
        "keypoint_jerk",
        "mean length of the third derivative of predicted keypoints; the truth's is not 0",
        unit="m/s³",
        compute=_skeletons("jerk"),
        task="keypoints",
    ),
    Metric(
        "keypoint_bone_variance",
        "mean over rigid bones of the variance over time of the logarithm of their predicted length",
        better="lower",
        compute=_skeletons("bone_variance"),
        task="keypoints",
    ),
)

PSNR = "−10 log₁₀ of the mean squared error of pixels and channels, at most 100"
SSIM = (
    "Wang et al. 2004, −1 to 1: Gaussian window of 11 pixels, σ 1.5, no border, mean over channels (DyCheck, tf.image; "
    "scikit-image's default is another one)"
)
STRUCTURE = (
    "ours, 0 to 3, where there are no weights of LPIPS: (1 − SSIM) / 2 + mean absolute differences of the image "
    "gradients along rows and columns. Does not compare with LPIPS"
)


def _renders() -> list[Metric]:
    metrics: list[Metric] = []
    for prefix, where in (("render_", ""), ("render_novel_time_", "; over views from the input's cameras only")):
        summary = prefix == "render_"
        metrics += [
            Metric(f"{prefix}psnr", PSNR + where, unit="dB", better="higher", shown="summary" if summary else "tables"),
            Metric(f"{prefix}ssim", SSIM + where, better="higher", shown="summary" if summary else "tables"),
            Metric(f"{prefix}lpips", f"LPIPS 0.1, about 0 to 1; only where its weights are{where}", better="lower"),
            Metric(f"{prefix}structure", STRUCTURE + where, better="lower"),
            Metric(
                f"{prefix}psnr_dynamic",
                f"PSNR over the pixels that move at the image's own time{where}",
                unit="dB",
                better="higher",
                shown="summary" if summary else "tables",
            ),
        ]
    return metrics


RENDERS = (
    *_renders(),
    Metric(
        "fid",
        "Fréchet distance of the features of all renders and of all true images (Heusel et al. 2017); only where its "
        "network is given. Depends on their number",
        better="lower",
    ),
    Metric(
        "fvd",
        "the same of videos (Unterthiner et al. 2018): the views of one camera in temporal order, where they are 10 or "
        "more; only where its network is given",
        better="lower",
    ),
    Metric("render_mpsnr", "DyCheck's, over co-visible pixels", unit="dB", better="higher"),
    Metric(
        "render_mssim",
        "DyCheck's: partial convolution, rows before columns, mean over the whole map, 1 where a window sees nothing",
        better="higher",
    ),
    Metric(
        "render_mlpips",
        "DyCheck's: mean of the map inside the mask, of images that are black outside it",
        better="lower",
    ),
    Metric("render_mstructure", "`structure` with mSSIM, and gradients between pixels of the mask", better="lower"),
    Metric(
        "pck_t",
        "DyCheck's PCK-T: fraction of keypoints that land nearer than 0.05 · max(height, width) when they are carried "
        "from one annotated frame to another, over those seen in both, averaged over ordered pairs of frames",
        better="higher",
    ),
)


GROUPS: dict[str, tuple[Metric, ...]] = {
    "depth": DEPTH,
    "pose": POSE,
    "points": POINTS,
    "masks": MASKS,
    "motion": MOTION,
    "tracks": TRACKS,
    "keypoints": KEYPOINTS,
    "renders": RENDERS,
    "published": PUBLISHED,
    "training": (RELATIVE_MOTION, OBJECT_ROTATION),
}
METRICS = {metric.name: metric for group in GROUPS.values() for metric in group}


def of_video(metrics: Iterable[Metric]) -> tuple[Metric, ...]:
    """Metrics that evaluation computes from one prediction and its ground truth."""
    return tuple(metric for metric in metrics if metric.compute is not None and metric.validation != "only")


def of_validation(metrics: Iterable[Metric]) -> tuple[Metric, ...]:
    """Metrics that training's validation computes, beside the loss and its terms."""
    return tuple(metric for metric in metrics if metric.compute is not None and metric.validation != "no")


VIDEO = of_video(METRICS.values())
"""Metrics of one prediction against its ground truth."""
VALIDATION = of_validation(METRICS.values())
"""Metrics of validation during training, beside the loss and its terms."""
