"""Arithmetic of a training step: the model's operations, counted once per shape of batch, and a device's peak rate."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from four_d import fields
from four_d.abilities import ModelModule
from four_d.types import Clip

Shape = tuple[int, int, int, int, int, int]
"""Clips, frames, rows, columns, query times and query points of a batch."""
PEAKS: tuple[tuple[str, Mapping[str, float]], ...] = (
    (r"\bGB200\b", {"bf16": 2500.0, "fp32": 80.0}),
    (r"\bB200\b", {"bf16": 2250.0, "fp32": 75.0}),
    (r"\bH200 NVL\b", {"bf16": 836.0, "fp32": 60.0}),
    (r"\bG?H200\b", {"bf16": 989.0, "fp32": 67.0}),
    (r"\bH100 PCIe\b", {"bf16": 756.0, "fp32": 51.0}),
    (r"\bH100 NVL\b", {"bf16": 835.0, "fp32": 60.0}),
    (r"\bH100\b", {"bf16": 989.0, "fp32": 67.0}),
    (r"\bA100\b", {"bf16": 312.0, "fp32": 19.5}),
    (r"\bA40\b", {"bf16": 149.7, "fp32": 37.4}),
    (r"\bA10\b", {"bf16": 125.0, "fp32": 31.2}),
    (r"\bL40S\b", {"bf16": 362.0, "fp32": 91.6}),
    (r"\bL40\b", {"bf16": 181.0, "fp32": 90.5}),
    (r"\bL4\b", {"bf16": 121.0, "fp32": 30.3}),
    (r"\bRTX 6000 Ada\b", {"bf16": 364.2, "fp32": 91.1}),
    (r"\bRTX A6000\b", {"bf16": 154.8, "fp32": 38.7}),
    (r"\bRTX 4090\b", {"bf16": 165.2, "fp32": 82.6}),
    (r"\bRTX 3090\b", {"bf16": 71.0, "fp32": 35.6}),
    (r"\bMI300X\b", {"bf16": 1307.4, "fp32": 163.4}),
)
"""Pattern of a device's name → 10¹² operations per second, dense, accumulated in float32; the first match holds.

Looked up where others have copied the makers' data sheets, which they name: bf16 of B200, H200, H100, A100, L40S and
MI300X in torchtitan (``torchtitan/tools/utils.py``), float32 of H100 and older NVIDIA cards, and bf16 of A10, L4 and
L40, in Lightning (``lightning.fabric.utilities.throughput``). In tables without a source: bf16 of GB200, H200 NVL, A40,
RTX 6000 Ada, RTX 4090 and RTX 3090, and the MI300X. Not found again, from memory: bf16 of the RTX A6000; float32 of
GB200, B200, H200 NVL, H100 NVL and RTX 6000 Ada.
"""
TERA = 1e12
MOST_COUNTED = 12
"""Shapes of a batch that are counted; the operations of further ones follow from these (`fitted`)."""
WITH_BACKWARD = 3
"""Operations of an operation and its two gradients, of both operands, over its own (PaLM, arXiv 2204.02311 §B)."""


def peak_rate(name: str, precision: Literal["fp32", "bf16"]) -> float | None:
    """Peak operations per second of the device of that name; None for one that `PEAKS` lacks."""
    for pattern, rates in PEAKS:
        if re.search(pattern, name):
            return rates[precision] * TERA
    return None


def shape_of(clip: Clip) -> Shape:
    """Sizes of a batch on which the number of operations depends."""
    clips, frames, _, rows, columns = clip.images.shape
    times, points = clip.query_times, clip.query_points
    asked = 0 if points is None else next(iter(fields.leaves(points)))[1].shape[1]
    return clips, frames, rows, columns, 0 if times is None else times.shape[1], asked


class Operations:
    """Number of the model's operations (two for a multiplication and an addition) in a step, forward and backward.

    Matrix products, convolutions and attention are counted, three times where gradients flow through them, so none
    that checkpointing repeats; neither loss terms nor the optimiser. One pass over the first `MOST_COUNTED` shapes of a
    batch each is counted, beside training.
    """

    def __init__(self) -> None:
        self._found: dict[Shape, float] = {}

    def needs(self, clip: Clip) -> bool:
        """True if a batch of this shape should be counted."""
        return len(self._found) < MOST_COUNTED and shape_of(clip) not in self._found

    def count(self, model: ModelModule, clip: Clip, precision: AbstractContextManager[None]) -> None:
        """Count a pass of the model, in evaluation mode, in this precision, uncompiled. It changes nothing."""
        modes = {module: module.training for module in model.modules()}
        model.eval()
        try:
            # compiled blocks are one operation to a dispatch mode
            with precision, torch.enable_grad(), torch.compiler.set_stance("force_eager"), _Counting() as counting:
                model(clip)
        finally:
            for module, training in modes.items():
                module.training = training
        self._found[shape_of(clip)] = counting.total

    def of(self, shape: Shape) -> float | None:
        """Operations of a step over a batch of this shape; None before any was counted."""
        if shape not in self._found:
            return fitted(self._found, shape) if self._found else None
        return self._found[shape]


class _Counting(TorchDispatchMode):
    """Mode that adds up the operations that run in it."""

    total = 0.0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401 - torch gives it no type
        types: Any,  # noqa: ANN401
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401
        """Run an operation and count it."""
        found = func(*args, **(kwargs or {}))
        own = _operations(func.overloadpacket, args, kwargs or {}, found)
        if own:
            flows = any(isinstance(each, Tensor) and each.requires_grad for each in args)
            self.total += own * (WITH_BACKWARD if flows else 1)
        return found


def _operations(packet: object, args: tuple[Any, ...], kwargs: dict[str, Any], found: Any) -> float:  # noqa: ANN401
    """Operations of one operation; 0 of any that is no product."""
    name = str(packet)
    if name == "mkldnn._linear_pointwise":  # `layers.onednn_product`, and torch's own on a CPU
        return 2.0 * args[0].numel() * args[1].shape[0]
    if name == "aten._scaled_dot_product_flash_attention_for_cpu":  # which torch 2.10 does not count
        packet = torch.ops.aten._scaled_dot_product_flash_attention
    formula = flop_registry.get(packet)
    return 0.0 if formula is None else float(formula(*args, **kwargs, out_val=found))


def fitted(known: Mapping[Shape, float], shape: Shape) -> float:
    """Operations of a shape, from those of others.

    Layers take operations in proportion to tokens, attention within frames to their squares, attention over all frames
    to the squares of all: a least-squares fit of such terms.
    """
    rows = np.stack([_terms(each) for each in known])
    scale = rows.max(axis=0).clip(1e-12)
    values = np.array([known[each] / each[0] for each in known])
    found: NDArray[np.float64] = np.linalg.lstsq(rows / scale, values, rcond=None)[0]
    return float(shape[0] * np.dot(_terms(shape) / scale, found))


def _terms(shape: Shape) -> NDArray[np.float64]:
    _, frames, rows, columns, times, points = shape
    area, asked = float(rows * columns), float(max(1, times))
    each = [frames * area, (frames * area) ** 2, frames * area**2, frames, frames**2 * area, frames**2]
    return np.array([*(asked * value for value in each), float(points * frames)])
