"""A head whose output does not depend on what it is shown is found and named."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from jaxtyping import Float

from four_d import fields
from four_d.training import train
from four_d.training.module import Terms, TrainingModule
from four_d.training.record import read_metrics
from four_d.training.variation import rows, truth, variation
from four_d.types import CERTAINTY, NONE, POINT, Cameras, Clip, Example, Prediction
from tests.helpers import full
from tests.training.runs import make_data, validated


def clip(seed: int, frames: int = 3) -> Clip:
    generator = torch.Generator().manual_seed(seed)
    poses = torch.eye(4).repeat(1, frames, 1, 1)
    poses[..., :3, 3] = torch.rand(1, frames, 3, generator=generator)
    intrinsics = torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]).repeat(1, frames, 1, 1)
    return Clip(
        images=torch.rand(1, frames, 3, 16, 16, generator=generator),
        times=torch.arange(frames)[None] / 10,
        camera_ids=torch.zeros(1, frames, dtype=torch.long),
        cameras=Cameras(world_from_camera=poses, intrinsics=intrinsics),
        depth=1 + torch.rand(1, frames, 16, 16, generator=generator),
        valid=torch.rand(1, frames, 16, 16, generator=generator) > 0.3,
    )


def test_the_truth_varies_as_itself() -> None:
    clips = [clip(seed) for seed in range(4)]
    true = [rows(truth(each), each) for each in clips]
    found = variation(true, true)
    assert found["cameras"].clips == found["cameras"].frames == found["depth"].clips == found["points"].frames == 1
    # all have one field of view: nothing to compare with
    assert found["field_of_view"].same_for is None
    assert all(each.same_for is None for each in found.values())


def test_constant_outputs_are_told_from_weak_ones() -> None:
    clips = [clip(seed) for seed in range(4)]
    true = [rows(truth(each), each) for each in clips]
    mean = torch.stack([each.depth for each in clips if each.depth is not None]).mean(0)

    def seen(depth: torch.Tensor, each: Clip) -> Prediction:
        return Prediction(depth=depth, cameras=truth(clips[0]).cameras)

    constant = variation([rows(seen(mean, each), each) for each in clips], true)
    # a mean over what is valid differs a little with what is valid
    assert constant["cameras"].same_for == "clip"
    still = [Prediction(depth=each.depth[:, :1].expand(-1, 3, -1, -1)) for each in clips if each.depth is not None]
    one_of_a_clip = [dataclasses.replace(each, valid=None) for each in clips]
    found = variation([rows(p, c) for p, c in zip(still, one_of_a_clip)], [rows(truth(c), c) for c in one_of_a_clip])
    assert found["depth"].same_for == "frame"
    weak = [Prediction(depth=1.5 + 0.1 * (each.depth - 1.5)) for each in clips if each.depth is not None]
    found = variation([rows(p, c) for p, c in zip(weak, clips)], true)
    assert found["depth"].same_for is None
    assert found["depth"].clips == pytest.approx(0.1, rel=1e-4)


def test_outputs_without_truth_are_measured_by_their_size() -> None:
    clips = [dataclasses.replace(clip(seed), depth=None, cameras=None, valid=None) for seed in range(3)]
    true = [rows(truth(each), each) for each in clips]
    same = [rows(Prediction(depth=torch.full((1, 3, 16, 16), 2.0)), each) for each in clips]
    assert variation(same, true)["depth"].same_for == "clip"
    other = [rows(Prediction(depth=torch.full((1, 3, 16, 16), 2.0 + n)), each) for n, each in enumerate(clips)]
    assert variation(other, true)["depth"].same_for == "frame"
    assert variation(other[:1], true[:1])["depth"].clips != variation(other[:1], true[:1])["depth"].clips, "NaN"


def test_motion_that_is_known_of_some_frames_only_is_left_out() -> None:
    some = dataclasses.replace(
        clip(0),
        motion=torch.rand(1, 1, 2, 16, 16, 3),
        motion_valid=torch.ones(1, 1, 2, 16, 16, dtype=torch.bool),
        motion_frames=torch.tensor([[0, 2]]),
    )
    assert truth(some).motion is None
    assert rows(Prediction(motion=torch.ones(1, 1, 3, 16, 16, 3)), some)["motion"].shape[0] == 3


def test_a_run_names_the_head_that_stopped_looking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_data(tmp_path / "data")
    config = validated(data, tmp_path, loop={"max_steps": 2, "epoch_steps": 2})
    assert not train(config).constant, "too early to tell"
    assert "stopped looking" not in capsys.readouterr().err

    see = TrainingModule.terms

    def blind(self: TrainingModule, example: Example) -> tuple[Prediction, Terms]:
        prediction, terms = see(self, example)
        assert prediction.depth is not None
        unseeing = dataclasses.replace(prediction, depth=torch.ones_like(prediction.depth))
        return prediction if self.training else unseeing, terms

    monkeypatch.setattr("four_d.training.callbacks.LEAST_STEPS", 2)
    monkeypatch.setattr(TrainingModule, "terms", blind)
    config = dataclasses.replace(config, name="blind")
    assert train(config).constant == {"depth": "clip"}
    assert (
        "the output depth is the same for every clip: the head that makes it has stopped looking"
        in capsys.readouterr().err
    )
    line = next(line for line in read_metrics(config.run_folder) if line["split"] == "variation")
    assert line["depth_clips"] == pytest.approx(0, abs=1e-3)
    assert line["depth_same_for"] == "clip"


def test_every_output_of_the_package_is_watched_but_those_that_say_how_sure_another_is() -> None:
    whole = dataclasses.replace(full(Prediction, batch=(1,)), gaussians=None, key_frames=None)
    dense = {each.name for each in fields.declared(Prediction) if "f" in each.axes and not each.internal}
    unsure = {name for name in dense if not name.endswith(("_confidence", "_visible"))}
    assert {"depth", "points", "dynamic", "motion", "pixel_tracks"} <= unsure
    seen = dataclasses.replace(clip(0), valid=None)
    assert set(rows(whole, seen)) == unsure | {"cameras", "field_of_view"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hands(Prediction):
    heat: Float[torch.Tensor, "*b f h w"] | None = dataclasses.field(default=None, metadata=NONE)
    hands: Float[torch.Tensor, "*b q f fingers 3"] | None = dataclasses.field(default=None, metadata=POINT)
    heat_spread: Float[torch.Tensor, "*b f h w"] | None = dataclasses.field(default=None, metadata=NONE | CERTAINTY)
    scene: Float[torch.Tensor, "*b scenes"] | None = dataclasses.field(default=None, metadata=NONE)


def test_outputs_of_ones_own_are_watched() -> None:
    clips = [clip(seed) for seed in range(3)]

    def said(each: Clip) -> Hands:
        heat = each.images[:, :, 0].flip(-1)
        return Hands(
            heat=heat, heat_spread=torch.ones_like(heat), hands=torch.ones(1, 2, 3, 5, 3), scene=torch.ones(1, 4)
        )

    found = variation([rows(said(each), each) for each in clips], [{}] * 3)
    assert set(found) == {"heat", "hands"}
    assert found["hands"].same_for == "clip"
    assert found["heat"].same_for is None
    assert rows(said(clips[0]), clips[0])["heat"].shape == (3, 16)
    assert rows(said(clips[0]), clips[0])["hands"].shape == (3, 15)
