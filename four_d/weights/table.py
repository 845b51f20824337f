"""Published weights that an adapter reads. Nothing is ever downloaded: the user provides the file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.console import Console

from four_d import checkpoints
from four_d.checkpoints import CONFIG, read_info
from four_d.encoders import PUBLISHED

AdapterKind = Literal["vggt", "page_4d", "dinov2"]


@dataclass(frozen=True, kw_only=True)
class KnownWeights:
    """Facts of one published weight file."""

    name: str
    kind: AdapterKind
    """Adapter that reads it: the KIND of ``four-d weights convert``."""
    what: str
    source: str
    """Publisher, in words."""
    licence: str
    """Licence of the weights, in words; not of the code."""
    sha256: str | None = None
    """Checksum; None: not recorded, so the file cannot be recognised."""


KNOWN: tuple[KnownWeights, ...] = (
    KnownWeights(
        name="vggt-1b",
        kind="vggt",
        what="VGGT-1B: cameras, depth, points, pixel tracks; 1,257 M parameters",
        source="the authors of VGGT (facebookresearch/vggt), original release",
        licence="non-commercial",
    ),
    KnownWeights(
        name="vggt-1b-commercial",
        kind="vggt",
        what="the same model, trained anew",
        source="the authors of VGGT, behind a form",
        licence="commercial use allowed, except military",
    ),
    KnownWeights(
        name="page4d-mask",
        kind="page_4d",
        what="PAGE-4D with its mask head (checkpoint_mask.pt); no track head",
        source="the authors of PAGE-4D (kaichen-z/PAGE4D), data set zhouk777/PAGE4D",
        licence="none stated; tuned from VGGT-1B, whose licence is non-commercial",
    ),
    KnownWeights(
        name="page4d-nomask",
        kind="page_4d",
        what="PAGE-4D whose mask was faded out in training (checkpoint_nomask.pt): VGGT's shape; the authors' choice",
        source="the authors of PAGE-4D (kaichen-z/PAGE4D), data set zhouk777/PAGE4D",
        licence="none stated; tuned from VGGT-1B, whose licence is non-commercial",
    ),
    *(
        KnownWeights(
            name=f"dinov2-{size}",
            kind="dinov2",
            what=f"DINOv2 ViT-{size[0].upper()}/14 with 4 registers or without: the image encoder alone",
            source="the authors of DINOv2, or timm's conversion of it",
            licence="not recorded here; see its publisher's",
        )
        for size in ("small", "base", "large")
    ),
)
"""Known weights, by strictness within a kind: the first one's licence is assumed unless the user names another."""


def show(references: Sequence[Path] | None = None, console: Console | None = None) -> None:
    """Print known weights, also of encoders, and our models in the first of the folders ``references`` that has any.

    UserError if one of those is damaged.
    """
    console = console or Console()
    references = checkpoints.REFERENCES if references is None else references
    console.print("Weights that can be converted (four-d weights convert KIND SRC OUT):")
    for each in KNOWN:
        console.print(f"\n[bold]{each.name}[/bold]  KIND {each.kind}\n  {each.what}\n  published by {each.source}")
        console.print(f"  licence of the weights: {each.licence}; sha256: {each.sha256 or 'not recorded'}")
    console.print("\nWeights of image encoders (pretrained of patches of kind features), as packages of the index:")
    for one in PUBLISHED:
        console.print(f"\n[bold]{one.package}[/bold]  {one.model} of timm\n  licence of the weights: {one.licence}")
        console.print(f"  sha256: {one.sha256}")
    models = {folder: sorted(folder.glob(f"*/{CONFIG}")) for folder in references}
    folder_used = next((folder for folder, files in models.items() if files), references[0])
    console.print(f"\nOur models in {folder_used}/:")
    for file in models[folder_used]:
        info = read_info(file)
        data = ", ".join(f"{source} ({licence})" for source, licence in info.trained_on.items()) or "not recorded"
        console.print(f"\n[bold]{file.parent}[/bold]  {info.name}\n  trained on {data}, {info.steps} steps")
