"""Protocols of points that are followed: in the image, in 3D, and in the world of several cameras."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import get_args

from four_d.datasets import kubric, npz_tracks, pointodyssey, rig_tracks, snippets, tapvid
from four_d.metrics import tracks
from four_d.metrics.published import RIG_ALIGNMENTS
from four_d.metrics.rig_tracks import RigThresholds
from four_d.protocols.protocol import Protocol

TAPVID3D_SCALINGS = get_args(tracks.Scaling)

_TAPVID = Protocol(
    name="tapvid_first",
    tasks=("pixel_tracks",),
    reader=partial(tapvid.read_tapvid, mode="first"),
    source="TAP-Vid's evaluator: points queried where they are seen first; frames after it count, errors in an image "
    "of 256 × 256. Videos keep their shape and the model its size: papers that stretch them to 256 × 256 saw others",
    layout=tapvid.LAYOUT,
)
_CLIPS = (
    Protocol(
        name="worldtrack",
        tasks=("tracks",),
        reader=npz_tracks.read_worldtrack,
        source="St4RTrack and DePT3R: first 64 frames, tracks seen in the first, its camera's coordinates, one scale "
        "by medians; 4RC aligns by sim3_ransac. Tables list the four sources apart",
        layout=npz_tracks.WORLDTRACK_LAYOUT,
        tracks="world",
        scalings=tuple(tracks.WORLD_ALIGNMENTS),
    ),
    Protocol(
        name="tapvid3d",
        tasks=("tracks",),
        reader=npz_tracks.read_tapvid3d,
        source="TAPVid-3D's evaluator: each frame's camera coordinates, mean of the three sources' means; of minival "
        "or full_eval whatever clips are there. A clip that fails is left out and reported, not scored 0",
        layout=npz_tracks.TAPVID3D_LAYOUT,
        tracks="tapvid3d",
        scalings=TAPVID3D_SCALINGS,
    ),
    Protocol(
        name="any4d_tracks",
        tasks=("tracks",),
        reader=npz_tracks.read_any4d,
        source="Any4D, as far as its paper states: TAPVid-3D's clips of DriveTrack and Panoptic Studio in the first "
        "camera's coordinates, dynamic points, scene flow since the first frame and its share below 0.1 m; frames (64) "
        "and alignment (by medians) are not stated and taken from worldtrack",
        layout=npz_tracks.ANY4D_LAYOUT,
        tracks="world",
        scalings=tuple(tracks.WORLD_ALIGNMENTS),
    ),
    _TAPVID,
    replace(
        _TAPVID,
        name="tapvid_strided",
        reader=partial(tapvid.read_tapvid, mode="strided"),
        source=_TAPVID.source.replace(
            "where they are seen first; frames after it count", "every fifth frame; all other frames count"
        ),
    ),
)
_SNIPPETS = tuple(
    Protocol(
        name=f"vdpm_{dataset.name}_{kind}",
        tasks=("tracks",),
        reader=partial(
            snippets.read_snippets, reader=dataset.reader, frames=frames, step=step, queried=min(frames, queried)
        ),
        source=f"V-DPM, as far as its paper states: {what}, first camera's coordinates, lengths as fractions of their "
        "mean; snippets (10 of a video, evenly spread), alignment and which videos are not stated: ours. Points are "
        "those of tracks",
        layout=dataset.layout,
        tracks="dpm",
        scalings=tuple(tracks.WORLD_ALIGNMENTS),
    )
    for dataset in (pointodyssey.POINTODYSSEY, kubric.KUBRIC)
    for kind, frames, step, queried, what in (
        ("margin2", 2, 2, 2, "points of both of two frames 2 apart at both times"),
        ("margin8", 2, 8, 2, "points of both of two frames 8 apart at both times"),
        ("tracks", 10, 2, 1, "points of the first of ten frames, 2 apart, at all times"),
    )
)
_RIGS = tuple(
    Protocol(
        name=f"mvtracker_{name}",
        tasks=("rig_tracks",),
        reader=each.read,
        source=f"MVTracker's evaluator: {what}; the tracks and queries of the released files, each point asked for in "
        "the first view that sees it. Published models are given cameras, depth and the query's position, ours images",
        layout=each.layout,
        sequences=each.count,
        rig=thresholds,
        scalings=RIG_ALIGNMENTS,
    )
    for name, each, what, thresholds in (
        (
            "kubric",
            rig_tracks.KUBRIC,
            "the first 30 test scenes, views 0 to 3, 24 frames; its table lists the mean of static and dynamic",
            RigThresholds(within=(0.05, 0.1, 0.2, 0.4, 0.8), survival=0.5, static=0.01, dynamic=0.1, very_dynamic=2.0),
        ),
        (
            "panoptic",
            rig_tracks.PANOPTIC,
            "the first 6 sequences by name (its README says 10), views 1, 7, 14 and 20, all frames",
            RigThresholds(within=(0.05, 0.1, 0.2, 0.4), survival=1.0),
        ),
        (
            "dexycb",
            rig_tracks.DEXYCB,
            "the first 10 sequences by name, views 0 to 3, all frames; its table lists the mean of static and dynamic",
            RigThresholds(
                within=(0.01, 0.02, 0.05, 0.1, 0.2), survival=0.1, static=0.01, dynamic=0.1, very_dynamic=0.5
            ),
        ),
    )
)
TRACKED = (*_CLIPS, *_SNIPPETS, *_RIGS)
"""All protocols of tracks."""
