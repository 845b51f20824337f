"""Verb infer: outputs of a model for a video."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from four_d.cli.common import Verb, Verbs, add_verb, placed
from four_d.cli.flags import Form
from four_d.cli.values import bones, instance, path, pinhole, point

if TYPE_CHECKING:
    from four_d.cli.request import Infer

FORMS = {
    "video": Form(parse=path, metavar="VIDEO", several=True, positional=True),
    "intrinsics": Form(parse=pinhole, metavar="FX,FY,CX,CY"),
    "cameras": Form(metavar="FILE"),
    "depth": Form(metavar="DIR"),
    "depth_unit": Form(metavar="UNIT"),
    "mask": Form(metavar="PATH"),
    "points": Form(parse=point, metavar="X,Y"),
    "keypoints": Form(parse=instance, metavar="NAME,NAME[@X0,Y0,X1,Y1]"),
    "keypoint_edges": Form(parse=bones, metavar="NAME:NAME,NAME:NAME", several=False),
    "window": Form(metavar="N"),
    "overlap": Form(metavar="K"),
    "merge": Form(metavar="SHARE"),
    "start": Form(metavar="SECONDS"),
}
"""Command-line forms of the fields of `Request`."""


def add_verbs(verbs: Verbs[Verb]) -> None:
    """Add infer."""
    add_verb(verbs, "infer", _infer, "Cameras, depth, points and a report page of one video.", _flags, FORMS)


def _flags() -> type[Infer]:
    from four_d.cli.request import Infer

    return Infer


def _infer(arguments: Infer) -> int:
    from four_d.checkpoints import best_reference
    from four_d.devices import usable
    from four_d.inference import check_output, infer, load
    from four_d.model import compile_blocks

    device = usable(arguments.device)
    source, reference = (arguments.model, None) if arguments.model is not None else best_reference()
    request = arguments.request
    check_output(arguments.out, request, source, overwrite=arguments.overwrite)
    request.check()
    if reference is not None:
        print(f"no --model given: taking {source} ({reference.summary}; {reference.licence})", file=sys.stderr)
    model = placed(load(source), device, arguments.precision)
    if arguments.compile:
        compile_blocks(model.model)
    infer(
        model,
        request,
        arguments.out,
        static_points=arguments.static_points,
        novel_views=arguments.novel_views,
        overwrite=arguments.overwrite,
    )
    print(arguments.out)
    return 0
