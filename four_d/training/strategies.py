"""Strategies of several processes: each has all weights (DDP), or its part of them (FSDP2)."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import Tensor, distributed
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from four_d import sharding
from four_d.abilities import ModelModule
from four_d.config import LoopConfig
from four_d.errors import UserError
from four_d.sharding import State
from four_d.training import saving
from four_d.training.parallel import World

DATA = "data_parallel"
"""Lightning's name of the mesh's axis over which batches are split, and here weights too."""


def strategy(world: World, loop: LoopConfig) -> Strategy | str:
    """Strategy of several processes, with gloo on CPUs and NCCL on GPUs; one alone needs none.

    UserError for GPUs or an NCCL that are not there, and for a torch without FSDP2 as it is needed here.
    """
    backend = _backend(world, loop.accelerator)
    if world.size == 1:
        return "auto"
    if loop.strategy == "ddp":
        return DDPStrategy(process_group_backend=backend, timeout=timeout(loop), find_unused_parameters=False)
    if not hasattr(FSDPModule, "set_reduce_scatter_unused_params"):
        raise UserError(f"loop.strategy=fsdp2 needs torch 2.13, and this is {torch.__version__}; set loop.strategy=ddp")
    return Fsdp2(world.size, backend, timeout(loop))


def timeout(loop: LoopConfig) -> timedelta:
    """Time that processes wait for each other in an exchange."""
    return timedelta(seconds=loop.timeout_seconds)


def _backend(world: World, accelerator: str) -> str:
    if accelerator in ("cpu", "mps") or (accelerator == "auto" and not torch.cuda.is_available()):
        return "gloo"
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise UserError("loop.accelerator is cuda, and torch finds no GPU; set loop.accelerator=cpu, or see nvidia-smi")
    if world.local_size > found:
        raise UserError(
            f"{world.local_size} processes were started on this machine, which has {found} GPUs; start one for each "
            f"(torchrun --nproc-per-node={found})"
        )
    if world.size > 1 and not distributed.is_nccl_available():
        raise UserError("this torch has no NCCL, by which GPUs exchange gradients; install torch with CUDA")
    return "nccl"


def shard(module: torch.nn.Module, model: ModelModule, mesh: DeviceMesh) -> None:
    """Split all weights over a mesh of one axis (FSDP2): the model's `ModelModule.shards` each by itself, and the rest
    with ``module``, whose method ``terms`` is then a forward pass.
    """
    # gathered for its own pass only, the root too: outside of a pass, weights and averages are always split
    for each in (*model.shards(), module):
        fully_shard(each, mesh=mesh, reshard_after_forward=True)
    whole = cast(FSDPModule, module)
    register_fsdp_forward_method(module, "terms")
    # a head or term without truth on one process has no gradient there, and may have one on others
    whole.set_reduce_scatter_unused_params(True)


@contextmanager
def exchanging(module: torch.nn.Module, wrapped: torch.nn.Module | None, last: bool) -> Generator[None]:
    """Let processes exchange gradients in the backward pass inside only where it is the ``last`` of an update."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
    if isinstance(wrapped, DistributedDataParallel) and not last:
        with wrapped.no_sync():
            yield
        return
    yield


class Fsdp2(ModelParallelStrategy):
    """Lightning's FSDP2 over all processes, without tensor parallelism, whose checkpoints are as every strategy's:
    the same nested state, in which tensors are split (`sharding`).
    """

    def __init__(self, size: int, backend: str, timeout: timedelta | None = None) -> None:
        super().__init__(
            data_parallel_size=size, tensor_parallel_size=1, process_group_backend=backend, timeout=timeout
        )

    @property
    def lightning_restore_optimizer(self) -> bool:
        """Let Lightning restore the optimiser, as in other strategies."""
        return True

    def lightning_module_state_dict(self) -> State:
        """Module's weights, split."""
        return self._module.state_dict()

    def optimizer_state(self, optimizer: Optimizer) -> State:
        """Optimiser's own state, whose moments are split as the weights are."""
        own = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        return own.state_dict()

    def save_checkpoint(self, checkpoint: State, filepath: str | Path, storage_options: object = None) -> None:
        """Let every process take part."""
        self.checkpoint_io.save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> State:  # noqa: ARG002 - Lightning's signature
        """Read a checkpoint of any strategy and number of processes."""
        return saving.read(Path(checkpoint_path), self.device_mesh[DATA])

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        """Load weights, whole or split."""
        own = self._module.state_dict()
        given = cast(Mapping[str, Tensor], checkpoint["state_dict"])
        self._module.load_state_dict(
            {name: sharding.like(own.get(name), value) for name, value in given.items()}, strict=strict
        )

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load the optimiser's state, whole or split."""
        for optimiser, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            owners = [parameter for group in optimiser.param_groups for parameter in group["params"]]
            state = {
                index: {
                    name: sharding.like(owners[index] if value.ndim else None, value) for name, value in each.items()
                }
                for index, each in cast(dict[int, dict[str, Tensor]], saved["state"]).items()
            }
            optimiser.load_state_dict({**saved, "state": state})

    @property
    def _module(self) -> lightning.LightningModule:
        assert self.lightning_module is not None
        return self.lightning_module
