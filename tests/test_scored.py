"""What evaluation scores of a run of several windows is what inference delivers for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from four_d.evaluation.published import Runner
from four_d.evaluation.published_config import PublishedConfig
from four_d.evaluation.runs import Run, RunInputs, run_tracks
from four_d.inference import LoadedModel, Result
from four_d.protocols.table import PROTOCOLS
from four_d.types import Clip, Prediction
from four_d.windows.cut import Cut
from tests.test_windows import SIZE, Oracle, numbered, truth

FRAMES = 26
WINDOWS = Cut(frames=12, overlap=5)
QUERIES = [(0.0, 8.0, 6.0), (0.0, 6.5, 7.25), (3.0, 7.0, 5.0), (9.0, 10.0, 6.5)]


class Drifting(Oracle):
    """What it says of a window depends on where that begins: units, depths (a bent world) and speeds differ."""

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        start = float((clip.images[0, 0, 0, 0, 0] * 255).round())
        for each in super().passes(clip):
            depth = None if each.depth is None else each.depth * (1 + 0.002 * start * torch.linspace(0, 1, SIZE[1]))
            motion = None if each.motion is None else each.motion * (1 + start / 40)
            yield dataclasses.replace(each, depth=depth, motion=motion)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    """Reads its frames' colours, which a pass without values (`memory.check_fits`) has not."""
    monkeypatch.setattr(LoadedModel, "check_fits", lambda *_: None)
    return Drifting(truth(FRAMES), speed=0.05).loaded()


def delivered(model: LoadedModel) -> Result:
    return model(numbered(FRAMES), points=QUERIES, window=WINDOWS.frames, overlap=WINDOWS.overlap)


def clip_of(result: Result) -> Clip:
    whole = truth(FRAMES)
    assert whole.cameras is not None
    assert whole.depth is not None
    poses, lenses = whole.cameras.world_from_camera.float(), whole.cameras.intrinsics.float()
    return Clip(
        images=result.images,
        times=torch.tensor(result.times),
        camera_ids=torch.zeros(FRAMES, dtype=torch.long),
        cameras=dataclasses.replace(whole.cameras, world_from_camera=poses, intrinsics=lenses),
        depth=whole.depth.float(),
        valid=whole.depth > 0,
    )


def as_long(lengths: Tensor, others: Tensor) -> Tensor:
    """In the unit of the others: evaluation brings all lengths to the truth by one factor."""
    return lengths * (others.norm() / lengths.norm())


def test_tracks_of_dense_motion(model: LoadedModel) -> None:
    assert len(WINDOWS.plan(FRAMES)) == 3
    result = delivered(model)
    assert result.tracks is not None
    run = Run(key="ball", clip=clip_of(result))
    scored = run_tracks(model, run, torch.tensor(QUERIES), RunInputs(), WINDOWS)
    assert scored is not None
    torch.testing.assert_close(as_long(scored.points, result.tracks.points), result.tracks.points, atol=1e-5, rtol=1e-5)
    assert torch.equal(scored.visible, result.tracks.visible > 0.5)
    at_once = run_tracks(model, run, torch.tensor(QUERIES), RunInputs(), Cut(frames=FRAMES, overlap=1))
    assert at_once is not None
    assert (as_long(at_once.points, scored.points) - scored.points).abs().max() > 0.05, "windows matter"


def test_depth_and_cameras(model: LoadedModel) -> None:
    result = delivered(model)
    config = PublishedConfig(protocol="folder", root=".", window=(12, 7), device="cpu")
    runner = Runner(model=model, protocol=PROTOCOLS["folder"], config=config, patch=4, long_side=max(SIZE))
    found = runner.predict(numbered(FRAMES), tuple(result.times))
    assert found.depth is not None
    assert result.depth is not None
    torch.testing.assert_close(found.depth, result.depth, atol=1e-5, rtol=1e-5)
    assert found.cameras is not None
    assert result.prediction.cameras is not None
    torch.testing.assert_close(
        found.cameras.world_from_camera, result.prediction.cameras.world_from_camera, atol=1e-5, rtol=0
    )
