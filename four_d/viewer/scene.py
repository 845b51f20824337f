"""The moving point cloud, recorded with viser as one stand-alone HTML document.

The recording's clock counts frames: during second k frame k is shown, in the last second all frames at once. The page
around it moves that clock (`page.js`).
"""

from __future__ import annotations

import contextlib
import io
import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import roma
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.formats.clouds import PointCloud
from four_d.types import Cameras

if TYPE_CHECKING:
    import viser

POINTS_PER_FRAME = 20_000
FIELD_OF_VIEW = math.radians(50)
NOW_COLOUR, OTHER_COLOUR = (240, 90, 40), (120, 130, 145)
FAR = 20.0
"""Points farther than this many times the median distance are left out: they only shrink the view."""


def scene_html(cloud: PointCloud, cameras: Cameras, size: tuple[int, int]) -> str:
    """Record a cloud that plays over its frames, and every camera's frustum, as an HTML document.

    Args:
        cloud: points with the frame that saw each; the world is the first frame's camera.
        cameras: f of them, intrinsics in pixels of ``size``.
        size: height and width of the frames.

    Raises:
        UserError: without the extra `viz`.

    """
    try:
        import viser
    except ImportError as error:
        raise UserError("the report page takes viser; install it with: pip install 'four_d[viz]'") from error
    # viser greets and says goodbye on stdout; it listens on a free port of this machine for the time of the recording
    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
        try:
            return _record(server, cloud, cameras, size)
        finally:
            server.stop()


def _record(server: viser.ViserServer, cloud: PointCloud, cameras: Cameras, size: tuple[int, int]) -> str:
    distance = float(np.median(np.linalg.norm(cloud.points, axis=-1))) if len(cloud) else 1.0
    unit = max(distance, 1e-9)
    _look(server)
    poses = cameras.world_from_camera.double().cpu().numpy()
    _add_cameras(server, poses, cameras, size, unit)
    height, width = size
    # a point covers about one pixel of the camera that saw it, at the median distance
    point_size = 1.3 / float(cameras.intrinsics[:, 0, 0].mean())
    clouds = [_frame_cloud(cloud, k, unit) for k in range(len(poses))]
    nodes = [
        (
            server.scene.add_point_cloud(
                f"/frames/{k}/points",
                part.points,
                part.colours,
                point_size=point_size,
                point_shape="rounded",
                point_shading="flat",
                visible=k == 0,
            ),
            server.scene.add_camera_frustum(
                f"/frames/{k}/camera",
                fov=2 * math.atan(height / 2 / float(cameras.intrinsics[k, 1, 1])),
                aspect=width / height * float(cameras.intrinsics[k, 1, 1] / cameras.intrinsics[k, 0, 0]),
                scale=0.06,
                thickness=0.004,
                color=NOW_COLOUR,
                wxyz=_quaternion(poses[k]),
                position=poses[k, :3, 3] / unit,
                visible=k == 0,
            ),
        )
        for k, part in enumerate(clouds)
    ]
    serializer = server.get_scene_serializer()
    for before, after in itertools.pairwise(nodes):
        serializer.insert_sleep(1.0)
        for node in after:
            node.visible = True
        for node in before:
            node.visible = False
    serializer.insert_sleep(1.0)
    for points, _ in nodes:
        points.visible = True
    serializer.insert_sleep(1.0)
    return serializer.as_html()


def _look(server: viser.ViserServer) -> None:
    """From behind and above the first camera to the middle of the scene, a median distance away."""
    server.scene.set_up_direction("-y")
    server.initial_camera.position = (0.2, -0.3, -0.55)
    server.initial_camera.look_at = (0.0, 0.05, 0.9)
    server.initial_camera.fov = FIELD_OF_VIEW


def _add_cameras(
    server: viser.ViserServer, poses: NDArray[np.float64], cameras: Cameras, size: tuple[int, int], unit: float
) -> None:
    """Small grey frusta of all frames and the line through their centres, which stay."""
    height, width = size
    focal = cameras.intrinsics[:, 1, 1].double().cpu().numpy()
    for k, pose in enumerate(poses):
        server.scene.add_camera_frustum(
            f"/cameras/{k}",
            fov=2 * math.atan(height / 2 / float(focal[k])),
            aspect=width / height,
            scale=0.025,
            thickness=0.0015,
            color=OTHER_COLOUR,
            wxyz=_quaternion(pose),
            position=pose[:3, 3] / unit,
        )
    centres = (poses[:, :3, 3] / unit).astype(np.float32)
    if len(centres) > 1:
        segments = np.stack([centres[:-1], centres[1:]], axis=1)
        server.scene.add_line_segments("/path", segments, colors=OTHER_COLOUR, thickness=0.002)


def _frame_cloud(cloud: PointCloud, frame: int, unit: float) -> PointCloud:
    chosen = (cloud.frames == frame) & (np.linalg.norm(cloud.points, axis=-1) <= FAR * unit)
    part = cloud.take(chosen).thin(POINTS_PER_FRAME)
    return PointCloud(
        points=part.points / np.float32(unit), colours=part.colours, frames=part.frames, confidence=part.confidence
    )


def _quaternion(pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """Wxyz of a pose's rotation."""
    import torch

    return roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(torch.from_numpy(pose[:3, :3]))).numpy()
