"""Speed and memory beside VGGT's published code, with the same weights.

    python benchmarks/vggt_parity.py --reference CHECKOUT [--what all] [--size base] [--precision fp32] [--frames 4]
                                     [--image-size 224 224] [--repeats 9] [--threads 2] [--device cpu] [--record FILE]

CHECKOUT is a folder with VGGT's package ``vggt`` in it (github.com/facebookresearch/vggt); nothing of it is kept here.
Without --precision, --frames: both precisions for the rates, 4 and 32 frames for the memory. Every figure is printed,
and with --record appended to a file of JSON lines, as soon as it is there. Whatever --what says (``forward``,
``train``, ``memory``, ``scaling``; ``all`` is the first three) comes one after the other, in one process, alone.

Both sides get the same weights (seeded, through the adapter of `four_d.weights`). Before anything is timed their
outputs, and for training all gradients but those of the encoder's positions, must agree. Each repetition then runs
every side once, one after the other, so that a busy machine slows all of them; figures are medians after warm-ups.

- **rate**: reference time ÷ ours, by the wall clock (``cpu_rate``: by processor time).
- **train**: forward and backward of the sum of all outputs, activation checkpointing of the encoder's and the
  backbone's blocks on both sides, none in the heads. In fp32 a third side is ours as a run has it by default
  (``model.backbone.checkpointing: false``; VGGT's code always recomputes in training): ``rate_kept``. It takes more
  memory, which ``--what memory`` does not show.
- **fp32**: plain float32 on both sides, nothing compiled.
- **bf16**: ours: autocast, heads in bfloat16 too (``precision: loop``), convolutions' weights channels-last,
  `compile_model`, on a CPU attention written out (``attention: matmul``). The reference: autocast around
  all of it, the best that it does without changes (on a CPU its heads follow; their switch to float32 is for CUDA
  only, and there they stay in float32). Its float32 run is a third side: ``rate_to_fp32``. ``errors``: ours from it.
  Of the forward pass ours in float32, nothing compiled, is a fourth: ``rate_to_own_fp32``.
- **memory**: ours ÷ reference of the peak above the loaded weights, gradients included. Each side runs in a fresh
  process: weights, a run of a tiny clip (libraries and the allocator warm up), garbage collection and ``malloc_trim``;
  then the resident size is read, the kernel's high-water mark reset, and the clip run once. Blocks of 1 MB and more
  are mapped one by one in both processes, so that the peak is what is in use; with --heap they come from glibc's heap
  as it likes, and what it fails to give back counts too. On CUDA: the allocator's figure.
- **scaling** (CUDA): for 2 to 200 frames the time of the whole model, of the backbone alone, the peak of memory
  and the share of the device's peak rate that the model's operations make up, beside the table of VGGT's paper.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.patches import ConvPatchConfig, PatchConfig, TimmPatchConfig, TimmPatches
from four_d.heads import HeadConfig
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.features import DenseFeatures
from four_d.model import FourD, ModelConfig, compile_blocks
from four_d.training.record import describe_machine
from four_d.training.work import peak_rate
from four_d.types import Clip
from four_d.weights.vggt import ADAPTER, POSE

Run = Callable[[Tensor], Sequence[Tensor]]
OUTPUTS = ("pose_encodings", "depth", "depth_confidence", "points", "points_confidence")
TOLERANCE = {"fp32": 1e-4, "bf16": 0.2}
"""Greatest error of outputs, relative to the largest value of each (at least 1)."""
GRADIENT_TOLERANCE = 1e-2
"""Greatest relative error of the norm of each tensor's gradient."""
KEPT = "ours without recomputation"
OWN = "ours in fp32"
FOLDED = ("cls_token", "pos_embed", "reg_token", "mask_token")
"""Encoder parameters that the two sides hold in different sums: their gradients have no counterpart."""
PAPER = {
    1: (0.04, 1.88),
    2: (0.05, 2.07),
    4: (0.07, 2.45),
    8: (0.11, 3.23),
    10: (0.14, 3.63),
    20: (0.31, 5.58),
    50: (1.04, 11.41),
    100: (3.12, 21.15),
    200: (8.75, 40.63),
}
"""Frames to seconds and GB of the backbone, one H100 with FlashAttention 3, 336 × 518 (arXiv 2503.11651, table 9)."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of the model, in terms of both sides. ``encoder``: None is one convolution."""

    width: int
    rounds: int
    heads: int
    levels: tuple[int, ...]
    encoder: Literal["small", "large"] | None = None
    channels: tuple[int, ...] = (256, 512, 1024, 1024)
    features: int = 256
    camera_heads: int = 16


SIZES = {
    "tiny": Size(width=64, rounds=4, heads=4, levels=(0, 1, 2, 3), channels=(16, 16, 32, 32), features=16),
    "base": Size(width=384, rounds=12, heads=6, levels=(2, 5, 8, 11), encoder="small"),
    "large": Size(width=1024, rounds=24, heads=16, levels=(4, 11, 17, 23), encoder="large"),
}


class Reference(nn.Module):
    """VGGT without tracks, put together out of its own modules, since its own class has one size only."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        parts = [importlib.import_module(f"vggt.{name}") for name in ("models.aggregator", "heads.camera_head")]
        dense = importlib.import_module("vggt.heads.dpt_head").DPTHead
        encoder = "conv" if size.encoder is None else f"dinov2_vit{size.encoder[0]}14_reg"
        self.aggregator = parts[0].Aggregator(
            img_size=518, embed_dim=size.width, depth=size.rounds, num_heads=size.heads, patch_embed=encoder
        )
        width = 2 * size.width
        self.camera_head = parts[1].CameraHead(dim_in=width, num_heads=size.camera_heads)
        sizes = {
            "dim_in": width,
            "features": size.features,
            "out_channels": list(size.channels),
            "intermediate_layer_idx": list(size.levels),
            "conf_activation": "expp1",
        }
        self.depth_head = dense(output_dim=2, activation="exp", **sizes)
        self.point_head = dense(output_dim=4, activation="inv_log", **sizes)

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """In the order of `OUTPUTS`; heads in float32 on CUDA, as its own class has it."""
        tokens, first = self.aggregator(images)
        with torch.autocast("cuda", enabled=False):
            poses = torch.stack(self.camera_head(tokens))
            depth, depth_confidence = self.depth_head(tokens, images=images, patch_start_idx=first)
            points, points_confidence = self.point_head(tokens, images=images, patch_start_idx=first)
        return POSE.to_ours(poses, -1), depth[..., 0], depth_confidence, points, points_confidence


class Ours(nn.Module):
    """The same, of this package."""

    def __init__(
        self, size: Size, *, checkpointing: bool, precision: Literal["full", "loop"], written_out: bool
    ) -> None:
        super().__init__()
        depth = DenseHeadConfig(rounds=size.levels, channels=size.channels, features=size.features, precision=precision)
        encoder: PatchConfig = ConvPatchConfig()
        if size.encoder is not None:
            encoder = TimmPatchConfig(model=f"vit_{size.encoder}_patch14_reg4_dinov2", image_size=518)
        backbone = AlternatingConfig(
            patches=encoder,
            width=size.width,
            rounds=size.rounds,
            heads=size.heads,
            checkpointing=checkpointing,
            attention="matmul" if written_out else "sdpa",
        )
        heads: dict[str, HeadConfig] = {
            "camera": CameraHeadConfig(heads=size.camera_heads),
            "depth": depth,
            "points": replace(depth, output="points"),
        }
        self.model: FourD = ModelConfig(backbone=backbone, heads=heads).build()

    def forward(self, images: Tensor) -> Sequence[Tensor]:
        """In the order of `OUTPUTS`."""
        prediction = self.model(clip(images))
        return [getattr(prediction, name) for name in OUTPUTS]


def clip(images: Tensor) -> Clip:
    """All from one camera."""
    times = torch.zeros(images.shape[:2], device=images.device)
    return Clip(images=images, times=times, camera_ids=times.long())


def compile_model(model: nn.Module) -> None:
    """Compile all that takes time: transformer blocks (`compile_blocks`), an image encoder's blocks, dense heads."""
    compile_blocks(model)
    for module in model.modules():
        if isinstance(module, TimmPatches):
            for block in module.encoder.get_submodule("blocks"):  # pyright: ignore[reportGeneralTypeIssues]
                block.compile()
        if isinstance(module, DenseFeatures):
            module.coarse = torch.compile(module.coarse)
            module.finish = torch.compile(module.finish)


@dataclass(frozen=True, kw_only=True)
class Side:
    """An implementation at work."""

    name: str
    model: nn.Module
    half: bool

    def outputs(self, images: Tensor) -> Sequence[Tensor]:
        """Under its precision."""
        with torch.autocast(images.device.type, dtype=torch.bfloat16) if self.half else nullcontext():
            return self.model(images)

    def forward(self, images: Tensor) -> None:
        """Without gradients."""
        with torch.no_grad():
            self.outputs(images)

    def train(self, images: Tensor) -> None:
        """Forward and backward of the sum of all outputs; gradients stay until the next call."""
        self.model.zero_grad(set_to_none=True)
        torch.stack([each.float().sum() for each in self.outputs(images)]).sum().backward()


def sides(settings: argparse.Namespace, precision: str, *, training: bool) -> list[Side]:
    """Ours and the reference; in bfloat16 also the reference in float32. All with the same weights."""
    torch.manual_seed(settings.seed)
    size = SIZES[settings.size]
    half = precision == "bf16"
    reference = Reference(size)
    ours = Ours(
        size,
        checkpointing=training,
        precision="loop" if half else "full",
        written_out=half and settings.device == "cpu",
    )
    ours.model.load_state_dict(ADAPTER.to_ours(reference.state_dict(), ours.model.state_dict(), "the reference"))
    for model in (reference, ours):
        model.to(settings.device).train(training)
    if half:
        ours.to(memory_format=torch.channels_last)
        compile_model(ours.model)
    found = [Side(name="ours", model=ours, half=half), Side(name="reference", model=reference, half=half)]
    if half:
        found.append(Side(name="reference in fp32", model=reference, half=False))
    if half != training:  # the plainest of ours: in fp32, as it is by default
        plain = Ours(size, checkpointing=False, precision="full", written_out=False)
        plain.load_state_dict(ours.state_dict())
        name = OWN if half else KEPT
        found.append(Side(name=name, model=plain.to(settings.device).train(training), half=False))
    return found


def images(settings: argparse.Namespace, frames: int, size: tuple[int, int] | None = None) -> Tensor:
    """Noise; the same for the same seed."""
    generator = torch.Generator().manual_seed(settings.seed)
    return torch.rand(1, frames, 3, *(size or settings.image_size), generator=generator).to(settings.device)


def compare(found: Sequence[Side], pictures: Tensor, precision: str) -> dict[str, float]:
    """Largest difference of each output relative to its largest value, ours from a reference. Exits if too large."""
    reference = next(side for side in reversed(found) if side.name.startswith("reference"))
    with torch.no_grad():
        ours, theirs = found[0].outputs(pictures), reference.outputs(pictures)
    errors = {
        name: (one.float() - two.float()).abs().max().item() / max(1.0, two.abs().max().item())
        for name, one, two in zip(OUTPUTS, ours, theirs)
    }
    if max(errors.values()) > TOLERANCE[precision]:
        sys.exit(f"outputs differ: {errors}; nothing was timed")
    return errors


def compare_gradients(found: Sequence[Side], pictures: Tensor) -> float:
    """Largest difference of a parameter's gradient, relative to its norm. Exits if too large."""
    ours, theirs = found[0], found[1]
    ours.train(pictures)
    theirs.train(pictures)
    named = dict(theirs.model.named_parameters())
    worst = (0.0, "")
    for name, parameter in ours.model.get_submodule("model").named_parameters():
        found_name = ADAPTER.their_name(name)
        if found_name is None or name.endswith(FOLDED):
            continue
        their_name, rule = found_name
        grad = named[their_name].grad
        assert grad is not None
        assert parameter.grad is not None
        grad = grad if rule.axis is None else POSE.to_ours(grad, rule.axis)
        worst = max(worst, (((parameter.grad - grad).norm() / grad.norm().clamp_min(1e-6)).item(), name))
    if worst[0] > GRADIENT_TOLERANCE:
        sys.exit(f"the gradient of {worst[1]} differs by {worst[0]:.3g} of its norm; nothing was timed")
    return worst[0]


def timed(run: Callable[[], None], device: str) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - processor


def rate(settings: argparse.Namespace, precision: str, what: Literal["forward", "train"]) -> dict[str, Any]:
    """Medians of interleaved runs."""
    found = sides(settings, precision, training=what == "train")
    pictures = images(settings, settings.frames or 4)
    agreement: dict[str, Any] = {"errors": compare(found, pictures, precision)}
    if what == "train" and precision == "fp32":
        agreement["gradient_error"] = compare_gradients(found, pictures)
    runs = {side.name: partial(getattr(side, what), pictures) for side in found}
    for run in runs.values():
        for _ in range(settings.warm_ups):
            run()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(settings.repeats):
        for name, run in runs.items():
            times[name].append(timed(run, settings.device))
    wall = {name: statistics.median(each[0] for each in runs) for name, runs in times.items()}
    processor = {name: statistics.median(each[1] for each in runs) for name, runs in times.items()}
    figures = {"rate": wall["reference"] / wall["ours"], "cpu_rate": processor["reference"] / processor["ours"]}
    if precision == "bf16":
        figures["rate_to_fp32"] = wall["reference in fp32"] / wall["ours"]
        figures["cpu_rate_to_fp32"] = processor["reference in fp32"] / processor["ours"]
    if OWN in wall:
        figures |= {
            "rate_to_own_fp32": wall[OWN] / wall["ours"],
            "cpu_rate_to_own_fp32": processor[OWN] / processor["ours"],
        }
    if KEPT in wall:
        figures |= {
            "rate_kept": wall["reference"] / wall[KEPT],
            "cpu_rate_kept": processor["reference"] / processor[KEPT],
        }
    spread = {name: [min(each[0] for each in runs), max(each[0] for each in runs)] for name, runs in times.items()}
    sizes = {"precision": precision, "frames": pictures.shape[1], **agreement}
    return {"what": what, **figures, "seconds": wall, "spread": spread, "cpu_seconds": processor, **sizes}


def resident(field: Literal["VmRSS", "VmHWM"]) -> int:
    """Bytes of this process in memory: now, or at most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak_of(run: Callable[[], None], device: str) -> int:
    """Bytes above what is in use before."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    run()
    return resident("VmHWM") - before


def child(settings: argparse.Namespace) -> None:
    """One side's peak, alone in its process; printed as JSON."""
    torch.manual_seed(settings.seed)
    precision, what = settings.precision, settings.what
    training, half = what == "train", precision == "bf16"
    size = SIZES[settings.size]
    if settings.child == "reference":
        model = Reference(size)
    else:
        model = Ours(
            size,
            checkpointing=training,
            precision="loop" if half else "full",
            written_out=half and settings.device == "cpu",
        )
        if half:
            compile_model(model.model)
    side = Side(name=settings.child, model=model.to(settings.device).train(training), half=half)
    run = getattr(side, what)
    run(images(settings, 2, (56, 56)))
    model.zero_grad(set_to_none=True)
    pictures = images(settings, settings.frames)
    print(json.dumps(peak_of(lambda: run(pictures), settings.device)))


def memory(settings: argparse.Namespace, precision: str, what: str, frames: int) -> dict[str, Any]:
    """Peaks of both sides, in processes of their own."""
    given = [
        *("--reference", str(settings.reference), "--size", settings.size, "--device", settings.device),
        *("--what", what, "--precision", precision, "--frames", str(frames), "--threads", str(settings.threads)),
        *("--image-size", *map(str, settings.image_size), "--seed", str(settings.seed)),
    ]
    peaks: dict[str, int] = {}
    for name in ("ours", "reference"):
        command = [sys.executable, __file__, *given, "--child", name]
        environment = os.environ if settings.heap else {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        peaks[name] = json.loads(found.stdout.splitlines()[-1])
    sizes = {"of": what, "precision": precision, "frames": frames, "heap": settings.heap}
    return {"what": "memory", "memory": peaks["ours"] / peaks["reference"], "bytes": peaks, **sizes}


def operations(settings: argparse.Namespace, frames: int) -> tuple[int, int]:
    """Multiplications and additions of a forward pass: of the whole model, of the backbone alone."""
    with torch.device("meta"):
        model = Ours(SIZES[settings.size], checkpointing=False, precision="full", written_out=False).model.eval()
        pictures = torch.empty(1, frames, 3, *settings.image_size)
        counts: list[int] = []
        calls: tuple[Callable[[Clip], object], ...] = (model, cast(nn.Module, model.backbone))
        for call in calls:
            with torch.no_grad(), FlopCounterMode(display=False) as counter:
                call(clip(pictures))
            counts.append(counter.get_total_flops())
    return counts[0], counts[1]


def scaling(settings: argparse.Namespace, precision: str, frames: int) -> dict[str, Any]:
    """Seconds, peak bytes and utilisation of both sides at a number of frames."""
    found = sides(settings, precision, training=False)[:2]
    pictures = images(settings, frames)
    peak = peak_rate(device_name(settings), "bf16")
    whole, backbone = operations(settings, frames)
    parts: list[nn.Module] = [
        found[0].model.get_submodule("model.backbone"),
        found[1].model.get_submodule("aggregator"),
    ]
    figures: dict[str, Any] = {"what": "scaling", "frames": frames, "precision": precision, "paper": PAPER.get(frames)}
    for side, part in zip(found, parts):
        inputs = clip(pictures) if side.name == "ours" else pictures
        alone = Side(name=side.name, model=Without(part, inputs), half=side.half)
        seconds = [median_of(each, pictures, settings) for each in (side, alone)]
        figures[side.name] = {
            "seconds": seconds[0],
            "backbone_seconds": seconds[1],
            "bytes": peak_of(lambda run=side.forward: run(pictures), settings.device),
            "backbone_bytes": peak_of(lambda run=alone.forward: run(pictures), settings.device),
            "utilisation": None if peak is None else whole / seconds[0] / peak,
            "backbone_utilisation": None if peak is None else backbone / seconds[1] / peak,
        }
    return {**figures, "operations": whole, "backbone_operations": backbone}


class Without(nn.Module):
    """A backbone that looks like a model."""

    def __init__(self, part: nn.Module, inputs: Any) -> None:  # noqa: ANN401 - a clip or images
        super().__init__()
        self.part, self.inputs = part, inputs

    def forward(self, images: Tensor) -> Sequence[Tensor]:  # noqa: ARG002 - it has its own
        """No outputs."""
        self.part(self.inputs)
        return []


def median_of(side: Side, pictures: Tensor, settings: argparse.Namespace) -> float:
    """Seconds of a forward pass."""
    for _ in range(settings.warm_ups):
        side.forward(pictures)
    return statistics.median(timed(lambda: side.forward(pictures), settings.device)[0] for _ in range(settings.repeats))


def device_name(settings: argparse.Namespace) -> str:
    """Name of the GPU; empty on a CPU."""
    return torch.cuda.get_device_name() if settings.device == "cuda" else ""


def report(settings: argparse.Namespace, figures: Mapping[str, Any]) -> None:
    """Print the figures as a line for people and one of JSON; append the latter to --record."""
    shown = {key: value for key, value in figures.items() if isinstance(value, float | str | int)}
    print(
        "  ".join(
            f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()
        )
    )
    size = {"size": settings.size, "image_size": settings.image_size, "device": settings.device}
    line = {"benchmark": "vggt_parity", **figures, **size, "model": asdict(SIZES[settings.size])}
    line |= {"seed": settings.seed, "repeats": settings.repeats, **describe_machine()}
    print(json.dumps(line), flush=True)
    if settings.record is not None:
        with settings.record.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    settings = parse().parse_args()
    sys.path.insert(0, str(settings.reference))
    torch.set_num_threads(settings.threads)
    if settings.child:
        child(settings)
        return
    chosen = ("forward", "train", "memory") if settings.what == "all" else (settings.what,)
    precisions = ("fp32", "bf16") if settings.precision is None else (settings.precision,)
    if "memory" in chosen:
        for of in ("forward", "train"):
            for frames in (4, 32) if settings.frames is None else (settings.frames,):
                report(settings, memory(settings, settings.precision or "fp32", of, frames))
    for precision in precisions:
        for what in ("forward", "train"):
            if what in chosen:
                report(settings, rate(settings, precision, what))
    if "scaling" in chosen:
        for frames in (2, 4, 8, 20, 50, 100, 200) if settings.frames is None else (settings.frames,):
            report(settings, scaling(settings, settings.precision or "bf16", frames))


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, help="a checkout of VGGT")
    parser.add_argument("--what", choices=("all", "forward", "train", "memory", "scaling"), default="all")
    parser.add_argument("--size", choices=tuple(SIZES), default="base")
    parser.add_argument("--precision", choices=("fp32", "bf16"))
    parser.add_argument("--frames", type=int)
    parser.add_argument("--image-size", type=int, nargs=2, default=(224, 224), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--warm-ups", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--record", type=Path, help="JSON lines, to append to")
    parser.add_argument("--heap", action="store_true", help="memory: leave glibc's allocator as it is")
    parser.add_argument("--child", choices=("ours", "reference"), help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
