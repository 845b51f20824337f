"""Gaussians as USD with time samples (``UsdVol.ParticleField3DGaussianSplat``); takes the extra `usd`.

Scales are linear, opacities in [0, 1], harmonics as ours, axes y up and z back, so the scene is turned on the way, and
a unit is a metre. The schema names no colour space: the coefficients are those of 3D Gaussian splatting unchanged.
Positions have a time sample per offset time; USD goes linearly from one to the next and stays at the first and last, as
the offsets do. The time code is counted in the median gap between them, so that players step through the samples.

Source: github.com/PixarAnimationStudios/OpenUSD, pxr/usd/usdVol/schema.usda, 26.03 and later.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.splats.state import COEFFICIENTS, flip, sound
from four_d.formats.whole import new_file
from four_d.types import Gaussians

SUFFIXES = (".usd", ".usda", ".usdc")
ROOT = "/gaussians"
EXTENT = 3.0
"""Standard deviations that the extent takes in, so that nothing that shows is cut off."""


def write_usd(path: Path, gaussians: Gaussians) -> None:
    """Write a stage with one particle field, with motion if the Gaussians have any.

    Raises:
        UserError: without the extra `usd`, another suffix than ``.usd``, ``.usda`` or ``.usdc``, Gaussians that are not
            sound (`sound`), or a file that cannot be written.

    """
    pxr = _library()
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} is no name for USD; end it in one of {' '.join(SUFFIXES)}")
    gaussians = flip(sound(gaussians))
    with new_file(path) as partial:
        stage = pxr.Usd.Stage.CreateNew(str(partial))
        pxr.UsdGeom.SetStageUpAxis(stage, pxr.UsdGeom.Tokens.y)
        pxr.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        field = pxr.UsdVol.ParticleField3DGaussianSplat.Define(stage, ROOT)
        stage.SetDefaultPrim(field.GetPrim())
        _set_fixed(pxr.Vt, field, gaussians)
        _set_positions(pxr, stage, field, gaussians)
        stage.Save()


def _library() -> Any:  # noqa: ANN401  OpenUSD has no types
    """OpenUSD's modules that are used here; UserError if they are not there."""
    try:
        modules = {name: importlib.import_module(f"pxr.{name}") for name in ("Tf", "Usd", "UsdGeom", "UsdVol", "Vt")}
    except ImportError as error:
        raise UserError("USD files take OpenUSD; install it with: pip install 'four_d[usd]'") from error
    if not hasattr(modules["UsdVol"], "ParticleField3DGaussianSplat"):
        raise UserError("this OpenUSD knows no Gaussians; install a newer one with: pip install 'four_d[usd]'")
    return SimpleNamespace(**modules)


def _set_fixed(arrays: Any, field: Any, gaussians: Gaussians) -> None:  # noqa: ANN401
    count = gaussians.harmonics.shape[1]
    quats = gaussians.quats.roll(-1, dims=-1).contiguous()
    field.CreateOrientationsAttr(arrays.QuatfArray.FromNumpy(quats.numpy()))
    field.CreateScalesAttr(arrays.Vec3fArray.FromNumpy(gaussians.scales.contiguous().numpy()))
    field.CreateOpacitiesAttr(arrays.FloatArray.FromNumpy(gaussians.opacities.contiguous().numpy()))
    field.CreateRadianceSphericalHarmonicsDegreeAttr(COEFFICIENTS.index(count))
    flat = gaussians.harmonics.reshape(-1, 3).contiguous()
    field.CreateRadianceSphericalHarmonicsCoefficientsAttr(arrays.Vec3fArray.FromNumpy(flat.numpy()))


def _set_positions(pxr: Any, stage: Any, field: Any, gaussians: Gaussians) -> None:  # noqa: ANN401
    reach = EXTENT * gaussians.scales.amax(dim=-1, keepdim=True)

    def put(means: Tensor, code: Any) -> None:  # noqa: ANN401
        field.CreatePositionsAttr().Set(pxr.Vt.Vec3fArray.FromNumpy(means.contiguous().numpy()), code)
        ends = [(means - reach).amin(dim=0), (means + reach).amax(dim=0)] if len(means) else [torch.zeros(3)] * 2
        field.CreateExtentAttr().Set(pxr.Vt.Vec3fArray.FromNumpy(torch.stack(ends).numpy()), code)

    offsets, times = gaussians.offsets, gaussians.offset_times
    if offsets is None or times is None:
        put(gaussians.means, pxr.Usd.TimeCode.Default())
        return
    rate = _rate(times)
    stage.SetTimeCodesPerSecond(rate)
    stage.SetFramesPerSecond(rate)
    stage.SetStartTimeCode(round(float(times[0]) * rate, 5))
    stage.SetEndTimeCode(round(float(times[-1]) * rate, 5))
    for time, offset in zip(times.tolist(), offsets, strict=True):
        put(gaussians.means + offset, pxr.Usd.TimeCode(round(time * rate, 5)))


def _rate(times: Tensor) -> float:
    """Time codes a second: one each median gap."""
    gaps = times.double().diff()
    gap = float(gaps.median()) if len(gaps) else 0.0
    return round(1 / gap, 6) if gap > 0 else 1.0


def read_usd(path: Path) -> Gaussians:
    """The Gaussians of a stage's first particle field, in our axes: those at the first time and offsets to each sample.

    Raises:
        UserError: without the extra `usd`, a file that OpenUSD does not open, no particle field, a field with a
            transform, or arrays of different lengths.

    """
    pxr = _library()
    try:
        stage = pxr.Usd.Stage.Open(str(path))
    except pxr.Tf.ErrorException as error:
        raise UserError(f"{path} does not open as USD; check the path or write it again") from error
    prim = next((p for p in stage.Traverse() if p.IsA(pxr.UsdVol.ParticleField3DGaussianSplat)), None)
    if prim is None:
        raise UserError(f"{path} holds no Gaussians; give a stage with a ParticleField3DGaussianSplat")
    field = pxr.UsdVol.ParticleField3DGaussianSplat(prim)
    return flip(_read(path, field, stage.GetTimeCodesPerSecond()))


def _read(path: Path, field: Any, rate: float) -> Gaussians:  # noqa: ANN401
    codes = field.GetPositionsAttr().GetTimeSamples()
    states = [field.GetPositionsAttr().Get(code) for code in codes] or [field.GetPositionsAttr().Get()]
    if states[0] is None or field.GetOrderedXformOps():
        raise UserError(f"{path} has a particle field with a transform or without positions; bake it into positions")
    means = torch.stack([_array(state, 3) for state in states])
    degree = int(field.GetRadianceSphericalHarmonicsDegreeAttr().Get())
    harmonics = _array(field.GetRadianceSphericalHarmonicsCoefficientsAttr().Get(), 3)
    still = Gaussians(
        means=means[0],
        quats=_quats(field.GetOrientationsAttr().Get()),
        scales=_array(field.GetScalesAttr().Get(), 3),
        opacities=_array(field.GetOpacitiesAttr().Get(), 1)[:, 0],
        harmonics=harmonics.reshape(-1, (degree + 1) ** 2, 3),
    )
    lengths = {len(value) for value in (still.means, still.quats, still.scales, still.opacities, still.harmonics)}
    if len(lengths) > 1:
        raise UserError(f"{path} has arrays of {sorted(lengths)} Gaussians; write it again")
    if not codes:
        return still
    times = torch.tensor([code / rate for code in codes])
    return dataclasses.replace(still, offsets=means - means[0], offset_times=times)


def _array(values: Any, width: int) -> Tensor:  # noqa: ANN401
    return torch.from_numpy(np.array([] if values is None else values, np.float32).reshape(-1, width))


def _quats(values: Any) -> Tensor:  # noqa: ANN401
    """(w, x, y, z) of OpenUSD's array."""
    parts = [] if values is None else [(q.GetReal(), *q.GetImaginary()) for q in values]
    return torch.tensor(parts, dtype=torch.float32).reshape(-1, 4)
