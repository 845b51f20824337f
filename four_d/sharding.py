"""State of a run on disk: one file, or a folder to which every process wrote its part of the tensors.

A folder is a distributed checkpoint of torch (DCP), which any number of processes can read, and `SKELETON`, the state
with a description in the place of each of its tensors.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Container, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, empty

State = dict[str, Any]

SKELETON = "state.pt"
PLACE, SHAPE, TYPE = "tensor.place", "tensor.shape", "tensor.type"
"""Keys of a description: the tensor's name in the folder, its whole shape, its type."""


def split(state: State) -> tuple[State, dict[str, DTensor]]:
    """Skeleton of a state, and its sharded tensors by their places, as ``optimizer_states.0.state.3.exp_avg``."""
    tensors: dict[str, DTensor] = {}

    def describe(place: str, value: Tensor) -> Tensor | State:
        if not isinstance(value, DTensor):
            return value
        tensors[place] = value
        return {PLACE: place, SHAPE: tuple(value.shape), TYPE: value.dtype}

    return cast(State, _mapped(state, describe)), tensors


def gathered(state: State, *, kept: bool = True) -> State:
    """Copy of a state with all tensors whole, on the CPU; later steps do not change it.

    Where tensors are split, all processes must call it, and those without ``kept`` get nothing of use.
    """

    def whole(_: str, value: Tensor) -> Tensor:
        full = value.full_tensor() if isinstance(value, DTensor) else value
        return full.detach().to("cpu", copy=True) if kept else torch.empty(0)

    return cast(State, _mapped(state, whole))


def read(path: Path, mesh: DeviceMesh | None = None, parts: Container[str] | None = None) -> State:
    """Read a state, or those of its ``parts``, as ``state_dict``.

    With ``mesh``, the tensors of a folder are split over its processes; otherwise all are whole. A damaged file or
    folder raises whatever torch stumbles over.
    """
    skeleton = {key: value for key, value in read_skeleton(path).items() if parts is None or key in parts}
    if path.is_file():
        return skeleton
    tensors: dict[str, Tensor] = {}

    def collect(described: State) -> Tensor:
        shape, kind = cast(tuple[int, ...], described[SHAPE]), cast(torch.dtype, described[TYPE])
        made = torch.empty(shape, dtype=kind)
        if mesh is not None:
            made = empty(*shape, dtype=kind, device_mesh=mesh, placements=[Shard(0)])
        return tensors.setdefault(cast(str, described[PLACE]), made)

    state = _joined(skeleton, collect)
    with quiet_saving():
        # every process finds its own parts: no need to meet the others
        try:
            load(cast(dict[str, Any], tensors), storage_reader=FileSystemReader(path), no_dist=True)
        except CheckpointException as error:  # no Exception, of torch's own
            raise RuntimeError(str(next((each for each, _ in error.failures.values()), error))) from error
    return cast(State, state)


def read_skeleton(path: Path) -> State:
    """Read a state without its tensors where it is a folder, and lazily where it is a file."""
    file = path / SKELETON if path.is_dir() else path
    return cast(State, torch.load(file, map_location="cpu", mmap=True, weights_only=True))


def like(own: object, value: Tensor) -> Tensor:
    """Tensor split as ``own`` is, or whole where that is."""
    if isinstance(own, DTensor) and not isinstance(value, DTensor):
        placed = value.to(own.device)
        return distribute_tensor(placed, own.device_mesh, own.placements, src_data_rank=None)
    return value


@contextmanager
def quiet_saving() -> Generator[None]:
    """Silence torch's notes on checkpoints that are read or written by one process alone."""
    logger = logging.getLogger("torch.distributed.checkpoint")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*torch.distributed.*")
            warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated.*")
            yield
    finally:
        logger.setLevel(level)


def _mapped(value: object, change: Callable[[str, Tensor], object], place: str = "") -> object:
    """Copy of nested containers with every tensor changed."""
    if isinstance(value, Tensor):
        return change(place, value)
    if isinstance(value, Mapping):
        items = cast(Mapping[object, object], value).items()
        return {key: _mapped(each, change, f"{place}.{key}" if place else str(key)) for key, each in items}
    if isinstance(value, list | tuple):
        each = cast(list[object], value)
        found = [_mapped(part, change, f"{place}.{number}") for number, part in enumerate(each)]
        return found if isinstance(value, list) else tuple(found)
    return value


def _joined(value: object, collect: Callable[[State], Tensor]) -> object:
    """Copy of a skeleton with the tensors in the places of their descriptions."""
    if isinstance(value, dict):
        given = cast(State, value)
        return collect(given) if PLACE in given else {key: _joined(each, collect) for key, each in given.items()}
    if isinstance(value, list | tuple):
        found = [_joined(part, collect) for part in cast(list[object], value)]
        return found if isinstance(value, list) else tuple(found)
    return value
