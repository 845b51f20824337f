"""A model of Gaussians from data to pictures: one training step, held-out scores, and files of a posed video."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from four_d import config
from four_d.abilities import UNITS
from four_d.checkpoints import ModelInfo
from four_d.data.loading import DataConfig, TrainingSteps
from four_d.data.sampling import HintProbabilities, SamplingConfig
from four_d.data.shards import finalise, write_shard
from four_d.data.sources import SourceConfig
from four_d.data.views import ViewsConfig
from four_d.errors import UserError
from four_d.evaluation import EvaluationConfig
from four_d.evaluation import run as evaluate
from four_d.formats.splats import read_gaussians
from four_d.inference import LoadedModel, infer
from four_d.inference.hints import Known
from four_d.losses.gaussian import GaussianDepthLossConfig, GaussianFlowLossConfig
from four_d.losses.photometric import PhotometricLossConfig
from four_d.losses.term import LossInputs
from four_d.model import FourD
from four_d.types import Cameras
from four_d.video.footage import Selection
from tests.helpers import box_clip, loss_value

TINY = [
    *("model.backbone.width=32", "model.backbone.depth=1", "model.backbone.heads=2", "model.backbone.patch_size=8"),
    *("model.backbone.checkpointing=false", "model.backbone.attention=matmul", "data.image_size=[24,24]"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("boxes")
    write_shard(root, 0, [box_clip(seed, frames=6, cameras=2, size=24) for seed in range(2)])
    finalise(root, "boxes")
    return root


@pytest.fixture(scope="module")
def model() -> FourD:
    torch.manual_seed(0)
    values = [*TINY, "data.sources.boxes.path=none"]
    return config.load(["overlays/dgs_lrm_mini"], values).model.build().eval()


def loaded(model: FourD) -> LoadedModel:
    values = [*TINY, "data.sources.boxes.path=none"]
    described = config.load(["overlays/dgs_lrm_mini"], values).model
    return LoadedModel(model, ModelInfo(model=described, image_size=(24, 24), frames=6, normalisation="disparity"))


def test_a_step_renders_the_views_and_every_term_teaches(folder: Path, model: FourD) -> None:
    data = DataConfig(
        sources={"boxes": SourceConfig(path=str(folder))},
        sampling=SamplingConfig(min_frames=6, max_frames=6, max_stride=1, one_camera_share=1.0),
        image_size=(24, 24),
        images_per_batch=12,
        query_times=6,
        views=ViewsConfig(count=4),
        normalisation="disparity",
        hints=HintProbabilities(poses=1.0, intrinsics=1.0),
    )
    example = TrainingSteps(data, 0)[0].batches[0]
    prediction = model(example.inputs)
    views = LossInputs(prediction=prediction, targets=example.targets).views
    assert views is not None
    assert views.colour.shape == (2, 4, 3, 24, 24)
    for loss in (PhotometricLossConfig(perceptual="structure"), GaussianDepthLossConfig(), GaussianFlowLossConfig()):
        model.zero_grad()
        value = loss_value(loss, prediction, example.targets, views)
        value.backward(retain_graph=True)
        assert float(value.detach()) > 0
        assert any(p.grad is not None and p.grad.any() for p in model.heads["gaussian"].parameters())
    without = dataclasses.replace(example.targets, views=None)
    assert LossInputs(prediction=prediction, targets=without).views is None


def test_held_out_pictures_are_scored_in_the_models_unit(folder: Path, model: FourD) -> None:
    settings = EvaluationConfig(
        data=str(folder), frames=6, stride=1, hints=("intrinsics", "poses"), tasks=("pictures",), size=(24, 24)
    )
    result = evaluate(loaded(model), settings)
    scores = result.rows["model"]
    assert scores["render_psnr"].videos == 4
    assert 0 < scores["render_psnr"].mean < 100
    assert result.rows["copy"]["render_psnr"].videos == 4
    assert result.note.endswith("; FID, FVD: not computed, no network given")
    with pytest.raises(UserError, match=r"cameras|poses"):
        evaluate(loaded(model), dataclasses.replace(settings, hints=()))


def test_a_posed_video_becomes_files_in_the_users_unit(tmp_path: Path, model: FourD) -> None:
    frames = (np.random.default_rng(0).random((6, 24, 24, 3)) * 255).astype(np.uint8)
    from PIL import Image

    video = tmp_path / "video"
    video.mkdir()
    for index, picture in enumerate(frames):
        Image.fromarray(picture).save(video / f"{index:02d}.png")
    cameras = Cameras(
        world_from_camera=torch.eye(4).repeat(6, 1, 1),
        intrinsics=torch.tensor([[24.0, 0, 12], [0, 24, 12], [0, 0, 1]]).repeat(6, 1, 1),
    )
    far = Known(cameras=cameras, depth=np.full((6, 24, 24), 10.0, np.float32))
    near = Known(cameras=cameras, depth=np.full((6, 24, 24), 1.0, np.float32))
    selection = Selection(max_frames=6)
    out = {name: tmp_path / name for name in ("far", "near")}
    one = infer(loaded(model), video, out["far"], selection=selection, known=far)
    two = infer(loaded(model), video, out["near"], selection=selection, known=near)
    assert one.prediction.gaussians is not None
    assert two.prediction.gaussians is not None
    torch.testing.assert_close(one.prediction.gaussians.means, 10 * two.prediction.gaussians.means)
    assert one.prediction.cameras is not None, "the given ones"
    assert json.loads((out["far"] / "cameras.json").read_text())["unit"] == one.unit == UNITS["disparity"]
    back = read_gaussians(out["far"] / "gaussians.glb")
    torch.testing.assert_close(back.means, one.prediction.gaussians.means, atol=1e-5, rtol=1e-5)
    assert (out["far"] / "gaussians.ply").is_file()
    with pytest.raises(UserError, match=r"give depth \(--depth\)"):
        infer(loaded(model), video, tmp_path / "no", selection=selection, known=Known(cameras=cameras))
    assert not (tmp_path / "no").exists()
