"""The demo's camera head learns that cameras turn, instead of saying the same of every clip."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.synthetic import WorldSettings, make
from four_d import config as configs
from four_d.data.loading import Step, ValidationClips
from four_d.devices import emulates_bf16
from four_d.geometry import invert_pose, rotation_angle
from four_d.training import train
from four_d.training.module import TrainingModule

WORLDS = WorldSettings(width=64, height=64, cameras=2, frames=8)
"""With the shards below, the demo's worlds."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    for name, shards, held_out in (("train", range(20), False), ("held_out", range(2), True)):
        make(folder / name, shards, seed=1, clips_per_shard=25, workers=2, held_out=held_out, settings=WORLDS)
    return folder


def demo(data: Path, folder: Path) -> configs.RunConfig:
    paths = [f"data.sources.synthetic.path={data / 'train'}", f"data.validation.held_out.path={data / 'held_out'}"]
    precision = ["loop.precision=fp32"] if emulates_bf16(torch.device("cpu")) else []  # as the demo itself
    return configs.load(["overlays/demo"], [*paths, *precision, f"folder={folder}"])


def never_turning(config: configs.RunConfig) -> float:
    """Degrees: the mean error over the validation clips of saying that no camera turns."""
    clips = ValidationClips(config.data)
    errors = []
    for index in range(len(clips)):
        cameras = clips[index].batches[0].targets.cameras
        assert cameras is not None
        poses = cameras.world_from_camera[0]
        first, second = np.triu_indices(len(poses), 1)
        relative = invert_pose(poses[first]) @ poses[second]
        errors.append(float(rotation_angle(relative[:, :3, :3]).rad2deg().mean()))
    return float(np.mean(errors))


@pytest.mark.slow
def test_the_demos_cameras_turn_after_a_third_of_its_steps(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, step = demo(data, tmp_path), TrainingModule.training_step
    assert config.loop.epoch_steps == 300

    def stopped_after_validation(self: TrainingModule, batch: Step, number: int) -> object:
        if self.step == 300:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, number)

    monkeypatch.setattr(TrainingModule, "training_step", stopped_after_validation)
    result = train(config)
    assert not result.constant
    assert result.validation["pose_rot_pairs_deg"] < 0.97 * never_turning(config)
