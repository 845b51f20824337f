from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from four_d.data.shards import finalise, write_shard
from tests.keypoint_scene import chain_clip

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import fit_tracks


def test_points_are_triangulated_from_the_views_that_track_them() -> None:
    """Exactly, from exact pixels; an entry that one of its views lacks is unknown, whatever the others say."""
    raw = chain_clip(1, frames=12, cameras=3, size=(24, 32))
    assert raw.keypoints is not None
    seen = np.ones_like(raw.keypoints.visible)
    seen[5, 0] = False  # once in the first camera: unknown there
    seen[:12, 1] = False  # never in the first: the other two do
    seen[:24, 2] = False  # in one camera only: nowhere
    pixels = raw.keypoints.pixels.copy()
    pixels[:12, 1] += 7  # of a view that is not used
    raw = dataclasses.replace(raw, keypoints=dataclasses.replace(raw.keypoints, visible=seen, pixels=pixels))
    points, known = fit_tracks.triangulated(raw)
    assert known[0].tolist() == [time != 5 for time in range(12)]
    assert known[1].all()
    assert not known[2].any()
    assert raw.keypoints is not None
    truth = raw.keypoints.points[:12].swapaxes(0, 1)
    np.testing.assert_allclose(points[known], truth[known], atol=1e-3)


@pytest.mark.parametrize(("pattern", "longest"), [("single", 12), ("gaps", 30)])
def test_a_quarter_is_hidden_within_the_ends(pattern: str, longest: int) -> None:
    known = np.ones((6, 100), bool)
    known[0, 50:] = False
    hidden = fit_tracks.hide(known, pattern, np.random.default_rng(0))
    assert not (hidden & ~known).any()
    assert not hidden[:, [0, -1]].any()
    share = hidden.sum(1) / known.sum(1)
    assert ((share >= 0.25) & (share < 0.25 + fit_tracks.GAP / known.sum(1))).all()
    runs = [len(run) for row in hidden for run in "".join(".#"[int(each)] for each in row).split(".") if run]
    assert max(runs) <= longest
    assert (np.median(runs) >= fit_tracks.GAP) == (pattern == "gaps")


def test_the_script_prints_a_table_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "shards", 0, [chain_clip(1, frames=24, cameras=2, size=(24, 32))])
    finalise(tmp_path / "shards", "chains")
    picture = tmp_path / "picture.png"
    words = ["fit_tracks.py", str(tmp_path / "shards"), "--rigid", "root:left_knee", "--picture", str(picture)]
    monkeypatch.setattr(sys, "argv", [*words, "--seeds", "1", "--steps", "2"])
    fit_tracks.main()
    told = capsys.readouterr().out
    rows = re.findall(r"\| straight lines \| ([0-9.]+) ± 0.00 \| ([0-9.]+) ", told)
    assert len(rows) == 2  # hidden singly, and in gaps
    assert 0 < float(rows[0][0]) < float(rows[1][0])
    assert len(re.findall(r"\| SIREN, acceleration 100, bone 10 \|", told)) == 2
    assert picture.stat().st_size > 10_000
