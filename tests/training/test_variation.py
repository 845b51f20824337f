"""A head whose output does not depend on what it is shown is found and named."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from jaxtyping import Float

from four_d import fields
from four_d.geometry import unproject
from four_d.heads.keypoint import KeypointPrediction
from four_d.training import train
from four_d.training.module import Terms, TrainingModule
from four_d.training.record import read_metrics
from four_d.training.variation import LEAST_OF_SIZE, LEAST_OF_TRUTH, Variation, rows, variation
from four_d.types import CERTAINTY, NONE, POINT, Cameras, Clip, Example, Keypoints, Prediction, truth
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


def perfect(each: Clip) -> Prediction:
    points = None if each.cameras is None or each.depth is None else unproject(each.depth, each.cameras)
    return Prediction(cameras=each.cameras, depth=each.depth, points=points)


def compared(predictions: list[Prediction], clips: list[Clip]) -> dict[str, Variation]:
    return variation(*zip(*(rows(prediction, each) for prediction, each in zip(predictions, clips, strict=True))))


def test_the_truth_varies_as_itself() -> None:
    clips = [clip(seed) for seed in range(4)]
    found = compared([perfect(each) for each in clips], clips)
    assert {name: each.least for name, each in found.items()} == dict.fromkeys(found, LEAST_OF_TRUTH)
    assert found["cameras"].clips == found["cameras"].frames == found["depth"].clips == found["points"].frames == 1
    # all have one field of view: nothing to compare with
    assert found["field_of_view"].same_for is None
    assert all(each.same_for is None for each in found.values())


def test_constant_outputs_are_told_from_weak_ones() -> None:
    clips = [clip(seed) for seed in range(4)]
    mean = torch.stack([each.depth for each in clips if each.depth is not None]).mean(0)
    constant = compared([Prediction(depth=mean, cameras=clips[0].cameras)] * 4, clips)
    # a mean over what is valid differs a little with what is valid
    assert constant["cameras"].same_for == "clip"
    still = [Prediction(depth=each.depth[:, :1].expand(-1, 3, -1, -1)) for each in clips if each.depth is not None]
    assert compared(still, [dataclasses.replace(each, valid=None) for each in clips])["depth"].same_for == "frame"
    weak = [Prediction(depth=1.5 + 0.1 * (each.depth - 1.5)) for each in clips if each.depth is not None]
    found = compared(weak, clips)
    assert found["depth"].same_for is None
    assert found["depth"].clips == pytest.approx(0.1, rel=1e-4)


def test_outputs_without_truth_are_measured_by_their_size() -> None:
    clips = [dataclasses.replace(clip(seed), depth=None, cameras=None, valid=None) for seed in range(3)]
    same = [Prediction(depth=torch.full((1, 3, 16, 16), 2.0)) for _ in clips]
    assert compared(same, clips)["depth"].same_for == "clip"
    assert compared(same, clips)["depth"].least == LEAST_OF_SIZE
    other = [Prediction(depth=torch.full((1, 3, 16, 16), 2.0 + n)) for n in range(3)]
    assert compared(other, clips)["depth"].same_for == "frame"
    assert math.isnan(compared(other[:1], clips[:1])["depth"].clips)


def test_motion_that_is_known_of_some_frames_only_is_left_out() -> None:
    some = dataclasses.replace(
        clip(0),
        motion=torch.rand(1, 1, 2, 16, 16, 3),
        motion_valid=torch.ones(1, 1, 2, 16, 16, dtype=torch.bool),
        motion_frames=torch.tensor([[0, 2]]),
    )
    own, true = rows(Prediction(motion=torch.ones(1, 1, 3, 16, 16, 3)), some)
    assert own["motion"].shape[0] == 3
    assert "motion" not in true
    whole = dataclasses.replace(some, motion=torch.rand(1, 1, 3, 16, 16, 3), motion_valid=None, motion_frames=None)
    assert "motion" in rows(Prediction(motion=torch.ones(1, 1, 3, 16, 16, 3)), whole)[1]
    assert "motion" not in rows(Prediction(motion=torch.ones(1, 2, 3, 16, 16, 3)), whole)[1], "of other query times"


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
    assert set(rows(whole, seen)[0]) == unsure | {"cameras", "field_of_view"}


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

    found = compared([said(each) for each in clips], clips)
    assert set(found) == {"heat", "hands"}
    assert found["hands"].same_for == "clip"
    assert found["heat"].same_for is None
    own, true = rows(said(clips[0]), clips[0])
    assert own["heat"].shape == (3, 16)
    assert own["hands"].shape == (3, 15)
    assert not true


def red(each: Clip) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    return each.images[:, :, 0], each.valid


@dataclasses.dataclass(frozen=True, kw_only=True)
class Redness(Prediction):
    redness: Float[torch.Tensor, "*b f h w"] | None = dataclasses.field(default=None, metadata=NONE | truth(red))


def test_an_output_of_ones_own_is_measured_by_the_truth_that_it_declares() -> None:
    """A hundredth of the truth's variation is none, though it is more than a thousandth of the output's size."""
    clips = [clip(seed) for seed in range(4)]
    faint = compared([Redness(redness=0.5 + 0.01 * (each.images[:, :, 0] - 0.5)) for each in clips], clips)["redness"]
    assert faint.least == LEAST_OF_TRUTH
    assert faint.clips == pytest.approx(0.01, rel=1e-3)
    assert faint.same_for == "clip"
    assert compared([Redness(redness=0.1 * each.images[:, :, 0]) for each in clips], clips)["redness"].same_for is None


def test_masks_and_keypoints_are_measured_by_their_truth() -> None:
    def known(seed: int) -> Clip:
        generator = torch.Generator().manual_seed(seed)
        valid = torch.ones(1, 3, 5, dtype=torch.bool)
        valid[:, 1, 2] = False
        flags = torch.zeros(1, 0, dtype=torch.bool)
        return dataclasses.replace(
            clip(seed),
            dynamic=torch.rand(1, 3, 16, 16, generator=generator) > 0.5,
            dynamic_known=torch.tensor([[True, True, False]]),
            keypoints=Keypoints(
                names=torch.ones(1, 5, 4, dtype=torch.long),
                instances=torch.zeros(1, 5, dtype=torch.long),
                points=torch.rand(1, 3, 5, 3, generator=generator),
                valid=valid,
                pixels=16 * torch.rand(1, 3, 5, 2, generator=generator),
                pixels_valid=valid,
                visible=valid,
                edges=torch.zeros(1, 0, 2, dtype=torch.long),
                rigid=flags,
            ),
        )

    def said(each: Clip, share: float) -> Prediction:
        assert each.dynamic is not None
        assert each.keypoints is not None
        return KeypointPrediction(
            dynamic=0.5 + share * (each.dynamic.float() - 0.5),
            keypoints=0.5 + share * (each.keypoints.points - 0.5),
            keypoint_pixels=8 + share * (each.keypoints.pixels - 8),
        )

    clips = [known(seed) for seed in range(4)]
    faint, seen = (compared([said(each, share) for each in clips], clips) for share in (0.01, 0.1))
    assert set(faint) == {"dynamic", "keypoints", "keypoint_pixels"}
    assert {each.least for each in faint.values()} == {LEAST_OF_TRUTH}
    assert {each.same_for for each in faint.values()} == {"clip"}
    assert {each.same_for for each in seen.values()} == {None}
    assert faint["keypoints"].frames == pytest.approx(0.01, rel=1e-3), "a point without truth in some frame is left out"
    other = KeypointPrediction(keypoints=torch.rand(1, 3, 4, 3))
    assert "keypoints" not in rows(other, clips[0])[1], "of other points"
