"""Speed of the loader from shards to training batches, beside plain reading of the same disk.

    python benchmarks/load.py [--data DIR] [--config vggt --config overlays/tiny] [--workers N] [key=value …]

Without --data it makes a shard of synthetic clips first. The last line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from four_d.config import RunConfig, load
from four_d.data.loading import FromStep, TrainingSteps, loader
from four_d.data.shards import ShardReader, load_manifest
from four_d.progress import progress
from four_d.training.record import describe_machine

CHUNK = 1 << 20


def main() -> None:
    arguments = parse().parse_args()
    torch.set_num_threads(1)
    with data_folder(arguments.data, arguments.clips, arguments.seed) as folder:
        config = read_config(arguments, folder)
        figures = {**measure_loader(config, arguments.steps), **measure_disk(folder)}
    figures["share_of_disk"] = figures["stored_mb_per_s"] / figures["disk_mb_per_s"]
    settings = {"seed": arguments.seed, "workers": arguments.workers, "image_size": list(config.data.image_size)}
    print(json.dumps({"benchmark": "load", **figures, **settings, **describe_machine()}))


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a data set's folder; made anew if not given")
    parser.add_argument("--clips", type=int, default=8, help="clips to make without --data")
    parser.add_argument("--config", action="append", help="config files (default: vggt, overlays/tiny)")
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--steps", type=int, default=40)
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


def measure_loader(config: RunConfig, steps: int) -> dict[str, float]:
    """Rates over ``steps`` batches, after a warm-up; stored bytes are those of the frames that were read."""
    data = TrainingSteps(config.data, config.seed)
    stream = iter(loader(data, FromStep(0), config.data.workers, pin_memory=False))
    for _ in range(2 + 2 * config.data.workers):
        next(stream)
    clips = frames = 0
    began = time.perf_counter()
    with progress("loading", steps, "batch") as bar:
        for _ in range(steps):
            shape = next(stream).batches[0].inputs.images.shape
            clips, frames = clips + shape[0], frames + shape[0] * shape[1]
            bar.advance()
    seconds = time.perf_counter() - began
    manifests = [reader.manifest for reader in data.sources.readers if isinstance(reader, ShardReader)]
    per_frame = sum(m.bytes for m in manifests) / sum(m.frames for m in manifests)
    return {
        "clips_per_s": clips / seconds,
        "frames_per_s": frames / seconds,
        "stored_mb_per_s": frames * per_frame / seconds / 1e6,
        "batches": steps,
        "seconds": seconds,
    }


def measure_disk(folder: Path) -> dict[str, float]:
    """Plain reading of the same shards from end to end, the page cache emptied of them first where that works."""
    size, seconds = 0, 0.0
    for shard in load_manifest(folder).shards:
        descriptor = os.open(folder / shard.shard, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while chunk := os.read(descriptor, CHUNK):
            size += len(chunk)
        seconds += time.perf_counter() - began
        os.close(descriptor)
    return {"disk_mb_per_s": size / seconds / 1e6}


if __name__ == "__main__":
    main()
