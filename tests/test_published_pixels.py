"""TAP-Vid: files in the published form, and predictors whose scores are known."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from four_d.datasets.tapvid import queried, source_of
from four_d.errors import UserError
from four_d.evaluation import Published, PublishedConfig, run_protocol
from four_d.metrics.pixel_tracks import tapvid
from four_d.protocols.table import PROTOCOLS
from tests.protocols import tracked
from tests.protocols.tracked import Oracle

MODES = ("first", "strided")


def run(model: object, root: Path, mode: str, **settings: object) -> Published:
    config = PublishedConfig(protocol=f"tapvid_{mode}", root=str(root), long_side=tracked.WIDTH, **settings)  # pyright: ignore[reportArgumentType]
    return run_protocol(model, config, patch=4, trained=(32, 32))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("jpeg", [False, True])
def test_the_truth_scores_perfectly_and_points_that_stay_do_not(mode: str, jpeg: bool, tmp_path: Path) -> None:
    # of the first frame's pixels: a point first seen elsewhere is asked for between pixels, where maps are interpolated
    tracked.tapvid(tmp_path, (0,), jpeg=jpeg)
    result = run(Oracle(unit=2.5), tmp_path, mode)
    assert not result.failed
    found = result.means()
    assert (found[f"aj_tapvid_{mode}"], found[f"apd_tapvid_{mode}"], found[f"oa_tapvid_{mode}"]) == (1, 1, 1)
    still = result.means("static_pixels")
    assert 0 < still[f"apd_tapvid_{mode}"] < 1
    assert list(result.to_dict()["sources"]) == ["kinetics" if jpeg else "davis"]  # pyright: ignore[reportArgumentType]


def test_scores_equal_the_published_formulas(generator: torch.Generator) -> None:
    """Written out point by point, as TAP-Vid's paper defines them."""
    shape = 7, 9
    truth, noise = (torch.rand(*shape, 2, generator=generator).double() for _ in range(2))
    predicted = truth + (noise - 0.5) * 0.05
    visible, said, counted = (torch.rand(*shape, generator=generator) > 0.4 for _ in range(3))
    found = tapvid(predicted, said, truth, visible, counted)
    jaccard, within = [], []
    for limit in (1, 2, 4, 8, 16):
        true = false = near = positives = 0
        for n, t in counted.nonzero().tolist():
            close = float((256 * (predicted[n, t] - truth[n, t])).norm()) < limit
            positives += int(visible[n, t])
            near += int(visible[n, t] and close)
            true += int(visible[n, t] and close and said[n, t])
            false += int(said[n, t] and (not visible[n, t] or not close))
        jaccard.append(true / (positives + false))
        within.append(near / positives)
    assert found.jaccard == pytest.approx(np.mean(jaccard))
    assert found.within == pytest.approx(np.mean(within))
    assert found.occlusion == pytest.approx(float((said == visible)[counted].double().mean()))


def test_queries_of_both_modes() -> None:
    visible = np.zeros((3, 12), dtype=bool)
    visible[0, 3:9] = visible[1, 0] = visible[1, 10] = True
    tracks, frames = queried(visible, "first")
    assert (tracks.tolist(), frames.tolist()) == ([0, 1], [3, 0])
    tracks, frames = queried(visible, "strided")
    assert sorted(zip(tracks.tolist(), frames.tolist(), strict=True)) == [(0, 5), (1, 0), (1, 10)]


@pytest.mark.parametrize("mode", MODES)
def test_a_query_s_own_frame_does_not_count(mode: str, tmp_path: Path) -> None:
    tracked.tapvid(tmp_path)
    (sequence,) = PROTOCOLS[f"tapvid_{mode}"].open(tmp_path)
    assert sequence.pixel_tracks is not None
    truth = sequence.pixel_tracks()
    frames = truth.queries[:, 0].astype(int)
    assert not truth.counted[np.arange(len(frames)), frames].any()
    before = np.arange(sequence.frames) < frames[:, None]
    assert truth.counted[before].any() == (mode == "strided" and before.any())


def test_files_that_are_wrong_are_named(tmp_path: Path) -> None:
    protocol = PROTOCOLS["tapvid_first"]
    with pytest.raises(UserError, match=r"tapvid_davis.pkl"):
        protocol.open(tmp_path)
    video = tracked.tapvid(tmp_path)
    path = tmp_path / "tapvid_davis" / "tapvid_davis.pkl"
    with pytest.raises(UserError, match="there is no sequence nothing; choose from davis"):
        protocol.open(tmp_path, ("nothing",))

    def write(value: object) -> None:
        path.write_bytes(pickle.dumps(value))
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))

    for value, message in (
        ({"clip": {"video": video["video"]}}, "clip lacks occluded, points"),
        ({"clip": {**video, "points": video["points"][:, :2]}}, "clip has points"),
        (3, "holds a int"),
        ({"clip": Path("x")}, "would run pathlib"),
    ):
        write(value)
        with pytest.raises(UserError, match=message):
            protocol.open(tmp_path)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(UserError, match="cannot be read"):
        protocol.open(tmp_path)


def test_a_model_that_follows_nothing_is_refused(tmp_path: Path) -> None:
    tracked.tapvid(tmp_path)
    with pytest.raises(UserError, match="follows no points"):
        run(Oracle(moves=False), tmp_path, "first")


def test_figures_carry_the_digest_of_their_protocol(tmp_path: Path) -> None:
    tracked.tapvid(tmp_path)
    first, again, other = (run(Oracle(), tmp_path, mode) for mode in ("first", "first", "strided"))
    assert first.digest == again.digest != other.digest
    first.write(tmp_path / "scores.json")
    assert json.loads((tmp_path / "scores.json").read_text())["digest"] == first.digest
    assert first.digest in str(next(first.tables()).title)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("tapvid_davis/tapvid_davis.pkl", "davis"),
        ("davis_and_others/robotap_split0.pkl", "robotap"),
        ("tapvid_kinetics/0000_of_0010.pkl", "kinetics"),
        ("mine/clips.pkl", "clips"),
    ],
)
def test_a_file_s_own_name_tells_its_source_before_its_folder_s(path: str, source: str) -> None:
    assert source_of(Path(path)) == source
