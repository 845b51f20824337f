"""Import of data sets: from a reader's sequences to shards, after a check of the first clips."""

from __future__ import annotations

import logging
import re
import shutil
import tempfile
from collections.abc import Sequence as Items
from dataclasses import replace
from functools import partial
from pathlib import Path

from data_prep.importers.fingerprint import fingerprint
from data_prep.importers.sequences import Settings, clip_of, parts
from data_prep.importers.writing import Origin, Planned, write_clips
from four_d.data.check import check, spread
from four_d.data.manifest import Manifest, load_sidecar, refuse_foreign, shard_names
from four_d.data.shards import finalise, shard_done, write_shard
from four_d.datasets.facts import DataSet
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.outputs import HELD, hold, keep_apart, remove_left_behind

LOGGER = logging.getLogger("four_d.data_prep")  # not __name__: users silence, and the program shows, "four_d"

TRIAL = 3
"""Clips that are checked before the import goes on."""
SHARD_BYTES = 200e6
"""Size of a shard that is aimed at."""
MOST_CLIPS = 256
"""Most clips of a shard."""
_WORD = re.compile(r"[^A-Za-z0-9_]+")
_NAME_LENGTH = 48


def import_dataset(
    dataset: DataSet,
    root: Path,
    out: Path,
    settings: Settings | None = None,
    *,
    only: tuple[str, ...] | None = None,
    clips_per_shard: int | None = None,
    checked: bool = True,
) -> Manifest:
    """Write the sequences of a set under ``root`` as shards in ``out``. Safe to run again: finished shards stay.

    Before the first shard a few clips, evenly chosen, are written aside and checked (`data.check`), and the room that
    all will take is measured on them.

    Args:
        dataset: facts and reader of the set.
        root: its folder, laid out as published.
        out: folder of the shards.
        settings: choices.
        only: names of sequences; None: all.
        clips_per_shard: None: as many as make shards of about 200 MB.
        checked: False goes on whatever the check finds.

    Raises:
        UserError: ``out`` and ``root`` that lie in one another, files that are missing or unreadable, first clips that
            fail the check, too little room, or shards in ``out`` of other sequences or settings.

    """
    settings = settings or Settings()
    if dataset.notes:
        LOGGER.warning(f"{dataset.name}: {dataset.notes}")
    keep_apart(out, [root])
    sequences = dataset.open(root, only)
    plans = _plans(dataset, sequences, settings)
    out.mkdir(parents=True, exist_ok=True)
    refuse_foreign(out)
    if shard_done(out, 0):
        count = clips_per_shard or len(load_sidecar(out / shard_names(0)[1]).samples)
    else:
        size = _trial(dataset, plans, out, checked)
        _require_room(dataset, sequences, plans, out, size)
        count = clips_per_shard or max(1, min(MOST_CLIPS, round(SHARD_BYTES / size)))
    return write_clips(out, plans, None, name=settings.name or dataset.name, clips_per_shard=count)


def _plans(dataset: DataSet, sequences: Items[Sequence], settings: Settings) -> list[Planned]:
    """Clips of all sequences, in order."""
    planned: list[Planned] = []
    taken: dict[str, int] = {}
    for sequence in sequences:
        word = _WORD.sub("-", sequence.name).strip("-")[-_NAME_LENGTH:] or "sequence"
        number = taken[word] = taken.get(word, -1) + 1
        word = word if not number else f"{word[-_NAME_LENGTH + 4 :]}-{number}"
        choices: dict[str, object] = {
            "sequence": sequence.name,
            "long_side": settings.long_side,
            "clip_frames": settings.clip_frames,
            "every": settings.every,
            "most_tracks": settings.most_tracks,
            "depth_tolerance": settings.depth_tolerance or dataset.depth_tolerance,
            "source": settings.name or dataset.name,
            "licence": settings.licence or dataset.licence,
        }
        origin = Origin(name=f"four-d data import {dataset.name}", files={}, settings=choices)
        for part in parts(sequence, settings):
            key = f"{word}-{min(part):06d}"
            make = partial(clip_of, dataset, sequence, part, settings, key)
            planned.append(Planned(key=key, origin=origin, make=make, files=partial(_files, sequence, part)))
    return planned


def _files(sequence: Sequence, part: Items[int]) -> dict[str, str]:
    """Digests of what a clip is read from, by names that tell a user where to look."""
    found = fingerprint(sequence.take(part))
    return {f"{sequence.name} ({name}, frame {part[0]} and on)": each for name, each in found.items()}


def _trial(dataset: DataSet, plans: Items[Planned], out: Path, checked: bool) -> float:
    """Write and check a few clips aside; return the mean bytes of a clip. UserError where a convention is wrong."""
    remove_left_behind(out.glob(".trial-*"))
    with (
        tempfile.TemporaryDirectory(prefix=".trial-", dir=out) as place,
        (Path(place) / HELD).open("wb") as held,
    ):
        hold(held.fileno())
        folder = Path(place)
        write_shard(folder, 0, (plans[index].make() for index in spread(len(plans), TRIAL)))
        manifest = finalise(folder, dataset.name)
        report = check(folder)
        if not report.ok and checked:
            LOGGER.error(replace(report, place=f"{dataset.name}, its first clips").table())
            raise UserError(
                f"{len(report.failures)} checks of the first {report.clips} clips failed, the first: "
                f"{report.failures[0]} Nothing was imported; correct the files or the reader, or, if this is how the "
                "data is, say --unchecked"
            )
        for line in report.unchecked():
            LOGGER.warning(line)
        return manifest.bytes / manifest.clips


def _require_room(dataset: DataSet, sequences: Items[Sequence], plans: Items[Planned], out: Path, size: float) -> None:
    """Say how much room all clips will take; UserError if there is less."""
    free, needed = shutil.disk_usage(out).free, size * len(plans)
    LOGGER.warning(
        f"{dataset.name}: {len(sequences)} sequences, {len(plans)} clips, about {_gigabytes(needed)} "
        f"({_gigabytes(free)} free)"
    )
    if needed > free:
        raise UserError(
            f"{out} has {_gigabytes(free)} free and the import takes about {_gigabytes(needed)}; choose another disk, "
            "fewer sequences (--sequences), or smaller images (--long-side)"
        )


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.1f} MB"
