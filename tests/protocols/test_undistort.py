from __future__ import annotations

import numpy as np
import pytest

from four_d.datasets.lens import Lens
from four_d.errors import UserError
from tests.data_prep.sleap_session import DISTORTION, seen

MATRIX = [[90.0, 0.0, 31.5], [0.0, 92.0, 23.5], [0.0, 0.0, 1.0]]
STILL = {"rotation": [1e-12, 0, 0], "translation": [0, 0, 0], "matrix": MATRIX}


def test_undistorting_inverts_opencvs_formulas() -> None:
    rays = np.stack([*np.meshgrid(np.linspace(-0.4, 0.4, 9), np.linspace(-0.3, 0.3, 7)), np.ones((7, 9))], axis=-1)
    lens = Lens.of(MATRIX, DISTORTION, "camera")
    found = lens.undistort(seen(rays, {**STILL, "distortions": DISTORTION}))
    np.testing.assert_allclose(found, rays[..., :2] * [90, 92] + [32, 24], atol=1e-4)
    np.testing.assert_allclose(lens.intrinsics, [[90, 0, 32], [0, 92, 24], [0, 0, 1]])


def test_the_rational_model_is_opencvs() -> None:
    """On the axis x, with k4 alone, x becomes x / (1 + k4 x²)."""
    lens = Lens.of(MATRIX, (0, 0, 0, 0, 0, 0.5, 0, 0), "camera")
    found = lens.undistort(np.array([[31.5 + 90 * 0.3 / (1 + 0.5 * 0.09), 23.5]]))
    np.testing.assert_allclose(found, [[32 + 90 * 0.3, 24]], atol=1e-4)


def test_beyond_the_fold_nothing_is_seen() -> None:
    """With k1 = −⅓ the distortion folds back at radius 1, where it reaches ⅔."""
    lens = Lens.of(MATRIX, (-1 / 3, 0, 0, 0), "camera")
    found = lens.undistort(np.array([[31.5 + 90 * 0.66, 23.5], [31.5 + 90 * 0.67, 23.5], [np.nan, 1]]))
    assert np.isfinite(found).all(-1).tolist() == [True, False, False]
    wide = Lens.of([[20.0, 0, 31.5], [0, 20.0, 23.5], [0, 0, 1]], (-1 / 3, 0, 0, 0), "camera")
    image = wide.undistort_images([np.full((48, 64, 3), 200, np.uint8)])[0]
    assert (image[24, [12, 51]] == 200).all()  # radius 0.975
    assert (image[24, [11, 52]] == 0).all()  # radius 1.025


def test_images_and_pixels_move_alike() -> None:
    """A light blot is found where the undistorted pixel of its centre is."""
    lens = Lens.of(MATRIX, (-0.5, 0, 0, 0), "camera")
    y, x = np.mgrid[:48, :64]
    centre = np.array([55.3, 8.2])
    blot = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / 4)
    image = np.repeat((255 * blot).astype(np.uint8)[..., None], 3, axis=-1)
    straight = lens.undistort_images([image])[0][..., 0].astype(float)
    found = [(straight * (axis + 0.5)).sum() / straight.sum() for axis in (x, y)]
    np.testing.assert_allclose(found, lens.undistort(centre), atol=0.15)
    assert np.linalg.norm(lens.undistort(centre) - centre - 0.5) > 1.5


def test_what_is_no_such_lens_is_refused() -> None:
    for matrix, coefficients, message in (
        (np.eye(2), (), "is no pinhole camera's"),
        ([[90, 1, 31], [0, 90, 23], [0, 0, 1]], (), "has skew"),
        (MATRIX, (0.1, 0.2, 0.3), "3 coefficients of distortion"),
    ):
        with pytest.raises(UserError, match=f"camera back: .*{message}"):
            Lens.of(matrix, coefficients, "camera back")
