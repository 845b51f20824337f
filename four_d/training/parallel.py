"""Distributed processes: discovery by the launcher's environment variables, collectives and agreement."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar, cast

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from torch import distributed

from four_d.errors import UserError

LOGGER = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class World:
    """Rank of this process among those of the run, by torchrun's variables."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def nodes(self) -> int:
        """Number of machines that take part."""
        return self.size // self.local_size


TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that torchrun sets beside WORLD_SIZE for each of several processes."""
GLOO = ("/gloo/", "Application timeout caused pair closure")
"""Texts of gloo's errors: the place in its code, or the second thread's to meet a time-out."""
TASKS = ("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables in which schedulers state the number of tasks started or requested."""


def discover() -> World:
    """Read torchrun's variables; without them, or with a WORLD_SIZE of 1, this process is alone.

    UserError for several processes with incomplete or contradictory variables.
    """
    size, rank = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if size == 1 and rank == 0:
        return World()
    lacking = [name for name in ("WORLD_SIZE", *TORCHRUN) if name not in os.environ]
    if lacking:
        given = ", ".join(f"{name}={os.environ[name]}" for name in ("WORLD_SIZE", "RANK") if name in os.environ)
        raise UserError(f"{given} is set, and {', '.join(lacking)} not; start with torchrun, or unset what is set")
    local = _number("LOCAL_WORLD_SIZE", size)
    if not (0 <= rank < size and 0 < local <= size and size % local == 0):
        told = f"RANK={rank} WORLD_SIZE={size} LOCAL_WORLD_SIZE={local}"
        raise UserError(f"{told} contradict each other; start with torchrun, with as many processes on every machine")
    return World(rank=rank, size=size, local_size=local)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise UserError(f"{name}={text} is not a number from 0 on; unset it, or start with torchrun")
    return int(text)


def tell_tasks(world: World) -> None:
    """Warn on stderr if a scheduler has several tasks and this process, without torchrun, is alone."""
    found = {name: os.environ[name] for name in TASKS if os.environ.get(name, "1") != "1"}
    if world.size > 1 or not found:
        return
    name, count = next(iter(found.items()))
    told = f"{name}={count}, and torchrun started none of them: this process trains alone"
    LOGGER.warning(f"{told}; to share a run, start torchrun once on every machine (docs/training.md)")


def environment(world: World) -> ClusterEnvironment:
    """Lightning's cluster environment of this world; its default guesses from variables of SLURM, MPI and others."""
    return TorchElasticEnvironment() if world.size > 1 else LightningEnvironment()


def running() -> bool:
    """True if several processes take part."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def is_of_others(error: RuntimeError) -> bool:
    """True for an error in an exchange with other processes: torch's own, or gloo's, which has no class."""
    return isinstance(error, distributed.DistError) or any(text in str(error) for text in GLOO)


def maximum(values: list[float], device: torch.device) -> list[float]:
    """Element-wise maximum over all processes."""
    return _reduce(values, device, distributed.ReduceOp.MAX) if running() else values


def total(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum over all processes."""
    return _reduce(values, device, distributed.ReduceOp.SUM) if running() else values


def gather(value: T) -> list[T]:
    """Values of all processes, by rank."""
    if not running():
        return [value]
    values: list[T | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return cast(list[T], values)


def from_first(values: list[float], device: torch.device) -> list[float]:
    """Values of rank 0."""
    if not running():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.broadcast(tensor, src=0)
    return tensor.tolist()


def _reduce(values: list[float], device: torch.device, operation: distributed.ReduceOp.RedOpType) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, op=operation)
    return tensor.tolist()


def in_turn(work: Callable[[], T], *, first: bool) -> T:
    """Do ``work`` on the first process of each machine, then on the others, which reuse its result on disk."""
    if not running():
        return work()
    # of gloo, whose wait may take as long as compiling does; a collective of NCCL ends after minutes
    group = cast(distributed.ProcessGroup, distributed.new_group(backend="gloo", timeout=timedelta(hours=1)))
    if not first:
        distributed.barrier(group)
    found = work()
    if first:
        distributed.barrier(group)
    return found


def must_agree(facts: Mapping[str, int | str], remedy: str = "give all the same") -> None:
    """Raise UserError on every process if one of ``facts`` differs between them; it names the ranks that differ."""
    gathered = gather(dict(facts))
    for name, first in gathered[0].items():
        odd = [f"{each.get(name)} on {rank}" for rank, each in enumerate(gathered) if each.get(name) != first]
        if odd:
            shown = ", ".join(odd[:4]) + (" and more" if len(odd) > 4 else "")
            raise UserError(f"processes disagree on {name}: {first} on rank 0, {shown}; {remedy}")


def together(problem: str | None) -> None:
    """Wait for all processes to come here. UserError on all where one has a problem."""
    for rank, each in enumerate(gather(problem)):
        if each is not None:
            raise UserError(each if not running() else f"process {rank}: {each}")
