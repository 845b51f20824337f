from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from four_d.metrics import baselines
from four_d.metrics import motion_baselines as motions
from four_d.types import Clip, Example

TIMES = torch.tensor([0.0, 0.5, 1.5])
SIZE = (8, 8)


def example(velocity: Tensor, scale: float = 1.0, noise: float = 0.0, seed: int = 0) -> Example:
    """A batch of one video whose pixels move by ``velocity`` h w 3 per second, plus noise."""
    inputs = Clip(
        images=torch.zeros(1, 3, 3, *SIZE),
        times=TIMES[None],
        camera_ids=torch.zeros(1, 3, dtype=torch.long),
        query_times=TIMES[None],
    )
    gaps = TIMES[:, None] - TIMES
    moved = gaps[..., None, None, None] * velocity
    rough = noise * torch.randn(moved.shape, generator=torch.Generator().manual_seed(seed))
    moved = moved + rough * (gaps != 0)[..., None, None, None]
    targets = dataclasses.replace(
        inputs,
        motion=moved[None],
        motion_valid=torch.ones(1, *moved.shape[:-1], dtype=torch.bool),
        motion_visible=torch.ones(1, *moved.shape[:-1], dtype=torch.bool),
        scale=torch.tensor([scale]),
    )
    return Example(inputs=inputs, targets=targets, key=[f"clip-{seed}"])


def drift(x: float, y: float = 0.0) -> Tensor:
    return torch.tensor([x, y, 0.0]).expand(*SIZE, 3)


def said(model: baselines.Model, clip: Clip) -> Tensor:
    motion = model(clip).motion
    assert motion is not None
    return motion


def test_static_says_zero_and_nothing_where_it_is_not_asked() -> None:
    clip = example(drift(1)).inputs
    model = baselines.untrained()["static_motion"]
    assert torch.equal(said(model, clip), torch.zeros(1, 3, 3, *SIZE, 3))
    assert model(dataclasses.replace(clip, query_times=None)).motion is None


def test_the_prior_knows_the_common_drift_per_signed_gap() -> None:
    clips = [example(drift(1.0, -0.5), noise=0.2, seed=seed) for seed in range(10)]
    prior = said(baselines.fit_baselines(clips)["prior_motion"], clips[0].inputs)
    truth = example(drift(1.0, -0.5)).targets.motion
    assert truth is not None
    torch.testing.assert_close(prior, truth, atol=0.05, rtol=0)
    assert torch.equal(prior[0].diagonal(), torch.zeros(*SIZE, 3, 3))  # to its own time nothing moves


def test_the_prior_has_cells_where_places_differ_and_few_where_they_do_not() -> None:
    sides = torch.zeros(*SIZE, 3)
    sides[:, :4, 0], sides[:, 4:, 0] = 1, -1
    apart = baselines.fit_baselines([example(sides, noise=0.3, seed=seed) for seed in range(10)])["prior_motion"]
    alike = baselines.fit_baselines([example(drift(1), noise=0.3, seed=seed) for seed in range(10)])["prior_motion"]
    assert isinstance(apart, motions.MotionPrior)
    assert isinstance(alike, motions.MotionPrior)
    assert apart.table.shape == (6, 2, 2, 3)
    assert alike.table.shape == (6, 1, 1, 3)
    left_to_right = said(apart, example(sides).inputs)[0, 2, 0, 0, :, 0]
    torch.testing.assert_close(left_to_right, 1.5 * sides[0, :, 0], atol=0.1, rtol=0)


def samples(motion: Tensor, weights: Tensor | None = None) -> motions.Samples:
    count = len(motion)
    return motions.Samples(
        motion=motion,
        gaps=torch.ones(count),
        position=torch.full((count, 2), 0.1),
        weights=torch.ones(count) if weights is None else weights,
        video=torch.zeros(count, dtype=torch.long),
    )


def test_the_geometric_median_has_the_least_error_and_is_not_the_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    motion = torch.randn(101, 3, generator=generator).exp()
    weights = torch.rand(101, generator=generator)
    group = torch.zeros(101, dtype=torch.long)
    found, filled = motions.geometric_medians(samples(motion, weights), group, 2)
    assert filled.tolist() == [True, False]
    assert found[1].tolist() == [0, 0, 0]

    def error(point: Tensor) -> float:
        return float(((motion - point).norm(dim=-1) * weights).sum())

    best = error(found[0])
    for step in 0.03 * torch.cat([torch.eye(3), -torch.eye(3)]):
        assert error(found[0] + step) > best
    assert error((motion * weights[:, None]).sum(0) / weights.sum()) > best * 1.01


def test_an_empty_cell_takes_the_median_of_its_gap() -> None:
    few = samples(torch.tensor([[1.0, 2, 3]] * 3))
    found = motions.table(few, torch.tensor([-1.0, 1.0]), 2)
    torch.testing.assert_close(found[1], torch.tensor([1.0, 2, 3]).expand(2, 2, 3))
    assert not bool(found[0].any())  # a gap that nothing was seen of


def test_videos_count_alike_and_by_their_scale() -> None:
    near, far = example(drift(1.0), scale=1.0), example(drift(-1.0), scale=5.0)
    clips = [near, near, far, near, near]  # metres: 5 × far beats 4 × near
    prior = said(baselines.fit_baselines(clips)["prior_motion"], near.inputs)
    assert prior[0, 1, 0, 0, 0, 0].item() == pytest.approx(-0.5, abs=1e-3)


def test_still_pixels_and_unknown_motion_teach_nothing() -> None:
    half = torch.zeros(*SIZE, 3)
    half[:4] = torch.tensor([1.0, 0, 0])
    prior = said(baselines.fit_baselines([example(half)])["prior_motion"], example(half).inputs)
    assert prior[0, 1, 0, 7, 7, 0].item() == pytest.approx(0.5)  # the rows that stand still said nothing
    assert "prior_motion" not in baselines.fit_baselines([example(drift(0))])
    blind = example(drift(1))
    targets = dataclasses.replace(blind.targets, motion_valid=torch.zeros(1, 3, 3, *SIZE, dtype=torch.bool))
    assert "prior_motion" not in baselines.fit_baselines([dataclasses.replace(blind, targets=targets)])


def test_of_very_many_gaps_quantiles_are_told_apart() -> None:
    gaps = torch.rand(5000, generator=torch.Generator().manual_seed(0))
    known = motions.known_gaps(gaps)
    assert len(known) == motions.GAPS
    assert known.diff().min() > 0
    assert motions.known_gaps(torch.tensor([0.5, 0.5000001, -0.5])).tolist() == [-0.5, 0.5]


def test_two_fits_are_equal() -> None:
    clips = [example(drift(1), noise=1.0, seed=seed) for seed in range(6)]
    first, second = (baselines.fit_baselines(clips)["prior_motion"] for _ in range(2))
    assert torch.equal(said(first, clips[0].inputs), said(second, clips[0].inputs))
