"""Scores of pictures on cases that can be worked out by hand, and against the published definitions."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from four_d.errors import UserError
from four_d.metrics import images
from four_d.metrics.catalogue import METRICS
from four_d.metrics.renders import score_renders
from four_d.similarity import LPIPS
from four_d.types import Clip, Views, map_tensors


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_psnr_by_hand() -> None:
    truth = torch.zeros(2, 3, 2, 2)
    pictures = truth.clone()
    pictures[0] = 0.1  # mean squared error 0.01: 20 dB
    pictures[1, 0, 0, 0] = 1.0  # 1 of 12 numbers: 10·log10(12)
    torch.testing.assert_close(images.psnr(pictures, truth), torch.tensor([20.0, 10 * math.log10(12)]))
    assert images.psnr(truth, truth).tolist() == pytest.approx([100.0, 100.0])


def test_masked_psnr_by_hand() -> None:
    """Errors of pixels are 0.1 and 0.2 in all channels, and 0.9 outside the mask."""
    truth = torch.zeros(1, 3, 1, 3)
    pictures = torch.tensor([0.1, 0.2, 0.9]).expand(1, 3, 1, 3)
    where = torch.tensor([[[True, True, False]]])
    expected = -10 * math.log10((0.01 + 0.04) / 2)
    assert images.psnr(pictures, truth, where).item() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(AssertionError, match="no pixel"):
        images.psnr(pictures, truth, torch.zeros_like(where))


def test_masked_ssim_of_a_full_mask_is_ssim() -> None:
    one, other = drawn(2, 3, 16, 19, seed=1), drawn(2, 3, 16, 19, seed=2)
    full = torch.ones(2, 16, 19, dtype=torch.bool)
    torch.testing.assert_close(images.mssim(one, other, full), images.ssim(one, other))


def by_hand(one: Tensor, other: Tensor, mask: Tensor) -> float:
    """DyCheck's masked SSIM of one channel of 11 × 11: a single window."""
    taps = torch.exp(-0.5 * ((torch.arange(11, dtype=torch.float64) - 5) / 1.5) ** 2)
    taps /= taps.sum()

    def moment(values: Tensor) -> float:
        total, rows = 0.0, 0
        for y in range(11):
            seen = [x for x in range(11) if mask[y, x]]
            if seen:
                total += float(taps[y]) * sum(float(taps[x] * values[y, x]) for x in seen) * 11 / len(seen)
                rows += 1
        return total * 11 / rows

    a, b = moment(one), moment(other)
    var_a, var_b = max(0.0, moment(one**2) - a * a), max(0.0, moment(other**2) - b * b)
    both = moment(one * other) - a * b
    both = math.copysign(min(math.sqrt(var_a * var_b), abs(both)), both)
    return (2 * a * b + 1e-4) * (2 * both + 9e-4) / ((a * a + b * b + 1e-4) * (var_a + var_b + 9e-4))


@pytest.mark.parametrize("kind", ["scattered", "half", "column", "one"])
def test_masked_ssim_is_dychecks_definition(kind: str) -> None:
    one, other = drawn(1, 3, 11, 11, seed=3), drawn(1, 3, 11, 11, seed=4)
    other = 0.8 * one + 0.2 * other
    mask = drawn(11, 11, seed=5) > 0.6
    if kind != "scattered":
        mask = torch.zeros(11, 11, dtype=torch.bool)
        mask[{"half": slice(0, 6), "column": slice(None), "one": slice(5, 6)}[kind]] = kind == "half"
        mask[:, 4] |= kind == "column"
        mask[5, 5] |= kind == "one"
    expected = sum(by_hand(one[0, c], other[0, c], mask) for c in range(3)) / 3
    assert images.mssim(one, other, mask[None]).item() == pytest.approx(expected, abs=1e-9)


def test_masked_ssim_counts_windows_that_see_nothing_as_1() -> None:
    one, other = drawn(1, 3, 11, 30, seed=6), drawn(1, 3, 11, 30, seed=7)
    mask = torch.zeros(1, 11, 30, dtype=torch.bool)
    mask[..., :4] = True
    windows = [images.mssim(one[..., i : i + 11], other[..., i : i + 11], mask[..., i : i + 11]) for i in range(4)]
    expected = (sum(float(each) for each in windows) + 16) / 20
    assert images.mssim(one, other, mask).item() == pytest.approx(expected, abs=1e-9)


def test_what_lies_outside_the_mask_does_not_count() -> None:
    truth, where = drawn(1, 3, 20, 20, seed=8), drawn(1, 20, 20, seed=9) > 0.4
    changed = torch.where(where[:, None], truth, drawn(1, 3, 20, 20, seed=10))
    network = LPIPS("alex").double()
    wide = torch.nn.functional.interpolate
    assert images.psnr(changed, truth, where).item() == pytest.approx(100)
    assert images.mssim(changed, truth, where).item() == pytest.approx(1)
    assert images.mstructure(changed, truth, where).item() == pytest.approx(0)
    large = [wide(each, (40, 40)) for each in (changed, truth)]
    assert images.mlpips(network, *large, wide(where[:, None].double(), (40, 40))[:, 0] > 0.5).item() == 0
    assert images.lpips(network, *large).item() > 0


def test_masked_lpips_is_the_mean_of_its_map() -> None:
    network = LPIPS("alex")
    one, other = drawn(1, 3, 40, 40, seed=11).float(), drawn(1, 3, 40, 40, seed=12).float()
    where = torch.zeros(1, 40, 40, dtype=torch.bool)
    where[:, 10:30, 5:20] = True
    found = network.spatial(one * where[:, None], other * where[:, None])[where].mean()
    torch.testing.assert_close(images.mlpips(network, one, other, where)[0], found)


def test_masked_structure_by_hand() -> None:
    """A ramp of 0.1 per column against nothing: every step in the mask is 0.1, none is down."""
    truth = torch.zeros(1, 3, 12, 12, dtype=torch.float64)
    ramp = truth + 0.1 * torch.arange(12, dtype=torch.float64)
    where = torch.zeros(1, 12, 12, dtype=torch.bool)
    where[:, 3:9, 2:7] = True
    expected = (1 - images.mssim(ramp, truth, where)) / 2 + 0.1
    torch.testing.assert_close(images.mstructure(ramp, truth, where), expected)


def views(colour: Tensor) -> Views:
    return Views(colour=colour, alpha=colour[:, 0], depth=colour[:, 0])


def target(truth: Tensor, dynamic: Tensor | None = None) -> Clip:
    ids = torch.zeros(len(truth), dtype=torch.long)
    return Clip(images=truth, times=ids.float(), camera_ids=ids, dynamic=dynamic)


def names(scores: dict[str, float]) -> set[str]:
    assert scores.keys() <= METRICS.keys()
    return {name.removeprefix("render_") for name in scores}


def test_scores_of_pictures_and_their_names() -> None:
    truth = drawn(2, 3, 40, 40, seed=13).float() * 0.5
    colour = truth + torch.tensor([0.1, 0.01])[:, None, None, None]
    moves = torch.zeros(2, 40, 40, dtype=torch.bool)
    moves[1, 0, 0] = True
    seen = torch.zeros_like(moves)
    seen[0, :20] = True
    scores = score_renders(views(colour), target(truth, moves), seen)
    assert names(scores) == {"psnr", "ssim", "structure", "psnr_dynamic", "mpsnr", "mssim", "mstructure"}
    assert scores["render_psnr"] == pytest.approx(30, abs=1e-3), "the mean of 20 and 40 dB"
    assert scores["render_psnr_dynamic"] == pytest.approx(40, abs=1e-3), (
        "only the second picture has anything that moves"
    )
    assert scores["render_mpsnr"] == pytest.approx(20, abs=1e-3), "only the first picture has a mask"
    assert scores["render_structure"] == pytest.approx((1 - scores["render_ssim"]) / 2, abs=1e-5)


def test_the_name_lpips_needs_its_network() -> None:
    truth = drawn(1, 3, 40, 40, seed=14).float()
    network = LPIPS("alex")
    full = torch.ones(1, 40, 40, dtype=torch.bool)
    scores = score_renders(views(truth.flip(-1)), target(truth), full, network)
    assert names(scores) == {"psnr", "ssim", "lpips", "mpsnr", "mssim", "mlpips"}
    assert scores["render_lpips"] == pytest.approx(network(truth.flip(-1), truth).item(), rel=1e-5)
    assert scores["render_mpsnr"] == pytest.approx(scores["render_psnr"], abs=1e-4)


def test_many_pictures_are_scored_as_each_alone() -> None:
    """More than are taken at once."""
    truth, colour = drawn(11, 3, 12, 12, seed=15).float(), drawn(11, 3, 12, 12, seed=16).float()
    masks = drawn(11, 12, 12, seed=17) > 0.5
    every = score_renders(views(colour), target(truth, masks), masks)
    alone = [
        score_renders(views(colour[i : i + 1]), target(truth[i : i + 1], masks[i : i + 1]), masks[i : i + 1])
        for i in range(11)
    ]
    for name, value in every.items():
        assert value == pytest.approx(sum(each[name] for each in alone) / 11, rel=1e-5)


def test_scores_leave_out_what_is_not_known_and_store_colours_as_pictures_do() -> None:
    truth = torch.ones(2, 3, 12, 12)
    bright = views(torch.full((2, 3, 12, 12), 1.5))
    clip = dataclasses.replace(
        target(truth, torch.ones(2, 12, 12, dtype=torch.bool)), dynamic_known=torch.tensor([False, False])
    )
    scores = score_renders(bright, clip, torch.zeros(2, 12, 12, dtype=torch.bool))
    assert names(scores) == {"psnr", "ssim", "structure"}
    assert scores["render_psnr"] == pytest.approx(100)
    batched, clips = (map_tensors(each, lambda tensor: tensor[None]) for each in (bright, clip))
    assert score_renders(batched, clips) == scores


def test_pictures_that_do_not_belong_together_or_are_not_finite_are_errors() -> None:
    truth = torch.zeros(1, 3, 12, 12)
    with pytest.raises(UserError, match=r"\(2, 3, 12, 12\), the true ones \(1, 3, 12, 12\)"):
        score_renders(views(truth.repeat(2, 1, 1, 1)), target(truth))
    with pytest.raises(UserError, match="not finite"):
        score_renders(views(truth + torch.inf), target(truth))
