"""WorldTrack and TAPVid-3D with predictors whose scores are known, on files in the sets' own layout."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from four_d import geometry
from four_d.abilities import Model
from four_d.backbones.hints import HintsConfig
from four_d.errors import UserError
from four_d.evaluation import Published, PublishedConfig, run_protocol
from four_d.metrics.baselines import StaticCamera
from four_d.types import Clip, Prediction
from tests.protocols import tracked
from tests.protocols.tracked import Oracle
from tests.test_query import build

PATCH = 4
MOVING_CAMERAS = ("adt_mini", "po_mini", "ds_mini")


def tracked_config(root: Path, protocol: str, **settings: object) -> PublishedConfig:
    """At a size at which no resampling is needed."""
    return PublishedConfig(protocol=protocol, root=str(root), long_side=tracked.WIDTH, **settings)  # pyright: ignore[reportArgumentType]


def run(model: object, root: Path, protocol: str, **settings: object) -> Published:
    return run_protocol(model, tracked_config(root, protocol, **settings), patch=PATCH, trained=(32, 32))  # pyright: ignore[reportArgumentType]


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tracked.worldtrack(tmp_path / "world")
    return tmp_path / "world"


@pytest.fixture
def tapvid(tmp_path: Path) -> Path:
    tracked.tapvid3d(tmp_path / "tapvid")
    return tmp_path / "tapvid"


@pytest.mark.parametrize("scaling", ["median", "sim3_closed", "per_trajectory", "none"])
def test_the_truth_scores_perfectly_on_worldtrack(scaling: str, world: Path) -> None:
    result = run(Oracle(), world, "worldtrack", scaling=scaling)
    assert not result.failed
    assert not result.skipped
    assert [row.sequence for row in result.rows] == [f"{source}/clip" for source in tracked.WORLDTRACK]
    for suffix in ("", "_dynamic"):
        assert result.means()[f"apd_world_{scaling}{suffix}"] == 1
        assert result.means()[f"epe_world_{scaling}{suffix}"] == pytest.approx(0, abs=1e-4)
        assert result.means()[f"sceneflow_strict_world_{scaling}{suffix}"] == 1
    assert result.means()["track_scale"] == pytest.approx(1, abs=1e-4)


def test_a_unit_of_its_own_is_aligned_away_and_said(world: Path, tapvid: Path) -> None:
    found = run(Oracle(unit=2.5), world, "worldtrack").means()
    assert found["epe_world_median"] == pytest.approx(0, abs=1e-4)
    assert found["track_scale"] == pytest.approx(0.4, abs=1e-4)
    assert run(Oracle(unit=2.5), world, "worldtrack", scaling="none").means()["epe_world_none"] > 1
    found = run(Oracle(unit=2.5), tapvid, "tapvid3d").means()
    assert found["apd_tapvid3d_median"] == 1
    assert found["track_scale"] == pytest.approx(0.4, abs=1e-4)
    found = run(Oracle(unit=2.5), tapvid, "tapvid3d", scaling="none").means()
    assert found["apd_tapvid3d_none"] < 0.1


def test_robust_alignment_ignores_what_a_median_does_not(world: Path) -> None:
    found = run(Oracle(unit=2.5), world, "worldtrack", scaling="sim3_ransac", sequences=("po_mini",)).means()
    assert found["epe_world_sim3_ransac"] == pytest.approx(0, abs=1e-4)


def test_the_truth_scores_perfectly_on_tapvid3d(tapvid: Path) -> None:
    result = run(Oracle(), tapvid, "tapvid3d")
    assert not result.failed
    assert [row.sequence for row in result.rows] == [f"{source}/clip" for source in tracked.TAPVID3D]
    found = result.means()
    assert found["aj_tapvid3d_median"] == found["apd_tapvid3d_median"] == found["oa_tapvid3d"] == 1


def _of_first_frame() -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """World points n t 3 of the queries, and which tracks are longer than 1 cm."""
    x, y, _ = tracked.queries().astype(int).T
    points = tracked.scene().places[:, 0, y, x].numpy().transpose(1, 0, 2)
    return points, np.linalg.norm(np.diff(points, axis=1), axis=-1).sum(1) > 0.01


def test_points_that_stand_still_score_what_is_computed_by_hand(world: Path) -> None:
    result = run(Oracle(unit=1.7, moving=False), world, "worldtrack", sequences=MOVING_CAMERAS)
    points, moving = _of_first_frame()
    still = np.repeat(points[:, :1], points.shape[1], axis=1)
    found = result.means()
    assert 0.05 < moving.mean() < 0.9
    assert found["track_dynamic_fraction"] == pytest.approx(moving.mean())
    for suffix, where in (("", np.ones_like(moving)), ("_dynamic", moving)):  # each aligned by itself
        norms = np.linalg.norm(points[where], axis=-1), np.linalg.norm(still[where], axis=-1)
        part = np.linalg.norm(still[where] * np.median(norms[0]) / np.median(norms[1]) - points[where], axis=-1)
        lengths = np.linalg.norm(points[where][:, 1:] - points[where][:, :1], axis=-1)
        assert found[f"sceneflow_epe_world_median{suffix}"] == pytest.approx(lengths.mean(), rel=2e-3)
        outliers = ((lengths > 0.3) | (lengths / (lengths + 1e-4) > 0.1)).mean()
        assert found[f"sceneflow_outliers_world_median{suffix}"] == pytest.approx(outliers, abs=2e-3)
        assert found[f"epe_world_median{suffix}"] == pytest.approx(part.mean(), rel=2e-3)
        apd = np.mean([(part <= threshold).mean() for threshold in (0.1, 0.3, 0.5, 1.0)])
        assert found[f"apd_world_median{suffix}"] == pytest.approx(apd, abs=2e-3)
    assert found["epe_world_median_dynamic"] > 0.1


def test_baselines_stand_beside_the_model(world: Path) -> None:
    result = run(Oracle(), world, "worldtrack", sequences=MOVING_CAMERAS)
    still = run(Oracle(moving=False), world, "worldtrack", sequences=MOVING_CAMERAS)
    assert result.baselines() == ["model_static", "static_points"]
    assert result.means("model_static") == pytest.approx(still.means())
    x, y, _ = tracked.queries().T
    width, height = tracked.WIDTH, tracked.HEIGHT
    plane = np.stack([(x - width / 2) / width, (y - height / 2) / height, np.ones_like(x)], axis=-1)
    points, _ = _of_first_frame()
    scale = np.median(np.linalg.norm(points, axis=-1)) / np.median(np.linalg.norm(plane, axis=-1))
    error = np.linalg.norm(plane[:, None] * scale - points, axis=-1).mean()
    assert result.means("static_points")["epe_world_median"] == pytest.approx(error, rel=2e-3)
    assert result.means("static_points")["track_scale"] == pytest.approx(scale, rel=2e-3)


def test_tapvid3d_is_of_each_frames_camera(tapvid: Path) -> None:
    """Points that stand in the world move in the camera: right where nothing moves, if the cameras are right."""
    result = run(Oracle(moving=False), tapvid, "tapvid3d").means()
    frozen = run(Oracle(frozen=True), tapvid, "tapvid3d").means()
    _, moving = _of_first_frame()
    assert 1 - moving.mean() - 0.1 < result["apd_tapvid3d_median"] < 1
    assert frozen["apd_tapvid3d_median"] < result["apd_tapvid3d_median"]


def test_visibility_counts_on_tapvid3d(tapvid: Path) -> None:
    x, y, t = tracked.queries((0, 2)).astype(int).T
    visible = tracked.scene().visible[:, t, y, x]
    found = run(Oracle(), tapvid, "tapvid3d").means("model_static")
    assert found["oa_tapvid3d"] == pytest.approx(float(visible.double().mean()))


def test_distances_are_in_pixels_of_a_picture_of_256_rows(tapvid: Path) -> None:
    """Depth wrong by d at depth z counts as z·k/f, where f is scaled so that the short side is 256 pixels."""
    known = tracked.scene()

    class Deeper(Oracle):
        def passes(self, clip: Clip) -> Iterator[Prediction]:
            for said in super().passes(clip):
                yield said if said.depth is None else dataclasses.replace(said, depth=said.depth * (1 + part))

    focal = float(known.cameras.intrinsics[0, 0, 0] * known.cameras.intrinsics[0, 1, 1]) ** 0.5 * 256 / tracked.HEIGHT
    pixel = torch.from_numpy(tracked.queries()[:, :2])
    rays = geometry.rays(known.cameras.intrinsics[0], pixel).norm(dim=-1)
    part = 3.0 / focal / float(rays.median())
    arrays = tracked.content(tracked.queries(), poses=True)
    del arrays["extrinsics_w2c"]
    for key in ("images_jpeg_bytes", "tracks_XYZ", "visibility"):
        arrays[key] = arrays[key][:1]  # nothing moves, so every error is the depth's
    tracked.write(tapvid / "adt" / "clip.npz", arrays)
    found = run(Deeper(), tapvid, "tapvid3d", scaling="none", sequences=("adt",)).means()
    errors: Tensor = rays * part * focal
    expected = np.mean([float((errors < k).double().mean()) for k in (1, 2, 4, 8, 16)])
    assert found["apd_tapvid3d_none"] == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1


def test_fewer_frames_and_intrinsics(world: Path, tapvid: Path) -> None:
    model = Oracle()
    result = run(model, world, "worldtrack", frames=3, sequences=("po_mini/clip",))
    assert [clip.images.shape[1] for clip in model.shown] == [3]
    assert result.rows[0].frames == 3
    assert "first 3 frames" in result.note
    assert all(clip.cameras is None for clip in model.shown)

    model = Oracle(hints={"intrinsics": "optional"})
    result = run(model, world, "worldtrack", intrinsics=True, sequences=("po_mini/clip",))
    assert "given the true intrinsics" in result.note
    (clip,) = model.shown
    assert clip.cameras is not None
    assert clip.cameras.known is not None
    assert not clip.cameras.known.any()
    assert clip.cameras.intrinsics_known is not None
    assert clip.cameras.intrinsics_known.all()
    torch.testing.assert_close(clip.cameras.intrinsics[0].double(), tracked.scene().cameras.intrinsics)
    with pytest.raises(UserError, match=r"takes no intrinsics \(backbone.hints\)"):
        run(Oracle(), world, "worldtrack", intrinsics=True)
    late = tracked.content(tracked.queries((3,)), poses=True)
    tracked.write(tapvid / "adt" / "clip.npz", late)
    (missing,) = run(Oracle(), tapvid, "tapvid3d", frames=2, sequences=("adt",)).failed
    assert "no track of adt/clip starts within its first 2 frames" in missing.reason


def test_what_cannot_be_scored_so_is_said_in_one_line(world: Path) -> None:
    for model in (Oracle(moves=False), StaticCamera()):
        with pytest.raises(UserError, match="predicts no motion") as caught:
            run(model, world, "worldtrack")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "worldtrack", "scaling": "mean"}, "worldtrack has median, sim3_closed"),
        ({"protocol": "tapvid3d", "scaling": "sim3_closed"}, "tapvid3d has median, mean"),
        ({"protocol": "worldtrack", "frames": 1}, "frames is 1"),
        ({"protocol": "sintel", "frames": 8}, "worldtrack.*, not sintel; leave them out"),
        ({"protocol": "sintel", "intrinsics": True}, "with tracks"),
        ({"protocol": "worldtrack", "tasks": ("pose",)}, "worldtrack has tracks"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PublishedConfig(root="x", **settings)  # pyright: ignore[reportArgumentType]


def test_every_source_counts_alike_and_is_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracked.worldtrack(tmp_path)
    for name in ("b", "c"):
        tracked.write(tmp_path / "po_mini" / f"{name}.npz", tracked.content(tracked.queries(), poses=True))
    result = run(Oracle(moving=False), tmp_path, "worldtrack")
    metric = "epe_world_median"
    each = [result.means(source=source)[metric] for source in tracked.WORLDTRACK]
    assert result.sources() == list(tracked.WORLDTRACK)
    assert result.means()[metric] == pytest.approx(np.mean(each))
    result.write(tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["sources"]["po_mini"][metric] == pytest.approx(each[2])
    assert set(content["baselines"]) == {"model_static", "static_points"}
    result.print()
    text = capsys.readouterr().out
    for words in ("mean of po_mini", "mean, static_points", "apd_world_median ↑", "epe_world_median ↓", "track_scale "):
        assert words in text
    assert "sceneflow_epe_world_median" in content["means"]
    assert "sceneflow" not in text
    assert "track_scale ↓" not in text


def test_one_damaged_clip_does_not_lose_the_others(world: Path) -> None:
    arrays = tracked.content(tracked.queries(), poses=True)
    tracked.write(world / "po_mini" / "worse.npz", arrays | {"tracks_XYZ": arrays["tracks_XYZ"][:, :3]})
    result = run(Oracle(), world, "worldtrack")
    assert len(result.rows) == 4
    (missing,) = result.failed
    assert missing.sequence == "po_mini/worse"
    assert "worse.npz: tracks_XYZ has the shape" in missing.reason


def test_predictions_that_are_not_finite_fail(world: Path) -> None:
    result = run(Oracle(unit=float("nan")), world, "worldtrack", sequences=("po_mini",))
    assert "not finite" in result.failed[0].reason


@pytest.mark.parametrize("late", [False, True])
def test_a_real_model_runs(late: bool, world: Path, tapvid: Path) -> None:
    """Loaded, with the query before the stack and after it; what is given reaches it."""
    trained = build(late=late, hints=HintsConfig(intrinsics="optional"))

    class Loaded(Model):
        """Passes are asked for, nothing else."""

        abilities, passes = trained.abilities, staticmethod(trained.passes)

        def __call__(self, clip: Clip) -> Prediction:
            raise AssertionError(f"passes are asked for, not {clip}")

    loaded = Loaded()
    plain, told = (
        run_protocol(
            loaded,
            tracked_config(world, "worldtrack", intrinsics=given),
            patch=trained.abilities.multiple,
            trained=(32, 32),
        )
        for given in (False, True)
    )
    for result in (plain, told):
        assert not result.failed
        assert len(result.rows) == 4
    assert plain.means() != told.means()
    camera = run_protocol(
        loaded, tracked_config(tapvid, "tapvid3d"), patch=trained.abilities.multiple, trained=(32, 32)
    )
    assert not camera.failed
    assert set(camera.means()) >= {"aj_tapvid3d_median", "apd_tapvid3d_median", "oa_tapvid3d"}
