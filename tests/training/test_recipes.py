"""One step of every recipe at its smallest size, in bfloat16, as on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from four_d.config import RunConfig, load
from four_d.training.module import TrainingModule
from four_d.training.run import RunData
from tests.training.runs import make_data

RECIPES = {
    "vggt": "overlays/tiny",
    "page_4d": "overlays/page_4d_mini",
    "dept3r": "overlays/dept3r_mini",
    "dept3r_late": "overlays/dept3r_late_mini",
    "dgs_lrm": "overlays/dgs_lrm_mini",
    "unified": "overlays/unified_mini",
}


def recipe(name: str, data: Path) -> RunConfig:
    small = ["loop.compile=false", "data.images_per_batch=6", "data.workers=0", "weights=null"]
    sampling = ["data.sampling.min_frames=6", "data.sampling.max_frames=6"]
    return load([RECIPES[name]], [*small, *sampling, f"data.sources.boxes.path={data}"])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), range(3), size=64, bare=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_every_weight_that_trains_gets_a_finite_gradient_whatever_truth_a_clip_has(name: str, data: Path) -> None:
    """A weight without one would stop the exchange between processes."""
    module = TrainingModule(recipe(name, data))
    stream = RunData(module.config).training
    assert not module.untaught
    for index in range(4):
        module.zero_grad()
        example = stream[index].batches[0]
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.terms(example)[1]["loss"]
        loss.backward()
        gradients = {n: p.grad for n, p in module.model.named_parameters() if p.requires_grad}
        assert [n for n, gradient in gradients.items() if gradient is None] == []
        norm = torch.stack([gradient.norm() for gradient in gradients.values() if gradient is not None]).norm()
        assert float(norm) < 1e4
