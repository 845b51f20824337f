"""Numbers as tensors on a computation's device, and their values on the host, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def vector(values: Sequence[float | int], like: Tensor) -> Float[Tensor, "n"]:
    """Make a vector of numbers on the device of a tensor, in its type (of integers: in the default type).

    ``torch.tensor`` gathers numbers on the host and copies them, for which the host waits until a GPU has done all that
    was queued; filling does not wait.
    """
    kind = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return torch.stack([torch.full((), value, dtype=kind, device=like.device) for value in values])


MOST_KEPT = 1 << 16
"""Numbers in a tensor above which `keep` does not keep its values."""
_KEPT = "_four_d_on_host"


def keep(tensor: Tensor, values: Tensor) -> Tensor:
    """Keep a tensor's values on the host with it, for `on_host`; returns the tensor, which must not change any more.

    Values that the host had before it moved them are known there: reading them back would wait for all that the device
    has queued.
    """
    if tensor.device != values.device and values.numel() <= MOST_KEPT and not traced():
        setattr(tensor, _KEPT, values)
    return tensor


def on_host(tensor: Tensor) -> Tensor:
    """Return a tensor's values on the host: kept ones (`keep`), or, which waits for the device, a copy."""
    kept = getattr(tensor, _KEPT, None)
    return tensor.detach().cpu() if kept is None else kept


def also_kept(tensor: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply an operation to a tensor, and to its kept values, if any."""
    found, kept = operation(tensor), getattr(tensor, _KEPT, None)
    return found if kept is None else keep(found, operation(kept))


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor from the host to a device, and `keep` its values.

    Copies to CUDA do not wait for the device: small tensors are pinned for that, large ones should be.
    """
    if tensor.device == device:
        return tensor
    if tensor.device.type != "cpu":
        return tensor.to(device)
    at_once = device.type == "cuda"
    pins = at_once and tensor.numel() <= MOST_KEPT and not tensor.is_pinned()
    return keep((tensor.pin_memory() if pins else tensor).to(device, non_blocking=at_once), tensor)


def precise(device: torch.device) -> torch.dtype:
    """Return the most precise floating type of a device: float64, and on Apple's GPUs, which lack it, float32."""
    return torch.float32 if device.type == "mps" else torch.float64


def traced() -> bool:
    """Tell whether operations are recorded for a program: their values do not exist yet, and cannot be checked."""
    return torch.compiler.is_compiling() or torch.compiler.is_exporting()
