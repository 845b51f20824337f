from __future__ import annotations

import dataclasses

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation

from four_d.types import Cameras, Clip, Prediction, Tokens, map_tensors, merge_predictions


def _clip() -> Clip:
    cameras = Cameras(world_from_camera=torch.eye(4).expand(2, 4, 4), intrinsics=torch.eye(3).expand(2, 3, 3))
    return Clip(
        images=torch.zeros(2, 3, 4, 5), times=torch.tensor([0.0, 1.0]), camera_ids=torch.tensor([0, 1]), cameras=cameras
    )


def test_map_tensors_reaches_every_tensor_and_nothing_else() -> None:
    clip = _clip()
    mapped = map_tensors(clip, lambda tensor: tensor[None])
    assert mapped.images.shape == (1, 2, 3, 4, 5)
    assert mapped.camera_ids.tolist() == [[0, 1]]
    assert mapped.cameras is not None
    assert mapped.cameras.intrinsics.shape == (1, 2, 3, 3)
    assert mapped.depth is None
    assert mapped.cameras.known is None
    assert clip.images.shape == (2, 3, 4, 5)


def test_map_tensors_keeps_tuples_and_numbers() -> None:
    tokens = Tokens(
        patches=(torch.zeros(1, 2, 3, 4), torch.ones(1, 2, 3, 4)),
        special=(torch.zeros(1, 2, 5, 4),),
        grid=(1, 3),
        frames=torch.arange(2),
        rounds=(0, 1),
    )
    mapped = map_tensors(tokens, lambda tensor: tensor + 1)
    assert (mapped.grid, mapped.rounds) == ((1, 3), (0, 1))
    assert [patch.mean().item() for patch in mapped.patches] == [1, 2]
    assert mapped.frames.tolist() == [1, 2]


def test_merging_joins_fields_and_refuses_a_field_twice() -> None:
    depth, cameras = torch.ones(1, 2, 4, 5), _clip().cameras
    merged = merge_predictions([Prediction(depth=depth), Prediction(cameras=cameras), Prediction()])
    assert merged.depth is depth
    assert merged.cameras is cameras
    assert merged.points is None
    with pytest.raises(ValueError, match=r"Prediction\.depth"):
        merge_predictions([Prediction(depth=depth), Prediction(depth=depth)])


def test_values_are_frozen_and_named() -> None:
    clip = _clip()
    with pytest.raises(dataclasses.FrozenInstanceError):
        clip.times = torch.zeros(2)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(TypeError):
        Cameras(torch.eye(4), torch.eye(3))  # pyright: ignore[reportCallIssue]


def test_a_wrong_shape_is_an_error_in_tests() -> None:
    with pytest.raises(BeartypeCallHintViolation, match="images"):
        dataclasses.replace(_clip(), images=torch.zeros(2, 4, 4, 5))
    with pytest.raises(BeartypeCallHintViolation):
        Clip(images=torch.zeros(2, 3, 4, 5), times=torch.zeros(3), camera_ids=torch.zeros(2, dtype=torch.long))
