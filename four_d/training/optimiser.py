"""Which weights train, how they decay, and the learning rate over a run."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import nn

from four_d.config import OptimiserConfig
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
    """AdamW (Loshchilov & Hutter 2019) over what trains, in two groups: with and without weight decay."""
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, DECAYING)}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if id(p) in matrices], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if id(p) not in matrices], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def learning_rate(share: float, config: OptimiserConfig) -> float:
    """The learning rate when ``share`` of the run is over: linear warm-up from 0, then half a cosine.

    It is lr at ``warmup_share`` and lr · final_lr_share from 1 on.
    """
    if share < config.warmup_share:
        return config.lr * share / config.warmup_share
    fallen = min(1.0, (share - config.warmup_share) / max(1 - config.warmup_share, 1e-9))
    return config.lr * (config.final_lr_share + (1 - config.final_lr_share) * (1 + math.cos(math.pi * fallen)) / 2)
