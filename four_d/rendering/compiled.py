"""Rasteriser for CPUs in compiled C++ (`kernel.cpp`), built on first use."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.rendering.memory import COMPILED, Cost, check_memory
from four_d.rendering.rasteriser import Raster, expected
from four_d.rendering.scene import Scene
from four_d.rendering.tiles import Grid, make_grid

SOURCE = Path(__file__).with_name("kernel.cpp")
SIDE = 16
"""Pixels along a tile's edge, as in the kernel."""
TILES = 2
"""Tiles that a Gaussian is taken to reach, of which nothing is known before: most are about a pixel large."""
PLAIN = ("-O3", "-std=c++17", "-fno-math-errno", "-fno-trapping-math")
NATIVE = (*PLAIN, "-march=native")


@functools.cache
def library() -> ctypes.CDLL | str:
    """Load the compiled kernel; a one-line reason if that fails. Building takes seconds, once per kind of machine."""
    reason = ""
    for flags in (NATIVE, PLAIN):  # some compilers do not know -march=native
        try:
            return ctypes.CDLL(_build(flags))
        except (RuntimeError, OSError, ImportError) as error:
            reason = str(error).strip().splitlines()[0]
    return reason


def _build(flags: tuple[str, ...]) -> str:
    """Path of the kernel in torch's cache of extensions; RuntimeError or OSError without compiler or ninja."""
    # its warnings, of a missing CUDA for example, do not concern a CPU kernel
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils import cpp_extension

    mark = hashlib.sha256("".join([SOURCE.read_text(), *flags, _processor()]).encode()).hexdigest()[:12]
    path = cpp_extension.load(
        name=f"four_d_rendering_{mark}",
        sources=[str(SOURCE)],
        extra_cflags=list(flags),
        is_python_module=False,
        verbose=False,
    )
    return str(path)


def _processor() -> str:
    """Features of the processor: a kernel built for one must not run on another that shares its cache."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())


class _Call:
    """Caller of ``name_float`` or ``name_double`` of the kernel; the first argument is the grid, the last threads."""

    def __init__(self, kernel: ctypes.CDLL, dtype: torch.dtype, grid: tuple[int, ...]) -> None:
        self._kernel, self._grid = kernel, torch.tensor(grid)
        self._suffix = {torch.float32: "float", torch.float64: "double"}[dtype]

    def __call__(self, name: str, *arguments: Tensor | int) -> None:
        plain = [_as_c_argument(argument) for argument in (self._grid, *arguments)]
        getattr(self._kernel, f"{name}_{self._suffix}")(*plain, ctypes.c_int(torch.get_num_threads()))


Kernel = Callable[..., None]


def _nothing(*_: object) -> None:
    """Kernel of tensors without values."""


@dataclass(frozen=True, kw_only=True)
class CompiledRasteriser:
    """`rasteriser.Rasteriser` for the CPU in float32 or float64, with as many threads as torch uses."""

    kernel: ctypes.CDLL | None
    """None: draws nothing, and only takes the memory, for tensors without values (`training.plan`)."""
    cost: Cost = COMPILED

    def __call__(self, scene: Scene, size: tuple[int, int]) -> Raster:
        """Render (`rasteriser.Rasteriser`)."""
        grid = make_grid(size, SIDE)
        numbers = (*scene.opacities.shape, grid.rows, grid.columns, *size)
        call = _nothing if self.kernel is None else _Call(self.kernel, scene.means.dtype, numbers)
        inputs = (scene.means, scene.quats, scene.scales, scene.opacities, scene.camera_from_world, scene.intrinsics)
        parameters, depths, boxes = _Project.apply(call, *inputs)
        values = torch.cat([scene.values, torch.stack([depths, torch.ones_like(depths)], dim=-1)], dim=-1)
        order = depths.detach().argsort(dim=1, stable=True)
        images = _Blend.apply(parameters.flatten(0, 1), values.flatten(0, 1), boxes, order, grid, call)
        return Raster(values=images[:, :-2], depth=expected(images[:, -2], images[:, -1]), alpha=images[:, -1])


class _Project(torch.autograd.Function):
    """Map ``(means, quats, scales, opacities, cameras, intrinsics)`` to the kernel's parameters, depths and boxes."""

    @staticmethod
    def forward(ctx: Any, call: Kernel, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ANN401
        inputs = tuple(value.contiguous() for value in inputs)
        opacities = inputs[3]
        parameters = opacities.new_empty(*opacities.shape, 6)
        depths, boxes = torch.empty_like(opacities), torch.empty(*opacities.shape, 4, dtype=torch.int32)
        call("project", *inputs, parameters, depths, boxes)
        ctx.save_for_backward(*inputs, parameters)
        ctx.mark_non_differentiable(boxes)
        ctx.call = call
        return parameters, depths, boxes

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        *inputs, parameters = ctx.saved_tensors
        to_inputs = [torch.zeros_like(value) for value in inputs[:-1]]
        to_parameters, to_depths = (gradient.contiguous() for gradient in gradients[:2])
        ctx.call("project_backward", *inputs, parameters, to_parameters, to_depths, *to_inputs)
        return None, *to_inputs, None


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Pairs of tiles and Gaussians, indexed from both sides."""

    tile_starts: Int[Tensor, "t1"]
    members: Int[Tensor, "p"]
    member_starts: Int[Tensor, "m1"]
    slots: Int[Tensor, "p"]


class _Blend(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: ANN205
        ctx: Any,  # noqa: ANN401
        parameters: Float[Tensor, "m 6"],
        values: Float[Tensor, "m c"],
        boxes: Int[Tensor, "i n 4"],
        order: Int[Tensor, "i n"],
        grid: Grid,
        call: Kernel,
    ):
        parameters, values = parameters.contiguous(), values.contiguous()
        pairs = _pairs(call, parameters, boxes, order, grid)
        out = values.new_empty(len(boxes), values.shape[1], *grid.size)
        call("blend", parameters, values, values.shape[1], pairs.tile_starts, pairs.members, out)
        ctx.save_for_backward(parameters, values, out)
        ctx.call, ctx.pairs = call, pairs
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):  # noqa: ANN205, ANN401
        parameters, values, out = ctx.saved_tensors
        pairs: _Pairs = ctx.pairs
        width = parameters.shape[1] + values.shape[1]
        to_pairs = values.new_zeros(len(pairs.members), width)
        gradients_of_members = values.new_zeros(len(values), width)
        lists = (pairs.tile_starts, pairs.members, pairs.member_starts, pairs.slots)
        gradient = gradients[0].contiguous()
        ctx.call(
            "blend_backward", parameters, values, values.shape[1], *lists, out, gradient, to_pairs, gradients_of_members
        )
        return (
            gradients_of_members[:, : parameters.shape[1]],
            gradients_of_members[:, parameters.shape[1] :],
            None,
            None,
            None,
            None,
        )


def _as_c_argument(argument: Tensor | int) -> ctypes.c_void_p | ctypes.c_int64:
    if isinstance(argument, int):
        return ctypes.c_int64(argument)
    assert argument.is_contiguous()
    return ctypes.c_void_p(argument.data_ptr())


def _pairs(call: Kernel, parameters: Tensor, boxes: Tensor, order: Tensor, grid: Grid) -> _Pairs:
    """List the Gaussians of each tile, nearest first."""
    tiles, members = len(boxes) * grid.rows * grid.columns, boxes.shape[0] * boxes.shape[1]
    tile_starts, member_starts = torch.zeros(tiles + 1, dtype=torch.int64), torch.zeros(members + 1, dtype=torch.int64)
    order = order.contiguous()
    call("count", parameters, boxes, tile_starts[1:], member_starts[1:])
    tile_starts, member_starts = tile_starts.cumsum(0), member_starts.cumsum(0)
    pairs = TILES * members if call is _nothing else int(tile_starts[-1])
    if call is not _nothing:
        check_memory(COMPILED, (boxes.shape[0], boxes.shape[1]), pairs, parameters)
    pair_members, slots = torch.empty(pairs, dtype=torch.int32), torch.empty(pairs, dtype=torch.int64)
    call("fill", parameters, boxes, order, tile_starts, member_starts, pair_members, slots)
    return _Pairs(tile_starts=tile_starts, members=pair_members, member_starts=member_starts, slots=slots)
