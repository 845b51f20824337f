"""Processor time of the loader for a clip of 8 frames of 224² from images of 512², beside others.

    python benchmarks/load.py [--data DIR] [--rounds 12] [--out docs/results/load.json]

Contenders take turns within each round and figures are medians over the rounds of processor time in this one process
without workers, so that other work on the machine matters little. Without --data it makes synthetic clips first.
``decode`` turns the bytes of each image, which are in memory already, into pixels, and does nothing else.
``webdataset`` is a plain pipeline of webdataset and Pillow: images alone, cropped, resized and made tensors. The last
line of the output is one JSON object.
"""

from __future__ import annotations

import argparse
import io
import json
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import ColorJitter
from webdataset.compat import WebDataset

from four_d.config import RunConfig, load
from four_d.data.contract import RawClip
from four_d.data.loading import FromStep, TrainingSteps, loader
from four_d.data.shards import ShardReader, finalise, write_shard
from four_d.data.truth import truth
from four_d.progress import progress
from four_d.training.record import describe_machine

SIZE, SOURCE, FRAMES, CLIPS = 224, 512, 8, 6
"""Sides of the images that come out and that are stored; frames of a clip; clips of a batch."""
NO_COLOURS = ("data.augment.colour_share=0", "data.augment.grey_share=0")
ZOOM = 0.8
"""Least zoom, the loader's default."""


def main() -> None:
    arguments = parse().parse_args()
    torch.set_num_threads(1)
    with data_folder(arguments.data) as folder:
        images, depth = folder / "images", folder / "depth"
        with progress("loading", 2 * arguments.rounds, "round") as bar:
            plain = interleaved(contenders(images), arguments.rounds, bar.advance)
            deep = interleaved(contenders_with_depth(depth), arguments.rounds, bar.advance)
        figures = {
            "benchmark": "load",
            "images and cameras": report(plain, "webdataset"),
            "images, cameras and depth": report(deep),
            "memory": memory(images),
            "stored_kb_per_image": stored(images),
            "frames": FRAMES,
            "size": SIZE,
            "source": SOURCE,
            "rounds": arguments.rounds,
            **describe_machine(),
        }
    text = json.dumps(figures)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(text)


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder that an earlier run has made here; made anew if not given")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    return parser


@contextmanager
def data_folder(given: Path | None) -> Iterator[Path]:
    """Two data sets, ``images`` and ``depth``, of the same clips; made if they are not there."""
    with tempfile.TemporaryDirectory() as made:
        folder = given or Path(made)
        if not (folder / "depth").is_dir():
            make_data(folder)
        yield folder


def make_data(folder: Path) -> None:
    """Write one shard of each set: 24 synthetic clips of one camera."""
    from data_prep.synthetic import WorldSettings, generate

    settings = WorldSettings(width=SOURCE, height=SOURCE, cameras=1, frames=FRAMES, antialias=False)
    with progress("clips", 24, "clip") as bar:
        clips: list[RawClip] = []
        for seed in range(24):
            clips.append(generate(seed, settings))
            bar.advance()

    def with_depth(clip: RawClip) -> RawClip:
        depth = truth(clip).depth
        assert depth is not None
        info = replace(clip.info, surface_times=None)
        return replace(clip, info=info, surface=None, depth=depth.numpy())

    for name in ("images", "depth"):
        made = [with_depth(clip) for clip in clips]
        made = made if name == "depth" else [replace(clip, depth=None) for clip in made]
        write_shard(folder / name, 0, made)
        finalise(folder / name, name)


def read_config(folder: Path, *overrides: str) -> RunConfig:
    """Config of the loader's examples: batches of `CLIPS` clips of `FRAMES` frames."""
    values = (
        f"data.sources.it.path={folder}",
        f"data.image_size=[{SIZE},{SIZE}]",
        "data.aspect=null",
        f"data.sampling.min_frames={FRAMES}",
        f"data.sampling.max_frames={FRAMES}",
        f"data.images_per_batch={CLIPS * FRAMES}",
        f"data.augment.zoom={ZOOM}",
    )
    return load(["vggt", "overlays/tiny"], [*values, *overrides])


def loading(folder: Path, *overrides: str) -> Callable[[], int]:
    """Function that takes one batch from the loader and gives its number of clips."""
    config = read_config(folder, *overrides)
    stream = iter(loader(TrainingSteps(config.data, config.seed), FromStep(0), 0, pin_memory=False))

    def step() -> int:
        shape = next(stream).batches[0].inputs.images.shape
        assert shape[1:] == (FRAMES, 3, SIZE, SIZE)
        return shape[0]

    return step


def members(folder: Path, kind: str) -> list[list[bytes]]:
    """Bytes of all images (or depth maps) of each clip."""
    with ShardReader(folder) as reader:
        return [
            [reader.member(sample, name) for name in sorted(sample.members) if f".{kind}." in name]
            for sample in reader.samples
        ]


def decoding(folder: Path, *kinds: str) -> Callable[[], int]:
    """Function that decodes the images of `CLIPS` clips to arrays, from memory."""
    stored = [members(folder, kind) for kind in kinds]
    at = 0

    def step() -> int:
        nonlocal at
        for clip in range(at, at + CLIPS):
            for each in stored:
                for data in each[clip % len(each)]:
                    with Image.open(io.BytesIO(data)) as image:
                        np.asarray(image)
        at += CLIPS
        return CLIPS

    return step


def plain_webdataset(folder: Path, *, colours: bool) -> Callable[[], int]:
    """Function that takes one batch from a pipeline as its users write it; with ``colours``, torchvision's jitter."""
    rng = np.random.default_rng(0)
    jitter = ColorJitter(0.5, 0.5, 0.5, 0.1)

    def convert(sample: dict[str, bytes]) -> torch.Tensor:
        names = sorted(name for name in sample if name.endswith("image.jpg"))
        side = rng.uniform(ZOOM, 1) * SOURCE
        box = ((SOURCE - side) / 2, (SOURCE - side) / 2, (SOURCE + side) / 2, (SOURCE + side) / 2)
        frames: list[torch.Tensor] = []
        for name in names:
            image = Image.open(io.BytesIO(sample[name])).convert("RGB")
            small = np.array(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
            frames.append(torch.from_numpy(small).permute(2, 0, 1).float() / 255)
        clip = torch.stack(frames)
        return jitter(clip) if colours else clip

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    pipeline = WebDataset(shards, shardshuffle=False).repeat()
    data = pipeline.map(convert).batched(CLIPS, collation_fn=torch.stack)  # pyright: ignore[reportAttributeAccessIssue]
    stream = iter(data)

    def step() -> int:
        batch = next(stream)
        assert batch.shape == (CLIPS, FRAMES, 3, SIZE, SIZE)
        return len(batch)

    return step


def contenders(folder: Path) -> dict[str, Callable[[], int]]:
    return {
        "decode": decoding(folder, "image"),
        "loader": loading(folder, *NO_COLOURS),
        "webdataset": plain_webdataset(folder, colours=False),
        "loader with colours": loading(folder),
        "webdataset with colours": plain_webdataset(folder, colours=True),
    }


def contenders_with_depth(folder: Path) -> dict[str, Callable[[], int]]:
    return {
        "decode": decoding(folder, "image", "depth"),
        "loader": loading(folder, *NO_COLOURS),
        "loader with colours": loading(folder),
    }


def interleaved(
    contenders: dict[str, Callable[[], int]], rounds: int, advance: Callable[[], object]
) -> dict[str, list[float]]:
    """Milliseconds of processor time per clip, one figure for each round, after two rounds of warm-up."""
    spent: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 2):
        for name, step in contenders.items():
            began = time.process_time()
            clips = sum(step() for _ in range(2))
            if number >= 2:
                spent[name].append(1e3 * (time.process_time() - began) / clips)
        if number >= 2:
            advance()
    return spent


def report(spent: dict[str, list[float]], *others: str) -> dict[str, object]:
    """Medians, and the loader's speed as a share of others', paired by round."""
    result: dict[str, object] = {
        "cpu_ms_per_clip": {name: round(statistics.median(times), 2) for name, times in spent.items()}
    }

    def share(of: str, beside: str) -> float:
        return round(statistics.median(b / a for a, b in zip(spent[of], spent[beside], strict=True)), 3)

    result["share_of_decode"] = share("loader", "decode")
    result["share_of_decode_with_colours"] = share("loader with colours", "decode")
    for other in others:
        result[f"times_{other}"] = share("loader", other)
        result[f"times_{other}_with_colours"] = share("loader with colours", f"{other} with colours")
    return result


def stored(folder: Path) -> float:
    sizes = [len(data) for clip in members(folder, "image") for data in clip]
    return round(statistics.mean(sizes) / 1e3, 1)


def memory(folder: Path) -> dict[str, float]:
    """Peak resident memory (MB) of this process when 20 and 60 batches more have been loaded and dropped."""
    step, peaks = loading(folder), list[float]()
    for count in (20, 40):
        for _ in range(count):
            step()
        peaks.append(peak_mb())
    return {"peak_mb_after_20_batches": peaks[0], "peak_mb_after_60_batches": peaks[1]}


def peak_mb() -> float:
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1)


if __name__ == "__main__":
    main()
