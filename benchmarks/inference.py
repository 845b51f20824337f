"""Frames against time and memory of inference on one CPU core, with windows and in one pass; windows beside a cache.

    python benchmarks/inference.py [--frames 8 24 48 96 192 384 1000] [--way windows --way fused] [--files]
                                   [--most-seconds 600]
    python benchmarks/inference.py --cache [--videos 4] [--length 96]
    python benchmarks/inference.py --compile [--frames 24] [--rounds 9]
    python benchmarks/inference.py --plot

All with [--model checkpoints/unified-base] [--out docs/results/inference.json]; the figures are merged into the file.

Frames: each figure is of a fresh process with one thread, on a video (the repository's, played to and fro) of the size
that the model was trained at: ``model(video)``, from the file to cameras, depth, points and what moves of all frames,
in memory. Tracks and Gaussians are left out, which take passes of their own for each time; with ``--files`` it is
`four_d.inference.infer`, to all files but the page.

- **windows**: as `four-d infer` has it: 24 frames that share 6. **whole**: all frames at once, attention as the model
  has it. **fused**: so, with torch's fused attention, which holds no n × n matrix; equal up to rounding.
- **processor_seconds**: of the process, which other work disturbs less than **seconds** by the clock.
- **peak_bytes**: highest resident size during the run above the loaded model, on the plain heap.
- A way ends where the model's check refuses the size, or the last run took longer than ``--most-seconds``.

``--cache``: long synthetic videos with known cameras and depth, seen **whole**, in **windows**, and with a **cache** of
keys and values: of each global block those of past frames are kept as they were computed (StreamVGGT's way, arXiv
2507.11539, without its training). 18 new frames at a time, and again the first and the last one before, attend to
those of the 24 frames before (**cache**), or of all (**cache of all**). Cached frames never see later ones, so this is
not the pass over all frames. Seconds are the model's alone, but of windows with their joining.

``--compile``: blocks as they are and compiled (`four-d infer --compile`), in turns in one process with one thread, of
the model alone (**pass**) and of ``model(video)`` in windows (**video**). **times_eager** is the median of neighbouring
turns' ratios of processor time, with the quartiles; **compile_seconds** what the first call took above an eager one,
without what earlier processes had compiled; **errors** the largest difference of each output, relative to its largest.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.generate import commit, processor  # noqa: E402 - this script is run by its path
from benchmarks.vggt_parity import peak_of  # noqa: E402
from data_prep.synthetic import HELD_OUT_SEED, WorldSettings, generate  # noqa: E402
from four_d import evaluation, fields  # noqa: E402
from four_d.abilities import Abilities, Model  # noqa: E402
from four_d.backbones.alternating import AlternatingBackbone  # noqa: E402
from four_d.data.shards import finalise, write_shard  # noqa: E402
from four_d.errors import UserError  # noqa: E402
from four_d.formats.videos import write_video  # noqa: E402
from four_d.inference import LoadedModel, Request, Selection, infer, load  # noqa: E402
from four_d.layers import Attention, RankOne, Rotation, attention, rotate  # noqa: E402
from four_d.model import FourD, compile_blocks  # noqa: E402
from four_d.outputs import write_json  # noqa: E402
from four_d.types import Clip, Prediction  # noqa: E402
from four_d.video import footage  # noqa: E402
from four_d.windows.clips import ClipSource, as_given  # noqa: E402
from four_d.windows.cut import Cut  # noqa: E402
from four_d.windows.frames import join_frames, take_frames  # noqa: E402
from four_d.windows.sliding import Sliding  # noqa: E402

WAYS = ("windows", "whole", "fused")
FRAMES = (8, 24, 48, 96, 192, 384, 1000)
LEFT_OUT = ("gaussians", "motion")
METRICS = ("depth_absrel_median_frame", "pose_rot_pairs_deg", "pose_ate_sim3")
SOURCE = ROOT / "tests/data/bikes.mp4"
MODEL = ROOT / "checkpoints/unified-base"


def make_video(path: Path, frames: int, size: tuple[int, int]) -> None:
    """Write the middle of the repository's video, to and fro, as often as it takes."""
    with av.open(str(SOURCE)) as container:
        whole = [frame.to_image() for frame in container.decode(video=0)]
    width, height = whole[0].size
    side = min(height, width)
    box = ((width - side) // 2, 0, (width + side) // 2, side)
    pictures = [np.asarray(each.resize((size[1], size[0]), box=box)) for each in whole]
    there_and_back = [*pictures, *pictures[-2:0:-1]]
    write_video(path, (there_and_back[index % len(there_and_back)] for index in range(frames)), 25.0)


def prepared(model: Path, way: str) -> LoadedModel:
    """Model without what takes passes of its own, with the attention of a way."""
    loaded = load(model).to("cpu").without(*LEFT_OUT)
    if way == "fused":
        for module in loaded.model.modules():
            if isinstance(module, Attention):
                module.backend = "sdpa"
    return loaded


def child(settings: argparse.Namespace) -> None:
    """One run, alone in its process; printed as JSON."""
    torch.set_num_threads(1)
    frames, way = settings.frames[0], settings.way[0]
    model = prepared(settings.model, way)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        video, short = Path(folder) / "video.mp4", Path(folder) / "short.mp4"
        make_video(video, frames, model.info.image_size)
        make_video(short, 4, model.info.image_size)

        def run(path: Path, count: int) -> None:
            window = None if way == "windows" else max(count, 2)
            asked = Request(video=path, selection=Selection(max_frames=count), window=window, tracks=False)
            if settings.files:
                infer(model, asked, Path(folder) / path.stem, page=None, novel_views=False)
            else:
                model(asked)

        run(short, 4)  # libraries load
        began = time.perf_counter(), time.process_time()
        try:
            found["peak_bytes"] = peak_of(lambda: run(video, frames), "cpu")
        except UserError as error:
            found["refused"] = str(error)
        found |= {"seconds": time.perf_counter() - began[0], "processor_seconds": time.process_time() - began[1]}
    print(json.dumps(found))


def frames_table(settings: argparse.Namespace) -> None:
    """All ways at all numbers of frames, each in a process of its own."""
    for way in settings.way or WAYS:
        for frames in settings.frames or FRAMES:
            command = [sys.executable, __file__, "--model", str(settings.model), "--child"]
            command += ["--way", way, "--frames", str(frames), *(["--files"] if settings.files else [])]
            done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True, cwd=ROOT)
            if done.returncode:
                row: dict[str, Any] = {"refused": f"exit code {done.returncode}"}
            else:
                row = cast(dict[str, Any], json.loads(done.stdout.splitlines()[-1]))
            row = {"way": way, "files": settings.files, "frames": frames, **row}
            print(json.dumps(row), flush=True)
            merge(settings, "frames", row, ("way", "files", "frames"))
            if "refused" in row or row["seconds"] > settings.most_seconds:
                break


class Timed(Model):
    """A model, and the processor time of its calls."""

    def __init__(self, model: LoadedModel) -> None:
        self.model, self.seconds, self.frames = model, 0.0, 0

    @property
    def abilities(self) -> Abilities:
        """Abilities of the model."""
        return self.model.abilities

    def __call__(self, clip: Clip, /) -> Prediction:
        """Predict and count."""
        began = time.process_time()
        with torch.no_grad():
            found = self.predict(clip)
        self.seconds += time.process_time() - began
        self.frames += clip.images.shape[1]
        return found

    def predict(self, clip: Clip) -> Prediction:
        """Predict all frames at once."""
        return self.model(clip)


class Windows(Timed):
    """Windows, as inference has them."""

    def predict(self, clip: Clip) -> Prediction:
        """Predict window by window."""
        source = ClipSource(model=self.model, clip=fields.unstack(clip, 0), prepare=as_given("cpu"))
        cut = Cut.of(self.model.info.frames)
        found = Sliding(source, cut, self.model.abilities, tracks=False).collect().prediction
        return fields.stack([found])


class Kept(nn.Module):
    """Attention of a global block to past frames' keys and values, too, of at most ``most`` frames."""

    def __init__(self, own: Attention, most: int | None) -> None:
        super().__init__()
        self.own, self.most, self.tokens, self.new = own, most, 0, slice(0)
        self.past: list[tuple[Tensor, Tensor, Tensor | None]] = []
        """Of each past frame keys, values, and the keys' factor of the bias."""

    def forward(self, x: Tensor, rotation: Rotation | None = None, bias: RankOne | None = None) -> Tensor:
        """Attend to the past and within; frames ``new`` join the past."""
        own = self.own
        q, k, v = own.qkv(x).unflatten(-1, (3, own.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = own.q_norm(q), own.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        factor = None if bias is None else bias[1]
        keys = torch.cat([*(each[0] for each in self.past), k], 2)
        values = torch.cat([*(each[1] for each in self.past), v], 2)
        if bias is not None:
            factors = [each[2] for each in self.past if each[2] is not None]
            bias = bias[0], torch.cat([*factors, bias[1]], 1)
        size = self.tokens
        for frame in range(self.new.start, self.new.stop):
            part = slice(frame * size, (frame + 1) * size)
            kept = k[:, :, part].clone(), v[:, :, part].clone(), None if factor is None else factor[:, part].clone()
            self.past.append(kept)
        mixed = attention(q, keys, values, own.backend, bias)
        if self.most is not None:
            self.past = self.past[-self.most :]
        return own.proj(mixed.transpose(1, 2).flatten(-2))


class Cached(Timed):
    """New frames at a time, which attend to keys and values of ``most`` past ones (None: of all)."""

    STEP = 18

    def __init__(self, model: LoadedModel, most: int | None) -> None:
        super().__init__(model)
        self._most = most

    def predict(self, clip: Clip) -> Prediction:
        """Predict some frames after the other; each call sees the first and the last one before again."""
        model = self.model.model
        assert isinstance(model, FourD)
        backbone = model.backbone
        assert isinstance(backbone, AlternatingBackbone)
        tokens = model.tokens(fields.take(clip, "f", [0]))
        parts: list[Prediction] = []
        with keeping(backbone, self._most, tokens) as kept:
            first = Cut.of(self.model.info.frames).frames
            count = clip.images.shape[1]
            for start in [0, *range(first, count, self.STEP)]:
                stop = first if start == 0 else min(start + self.STEP, count)
                again = [] if start == 0 else [0, start - 1]
                rows = [*again, *range(start, stop)]
                for each in kept:
                    each.past = each.past[:-1]  # the frame before is seen again; the first, in each call, is never past
                    each.new = slice(1, len(rows))
                found = fields.unstack(fields.delivered(model(fields.take(clip, "f", rows))), 0)
                parts.append(take_frames(found, slice(len(again), len(rows))))
        return fields.stack([join_frames(parts)])


@contextmanager
def keeping(backbone: AlternatingBackbone, most: int | None, tokens: int) -> Iterator[list[Kept]]:
    """Let the global blocks keep keys and values."""
    blocks = list(backbone.global_blocks)
    plain = [cast(Attention, block.attn) for block in blocks]
    kept = [Kept(each, most) for each in plain]
    for block, each in zip(blocks, kept, strict=True):
        each.tokens, block.attn = tokens, each
    try:
        yield kept
    finally:
        for block, each in zip(blocks, plain, strict=True):
            block.attn = each


def cache_table(settings: argparse.Namespace) -> None:
    """Errors and processor time of the ways to see a long video."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        seconds = settings.length / 24
        worlds = WorldSettings(
            cameras=1, frames=settings.length, width=64, height=64, duration_s=(seconds, 1.01 * seconds)
        )
        clips = [generate(HELD_OUT_SEED + index, worlds) for index in range(settings.videos)]
        write_shard(data, 0, clips)
        finalise(data, "long")
        model = prepared(settings.model, "fused")
        ways = {"whole": Timed(model), "windows": Windows(model)}
        ways |= {"cache": Cached(model, 24), "cache of all": Cached(model, None)}
        config = evaluation.EvaluationConfig(
            data=str(data), frames=settings.length, stride=1, tasks=("depth", "pose"), device="cpu"
        )
        warm_up = Clip(
            images=torch.rand(1, 30, 3, 64, 64),
            times=torch.arange(30.0)[None] / 24,
            camera_ids=torch.zeros(1, 30, dtype=torch.long),
        )
        for name, way in ways.items():
            way(warm_up)
            way.seconds, way.frames = 0.0, 0
            found = evaluation.run(way, config)
            scores = {metric: found.rows[found.name][metric].mean for metric in METRICS}
            row = {"way": name, "videos": settings.videos, "length": settings.length, **scores}
            row |= {"processor_seconds_per_frame": way.seconds / way.frames, "digest": found.digest}
            print(json.dumps(row), flush=True)
            merge(settings, "cache", row, ("way", "length"))


def compile_table(settings: argparse.Namespace) -> None:
    """Blocks compiled beside eager ones."""
    torch.set_num_threads(1)
    eager, compiled = prepared(settings.model, "windows"), prepared(settings.model, "windows")
    compile_blocks(compiled.model)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for frames in settings.frames or (24,):
            video = Path(folder) / f"{frames}.mp4"
            make_video(video, frames, eager.info.image_size)
            asked = Request(video=video, selection=Selection(max_frames=frames), tracks=False)
            pictures = torch.from_numpy(np.stack(footage.read(video).frames)).permute(0, 3, 1, 2)[None] / 255
            times = torch.arange(frames, dtype=torch.float32)[None] / 25
            clip = Clip(images=pictures, times=times, camera_ids=torch.zeros(1, frames, dtype=torch.long))
            with torch.no_grad():
                one, first = clocked(partial(eager.model, clip))
                other, with_compiling = clocked(partial(compiled.model, clip))
                calls: dict[str, list[Callable[[], object]]] = {
                    "pass": [partial(eager.model, clip), partial(compiled.model, clip)],
                    "video": [partial(eager, asked), partial(compiled, asked)],
                }
                for of, both in calls.items():
                    row = {"of": of, "frames": frames, **turns(both, settings.rounds)}
                    if of == "pass":
                        row |= {"compile_seconds": with_compiling - first, "errors": differences(one, other)}
                    print(json.dumps(row), flush=True)
                    merge(settings, "compile", row, ("of", "frames"))


def clocked(call: Callable[[], Prediction]) -> tuple[Prediction, float]:
    """Result, and processor seconds."""
    began = time.process_time()
    return call(), time.process_time() - began


def turns(calls: Sequence[Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Processor time of an eager and of a compiled call, one after the other in each round, after a warm-up."""
    found: list[list[float]] = []
    for _ in range(rounds + 1):
        seconds: list[float] = []
        for call in calls:
            began = time.process_time()
            call()
            seconds.append(time.process_time() - began)
        found.append(seconds)
    eager, compiled = np.array(found[1:]).T
    low, middle, high = (round(float(each), 3) for each in np.percentile(eager / compiled, [25, 50, 75]))
    medians = {"eager_seconds": float(np.median(eager)), "compiled_seconds": float(np.median(compiled))}
    return {"times_eager": {"median": middle, "quartile_1": low, "quartile_3": high}, **medians, "rounds": rounds}


def differences(one: Prediction, other: Prediction) -> dict[str, float]:
    """Largest difference of each tensor of two predictions, relative to its largest value."""
    others = fields.named(other)
    return {
        name: ((tensor - others[name]).abs().max() / tensor.abs().max().clamp_min(1e-9)).item()
        for name, tensor in fields.named(fields.delivered(one)).items()
    }


def merge(settings: argparse.Namespace, table: str, row: dict[str, Any], key: tuple[str, ...]) -> None:
    """Put a row into the file, in the place of an earlier one of the same key."""
    whole: dict[str, Any] = json.loads(settings.out.read_text()) if settings.out.is_file() else {}
    command = shlex.join(["python", *sys.argv])
    row |= {"machine": processor(), "threads": 1, "torch": torch.__version__, "commit": commit(), "command": command}
    others = [each for each in whole.get(table, []) if [each[name] for name in key] != [row[name] for name in key]]
    rows = sorted([*others, row], key=lambda each: [each[name] for name in key])
    write_json(settings.out, {**whole, "model": settings.model.name, table: rows})


def plot(settings: argparse.Namespace) -> None:
    """Draw frames against time and memory, beside the file."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = json.loads(settings.out.read_text())["frames"]
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for way in WAYS:
        mine = [each for each in rows if each["way"] == way and not each["files"] and "refused" not in each]
        frames = np.array([each["frames"] for each in mine])
        times: NDArray[np.float64] = np.array([each["processor_seconds"] for each in mine]) / frames
        for axis, values in zip(axes, (times, [each["peak_bytes"] / 1e6 for each in mine]), strict=True):
            axis.loglog(frames, values, marker="o", label=way)
    for axis, label in zip(axes, ("processor seconds a frame", "peak memory, MB"), strict=True):
        axis.set(xlabel="frames", ylabel=label)
        axis.grid(visible=True, which="both", alpha=0.2)
    axes[0].legend()
    figure.savefig(settings.out.with_suffix(".png"), dpi=100)


def main() -> None:
    settings = parse().parse_args()
    if settings.child:
        child(settings)
    elif settings.plot:
        plot(settings)
    elif settings.cache:
        cache_table(settings)
    elif settings.compile:
        compile_table(settings)
    else:
        frames_table(settings)


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--frames", type=int, nargs="+")
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--files", action="store_true", help="write all files, as four-d infer does")
    parser.add_argument("--most-seconds", type=float, default=600.0)
    parser.add_argument("--cache", action="store_true")
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--length", type=int, default=96, help="frames of each video")
    parser.add_argument("--compile", action="store_true", help="blocks compiled beside eager ones")
    parser.add_argument("--rounds", type=int, default=9, help="of --compile")
    parser.add_argument("--plot", action="store_true", help="draw the file's figures")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results/inference.json")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
