"""Verb fit: a scene of the object in one video."""

from __future__ import annotations

from typing import TYPE_CHECKING

from four_d.cli.common import Verb, Verbs, add_verb
from four_d.cli.flags import Form
from four_d.cli.values import auto, path, thing

if TYPE_CHECKING:
    from four_d.cli.fitting import Fit

FORMS = {
    "video": Form(parse=path, metavar="VIDEO", positional=True),
    "object": Form(parse=thing, metavar="FILE|synthetic:KIND@SEED"),
    "init": Form(metavar="NAME|PATH"),
    "mask": Form(metavar="PATH"),
    "pose_net": Form(metavar="RUN"),
    "tracks": Form(parse=auto, metavar="FILE|auto"),
    "model": Form(metavar="PATH"),
}
"""Command-line forms of the fields of `FitRequest`."""


def add_verbs(verbs: Verbs[Verb]) -> None:
    """Add fit."""
    text = "Fit moving Gaussians of one object, and the cameras, to one video; go on with a fit that was broken off."
    add_verb(verbs, "fit", _fit, text, _flags, FORMS)


def _flags() -> type[Fit]:
    from four_d.cli.fitting import Fit

    return Fit


def _fit(arguments: Fit) -> int:
    from four_d.fitting import deliver, fit

    result = fit(arguments.request, arguments.out, arguments.settings)
    if result.exit_code:
        return result.exit_code
    deliver(arguments.request, arguments.out)
    print(arguments.out)
    return 0
