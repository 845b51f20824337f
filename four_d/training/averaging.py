"""Running average of the trainable weights, which is validated, saved and exported."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from four_d.sharding import like
from four_d.training.optimiser import trained


class Average:
    """Exponential moving average of all trainable weights; others are the module's own.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that short runs are not averages of their beginnings.
    Steps that the optimiser did not take count as none.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._decay = decay
        self.updates = torch.zeros((), dtype=torch.long)
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in trained(module).items()}

    @torch.no_grad()
    def update(self, module: nn.Module, taken: Bool[Tensor, ""]) -> None:
        """Update the average after one more step, if it was ``taken``; the device decides, and nothing waits for it."""
        updates = self.updates.to(taken.device)
        decay = ((1 + updates) / (10 + updates)).clamp_max(self._decay)
        part = torch.where(taken, 1 - decay, 0.0)
        for name, parameter in trained(module).items():
            self.weights[name] = self.weights[name].to(parameter.device).lerp_(parameter, part.to(parameter))
        self.updates = updates + taken

    def follow_rows(self, name: str, parameter: Tensor, former: Int[Tensor, "n"]) -> None:
        """Go on with other rows of a parameter: each as the former row, or (-1) as the parameter's own."""
        old = former.clamp_min(0).to(self.weights[name].device)
        kept = (former >= 0).to(parameter.device).view(-1, *[1] * (parameter.ndim - 1))
        self.weights[name] = torch.where(kept, self.weights[name][old].to(parameter), parameter.detach())

    @contextmanager
    def applied(self, module: nn.Module) -> Generator[None]:
        """Give the module the averaged weights within the block."""
        current = {name: p.detach().clone() for name, p in trained(module).items()}
        _assign(module, self.weights)
        try:
            yield
        finally:
            _assign(module, current)

    def load(self, weights: Mapping[str, Tensor], updates: int) -> None:
        """Continue from saved averages."""
        self.weights = {name: like(own, weights[name]).detach().clone() for name, own in self.weights.items()}
        self.updates = torch.tensor(updates)


@torch.no_grad()
def _assign(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, parameter in trained(module).items():
        parameter.copy_(weights[name])
