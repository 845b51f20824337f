"""Dense motion of a real recording (Aria Digital Twin): a person stirs with a fork and a spoon of measured poses.

A rigid object's motion is exact truth for each of its pixels: X(1) = T(1) T(0)⁻¹ X(0).
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from four_d import geometry
from four_d.metrics import motion, tracks
from four_d.types import Cameras, Prediction
from tests.data.excerpts import ARIA, STIRRED, Recording, stirring
from tests.helpers import motion_scores

pytestmark = pytest.mark.skipif(not ARIA.is_dir(), reason="../shared/samples/aria_digital_twin is not there")


@pytest.fixture(scope="module")
def recording() -> Recording:
    return stirring()


def _landed(recording: Recording, start: int, moved: bool) -> float:
    """Share of the stirred pixels of a frame that fall on their own object in the other, of those in its picture."""
    targets, end = recording.targets, 1 - start
    assert targets.motion is not None
    assert targets.cameras is not None
    where = recording.stirred[start]
    points = recording.points[start][where] + (targets.motion[end, start][where].double() if moved else 0)
    camera = Cameras(
        world_from_camera=targets.cameras.world_from_camera[end], intrinsics=targets.cameras.intrinsics[end]
    )
    pixels, z = geometry.project(points, camera)
    x, y = pixels.floor().long().unbind(-1)
    height, width = where.shape
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = recording.instances[end][y.clamp(0, height - 1), x.clamp(0, width - 1)]
    right = found == recording.instances[start][where]
    assert inside.double().mean() > 0.9
    return float(right[inside].double().mean())


def test_fork_and_spoon_move_and_nothing_else(recording: Recording) -> None:
    targets = recording.targets
    assert targets.motion is not None
    lengths = targets.motion[1, 0].norm(dim=-1)
    for index, name in recording.names.items():
        seen = (recording.instances[0] == index) & (recording.points[0, ..., 2] > 0)
        if name in STIRRED:
            assert int(seen.sum()) > 500
            assert float(lengths[seen].mean()) == pytest.approx(STIRRED[name], abs=2e-3), name
        elif seen.any():
            assert float(lengths[seen].max()) < 1e-4, name
    assert float(targets.motion[0, 0].abs().max()) < 1e-9  # its own time
    torch.testing.assert_close(motion.dynamic(targets), recording.stirred)


@pytest.mark.parametrize("start", [0, 1])
def test_moving_pixels_land_on_their_object(recording: Recording, start: int) -> None:
    assert _landed(recording, start, moved=True) >= 0.95
    assert _landed(recording, start, moved=False) < 0.75


def _said(recording: Recording, motion_said: Tensor, unit: float = 1.0) -> dict[str, float | None]:
    points = (recording.points / unit).float()
    return motion_scores(Prediction(motion=motion_said / unit), points, recording.targets)


def test_the_truth_errs_by_nothing_and_standing_still_by_the_motion(recording: Recording) -> None:
    targets, where = recording.targets, recording.stirred
    assert targets.motion is not None
    assert targets.valid is not None
    exact = _said(recording, targets.motion)
    assert exact["motion_epe_dynamic"] == exact["motion_epe_all"] == 0
    assert exact["motion_apd_dynamic"] == exact["track_apd_dynamic"] == 1
    assert exact["track_epe_dynamic"] == pytest.approx(0, abs=1e-6)
    other = _said(recording, targets.motion, unit=3.0)
    assert other["motion_epe_dynamic"] == pytest.approx(0, abs=1e-6)
    assert other["motion_scale_error"] == pytest.approx(np.log(3.0), abs=1e-5)
    still = _said(recording, torch.zeros_like(targets.motion))
    lengths = torch.cat([targets.motion[1, 0][where[0]], targets.motion[0, 1][where[1]]]).norm(dim=-1)
    assert still["motion_epe_dynamic"] == pytest.approx(float(lengths.mean()), rel=1e-5)
    assert still["motion_epe_dynamic"] == pytest.approx(0.0215, abs=2e-3)
    share = float(where.sum() / targets.valid.sum())
    assert still["motion_epe_all"] == pytest.approx(share * float(lengths.mean()), abs=1e-4)


def test_tracks_of_the_first_frame(recording: Recording) -> None:
    """As sparse tracks, n 2 3: WorldTrack's scores and scene flow know fork and spoon, and how far they went."""
    targets = recording.targets
    assert targets.motion is not None
    assert targets.valid is not None
    valid = targets.valid[0]
    paths = (recording.points[0] + targets.motion[:, 0].double())[:, valid].transpose(0, 1)
    stirred = recording.stirred[0][valid]
    torch.testing.assert_close(tracks.moving(paths), stirred)
    still = paths[:, :1].expand_as(paths)
    errors = tracks.endpoint_errors(still, paths)[:, 1]
    assert float(tracks.epe(errors, stirred)) == pytest.approx(
        float((paths[:, 1] - paths[:, 0])[stirred].norm(dim=-1).mean())
    )
    assert float(tracks.apd(errors, stirred)) == 1  # 2 cm are less than any of its distances
    assert float(tracks.apd(errors, stirred, (0.01, 0.05))) == pytest.approx(0.5, abs=0.02)
    flow = (paths[:, 1] - paths[:, 0])[stirred]
    assert tracks.scene_flow(flow, flow).outliers == 0
    none = tracks.scene_flow(torch.zeros_like(flow), flow)
    assert none.epe == pytest.approx(0.0215, abs=2e-3)
    assert (none.strict, none.outliers) == (1, 1)  # 2 cm off, and 100 %
    generator = torch.Generator().manual_seed(0)
    aligned = tracks.align_world(paths / 3, paths, "global", generator)
    torch.testing.assert_close(aligned, paths)
