"""The tests' own checks of types and shapes: without them every test of a shape would pass."""

from __future__ import annotations

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

from four_d import geometry
from four_d.types import Cameras


def test_an_argument_of_another_shape_is_refused() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="invert_pose"):
        geometry.invert_pose(torch.zeros(3))


def test_axes_of_one_call_agree_and_of_two_calls_need_not() -> None:
    cameras = [
        {"world_from_camera": torch.eye(4).expand(f, 4, 4), "intrinsics": torch.eye(3).expand(f, 3, 3)} for f in (2, 3)
    ]
    assert [len(Cameras(**each).intrinsics) for each in cameras] == [2, 3]
    with pytest.raises(BeartypeCallHintViolation, match="intrinsics"):
        Cameras(world_from_camera=cameras[0]["world_from_camera"], intrinsics=cameras[1]["intrinsics"])
