"""One process or many: who we are by the launcher's environment variables, and what all must agree on."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor, distributed

from four_d.errors import UserError


@dataclass(frozen=True, kw_only=True)
class World:
    """The place of this process among those of the run, as torchrun's variables tell it."""

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def nodes(self) -> int:
        """How many machines take part."""
        return self.size // self.local_size


def discover() -> World:
    """Read RANK, WORLD_SIZE and LOCAL_WORLD_SIZE; without them this process is alone."""
    if "WORLD_SIZE" not in os.environ:
        return World()
    size = int(os.environ["WORLD_SIZE"])
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return World(rank=int(os.environ["RANK"]), size=size, local_size=local)


def strategy(world: World, accelerator: str) -> Strategy | str:
    """DDP where there are several processes: gloo on CPUs, NCCL on GPUs."""
    if world.size == 1:
        return "auto"
    on_cpu = accelerator == "cpu" or not torch.cuda.is_available()
    return DDPStrategy(process_group_backend="gloo" if on_cpu else "nccl", find_unused_parameters=False)


def running() -> bool:
    """Whether there are other processes to talk to."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def maximum(values: list[float], device: torch.device) -> list[float]:
    """Element-wise maximum over all processes."""
    return _reduce(values, device, distributed.ReduceOp.MAX) if running() else values


def total(values: list[float], device: torch.device) -> list[float]:
    """Element-wise sum over all processes."""
    return _reduce(values, device, distributed.ReduceOp.SUM) if running() else values


def from_first(values: list[float], device: torch.device) -> list[float]:
    """The values of rank 0."""
    if not running():
        return values
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.broadcast(tensor, src=0)
    return tensor.tolist()


def _reduce(values: list[float], device: torch.device, operation: distributed.ReduceOp.RedOpType) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    distributed.all_reduce(tensor, op=operation)
    return tensor.tolist()


def must_agree(facts: dict[str, int], device: torch.device) -> None:
    """UserError, on every process, where one of ``facts`` is not the same on all; it names the ranks that differ."""
    if not running():
        return
    mine = torch.tensor(list(facts.values()), dtype=torch.int64, device=device)
    gathered: list[Tensor] = [torch.empty_like(mine) for _ in range(distributed.get_world_size())]
    distributed.all_gather(gathered, mine)
    for place, name in enumerate(facts):
        values = [int(each[place]) for each in gathered]
        odd = [rank for rank, value in enumerate(values) if value != values[0]]
        if odd:
            ranks = ", ".join(map(str, odd))
            raise UserError(f"processes disagree on {name}: {values[0]} on rank 0, other on {ranks}; give all the same")
