"""Flags of fit, in a module of their own: it imports the dataclass of fitting, so only the verb imports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from four_d.cli.flags import Form
from four_d.fitting import FitRequest


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Flags of fit."""

    request: FitRequest
    """Video, object, and how long."""
    out: Annotated[Path, Form(metavar="DIR")]
    """Folder of the fit."""
    settings: Annotated[tuple[str, ...], Form(metavar="key=value", name="set")] = ()
    """Settings of the run (configs/pad3r.yaml), as losses.rigidity.weight=2."""
