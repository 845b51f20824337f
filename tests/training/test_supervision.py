"""A term that the data cannot teach is named before the first step, and counted in every record."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from four_d.data.contract import RawClip
from four_d.data.loading import DataConfig
from four_d.data.shards import finalise, write_shard
from four_d.data.sources import SourceConfig, Sources
from four_d.data.views import ViewsConfig
from four_d.errors import UserError
from four_d.losses import LossConfig
from four_d.losses.camera import CameraLossConfig
from four_d.losses.dense import DepthLossConfig, PointsLossConfig
from four_d.losses.dynamic import DynamicLossConfig
from four_d.losses.gaussian import GaussianFlowLossConfig
from four_d.losses.matching import MatchingLossConfig
from four_d.losses.motion import MotionLossConfig
from four_d.losses.photometric import PhotometricLossConfig
from four_d.losses.track import TrackLossConfig
from four_d.training import train
from four_d.training.record import read_metrics
from four_d.training.supervision import unsupervised
from tests.helpers import box_clip, without_surface
from tests.training.runs import make_data, tiny, validated


def write(folder: Path, *clips: RawClip) -> SourceConfig:
    named = [dataclasses.replace(clip, key=f"clip-{i}") for i, clip in enumerate(clips)]
    write_shard(folder, 0, named, lossless=True)
    finalise(folder, folder.name)
    return SourceConfig(path=str(folder))


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SourceConfig]:
    """Data sets as users have them, each lacking something else."""
    folder = tmp_path_factory.mktemp("sources")
    whole = box_clip(0, frames=3, cameras=2, size=16)
    tracked = without_surface(box_clip(0, frames=3, cameras=1, size=16))
    posed = dataclasses.replace(
        tracked, tracks=None, dynamic=None, info=dataclasses.replace(tracked.info, track_times=None)
    )
    plain = dataclasses.replace(posed, world_from_camera=None, intrinsics=None, depth=None)
    return {
        "meshes": write(folder / "meshes", whole),
        "tracked": write(folder / "tracked", tracked),
        "posed": write(folder / "posed", posed),
        "video": write(folder / "video", plain),
        "mixed": write(folder / "mixed", posed, plain),
    }


LOSSES: dict[str, LossConfig] = {
    "camera": CameraLossConfig(),
    "depth": DepthLossConfig(),
    "points": PointsLossConfig(),
    "dynamic": DynamicLossConfig(),
    "motion": MotionLossConfig(),
    "matching": MatchingLossConfig(),
    "flow": GaussianFlowLossConfig(),
    "track": TrackLossConfig(),
    "pictures": PhotometricLossConfig(perceptual="structure"),
}


def lines(sources: dict[str, SourceConfig], *names: str, losses: dict[str, LossConfig] = LOSSES) -> dict[str, str]:
    """Messages about each loss."""
    config = DataConfig(sources={name: sources[name] for name in names})
    said = unsupervised(losses, config, Sources(config.sources))
    return {line.split()[3]: line for line in said}


@pytest.mark.parametrize(
    ("source", "idle"),
    [
        ("meshes", set()),
        ("tracked", {"track"}),
        ("posed", {"dynamic", "motion", "matching", "flow", "track"}),
    ],
)
def test_each_source_teaches_what_it_holds(sources: dict[str, SourceConfig], source: str, idle: set[str]) -> None:
    said = lines(sources, source)
    assert said.keys() == idle
    assert all("stays 0" in line for line in said.values())
    if "motion" in idle:
        assert "what it needs, motion (a surface or tracks, with cameras); add a source" in said["motion"]


def test_a_term_that_some_sources_teach_is_noted_with_their_shares(sources: dict[str, SourceConfig]) -> None:
    said = lines(sources, "meshes", "mixed")
    assert said.keys() == LOSSES.keys()
    assert said["camera"].endswith("needs cameras, and learns from part of the clips: 100% of meshes, 50% of mixed")
    assert said["track"].endswith("100% of meshes, 0% of mixed")


def test_nothing_to_learn_is_refused(sources: dict[str, SourceConfig], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no loss has its truth in data\.sources \(camera needs cameras; depth needs"):
        train(tiny(Path(sources["video"].path), tmp_path))
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="no loss has its truth"):  # one of weight 0 teaches nothing
        lines(sources, "posed", losses={"motion": MotionLossConfig(), "depth": DepthLossConfig(weight=0.0)})
    with pytest.raises(UserError, match="losses is empty"):
        lines(sources, "posed", losses={})


def test_pictures_of_two_cameras_of_one_are_noted(sources: dict[str, SourceConfig]) -> None:
    losses: dict[str, LossConfig] = {"pictures": LOSSES["pictures"]}
    chosen = {name: sources[name] for name in ("meshes", "posed")}
    for dual, expected in ((True, ["posed"]), (False, [])):
        config = DataConfig(sources=chosen, views=ViewsConfig(count=2, dual=dual))
        said = unsupervised(losses, config, Sources(config.sources))
        assert [line.split()[6].rstrip(":") for line in said if "data.views.dual has no effect on" in line] == expected


def test_every_record_counts_who_had_the_truth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make_data(tmp_path / "data", range(4), bare=1)
    config = validated(data, tmp_path, loop={"max_steps": 8, "epoch_steps": 8}, logging={"every": 8})
    train(config)
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "loss depth" in line]
    assert "75% of boxes" in said
    record, validation = [line for line in read_metrics(config.run_folder) if line["split"] in ("train", "validation")]
    # 8 images a step, clips of 2 to 4 frames: all 4 clips of the data in an average step
    assert 0.5 < record["supervised/depth"] < 1  # pyright: ignore[reportOperatorIssue]
    assert record["supervised/camera"] == record["supervised/depth"]
    assert "depth" in validation


def test_a_term_without_truth_in_the_held_out_clips_is_not_called_perfect(tmp_path: Path) -> None:
    data, bare = make_data(tmp_path / "data"), make_data(tmp_path / "bare", range(2), bare=0)
    held_out = {"validation": {"bare": {"path": str(bare)}}, "validation_clips": 1, "validation_frames": 3}
    result = train(tiny(data, tmp_path, data=held_out))
    assert result.validation.keys() == {"loss"}


def test_the_progress_line_says_a_loss_only_once_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("four_d.progress.LOG_EVERY_S", 0.0)
    from contextlib import redirect_stderr
    from io import StringIO

    with redirect_stderr(StringIO()) as said:
        config = tiny(make_data(tmp_path / "data"), tmp_path, loop={"max_steps": 5}, logging={"every": 4})
        train(config)
    shown = [line for line in said.getvalue().splitlines() if line.startswith("training test:")]
    assert [" loss " in line for line in shown] == [False, False, False, True, True]
    assert not any("nan" in line for line in shown)
    # what came after the last full record is recorded too
    told = read_metrics(config.run_folder)
    assert [line["step"] for line in told if line["split"] == "train"] == [4, 5]
