"""What a model can do, whether it is loaded or not."""

from __future__ import annotations

from four_d.data.sampling import Normalisation
from four_d.metrics.baselines import Model


def moves(model: Model) -> bool:
    """Whether it has a motion head."""
    return bool(getattr(getattr(model, "model", model), "moves", False))


def paints(model: Model) -> bool:
    """Whether it gives Gaussians."""
    return gaussian_frames(model) is not None


def gaussian_frames(model: Model) -> int | None:
    """To how many times it moves Gaussians, which is how many frames of a video it takes; None if it gives none."""
    head = getattr(getattr(model, "model", model), "gaussian", None)
    return None if head is None else head.frames


def hints_taken(model: Model) -> tuple[str, ...] | None:
    """The hints that it takes; None of a model that does not say."""
    backbone = getattr(getattr(model, "model", model), "backbone", None)
    return getattr(backbone, "takes", None)


def unit_of(model: Model) -> Normalisation:
    """In which a loaded model was trained; the usual one of any other."""
    return getattr(getattr(model, "info", None), "normalisation", "mean_distance")
