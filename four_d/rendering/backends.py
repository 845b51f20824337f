"""Which rasteriser a call uses."""

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
    """The rasteriser of that name, for tensors on ``device``; "auto" is the fastest that can be had there.

    UserError if there is none of that name, or this machine or device cannot have it: with the reason. "auto" warns
    once where it has to make do with the slow one on a CPU.
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
    """Why a backend cannot draw tensors on ``device``, and the remedy; None if it can. May compile the kernel."""
    if backend == "compiled":
        return _compiled_missing(device)
    if backend == "gsplat":
        return _gsplat_missing(device)
    return None


def _gsplat_missing(device: torch.device) -> str | None:
    found = rasterization()
    if isinstance(found, str):
        return found
    return None if device.type == "cuda" else f"it draws on CUDA, and the tensors are on {device.type}; move them"


def _compiled_missing(device: torch.device) -> str | None:
    if device.type != "cpu":
        return f"it draws on the CPU, and the tensors are on {device.type}; move them, or choose another"
    kernel = library()
    if isinstance(kernel, str):
        return f"{kernel}; install a C++ compiler (g++ or clang) and ninja"
    return None


def _fastest(device: torch.device) -> Rasteriser:
    likely = [name for name in NAMES if (name == "gsplat") == (device.type == "cuda")]
    name = next((name for name in likely if missing(name, device) is None), "torch")
    if name == "torch" and device.type in ("cpu", "cuda"):
        _warn_slow(likely[0], device)
    return _make(name)


@functools.cache
def _warn_slow(better: str, device: torch.device) -> None:
    warnings.warn(f"rendering in plain torch, which is slow: no {better}: {missing(better, device)}", stacklevel=2)


def _make(name: str) -> Rasteriser:
    """The rasteriser of a name that is not `missing`."""
    kernel, function = library() if name == "compiled" else "", rasterization() if name == "gsplat" else ""
    if not isinstance(kernel, str):
        return CompiledRasteriser(kernel=kernel)
    return TorchRasteriser() if isinstance(function, str) else GsplatRasteriser(rasterization=function)
