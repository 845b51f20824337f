"""Metrics of published protocols, as values, with the names and definitions of their authors (`protocols`)."""

from __future__ import annotations

from typing import get_args

from four_d.metrics.metric import Better, Metric
from four_d.metrics.rig_tracks import GROUPS
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
    ] + [
        Metric(
            f"depth_{score}_published_disparity",
            "one fit per sequence: scale and shift of disparity by least squares; of each frame, then means over "
            "frames and sequences",
            unit=scores[score][0],
            better=scores[score][1],
        )
        for score in ("absrel", "rmse", "delta125")
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
    "tau": ("Any4D: fraction of these with an error below 0.1 m", "", "higher"),
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


def _point_maps() -> list[Metric]:
    of_pair = "; of points of frame i at the time of frame j of a pair"
    return [
        Metric(
            f"epe_dpm{which}_{scaling}{suffix}",
            "V-DPM: mean distance of points at other times, as a fraction of the true points' mean distance from the "
            f"first camera, of all or of dynamic tracks{of_pair if which else ''}",
            better="lower",
        )
        for which in ("", "_0_0", "_0_1", "_1_0", "_1_1")
        for scaling in WORLD_ALIGNMENTS
        for suffix in ("", "_dynamic")
    ]


RIG_SCORES = {
    "jaccard": "aj",
    "within": "apd",
    "occlusion": "oa",
    "median": "mte",
    "mean": "ate",
    "final": "fde",
    "survival": "survival",
}
"""Word of each of `rig_tracks.RigScores` in its metrics' names."""
RIG_ALIGNMENTS = ("cameras", "sim3_closed", "none")
"""Alignments of tracks in the world of several cameras."""


def _rig_tracks() -> list[Metric]:
    texts: dict[str, tuple[str, str, Better]] = {
        "aj": ("average Jaccard over the set's distances", "", "higher"),
        "apd": ("mean over the set's distances of the fraction of visible times that are nearer", "", "higher"),
        "oa": ("fraction of times with the right visibility", "", "higher"),
        "mte": ("median distance over visible times, the query's too", "m", "lower"),
        "ate": ("mean distance over visible times, the query's too", "m", "lower"),
        "fde": ("distance at the last visible time", "m", "lower"),
        "survival": ("fraction of the times from the query on before the track is lost", "", "higher"),
    }
    shown = {"aj", "apd", "oa", "ate"}
    return [
        Metric(
            f"{score}_mvtracker_{scaling}{suffix}",
            f"MVTracker, {text}; of each track, and its mean over all, static, dynamic and very dynamic tracks; "
            "balanced: mean of static and dynamic",
            unit=unit,
            better=better,
            shown="tables" if score in shown and suffix in ("", "_dynamic", "_balanced") else "files",
        )
        for score, (text, unit, better) in texts.items()
        for scaling in RIG_ALIGNMENTS
        for suffix in GROUPS
    ]


PUBLISHED = (
    *_published_depth(),
    *_published_points(),
    *_published_masks(),
    *_world_tracks(),
    *_point_maps(),
    *_rig_tracks(),
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
    *(
        Metric(f"{score}_tapvid_{mode}", f"TAP-Vid, queries {where}: {text}", better="higher")
        for mode, where in (("first", "where a point is seen first"), ("strided", "every fifth frame"))
        for score, text in (
            ("aj", "average Jaccard over distances of 1, 2, 4, 8, 16 pixels of an image of 256 × 256"),
            ("apd", "mean over these distances of the fraction of truly visible points that are nearer"),
            ("oa", "fraction of points and frames whose visibility is right"),
        )
    ),
    Metric("track_scale", "metres to the predictor's unit of length, whatever the alignment"),
)
