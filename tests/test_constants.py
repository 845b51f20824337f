"""Values that the host keeps of tensors on a device."""

from __future__ import annotations

import pytest
import torch

from four_d import fields
from four_d.constants import MOST_KEPT, also_kept, keep, move, on_host, precise, vector
from four_d.types import Clip, map_tensors

META = torch.device("meta")
"""Device whose values nobody can read back."""


def clip() -> Clip:
    return Clip(
        images=torch.rand(2, 3, 3, 8, 8), times=torch.arange(6.0).view(2, 3), camera_ids=torch.arange(6).view(2, 3)
    )


def test_a_number_is_as_the_tensor_it_goes_with() -> None:
    assert vector([1, 2.5], torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert vector([1, 2], torch.zeros(1, dtype=torch.long)).tolist() == [1.0, 2.0]


def test_what_was_moved_is_known_without_reading_it_back() -> None:
    given = clip()
    moved = map_tensors(given, lambda tensor: move(tensor, META))
    assert moved.times.device == META
    assert torch.equal(on_host(moved.times), given.times)
    one = fields.unstack(moved, 1)
    assert torch.equal(on_host(one.times), given.times[1])
    some = fields.take(moved, "f", slice(1, 3))
    assert torch.equal(on_host(some.camera_ids), given.camera_ids[:, 1:3])
    shifted = also_kept(moved.times, lambda times: times + 1)
    assert torch.equal(on_host(shifted), given.times + 1)


def test_what_was_computed_there_must_be_read_back() -> None:
    moved = move(clip().times, META)
    with pytest.raises(NotImplementedError, match="meta"):
        on_host(moved + 1)


def test_only_small_values_are_kept_and_none_beside_themselves() -> None:
    large = torch.zeros(MOST_KEPT + 1)
    with pytest.raises(NotImplementedError, match="meta"):
        on_host(move(large, META))
    here = torch.arange(3)
    assert move(here, here.device) is here
    assert keep(here, torch.arange(1, 4)) is here
    assert torch.equal(on_host(here), torch.arange(3))


def test_apples_gpus_have_no_float64() -> None:
    assert precise(torch.device("mps")) == torch.float32
    assert precise(torch.device("cpu")) == precise(torch.device("cuda")) == torch.float64
