"""Studies: what is compared, as data. `benchmarks/study.py` runs them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from four_d.metrics.metric import Metric

DATA = Path("runs/studies/data")
"""Shards of all studies; those that are there are not made again."""
REFERENCE = "unified-base@d6f7869"
"""Reference model that trainings start from, with the commit that has it: a better one would give other results."""
SIDE = 128
"""Rows and columns of the pictures of the studies that begin with reference models."""
BASE = ("overlays/unified_base", f"data.image_size=[{SIDE},{SIDE}]")
"""Its recipe, at that size."""
CORRELATION = ("backbone.features.*", "backbone.neighbours.*")
"""Its weights that compare frames."""
MOTION_PARTS = ("heads.motion.*", "heads.gaussian.*", "refine.*")
"""Those of its motion, its Gaussians and its mask's correction."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """Arguments of ``four-d data make``."""

    name: str
    arguments: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Folder of its shards."""
        return DATA / self.name


@dataclass(frozen=True, kw_only=True)
class Training:
    """Arguments of ``four-d train`` or ``finetune`` (which starts from another training's result)."""

    values: tuple[str, ...]
    start: str | None = None
    """Weights that it starts from: a shared training by its name, or else a reference model of some commit."""
    evaluation: tuple[str, ...] = ()
    """More arguments of ``four-d eval``; they override the study's."""
    also: tuple[str, ...] = ()
    """Arguments of a second ``four-d eval``, for figures that the first does not give."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that is there already: a row of scores, without training."""

    path: str
    """Folder, or a reference model of some commit, NAME@COMMIT."""
    evaluation: tuple[str, ...]
    """All arguments of ``four-d eval`` after the path."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A figure of ``four-d eval --json``'s summary."""

    metric: Metric
    label: str
    compared: bool = True
    """False: a fact about the data, in the figures but in neither plot nor table."""
    digits: int = 3
    """Significant ones, in the table."""
    called: str | None = None
    """Name in the study's figures; None: the metric's."""

    @property
    def name(self) -> str:
        """Name in the study's figures."""
        return self.called or self.metric.name


@dataclass(frozen=True, kw_only=True)
class Study:
    """Variants under the same budget and seeds, scored on the same held-out clips."""

    name: str
    data: tuple[DataSet, ...]
    shared: dict[str, Training]
    """Trained once, with the first seed; variants may start from them."""
    variants: dict[str, Training]
    seeds: tuple[int, ...]
    evaluation: tuple[str, ...]
    """Arguments of ``four-d eval`` after the checkpoint."""
    keys: tuple[Key, ...]
    predictors: dict[str, str] = field(default_factory=dict[str, str])
    """Rows for predictors beside the model → their names in ``four-d eval``."""
    models: dict[str, Model] = field(default_factory=dict[str, Model])
    """Rows of models that are only scored."""
    others: tuple[str, ...] = ()
    """Rows whose raw lines another command writes."""
    piece_minutes: float = 15.0
    """A run that takes longer is stopped, and goes on in the next piece."""
    environment: dict[str, str] = field(default_factory=lambda: {"OMP_NUM_THREADS": "1"})
