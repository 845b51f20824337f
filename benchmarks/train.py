"""Speed of a config's training: with a batch that lies in memory, and fed by the loader.

    python benchmarks/train.py [--data DIR] [--config vggt --config overlays/tiny] [--steps 20] [key=value …]

Without --data it makes a shard of synthetic clips first. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import lightning
import torch
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from four_d.config import RunConfig, load
from four_d.data.loading import Step
from four_d.progress import progress
from four_d.training.module import TrainingModule
from four_d.training.parallel import World
from four_d.training.record import describe_machine
from four_d.training.run import RunData, make_trainer, quiet

WARM_UP = 3


def main() -> None:
    arguments = parse().parse_args()
    with data_folder(arguments.data, arguments.clips, arguments.seed) as folder:
        config = read_config(arguments, folder)
        figures = {
            **{f"memory_{name}": value for name, value in measure(config, arguments, in_memory=True).items()},
            **{f"loader_{name}": value for name, value in measure(config, arguments, in_memory=False).items()},
        }
    module = TrainingModule(config)
    settings = {
        "configs": arguments.config or ["vggt", "overlays/tiny"],
        "parameters": sum(p.numel() for p in module.parameters()),
        "precision": config.loop.precision,
        "images_per_batch": config.data.images_per_batch,
        "image_size": list(config.data.image_size),
        "steps": arguments.steps,
        "seed": arguments.seed,
        "workers": arguments.workers,
    }
    print(json.dumps({"benchmark": "train", **figures, **settings, **describe_machine()}))


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set's folder; made anew if not given")
    parser.add_argument("--clips", type=int, default=8, help="clips to make without --data")
    parser.add_argument("--config", action="append", help="config files (default: vggt, overlays/tiny)")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


@contextmanager
def data_folder(given: Path | None, clips: int, seed: int) -> Iterator[Path]:
    """The given data set, or one made for the occasion."""
    if given is not None:
        yield given
        return
    from data_prep.synthetic import make

    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder) / "data", range(1), seed, clips_per_shard=clips)
        yield Path(folder) / "data"


def read_config(arguments: argparse.Namespace, folder: Path) -> RunConfig:
    """The configs with their data replaced by ``folder``, and all images of one size."""
    values = [
        f"data.sources.it.path={folder}",
        f"data.workers={arguments.workers}",
        f"seed={arguments.seed}",
        "data.aspect=null",
    ]
    return load(arguments.config or ["vggt", "overlays/tiny"], [*values, *arguments.overrides])


class Memory(IterableDataset[Step]):
    """One step, again and again."""

    def __init__(self, step: Step) -> None:
        self._step = step

    def __iter__(self) -> Iterator[Step]:
        return itertools.repeat(self._step)


class MemoryData(RunData):
    """The run's first step without end."""

    def train_dataloader(self) -> DataLoader[Step]:
        """No reading, no decoding."""
        return DataLoader(Memory(self.training[0]), batch_size=None)

    def val_dataloader(self) -> list[DataLoader[Step]]:
        """None."""
        return []


class Stopwatch(lightning.Callback):
    """Counts what a number of steps saw and took, after a warm-up; then ends the run."""

    def __init__(self, steps: int, tokens_per_image: int) -> None:
        self._steps, self._tokens = steps, tokens_per_image
        self._seen = self._images = 0
        self._began = 0.0
        self.figures: dict[str, float] = {}

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        """Count."""
        del pl_module, outputs, batch_idx
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._seen += 1
        if self._seen == WARM_UP:
            self._began = time.perf_counter()
        if self._seen > WARM_UP:
            self._images += sum(example.inputs.images.shape[:2].numel() for example in batch.batches)
        if self._seen == WARM_UP + self._steps:
            seconds = time.perf_counter() - self._began
            rates = {"steps": self._steps, "images": self._images, "tokens": self._images * self._tokens}
            self.figures = {f"{name}_per_s": count / seconds for name, count in rates.items()}
            trainer.should_stop = True


def measure(config: RunConfig, arguments: argparse.Namespace, *, in_memory: bool) -> dict[str, float]:
    """Steps, images and tokens per second of whole training steps."""
    module = TrainingModule(config)
    data = (MemoryData if in_memory else RunData)(config)
    watch = Stopwatch(arguments.steps, tokens_per_image(module, data))
    with progress("in memory" if in_memory else "through the loader", WARM_UP + arguments.steps, "step") as bar:
        ticking = LambdaCallback(on_train_batch_end=lambda *_: bar.advance())
        with quiet():
            make_trainer(config, World(), {"callbacks": [watch, ticking]}).fit(module, datamodule=data)
    return watch.figures


@torch.no_grad()
def tokens_per_image(module: TrainingModule, data: RunData) -> int:
    """Patches and special tokens of one frame."""
    backbone = cast(nn.Module, module.model.backbone)
    tokens = backbone(data.training[0].batches[0].inputs)
    return tokens.patches[0].shape[2] + tokens.special[0].shape[2]


if __name__ == "__main__":
    main()
