"""The rendered 2D displacement between frames, against tracks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from four_d import fields
from four_d.errors import UserError
from four_d.losses.rendered_flow import RenderedFlowLossConfig, displacements, read
from four_d.types import map_tensors
from tests.test_scene import FRAMES, SIZE, TIMES, apart, cameras, inputs, pictures, scene, tracks, wave


def test_exact_tracks_cost_nothing_and_a_wrong_camera_its_displacement(tmp_path: Path) -> None:
    made, clip = apart(), pictures()
    wave(made)
    file = str(tracks(made, tmp_path, 1))
    term = RenderedFlowLossConfig(file=file, gaps=(2,), pairs=100, trim=1.0).build()
    exact = term(inputs(made, clip))
    assert exact.item() == pytest.approx(0, abs=1e-4)
    with torch.no_grad():
        made.corrections[FRAMES // 2 :, 3] += 0.15  # along their own x axis: pixels of a focal length of 40
    wrong = term(inputs(made, clip))
    away = 40 * 0.15 / cameras().world_from_camera[0, :3, 3].norm() / SIZE
    # of pairs whose first frame still covers the tracks, half; less half the Huber threshold
    assert wrong.item() == pytest.approx((float(away) - 0.01) / 2, rel=0.15)
    wrong.backward()
    assert made.corrections.grad is not None
    assert (made.corrections.grad[1:5].norm(dim=-1) > 0).all()
    assert made.means.grad is not None
    assert made.means.grad.norm() > 0


def test_frames_of_no_such_gap_and_tracks_that_are_hidden_cost_nothing(tmp_path: Path) -> None:
    made, clip = apart(), pictures()
    file = tracks(made, tmp_path, 1)
    with torch.no_grad():
        made.corrections[1:, 0] += 0.05
    assert RenderedFlowLossConfig(file=str(file), gaps=(7, 9)).build()(inputs(made, clip)) == 0
    stored = dict(np.load(file))
    np.savez(file, **{**stored, "visible": np.zeros_like(stored["visible"])})
    value = RenderedFlowLossConfig(file=str(file)).build()(inputs(made, clip))
    assert value.item() == 0
    value.backward()  # with a path to the Gaussians all the same
    with pytest.raises(UserError, match="tracks of the same video"):
        RenderedFlowLossConfig(file=str(file)).build()(inputs(made, replace(clip, times=clip.times + 3)))
    with pytest.raises(UserError, match="gaps are numbers of frames"):
        RenderedFlowLossConfig(file=str(file), gaps=())


def test_the_gradient_is_that_of_differences(tmp_path: Path) -> None:
    made, clip = apart(), pictures()
    wave(made)
    file = str(tracks(made, tmp_path, 1))
    made, clip = made.double(), map_tensors(clip, lambda each: each.double() if each.is_floating_point() else each)
    term = RenderedFlowLossConfig(file=file, gaps=(2,), pairs=100, trim=1.0).build().double()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.means.add_(0.02 * torch.randn(made.means.shape, generator=generator, dtype=torch.float64))
        made.corrections.add_(0.02 * torch.randn(made.corrections.shape, generator=generator, dtype=torch.float64))
    for parameter in (made.means, made.corrections):
        made.zero_grad()
        term(inputs(made, clip)).backward()
        assert parameter.grad is not None
        slope = parameter.grad.clone()
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        values: list[float] = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
                values.append(float(term(inputs(made, clip))))
                parameter -= step * direction
        assert float((slope * direction).sum()) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4)


def test_a_picture_of_displacement_is_that_of_the_object_and_of_nothing_outside(tmp_path: Path) -> None:
    made = scene()
    found = made.at(TIMES)
    assert found.gaussians is not None
    assert found.cameras is not None
    # the same frame at both ends does not move
    still, alpha = displacements(
        fields.stack([found.gaussians]),
        fields.stack([found.cameras]),
        TIMES,
        torch.tensor([[1, 1], [0, 2]]),
        (SIZE, SIZE),
    )
    assert still[0].abs().max() == 0
    assert still[1].abs().max() > 0.01
    middle = torch.tensor([[SIZE / 2, SIZE / 2], [-4.0, 3.0]]).expand(2, 2, 2)
    moved, covered = read(still, alpha, middle)
    assert covered.tolist() == [[True, False], [True, False]]
    assert moved[1, 0].norm() > 0.001
