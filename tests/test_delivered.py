"""Evaluation shows a model what `four-d infer` shows it: any number of frames, of which no head stops the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from four_d.data.shards import finalise, write_shard
from four_d.evaluation import EvaluationConfig, PublishedConfig, run, run_protocol
from four_d.inference import LoadedModel
from four_d.types import Clip
from four_d.windows.clips import ClipSource, as_given
from four_d.windows.cut import Cut
from four_d.windows.sliding import Sliding
from tests.helpers import box_clip
from tests.protocols import written
from tests.test_segments import POSED, TINY, loaded, pictures

HEADS = {"depth", "pose", "points", "mask", "motion", "render"}


@pytest.fixture(scope="module")
def unified() -> LoadedModel:
    return loaded(["overlays/unified_mini"], TINY)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("boxes")
    write_shard(root, 0, [box_clip(0, frames=9, cameras=2, size=16)])
    finalise(root, "boxes")
    return root


@pytest.mark.parametrize("settings", [{"frames": 8}, {"frames": 4, "cameras": 2}])
def test_every_head_is_scored_on_any_number_of_frames(
    unified: LoadedModel, shards: Path, settings: dict[str, int]
) -> None:
    assert unified.abilities.times == 6
    config = EvaluationConfig(data=str(shards), clips=1, lpips_weights=None, **settings)
    scores = run(unified, config).rows["model"]
    assert {name.partition("_")[0] for name in scores} >= HEADS
    assert scores["render_psnr"].videos == 1


def test_long_runs_pairs_and_windows_take_any_number_of_frames(unified: LoadedModel, shards: Path) -> None:
    config = EvaluationConfig(data=str(shards), clips=1, tasks=("tracks",), track_frames=9)
    assert "track_epe" in run(unified, config).rows["model"]
    config = EvaluationConfig(data=str(shards), clips=1, tasks=("pose",), frames=3, pairwise=True)
    assert "pose_rot_pairs_deg" in run(unified, config).rows["model"]
    given = EvaluationConfig(
        data=str(shards), clips=1, tasks=("pictures",), frames=8, hints=("intrinsics", "poses"), lpips_weights=None
    )
    posed = loaded(["overlays/dgs_lrm_mini"], POSED)
    assert run(posed, given).rows["model"]["render_psnr"].videos == 1


@pytest.mark.parametrize("count", [1, 4, 7])
def test_a_clip_is_cut_as_a_video_is(unified: LoadedModel, count: int) -> None:
    result = unified(pictures(count), tracks=False)
    clip = Clip(
        images=result.images,
        times=torch.tensor(result.times),
        camera_ids=torch.zeros(count, dtype=torch.long),
    )
    source = ClipSource(model=unified, clip=clip, prepare=as_given("cpu"))
    sliding = Sliding(source, Cut.of(6), unified.abilities, tracks=False)
    sliding.collect()
    found = sliding.segments()
    assert [segment.start for segment in found] == pytest.approx([segment.start for segment in result.gaussians])
    for one, other in zip(found, result.gaussians, strict=True):
        assert one.gaussians.means.shape == other.gaussians.means.shape
        torch.testing.assert_close(one.gaussians.offset_times, other.gaussians.offset_times)
        torch.testing.assert_close(one.gaussians.opacities, other.gaussians.opacities)  # no camera changes these


@pytest.mark.parametrize("frames", [1, 3, 8])
def test_a_folder_of_any_number_of_pictures(unified: LoadedModel, tmp_path: Path, frames: int) -> None:
    known = written.world(8)
    for index in range(frames):
        written.picture(tmp_path / "set" / "images" / f"{index:03d}.png", known.images[index])
        written.png16(tmp_path / "set" / "depth" / f"{index:03d}.png", known.depth[index], 1000)
    result = run_protocol(
        unified, PublishedConfig(protocol="folder", root=str(tmp_path / "set")), patch=8, trained=(24, 24)
    )
    assert not result.failed
    assert {row.task for row in result.rows} == {"video_depth", "depth"}
    assert np.isfinite(list(result.means().values())).all()
    assert "long side 24 " in result.note
