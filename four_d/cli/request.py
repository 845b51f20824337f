"""Flags of infer, in a module of their own: it imports the dataclasses of inference, so only the verb imports it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from four_d.cli.flags import Form
from four_d.devices import Precision
from four_d.inference import Request


@dataclass(frozen=True, kw_only=True)
class Infer:
    """Flags of infer."""

    request: Request
    """Videos, and what is known and asked of them."""
    model: Annotated[Path | None, Form(metavar="PATH")] = None
    """Exported folder, its program (model.pt2) or run folder (default: the best reference model)."""
    out: Annotated[Path, Form(metavar="DIR")]
    """Folder to write."""
    device: str = "auto"
    """Device, as cpu, cuda, cuda:1 or mps; auto: cuda if there is a GPU, else Apple's (mps), else the CPU."""
    precision: Precision = "fp32"
    """Precision of the model's arithmetic: on a GPU bf16 is the fastest, then tf32."""
    compile: bool = False
    """Compile the model's transformer blocks first, which takes a minute or more and pays for many windows."""
    novel_views: bool = True
    """Render novel_views.mp4 of the Gaussians."""
    static_points: bool = False
    """Leave moving points out of the point cloud."""
    overwrite: bool = False
    """Replace whatever four_d wrote there; other files are never removed."""
