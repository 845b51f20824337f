"""Published evaluation protocols: data set, frames, ground truth, depth caps and alignments."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from four_d.datasets import (
    artemis,
    colmap,
    cut3r,
    davis,
    depths,
    dycheck,
    folder,
    kubric,
    movi_tfds,
    nerfstudio,
    nvidia_dynamic,
    pointodyssey,
    rgbd,
    scenes,
    sintel,
    spring,
    tartanair,
    wai,
)
from four_d.datasets.facts import DataSet
from four_d.datasets.sequence import Sequence, Task
from four_d.protocols.protocol import Alignment, PointSettings, Protocol
from four_d.protocols.tracks import TRACKED

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


def _by_camera(sequence: Sequence) -> list[Sequence]:
    """Videos of a rig's cameras, as ``NAME/camera_0``, since a protocol scores one camera at a time."""
    if sequence.camera_ids is None:
        return [sequence]
    frames = {camera: list[int]() for camera in sorted(set(sequence.camera_ids))}
    for frame, camera in enumerate(sequence.camera_ids):
        frames[camera].append(frame)
    parts = {camera: sequence.take(own) for camera, own in frames.items()}
    return [
        replace(part, name=f"{sequence.name}/camera_{camera}", camera_ids=None, times=_from_zero(part.times))
        for camera, part in parts.items()
    ]


def _from_zero(times: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(time - times[0] for time in times)


def _read_folder(root: Path, only: tuple[str, ...] | None) -> list[Sequence]:
    return [video for sequence in folder.read_folder(root, only) for video in _by_camera(sequence)]


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
        name="scannet_depth",
        tasks=("video_depth",),
        reader=scenes.read_scannet_depth,
        source="DepthCrafter and Video Depth Anything: scenes 0707 to 0806, first 90 frames at stride 3, without 8 "
        "rows and 11 columns (of 480 × 640) on each side, truth up to 10 m; scores of each frame, then means over "
        "frames and over scenes",
        layout=scenes.SCANNET_DEPTH_LAYOUT,
        sequences=100,
        max_depth=scenes.FARTHEST,
        alignments=("disparity",),
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
    replace(
        _SEVEN_SCENES,
        name="seven_scenes_depth",
        tasks=("video_depth",),
        reader=partial(scenes.read_seven_scenes, every=10, tasks=("video_depth",)),
        source="ours: test sequences, every tenth frame (100 of 1000, near Bonn's and KITTI's 110), registered depth "
        "up to 10 m, aligned as Bonn; no published code that we read states the frames of its video depth on 7-Scenes",
        points=None,
        alignments=_VIDEO,
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
        name="folder",
        tasks=("pose", "video_depth", "depth", "points", "mask"),
        reader=_read_folder,
        source="ours: a folder of your own, each camera a video; no cap, points without crop",
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
_ARTEMIS = tuple(
    Protocol(
        name=f"artemis_{degrees}",
        tasks=("views",),
        reader=partial(artemis.read_coverage, degrees=degrees),
        source=f"after PAD3R's experiment on Artemis' animals, a video that covers {degrees}° around the animal; its "
        "motions are named, its cameras, frames and scores are not published: ours are the first 30 frames, each by "
        "the view nearest to an even sweep, and four views a quarter turn apart held out at 8 of the times",
        layout=artemis.LAYOUT,
    )
    for degrees in artemis.COVERAGES
)


def _whole(dataset: DataSet) -> Protocol:
    """Protocol of a set that no paper scores so: each camera's video whole, for all that it has truth of."""
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
    listed = [video for sequence in dataset.reader(root, only) for video in _by_camera(sequence)]
    metric = [dataset.metric if video.metric is None else video.metric for video in listed]
    return [replace(video, tasks=_tasks(video), metric=each) for video, each in zip(listed, metric, strict=True)]


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
    movi_tfds.MOVI_TFDS,
    colmap.COLMAP,
    nerfstudio.NERFSTUDIO,
    wai.WAI,
)
PROTOCOLS: dict[str, Protocol] = {
    entry.name: entry for entry in (*_ENTRIES, *TRACKED, *_VIEWS, *_ARTEMIS, *map(_whole, _WHOLE))
}
