"""Gaussians made fit for a browser: few enough, in the scene's units, what moves apart from what stands still.

viser draws constant colours, so harmonics are looked at from one eye. A splat is 32 bytes each time it is recorded;
what stands still is recorded once.
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

from four_d.formats.splats import sound
from four_d.rendering.harmonics import colours
from four_d.rendering.scene import means_at
from four_d.types import Gaussians, map_tensors

if TYPE_CHECKING:
    import viser

SPLATS = 40_000
"""Most that are drawn at once."""
RECORDED = 400_000
"""Most that a page records: those that stand still, and at each time those that move."""
FAINTEST = 1 / 255
"""Opacity below which a splat cannot be seen."""
GRID = 4096
"""Positions are kept to so many parts of the scene's unit; what moves by less stands still."""
MAGNIFIED = 16.0
"""viser's covariances are half floats, too coarse near 0: they are given of a scene so many times as large."""


@dataclass(frozen=True, kw_only=True)
class Film:
    """Splats over t times, in the scene's units."""

    still: Splats
    moving: Splats
    """As they are at the first time."""
    places: NDArray[np.float32]
    """Of what moves at every time, t m 3."""
    times: tuple[float, ...]
    kept: float
    """Share of the Gaussians that is here."""

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
        """Those of a mask."""
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
    """The Gaussians over these times, as a browser can play them.

    Too faint ones are left out. Of more than ``most``, or more than fit into ``recorded``, so many are taken, evenly
    spread over the order they stand in; each stands for its neighbours too, so its scales grow by the root of how many
    it stands for.

    Args:
        gaussians: of one scene, in world coordinates.
        times: one or more, in seconds.
        eye: where from to look at view-dependent colours, 3; None: the world's origin.
        unit: what lengths are divided by.
        most: splats at once.
        recorded: splats that stand still and, for each time, splats that move.

    Raises:
        UserError: as `sound`.

    """
    found = sound(gaussians)
    seen = _take(found, (found.opacities >= FAINTEST).nonzero()[:, 0])
    few = _thin(seen, most)
    places, moves = _places(few, times, unit)
    total = int((~moves).sum() + moves.sum() * len(times))
    if total > recorded:
        few = _thin(few, recorded * len(moves) // total)
        places, moves = _places(few, times, unit)
    splats = _splats(few, places[0], torch.zeros(3) if eye is None else eye.detach().cpu().float(), unit)
    kept = len(few.means) / max(len(found.means), 1)
    moving = splats.take(moves)
    return Film(still=splats.take(~moves), moving=moving, places=places[:, moves], times=tuple(times), kept=kept)


def _take(gaussians: Gaussians, chosen: Tensor) -> Gaussians:
    offsets = None if gaussians.offsets is None else gaussians.offsets[:, chosen]
    names = ("means", "quats", "scales", "opacities", "harmonics")
    fields = {name: getattr(gaussians, name)[chosen] for name in names}
    return dataclasses.replace(gaussians, **fields, offsets=offsets)


def _thin(gaussians: Gaussians, most: int) -> Gaussians:
    count = len(gaussians.means)
    if count <= most:
        return gaussians
    few = _take(gaussians, torch.linspace(0, count - 1, most).long())
    return dataclasses.replace(few, scales=few.scales * (count / most) ** 0.5)


def _places(gaussians: Gaussians, times: Sequence[float], unit: float) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Positions t n 3 on the grid, and which of them change."""
    batch = map_tensors(gaussians, lambda tensor: tensor[None])
    places = (means_at(batch, torch.tensor([list(times)]))[0] / unit * GRID).round() / GRID
    return places.numpy(), (places != places[:1]).any(-1).any(0).numpy()


def _splats(gaussians: Gaussians, places: NDArray[np.float32], eye: Tensor, unit: float) -> Splats:
    turns = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(gaussians.quats))
    axes = turns * (gaussians.scales / unit)[:, None]
    seen = colours(gaussians.harmonics, torch.from_numpy(places) * unit - eye)
    return Splats(
        centres=places,
        covariances=(axes @ axes.mT).numpy(),
        colours=seen.clamp(0, 1).numpy(),
        opacities=gaussians.opacities[:, None].numpy(),
    )


def add(server: viser.ViserServer, name: str, splats: Splats) -> viser.GaussianSplatHandle:
    """Put splats into a viser scene."""
    return server.scene.add_gaussian_splats(
        name,
        centers=splats.centres * np.float32(MAGNIFIED),
        covariances=splats.covariances * np.float32(MAGNIFIED**2),
        rgbs=splats.colours,
        opacities=splats.opacities,
        scale=1 / MAGNIFIED,
    )


def move(handle: viser.GaussianSplatHandle, places: NDArray[np.float32]) -> None:
    """Put the splats of `add` elsewhere, n 3 in the scene's units."""
    handle.centers = places * np.float32(MAGNIFIED)


@dataclass(frozen=True, kw_only=True)
class Reel:
    """The splats of one segment in the scene."""

    film: Film
    still: viser.GaussianSplatHandle | None
    moving: viser.GaussianSplatHandle | None

    @staticmethod
    def add(server: viser.ViserServer, name: str, film: Film) -> Reel:
        """Put a film into a viser scene, as it is at its first time."""
        return Reel(
            film=film,
            still=add(server, f"{name}/still", film.still) if len(film.still.centres) else None,
            moving=add(server, f"{name}/moving", film.moving) if len(film.moving.centres) else None,
        )

    def show(self, index: int | None) -> None:
        """At this of its times; None: not at all."""
        if self.moving is not None and index is not None:
            move(self.moving, self.film.places[index])
        for handle in (self.still, self.moving):
            if handle is not None and handle.visible != (index is not None):
                handle.visible = index is not None
