"""The running average of a model's weights, which is what gets validated, saved and exported."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """Exponential moving average of all weights that train; what does not train is as the model has it.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that short runs are not averages of their beginnings.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.updates = 0
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in _trained(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take in the weights after one more update of the model."""
        decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in _trained(model).items():
            self.weights[name] = self.weights[name].to(parameter.device).lerp_(parameter, 1 - decay)
        self.updates += 1

    @contextmanager
    def applied(self, model: nn.Module) -> Generator[None]:
        """Within, the model has the averaged weights."""
        current = {name: p.detach().clone() for name, p in _trained(model).items()}
        _assign(model, self.weights)
        try:
            yield
        finally:
            _assign(model, current)

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Go on from saved averages."""
        self.weights = {name: weights[name].detach().clone() for name in self.weights}
        self.updates = updates


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def _assign(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in _trained(model).items():
        parameter.copy_(weights[name])
