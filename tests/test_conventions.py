"""One test per line of docs/conventions.md, each with values worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from four_d import surface
from four_d.data.sampling import normalise, to_clip
from four_d.geometry import decode_cameras, encode_cameras, pixel_centres, project, unproject
from four_d.types import Cameras, Clip, Surface
from tests.helpers import box_clip

WORLD_FROM_CAMERA = torch.tensor([[0.0, 0, 1, 1], [-1, 0, 0, 2], [0, -1, 0, 3], [0, 0, 0, 1]])
INTRINSICS = torch.tensor([[100.0, 0, 64], [0, 100, 48], [0, 0, 1]])
CAMERA = Cameras(world_from_camera=WORLD_FROM_CAMERA, intrinsics=INTRINSICS)


def _pixel(x: float, y: float, z: float) -> tuple[list[float], float]:
    """Where CAMERA, which stands at (1, 2, 3) and looks along the world's x, sees a world point."""
    pixel, depth = project(torch.tensor([[float(x), y, z]]), CAMERA)
    return pixel[0].tolist(), depth.item()


def test_camera_axes() -> None:
    assert _pixel(5, 1, 3)[0] == [89, 48]  # world −y is to the camera's right: larger x
    assert _pixel(5, 2, 2)[0] == [64, 73]  # world −z is below: larger y
    assert _pixel(5, 2, 3)[1] == 4 > 0  # what is in front has positive depth


def test_pose_names() -> None:
    centre = CAMERA.world_from_camera @ torch.tensor([0.0, 0, 0, 1])
    assert centre.tolist() == [1, 2, 3, 1]


def test_pixel_origin() -> None:
    assert pixel_centres(2, 3, torch.zeros(1))[0, 0].tolist() == [0.5, 0.5]
    assert pixel_centres(2, 3, torch.zeros(1))[1, 2].tolist() == [2.5, 1.5]
    middle = Cameras(world_from_camera=torch.eye(4), intrinsics=torch.tensor([[8.0, 0, 4], [0, 8, 4], [0, 0, 1]]))
    points = unproject(torch.ones(8, 8), middle)
    assert points[0, 0].tolist() == [-3.5 / 8, -3.5 / 8, 1]


def test_depth_is_z() -> None:
    assert _pixel(5, 1, 3)[1] == _pixel(5, 2, 3)[1] == 4


def test_quaternion_order() -> None:
    quarter_turn = torch.eye(4)
    quarter_turn[:2, :2] = torch.tensor([[0.0, -1], [1, 0]])  # camera_from_world: +90° about z
    camera = Cameras(world_from_camera=quarter_turn.mT, intrinsics=INTRINSICS)
    encoding = encode_cameras(camera, 96, 128)
    torch.testing.assert_close(encoding[3:7], torch.tensor([0.5**0.5, 0, 0, 0.5**0.5]))
    torch.testing.assert_close(decode_cameras(encoding, 96, 128).world_from_camera, quarter_turn.mT)


@pytest.fixture(scope="module")
def clip() -> Clip:
    """A hand-made world of two cameras and three times, as training sees it."""
    return normalise(to_clip(box_clip(3, frames=3, cameras=2, size=24)))


def test_times(clip: Clip) -> None:
    assert clip.times.tolist() == pytest.approx([0, 1 / 12, 2 / 12] * 2)


def test_first_frame_is_the_world(clip: Clip) -> None:
    assert clip.cameras is not None
    torch.testing.assert_close(clip.cameras.world_from_camera[0], torch.eye(4), atol=1e-6, rtol=0)


def test_units(clip: Clip) -> None:
    """Mean distance of the valid points to the first camera is 1; times ``scale`` lengths are the source's again."""
    assert clip.cameras is not None
    assert clip.depth is not None
    assert clip.valid is not None
    assert clip.scale is not None
    distances = unproject(clip.depth, clip.cameras)[clip.valid].norm(dim=-1)
    assert distances.mean().item() == pytest.approx(1, abs=2e-3)
    source = to_clip(box_clip(3, frames=3, cameras=2, size=24))
    torch.testing.assert_close(clip.depth * clip.scale, source.depth)


def test_invalid() -> None:
    """A pixel that saw nothing is not valid, and its depth is 0, not NaN."""
    faces = torch.tensor([[[-1, 0]]])
    seen = Surface(
        faces=faces,
        barycentric=torch.full((1, 2, 1, 2), 1 / 3),
        triangles=torch.tensor([[0, 1, 2]]),
        instances=torch.tensor([0]),
        vertices=torch.tensor([[[0.0, 0, 2], [1, 0, 2], [0, 1, 2]]]),
        times=torch.zeros(1),
    )
    camera = Cameras(world_from_camera=torch.eye(4)[None], intrinsics=torch.eye(3)[None])
    assert surface.depth(seen, camera, torch.zeros(1)).tolist() == [[[0, 2]]]


def test_dynamic() -> None:
    """0.06 m/s is dynamic, 0.04 m/s is not."""
    times = torch.tensor([0.0, 1.0])
    start = torch.tensor([[0.0, 0, 2], [1, 0, 2], [0, 1, 2]])
    for speed, moves in ((0.06, True), (0.04, False)):
        seen = Surface(
            faces=torch.zeros(2, 1, 1, dtype=torch.long),
            barycentric=torch.full((2, 2, 1, 1), 1 / 3),
            triangles=torch.tensor([[0, 1, 2]]),
            instances=torch.tensor([1]),
            vertices=torch.stack([start, start + torch.tensor([speed, 0, 0])]),
            times=times,
        )
        assert surface.dynamic(seen, times).all().item() is moves


def test_the_page_names_tests_that_exist_and_its_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "conventions.md").read_text()
    for name in re.findall(r"::(test_\w+)", page):
        assert name in globals(), f"docs/conventions.md names {name}, which is not here"
    code = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert code is not None
    exec(compile(code[1], "conventions.md", "exec"), {})
    expected = code[1].rsplit("# ", 1)[1].strip()
    assert capsys.readouterr().out.strip() == expected
