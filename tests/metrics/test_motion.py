from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from four_d.metrics import motion
from four_d.types import Clip


def clip(moved: Tensor, times: list[float], query_times: list[float], scale: float = 1.0) -> Clip:
    """An unbatched clip whose truth is ``moved`` q f h w 3."""
    _, frames, height, width, _ = moved.shape
    return Clip(
        images=torch.zeros(frames, 3, height, width),
        times=torch.tensor(times),
        camera_ids=torch.zeros(frames, dtype=torch.long),
        query_times=torch.tensor(query_times),
        motion=moved,
        motion_valid=torch.ones(moved.shape[:-1], dtype=torch.bool),
        scale=torch.tensor(scale),
    )


def test_a_path_is_as_long_as_its_steps_in_order_of_time() -> None:
    moved = torch.zeros(3, 1, 1, 1, 3)
    moved[:, 0, 0, 0, 0] = torch.tensor([0.0, 0.009, 0.003])  # at 0, 2 and 1 s: 0.009 in all
    truth = clip(moved, [0.0], [0.0, 2.0, 1.0])
    assert not bool(motion.dynamic(truth))
    there_and_back = dataclasses.replace(
        truth, motion=torch.tensor([0.0, 0.0, 0.006]).view(3, 1, 1, 1, 1).expand_as(moved)
    )
    assert bool(motion.dynamic(there_and_back)), "ends where it began and moved all the same"
    valid = torch.tensor([True, True, False]).view(3, 1, 1, 1)
    assert not bool(motion.dynamic(dataclasses.replace(there_and_back, motion_valid=valid))), "steps lead over it"


def test_dynamic_is_more_than_a_centimetre_in_source_units() -> None:
    moved = torch.zeros(2, 1, 1, 3, 3)
    moved[1, 0, 0, :, 1] = torch.tensor([0.0, 0.004, 0.006])
    truth = clip(moved, [0.0], [0.0, 1.0], scale=2.0)
    assert motion.dynamic(truth).flatten().tolist() == [False, False, True]
    metres = dataclasses.replace(truth, scale=torch.tensor(1.0))
    assert not bool(motion.dynamic(metres).any())


def test_a_frames_own_time_does_not_count_whatever_its_camera() -> None:
    truth = clip(torch.zeros(2, 3, 1, 1, 3), [0.0, 0.5, 0.0], [0.0, 0.5])
    assert motion.counted(truth)[..., 0, 0].tolist() == [[False, True, False], [True, False, True]]
