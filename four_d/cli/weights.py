"""Verbs for weights of other projects: weights list, convert, verify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from four_d.cli.common import Nothing, Verb, Verbs, add_verb
from four_d.cli.flags import Form


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Flags of weights convert."""

    kind: Annotated[str, Form(positional=True, metavar="KIND")]
    """Source project: vggt, page_4d or dinov2."""
    source: Annotated[Path, Form(positional=True, metavar="SRC")]
    """Weights file: .safetensors, .pt or .pth."""
    out: Annotated[Path, Form(positional=True, metavar="OUT")]
    """Folder to write (with --reverse: a .safetensors file)."""
    config: Annotated[tuple[str, ...], Form(metavar="CONFIG|key=value")] = ()
    """Configs with the model's sizes, as overlays/large (default: from the tensors' shapes)."""
    name: str | None = None
    """Entry of `weights list`, whose source and licence go onto the model card."""
    reverse: bool = False
    """Convert back: SRC is a model of four_d, OUT gets KIND's tensor names."""
    overwrite: bool = False
    """Replace whatever four_d wrote there; other files are never removed."""


@dataclass(frozen=True, kw_only=True)
class Verify:
    """Flags of weights verify."""

    case: Annotated[Path, Form(positional=True, metavar="CASE_DIR")]
    """Folder with case.json, weights, inputs and outputs."""


def add_verbs(verbs: Verbs[Verb]) -> None:
    """Add weights list, convert and verify."""
    weights = verbs.add_parser("weights", help="list, convert and verify weights of other projects")
    weights = weights.add_subparsers(required=True, metavar="VERB")
    text = "Weights that can be converted, their licences, and reference models here."
    add_verb(weights, "list", _weights_list, text, lambda: Nothing)
    text = "Write other projects' weights as a model of ours, or back."
    add_verb(weights, "convert", _weights_convert, text, lambda: Convert)
    text = "Compare our outputs with a golden case's; exit 1 if they differ."
    add_verb(weights, "verify", _weights_verify, text, lambda: Verify)


def _weights_list(_: Nothing) -> int:
    from four_d.weights import show

    show()
    return 0


def _weights_convert(arguments: Convert) -> int:
    from four_d.weights import convert, convert_back

    kind, source, out = arguments.kind, arguments.source, arguments.out
    if arguments.reverse:
        print(convert_back(kind, source, out, overwrite=arguments.overwrite))
        return 0
    configs, name = arguments.config, arguments.name
    print(convert(kind, source, out, configs=configs, name=name, overwrite=arguments.overwrite))
    return 0


def _weights_verify(arguments: Verify) -> int:
    from four_d.weights import verify

    report = verify(arguments.case)
    report.print()
    return 0 if report.good else 1
