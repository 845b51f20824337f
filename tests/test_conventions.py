"""One test per line of docs/conventions.md, each with values worked out by hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from four_d.geometry import decode_cameras, encode_cameras, pixel_centres, project, unproject
from four_d.types import Cameras

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


def test_the_page_names_tests_that_exist_and_its_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parent.parent / "docs" / "conventions.md").read_text()
    for name in re.findall(r"::(test_\w+)", page):
        assert name in globals(), f"docs/conventions.md names {name}, which is not here"
    code = re.search(r"```python\n(.*?)```", page, flags=re.DOTALL)
    assert code is not None
    exec(compile(code[1], "conventions.md", "exec"), {})
    expected = code[1].rsplit("# ", 1)[1].strip()
    assert capsys.readouterr().out.strip() == expected
