"""Consistency checks of a clip's keypoints: positions against pixels, and the lengths of rigid bones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from four_d import geometry
from four_d.data.contract import KeypointArrays, KeypointInfo, RawClip
from four_d.data.measures import Finding, Measure, Unchecked
from four_d.data.truth import cameras_of

PIXEL_LIMIT = 0.01
"""Largest median distance of a frame's keypoints from their projections, as a fraction of the image's longer side: what
detectors err."""
LEAST_PIXEL_LIMIT = 1.0
"""Least value of that limit in pixels."""
BONE_LIMIT = 0.15
"""Largest standard deviation of a rigid bone's length over its mean: what triangulation errs."""


def keypoint_findings(clip: RawClip) -> Iterator[Finding]:
    """Check keypoints, if the clip has any: pixels where cameras are known too, and rigid bones."""
    if clip.keypoints is None or clip.info.keypoints is None:
        return
    if (pixels := _pixel_measure(clip, clip.keypoints)) is not None:
        yield pixels
    else:
        yield Unchecked(what="keypoint pixels", why="no keypoint has both its pixel and its position, seen by a camera")
    if (bones := _bone_measure(clip.keypoints, clip.info.keypoints)) is not None:
        yield bones
    else:
        yield Unchecked(what="bone lengths", why="both ends of no rigid bone have positions in two frames")


def _pixel_measure(clip: RawClip, keypoints: KeypointArrays) -> Measure | None:
    cameras, both = cameras_of(clip), keypoints.valid & keypoints.pixels_valid
    if cameras is None or not both.any():
        return None
    pixels, depth = geometry.project(torch.from_numpy(keypoints.points), cameras)
    away = np.linalg.norm(pixels.numpy() - keypoints.pixels, axis=-1)
    away[depth.numpy() <= 0] = np.inf  # which has no pixel
    medians = np.array([np.median(row[known]) if known.any() else -1.0 for row, known in zip(away, both)])
    limit = max(PIXEL_LIMIT * max(clip.info.width, clip.info.height), LEAST_PIXEL_LIMIT)
    return Measure(
        check="keypoint pixels",
        value=float(medians.max()),
        limit=limit,
        frame=int(medians.argmax()),
        what="median distance in pixels of keypoints from where the camera sees their positions",
        remedy="positions are of the world at the frame's time, pixels (x, y) of the stored images from their corner, "
        "and both in the order of the names; poses are world_from_camera",
    )


def _bone_measure(keypoints: KeypointArrays, said: KeypointInfo) -> Measure | None:
    """Measure the rigid bone whose length varies most, over the frames in which both its ends are known."""
    worst, name = -1.0, ""
    for (start, end), rigid in zip(said.edges, said.rigid, strict=True):
        both = keypoints.valid[:, start] & keypoints.valid[:, end]
        if not rigid or both.sum() < 2:
            continue
        lengths = np.linalg.norm(keypoints.points[both, start] - keypoints.points[both, end], axis=-1)
        varies = float(lengths.std() / lengths.mean()) if lengths.mean() > 0 else float("inf")
        if varies > worst:
            worst, name = varies, f"{said.names[start]} to {said.names[end]}"
    if not name:
        return None
    return Measure(
        check="bone lengths",
        value=worst,
        limit=BONE_LIMIT,
        what=f"the rigid bone from {name} varies, its length's standard deviation over its mean",
        remedy="its points are swapped or of different things in some frames, or rigid is wrong: set it to false for "
        "bones whose length may change",
    )
