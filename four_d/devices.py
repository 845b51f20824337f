"""Choice of device and arithmetic precision, and errors when its memory is full."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Literal, cast

import torch
from torch import Tensor

from four_d.errors import UserError

LOGGER = logging.getLogger(__name__)

Precision = Literal["fp32", "tf32", "bf16"]
"""``fp32``: float32 throughout. ``tf32``: float32 with matrix products and convolutions in TF32 (10-bit mantissa) on
NVIDIA's tensor cores; elsewhere as fp32. ``bf16``: blocks in bfloat16, as in training; parts that need it in float32,
with the dense heads as in tf32."""


def autocasts(kind: str) -> bool:
    """True if autocast is on for a kind of device; ``meta`` has none, and torch 2.11 raises when asked."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def usable(name: str) -> torch.device:
    """Return the device of that name; "auto" is CUDA where there is a GPU, else Apple's GPU (mps), else the CPU.

    UserError, with the reason and the remedy, if this machine or this build of torch lacks it.
    """
    if name == "auto":
        return torch.device(next((each for each in ("cuda", "mps") if _available(each)), "cpu"))
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        cards = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        found = ", ".join(["auto", "cpu", *cards, *(["mps"] if _available("mps") else [])])
        reason = without_cuda() if name.startswith("cuda") else None
        why = "" if reason is None else f" ({reason})"
        raise UserError(f"no device {name!r} on this machine{why}; choose one of {found}") from None
    return device


def _available(kind: str) -> bool:
    return torch.cuda.is_available() if kind == "cuda" else torch.backends.mps.is_available()


def without_cuda() -> str | None:
    """Reason why there is no CUDA device, with a remedy; None if there is one."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is not built for CUDA: install one that is, see pytorch.org"
    return "torch finds no GPU with a driver: look at nvidia-smi, and at CUDA_VISIBLE_DEVICES if it is set"


def device_of(weights: Iterable[Tensor]) -> torch.device:
    """Device of parameters or buffers; the CPU where there are none."""
    return next((each.device for each in weights), torch.device("cpu"))


def emulates_bf16(device: torch.device) -> bool:
    """True for an x86 CPU without AVX-512: it computes bfloat16 by way of float32, at a fraction of its speed."""
    return device.type == "cpu" and str(torch.backends.cpu.get_cpu_capability()) == "AVX2"


@contextmanager
def tensor_cores(precision: Precision) -> Generator[None]:
    """Set TF32 for matrix products and convolutions inside by the precision, forward and backward.

    Torch's defaults are TF32 for convolutions and not for products. In bf16 convolutions (only those of dense heads are
    left outside the blocks) use TF32, and products, including those of geometry, do not.
    """
    products, convolutions = (
        cast(SimpleNamespace, each) for each in (torch.backends.cuda.matmul, torch.backends.cudnn)
    )
    before = products.allow_tf32, convolutions.allow_tf32
    products.allow_tf32, convolutions.allow_tf32 = precision == "tf32", precision != "fp32"
    try:
        yield
    finally:
        products.allow_tf32, convolutions.allow_tf32 = before


@contextmanager
def computing(precision: Precision | None, device: torch.device) -> Generator[None]:
    """Compute inside with this precision, whatever is set outside; None changes nothing."""
    if precision is None:
        yield
        return
    with tensor_cores(precision), torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield


def announce(device: torch.device, precision: Precision, what: str = "computing") -> None:
    """Tell the user in one line where and how precisely is computed."""
    LOGGER.warning(f"{what} on {describe(device, precision)}")


def describe(device: torch.device, precision: Precision) -> str:
    """Device and precision in words, as "cuda:0 (NVIDIA H100) in bf16"."""
    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    return f"{device}{name} in {precision}"


class TooLarge(UserError):  # noqa: N818
    """Error for work that would not fit into memory, with numbers; `told_when_full` adds the remedy."""


@contextmanager
def told_when_full(remedy: str) -> Generator[None]:
    """Convert running out of GPU or machine memory inside, or its prediction, to a UserError with the remedy."""
    try:
        yield
    except TooLarge as error:
        raise UserError(f"{error}; {remedy}") from None
    except MemoryError as error:
        raise UserError(f"memory is full ({str(error) or 'the system gives no more'}); {remedy}") from error
    except RuntimeError as error:
        if not is_full(error):
            raise
        # "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"
        said = ". ".join(str(error).strip().splitlines()[0].split(". ")[:2])
        raise UserError(f"{said}; {remedy}") from error


def is_full(error: RuntimeError) -> bool:
    """True if torch raised this error because it ran out of memory, on a GPU or on the CPU."""
    said = str(error)
    return isinstance(error, torch.OutOfMemoryError) or any(
        each in said for each in ("can't allocate memory", "MPS backend out of memory")
    )
