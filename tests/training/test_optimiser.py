"""Trainable weights, their decay and their rates."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from torch import nn

from four_d.config import OptimiserConfig
from four_d.errors import UserError
from four_d.training.averaging import Average
from four_d.training.optimiser import freeze, learning_rate, make_optimiser, trained


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 4, 2), nn.LayerNorm(4))
        self.token = nn.Parameter(torch.ones(1, 2, 4))
        self.head = nn.Linear(4, 2)


def names(model: nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_patterns_choose_what_trains_and_freezing_wins() -> None:
    one, two = Small(), Small()
    freeze(one, ["*"], ["encoder.*"])
    assert names(one) == {"token", "head.weight", "head.bias"}
    freeze(two, ["head.*", "encoder.0.*"], ["*.bias"])
    assert names(two) == {"head.weight", "encoder.0.weight"}


def test_what_a_part_freezes_itself_stays_frozen() -> None:
    model = Small()
    model.encoder.requires_grad_(False)
    freeze(model, ["*"], ["head.bias"])
    assert names(model) == {"token", "head.weight"}


def test_weights_of_terms_can_be_frozen() -> None:
    """They train beside a model of which only a part does; what a term itself holds fast stays so."""

    def both() -> nn.ModuleDict:
        terms = nn.ModuleDict({"path": nn.Linear(2, 1), "looks": nn.Linear(2, 1).requires_grad_(False)})
        return nn.ModuleDict({"model": Small(), "losses": terms})

    one, two = both(), both()
    freeze(one, ["head.*"], ["losses.path.bias"])
    assert set(trained(one)) == {"head.weight", "head.bias", "losses.path.weight"}
    with pytest.raises(UserError, match="leave nothing to train"):
        freeze(two, ["*"], ["encoder.*", "head.*", "token"])


def test_a_pattern_without_a_match_is_an_error_with_near_names() -> None:
    with pytest.raises(UserError, match=r"'haed\.weight' matches no parameter; names look like head\.weight"):
        freeze(Small(), ["haed.weight"], [])
    with pytest.raises(UserError, match="'nothing' matches no parameter"):
        freeze(Small(), ["*"], ["nothing"])
    with pytest.raises(UserError, match="leave nothing to train"):
        freeze(Small(), ["*"], ["*"])


def test_only_matrices_decay() -> None:
    model = Small()
    freeze(model, ["*"], ["encoder.0.bias"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimiser = make_optimiser(model, OptimiserConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimiser.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"encoder.0.weight", "head.weight"}


class Own(nn.Module):
    """Modules of a user's own, with matrices of every sort."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.ones(3, 3))
        self.names = nn.Embedding(3, 4)
        self.attention = nn.MultiheadAttention(4, 2)
        self.maps = nn.ConvTranspose1d(2, 2, 3)


def test_what_decays_goes_by_the_type_of_module() -> None:
    """As docs/training.md says."""
    groups = make_optimiser(Own(), OptimiserConfig(weight_decay=0.5)).param_groups
    decaying = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
    assert decaying == {"attention.out_proj.weight", "maps.weight"}


def test_the_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    config = OptimiserConfig(lr=2e-4, warmup_share=0.1, final_lr_share=0.01)
    rates = [learning_rate(n / 1000, config) for n in range(1001)]
    assert rates[0] == 0
    assert rates[100] == max(rates) == 2e-4
    assert rates[550] == pytest.approx((2e-4 + 2e-6) / 2)
    assert rates[-1] == pytest.approx(2e-6)
    assert all(b > a for a, b in itertools.pairwise(rates[:101]))
    assert all(b < a for a, b in itertools.pairwise(rates[100:]))
    assert learning_rate(0.0, OptimiserConfig(lr=1.0, warmup_share=0.0)) == 1.0


def test_warm_up_is_also_a_number_of_steps() -> None:
    config = OptimiserConfig(lr=1.0, warmup_share=0.1, final_lr_share=0.0)
    # a tenth of the run is over before the second step: without the least number the rate would be at its peak
    assert learning_rate(0.1, config) == 1
    assert learning_rate(0.1, config, warmed=2 / 50) == pytest.approx(2 / 50)
    assert learning_rate(0.05, config, warmed=40 / 50) == pytest.approx(0.5), "a share that lasts longer goes on"
    assert learning_rate(0.55, config, warmed=25 / 50) == pytest.approx(0.25), "and the cosine is not put off"
    assert learning_rate(0.55, config, warmed=500 / 50) == learning_rate(0.55, config)
    without = dataclasses.replace(config, warmup_share=0.0)
    assert learning_rate(0.0, without, warmed=0.01) == 1, "who wants none has none"


def test_the_average_follows_its_formula_and_leaves_frozen_weights() -> None:
    model = Small()
    freeze(model, ["head.*"], [])
    average = Average(model, 0.5)
    expected = model.head.weight.detach().clone()
    for update in range(20):
        with torch.no_grad():
            model.head.weight += 1
            model.token += 1
        average.update(model, torch.tensor(True))
        with torch.no_grad():  # a step that was not taken, whatever the weights, counts as none
            model.token += 1
        average.update(model, torch.tensor(False))
        decay = min(0.5, (1 + update) / (10 + update))
        expected = decay * expected + (1 - decay) * model.head.weight.detach()
    torch.testing.assert_close(average.weights["head.weight"], expected)
    assert set(average.weights) == {"head.weight", "head.bias"}
    assert int(average.updates) == 20
    trained = model.head.weight.detach().clone()
    with average.applied(model):
        torch.testing.assert_close(model.head.weight.detach(), expected)
    assert torch.equal(model.head.weight, trained)
