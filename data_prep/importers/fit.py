"""Import of fitted scenes (``four-d fit``): one clip a fit, with the cameras, depth and tracks that the fit found."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from data_prep.importers.vocabulary import Vocabulary
from data_prep.importers.writing import Origin, Planned, digest, write_clips
from four_d.data.contract import RawClip
from four_d.data.manifest import Manifest
from four_d.errors import UserError

_KEY = re.compile(r"[^A-Za-z0-9_-]+")
NAME_LENGTH = 60
"""Characters of a folder's name in keys."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """One fit: its folder, the files that its clip is made of, and how."""

    folder: Path
    files: Sequence[Path]
    make: Callable[[Path], RawClip]


def import_fits(
    fits: Sequence[Fitted], out: Path, *, name: str = "fits", licence: str = "unknown", clips_per_shard: int = 16
) -> Manifest:
    """Write fitted scenes as shards in ``out``, one clip each, named after its folder.

    Raises:
        UserError: no fit, a file that cannot be read, and what `write_clips` refuses.

    """
    if not fits:
        raise UserError("no folder of a fit is given; name one at least")
    plans = [_plan(each, name, licence) for each in fits]
    return write_clips(out, plans, Vocabulary(), name=name, clips_per_shard=clips_per_shard)


def _plan(fit: Fitted, name: str, licence: str) -> Planned:
    key = _KEY.sub("-", fit.folder.resolve().name)[:NAME_LENGTH]
    files = {file.relative_to(fit.folder).as_posix(): digest(file) for file in fit.files}
    origin = Origin(name="four-d data import fit", files=files, settings={"name": name, "licence": licence})
    return Planned(key=key, origin=origin, make=partial(_made, fit, key, name, licence))


def _made(fit: Fitted, key: str, name: str, licence: str) -> RawClip:
    clip = fit.make(fit.folder)
    return replace(clip, key=key, info=replace(clip.info, source=name, licence=licence))
