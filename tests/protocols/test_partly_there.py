"""Sets of which a part is missing: what is there is read, and what is not is said."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_prep.importers.datasets import import_dataset
from data_prep.importers.sequences import Settings
from four_d.cli import program
from four_d.data.shards import ShardReader
from four_d.datasets import rgbd
from four_d.datasets.exr import _chosen
from four_d.datasets.lens import Lens
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from tests.protocols import written
from tests.protocols.written import HEIGHT, WIDTH, world


def test_one_missing_depth_file_of_scannet_costs_one_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And a missing image leaves the others their times."""
    written.scannet(tmp_path, frames=6)
    scene = tmp_path / "scene0707_00"
    for i in range(6):
        written.png16(scene / "depth" / f"{i}.png", world().depth[i % 4], 1000)
    (scene / "depth" / "4.png").unlink()
    (scene / "color" / "2.jpg").unlink()
    (sequence,) = DATASETS["scannet"].open(tmp_path)
    assert sequence.times == pytest.approx([i / 30 for i in (0, 1, 3, 4, 5)])
    assert sequence.depth is not None
    _, valid = sequence.depth()
    assert valid.any((1, 2)).tolist() == [True, True, True, False, True]
    assert "has no file for 1 of 5 images (4.png): these have none" in capsys.readouterr().err
    for path in (scene / "depth").iterdir():
        path.unlink()
    (sequence,) = DATASETS["scannet"].open(tmp_path)
    assert sequence.depth is None


def test_depth_of_7_scenes_that_is_not_registered_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written.seven_scenes(tmp_path / "a", frames=1)
    DATASETS["seven_scenes"].open(tmp_path / "a")
    assert capsys.readouterr().err == ""
    written.seven_scenes(tmp_path / "b", frames=1, depth="depth.png")
    DATASETS["seven_scenes"].open(tmp_path / "b")
    assert "has no depth.proj.png, so depth is depth.png as downloaded" in capsys.readouterr().err


def test_tum_without_depth_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written.tum(tmp_path)
    (sequence,) = DATASETS["tum"].open(tmp_path)
    assert sequence.depth is None
    assert "has no depth.txt: only images and poses are read" in capsys.readouterr().err


def test_images_and_depth_of_bonn_are_imported_without_distortion(tmp_path: Path) -> None:
    written.bonn(tmp_path / "src", frames=4)
    lens = Lens.of(
        np.array([[542.822841, 0, 315.593520], [0, 542.576870, 237.756098], [0, 0, 1]]), rgbd.BONN_DISTORTION, "a"
    )
    straight = lens.undistort_images(list(world().images))
    assert (straight != world().images).any()
    import_dataset(DATASETS["bonn"], tmp_path / "src", tmp_path / "out", Settings(), checked=False)
    with ShardReader(tmp_path / "out") as reader:
        clip = reader.read(0)
    assert np.abs(clip.images.astype(int) - straight).mean() < 4
    assert clip.depth is not None
    seen = clip.depth > 0
    assert 0 < seen.mean() < 1
    np.testing.assert_allclose(clip.depth[seen], lens.undistort_maps(world().depth)[seen], atol=0.002)
    assert clip.images.shape == (4, HEIGHT, WIDTH, 3)


def test_notes_are_printed_by_the_import(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written.scannet(tmp_path / "src", frames=2)
    assert program.main(["data", "import", "scannet", str(tmp_path / "src"), str(tmp_path / "out")]) == 0
    assert f"scannet: {DATASETS['scannet'].notes}" in capsys.readouterr().err


def test_the_channel_of_depth_is_chosen_by_name() -> None:
    kind = np.dtype("<f4")

    def chosen(*names: str) -> str:
        return names[_chosen([(name, kind) for name in names])]

    assert chosen("whatever") == "whatever"
    assert chosen("A", "Z") == "Z"
    assert chosen("A", "B", "G", "R") == "R"
    assert chosen("ViewLayer.Combined.A", "ViewLayer.Combined.R", "ViewLayer.Depth.Z") == "ViewLayer.Depth.Z"
    assert chosen("A", "Y") == "Y"
    with pytest.raises(ValueError, match="none of its channels, A, N, is one of Z, DEPTH"):
        chosen("A", "N")


def test_depth_of_sky_is_told_by_the_sources_rule() -> None:
    """The last count of 16 bits in the raw sets; 655 m and more in CUT3R's form of Virtual KITTI 2."""
    from four_d.datasets import cut3r, pointodyssey, vkitti2

    assert vkitti2.FARTHEST < 655.35 <= vkitti2.FARTHEST + 0.011
    assert pointodyssey.FARTHEST < 1000
    assert 65534 / pointodyssey.COUNTS <= pointodyssey.FARTHEST
    assert pytest.approx(654.99) == cut3r.VKITTI2_FARTHEST


@pytest.mark.parametrize("name", ["cut3r_mvs_synth", "cut3r_hoi4d"])
def test_licences_that_nobody_checked_say_so_and_count_as_unknown(name: str) -> None:
    licences = DATASETS[name].licences
    assert len(licences) > 1  # what its hub says, and what others say
    assert any("not checked" in each.text or "not seen" in each.said_by for each in licences)
    assert min(each.strictness for each in licences) == 0


def test_a_set_that_is_not_json_is_an_error_once(tmp_path: Path) -> None:
    written.dycheck(tmp_path, frames=1)
    (tmp_path / "apple" / "extra.json").write_text("{")
    with pytest.raises(UserError, match=r"extra\.json is not readable JSON") as caught:
        DATASETS["dycheck"].open(tmp_path)
    assert "UserError" not in str(caught.value)
