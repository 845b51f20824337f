"""Gaussians prepared for a browser: few enough, in the scene's units, moving ones separate from static ones.

viser draws constant colours, so view-dependent ones are evaluated from one viewpoint. A splat takes 32 bytes each
time it is recorded; static ones are recorded once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d.formats.splats import sound, take, thin
from four_d.geometry import in_half_space
from four_d.rendering.harmonics import colours
from four_d.rendering.scene import means_at, quats_at
from four_d.types import Gaussians, map_tensors

if TYPE_CHECKING:
    import viser

SPLATS = 40_000
"""Maximum number of splats drawn at once."""
RECORDED = 400_000
"""Maximum number of splats that a page records: static ones once, moving ones at each time."""
FAINTEST = 1 / 255
"""Opacity below which a splat is invisible."""
GRID = 4096
"""Grid positions per scene unit; splats that move by less are static."""
TURNED = 1e-3
"""Change of a quaternion, about half the angle in radians, from which splats are not static."""
MAGNIFIED = 16.0
"""Magnification of the scene, because viser's covariances are half floats, too coarse near 0."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """Splats over t times, in the scene's units."""

    still: Splats
    moving: Splats
    """Moving splats at the first time."""
    positions: NDArray[np.float32]
    """Positions of moving splats at every time, t m 3."""
    covariances: NDArray[np.float32] | None = None
    """Covariances of moving splats at every time, t m 3 3; None if none turns."""
    times: tuple[float, ...]
    kept: float
    """Fraction of the Gaussians that is kept."""

    def __len__(self) -> int:
        return len(self.still.centres) + len(self.moving.centres)


@dataclass(frozen=True, kw_only=True)
class Splats:
    """n ellipsoids of constant colour."""

    centres: NDArray[np.float32]
    """n 3"""
    covariances: NDArray[np.float32]
    """n 3 3"""
    colours: NDArray[np.float32]
    """n 3, in [0, 1]."""
    opacities: NDArray[np.float32]
    """n 1"""

    def take(self, chosen: NDArray[np.bool_]) -> Splats:
        """Select splats by mask."""
        return Splats(**{f.name: getattr(self, f.name)[chosen] for f in dataclasses.fields(self)})


def film(
    gaussians: Gaussians,
    times: Sequence[float],
    *,
    eye: Tensor | None = None,
    unit: float = 1.0,
    most: int = SPLATS,
    recorded: int = RECORDED,
) -> Film:
    """Prepare Gaussians over these times for a browser.

    Too faint ones are left out. If there are more than ``most``, or than fit into ``recorded``, they are subsampled
    evenly in their order; each represents its neighbours too, so its scales grow by the root of their number.

    Args:
        gaussians: Gaussians of one scene, in world coordinates.
        times: one or more, in seconds.
        eye: viewpoint of view-dependent colours, 3; None: the world's origin.
        unit: divisor of lengths.
        most: maximum number of splats at once.
        recorded: maximum number of recorded splats: static ones once, moving ones for each time.

    Raises:
        UserError: as `sound`.

    """
    valid = sound(gaussians)
    visible = take(valid, (valid.opacities >= FAINTEST).nonzero()[:, 0])
    drawn = thin(visible, most)
    positions, quats, moves = _motion(drawn, times, unit)
    total = int((~moves).sum() + moves.sum() * len(times))
    if total > recorded:
        drawn = thin(drawn, recorded * len(moves) // total)
        positions, quats, moves = _motion(drawn, times, unit)
    splats = _splats(drawn, positions[0], quats[0], torch.zeros(3) if eye is None else eye.detach().cpu().float(), unit)
    kept = len(drawn.means) / max(len(valid.means), 1)
    turning = drawn.turns is not None and bool(moves.any())
    return Film(
        still=splats.take(~moves),
        moving=splats.take(moves),
        positions=positions[:, moves],
        times=tuple(times),
        kept=kept,
        covariances=_covariances(quats, drawn.scales / unit)[:, moves] if turning else None,
    )


def _motion(
    gaussians: Gaussians, times: Sequence[float], unit: float
) -> tuple[NDArray[np.float32], Tensor, NDArray[np.bool_]]:
    """Positions t n 3 on the grid, unit quaternions t n 4, and a mask of those that move or turn."""
    batch, at = map_tensors(gaussians, lambda tensor: tensor[None]), torch.tensor([list(times)])
    positions = (means_at(batch, at)[0] / unit * GRID).round() / GRID
    quats = quats_at(batch, at)[0]
    moves = (positions != positions[:1]).any(-1).any(0)
    if gaussians.turns is not None:
        moves |= ((in_half_space(quats, quats[:1]) - quats[:1]).abs() > TURNED).any(-1).any(0)
    return positions.numpy(), quats, moves.numpy()


def _covariances(quats: Tensor, scales: Tensor) -> NDArray[np.float32]:
    axes = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(quats)) * scales[..., None, :]
    return (axes @ axes.mT).numpy()


def _splats(gaussians: Gaussians, positions: NDArray[np.float32], quats: Tensor, eye: Tensor, unit: float) -> Splats:
    rgb = colours(gaussians.harmonics, torch.from_numpy(positions) * unit - eye)
    return Splats(
        centres=positions,
        covariances=_covariances(quats, gaussians.scales / unit),
        colours=rgb.clamp(0, 1).numpy(),
        opacities=gaussians.opacities[:, None].numpy(),
    )


def add(server: viser.ViserServer, name: str, splats: Splats) -> viser.GaussianSplatHandle:
    """Add splats to a viser scene."""
    return server.scene.add_gaussian_splats(
        name,
        centers=splats.centres * np.float32(MAGNIFIED),
        covariances=splats.covariances * np.float32(MAGNIFIED**2),
        rgbs=splats.colours,
        opacities=splats.opacities,
        scale=1 / MAGNIFIED,
    )


def move(handle: viser.GaussianSplatHandle, film: Film, index: int) -> None:
    """Move the moving splats of a film, which `add` added, to their state at the time of this index, in one message."""
    positions = film.positions[index] * np.float32(MAGNIFIED)
    if film.covariances is None:
        handle.centers = positions
    else:
        covariances = film.covariances[index] * np.float32(MAGNIFIED**2)
        handle.set_gaussians(positions, covariances, film.moving.colours, film.moving.opacities)


@dataclass(frozen=True, kw_only=True)
class Reel:
    """Splats of one segment in the scene."""

    film: Film
    still: viser.GaussianSplatHandle | None
    moving: viser.GaussianSplatHandle | None

    @staticmethod
    def add(server: viser.ViserServer, name: str, film: Film) -> Reel:
        """Add a film to a viser scene, at its first time."""
        return Reel(
            film=film,
            still=add(server, f"{name}/still", film.still) if len(film.still.centres) else None,
            moving=add(server, f"{name}/moving", film.moving) if len(film.moving.centres) else None,
        )

    def show(self, index: int | None) -> None:
        """Show the time of this index; None: hide."""
        if self.moving is not None and index is not None:
            move(self.moving, self.film, index)
        for handle in (self.still, self.moving):
            if handle is not None and handle.visible != (index is not None):
                handle.visible = index is not None
