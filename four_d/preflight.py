"""Needs of a run, before it begins: `four-d doctor CONFIG`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import distributed

from four_d import fields
from four_d.config import RunConfig
from four_d.data.loading import Batches, FromStep, Step, loader
from four_d.devices import usable
from four_d.errors import UserError
from four_d.memory import GB, free_bytes
from four_d.training import parallel
from four_d.training.parallel import World
from four_d.training.plan import Kind, Place, Plan, Planner, memory_size
from four_d.training.run import RunData

SHARED = Path("/dev/shm")
AHEAD = 2
"""Batches that each worker has ready, torch's default."""
BATCHES = 3
"""Batches that are timed, after the first."""
SECONDS = 20.0
"""Time after which no further batch is timed."""
BUCKET = 25 << 20
"""Bytes of the all-reduce test: DDP's bucket."""
ROUNDS = 5
DRAWS = 4096
"""Batches whose shapes are counted."""

Row = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class Question:
    """Machine that the run is planned for; None: this one, and the config's."""

    memory: str | None = None
    """Memory of a device, as 80GB or 80GiB (default: of this machine's)."""
    devices: int | None = None
    """Number of processes, each with a device (default: as torchrun started)."""
    strategy: Literal["ddp", "fsdp2"] | None = None
    """Way in which they share the run (default: loop.strategy)."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device; auto: cuda where a memory or a number of devices is given, else what the run would take here."""

    def __post_init__(self) -> None:
        if self.devices is not None and self.devices < 1:
            raise UserError(f"--devices is {self.devices}; plan for 1 or more")


def preflight(config: RunConfig, question: Question | None = None) -> Iterator[Row]:
    """Yield names and findings, one after the other, since some take seconds.

    UserError for a config that cannot run: data that cannot be read, processes that do not divide a batch.
    """
    question, world = question or Question(), parallel.discover()
    place = place_of(config, question, world)
    memory = memory_of(config, question, world)
    data = RunData(config, World())
    planner = Planner(config)
    yield from parts(planner)
    yield from needs(planner, config, place, memory)
    yield ("batches", shapes(config))
    batch = 0
    for name, finding, size in throughput(config, data):
        batch = max(batch, size)
        yield name, finding
    yield ("shared memory", shared_memory(config, batch))
    yield ("disk", disk(config, planner.checkpoint_bytes, planner.weight_bytes))
    yield ("all-reduce", all_reduce(config, world))


def place_of(config: RunConfig, question: Question, world: World) -> Place:
    """Device and processes to plan for. UserError where batches do not divide among them."""
    devices = question.devices or world.size
    if config.data.clips_multiple % devices:
        raise UserError(
            f"{devices} processes cannot share batches of clips in multiples of {config.data.clips_multiple}; set "
            f"data.clips_multiple={devices} (or a multiple of it)"
        )
    return Place(kind=_kind(config, question), devices=devices, strategy=question.strategy or config.loop.strategy)


def _kind(config: RunConfig, question: Question) -> Kind:
    if question.device != "auto":
        return question.device
    if question.memory is not None or question.devices is not None:
        return "cuda"
    return "cuda" if usable(config.loop.accelerator).type == "cuda" else "cpu"


def memory_of(config: RunConfig, question: Question, world: World) -> float | None:
    """Bytes that a process may use; None where nothing says."""
    if question.memory is not None:
        return memory_size(question.memory)
    here = usable(config.loop.accelerator)
    if _kind(config, question) != here.type:
        return None
    if here.type == "cuda":
        return float(torch.cuda.get_device_properties(here).total_memory)
    free = free_bytes(here)
    return None if free is None else free / world.local_size


def parts(planner: Planner) -> Iterator[Row]:
    """Parameters of each part, and how many of them train."""
    found = planner.parts
    for part in found:
        state = "frozen" if not part.trained else "" if part.trained == part.parameters else f"{part.trained:,} train"
        yield part.name, f"{part.parameters:,} parameters" + (f" ({state})" if state else "")
    total, trained = (sum(getattr(each, name) for each in found) for name in ("parameters", "trained"))
    yield "all", f"{total:,} parameters, of which {trained:,} train and {total - trained:,} are frozen"


def needs(planner: Planner, config: RunConfig, place: Place, memory: float | None) -> Iterator[Row]:
    """Memory of a step, row by row; of one clip; and the largest clip that fits."""
    batches = Batches(config.data, config.seed, config.model.abilities.multiple)
    frames, clips = _largest_batch(batches)
    plan = planner.plan(max(clips // place.devices, 1), frames, place)
    yield from rows(plan, place, config)
    one = plan if plan.clips == 1 else planner.plan(1, frames, place)
    yield f"memory: one clip of {frames} frames", f"{_size(one.activations)} of activations"
    if memory is not None:
        yield f"memory: of {_size(memory)}", _fits(plan, planner, memory, place, config)


def _largest_batch(batches: Batches) -> tuple[int, int]:
    """Frames and clips of the batch with the most images; of equals the one with the longest clips."""
    return max((batches.get(number)[:2] for number in range(DRAWS)), key=lambda each: (each[0] * each[1], each[0]))


def rows(plan: Plan, place: Place, config: RunConfig) -> Iterator[Row]:
    """Rows of a plan."""
    shared = "" if place.devices == 1 else f", {place.strategy} over {place.devices} devices"
    yield (
        "memory: a step",
        f"{plan.clips} × {plan.frames} frames of {plan.size[1]}×{plan.size[0]} pixels on {place.kind} in "
        f"{config.loop.precision}{shared}, each process:",
    )
    found = {
        "weights": plan.weights,
        "gradients": plan.gradients,
        "moments of the optimiser": plan.moments,
        "averaged weights": plan.averages,
        "copies to exchange": plan.exchange,
        "batch": plan.batch,
        "copy for a checkpoint": plan.saved,
    }
    for name, value in found.items():
        if value:
            yield f"memory:   {name}", _size(value)
    beside = f", beside {_size(plan.peak_gradients)} of the gradients" if plan.peak_gradients else ""
    yield "memory:   activations", f"{_size(plan.activations)} at the peak{beside}"
    yield "memory:   total", f"{_size(plan.total)} at the peak; {_size(plan.reserved)} with what allocators round up"


def _fits(plan: Plan, planner: Planner, memory: float, place: Place, config: RunConfig) -> str:
    """Fitness of a step, and the largest clip."""
    remedy = (
        ""
        if plan.reserved <= memory
        else (
            "a step does NOT fit: lower data.images_per_batch (loop.accumulate makes up for it), or set "
            "model.backbone.checkpointing=true; "
        )
    )
    largest = planner.largest(memory, place)
    if largest is None:
        return f"{remedy}not even the smallest clip fits"
    abilities = config.model.abilities
    fixed = abilities.frames or abilities.times
    sure = largest.number <= largest.planned
    number = f"{'at most' if sure else 'about'} {largest.number}"
    told = f"{number} clips of {fixed} frames fit" if fixed else f"one clip of {number} frames fits"
    counted = "" if sure else f"; extrapolated from counts up to {largest.planned}"
    return f"{remedy}{told} ({_size(largest.reserved)}{counted})"


def shapes(config: RunConfig) -> str:
    """Numbers of frames, clips and sizes of images that batches have."""
    batches = Batches(config.data, config.seed, config.model.abilities.multiple)
    drawn = [(*batches.get(number)[:2], batches.size(number)) for number in range(DRAWS)]
    frames, clips = sorted({each[0] for each in drawn}), sorted({each[1] for each in drawn})
    most = max(a * b for a, b, _ in drawn)
    sizes = len({each[2] for each in drawn})
    told = f"{_range(frames)} frames × {_range(clips)} clips, at most {most} images of {config.data.images_per_batch}"
    return f"{told}; {sizes} sizes of images, {len(set(drawn))} shapes in {DRAWS} batches"


def _range(numbers: Sequence[int]) -> str:
    return f"{numbers[0]}" if len(numbers) == 1 else f"{numbers[0]}–{numbers[-1]}"


def throughput(config: RunConfig, data: RunData) -> Iterator[tuple[str, str, int]]:
    """Speed of the loader over a few batches of all processes' clips; the bytes of the largest."""
    workers = config.data.workers
    stream = iter(loader(data.training, FromStep(0), workers, pin_memory=False))
    began = time.monotonic()
    first = next(stream)
    start, size, images, done = time.monotonic(), _bytes_of(first), 0, 0
    while done < BATCHES and time.monotonic() - began < SECONDS:
        step = next(stream)
        done, size = done + 1, max(size, _bytes_of(step))
        images += sum(each.inputs.images.shape[:2].numel() for each in step.batches)
    seconds = time.monotonic() - start
    by = f"{workers} workers" if workers else "no workers: training waits for it"
    rate = f"{images / seconds:.1f} images/s" if done else f"one step's data took {start - began:.0f} s"
    yield "loader", f"{rate}, {done} steps' data with {by}; {_size(size)} a step", size


def _bytes_of(step: Step) -> int:
    found = {
        tensor.data_ptr(): tensor.nbytes
        for example in step.batches
        for clip in (example.inputs, example.targets)
        for _, tensor in fields.leaves(clip)
    }
    return sum(found.values())


def shared_memory(config: RunConfig, batch: int, folder: Path = SHARED) -> str:
    """Memory that workers share into shared memory, beside what is free there."""
    workers = config.data.workers * (2 if config.data.validation else 1)
    if not workers:
        return "none is needed (data.workers is 0)"
    if not folder.is_dir():
        return f"{folder} is not there, and workers need it"
    needed, free = workers * AHEAD * batch, shutil.disk_usage(folder).free
    told = f"{workers} workers × {AHEAD} × {_size(batch)} = {_size(needed)} of {_size(free)} free in {folder}"
    return told if needed <= free else f"{told}: TOO LITTLE; lower data.workers, or in docker give --shm-size"


def disk(config: RunConfig, one: int, weights: int) -> str:
    """Room that the run's checkpoints take, each of ``one`` bytes, beside what is free there."""
    folder = next(each for each in (config.run_folder, *config.run_folder.absolute().parents) if each.is_dir())
    kept, best = config.loop.checkpoints.keep, weights if config.data.validation else 0
    needed, free = (kept + 1) * one + best, shutil.disk_usage(folder).free
    told = f"{kept} + 1 being written × {_size(one)}" + (f" + the best {_size(best)}" if best else "")
    told = f"{told} = {_size(needed)} of {_size(free)} free in {folder.absolute()}"
    return told if needed <= free else f"{told}: TOO LITTLE; make room, or lower loop.checkpoints.keep"


def all_reduce(config: RunConfig, world: World) -> str:
    """Speed of a sum over all processes, of the size of one of DDP's buckets."""
    if world.size == 1:
        return "one process; `torchrun --nproc-per-node N --no-python four-d doctor CONFIG` measures it"
    on_cuda = usable(config.loop.accelerator).type == "cuda"
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_cuda else torch.device("cpu")
    backend = "nccl" if on_cuda else "gloo"
    distributed.init_process_group(backend)
    try:
        given = torch.ones(BUCKET // 4, device=device)
        distributed.all_reduce(given)  # the first one connects
        if float(given[0]) != world.size:
            raise UserError(f"a sum of ones over {world.size} processes gave {float(given[0]):g}; {backend} is broken")
        begin = time.monotonic()
        for _ in range(ROUNDS):
            distributed.all_reduce(given)
        if on_cuda:
            torch.cuda.synchronize(device)
        seconds = (time.monotonic() - begin) / ROUNDS
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
    return (
        f"{_size(BUCKET)} over {world.size} processes by {backend} in {1e3 * seconds:.1f} ms "
        f"({BUCKET / seconds / GB:.2f} GB/s)"
    )


def _size(value: int | float) -> str:
    """Bytes in words, in units of 10ⁿ."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= scale:
            return f"{value / scale:.3g} {unit}"
    return f"{value:.0f} bytes"
