"""Distortion of lenses in OpenCV's model, and images and pixels without it.

Distorted pixels are OpenCV's here: (0, 0) is the centre of the top-left pixel. Undistorted ones are in our convention,
those of a pinhole camera with the same matrix, half a pixel further on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from four_d import geometry
from four_d.errors import UserError

Points = NDArray[np.float64]
N = TypeVar("N", bound=np.generic)
COUNTS = (0, 4, 5, 8)
"""Numbers of coefficients: k1 k2 p1 p2 [k3 [k4 k5 k6]]."""
ROUNDS = 200
"""Rounds of the iteration that inverts the distortion; near the fold of a strong one it is slow."""
EXACT = 1e-6
"""Greatest error of an inverted point, in focal lengths."""


@dataclass(frozen=True, kw_only=True)
class Lens:
    """Pinhole matrix and distortion of one camera."""

    matrix: Points
    """3 3, OpenCV's pixels."""
    coefficients: tuple[float, ...]

    @classmethod
    def of(cls, matrix: object, coefficients: Sequence[int | float], what: str) -> Lens:
        """Check a calibration's numbers; ``what`` names the camera. UserError for those of another model."""
        k = np.asarray(matrix, np.float64)
        if k.shape != (3, 3) or not np.isfinite(k).all() or k[0, 0] <= 0 or k[1, 1] <= 0:
            raise UserError(f"{what}: its matrix is no pinhole camera's (3 × 3, focal lengths above 0)")
        if abs(k[0, 1]) > 1e-9:
            raise UserError(f"{what}: its matrix has skew, which four_d does not hold; calibrate without")
        if len(coefficients) not in COUNTS or not np.isfinite(coefficients).all():
            raise UserError(
                f"{what}: {len(coefficients)} coefficients of distortion are not OpenCV's k1 k2 p1 p2 [k3 [k4 k5 k6]]; "
                "calibrate with one of these, or undistort yourself and give zeros"
            )
        return cls(matrix=k, coefficients=tuple(float(value) for value in coefficients))

    @property
    def intrinsics(self) -> Points:
        """Matrix (3 3) of the camera without distortion, in our pixels."""
        return self.matrix + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])

    @property
    def plain(self) -> bool:
        """True without distortion."""
        return not any(self.coefficients)

    def undistort(self, pixels: Points) -> Points:
        """Convert distorted pixels (… 2) to undistorted ones; NaN stays, and comes where no ray is seen there."""
        wanted = (pixels - self.matrix[:2, 2]) / self.matrix[[0, 1], [0, 1]]
        found = wanted.copy()
        with np.errstate(all="ignore"):
            for _ in range(1 if self.plain else ROUNDS):
                radial, shift = self._bend(found)
                found = (wanted - shift) / radial[..., None]
            error = np.abs(self._distorted(found) - wanted).max(-1)
            found[~((error < EXACT) & self._sees(found))] = np.nan
        return found * self.matrix[[0, 1], [0, 1]] + self.matrix[:2, 2] + 0.5

    def undistort_images(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Resample images (h w 3) bilinearly to those of a camera without distortion; black where nothing was seen."""
        if self.plain:
            return np.stack(images)
        height, width = images[0].shape[:2]
        source = self._source(height, width)
        at = torch.from_numpy(source * [2 / width, 2 / height] - 1).float()[None]
        result = np.empty((len(images), height, width, 3), np.uint8)
        for image, straight in zip(images, result, strict=True):
            planes = torch.from_numpy(image).permute(2, 0, 1)[None].float()
            found = functional.grid_sample(planes, at, align_corners=False)[0]
            straight[:] = found.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
        return result

    def undistort_maps(self, maps: NDArray[N]) -> NDArray[N]:
        """Resample maps (f h w) to the nearest values of a camera without distortion; 0 where nothing was seen."""
        if self.plain:
            return maps
        height, width = maps.shape[1:]
        column, row = (np.floor(each).astype(int) for each in np.moveaxis(self._source(height, width), -1, 0))
        seen = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        found = maps[:, row.clip(0, height - 1), column.clip(0, width - 1)]
        return np.where(seen, found, np.zeros((), maps.dtype))

    def _source(self, height: int, width: int) -> Points:
        """Distorted place (h w 2, corner origin) of each undistorted pixel's centre; far outside where none is."""
        pixels = geometry.pixel_centres(height, width, torch.zeros(1, dtype=torch.float64)).numpy() - 0.5
        rays = (pixels - self.matrix[:2, 2]) / self.matrix[[0, 1], [0, 1]]
        source = self._distorted(rays) * self.matrix[[0, 1], [0, 1]] + self.matrix[:2, 2] + 0.5
        source[~self._sees(rays)] = -10.0 * max(height, width)
        return source

    def _sees(self, rays: Points) -> NDArray[np.bool_]:
        """True for rays (… 2, at depth 1) before the radius at which the distortion folds back."""
        radii = np.linspace(0, 4, 4001)
        line = np.stack([radii, np.zeros_like(radii)], axis=-1)
        outward = np.diff(radii * self._bend(line)[0]) > 0
        fold = radii[int(outward.argmin())] if not outward.all() else np.inf
        return np.asarray(np.linalg.norm(rays, axis=-1) <= fold)

    def _distorted(self, rays: Points) -> Points:
        radial, shift = self._bend(rays)
        return rays * radial[..., None] + shift

    def _bend(self, rays: Points) -> tuple[Points, Points]:
        """Radial factor (…) and tangential shift (… 2) of rays at depth 1."""
        k1, k2, p1, p2, k3, k4, k5, k6 = np.pad(np.array(self.coefficients), (0, 8 - len(self.coefficients)))
        x, y = rays[..., 0], rays[..., 1]
        s = x**2 + y**2
        radial = (1 + s * (k1 + s * (k2 + s * k3))) / (1 + s * (k4 + s * (k5 + s * k6)))
        shift = np.stack([2 * p1 * x * y + p2 * (s + 2 * x**2), p1 * (s + 2 * y**2) + 2 * p2 * x * y], axis=-1)
        return np.asarray(radial), shift
