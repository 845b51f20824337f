"""A run of ``four-d train`` on a Ray cluster: the same configs, settings, run folder and checkpoints.

    python examples/ray_train.py vggt overlays/large data.sources.mine.path=… data.clips_multiple=8 --workers 8 --gpus

Ray starts a worker for each process, with torchrun's variables, by which `four_d.training.train` finds its rank. Where
a worker dies, Ray starts all again, and the run goes on from its last checkpoint. four_d, the data and the folder that
this is started in must be at the same places on all machines, the run's folder on a disk of all (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray.train
import torch
from lightning.pytorch.callbacks import Callback
from ray.train.lightning import RayDDPStrategy
from ray.train.torch import TorchConfig, TorchTrainer, get_device

from four_d.config import RunConfig, load
from four_d.errors import UserError
from four_d.schema import build, to_plain
from four_d.training import train
from four_d.training.strategies import Fsdp2, timeout


class RayFsdp2(Fsdp2):
    """FSDP2 on the device that Ray gave to a worker: Ray's own strategies are DDP, the older FSDP and DeepSpeed."""

    @property
    def root_device(self) -> torch.device:
        """Device of this worker."""
        return get_device()


def work(settings: dict[str, Any]) -> None:
    """Train as one of the workers: with the ``config``, ``callbacks``, and the ``folder`` that its paths start from."""
    os.chdir(settings["folder"])
    config = build(RunConfig, settings["config"], "config")
    callbacks, size = settings["callbacks"], ray.train.get_context().get_world_size()
    if size == 1:
        train(config, callbacks=callbacks)
    elif config.loop.strategy == "ddp":
        train(config, callbacks=callbacks, strategy=RayDDPStrategy())
    else:
        backend = "nccl" if get_device().type == "cuda" else "gloo"
        train(config, callbacks=callbacks, strategy=RayFsdp2(size, backend, timeout(config.loop)))


def fit(
    config: RunConfig, workers: int, *, gpus: bool = False, failures: int = 3, callbacks: Sequence[Callback] = ()
) -> None:
    """Train on so many workers, which are started again after so many failures; raise Ray's TrainingFailedError."""
    if config.data.clips_multiple % workers:
        told = f"{workers} workers cannot share batches of clips in multiples of {config.data.clips_multiple}"
        raise UserError(f"{told}; set data.clips_multiple={workers} (or a multiple of it)")
    trainer = TorchTrainer(
        work,
        train_loop_config={"config": to_plain(config), "folder": str(Path.cwd()), "callbacks": list(callbacks)},
        torch_config=TorchConfig(timeout_s=round(config.loop.timeout_seconds)),
        scaling_config=ray.train.ScalingConfig(num_workers=workers, use_gpu=gpus),
        run_config=ray.train.RunConfig(
            storage_path=str((config.run_folder / "ray").absolute()),
            failure_config=ray.train.FailureConfig(max_failures=failures),
        ),
    )
    trainer.fit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0: done, 1: the run failed, 2: bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("values", nargs="+", metavar="CONFIG|key=value", help="as for four-d train")
    parser.add_argument("--workers", type=int, default=2, help="processes, one for each GPU (2)")
    parser.add_argument("--gpus", action="store_true", help="a GPU for each; without, they train on CPUs")
    parser.add_argument("--failures", type=int, default=3, help="times that Ray starts the workers again (3)")
    parser.add_argument("--address", help="Ray cluster; without, RAY_ADDRESS, or a new one on this machine")
    given = parser.parse_args(arguments)
    device = f"loop.accelerator={'cuda' if given.gpus else 'cpu'}"
    try:
        files = [word for word in given.values if "=" not in word]
        config = load(files, [device, *(word for word in given.values if "=" in word)])
        ray.init(address=given.address, ignore_reinit_error=True)
        fit(config, given.workers, gpus=given.gpus, failures=given.failures)
    except UserError as error:
        print(f"ray_train: {error}", file=sys.stderr)
        return 2
    except ray.train.TrainingFailedError as error:
        # the last line of a worker's traceback, all of which is in Ray's own output
        kind, _, line = str(error).strip().splitlines()[-1].partition(": ")
        refused = kind.rpartition(".")[2] == UserError.__name__
        print(f"ray_train: {line if refused else f'{kind}: {line}'}", file=sys.stderr)
        return 2 if refused else 1
    print(config.run_folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
