"""What a model can do, whether it is loaded or not."""

from __future__ import annotations

from four_d.heads.gaussian import GaussianHead
from four_d.metrics.baselines import Model


def moves(model: Model) -> bool:
    """Whether it has a motion head."""
    return bool(getattr(getattr(model, "model", model), "moves", False))


def paints(model: Model) -> bool:
    """Whether it gives Gaussians."""
    heads = getattr(getattr(model, "model", model), "heads", {})
    return any(isinstance(head, GaussianHead) for head in (heads.values() if heads else ()))


def hints_taken(model: Model) -> tuple[str, ...] | None:
    """The hints that it takes; None of a model that does not say."""
    backbone = getattr(getattr(model, "model", model), "backbone", None)
    return getattr(backbone, "takes", None)
