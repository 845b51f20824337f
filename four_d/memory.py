"""Check before a forward pass that it fits the memory.

The need is measured, not estimated by formulas: the pass runs on tensors without values (torch's fake tensors), and
the bytes that would be alive are counted. So attention that is written out, maps computed some frames at a time and
outputs that are kept all count as they are.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from four_d import fields
from four_d.devices import TooLarge, autocasts, device_of
from four_d.types import Clip, Prediction

GB = 1e9
PASSES = 2
"""Number of query times measured: a third one costs as much as the second."""
ALLOCATOR = 1.1
"""Bytes that an allocator reserves per byte requested; up to 1.5 in passes of less than a gigabyte."""
GROUPS = Path("/sys/fs/cgroup")
GROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Names of limit, usage and reclaimable page cache in control groups of version 2 and 1."""


@runtime_checkable
class Passing(Protocol):
    """Interface of a model (`model.FourD`)."""

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """Yield one prediction for each of the clip's query times."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]: ...  # noqa: D102 - torch's
    def buffers(self) -> Iterator[Tensor]: ...  # noqa: D102


M = TypeVar("M", bound=Passing)


class LiveBytes(TorchDispatchMode):
    """Counter of the bytes of storages that operations create, from creation to release; views count once."""

    def __init__(self, there: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.on_peak: Callable[[], object] | None = None
        """Function that is called at every new peak."""
        self._there = {id_of(storage): storage for storage in (each.untyped_storage() for each in there)}
        self._alive: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch gives it no type
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and count the storages of its outputs."""
        found = func(*args, **(kwargs or {}))
        for each in tree_leaves(found):
            if isinstance(each, Tensor):
                self.watch(each.untyped_storage())
        return found

    def watch(self, storage: torch.UntypedStorage) -> None:
        """Count a storage while it lives, if it is new."""
        key, size = id_of(storage), storage.nbytes()
        if key in self._there or key in self._alive:
            return
        self.now += size
        if self.now > self.peak:
            self.peak = self.now
            if self.on_peak is not None:
                self.on_peak()
        self._alive[key] = weakref.ref(storage, lambda _: self._forget(key, size))

    def _forget(self, key: int, size: int) -> None:
        del self._alive[key]
        self.now -= size


def id_of(storage: torch.UntypedStorage) -> int:
    """Identity of a storage, unique while it lives."""
    return storage._cdata  # pyright: ignore[reportPrivateUsage] - torch has no public name for it


class Zero(TorchDispatchMode):
    """Mode in which a tensor without values has the value 0."""

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return 0.0 if args[0].dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))


class FusedAttention(TorchFunctionMode):
    """Mode in which attention on tensors without values runs as a fused kernel of their device, also under autocast."""

    def __torch_function__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        if func is functional.scaled_dot_product_attention and isinstance(args[0], FakeTensor):
            return fused(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def fused(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None, **others: object) -> Tensor:
    """Call FlashAttention or, in float32 on CUDA, the memory-efficient kernel."""
    assert not others.get("attn_mask")
    assert not others.get("dropout_p")
    device, aten = q.device.type, torch.ops.aten
    if autocasts(device):
        q, k, v = (each.to(torch.get_autocast_dtype(device)) for each in (q, k, v))
    if device == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)[0]
    if q.dtype == torch.float32:
        kept = torch.is_grad_enabled()
        return aten._scaled_dot_product_efficient_attention(q, k, v, None, kept, scale=scale)[0]
    return aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)[0]


def without_values(tensor: Tensor) -> bool:
    """Tell whether a tensor takes no memory, and stands for one that would."""
    return isinstance(tensor, FakeTensor)


def check_fits(model: Passing, clip: Clip) -> None:
    """Raise `TooLarge`, with both numbers, if a model's passes over a batched clip exceed its device's free memory."""
    free = free_bytes(device_of([*model.parameters(), *model.buffers()]))
    if free is not None:
        frames, _, rows, columns = clip.images.shape[1:]
        _compare(ALLOCATOR * pass_bytes(model, clip), free, frames, (rows, columns), " with this model")


def check_pictures(frames: int, size: tuple[int, int]) -> None:
    """Raise `TooLarge`, with both numbers, if so many images (rows, columns) do not fit the machine's memory as floats.

    Call it before allocating: a system that overcommits memory kills the process instead of refusing.
    """
    free = free_bytes(torch.device("cpu"))
    if free is not None:
        _compare(ALLOCATOR * 3 * 4 * frames * size[0] * size[1], free, frames, size, " as pictures alone")


def _compare(needed: float, free: int, frames: int, size: tuple[int, int], what: str) -> None:
    if needed > free:
        raise TooLarge(
            f"{frames} frames of {size[1]}×{size[0]} pixels at once need about {needed / GB:.2g} GB{what}, and "
            f"{free / GB:.2g} GB are free"
        )


def free_bytes(device: torch.device) -> int | None:
    """Bytes that can still be allocated; None if unknown."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    if device.type != "cpu":
        return None
    limits = [_available(), *(_left_in_group(folder) for folder in _groups())]
    return min((limit for limit in limits if limit is not None), default=None)


def _available(path: Path = Path("/proc/meminfo")) -> int | None:
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), None)


def _groups(path: Path = Path("/proc/self/cgroup"), root: Path = GROUPS) -> list[Path]:
    """Folders of the control groups that this process is in, of both versions; a container's own is the root."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = [root, root / "memory"]
    for controllers, name in (line.split(":", 2)[1:] for line in lines if line.count(":") >= 2):
        if controllers == "" or "memory" in controllers.split(","):
            own = (root if controllers == "" else root / "memory") / name.lstrip("/")
            found += [own, *(folder for folder in own.parents if root in folder.parents)]
    return list(dict.fromkeys(found))


def _left_in_group(folder: Path) -> int | None:
    """Bytes that a control group may still use; page cache counts as free. None without a limit."""
    for limit, used, files in GROUP_FILES:
        if (folder / limit).exists() and (folder / used).exists():
            most = (folder / limit).read_text().strip()
            statistics = folder / "memory.stat"
            lines = statistics.read_text().splitlines() if statistics.exists() else []
            read = next((int(line.split()[1]) for line in lines if line.startswith(f"{files} ")), 0)
            return None if most == "max" else max(int(most) - int((folder / used).read_text()) + read, 0)
    return None


def pass_bytes(model: Passing, clip: Clip) -> int:
    """Peak bytes, beside model and clip, of a model's passes over a clip without gradient.

    The first prediction is kept alive, as tracking points does. Allocators round up, and kernels take workspace: see
    `check_fits`.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    bare = _without_values(model, fake)
    # times, cameras and what is valid keep their values, on which the computation depends
    big = {leaf.name for leaf, tensor in fields.leaves(clip) if "w" in leaf.axes and tensor.is_floating_point()}
    with fake:
        shown = fields.apply(clip, lambda leaf, tensor: torch.empty_like(tensor) if leaf.name in big else tensor)
    maps = [tensor for leaf, tensor in fields.leaves(shown) if leaf.name in big]
    there = [*bare.parameters(), *bare.buffers(), *maps]
    with torch.inference_mode(False), torch.no_grad(), FusedAttention(), Zero(), LiveBytes(there) as live:
        first: Prediction | None = None
        for index, prediction in enumerate(bare.passes(shown)):
            first = first or prediction
            del prediction
            if index + 1 == PASSES:
                break
    return live.peak


def _without_values(model: M, fake: FakeTensorMode) -> M:
    """Copy of a model whose weights take no memory."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(each): fake.from_tensor(each) for each in weights})
