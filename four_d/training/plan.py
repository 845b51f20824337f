"""Memory that a training step needs, counted before the run: its passes run on tensors without values.

Nothing is estimated by formulas but what processes exchange: forward, losses and backward are the run's own, so that
checkpointing, autocast's copies of weights and maps computed in chunks count as they are. Of data only a few numbers
(times, cameras, keypoints) are read; images and maps, whatever their size, take no memory either.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from four_d import fields
from four_d.config import RunConfig
from four_d.data.loading import TrainingSteps, largest_size
from four_d.errors import UserError
from four_d.layers import full_precision
from four_d.memory import ALLOCATOR, FusedAttention, LiveBytes, Zero, id_of
from four_d.training.module import TrainingModule
from four_d.types import Clip, Example

Kind = Literal["cpu", "cuda"]
PREFETCHED = 2
"""Blocks whose gathered weights FSDP2 holds at a time: the one that computes, and the next."""
SIDE = 64
"""Least side of the images from whose clips numbers are taken."""
MOST_PLANNED = 96
"""Frames, or clips, beyond which need is extrapolated: a pass without values takes 0.1 s to 0.4 s of each."""
FARTHEST = 1 << 20
TRIES = 6
"""Plans beside the first three in the search for the largest clip."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Device, number of processes, and how they share a run."""

    kind: Kind = "cpu"
    devices: int = 1
    strategy: Literal["ddp", "fsdp2"] = "ddp"

    @property
    def split(self) -> int:
        """Number of parts into which weights are split."""
        return self.devices if self.strategy == "fsdp2" else 1


@dataclass(frozen=True, kw_only=True)
class Part:
    """Part of a model: its parameters."""

    name: str
    parameters: int
    trained: int


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Bytes of one process in a training step. Those of a kernel's own workspace and the CUDA context are not in it."""

    clips: int
    """Clips of one process in a batch."""
    frames: int
    size: tuple[int, int]
    weights: int
    """Parameters and buffers; with fsdp2 this process's share of the parameters."""
    moments: int
    """AdamW's two averages."""
    averages: int
    """Averaged weights (``loop.ema``)."""
    gradients: int
    exchange: int
    """Copies by which processes exchange: DDP's buckets; gathered weights and gradients of FSDP2."""
    batch: int
    """On a CPU with the next one, which is read ahead."""
    saved: int
    """Copy of the state that a checkpoint is written from, where it is in the same memory: on a CPU."""
    waits: bool
    """True if training waits until that is written (``loop.checkpoints.background`` is false)."""
    activations: int
    """All else that is alive at the peak of forward, losses and backward, autocast's copies of weights included."""
    peak_gradients: int
    """Gradients that are there at that peak."""

    @property
    def kept(self) -> int:
        """Bytes that live throughout a step."""
        return self.weights + self.moments + self.averages + self.exchange + self.batch

    @property
    def total(self) -> int:
        """Peak: of the passes; where activations are few, of the update, or of saving."""
        passes = self.activations + self.peak_gradients
        return self.kept + max(passes if self.waits else passes + self.saved, self.gradients + self.saved)

    @property
    def reserved(self) -> float:
        """Bytes that a device should have for it: allocators round up and fragment."""
        return ALLOCATOR * self.total


@dataclass(frozen=True, kw_only=True)
class Largest:
    """Largest clip that fits, or number of clips."""

    number: int
    """Frames of the clip; of a model whose clips have a fixed number of frames, clips."""
    reserved: float
    """Bytes that a device should have for it."""
    planned: int
    """Largest number up to which the need was counted; beyond, it is extrapolated."""


@dataclass(frozen=True, kw_only=True)
class _Count:
    """Bytes of a batch, of what its passes made at their peak, and of the gradients among that, by parameter."""

    batch: int
    peak: int
    gradients: dict[int, int]


class CudaAutocast(TorchFunctionMode):
    """Mode in which layer normalisation is in float32, as CUDA's autocast has it, and the CPU's has not."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401 - torch gives it no type
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Cast the input first."""
        if func is functional.layer_norm and args[0].dtype == torch.bfloat16 and torch.is_autocast_enabled("cpu"):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


MADE = 1 << 20
"""Bytes of a tensor with values above which it is replaced by one without."""


class Bounded(TorchDispatchMode):
    """Mode in which no operation makes a large tensor with values: positions of all pixels, for example."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self._mode = fake

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch gives it no type
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Look at the result's size first, unless it has no values anyway."""
        kwargs = kwargs or {}
        if func._schema.is_mutable or any(isinstance(each, FakeTensor) for each in tree_leaves((args, kwargs))):
            return func(*args, **kwargs)
        try:
            with self._mode:
                bare = func(*args, **kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException):  # of a few numbers, as the data's times
            return func(*args, **kwargs)
        large = any(isinstance(each, Tensor) and each.untyped_storage().nbytes() > MADE for each in tree_leaves(bare))
        return bare if large else func(*args, **kwargs)


class Planner:
    """Training module of a config without values, and the steps that it would take."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        with self._fake, Zero():
            self._module = TrainingModule(config, resumed=True).train()
        self._known: dict[tuple[int, int, Kind, tuple[int, int]], _Count] = {}

    @property
    def parts(self) -> list[Part]:
        """Backbone, each head and each loss with weights; a model without parts as a whole."""
        found: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self._module.named_parameters():
            words = name.removeprefix("model.").split(".")
            found.setdefault(".".join(words[: 2 if words[0] in ("heads", "losses") else 1]), []).append(parameter)
        return [
            Part(
                name=name,
                parameters=sum(each.numel() for each in parameters),
                trained=sum(each.numel() for each in parameters if each.requires_grad),
            )
            for name, parameters in found.items()
        ]

    @property
    def checkpoint_bytes(self) -> int:
        """Size of a checkpoint: weights, moments, and with averaging the weights that train beside their averages."""
        trained = _bytes(each for each in self._module.parameters() if each.requires_grad)
        return self.weight_bytes + (2 if self._module.average is None else 3) * trained

    @property
    def weight_bytes(self) -> int:
        """Size of all parameters and buffers."""
        return _bytes([*self._module.parameters(), *self._module.buffers()])

    def plan(self, clips: int, frames: int, place: Place | None = None, size: tuple[int, int] | None = None) -> Plan:
        """Count a step whose batches hold ``clips`` clips for each process; ``size``: None, the largest of the config.

        UserError where the data cannot be read, or the model cannot take such clips.
        """
        place = place or Place()
        size = size or largest_size(self.config.data, self.config.model.abilities.multiple)
        kind = place.kind if self.config.loop.precision == "bf16" else "cpu"
        if (clips, frames, kind, size) not in self._known:
            self._known[clips, frames, kind, size] = self._count(clips, frames, kind, size)
        count, accumulate = self._known[clips, frames, kind, size], self.config.loop.accumulate
        trained = [each for each in self._module.parameters() if each.requires_grad]
        split, weights = place.split, _bytes(self._module.parameters())
        shards = [_bytes(each.parameters()) for each in self._module.model.shards()]
        whole = weights - sum(shards)
        gathered = whole + PREFETCHED * max(shards, default=0) if split > 1 else 0
        apart = {id(each) for part in self._module.model.shards() for each in part.parameters()}
        own = sum(each // split if key in apart else each for key, each in count.gradients.items())
        buckets = _bytes(trained) if place.devices > 1 and place.strategy == "ddp" else 0
        return Plan(
            clips=clips,
            frames=frames,
            size=size,
            weights=math.ceil(weights / split) + _bytes(self._module.buffers()),
            moments=math.ceil(2 * _bytes(trained) / split),
            averages=0 if self._module.average is None else math.ceil(_bytes(trained) / split),
            gradients=math.ceil(_bytes(trained) / split),
            exchange=buckets + gathered,
            batch=count.batch * accumulate * (2 if place.kind == "cpu" else 1),
            saved=math.ceil(self.checkpoint_bytes / split) if place.kind == "cpu" else 0,
            waits=not self.config.loop.checkpoints.background,
            activations=count.peak - sum(count.gradients.values()),
            peak_gradients=own,
        )

    def largest(self, memory: float, place: Place | None = None) -> Largest | None:
        """Find the most frames of one clip that fits into ``memory`` bytes; None where not even one does.

        Of a model whose clips have a fixed number of frames, the most clips.
        """
        abilities = self.config.model.abilities
        fixed = abilities.frames or abilities.times

        def need(number: int) -> float:
            return (self.plan(number, fixed, place) if fixed else self.plan(1, number, place)).reserved

        return largest_fitting(need, memory, 2 if fixed else max(self.config.data.sampling.max_frames, 2))

    def _count(self, clips: int, frames: int, kind: Kind, size: tuple[int, int]) -> _Count:
        example, batch = self.example(clips, frames, size)
        live, gradients = self._passes(example, min(self.config.loop.accumulate, 2), kind)
        return _Count(batch=batch, peak=live.peak, gradients=gradients)

    def example(self, clips: int, frames: int, size: tuple[int, int]) -> tuple[Example, int]:
        """Batch of the run's data, with images and maps of ``size`` that have no values; and its bytes."""
        data, multiple = self.config.data, self.config.model.abilities.multiple
        small = (max(multiple, SIDE // multiple * multiple),) * 2
        sampling = dataclasses.replace(data.sampling, min_frames=frames, max_frames=frames)
        wanted = {"images_per_batch": clips * frames, "clips_multiple": 1, "aspect": None, "image_size": small}
        config = dataclasses.replace(data, sampling=sampling, **wanted)
        given = TrainingSteps(config, self.config.seed, patch_size=multiple)[0].batches[0]
        lengths: dict[str, int] = {"h": size[0], "w": size[1]}
        made: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}  # images that inputs and targets share stay one

        def sized(leaf: fields.Leaf, tensor: Tensor) -> Tensor:
            # axes of held-out views are named views.h and views.w
            sides = [(axis, name) for axis in leaf.axes if (name := axis.rpartition(".")[2]) in lengths]
            if not sides:
                return tensor
            shape = list(tensor.shape)
            for axis, name in sides:
                place = leaf.dim(axis, tensor)
                assert place is not None
                shape[place] = lengths[name]
            key = (id_of(tensor.untyped_storage()), int(tensor.storage_offset()), tuple(shape))
            if key not in made:
                with self._fake:
                    made[key] = torch.empty(shape, dtype=tensor.dtype)
            return made[key]

        inputs, targets = fields.apply(given.inputs, sized), fields.apply(given.targets, sized)
        example = dataclasses.replace(given, inputs=inputs, targets=targets)
        return example, _bytes(tensors_of(inputs, targets))

    def _passes(self, example: Example, times: int, kind: Kind) -> tuple[LiveBytes, dict[int, int]]:
        """Run forward and backward ``times`` times; return the count, and the gradients' bytes at its peak."""
        module, half = self._module, self.config.loop.precision == "bf16"
        module.zero_grad(set_to_none=True)
        there = [*module.parameters(), *module.buffers(), *tensors_of(example.inputs, example.targets)]
        live, granted, at_peak = LiveBytes(there), dict[int, int](), dict[int, int]()

        def grant(parameter: Tensor) -> None:
            if parameter.grad is not None:
                granted[id(parameter)] = parameter.grad.nbytes

        def note() -> None:
            at_peak.clear()
            at_peak.update(granted)

        live.on_peak = note
        hooks = [each.register_post_accumulate_grad_hook(grant) for each in module.parameters() if each.requires_grad]
        cpu = torch.device("cpu")
        with ExitStack() as stack:
            for hook in hooks:
                stack.callback(hook.remove)
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            stack.enter_context(torch.random.fork_rng(devices=[]))
            stack.enter_context(FusedAttention())
            stack.enter_context(CudaAutocast() if kind == "cuda" else nullcontext())
            stack.enter_context(Zero())
            stack.enter_context(Bounded(self._fake))
            stack.enter_context(live)
            stack.enter_context(
                torch.autocast("cpu", torch.bfloat16, enabled=half)
            )  # around both passes, as the loop's
            for _ in range(times):
                terms = module.terms(example)[1]
                with full_precision(cpu):
                    (terms["loss"] / self.config.loop.accumulate).backward()
                del terms
        module.zero_grad(set_to_none=True)
        return live, at_peak


def largest_fitting(need: Callable[[int], float], memory: float, second: int) -> Largest | None:
    """Largest number whose need in bytes fits: the one that `curve` gives is counted, until one fits and the next not.

    Beyond `MOST_PLANNED` the curve itself answers, through that number among others.
    """
    known = {number: need(number) for number in (1, second, 2 * second)}
    number = low = max((each for each in known if known[each] <= memory), default=0)
    if not low:
        return None
    for _ in range(TRIES):
        low = max(each for each in known if known[each] <= memory)
        high = min((each for each in known if known[each] > memory), default=None)
        number = low
        if high is not None and high - low <= 1:
            break
        guess = max(last_below(curve(known, memory), memory, low), low + 1)
        guess = guess if high is None else min(guess, high - 1)
        if guess > MOST_PLANNED and low >= MOST_PLANNED:
            number = guess
            break
        guess = min(guess, max(MOST_PLANNED, low + 1))
        known[guess] = need(guess)
        number = guess if known[guess] <= memory else low
    reserved = known[number] if number in known else curve(known, memory)(number)
    return Largest(number=number, reserved=reserved, planned=max(known))


def curve(known: Mapping[int, float], memory: float) -> Callable[[int], float]:
    """Parabola through the three counts nearest to ``memory``, or the line through two where it would bend down.

    Layers need memory in proportion to frames, attention that is written out to their square.
    """
    x, y, z = sorted(known, key=lambda number: abs(known[number] - memory))[:3]
    slope = (known[y] - known[x]) / (y - x)
    bend = max(((known[z] - known[y]) / (z - y) - slope) / (z - x), 0.0)
    return lambda number: known[x] + slope * (number - x) + bend * (number - x) * (number - y)


def last_below(value: Callable[[int], float], limit: float, low: int) -> int:
    """Largest number from ``low`` on up to which a rising function does not exceed the limit, or ``low``."""
    step = 1
    while value(low + step) <= limit and step < FARTHEST:
        step *= 2
    while step:
        low = low + step if value(low + step) <= limit else low
        step //= 2
    return low


def tensors_of(*clips: Clip) -> Iterator[Tensor]:
    """Yield all tensors of clips."""
    return (tensor for clip in clips for _, tensor in fields.leaves(clip))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {id_of(each.untyped_storage()): each.untyped_storage() for each in tensors}
    return sum(each.nbytes() for each in storages.values())


def memory_size(text: str) -> float:
    """Bytes of a size as ``80GB`` (10⁹) or ``80GiB`` (2³⁰). UserError for anything else."""
    units = {"GB": 1e9, "GIB": 2.0**30, "MB": 1e6, "MIB": 2.0**20, "TB": 1e12}
    unit = next((each for each in sorted(units, key=len, reverse=True) if text.upper().endswith(each)), None)
    try:
        number = float(text[: -len(unit)]) if unit else 0.0
    except ValueError:
        number = 0.0
    if unit is None or not number > 0 or math.isinf(number):
        raise UserError(f"{text!r} is no size of memory; write it as 80GB or 80GiB")
    return number * units[unit]
