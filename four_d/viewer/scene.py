"""Moving point cloud, recorded with viser as one stand-alone HTML document.

The recording's clock counts frames: for f frames, second k shows frame k, second f all frames at once, and with splats
second f + 1 + k shows those of frame k in place of points. The page around it drives that clock (`page.js`).
"""

from __future__ import annotations

import contextlib
import importlib
import io
import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import roma
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.formats.clouds import PointCloud
from four_d.types import Cameras
from four_d.viewer.splats import Film, Reel

if TYPE_CHECKING:
    import viser

_FrameNodes: TypeAlias = "tuple[viser.PointCloudHandle | None, viser.CameraFrustumHandle]"
"""Handles of a frame; None for an empty cloud, which a browser cannot draw."""

POINTS_PER_FRAME = 20_000
FIELD_OF_VIEW = math.radians(50)
DRAWN_FOV = math.radians(10), math.radians(120)
CURRENT_COLOUR, OTHER_COLOUR = (240, 90, 40), (120, 130, 145)
LARGEST_POINT = 0.03
FAR = 20.0
"""Factor of the median distance beyond which points are left out: they only shrink the view."""


def scene_html(cloud: PointCloud, cameras: Cameras, size: tuple[int, int], films: Sequence[Film] = ()) -> str:
    """Record a cloud, played over its frames, and every camera's frustum as an HTML document.

    Args:
        cloud: points with their frames; the world is the first frame's camera.
        cameras: f of them, intrinsics in pixels of ``size``.
        size: height and width of the frames.
        films: splats over the frames, one film after the other, in units of `scene_unit`.

    Raises:
        UserError: without the extra `viz`.

    """
    check_viser("the report page")
    import viser

    # viser prints to stdout, and listens on a free port of this machine during the recording
    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
        try:
            return _record(server, cloud, cameras, size, films)
        finally:
            server.stop()


def check_viser(what: str) -> None:
    """Raise UserError without the extra `viz`."""
    try:
        importlib.import_module("viser")
    except ImportError as error:
        raise UserError(f"{what} needs viser; install it with: pip install 'four_d[viz]'") from error


def scene_unit(cloud: PointCloud, cameras: Cameras) -> float:
    """Divisor of lengths in the scene: the points' median distance to the first camera; 1 without points."""
    return max(float(np.median(_distances(cloud, cameras))), 1e-9) if len(cloud) else 1.0


def _distances(cloud: PointCloud, cameras: Cameras) -> NDArray[np.float64]:
    return np.linalg.norm(cloud.points - cameras.world_from_camera[0, :3, 3].double().cpu().numpy(), axis=-1)


def _record(
    server: viser.ViserServer, cloud: PointCloud, cameras: Cameras, size: tuple[int, int], films: Sequence[Film]
) -> str:
    poses = cameras.world_from_camera.double().cpu().numpy()
    unit = scene_unit(cloud, cameras)
    _set_view(server, poses[0], unit)
    views = [_field_and_aspect(matrix, size) for matrix in cameras.intrinsics.double().cpu().numpy()]
    _add_cameras(server, poses, views, unit)
    # a point covers about one pixel of its camera at the median distance
    point_size = min(1.3 / float(cameras.intrinsics[:, 0, 0].median()), LARGEST_POINT)
    near = cloud.take(_distances(cloud, cameras) <= FAR * unit)
    nodes: list[_FrameNodes] = []
    for k, (pose, view) in enumerate(zip(poses, views, strict=True)):
        points = _add_points(server, k, _frame_cloud(near, k, unit), point_size)
        nodes.append((points, _add_frustum(server, f"/frames/{k}/camera", pose, view, unit, current=True)))
    return _play(server, nodes, films)


def _play(server: viser.ViserServer, nodes: Sequence[_FrameNodes], films: Sequence[Film]) -> str:
    """Play one frame a second, then all points for a second, then the splats frame by frame."""
    for later in nodes[1:]:
        _show(later, points=False, frustum=False)
    serializer = server.get_scene_serializer()
    for before, after in itertools.pairwise(nodes):
        serializer.insert_sleep(1.0)
        _show(after, points=True, frustum=True)
        _show(before, points=False, frustum=False)
    serializer.insert_sleep(1.0)
    for node in nodes:
        _show(node, points=True)
    serializer.insert_sleep(1.0)
    if films:
        _play_splats(server, serializer.insert_sleep, nodes, films)
    return serializer.as_html()


def _show(node: _FrameNodes, *, points: bool, frustum: bool | None = None) -> None:
    """Show or hide; ``frustum`` None: unchanged."""
    cloud, camera = node
    if cloud is not None:
        cloud.visible = points
    if frustum is not None:
        camera.visible = frustum


def _play_splats(
    server: viser.ViserServer, sleep: Callable[[float], None], nodes: Sequence[_FrameNodes], films: Sequence[Film]
) -> None:
    """Play splats in place of the points, one frame a second. All are added at the start: viser loses later ones."""
    for node in nodes:
        _show(node, points=False, frustum=False)
    reels = [Reel.add(server, f"/splats/{index}", film) for index, film in enumerate(films)]
    for later in reels[1:]:
        later.show(None)
    frusta = iter([frustum for _, frustum in nodes])
    for before, reel in itertools.pairwise([None, *reels]):
        assert reel is not None
        if before is not None:
            before.show(None)
        for index, frustum in zip(range(len(reel.film.times)), frusta, strict=False):
            frustum.visible = True
            reel.show(index)
            sleep(1.0)
            frustum.visible = False


def _add_points(server: viser.ViserServer, k: int, cloud: PointCloud, size: float) -> viser.PointCloudHandle | None:
    if not len(cloud):
        return None
    return server.scene.add_point_cloud(
        f"/frames/{k}/points",
        cloud.points,
        cloud.colours,
        point_size=size,
        point_shape="rounded",
        point_shading="flat",
    )


def _add_frustum(
    server: viser.ViserServer,
    name: str,
    pose: NDArray[np.float64],
    view: tuple[float, float],
    unit: float,
    *,
    current: bool,
) -> viser.CameraFrustumHandle:
    """Add a camera: large and orange for the current frame, small and grey for the others."""
    return server.scene.add_camera_frustum(
        name,
        fov=view[0],
        aspect=view[1],
        scale=0.06 if current else 0.025,
        thickness=0.004 if current else 0.0015,
        color=CURRENT_COLOUR if current else OTHER_COLOUR,
        wxyz=_quaternion(pose),
        position=pose[:3, 3] / unit,
    )


def _set_view(server: viser.ViserServer, first: NDArray[np.float64], unit: float) -> None:
    """Set the view from behind and above the first camera to the middle of the scene, a median distance away."""
    rotation, centre = first[:3, :3], first[:3, 3] / unit
    server.scene.set_up_direction(-rotation[:, 1])
    server.initial_camera.position = rotation @ np.array([0.2, -0.3, -0.55]) + centre
    server.initial_camera.look_at = rotation @ np.array([0.0, 0.05, 0.9]) + centre
    server.initial_camera.fov = FIELD_OF_VIEW


def _field_and_aspect(intrinsics: NDArray[np.float64], size: tuple[int, int]) -> tuple[float, float]:
    """Vertical field of view and width per height to draw.

    Both have bounds: a spike or a plane, as an untrained model has it, would fill the view.
    """
    height, width = size
    fov = 2 * math.atan(height / 2 / float(intrinsics[1, 1]))
    aspect = width / height * float(intrinsics[1, 1] / intrinsics[0, 0])
    return min(max(fov, DRAWN_FOV[0]), DRAWN_FOV[1]), min(max(aspect, 0.25), 4.0)


def _add_cameras(
    server: viser.ViserServer, poses: NDArray[np.float64], views: list[tuple[float, float]], unit: float
) -> None:
    """Add permanent small grey frusta of all frames and the line through their centres."""
    for k, (pose, view) in enumerate(zip(poses, views, strict=True)):
        _add_frustum(server, f"/cameras/{k}", pose, view, unit, current=False)
    centres = (poses[:, :3, 3] / unit).astype(np.float32)
    if len(centres) > 1:
        segments = np.stack([centres[:-1], centres[1:]], axis=1)
        server.scene.add_line_segments("/path", segments, colors=OTHER_COLOUR, thickness=0.002)


def _frame_cloud(cloud: PointCloud, frame: int, unit: float) -> PointCloud:
    points = cloud.take(cloud.frames == frame).thin(POINTS_PER_FRAME)
    return PointCloud(
        points=points.points / np.float32(unit),
        colours=points.colours,
        frames=points.frames,
        confidence=points.confidence,
    )


def _quaternion(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wxyz of a pose's rotation."""
    import torch

    return roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(torch.from_numpy(pose[:3, :3]))).numpy()
