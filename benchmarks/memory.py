"""Peak memory of dense tracks: every pixel of every frame to one query time after the other, at VGGT-1B's size.

    python benchmarks/memory.py [--device meta] [--what tracks] [--size large] [--frames 10] [--image-size 518 518]
                                [--precision fp32] [--query early] [--checkpointing on] [--record FILE]
    python benchmarks/memory.py --check --size small --frames 8 --image-size 128 128 [--what train]

Without --precision, --query, --checkpointing: both values of each. Every figure is printed, and with --record appended
to a file of JSON lines.

- **tracks**: inference, ``FourD.passes`` over --query-times (2) query times, each answer dropped when it is there. A
  third time costs what the second does.
- **train**: forward with one query time and backward of the sum of all outputs; gradients included, optimiser not.
- **query**: ``early`` enters before the backbone (DePT3R's: a pass per time), ``late`` in the motion head's decoder.
- **bf16**: autocast around float32 weights; dense and camera heads stay in float32, as configured.
- **frozen**: weights and inputs, which are there before. **peak**: bytes above them.

Devices. ``cuda``: the allocator's figure. ``meta``: no GPU and no memory; the model runs on tensors without values
that call themselves CUDA's (torch's ``FakeTensorMode``, so autocast does what it does there), and `LiveBytes` adds up
what is alive. Left out are what kernels take for themselves (cuDNN's and cuBLAS's workspaces), the CUDA context and
what an allocator rounds up. Training, in float32 only, calls itself the CPU's, since torch's backward pass takes no
CUDA tensors where there is no GPU. ``cpu``: `LiveBytes` on real tensors.

Attention is taken to be a fused kernel: FlashAttention in bfloat16, the memory-efficient one in float32. Both are in
torch's own CUDA build, and ``cuda`` is held to them. Left alone, ``meta`` takes the formula written out, whose n × n
products no GPU run would make: 10 frames of 518² are 13,740 tokens, in 16 heads 6 GB in bfloat16 for each of them.

``--check`` compares, on this machine's CPU, `LiveBytes` on real tensors, the same without values, and the growth of the
process's resident memory (the kernel's high-water mark, in a process of its own).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.vggt_parity import peak_of  # noqa: E402 - this script is run by its path
from four_d import config, schema  # noqa: E402
from four_d.memory import FusedAttention, LiveBytes, Zero  # noqa: E402
from four_d.model import FourD, ModelConfig  # noqa: E402
from four_d.training.record import describe_machine  # noqa: E402
from four_d.types import Clip, Prediction  # noqa: E402

GB = 1e9
QUERIES: dict[str, tuple[dict[str, str] | None, dict[str, str] | None]] = {
    "early": ({}, None),
    "late": (None, {}),
}
"""``backbone.query`` and ``heads.motion.decoder``."""
PAPER = (
    "DePT3R, 10 x 518^2, RTX A6000: 12 GB; SpatialTrackerV2 (40,000 queries) and VGGT's tracker (22,500): over 48 GB"
)
"""arXiv 2512.13122."""


@contextmanager
def autocast(device: str, *, half: bool) -> Generator[None]:
    """As torch's own, which refuses CUDA where there is none."""
    if not half or device != "cuda" or torch.cuda.is_available():
        with torch.autocast(device, dtype=torch.bfloat16) if half else nullcontext():
            yield
        return
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.clear_autocast_cache()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting:
    """One figure's."""

    what: str
    size: str
    precision: str
    query: str
    frames: int
    image_size: tuple[int, int]
    query_times: int
    checkpointing: bool
    configs: tuple[str, ...]

    @property
    def training(self) -> bool:
        """True if there is a backward pass."""
        return self.what == "train"

    def model(self) -> ModelConfig:
        """DePT3R's parts at that size, without VGGT's tracker; the motion head is as large as that of points."""
        system, *overlays = self.configs
        plain = cast(dict[str, Any], config.load_plain([system, f"overlays/{self.size}", *overlays])["model"])
        heads = {name: head for name, head in plain["heads"].items() if name != "track"}
        query, decoder = QUERIES[self.query]
        motion = {**heads["points"], **heads.get("motion", {}), "output": "motion"}
        given = heads.get("motion", {}).get("decoder")
        heads["motion"] = {**motion, "decoder": None if decoder is None else given or decoder}
        asked = None if query is None else plain["backbone"].get("query") or query
        backbone = {**plain["backbone"], "query": asked, "checkpointing": self.checkpointing}
        return schema.build(ModelConfig, {**plain, "backbone": backbone, "heads": heads}, "config", "model")

    def clip(self) -> Clip:
        """Noise, a frame a second."""
        times = torch.arange(self.frames).float()[None]
        return Clip(
            images=torch.rand(1, self.frames, 3, *self.image_size),
            times=times,
            camera_ids=torch.zeros(1, self.frames, dtype=torch.long),
            query_times=times[:, : 1 if self.training else self.query_times].clone(),
        )


def fields(prediction: Prediction) -> Iterator[Tensor]:
    """Its tensors, but for those of the cameras, which follow from the pose encodings."""
    values = (getattr(prediction, field.name) for field in dataclasses.fields(prediction))
    return (value for value in values if isinstance(value, Tensor))


def tracks(model: FourD, clip: Clip) -> None:
    """All query times, keeping no answer."""
    with torch.no_grad():
        deque(model.passes(clip), maxlen=0)


def train(model: FourD, clip: Clip) -> None:
    """A step but for the update."""
    torch.stack([each.float().sum() for each in fields(model(clip))]).sum().backward()


RUNS: dict[str, Callable[[FourD, Clip], None]] = {"tracks": tracks, "train": train}


def prepared(setting: Setting) -> tuple[FourD, Clip, list[Tensor]]:
    """Model and clip on the default device, and all tensors that are there before the run."""
    torch.manual_seed(0)
    model = setting.model().build()
    model.train(setting.training).requires_grad_(setting.training)
    clip = setting.clip()
    values = (getattr(clip, field.name) for field in dataclasses.fields(clip))
    inputs = [value for value in values if isinstance(value, Tensor)]
    return model, clip, [*model.parameters(), *model.buffers(), *inputs]


def sizes(model: nn.Module, there: Iterable[Tensor]) -> dict[str, int]:
    weights = {each.untyped_storage()._cdata: each.nbytes for each in model.state_dict().values()}
    everything = {each.untyped_storage()._cdata: each.untyped_storage().nbytes() for each in there}
    return {
        "parameters": sum(each.numel() for each in model.parameters()),
        "weights_bytes": sum(weights.values()),
        "frozen_bytes": sum(everything.values()),
    }


def counted(setting: Setting, device: str, *, real: bool) -> dict[str, int]:
    """By `LiveBytes`, on tensors with values or without."""
    with ExitStack() as stack:
        if not real:
            stack.enter_context(FakeTensorMode())
            stack.enter_context(Zero())
        stack.enter_context(torch.device("cuda:0" if device == "cuda" else device))
        model, clip, there = prepared(setting)
        stack.enter_context(FusedAttention())
        stack.enter_context(autocast(device, half=setting.precision == "bf16"))
        with LiveBytes(there) as live:
            RUNS[setting.what](model, clip)
        return {**sizes(model, there), "peak_bytes": live.peak}


def measured(setting: Setting) -> dict[str, int]:
    """By CUDA's allocator."""
    with torch.device("cuda"):
        model, clip, there = prepared(setting)
    run = partial(RUNS[setting.what], model, clip)
    fused_only = sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION])
    with fused_only, autocast("cuda", half=setting.precision == "bf16"):
        peaks = []
        for _ in range(2):  # the first run also loads libraries
            model.zero_grad(set_to_none=True)
            peaks.append(peak_of(run, "cuda"))
    return {**sizes(model, there), "peak_bytes": peaks[-1]}


def figure(setting: Setting, device: str) -> dict[str, Any]:
    if device == "cuda":
        found = measured(setting)
    else:
        dressed = "cpu" if setting.training else "cuda"
        found = counted(setting, dressed if device == "meta" else device, real=device != "meta")
    return {**dataclasses.asdict(setting), **found, "total_bytes": found["frozen_bytes"] + found["peak_bytes"]}


def resident_growth(setting: Setting) -> int:
    """Growth of this process when the run is made a second time, on real tensors."""
    model, clip, _ = prepared(setting)
    run = partial(RUNS[setting.what], model, clip)
    with autocast("cpu", half=setting.precision == "bf16"):
        run()
        model.zero_grad(set_to_none=True)
        return peak_of(run, "cpu")


def check(settings: argparse.Namespace) -> None:
    """Three ways to the same figure."""
    for setting in chosen(settings):
        command = [sys.executable, __file__, "--child", json.dumps(dataclasses.asdict(setting))]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 16), "MALLOC_TRIM_THRESHOLD_": "0"}
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        real, bare = (counted(setting, "cpu", real=each)["peak_bytes"] for each in (True, False))
        grown = int(printed.splitlines()[-1])
        figures = {"counted_bytes": real, "without_values_bytes": bare, "resident_bytes": grown}
        report(settings, {**dataclasses.asdict(setting), "check": True, **figures, "ratio": grown / real})


def chosen(settings: argparse.Namespace) -> Iterator[Setting]:
    """All combinations that are asked for."""
    train_on_meta = settings.what == "train" and settings.device == "meta"
    if train_on_meta and settings.precision == "bf16":
        sys.exit("training in bf16 needs a GPU: torch's backward pass takes no CUDA tensors without one")
    precisions = (settings.precision,) if settings.precision else ("fp32",) if train_on_meta else ("fp32", "bf16")
    queries = (settings.query,) if settings.query else tuple(QUERIES)
    again = (True, False) if settings.checkpointing is None else (settings.checkpointing == "on",)
    again = again if settings.what == "train" else (False,)
    for frames, query, precision, checkpointing in product(settings.frames, queries, precisions, again):
        yield Setting(
            what=settings.what,
            size=settings.size,
            precision=precision,
            query=query,
            frames=frames,
            image_size=tuple(settings.image_size),
            query_times=settings.query_times,
            checkpointing=checkpointing,
            configs=tuple(settings.configs),
        )


def report(settings: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Print the figures, in GB of 10⁹ bytes; append them to --record."""
    names = ("what", "size", "query", "precision", "checkpointing", "frames", "query_times", "ratio")
    words = [f"{name} {figures[name]}" for name in names if name in figures]
    words += [f"{key.removesuffix('_bytes')} {value / GB:.3f} GB" for key, value in figures.items() if "_bytes" in key]
    print("  ".join(words), flush=True)
    if settings.record is not None:
        line = {"benchmark": "memory", "device": settings.device, **figures, **describe_machine()}
        with settings.record.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    settings = parse().parse_args()
    if settings.child:
        given = json.loads(settings.child)
        lists = {name: tuple(given[name]) for name in ("image_size", "configs")}
        print(resident_growth(Setting(**{**given, **lists})))
        return
    if settings.check:
        check(settings)
        return
    print(f"the paper: {PAPER}")
    for setting in chosen(settings):
        report(settings, figure(setting, settings.device))


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("meta", "cpu", "cuda"), default="meta")
    parser.add_argument("--what", choices=tuple(RUNS), default="tracks")
    parser.add_argument("--check", action="store_true", help="compare ways to count, on this CPU")
    parser.add_argument("--size", default="large", help="of configs/overlays")
    parser.add_argument("--configs", nargs="+", default=["dept3r"], help="what the size is laid over")
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--query", choices=tuple(QUERIES))
    parser.add_argument("--checkpointing", choices=("on", "off"))
    parser.add_argument("--frames", type=int, nargs="+", default=[10])
    parser.add_argument("--image-size", type=int, nargs=2, default=(518, 518), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--query-times", type=int, default=2)
    parser.add_argument("--record", type=Path, help="JSON lines, to append to")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
