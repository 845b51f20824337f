from __future__ import annotations

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from four_d.metrics import depth

ALIGNMENTS = get_args(depth.Alignment)
REGIONS = get_args(depth.Region)


def _random(seed: int, shape: tuple[int, ...] = (2, 3, 5, 7)) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = torch.rand(shape, generator=g, dtype=torch.float64) * 4 + 0.5
    prediction = target * (1 + 0.3 * torch.randn(shape, generator=g, dtype=torch.float64)).clamp_min(0.05)
    return prediction, target, torch.rand(shape, generator=g) > 0.3


def _by_numpy(p: Tensor, g: Tensor, v: Tensor, alignment: str, region: str) -> tuple[float, float]:
    """One clip, by loops and numpy's own median and least squares."""
    groups = [(p[i], g[i], v[i]) for i in range(len(p))] if region == "frame" else [(p, g, v)]
    rows = []
    for a, b, m in groups:
        x, y = a[m].numpy(), b[m].numpy()
        if x.size == 0:
            continue
        if alignment == "median":
            x = x * np.median(y) / np.median(x)
        if alignment == "scale":
            x = x * np.linalg.lstsq(x[:, None], y, rcond=None)[0]
        if alignment == "scaleshift":
            basis = np.stack([x, np.ones_like(x)], 1)
            x = basis @ np.linalg.lstsq(basis, y, rcond=None)[0]
        ratio = np.maximum(x / y, y / x)
        rows.append((np.mean(np.abs(x - y) / y), np.mean((ratio < 1.25) & (x > 0))))
    return tuple(np.mean(rows, 0).tolist())


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_scores_equal_a_plain_implementation(alignment: depth.Alignment, region: depth.Region) -> None:
    p, g, v = _random(0)
    v[0, 1] = False  # a frame without truth
    scores = depth.scores(p, g, v, alignment, region)
    for clip in range(2):
        expected = _by_numpy(p[clip], g[clip], v[clip], alignment, region)
        assert (scores.absrel[clip].item(), scores.delta[clip].item()) == pytest.approx(expected, abs=1e-12)
    assert scores.pixels.tolist() == v.flatten(1).sum(1).tolist()
    assert scores.frames.tolist() == [2, 3]


def test_values_worked_out_by_hand() -> None:
    target = torch.tensor([[[[1.0, 2.0, 4.0, 8.0]]]])
    prediction = torch.tensor([[[[2.0, 2.0, 4.0, 100.0]]]])
    valid = torch.tensor([[[[True, True, True, False]]]])
    raw = depth.scores(prediction, target, valid, "none", "clip")
    assert raw.absrel.item() == pytest.approx((1 + 0 + 0) / 3)
    assert raw.delta.item() == pytest.approx(2 / 3)
    # medians 2 and 2: nothing changes; least squares scale (2 + 4 + 16) / (4 + 4 + 16) = 11/12
    assert depth.scores(prediction, target, valid, "median", "frame").absrel.item() == pytest.approx(1 / 3)
    expected = (abs(22 / 12 - 1) + abs(22 / 12 - 2) / 2 + abs(44 / 12 - 4) / 4) / 3
    assert depth.scores(prediction, target, valid, "scale", "frame").absrel.item() == pytest.approx(expected)


@given(seed=st.integers(0, 10_000), factor=st.floats(0.01, 100), shift=st.floats(-0.2, 2))
@settings(max_examples=25)
def test_alignments_take_out_what_they_say(seed: int, factor: float, shift: float) -> None:
    p, g, v = _random(seed)
    v[..., 0, 0] = True
    for region in REGIONS:
        for alignment in ("median", "scale", "scaleshift"):
            moved = factor * (p + (shift if alignment == "scaleshift" else 0))
            before, after = (depth.scores(x, g, v, alignment, region) for x in (p, moved))
            torch.testing.assert_close(after.absrel, before.absrel, rtol=1e-8, atol=1e-9)
        perfect = depth.scores(g * factor + shift, g, v, "scaleshift", region)
        assert perfect.absrel.max() < 1e-9
        assert bool((perfect.delta == 1).all())


def test_an_alignment_of_each_frame_takes_out_a_scale_of_each_frame_and_one_of_the_clip_does_not() -> None:
    _, g, v = _random(3)
    flicker = g * torch.tensor([1.0, 2.0, 0.5])[:, None, None]
    assert depth.scores(flicker, g, v, "median", "frame").absrel.max() < 1e-12
    assert depth.scores(flicker, g, v, "median", "clip").absrel.min() > 0.1


def test_least_squares_has_the_least_squares() -> None:
    p, g, v = (x.flatten(1) for x in _random(4))
    best = depth.align(p, g, v, "scaleshift")
    error = (best - g).square().where(v, 0).sum(-1)
    for other in (best * 1.01, best + 0.01, depth.align(p, g, v, "scale"), depth.align(p, g, v, "median")):
        assert bool(((other - g).square().where(v, 0).sum(-1) > error).all())


def test_what_is_invalid_has_no_influence_even_where_it_is_not_a_number() -> None:
    p, g, v = _random(5)
    dirty_p, dirty_g = p.where(v, torch.nan), g.where(v, torch.inf)
    for alignment in ALIGNMENTS:
        for region in REGIONS:
            clean = depth.scores(p, g, v, alignment, region)
            dirty = depth.scores(dirty_p, dirty_g, v, alignment, region)
            assert torch.equal(clean.absrel, dirty.absrel)
            assert torch.equal(clean.delta, dirty.delta)


def test_nothing_valid_is_counted_and_finite() -> None:
    p, g, v = _random(6)
    for alignment in ALIGNMENTS:
        scores = depth.scores(p, g, v & False, alignment, "frame")
        assert scores.pixels.tolist() == scores.frames.tolist() == [0, 0]
        assert scores.absrel.tolist() == scores.delta.tolist() == [0, 0]
    zero_depth = depth.scores(p, g * 0, v, "median", "clip")  # valid, but depth 0 is no depth
    assert zero_depth.pixels.tolist() == [0, 0]


@pytest.mark.parametrize("alignment", ALIGNMENTS)
def test_a_prediction_without_content_scores_badly_and_finitely(alignment: depth.Alignment) -> None:
    _, g, v = _random(7)
    scores = depth.scores(torch.zeros_like(g), g, v, alignment, "clip")
    assert bool(scores.absrel.isfinite().all())
    if alignment != "scaleshift":
        assert scores.absrel.tolist() == pytest.approx([1, 1])
        assert scores.delta.tolist() == [0, 0]


def test_a_negative_prediction_is_never_right() -> None:
    g = torch.ones(1, 1, 1, 2)
    assert depth.scores(-g, g, g > 0, "none", "clip").delta.item() == 0


def test_median_of_masks() -> None:
    values = torch.tensor([[5.0, 1, 3, 9], [5.0, 1, 3, 9], [5.0, 1, 3, 9], [5.0, 1, 3, 9]])
    valid = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]]).bool()
    assert depth.masked_median(values, valid).tolist() == [4, 3, 9, 0]


def _values(count: int = 999, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    target = 1 + 4 * torch.rand(count, generator=g, dtype=torch.float64)
    return target * (1 + 0.05 * torch.randn(count, generator=g, dtype=torch.float64)), target


def test_published_scores_by_hand() -> None:
    prediction, target = torch.tensor([1.0, 3.0, 8.0]).double(), torch.tensor([1.0, 2.0, 4.0]).double()
    found = depth.published(prediction, target, "metric")
    assert found.absrel == pytest.approx((0 + 0.5 + 1) / 3)
    assert found.sqrel == pytest.approx((0 + 0.5 + 4) / 3)
    assert found.rmse == pytest.approx(math.sqrt((0 + 1 + 16) / 3))
    assert found.logrmse == pytest.approx(math.sqrt((math.log(1.5) ** 2 + math.log(2) ** 2) / 3))
    assert (found.delta125, found.delta125_2, found.delta125_3) == pytest.approx((1 / 3, 2 / 3, 2 / 3))
    assert found.pixels == 3
    clipped = depth.published(prediction, target, "metric", clip=3.0)
    assert clipped.absrel == pytest.approx((0 + 0.5 + 0.25) / 3)


def test_published_median_takes_the_lower_middle_value() -> None:
    prediction, target = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([4.0, 5.0, 6.0, 7.0])
    torch.testing.assert_close(depth.align_published(prediction, target, "median"), prediction * 5 / 2)


def test_published_scale_is_the_least_absolute_error_not_the_least_square() -> None:
    prediction, target = _values()
    target[:60] *= 20  # which a fit of squares would follow
    aligned = depth.align_published(prediction, 3 * target, "scale")
    factor = float((aligned / prediction)[0])
    assert factor == pytest.approx(3, rel=0.03)
    error = (aligned - 3 * target).abs().sum()
    for nearby in (0.95, 1.05):
        assert (nearby * aligned - 3 * target).abs().sum() > error
    squares = depth.align(prediction, 3 * target, torch.ones_like(target, dtype=torch.bool), "scale")
    assert (squares - 3 * target).abs().sum() > 1.2 * error


def test_published_scale_takes_ten_weiszfeld_rounds() -> None:
    prediction, target = torch.tensor([1.0, 1.0, 1.0, 1.0]).double(), torch.tensor([1.0, 1.2, 1.3, 9.0]).double()
    scale = 12.5 / 4
    for _ in range(10):
        weights = [1 / (abs(scale - g) + 1e-8) for g in target.tolist()]
        scale = sum(w * g for w, g in zip(weights, target.tolist(), strict=True)) / sum(weights)
    assert float(depth.align_published(prediction, target, "scale")[0]) == pytest.approx(scale)
    assert float(depth.align_published(-prediction, target, "scale")[0]) < 0  # positive targets, negative depth


def test_published_scale_and_shift_are_adams() -> None:
    prediction, target = _values(200)
    prediction = (prediction - 0.05) / 1.02
    aligned = depth.align_published(prediction, target, "scaleshift")
    s = (target.median() / prediction.median()).clone().requires_grad_()
    t = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser, before = torch.optim.Adam([s, t], lr=1e-4), None
    for _ in range(1000):
        optimiser.zero_grad()
        loss = (s * prediction + t - target).abs().sum()
        loss.backward()
        optimiser.step()
        if before is not None and abs(before - loss.item()) < 1e-6:
            break
        before = loss.item()
    torch.testing.assert_close(aligned, (s * prediction + t).detach())


def test_published_scale_and_shift_go_no_further_than_a_thousand_steps() -> None:
    _, target = _values(200)
    aligned = depth.align_published(target - 0.9, target, "scaleshift")  # a shift of 0.9 is out of reach
    assert (aligned - target).abs().mean() > 0.1


def test_resize_is_cubic_convolution_with_half_pixel_centres() -> None:
    row = torch.tensor([1.0, 2.0, 4.0, 8.0, 3.0, 5.0]).double()

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        if x < 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0

    def at(position: float) -> float:
        base = math.floor(position)
        taps = range(base - 1, base + 3)
        return sum(kernel(position - i) * float(row[min(max(i, 0), 5)]) for i in taps)

    for size in (3, 4, 9, 12):
        expected = [at((j + 0.5) * 6 / size - 0.5) for j in range(size)]
        found = depth.resize_cubic(row[None, None].expand(1, 6, 6), (6, size))[0, 2]
        torch.testing.assert_close(found, torch.tensor(expected).double())
    assert depth.resize_cubic(row[None, None], (1, 6)).shape == (1, 1, 6)


def test_only_the_pixels_asked_for_are_scored() -> None:
    target = torch.ones(1, 1, 1, 5)
    prediction = torch.tensor([2.0, 2, 2, 3, 4]).reshape(1, 1, 1, 5)
    valid = torch.ones_like(target, dtype=torch.bool)
    where = torch.tensor([False, False, False, True, False]).reshape(1, 1, 1, 5)
    found = depth.scores(prediction, target, valid, "median", "frame", where)
    assert float(found.absrel) == pytest.approx(0.5)
    assert int(found.pixels) == 1
    assert int(depth.scores(prediction, target, valid & ~where, "median", "frame", where).frames) == 0


def test_published_disparity_by_hand() -> None:
    """The least-squares line through (3, 1), (1, ½), (2, ½) is p / 4 + 1 / 6; truth of 10 m does not count."""
    prediction = torch.tensor([[[3.0, 1]], [[2, 9]], [[7, 8]]])
    target = torch.tensor([[[1.0, 2]], [[2, 10]], [[10, 0]]])
    valid = torch.tensor([[[True, True]], [[True, True]], [[True, False]]])
    found = depth.published_disparity(prediction, target, valid, 10.0)
    assert found.absrel == pytest.approx(((1 / 11 + 1 / 5) / 2 + 1 / 4) / 2, rel=1e-6)
    assert found.rmse == pytest.approx((math.sqrt(((1 / 11) ** 2 + 0.4**2) / 2) + 0.5) / 2, rel=1e-6)
    assert found.delta125 == (1 + 0) / 2


def test_published_disparity_is_perfect_for_an_affine_disparity_and_limits_depth() -> None:
    target = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(0)) * 8 + 1
    valid = torch.ones_like(target, dtype=torch.bool)
    found = depth.published_disparity(3 / target + 0.5, target, valid, 10.0)
    assert (found.absrel, found.rmse, found.delta125) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-5), 1)
    constant = depth.published_disparity(torch.zeros_like(target), target, valid, 2.0)
    assert constant.rmse < 1  # no depth beyond 2 m is left


def test_resize_linear_has_pixel_centres_at_half() -> None:
    maps = torch.tensor([[[0.0, 4], [8, 12]]])
    resized = depth.resize_linear(maps, (2, 4))
    torch.testing.assert_close(resized, torch.tensor([[[0.0, 1, 3, 4], [8, 9, 11, 12]]]))
    assert depth.resize_linear(maps, (2, 2)) is maps
