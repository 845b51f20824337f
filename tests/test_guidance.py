"""A prior of one's own on a fitted scene: registered, named in a config, and heeded."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import pytest
import torch
from torch import Tensor

import four_d
from four_d import extension
from four_d.errors import UserError
from four_d.fitting import fit
from four_d.fitting.stages import run_config
from four_d.losses.guidance import Guidance, GuidanceLoss, GuidanceLossConfig, GuidanceSpec, GuidedViews, distilled
from four_d.losses.term import LossInputs
from four_d.scene import DeformableSceneConfig
from four_d.training.record import read_metrics
from four_d.types import Prediction
from tests.test_scene import FRAMES, SIZE, SMALL, footage, inputs, pictures, scene, wave


@dataclass(frozen=True, kw_only=True)
class RedConfig(GuidanceSpec):
    """A prior that finds red objects likely."""

    kind: Literal["red"] = "red"
    strength: float = 1.0

    def build(self) -> Red:
        return Red(self.strength)


class Red(Guidance):
    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength = strength

    def forward(self, views: GuidedViews) -> Tensor:
        aim = views.alpha.detach()[:, None] * torch.tensor([1.0, 0, 0])[:, None, None]
        gradient = views.colour.detach() - aim
        return self.strength * distilled(views.colour, gradient) / aim.numel()


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(extension, "_ADDED", [])
        four_d.extend(RedConfig)
        yield


def term(**settings: object) -> GuidanceLoss:
    return GuidanceLossConfig(prior=RedConfig(), **settings).build()  # pyright: ignore[reportArgumentType]


def test_it_is_off_until_a_config_names_one(tmp_path: Path) -> None:
    model = DeformableSceneConfig(frames=FRAMES, gaussians=300, image_size=(SIZE, SIZE))
    request = footage(tmp_path / "video")
    assert "guidance" not in run_config(request, model, tmp_path, ()).losses
    own = ("losses.guidance.kind=guidance", "losses.guidance.prior.kind=red", "losses.guidance.prior.strength=3")
    found = run_config(request, model, tmp_path, own).losses["guidance"]
    assert found == GuidanceLossConfig(prior=RedConfig(strength=3.0))
    with pytest.raises(UserError, match=r"prior.kind is 'blue'; choose one of none, red.*four_d.extend"):
        run_config(request, model, tmp_path, (own[0], "losses.guidance.prior.kind=blue"))


def test_a_prior_sees_the_whole_object_from_views_of_its_own() -> None:
    made, clip = scene(), pictures()
    wave(made)
    torch.manual_seed(0)
    guided = term(views=6, size=24, azimuth=90.0, elevation=20.0)
    views = guided.views(inputs(made, clip))
    guided.prior(views).backward()
    assert views.colour.shape == (6, 3, 24, 24)
    assert views.frames.shape == (6, 3, SIZE, SIZE)
    assert views.azimuths.abs().max() <= math.radians(90)
    assert views.elevations.abs().max() <= math.radians(20)
    border = torch.cat([views.alpha[:, [0, -1]].flatten(1), views.alpha[:, :, [0, -1]].flatten(1)], dim=1)
    assert border.max() < 0.2
    assert (views.alpha.flatten(1).amax(-1) > 0.9).all()
    assert views.masks is not None
    # the frames' own cameras, in the object's coordinates
    frame = (views.times[0] * 10).round().long()
    torch.testing.assert_close(views.frame_poses[0], made.poses[frame], atol=1e-5, rtol=0)
    names = {name for name, each in made.named_parameters() if each.grad is not None and each.grad.abs().max() > 1e-7}
    assert {"means", "harmonics", "log_scales", "opacity_logits"} <= names
    assert made.corrections.grad is not None
    assert made.means.grad is not None
    assert made.corrections.grad.abs().max() < 1e-3 * made.means.grad.abs().max()


def test_the_gradient_of_what_is_distilled_is_the_one_that_was_given() -> None:
    values = torch.rand(2, 3, 4, 4, requires_grad=True)
    gradient = torch.randn(2, 3, 4, 4)
    distilled(values, gradient).backward()
    torch.testing.assert_close(values.grad, gradient)


def test_steps_towards_a_prior_are_taken(tmp_path: Path) -> None:
    given = replace(footage(tmp_path / "video"), steps=4)
    guidance = "losses.guidance={kind: guidance, weight: 5.0, prior: {kind: red}}"
    fit(given, tmp_path / "fit", [*SMALL, guidance, "optimiser.groups.colours.lr=0.1", "logging.every=1"])
    lines = [line for line in read_metrics(tmp_path / "fit" / "scene") if line["split"] == "train"]
    first, *_, last = (cast(float, line["guidance"]) for line in lines)
    assert last < 0.8 * first


PAGE = Path(__file__).parent.parent / "docs" / "pad3r.md"


@pytest.mark.skipif(not PAGE.exists(), reason="needs the working copy")
def test_the_pages_prior_guides_a_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    footage(tmp_path)
    monkeypatch.chdir(tmp_path)
    (block,) = (each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "extend" in each)
    exec(compile(block, "pad3r.md", "exec", dont_inherit=True), {"__name__": "pad3r_page"})
    lines = read_metrics(tmp_path / "fits" / "guided" / "scene")
    assert all(cast(float, line["guidance"]) > 0 for line in lines if line["split"] == "train")


def test_only_a_scene_is_guided_and_settings_are_checked() -> None:
    clip = pictures()
    assert GuidanceLossConfig().build()(inputs(scene(), clip)) == 0
    with pytest.raises(UserError, match="guidance loss is for a scene"):
        term()(LossInputs(prediction=Prediction(), targets=clip))
    with pytest.raises(UserError, match="views and size must be at least 1"):
        term(views=0)
    with pytest.raises(UserError, match="elevation from 0 to below 90"):
        term(elevation=90.0)
