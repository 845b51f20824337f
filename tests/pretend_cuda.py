"""A pretended CUDA device: tensors that say they are on cuda:0, follow CUDA's rules, and are computed by the CPU.

    with pretend_cuda() as seen:
        model.to("cuda")(clip)  # raises where CUDA would
    print(seen.report())        # every wait of the host for the device, with the line that caused it

`PretendedTensor` is a wrapper with CUDA's dispatch keys, so autograd, autocast("cuda") and type promotion are torch's
own; only the kernels are the CPU's. Two things are checked at every operation: that its tensors are on one device, by
CUDA's rules and with its words, and whether the host waits there.

It cannot see what kernels do (rounding, TF32, determinism, memory, speed, limits of size), streams and races, CUDA
graphs, torch.compile, attention's choice of a kernel, several devices, NCCL, kernels of other packages (gsplat,
xformers), code that reads ``data_ptr``, nor where ``torch.load`` puts tensors. What it finds is real; that it finds
nothing proves no speed.

It needs a torch that was built with CUDA, a machine without a GPU, and g++, which builds a small library once
(`lacking`). Autograd counts the devices at the first backward pass of a process, so enter before that: tests use a
process of their own (`tests.on_cuda`).
"""
# ruff: noqa: SIM905 - names are easier to read in one string

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch._dynamo  # before anything is patched, since it stores torch's functions
from torch import Tensor
from torch.nn import functional
from torch.overrides import _get_current_function_mode_stack
from torch.utils import cpp_extension
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
TORCH = Path(torch.__file__).parent

LIBRARY = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

constexpr c10::DeviceType CUDA = c10::DeviceType::CUDA;

struct OneDevice final : c10::impl::NoOpDeviceGuardImpl<CUDA> {
  c10::Device exchangeDevice(c10::Device) const override { return {CUDA, 0}; }
  c10::Device getDevice() const override { return {CUDA, 0}; }
  static c10::Stream only() { return c10::Stream(c10::Stream::DEFAULT, {CUDA, 0}); }
  c10::Stream getStream(c10::Device) const noexcept override { return only(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return only(); }
};
C10_REGISTER_GUARD_IMPL(CUDA, OneDevice)

struct OneDeviceHooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
};
static OneDeviceHooks hooks;
// torch keeps the object that it made first, so that object gets our table of functions
static const bool replaced = (*(const void***)&at::detail::getCUDAHooks() = *(const void***)&hooks, true);
"""
"""Answers to autograd and to torch about the CUDA runtime: the number of devices, the current device and stream."""

CROSSES = ("copy_", "_to_copy")
"""Operations that take tensors of two devices."""
INDEXES = ("index", "index_put", "index_put_", "_index_put_impl_")
SCALARS = frozenset("where masked_fill masked_fill_ fill_ fill index_put index_put_ clamp".split())
"""Operations, beside the pointwise ones, that take a CPU tensor without axes as a number."""
WAITS = frozenset(
    "nonzero masked_select _unique2 unique_dim unique_consecutive bincount equal _linalg_svd _linalg_eigh "
    "_linalg_check_errors linalg_lstsq _local_scalar_dense repeat_interleave".split()
)
"""Operations whose result the host needs: its size, a number, or whether it failed."""
FLOATING = frozenset("mm bmm addmm baddbmm mv avg_pool2d upsample_bilinear2d grid_sampler_2d _cdist_forward".split())
"""Operations that the CPU has for integers too, and CUDA has not."""


def lacking() -> str | None:
    """Return why a device cannot be pretended here, or None."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was not built with CUDA, whose dispatch keys a pretended device needs"
    if torch.cuda.is_available():
        return "this machine has a GPU: nothing needs to be pretended"
    if shutil.which("g++") is None:
        return "g++ is missing, which builds the library of the pretended device"
    return None


class Wait(NamedTuple):
    """A wait of the host for the device."""

    kind: str
    operation: str
    place: str
    """``file:line function`` in the watched package."""


@dataclass
class Seen:
    """Record of the pretended device."""

    package: str = "four_d"
    """Package whose innermost frame is the place of an operation."""
    waits: Counter[Wait] = field(default_factory=Counter)
    doubles: Counter[str] = field(default_factory=Counter)
    """Places of operations on float64."""
    operations: int = 0
    paused: bool = False

    def wait(self, kind: str, operation: object) -> None:
        """Count a wait at the line that runs, unless counting is paused."""
        if self.paused:
            return
        self.waits[Wait(kind, str(operation), self.place())] += 1

    def blocking(self) -> Counter[Wait]:
        """Return the waits without asynchronous copies, for which the host does not wait."""
        return Counter({wait: count for wait, count in self.waits.items() if not wait.kind.endswith("(async)")})

    def place(self) -> str:
        """Return the innermost line of the package, and the line of another package that it called, if any."""
        frame, called = sys._getframe(1), ""
        while frame is not None:
            name, line = frame.f_code.co_filename, f"{frame.f_lineno} {frame.f_code.co_name}"
            if f"/{self.package}/" in name:
                return f"{name.rpartition(f'/{self.package}/')[2]}:{line}{called}"
            if not called and not name.startswith(_TORCHS):
                called = f" > {'/'.join(Path(name).parts[-3:])}:{line}"
            frame = frame.f_back
        return called.removeprefix(" > ") or "autograd, outside of Python"

    @contextmanager
    def pause(self) -> Generator[None]:
        """Count nothing within the block, which stands for kernels that are not there."""
        self.paused, before = True, self.paused
        try:
            yield
        finally:
            self.paused = before

    def report(self) -> str:
        """Return one line for each wait, the most frequent first."""
        return "\n".join(f"{count:5} {' | '.join(wait)}" for wait, count in self.waits.most_common())

    def clear(self) -> None:
        """Forget everything."""
        self.waits, self.doubles, self.operations = Counter(), Counter(), 0


_TORCHS = (__file__, str(TORCH), str(Path(threading.__file__).parent))
_SEEN = Seen()
_GENERATORS: set[int] = set()
"""Generators that were made for CUDA."""


class PretendedTensor(Tensor):
    """Tensor that says it is on cuda:0; ``held`` has its values on the CPU, as which it is saved."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: type[PretendedTensor], held: Tensor) -> PretendedTensor:
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = Tensor._make_wrapper_subclass(cls, held.shape, **layout, device="cuda:0")
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def numpy(self, *, force: bool = False) -> Any:
        if not force:
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy to host memory first."
            )
        return self.cpu().numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def __array__(self, *_: object, **__: object) -> Any:
        return self.numpy()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.__reduce_ex__(protocol)

    def __repr__(self, **_: object) -> str:
        return f"{self.held!r} on cuda:0"

    def __getitem__(self, key: Any) -> Tensor:
        return Tensor.__getitem__(self, _with_tensors(key))

    def __setitem__(self, key: Any, value: Any) -> None:
        Tensor.__setitem__(self, _with_tensors(key), value)

    def __deepcopy__(self, memo: object) -> Tensor:
        copied = PretendedTensor(self.held.clone()).requires_grad_(self.requires_grad)
        return torch.nn.Parameter(copied, self.requires_grad) if getattr(self, "_is_param", False) else copied


class _EveryOperation(TorchDispatchMode):
    """Passes operations without a pretended tensor too, such as those that make one."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Check one operation by CUDA's rules, note whether the host waits, and compute it by the CPU's kernel."""
    if torch.is_inference_mode_enabled():  # in which views of a subclass do not work
        with torch.inference_mode(False), torch.no_grad(), _EveryOperation():
            return func(*args, **kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with _EveryOperation():  # below autograd it comes undivided
            return func.decompose(*args, **kwargs)
    tensors: list[Tensor] = []
    _each((args, *kwargs.values()), tensors.append)
    there = [tensor for tensor in tensors if isinstance(tensor, PretendedTensor)]
    device = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    to_cuda = bool(there) if device is None else device.type == "cuda"
    if not there and not to_cuda:
        return func(*args, **kwargs)
    if device is not None and device.index:
        raise RuntimeError("CUDA error: invalid device ordinal")
    _SEEN.operations += 1
    _refuse(func, args, kwargs, tensors, to_cuda)
    _note(func, args, kwargs, to_cuda)
    if any(tensor.dtype == torch.float64 for tensor in there):
        _SEEN.doubles[_SEEN.place()] += 1
    named = {key: _each(value, _held) for key, value in kwargs.items()}
    named |= {} if device is None else {"device": "cpu"}
    named |= {"pin_memory": None} if "pin_memory" in kwargs else {}
    found = func(*_each(args, _held), **named)
    if torch.Tag.inplace_view in func.tags:
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)  # changes the wrapper's shape as well
    return _each(found, _wrapped_as(there)) if _is_there(func, args, to_cuda) else found


def _is_there(func: Any, args: Any, to_cuda: bool) -> bool:
    """Whether the result is on the device."""
    return to_cuda and (func is not aten.copy_.default or isinstance(args[0], PretendedTensor))


def _wrapped_as(there: list[PretendedTensor]) -> Callable[[Tensor], Tensor]:
    """Wrap a result; one that is an argument keeps the argument's wrapper."""
    known = {id(tensor.held): tensor for tensor in there}
    return lambda made: known[id(made)] if id(made) in known else PretendedTensor(made)


def _each(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply ``function`` to every tensor of nested lists and tuples; keep the rest."""
    if isinstance(value, Tensor):
        return function(value)
    return type(value)(_each(item, function) for item in value) if type(value) in (list, tuple) else value


def _held(tensor: Tensor) -> Tensor:
    return tensor.held if isinstance(tensor, PretendedTensor) else tensor


def _with_tensors(key: Any) -> Any:
    """Turn lists within an index into tensors of the host, as torch does."""
    if isinstance(key, tuple):
        return tuple(map(_with_tensors, key))
    return torch.tensor(key) if isinstance(key, list) else key


def _refuse(func: Any, args: Any, kwargs: dict[str, Any], tensors: list[Tensor], to_cuda: bool) -> None:
    """Raise RuntimeError for what CUDA refuses."""
    name, generator = func.overloadpacket.__name__, kwargs.get("generator")
    if generator is not None and (generator._cdata in _GENERATORS) != to_cuda:
        one, other = ("cuda", "cpu") if to_cuda else ("cpu", "cuda")
        raise RuntimeError(f"Expected a '{one}' device type for generator but found '{other}'")
    here = [tensor for tensor in tensors if not isinstance(tensor, PretendedTensor)]
    if name in CROSSES or len(here) == len(tensors):
        return
    if name in INDEXES:
        indices = [each for each in args[1] if isinstance(each, Tensor)]
        if not isinstance(args[0], PretendedTensor) and any(isinstance(each, PretendedTensor) for each in indices):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        here = [tensor for tensor in here if all(tensor is not each for each in indices)]
    numbers = torch.Tag.pointwise in func.tags or name in SCALARS
    written = func._schema.is_mutable and not isinstance(args[0], PretendedTensor) and isinstance(args[0], Tensor)
    if written or any(tensor.ndim or not numbers for tensor in here):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in here)
        raise RuntimeError(
            "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
            f"(when checking arguments of {func}: {shapes} on cpu)"
        )
    if name in FLOATING and not args[0].is_floating_point():
        raise RuntimeError(f'"{name}_cuda" not implemented for {args[0].dtype}')


def _note(func: Any, args: Any, kwargs: dict[str, Any], to_cuda: bool) -> None:
    """Note it if the host waits for this operation."""
    name = func.overloadpacket.__name__
    if name in WAITS and not (name == "repeat_interleave" and kwargs.get("output_size") is not None):
        _SEEN.wait("number" if name == "_local_scalar_dense" else "size or check", func)
    elif name in CROSSES:
        _note_copy(func, args, kwargs, to_cuda)
    elif name in INDEXES:
        indices = [each for each in args[1] if isinstance(each, Tensor)]
        filled = name != "index" and not isinstance(args[2], PretendedTensor) and args[2].numel() == 1
        if any(each.dtype in (torch.bool, torch.uint8) for each in indices) and not filled:
            _SEEN.wait("boolean index", func)
        if any(not isinstance(each, PretendedTensor) for each in indices):
            _SEEN.wait("host to device", func)


def _note_copy(func: Any, args: Any, kwargs: dict[str, Any], to_cuda: bool) -> None:
    """Note a copy between host and device; it is asynchronous from pinned memory, or where the caller asks for it."""
    writes = func is aten.copy_.default
    source, to_there = (args[1], isinstance(args[0], PretendedTensor)) if writes else (args[0], to_cuda)
    if isinstance(source, PretendedTensor) == to_there:
        return
    asked = kwargs.get("non_blocking") or (writes and args[2:3] == (True,))
    free = " (async)" if asked and (not to_there or source.is_pinned()) else ""
    _SEEN.wait(f"{'host to device' if to_there else 'device to host'}{free}", func)


class _Generator(torch.Generator):
    """Generator that remembers its device; the CPU draws its numbers."""

    def __new__(cls, device: Any = "cpu") -> _Generator:
        made = super().__new__(cls, device="cpu")
        (_GENERATORS.add if torch.device(device).type == "cuda" else _GENERATORS.discard)(made._cdata)
        return made

    @property
    def device(self) -> torch.device:
        return torch.device("cuda:0" if self._cdata in _GENERATORS else "cpu")


def _attention(plain: Any) -> Any:
    """Compute attention by its formula: the choice among CUDA's kernels asks the driver."""

    def attend(q: Tensor, k: Tensor, v: Tensor, *rest: Any, **named: Any) -> Tensor:
        if not isinstance(q, PretendedTensor):
            return plain(q, k, v, *rest, **named)
        if torch.is_autocast_enabled("cuda"):
            q, k, v = (each.to(torch.get_autocast_dtype("cuda")) for each in (q, k, v))
        if not q.dtype == k.dtype == v.dtype:
            raise RuntimeError(f"Expected query, key, and value to have the same dtype: {q.dtype} {k.dtype} {v.dtype}")
        with torch.autocast("cuda", enabled=False):
            return aten._scaled_dot_product_attention_math(q, k, v, *rest, **named)[0]

    return attend


def _default_device() -> torch.device:
    """Device of ``with torch.device(…)``; ``torch.get_default_device`` would make a tensor to find its index."""
    modes = (mode for mode in reversed(_get_current_function_mode_stack()) if isinstance(mode, DeviceContext))
    return next((mode.device for mode in modes), torch.device("cpu"))


def _from_values(plain: Any) -> Any:
    """Make torch.tensor and its kin collect values on the host and copy them, as they do."""

    def made(*args: Any, dtype: Any = None, device: Any = None, requires_grad: bool = False, **named: Any) -> Tensor:
        if len(args) > 1:  # Tensor.new_tensor
            dtype, device = dtype or args[0].dtype, device or args[0].device
        values = _each(args[-1], lambda x: x if x.ndim or not isinstance(x, PretendedTensor) else x.item())
        found = values if isinstance(values, Tensor) else plain(values, dtype=dtype, **named)
        return found.to(device or _default_device(), dtype, copy=found is values).requires_grad_(requires_grad)

    return made


def _pinned(tensor: Tensor, device: object = None) -> Tensor:
    copied = tensor.clone()
    copied.pretend_pinned = True  # pyright: ignore[reportAttributeAccessIssue]
    return copied


def _without_kernels(plain: Any) -> Any:
    """Refuse to compile CUDA kernels, which takes minutes; packages begin to as soon as they see a device."""

    def build(name: str, sources: Any, *args: Any, **named: Any) -> Any:
        if any(str(source).endswith(".cu") for source in sources):
            raise RuntimeError(f"{name}: a pretended device has no kernels")
        return plain(name, sources, *args, **named)

    return build


def _load_library() -> None:
    """Build the library, once for each version of torch, and load it."""
    path = Path(tempfile.gettempdir()) / f"pretend_cuda_{torch.__version__}_{zlib.crc32(LIBRARY.encode())}.so"
    if not path.exists():
        flags = ["-std=c++20", "-shared", "-fPIC", f"-I{TORCH}/include", f"-L{TORCH}/lib", "-xc++", "-"]
        made = path.with_suffix(f".{os.getpid()}")  # processes that build it at once do not meet
        command = ["g++", *flags, "-lc10", "-ltorch_cpu", "-o", str(made)]
        subprocess.run(command, input=LIBRARY, text=True, check=True)
        made.rename(path)
    ctypes.CDLL(str(path))


class _Event:
    """Mark in the device's stream, which has done all that it was given."""

    def __init__(self, **_: object) -> None:
        self._at = 0.0

    def record(self, *_: object) -> None:
        self._at = time.monotonic()

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        _SEEN.wait("synchronize", "torch.cuda.Event.synchronize")

    def elapsed_time(self, other: _Event) -> float:
        return 1000 * (other._at - self._at)


def _answers() -> dict[str, Any]:
    """Return what ``torch.cuda`` says of the device."""
    zeros = "current_device memory_reserved memory_allocated max_memory_allocated _exchange_device"
    nothing = "_lazy_init init set_device empty_cache manual_seed manual_seed_all reset_peak_memory_stats"
    return {
        **{name: lambda *_, **__: 0 for name in (*zeros.split(), "_maybe_exchange_device")},
        **{name: lambda *_, **__: None for name in nothing.split()},
        **{name: lambda *_, **__: True for name in ("is_available", "is_initialized", "is_bf16_supported")},
        "device_count": lambda: 1,
        "Event": _Event,
        "is_current_stream_capturing": lambda: False,
        "get_device_capability": lambda *_: (9, 0),
        "get_device_name": lambda *_: "pretended",
        "mem_get_info": lambda *_: (1 << 36, 1 << 36),
        "synchronize": lambda *_: _SEEN.wait("synchronize", "torch.cuda.synchronize"),
        "get_rng_state": lambda *_: torch.get_rng_state(),
        "set_rng_state": lambda state, *_: torch.set_rng_state(state),
    }


@contextmanager
def pretend_cuda(package: str = "four_d") -> Generator[Seen]:
    """Give torch one CUDA device within the block; yields what is seen there. Places are lines of ``package``."""
    _load_library()
    _SEEN.package = package
    _SEEN.clear()
    tensor = _from_values(torch.tensor)
    patches = [
        *((torch.cuda, name, answer) for name, answer in _answers().items()),
        (torch, "Generator", _Generator),
        (torch, "tensor", tensor),
        (torch, "as_tensor", _from_values(torch.as_tensor)),
        (Tensor, "new_tensor", tensor),
        (Tensor, "pin_memory", _pinned),
        (Tensor, "is_pinned", lambda tensor, *_: hasattr(tensor, "pretend_pinned")),
        (functional, "scaled_dot_product_attention", _attention(functional.scaled_dot_product_attention)),
        (cpp_extension, "_jit_compile", _without_kernels(cpp_extension._jit_compile)),
    ]
    swapped = torch.__future__.get_swap_module_params_on_conversion()
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(mock.patch.object(*patch))
        torch.__future__.set_swap_module_params_on_conversion(True)  # a Parameter cannot change its class in place
        stack.callback(torch.__future__.set_swap_module_params_on_conversion, swapped)
        stack.enter_context(_EveryOperation())
        yield _SEEN
