"""Choice of trainable weights, their weight decay, and the learning-rate schedule."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor, nn

from four_d.config import GroupConfig, OptimiserConfig
from four_d.errors import UserError

DECAYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Modules whose ``weight`` decays. No other parameter does, whatever its shape (`OptimiserConfig.weight_decay`)."""

LOSSES = "losses."
"""Prefix of the names of loss terms' weights."""


def freeze(module: nn.Module, trainable: Sequence[str], frozen: Sequence[str]) -> None:
    """Train exactly the parameters whose names match a ``trainable`` pattern and no ``frozen`` one.

    Parts and terms that freeze weights themselves, as a frozen encoder does, keep them so. Weights of loss terms train
    whatever is ``trainable``, except where ``frozen`` excludes them.
    ``module`` and names are as in `trained`.

    UserError for a pattern that matches no parameter, and if nothing of the model is left to train.
    """
    named = {name.removeprefix("model."): parameter for name, parameter in module.named_parameters()}
    for pattern in (*trainable, *frozen):
        if not any(fnmatchcase(name, pattern) for name in named):
            near = difflib.get_close_matches(pattern, named, n=2, cutoff=0.3) or list(named)[:2]
            raise UserError(f"pattern {pattern!r} matches no parameter; names look like {', '.join(near)}")
    for name, parameter in named.items():
        wanted = name.startswith(LOSSES) or any(fnmatchcase(name, pattern) for pattern in trainable)
        chosen = wanted and not any(fnmatchcase(name, pattern) for pattern in frozen)
        parameter.requires_grad_(parameter.requires_grad and chosen)
    check_trains(module)


def check_trains(module: nn.Module) -> None:
    """UserError if no weight of the model trains."""
    if all(name.startswith(LOSSES) for name in trained(module)):
        raise UserError(
            "optimiser.trainable, optimiser.frozen and the losses leave nothing to train; widen the first, narrow the "
            "second, or add a loss of what the first lets train"
        )


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """Trainable parameters by the names that patterns match: the model's own, and ``losses.NAME.…`` of terms.

    ``module`` is a model, or holds one as ``model``.
    """
    named = dict(module.named_parameters())
    if "model.losses" in {".".join(name.split(".")[:2]) for name in named}:
        raise UserError("a part of the model is called losses, as its loss terms are; give that part another name")
    return {name.removeprefix("model."): parameter for name, parameter in named.items() if parameter.requires_grad}


def make_optimiser(module: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """Make AdamW (Loshchilov & Hutter 2019) over the trainable parameters: `parts`, with and without weight decay.

    Every parameter group holds its ``part``, and ``peak`` and ``warmup_share`` of its rate (`group_rate`).
    """
    matrices = {id(m.weight) for m in module.modules() if isinstance(m, DECAYING)}
    names = {id(parameter): name for name, parameter in trained(module).items()}
    groups: list[dict[str, Any]] = []
    for name, parameters in parts(module, config).items():
        own = config.groups[name] if name in config.groups else GroupConfig(parameters=())
        decay = config.weight_decay if own.weight_decay is None else own.weight_decay
        peak = config.lr if own.lr is None else own.lr
        warmup = config.warmup_share if own.warmup_share is None else own.warmup_share
        settings: dict[str, object] = {"part": name, "lr": peak, "peak": peak, "warmup_share": warmup}
        groups += [
            {**settings, "params": [p for p in parameters if id(p) in matrices], "weight_decay": decay},
            {**settings, "params": [p for p in parameters if id(p) not in matrices], "weight_decay": 0.0},
        ]
    groups = [group for group in groups if group["params"]]
    for group in groups:
        group["params"] = [(names[id(parameter)], parameter) for parameter in group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def with_settings(saved: dict[str, Any], fresh: torch.optim.Optimizer) -> dict[str, Any]:
    """State of an optimiser that goes on with the settings and parameters of ``fresh``: what was saved of each of them,
    by name, and nothing of those that did not train before.

    UserError for a state without names (of earlier versions) whose groups are of other sizes.
    """
    now, before = fresh.state_dict()["param_groups"], saved["param_groups"]
    if not all("param_names" in group for group in before):
        if [len(group["params"]) for group in now] != [len(group["params"]) for group in before]:
            raise UserError(
                "other parameters train than when the run began, and its checkpoint does not name them; train what it "
                "trained, or start another run from its weights (weights.path)"
            )
        return {**saved, "param_groups": now}
    indices = {
        name: index
        for group in before
        for name, index in zip(group["param_names"], group["params"], strict=True)
        if index in saved["state"]
    }
    state = {
        index: saved["state"][indices[name]]
        for group in now
        for name, index in zip(group["param_names"], group["params"], strict=True)
        if name in indices
    }
    return {"state": state, "param_groups": now}


def follow_rows(state: dict[str, Tensor], former: Int[Tensor, "n"]) -> None:
    """Give a parameter's moments the rows that it has now: those of the former rows, and 0 for new ones (-1)."""
    for name, value in state.items():
        if value.ndim:  # the count of steps has no rows
            kept = (former >= 0).to(value.device).view(-1, *[1] * (value.ndim - 1))
            state[name] = torch.where(kept, value[former.clamp_min(0).to(value.device)], 0)


def parts(module: nn.Module, config: OptimiserConfig) -> dict[str, list[nn.Parameter]]:
    """Trainable parameters (`trained`) by the groups' patterns; those in none are under "".

    UserError for a pattern that matches no parameter that trains, and for a parameter in two groups.
    """
    named = trained(module)
    owners: dict[str, str] = {}
    for group, settings in config.groups.items():
        for pattern in settings.parameters:
            matched = [name for name in named if fnmatchcase(name, pattern)]
            if not matched:
                raise UserError(f"optimiser.groups.{group}: pattern {pattern!r} matches nothing that trains")
            for name in matched:
                if owners.setdefault(name, group) != group:
                    raise UserError(f"{name} is in two groups, {owners[name]} and {group}; narrow their patterns")
    found: dict[str, list[nn.Parameter]] = {group: [] for group in ("", *config.groups)}
    for name, parameter in named.items():
        found[owners.get(name, "")].append(parameter)
    return found


def group_rate(share: float, config: OptimiserConfig, group: Mapping[str, object], warmed: float = 1.0) -> float:
    """`learning_rate` of one of the optimiser's groups."""
    own = {"lr": cast(float, group["peak"]), "warmup_share": cast(float, group["warmup_share"])}
    return learning_rate(share, dataclasses.replace(config, **own), warmed)


def learning_rate(share: float, config: OptimiserConfig, warmed: float = 1.0) -> float:
    """Learning rate at the fraction ``share`` of the run: linear warm-up from 0, then half a cosine.

    It is lr at ``warmup_share`` and lr · final_lr_share from 1 on. ``warmed`` is the completed fraction of the minimum
    warm-up steps; below 1, the rate is limited to that fraction of its value.
    """
    slow = min(1.0, warmed) if config.warmup_share > 0 else 1.0
    if share < config.warmup_share:
        return config.lr * min(slow, share / config.warmup_share)
    fallen = min(1.0, (share - config.warmup_share) / max(1 - config.warmup_share, 1e-9))
    cosine = (1 + math.cos(math.pi * fallen)) / 2
    return config.lr * slow * (config.final_lr_share + (1 - config.final_lr_share) * cosine)
