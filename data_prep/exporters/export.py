"""Export of a data set's clips in another layout, one folder a clip; broken off, it goes on where it stopped."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from data_prep.exporters.frames import write_cut3r, write_wai
from data_prep.exporters.kubric import write_kubric
from data_prep.exporters.views import Settings, Unfit
from four_d.data.contract import RawClip
from four_d.data.manifest import Manifest
from four_d.data.shards import CorruptSample, ShardReader
from four_d.datasets.decode import json_object
from four_d.errors import UserError
from four_d.outputs import JUNK, keep_apart, write_json
from four_d.progress import progress

LOGGER = logging.getLogger("four_d.data_prep")  # not __name__: users silence, and the program shows, "four_d"

SOURCE = "source.json"
"""File in the output folder that says where its clips are from, their licences, and how they were made."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Layout that can be written."""

    name: str
    """Its word in commands, and that of the importer that reads it."""
    title: str
    write: Callable[[RawClip, Path, Settings], list[str]]
    """Writer of a clip into an empty folder, which returns remarks."""
    lacks: str
    """Parts of a clip that the layout cannot hold, in one line."""


LAYOUTS = {
    each.name: each
    for each in (
        Layout(
            name="kubric",
            title="scenes of MV-Kubric, as MVTracker reads them",
            write=write_kubric,
            lacks="the surface becomes tracks; masks, keypoints and times beyond one frame rate are not kept",
        ),
        Layout(
            name="wai",
            title="scenes of WAI, as MapAnything reads them",
            write=write_wai,
            lacks="the surface becomes depth; tracks, masks and keypoints are not kept",
        ),
        Layout(
            name="cut3r",
            title="scenes in the form of CUT3R's prepared sets (family A)",
            write=write_cut3r,
            lacks="the surface becomes depth; times, tracks, masks and keypoints are not kept",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class Exported:
    """Result of an export."""

    written: int
    """Clips written now."""
    kept: int
    """Clips that were there."""
    left_out: dict[str, str]
    """Key of each clip that the layout cannot hold, or that is damaged → reason."""


def export(layout: Layout, shards: Path, out: Path, settings: Settings | None = None) -> Exported:
    """Write every clip of the shards as a folder ``out/KEY``. Those that are there stay.

    Raises:
        UserError: ``out`` holds something else, or clips of other shards or settings; or no clip can be written.

    """
    settings = settings or Settings()
    with ShardReader(shards) as reader:
        _claim(layout, reader.manifest, out, shards, settings)
        LOGGER.warning(f"{layout.name}: {layout.lacks}")
        left_out, written, kept = dict[str, str](), 0, 0
        remarks = Counter[str]()
        with progress(f"exporting {reader.manifest.name}", len(reader), "clip") as bar:
            for index, sample in enumerate(reader.samples):
                if (out / sample.key).is_dir():
                    kept += 1
                    bar.advance()
                    continue
                try:
                    remarks.update(_write(layout, reader.read(index), out, settings))
                    written += 1
                except (Unfit, CorruptSample) as reason:
                    left_out[sample.key] = str(reason)
                bar.advance()
    for remark, count in remarks.items():
        LOGGER.warning(f"{count} of {written} clips: {remark}")
    for reason in dict.fromkeys(left_out.values()):
        keys = [key for key, why in left_out.items() if why == reason]
        LOGGER.warning(f"{len(keys)} clips are left out: {reason} ({', '.join(keys[:3])}{' …' if keys[3:] else ''})")
    if left_out and not written + kept:
        raise UserError(f"no clip of {shards} fits the layout {layout.name}: {next(iter(left_out.values()))}")
    return Exported(written=written, kept=kept, left_out=left_out)


def _claim(layout: Layout, manifest: Manifest, out: Path, shards: Path, settings: Settings) -> None:
    """Write `SOURCE` into an empty folder. UserError if ``out`` holds anything else than an earlier part of this."""
    keep_apart(out, [shards])
    content: dict[str, object] = {
        "layout": layout.name,
        "tracks": settings.tracks,
        "shards": {info.shard: info.sha256 for info in manifest.shards},
        "sources": {name: cast(dict[str, object], vars(source)) for name, source in manifest.sources.items()},
    }
    path = out / SOURCE
    if path.is_file():
        if json_object(path, "choose another folder") != content:
            raise UserError(f"{out} was exported from other shards or with other settings; choose another folder")
        for partial in out.glob(".*.partial"):
            shutil.rmtree(partial)
    elif out.exists() and (not out.is_dir() or any(each.name not in JUNK for each in out.iterdir())):
        raise UserError(f"{out} is there and was not made by this command; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, content)


def _write(layout: Layout, clip: RawClip, out: Path, settings: Settings) -> list[str]:
    """Write a clip beside its place, and move it there when it is whole. Returns remarks."""
    partial = out / f".{clip.key}.partial"
    partial.mkdir()
    try:
        remarks = layout.write(clip, partial, settings)
        partial.rename(out / clip.key)
    except OSError as error:
        raise UserError(f"cannot write {out / clip.key}: {error.strerror or error}; check the disk") from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
    return remarks
