"""``four-d data import fit``: a fitted scene is data like any other, checked, shown and trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from four_d.cli.program import main
from four_d.data.check import check
from four_d.data.contract import RawClip
from four_d.data.shards import ShardReader
from four_d.fitting import fit
from four_d.geometry import project
from four_d.training.run import train
from four_d.types import Cameras
from tests.test_scene import FRAMES, SIZE, SMALL, footage
from tests.training.runs import tiny


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fits")
    fit(footage(folder / "video"), folder / "a fox", SMALL)
    return folder / "a fox"


def read(folder: Path) -> RawClip:
    with ShardReader(folder) as reader:
        assert len(reader) == 1
        return reader.read(0)


def test_a_fit_becomes_a_clip_that_passes_is_shown_and_trains(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "shards"
    assert main(["data", "import", "fit", str(fitted), str(out), "--licence", "CC0-1.0"]) == 0
    assert f"1 clips, {FRAMES} frames" in capsys.readouterr().out
    clip = read(out)
    assert (clip.key, clip.info.source, clip.info.licence) == ("a-fox", "fits", "CC0-1.0")
    report = check(out)
    assert report.ok, report.table()
    assert main(["data", "show", str(out), "--out", str(tmp_path / "pictures")]) == 0
    assert any((tmp_path / "pictures").iterdir())
    run = tiny(
        out, tmp_path / "runs", loop={"max_steps": 3, "epoch_steps": 3, "precision": "fp32", "accelerator": "cpu"}
    )
    assert train(run).steps == 3


def test_depth_tracks_and_cameras_belong_together(fitted: Path, tmp_path: Path) -> None:
    main(["data", "import", "fit", str(fitted), str(tmp_path / "shards")])
    clip = read(tmp_path / "shards")
    assert clip.depth is not None
    assert clip.dynamic is not None
    assert clip.tracks is not None
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    assert not (clip.depth[~clip.dynamic]).any(), "of the object alone"
    assert (clip.depth > 0).mean() > 0.5 * clip.dynamic.mean()
    known = clip.depth[clip.depth > 0]
    assert 1.5 < np.median(known) < 3.5, "the object's radius is 1, three of which the cameras are away"
    cameras = Cameras(
        world_from_camera=torch.from_numpy(clip.world_from_camera), intrinsics=torch.from_numpy(clip.intrinsics)
    )
    pixels, z = project(torch.from_numpy(clip.tracks.points).double().movedim(1, 0), cameras)
    seen = torch.from_numpy(clip.tracks.visible).T
    assert seen.sum() > 50
    column, row = pixels[seen].long().unbind(-1)
    frame = seen.nonzero()[:, 0]
    at = torch.from_numpy(clip.depth)[frame, row.clamp(0, SIZE - 1), column.clamp(0, SIZE - 1)]
    assert ((z[seen] - at).abs() < 0.03 * at).all()


def test_an_import_goes_on_and_refuses_what_changed(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["data", "import", "fit", str(fitted), str(tmp_path / "shards")]
    assert main(words) == 0
    before = {each.name: each.read_bytes() for each in (tmp_path / "shards").iterdir()}
    assert main(words) == 0
    assert before == {each.name: each.read_bytes() for each in (tmp_path / "shards").iterdir()}
    assert main([*words, "--licence", "mine"]) != 0
    assert "with another licence" in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert main(["data", "import", "fit", str(tmp_path / "none"), str(tmp_path / "other")]) != 0
    assert "none holds no fitted scene; give the folder of a four-d fit" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main(["data", "import", "fit", str(fitted), str(fitted), str(tmp_path / "two")]) != 0
    assert "two clips would have the key a-fox" in capsys.readouterr().err
