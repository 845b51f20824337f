"""Choice of the rasteriser."""

from __future__ import annotations

import functools
import warnings

import torch

from four_d.errors import UserError
from four_d.rendering.compiled import CompiledRasteriser, library
from four_d.rendering.in_torch import TorchRasteriser
from four_d.rendering.on_cuda import GsplatRasteriser, rasterization
from four_d.rendering.rasteriser import Rasteriser

NAMES = ("gsplat", "compiled", "torch")
"""All backends, the fastest first."""


def choose(backend: str, device: torch.device) -> Rasteriser:
    """Choose the rasteriser of that name, for tensors on ``device``; "auto" is the fastest available there.

    UserError, with the reason, if the name is unknown or the backend is not available on this machine or device.
    "auto" warns once where it falls back to the slow one on a CPU.
    """
    if backend not in ("auto", *NAMES):
        raise UserError(f"backend {backend!r} is unknown; choose one of auto, {', '.join(NAMES)}")
    if backend == "auto":
        return _fastest(device)
    reason = missing(backend, device)
    if reason:
        raise UserError(f"backend {backend!r} is not available: {reason}")
    return _make(backend)


def missing(backend: str, device: torch.device) -> str | None:
    """Reason and remedy if a backend cannot render on ``device``; None if it can. May compile the kernel."""
    if backend == "compiled":
        return _compiled_missing(device)
    if backend == "gsplat":
        return _gsplat_missing(device)
    return None


def fastest_missing(device: torch.device) -> str | None:
    """Reason why "auto" falls back to plain torch on ``device``; None if it does not. May build kernels for minutes."""
    best = _by_speed(device)[0]
    reason = missing(best, device)
    return None if reason is None else f"no {best}: {reason}"


def _by_speed(device: torch.device) -> list[str]:
    return [name for name in NAMES if (name == "gsplat") == (device.type == "cuda")]


def _gsplat_missing(device: torch.device) -> str | None:
    gsplat = rasterization()
    if isinstance(gsplat, str):
        return gsplat
    return None if device.type == "cuda" else f"it renders on CUDA, and the tensors are on {device.type}; move them"


def _compiled_missing(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it renders on the CPU, and the tensors are on {device.type}; move them, or choose another"
    kernel = library()
    if isinstance(kernel, str):
        return f"{kernel}; install a C++ compiler (g++ or clang) and ninja"
    return None


def _fastest(device: torch.device) -> Rasteriser:
    name = next((name for name in _by_speed(device) if missing(name, device) is None), "torch")
    if name == "torch" and device.type in ("cpu", "cuda"):
        _warn_slow(device)
    return _make(name)


@functools.cache
def _warn_slow(device: torch.device) -> None:
    warnings.warn(f"rendering in plain torch, which is slow: {fastest_missing(device)}", stacklevel=2)


def _make(name: str) -> Rasteriser:
    """Make the rasteriser of a name that is not `missing`."""
    kernel, function = library() if name == "compiled" else "", rasterization() if name == "gsplat" else ""
    if not isinstance(kernel, str):
        return CompiledRasteriser(kernel=kernel)
    return TorchRasteriser() if isinstance(function, str) else GsplatRasteriser(rasterization=function)
