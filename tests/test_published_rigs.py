"""MVTracker's protocol with predictors whose scores are known, on files in the sets' own layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from four_d.datasets import rig_tracks
from four_d.datasets.sequence import RigTracks
from four_d.errors import UserError
from four_d.evaluation import Published, PublishedConfig, run_protocol
from four_d.metrics.published import RIG_ALIGNMENTS, RIG_SCORES
from four_d.protocols.table import PROTOCOLS
from tests.protocols import multi_view, rigs
from tests.protocols.rigs import RigOracle, mvtracker_kubric
from tests.protocols.tracked import Oracle

PROTOCOL = "mvtracker_kubric"
BETTER_AT_ONE = ("aj", "apd", "oa", "survival")


def run(model: object, root: Path, **settings: object) -> Published:
    config = PublishedConfig(
        protocol=PROTOCOL,
        root=str(root),
        sequences=("0",),
        long_side=rigs.WIDTH,
        **settings,  # pyright: ignore[reportArgumentType]
    )
    return run_protocol(model, config, patch=4, trained=(32, 32))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("rigs")
    mvtracker_kubric(place)
    return place


def truth() -> RigTracks:
    queries, points, seen = rigs.tracks()
    kept = [track for track, query in enumerate(queries) if seen[:, query:, track].any(0).sum() >= 2]
    return RigTracks(
        queries=queries[kept], points=points[:, kept].transpose(1, 0, 2), visible=seen[..., kept].transpose(0, 2, 1)
    )


def _seen(known: RigTracks) -> NDArray[np.bool_]:
    """n t: seen by any view."""
    return np.asarray(known.visible.any(0))


@pytest.mark.parametrize("scaling", RIG_ALIGNMENTS)
def test_the_truth_scores_perfectly(scaling: str, root: Path) -> None:
    result = run(RigOracle(), root, scaling=scaling)
    assert not result.failed
    assert not result.skipped
    found = result.means()
    groups = ("", "_static", "_dynamic", "_balanced")
    for suffix in groups:
        for word in RIG_SCORES.values():
            perfect = 1.0 if word in BETTER_AT_ONE else 0.0
            assert found[f"{word}_mvtracker_{scaling}{suffix}"] == pytest.approx(perfect, abs=1e-4), (word, suffix)
    assert found["track_scale"] == pytest.approx(1, abs=1e-5)


def test_true_cameras_bring_a_unit_of_its_own_to_the_sets_world(root: Path) -> None:
    found = run(RigOracle(unit=2.5), root).means()
    assert found["ate_mvtracker_cameras"] == pytest.approx(0, abs=2e-5)
    assert found["track_scale"] == pytest.approx(0.4, abs=1e-5)
    assert run(RigOracle(unit=2.5), root, scaling="none").means()["ate_mvtracker_none"] > 1
    (missing,) = run(RigOracle(still=True), root).skipped
    assert "stand in one place" in missing.reason
    assert "scaling=sim3_closed" in missing.reason


@pytest.mark.parametrize("wrong", [0.3, 0.6])
def test_displacements_that_err_score_what_is_computed_by_hand(wrong: float, root: Path) -> None:
    """An error after the query, none at it: distances within .05, .1, .2, .4, .8; lost beyond .5."""
    found, known = run(RigOracle(wrong=wrong), root).means(), truth()
    counts = np.array([visible[query:].sum() for visible, query in zip(_seen(known), known.queries, strict=True)])
    within = {0.3: 2, 0.6: 1}[wrong] / 5
    assert found["apd_mvtracker_cameras"] == pytest.approx(within)
    assert found["aj_mvtracker_cameras"] == pytest.approx(within)
    assert found["oa_mvtracker_cameras"] == 1
    assert found["fde_mvtracker_cameras"] == pytest.approx(wrong, abs=1e-4)
    assert found["ate_mvtracker_cameras"] == pytest.approx((wrong * (counts - 1) / counts).mean(), abs=1e-4)
    assert found["mte_mvtracker_cameras"] == pytest.approx((wrong * (counts > 2)).mean(), abs=1e-4)
    lost = [
        (np.flatnonzero(visible[query + 1 :])[0] + 1) / (rigs.TIMES - query)
        for visible, query in zip(_seen(known), known.queries, strict=True)
    ]
    assert found["survival_mvtracker_cameras"] == pytest.approx(1 if wrong < 0.5 else np.mean(lost))


def test_standing_still_and_copying_the_query_stand_beside_the_model(root: Path) -> None:
    result, known = run(RigOracle(), root), truth()
    assert result.baselines() == ["model_static", "copycat"]
    own = known.points[np.arange(len(known.queries)), known.queries]
    errors = np.linalg.norm(known.points - own[:, None], axis=-1)
    ate, moved = [], []
    for track, query in enumerate(known.queries):
        seen = known.visible[:, track].any(0) & (np.arange(rigs.TIMES) >= query)
        ate.append(errors[track, seen].mean())
        moved.append(np.linalg.norm(np.diff(known.points[track, seen], axis=0), axis=-1).sum())
    dynamic = np.array(moved) > 0.1
    assert 0 < dynamic.mean() < 1
    for name in result.baselines():
        found = result.means(name)
        assert found["ate_mvtracker_cameras"] == pytest.approx(np.mean(ate), abs=1e-4)
        assert found["ate_mvtracker_cameras_dynamic"] == pytest.approx(np.mean(np.array(ate)[dynamic]), abs=1e-4)
        assert found["aj_mvtracker_cameras_dynamic"] < found["aj_mvtracker_cameras_static"]
        half = (found["ate_mvtracker_cameras_dynamic"] + found["ate_mvtracker_cameras_static"]) / 2
        assert found["ate_mvtracker_cameras_balanced"] == pytest.approx(half)


def test_figures_say_alignment_and_digest(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [run(RigOracle(), root, scaling=scaling) for scaling in RIG_ALIGNMENTS]
    assert len({result.digest for result in results}) == len(RIG_ALIGNMENTS)
    results[0].print()
    text = "".join(capsys.readouterr().out.split())
    assert results[0].digest in text
    assert "tracksalignedbycameras" in text
    assert "aj_mvtracker_cameras_dynamic↑" in text


def test_fewer_times_and_given_intrinsics(root: Path) -> None:
    result = run(RigOracle(hints=("intrinsics",)), root, frames=2, intrinsics=True)
    assert result.rows[0].frames == 2 * rigs.VIEWS
    assert result.means()["aj_mvtracker_cameras"] == 1
    with pytest.raises(UserError, match="takes no intrinsics"):
        run(RigOracle(), root, intrinsics=True)
    with pytest.raises(UserError, match="predicts no motion"):
        run(Oracle(moves=False), root)


def test_windows_are_of_times_and_hold_all_views(root: Path) -> None:
    result = run(RigOracle(unit=2.5), root, window=(3, 1))
    assert not result.failed
    assert "in windows of 3 frames" in result.note
    found = result.means()
    assert found["apd_mvtracker_cameras"] > 0.97  # a track goes on from a pixel, which may lie at an edge
    assert found["ate_mvtracker_cameras_static"] < 0.02


def test_fewer_scenes_than_the_protocols_are_an_error(root: Path) -> None:
    with pytest.raises(UserError, match=r"has 1 of 30 scenes.*sequences="):
        PROTOCOLS[PROTOCOL].open(root)


def test_the_draw_is_not_made_anew(tmp_path: Path) -> None:
    mvtracker_kubric(tmp_path)
    (tmp_path / "0" / "cache" / rig_tracks.KUBRIC_CACHE).unlink()
    with pytest.raises(UserError, match=r"cachedtracks--seed72.*expected layout"):
        PROTOCOLS[PROTOCOL].open(tmp_path, ("0",))


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("points", np.zeros((3, 2, 3)), "is of 3 frames, and the scene has 4"),
        ("asked", np.array([[1.0, 0, 0, 0], [9, 0, 0, 0]]), "when no view sees it"),
        ("seen", np.zeros((4, 4, 2), bool), "when no view sees it"),
        ("points", np.full((4, 2, 3), np.nan), "not finite where a view sees"),
        ("asked", np.zeros((2, 3)), "not t n 3"),
    ],
)
def test_damaged_tracks_are_named(part: str, value: np.ndarray, message: str, tmp_path: Path) -> None:
    mvtracker_kubric(tmp_path)
    parts: dict[str, Any] = {
        "points": np.zeros((4, 2, 3)),
        "seen": np.ones((4, 4, 2), bool),
        "asked": np.zeros((2, 4)),
    } | {part: value}
    if len(parts["points"]) == 3:
        parts["seen"] = np.ones((4, 3, 2), bool)
    rigs.cached(tmp_path / "0", rig_tracks.KUBRIC_CACHE, **parts)
    (sequence,) = PROTOCOLS[PROTOCOL].open(tmp_path, ("0",))
    assert sequence.rig_tracks is not None
    with pytest.raises(UserError, match=message):
        sequence.rig_tracks()


@pytest.mark.parametrize("name", ["panoptic", "dexycb"])
def test_panoptic_studio_and_dexycb(name: str, tmp_path: Path) -> None:
    """Of more views than four only the protocol's are taken, in its order."""
    multi_view.rig(name, tmp_path)
    cache = rig_tracks.PANOPTIC_CACHE if name == "panoptic" else rig_tracks.DEXYCB_CACHE
    points, seen = np.arange(12.0).reshape(2, 2, 3), np.zeros((4, 2, 2), bool)
    seen[2, 0, 0] = seen[3, 1] = True
    points[0, 1] = np.nan  # no view sees it
    rigs.cached(tmp_path / "boxes", cache, points, seen, np.array([[0.0, 0, 0, 0], [1, 0, 0, 0]]))
    (sequence,) = PROTOCOLS[f"mvtracker_{name}"].open(tmp_path, ("boxes",))
    assert sequence.camera_ids == (0, 0, 1, 1, 2, 2, 3, 3)
    assert sequence.tasks == ("rig_tracks",)
    assert sequence.cameras is not None
    assert sequence.rig_tracks is not None
    expected = [1, 7, 14, 20] if name == "panoptic" else [0, 1, 2, 3]
    assert sequence.cameras().world_from_camera[::2, 0, 3].tolist() == expected
    tracks = sequence.rig_tracks()
    assert tracks.queries.tolist() == [0, 1]
    np.testing.assert_array_equal(tracks.points[0], points[:, 0])
    np.testing.assert_array_equal(tracks.points[1], [[0, 0, 0], points[1, 1]])
    np.testing.assert_array_equal(tracks.visible, seen.transpose(0, 2, 1))
    assert len(sequence.images()) == 8
