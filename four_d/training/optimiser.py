"""Which weights train, how they decay, and the learning rate over a run."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import cast

import torch
from torch import nn

from four_d.config import GroupConfig, OptimiserConfig
from four_d.errors import UserError

DECAYING = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
"""Weight decay acts on the matrices of these; never on biases, norms, scales or tokens."""


def freeze(model: nn.Module, trainable: Sequence[str], frozen: Sequence[str]) -> None:
    """Let exactly the parameters train whose name matches a ``trainable`` pattern and no ``frozen`` one.

    UserError for a pattern that matches no parameter, and if nothing is left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in (*trainable, *frozen):
        if not any(fnmatchcase(name, pattern) for name in names):
            near = difflib.get_close_matches(pattern, names, n=2, cutoff=0.3) or names[:2]
            raise UserError(f"pattern {pattern!r} matches no parameter; names look like {', '.join(near)}")
    for name, parameter in model.named_parameters():
        wanted = any(fnmatchcase(name, pattern) for pattern in trainable)
        parameter.requires_grad_(wanted and not any(fnmatchcase(name, pattern) for pattern in frozen))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError("optimiser.frozen leaves nothing to train; narrow its patterns")


def make_optimiser(model: nn.Module, config: OptimiserConfig) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019) over what trains: each part of `parts` with and without weight decay.

    Every parameter group knows its ``part``, and ``peak`` and ``warmup_share`` of its rate (`group_rate`).
    """
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, DECAYING)}
    groups: list[dict[str, object]] = []
    for name, parameters in parts(model, config).items():
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
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def parts(model: nn.Module, config: OptimiserConfig) -> dict[str, list[nn.Parameter]]:
    """What trains, by the groups' patterns; what is in none stands under "".

    UserError for a pattern that matches no parameter that trains, and for a parameter in two groups.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    owners: dict[str, str] = {}
    for group, settings in config.groups.items():
        for pattern in settings.parameters:
            matched = [name for name in trained if fnmatchcase(name, pattern)]
            if not matched:
                raise UserError(f"optimiser.groups.{group}: pattern {pattern!r} matches nothing that trains")
            for name in matched:
                if owners.setdefault(name, group) != group:
                    raise UserError(f"{name} is in two groups, {owners[name]} and {group}; narrow their patterns")
    found: dict[str, list[nn.Parameter]] = {group: [] for group in ("", *config.groups)}
    for name, parameter in trained.items():
        found[owners.get(name, "")].append(parameter)
    return found


def group_rate(share: float, config: OptimiserConfig, group: Mapping[str, object]) -> float:
    """`learning_rate` of one of the optimiser's groups."""
    own = {"lr": cast(float, group["peak"]), "warmup_share": cast(float, group["warmup_share"])}
    return learning_rate(share, dataclasses.replace(config, **own))


def learning_rate(share: float, config: OptimiserConfig) -> float:
    """The learning rate when ``share`` of the run is over: linear warm-up from 0, then half a cosine.

    It is lr at ``warmup_share`` and lr · final_lr_share from 1 on.
    """
    if share < config.warmup_share:
        return config.lr * share / config.warmup_share
    fallen = min(1.0, (share - config.warmup_share) / max(1 - config.warmup_share, 1e-9))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * (1 + math.cos(math.pi * fallen)) / 2)
