"""Gaussians as USD with time samples (``UsdVol.ParticleField3DGaussianSplat``); takes the extra `usd`.

Scales are linear, opacities in [0, 1], harmonics as ours, axes y up and z back, so the scene is converted, and a unit
is a metre. The schema names no colour space: the coefficients are those of 3D Gaussian splatting unchanged. Positions
have a time sample per offset time, and so have the orientations of Gaussians that turn. USD interpolates linearly (on
the sphere, where turns are at a slightly different pace within a gap) and holds the first and last, as offsets and
turns do. The time code's unit is the median gap between them, so that players step through the samples.

Source: github.com/PixarAnimationStudios/OpenUSD, pxr/usd/usdVol/schema.usda, 26.03 and later.
"""

from __future__ import annotations

import dataclasses
import importlib
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from four_d import fields
from four_d.errors import UserError
from four_d.formats.splats.state import COEFFICIENTS, finite, flip, rotations, sound, turned
from four_d.geometry import Similarity
from four_d.outputs import new_file
from four_d.types import Gaussians

LOGGER = logging.getLogger(__name__)

SUFFIXES = (".usd", ".usda", ".usdc")
PACKAGE = ".usdz"
"""Suffix of a stage packed with its references, which is only read."""
ROOT = "/gaussians"
_Y_UP_FROM_Z_UP = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1]])
EXTENT = 3.0
"""Standard deviations within the extent, so that nothing visible is cut off."""


def write_usd(path: Path, gaussians: Gaussians) -> None:
    """Write a stage with one particle field, with motion if the Gaussians have any.

    Raises:
        UserError: without the extra `usd`, another suffix than ``.usd``, ``.usda`` or ``.usdc``, Gaussians that are not
            sound (`sound`), or a file that cannot be written.

    """
    pxr = _library()
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path} cannot be the name of a USD file; end it in one of {' '.join(SUFFIXES)}")
    gaussians = flip(sound(gaussians))
    with new_file(path) as partial:
        stage = pxr.Usd.Stage.CreateNew(str(partial))
        pxr.UsdGeom.SetStageUpAxis(stage, pxr.UsdGeom.Tokens.y)
        pxr.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
        field = pxr.UsdVol.ParticleField3DGaussianSplat.Define(stage, ROOT)
        stage.SetDefaultPrim(field.GetPrim())
        _set_fixed(pxr.Vt, field, gaussians)
        _set_motion(pxr, stage, field, gaussians)
        stage.Save()


def _library() -> Any:  # noqa: ANN401  OpenUSD has no types
    """Import OpenUSD's modules; UserError if they are missing."""
    try:
        modules = {
            name: importlib.import_module(f"pxr.{name}") for name in ("Gf", "Tf", "Usd", "UsdGeom", "UsdVol", "Vt")
        }
    except ImportError as error:
        raise UserError("USD files need OpenUSD; install it with: pip install 'four_d[usd]'") from error
    if not hasattr(modules["UsdVol"], "ParticleField3DGaussianSplat"):
        raise UserError("this OpenUSD knows no Gaussians; install a newer one with: pip install 'four_d[usd]'")
    return SimpleNamespace(**modules)


def _set_fixed(arrays: Any, field: Any, gaussians: Gaussians) -> None:  # noqa: ANN401
    count = gaussians.harmonics.shape[1]
    field.CreateOrientationsAttr(_orientations(arrays, gaussians.quats))
    field.CreateScalesAttr(arrays.Vec3fArray.FromNumpy(gaussians.scales.contiguous().numpy()))
    field.CreateOpacitiesAttr(arrays.FloatArray.FromNumpy(gaussians.opacities.contiguous().numpy()))
    field.CreateRadianceSphericalHarmonicsDegreeAttr(COEFFICIENTS.index(count))
    flat = gaussians.harmonics.reshape(-1, 3).contiguous()
    field.CreateRadianceSphericalHarmonicsCoefficientsAttr(arrays.Vec3fArray.FromNumpy(flat.numpy()))


def _orientations(arrays: Any, quats: Tensor) -> Any:  # noqa: ANN401
    """Convert (w, x, y, z) to OpenUSD's array."""
    return arrays.QuatfArray.FromNumpy(quats.roll(-1, dims=-1).contiguous().numpy())


def _set_motion(pxr: Any, stage: Any, field: Any, gaussians: Gaussians) -> None:  # noqa: ANN401
    reach = EXTENT * gaussians.scales.amax(dim=-1, keepdim=True)

    def set_state(means: Tensor, code: Any) -> None:  # noqa: ANN401
        field.CreatePositionsAttr().Set(pxr.Vt.Vec3fArray.FromNumpy(means.contiguous().numpy()), code)
        extent = [(means - reach).amin(dim=0), (means + reach).amax(dim=0)] if len(means) else [torch.zeros(3)] * 2
        field.CreateExtentAttr().Set(pxr.Vt.Vec3fArray.FromNumpy(torch.stack(extent).numpy()), code)

    offsets, times = gaussians.offsets, gaussians.offset_times
    if offsets is None or times is None:
        set_state(gaussians.means, pxr.Usd.TimeCode.Default())
        return
    rate = _rate(times)
    stage.SetTimeCodesPerSecond(rate)
    stage.SetFramesPerSecond(rate)
    stage.SetStartTimeCode(round(float(times[0]) * rate, 5))
    stage.SetEndTimeCode(round(float(times[-1]) * rate, 5))
    for time, offset in zip(times.tolist(), offsets, strict=True):
        set_state(gaussians.means + offset, pxr.Usd.TimeCode(round(time * rate, 5)))
    if gaussians.turns is not None:
        for time, quats in zip(times.tolist(), rotations(gaussians), strict=True):
            array = _orientations(pxr.Vt, quats)
            field.GetOrientationsAttr().Set(array, pxr.Usd.TimeCode(round(time * rate, 5)))


def _rate(times: Tensor) -> float:
    """Time codes per second: one per median gap."""
    gaps = times.double().diff()
    gap = float(gaps.median()) if len(gaps) else 0.0
    return round(1 / gap, 6) if gap > 0 else 1.0


def read_usd(path: Path) -> Gaussians:
    """Read the Gaussians of a stage's first particle field, in our axes: first state, offsets and turns to each sample.

    Further fields are skipped, with a note on stderr. Gaussians that are not finite are left out (`finite`). A stage
    whose z points up is rotated.

    Raises:
        UserError: without the extra `usd`, a file that OpenUSD does not open, no particle field, a field with a
            transform, arrays of different lengths, or a stage to be rotated whose colours depend on the direction.

    """
    pxr = _library()
    try:
        stage = pxr.Usd.Stage.Open(str(path))
    except pxr.Tf.ErrorException as error:
        raise UserError(f"{path} does not open as USD; check the path or write it again") from error
    prims = [p for p in stage.Traverse() if p.IsA(pxr.UsdVol.ParticleField3DGaussianSplat)]
    if not prims:
        raise UserError(f"{path} holds no Gaussians; give a stage with a ParticleField3DGaussianSplat")
    if len(prims) > 1:
        LOGGER.warning(f"{path}: of {len(prims)} particle fields only {prims[0].GetPath()} is read")
    if _has_transform(pxr, prims[0]):
        raise UserError(f"{path} has a particle field with a transform; bake it into positions")
    field = pxr.UsdVol.ParticleField3DGaussianSplat(prims[0])
    gaussians = _read(path, field, stage.GetTimeCodesPerSecond())
    if pxr.UsdGeom.GetStageUpAxis(stage) == pxr.UsdGeom.Tokens.z:
        gaussians = fields.move(gaussians, Similarity.of_pose(_Y_UP_FROM_Z_UP))
    return finite(flip(gaussians), path)


def _has_transform(pxr: Any, prim: Any) -> bool:  # noqa: ANN401
    """True if the prim, or one above it, has a transform other than the identity."""
    while prim and not prim.IsPseudoRoot():
        xformable = pxr.UsdGeom.Xformable(prim)
        if xformable and (
            xformable.TransformMightBeTimeVarying() or xformable.GetLocalTransformation() != pxr.Gf.Matrix4d(1)
        ):
            return True
        prim = prim.GetParent()
    return False


def _read(path: Path, field: Any, rate: float) -> Gaussians:  # noqa: ANN401
    positions, orientations = _attribute(field, "Positions"), _attribute(field, "Orientations")
    codes = sorted({*positions.GetTimeSamples(), *orientations.GetTimeSamples()})
    states = [positions.Get(code) for code in codes] or [positions.Get()]
    if states[0] is None:
        raise UserError(f"{path} has a particle field without positions; write it again")
    means = [_array(state, 3) for state in states]
    quats = [_quats(orientations.Get(code)) for code in codes] or [_quats(orientations.Get())]
    degree = int(field.GetRadianceSphericalHarmonicsDegreeAttr().Get())
    harmonics = _array(_attribute(field, "RadianceSphericalHarmonicsCoefficients").Get(), 3)
    values = {
        "quats": quats[0],
        "scales": _array(_attribute(field, "Scales").Get(), 3),
        "opacities": _array(_attribute(field, "Opacities").Get(), 1)[:, 0],
    }
    lengths = {len(harmonics) / (degree + 1) ** 2, *map(len, means), *map(len, quats), *map(len, values.values())}
    if len(lengths) > 1:
        counts = ", ".join(f"{length:g}" for length in sorted(lengths))
        raise UserError(f"{path} has arrays of {counts} Gaussians; write it again")
    still = Gaussians(means=means[0], harmonics=harmonics.reshape(-1, (degree + 1) ** 2, 3), **values)
    if not codes:
        return still
    times = torch.tensor([code / rate for code in codes])
    offsets = torch.stack(means) - means[0]
    return dataclasses.replace(still, offsets=offsets, offset_times=times, turns=turned(still, quats))


def _attribute(field: Any, name: str) -> Any:  # noqa: ANN401
    """Value of the attribute of this name, of single or of half precision."""
    single = getattr(field, f"Get{name}Attr")()
    return single if single.HasValue() else getattr(field, f"Get{name}hAttr")()


def _array(values: Any, width: int) -> Tensor:  # noqa: ANN401
    return torch.from_numpy(np.array([] if values is None else values, np.float32).reshape(-1, width))


def _quats(values: Any) -> Tensor:  # noqa: ANN401
    """Convert OpenUSD's array, whose imaginary parts come first, to (w, x, y, z)."""
    return _array(values, 4).roll(1, dims=-1)
