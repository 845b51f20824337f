"""Published evaluation protocols: data set, frames, ground truth, depth caps and alignments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from four_d.datasets import (
    colmap,
    cut3r,
    davis,
    depths,
    dycheck,
    folder,
    kubric,
    nerfstudio,
    npz_tracks,
    nvidia_dynamic,
    pointodyssey,
    rgbd,
    scenes,
    sintel,
    spring,
    tartanair,
)
from four_d.datasets.facts import DataSet
from four_d.datasets.sequence import Sequence, Task
from four_d.errors import UserError
from four_d.metrics import tracks

Alignment = Literal["metric", "median", "scale", "scaleshift"]
"""Alignment of depth; ``scale`` and ``scaleshift`` minimise *absolute* errors as published code does (IRLS; Adam)."""
TrackProtocol = Literal["world", "tapvid3d"]
TAPVID3D_SCALINGS = get_args(tracks.Scaling)


CROPPED = 512
"""Longest side of maps before published code crops them."""


@dataclass(frozen=True, kw_only=True)
class PointSettings:
    """Settings of the comparison of point maps."""

    crop: tuple[int, int] | None
    """Rows and columns of the central crop of each map, resized to the longest side `CROPPED`; None = all pixels."""
    alignment: Literal["icp", "trajectory"]
    """``icp``: scale and shift, then rigid ICP; ``trajectory``: the Sim(3) of the camera centres, no ICP."""
    icp_distance: float | None
    """Greatest distance (m) of a correspondence in ICP."""
    normals: bool
    """True if normal consistency is part of the protocol."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """One published protocol: what to read and how to score it."""

    name: str
    tasks: tuple[Task, ...]
    reader: Callable[[Path, tuple[str, ...] | None], list[Sequence]]
    """Reader that `open` calls."""
    source: str
    """Published code that it follows, with the differences between papers."""
    layout: str
    """Layout under the root, in one line."""
    sequences: int | None = None
    """Number of videos (NYU: images) behind the published figures; None for a user's own data."""
    max_depth: float | None = None
    """Depth (m) at or beyond which truth is not scored."""
    clip_depth: float | None = None
    """Largest depth of predictions after alignment (m)."""
    alignments: tuple[Alignment, ...] = ()
    """Alignments of ``video_depth``: one fit per sequence."""
    frame_alignments: tuple[Alignment, ...] = ()
    """Alignments of ``depth``: one fit per frame."""
    points: PointSettings | None = None
    tracks: TrackProtocol | None = None
    """Definitions that the scores of tracks follow (`metrics.tracks`)."""
    scalings: tuple[str, ...] = ()
    """Alignments of predicted tracks, the protocol's own first."""

    def open(self, root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
        """List the sequences under ``root``, in the set's own layout, without reading images or depth.

        Several may have one name where a set takes other frames for another task (`Sequence.tasks`). UserError names
        a missing part and the expected layout, or a name in ``only`` that the protocol lacks.
        """
        if not root.is_dir():
            raise UserError(f"{root} is not a folder; {self.name} expects there: {self.layout}")
        return self.reader(root, only)


_VIDEO: tuple[Alignment, ...] = ("scale", "scaleshift", "metric")
_FRAME: tuple[Alignment, ...] = ("median",)
_ICP = PointSettings(crop=(224, 224), alignment="icp", icp_distance=0.1, normals=True)

_OWN_POINTS = PointSettings(crop=None, alignment="icp", icp_distance=0.1, normals=True)

_SINTEL = Protocol(
    name="sintel",
    tasks=("pose", "video_depth", "depth", "mask"),
    reader=sintel.read_sintel,
    source="MonST3R and CUT3R: pose on 14 sequences, depth on all 23 (both launch with the full list), caps 70 m; "
    "masks by MonST3R's recipe with the README's threshold of 0.1 px (the script's default is 13.75)",
    layout=sintel.LAYOUT,
    sequences=23,
    max_depth=70.0,
    clip_depth=70.0,
    alignments=_VIDEO,
    frame_alignments=_FRAME,
)
_BONN = Protocol(
    name="bonn",
    tasks=("pose", "video_depth", "depth"),
    reader=rgbd.read_bonn,
    source="MonST3R, CUT3R, PAGE-4D (after DepthCrafter): frames 30 to 139; images, depth and poses cut by index, "
    "not matched in time, and poses those of the tracked body: for pose see bonn_matched",
    layout=rgbd.BONN_LAYOUT,
    sequences=5,
    max_depth=70.0,
    alignments=_VIDEO,
    frame_alignments=_FRAME,
)
_DAVIS = Protocol(
    name="davis16",
    tasks=("mask",),
    reader=partial(davis.read_davis, names=davis.VAL_2016),
    source="DAS3R, Easi3R, VGGT4D with the davis2017 evaluator: objects merged, 480p; DAVIS-16 validation",
    layout=davis.LAYOUT,
    sequences=20,
)
_SEVEN_SCENES = Protocol(
    name="seven_scenes",
    tasks=("points",),
    reader=scenes.read_seven_scenes,
    source="Spann3R and CUT3R: test sequences, a key frame every 200, registered depth up to 10 m, central 224 × 224 "
    "of 512 × 384",
    layout=scenes.SEVEN_SCENES_LAYOUT,
    sequences=18,
    points=_ICP,
)

_ENTRIES = (
    _SINTEL,
    replace(
        _SINTEL,
        name="sintel_14",
        reader=partial(sintel.read_sintel, depth=sintel.POSE),
        source="depth on the 14 pose sequences only: what MonST3R's and CUT3R's scorers take when given no more",
    ),
    replace(
        _SINTEL,
        name="sintel_page4d",
        reader=partial(sintel.read_sintel, depth=tuple(name for name in sintel.SEQUENCES if name != "market_5")),
        source="PAGE-4D: its video-depth script skips market_5 (22 sequences) and, as released, stretches images to "
        "518 × 518; the paper's pose table says 10 frames of each sequence, the script takes all",
    ),
    Protocol(
        name="tum",
        tasks=("pose",),
        reader=rgbd.read_tum_dynamics,
        source="MonST3R's later preparation, CUT3R, PAGE-4D: 90 frames at stride 3. MonST3R's first (ATE 0.098) was on "
        "other data, VGGT4D and Easi3R use stride 30: never in one table",
        layout=rgbd.TUM_LAYOUT,
        sequences=8,
    ),
    _BONN,
    replace(
        _BONN,
        name="bonn_matched",
        reader=partial(rgbd.read_bonn, by_time=True),
        source="ours: the same images as bonn, with depth and pose nearest in time (0.02 s) and poses of the camera",
    ),
    Protocol(
        name="scannet",
        tasks=("pose",),
        reader=scenes.read_scannet,
        source="MonST3R and CUT3R: scenes 0707 to 0806, first take, first 90 frames at stride 3. D4RT takes others",
        layout=scenes.SCANNET_LAYOUT,
        sequences=100,
    ),
    Protocol(
        name="kitti",
        tasks=("video_depth", "depth"),
        reader=depths.read_kitti,
        source="MonST3R and CUT3R (after DepthCrafter): 13 drives, first 110 frames with depth, camera 02, no cap",
        layout=depths.KITTI_LAYOUT,
        sequences=13,
        alignments=_VIDEO,
        frame_alignments=_FRAME,
    ),
    Protocol(
        name="nyu",
        tasks=("depth",),
        reader=depths.read_nyu,
        source="MonST3R and CUT3R: 654 test images, no crop, no cap",
        layout=depths.NYU_LAYOUT,
        sequences=654,
        frame_alignments=_FRAME,
    ),
    Protocol(
        name="dycheck",
        tasks=("video_depth", "depth", "pose", "points"),
        reader=dycheck.read_dycheck,
        source="PAGE-4D: 13 captures, camera 0; first 120 frames for depth (cap 70 m; none frame by frame, where lidar "
        "ends at 3 m anyway), stride 10 for pose; points as Easi3R, on the pose frames (their choice is not published)",
        layout=dycheck.LAYOUT,
        sequences=13,
        max_depth=70.0,
        alignments=_VIDEO,
        frame_alignments=_FRAME,
        points=PointSettings(crop=None, alignment="trajectory", icp_distance=None, normals=False),
    ),
    _SEVEN_SCENES,
    replace(
        _SEVEN_SCENES,
        name="seven_scenes_raw",
        reader=partial(scenes.read_seven_scenes, registered=False),
        source="ours: seven_scenes with depth as downloaded, not registered to colour: does not compare with papers",
    ),
    Protocol(
        name="nrgbd",
        tasks=("points",),
        reader=scenes.read_nrgbd,
        source="Spann3R and CUT3R: a key frame every 500 (or half the scene), depth up to 10 m, central 224 × 224 of "
        "512 × 384",
        layout=scenes.NRGBD_LAYOUT,
        sequences=9,
        points=_ICP,
    ),
    _DAVIS,
    replace(
        _DAVIS,
        name="davis17",
        reader=partial(davis.read_davis, names=davis.VAL_2017),
        source=_DAVIS.source.replace("DAVIS-16", "DAVIS-17"),
        sequences=30,
    ),
    replace(
        _DAVIS,
        name="davis_all",
        reader=davis.read_davis,
        source=_DAVIS.source.replace("DAVIS-16 validation", "every annotated video found (training and validation)"),
        sequences=90,
    ),
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
        name="folder",
        tasks=("pose", "video_depth", "depth", "points", "mask"),
        reader=folder.read_folder,
        source="ours: a folder of your own; no cap, points without crop",
        layout=folder.LAYOUT,
        alignments=_VIDEO,
        frame_alignments=_FRAME,
        points=_OWN_POINTS,
    ),
)
_VIEWS = (
    Protocol(
        name="dycheck_views",
        tasks=("views",),
        reader=dycheck.read_views,
        source="DyCheck: camera 0 is the input, the static phones are held out; half of the filmed size; scores "
        "over co-visible pixels (mPSNR, mSSIM, mLPIPS of AlexNet), PCK-T at 5 % of the longer side. Shape of Motion "
        "leaves out space-out and wheel, takes the full size and refines cameras: never in one table",
        layout=dycheck.VIEWS_LAYOUT,
        sequences=7,
    ),
    Protocol(
        name="nvidia_nsff",
        tasks=("views",),
        reader=nvidia_dynamic.read_nsff,
        source="NSFF: 24 times, the eleven other cameras at each, 288 rows; whole images and moving pixels. Its SSIM "
        "is scikit-image's (a box of 7 pixels), its LPIPS AlexNet's",
        layout=nvidia_dynamic.NSFF_LAYOUT,
        sequences=8,
    ),
    Protocol(
        name="nvidia_first",
        tasks=("views",),
        reader=nvidia_dynamic.read_first_camera,
        source="DynamicNeRF, RoDynRF, MoSca: 12 times, the first camera at each, 480 × 270; its image at the first "
        "time is an input, and counts. SSIM and LPIPS as nvidia_nsff",
        layout=nvidia_dynamic.FIRST_LAYOUT,
        sequences=7,
    ),
)


def _whole(dataset: DataSet) -> Protocol:
    """Protocol of a set that no paper scores so: each sequence of one camera whole, for all that it has truth of."""
    return Protocol(
        name=dataset.name,
        tasks=("pose", "video_depth", "depth", "points"),
        reader=partial(_read_whole, dataset),
        source=f"ours: all of {dataset.title}; no cap, points without crop",
        layout=dataset.layout,
        alignments=_VIDEO,
        frame_alignments=_FRAME,
        points=_OWN_POINTS,
    )


def _read_whole(dataset: DataSet, root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
    listed = [sequence for sequence in dataset.reader(root, only) if sequence.camera_ids is None]
    return [replace(sequence, tasks=_tasks(sequence)) for sequence in listed]


def _tasks(sequence: Sequence) -> tuple[Task, ...]:
    tasks: list[Task] = [] if sequence.cameras is None else ["pose"]
    if sequence.depth is not None:
        tasks.extend(("video_depth", "depth"))
        tasks.extend(() if sequence.cameras is None else ("points",))
    return tuple(tasks)


_WHOLE = (
    *cut3r.CUT3R_SETS,
    pointodyssey.POINTODYSSEY,
    tartanair.TARTANAIR,
    spring.SPRING,
    kubric.KUBRIC,
    colmap.COLMAP,
    nerfstudio.NERFSTUDIO,
)
PROTOCOLS: dict[str, Protocol] = {entry.name: entry for entry in (*_ENTRIES, *_VIEWS, *map(_whole, _WHOLE))}
