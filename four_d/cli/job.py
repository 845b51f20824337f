"""Flags of submit, apart from its verb: they import the training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from four_d.cli.flags import Form
from four_d.training.slurm import Job


@dataclass(frozen=True, kw_only=True)
class Submit:
    """Flags of submit."""

    values: Annotated[tuple[str, ...], Form(positional=True, metavar="CONFIG|key=value")]
    """Config files, merged left to right, and settings, as train takes them."""
    job: Job = field(default_factory=Job)
    backend: Literal["slurm"] = "slurm"
    """Scheduler."""
    dry_run: bool = False
    """Print the script and do nothing else."""
