"""Metrics of published protocols, as values, with the names and definitions of their authors (`protocols`)."""

from __future__ import annotations

from typing import get_args

from four_d.metrics.metric import Better, Metric
from four_d.metrics.tracks import WORLD_ALIGNMENTS, Scaling

APD = "mean of the fractions with a distance below 0.1, 0.3, 0.5 and 1.0"


def _published_depth() -> list[Metric]:
    scores: dict[str, tuple[str, Better]] = {
        "absrel": ("", "lower"),
        "sqrel": ("m", "lower"),
        "rmse": ("m", "lower"),
        "logrmse": ("", "lower"),
        "delta125": ("", "higher"),
        "delta125_2": ("", "higher"),
        "delta125_3": ("", "higher"),
    }
    fits = {
        "scale": "one fit per sequence: least absolute error by 10 Weiszfeld iterations; mean weighted by valid pixels",
        "scaleshift": "at most 1000 steps of Adam (rate 1e-4) on the absolute error, from the median ratio",
        "median": "one fit per sequence: the ratio of medians",
        "metric": "no fit",
        "frame_median": "single frames: each given to the model alone, aligned by its median",
    }
    return [
        Metric(f"depth_{score}_published_{fit}", text, unit=unit, better=better)
        for fit, text in fits.items()
        for score, (unit, better) in scores.items()
    ]


def _published_points() -> list[Metric]:
    distances = ("accuracy", "accuracy_median", "completeness", "completeness_median")
    normals = ("nc1", "nc1_median", "nc2", "nc2_median", "nc", "nc_median")
    icp = "scale and shift by medians, central crop, rigid ICP from the identity; "
    path = "Sim(3) of the camera centres, no ICP; "
    nearest = "distance to the nearest point"
    return [
        *(Metric(f"points_{s}_published_icp", icp + nearest, unit="m", better="lower") for s in distances),
        *(
            Metric(
                f"points_{s}_published_icp",
                rf"{icp}mean \|n · n'\| of nearest points, normals from 30 neighbours",
                better="higher",
            )
            for s in normals
        ),
        *(Metric(f"points_{s}_published_trajectory", path + nearest, unit="m", better="lower") for s in distances),
        *(
            Metric(
                f"points_{s}_published_trajectory",
                f"{path}distance from pixel to corresponding pixel",
                unit="m",
                better="lower",
            )
            for s in ("dist", "dist_median")
        ),
    ]


def _published_masks() -> list[Metric]:
    text = "J and F of all frames, objects merged: means, and fractions of frames above ½"
    return [Metric(f"mask_{letter}{kind}_davis", text, better="higher") for letter in "jf" for kind in "mr"]


SCENE_FLOW: dict[str, tuple[str, str, Better]] = {
    "epe": ("EPE3D of displacements since the first frame", "m", "lower"),
    "strict": ("Acc3DS: fraction of these with an error below 0.05 m or 5 %", "", "higher"),
    "relaxed": ("Acc3DR: fraction of these with an error below 0.1 m or 10 %", "", "higher"),
    "outliers": ("fraction of these with an error above 0.3 m or 10 %", "", "lower"),
}


def _world_tracks() -> list[Metric]:
    metrics: list[Metric] = []
    for scaling in WORLD_ALIGNMENTS:
        for suffix in ("", "_dynamic"):
            name = f"world_{scaling}{suffix}"
            metrics += [
                Metric(f"apd_{name}", f"WorldTrack: {APD} m, of all points or of dynamic tracks", better="higher"),
                Metric(f"epe_{name}", "WorldTrack: mean distance of the same", unit="m", better="lower"),
                *(
                    Metric(f"sceneflow_{score}_{name}", text, unit=unit, better=better, shown="files")
                    for score, (text, unit, better) in SCENE_FLOW.items()
                ),
            ]
    return metrics


PUBLISHED = (
    *_published_depth(),
    *_published_points(),
    *_published_masks(),
    *_world_tracks(),
    Metric("track_dynamic_fraction", "WorldTrack: fraction of the tracks that are dynamic"),
    *(
        metric
        for scaling in get_args(Scaling)
        for metric in (
            Metric(
                f"aj_tapvid3d_{scaling}",
                "TAPVid-3D: average Jaccard over the distances that project to 1, 2, 4, 8, 16 pixels",
                better="higher",
            ),
            Metric(
                f"apd_tapvid3d_{scaling}",
                "TAPVid-3D: mean over these distances of the fraction of truly visible points that are as near",
                better="higher",
            ),
        )
    ),
    Metric("oa_tapvid3d", "TAPVid-3D: fraction of points and times whose visibility is right", better="higher"),
    Metric("track_scale", "metres to the predictor's unit of length, whatever the alignment"),
)
