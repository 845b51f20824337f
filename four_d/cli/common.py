"""Helpers shared by several groups of verbs."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from four_d.cli.flags import Forms, add_flags, from_flags

if TYPE_CHECKING:
    import torch

    from four_d.devices import Precision
    from four_d.inference import LoadedModel

T = TypeVar("T")
Command = Callable[[argparse.Namespace], int]
Verbs = argparse._SubParsersAction  # pyright: ignore[reportPrivateUsage]  # argparse names this type nowhere else

NUMBERS = re.compile(r"-[\d.][\d.,e-]*")
"""Arguments that begin with a minus but are not options, as -5,10."""


@dataclass(frozen=True, kw_only=True)
class Nothing:
    """Flags of a verb that has none."""


class Verb(argparse.ArgumentParser):
    """Parser that adds its flags on first use: the dataclasses of some verbs take seconds to import."""

    fill: Callable[[], None] | None = None

    def parse_known_args(self, args=None, namespace=None):  # noqa: ANN001, ANN201  # pyright: ignore
        """Add the flags, then parse as argparse does."""
        if self.fill is not None:
            self.fill, fill = None, self.fill
            fill()
        return super().parse_known_args(args, namespace)


def add_verb(
    verbs: Verbs[Verb],
    name: str,
    run: Callable[[T], int],
    text: str,
    kind: Callable[[], type[T]],
    forms: Forms | None = None,
) -> None:
    """Add a verb: ``run`` is called with the dataclass that ``kind`` imports, whose fields are the verb's flags."""
    verb = verbs.add_parser(name, help=text, description=text)
    # argparse knows only single negative numbers; the converter of an argument reports errors in several
    verb._negative_number_matcher = NUMBERS  # pyright: ignore[reportPrivateUsage]
    verb.fill = lambda: add_flags(verb, kind(), forms)

    def command(arguments: argparse.Namespace) -> int:
        return run(from_flags(arguments, kind(), forms))

    verb.set_defaults(command=command)


def placed(model: LoadedModel, device: str | torch.device, precision: Precision) -> LoadedModel:
    """Move a model to a device and precision, and report both on stderr."""
    from four_d.devices import announce

    moved = model.to(device, precision)
    announce(moved.device, precision)
    return moved


def check_figures(file: Path | None, key: str, inputs: Sequence[str | Path | None]) -> None:
    """Raise UserError if the JSON file of scores must not be written there."""
    from four_d.outputs import check_json

    if file is not None:
        check_json(file, key, inputs)


def split(values: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate config files from key=value overrides, in any order; weights=PATH is short for weights.path=PATH."""
    overrides = [v for v in values if "=" in v]
    short = re.compile(r"^weights=(?!null$)")
    return [v for v in values if "=" not in v], [short.sub("weights.path=", v, count=1) for v in overrides]
