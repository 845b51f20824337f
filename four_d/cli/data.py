"""Verbs for shards: data make, import, export, index, check, stats, show."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from four_d.cli.common import Verb, Verbs, add_verb, check_figures
from four_d.cli.flags import Form
from four_d.cli.values import count, counts, first_index, names, shares, tolerance
from four_d.errors import UserError

if TYPE_CHECKING:
    from data_prep.exporters.export import Layout
    from four_d.cli.world import Make
    from four_d.data.manifest import Manifest
    from four_d.datasets.facts import DataSet

HIDDEN = Form(hidden=True)
WORLD = {
    "width": HIDDEN,
    "height": HIDDEN,
    "antialias": HIDDEN,
    "objects": Form(parse=counts, metavar="A:B"),
    "creatures": Form(parse=counts, metavar="A:B"),
    "species": Form(parse=names, metavar="KIND,…", several=False, separator=","),
    "obstacles": Form(parse=counts, metavar="A:B"),
    "moving": Form(parse=shares, metavar="A:B"),
    "duration_s": Form(parse=shares, metavar="A:B", name="seconds"),
    "paths": Form(parse=names, metavar="KIND,…", several=False, separator=","),
    "starts": Form(parse=names, metavar="KIND,…", several=False, separator=","),
    "scenes": Form(parse=names, metavar="KIND,…", several=False, separator=","),
    "effects": Form(parse=names, metavar="KIND,…", several=False, separator=","),
    "soft": Form(parse=counts, metavar="A:B"),
    "cloths": Form(parse=counts, metavar="A:B"),
    "photographs": Form(metavar="FOLDER"),
    "meshes": Form(metavar="FOLDER"),
    "blender": Form(metavar="PYTHON"),
    "samples": Form(metavar="N"),
    "hdri": Form(metavar="FILE"),
    "assets_licence": Form(metavar="TEXT"),
    "rolling_shutter_s": Form(metavar="SECONDS", name="rolling-shutter"),
    "rig_m": Form(metavar="METRES", name="rig"),
}
"""Command-line forms of the fields of `WorldSettings`."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """Flags of data check."""

    folder: Annotated[str, Form(positional=True)]
    """Folder of shards, or the address of one (http, https, s3)."""
    clips: Annotated[int | None, Form(parse=count)] = None
    """Number of clips to read, evenly spaced (default: all)."""
    depth_tolerance: Annotated[float | None, Form(parse=tolerance, metavar="SHARE")] = None
    """Relative difference up to which depths of two frames agree (default: what the source states, else 0.02); for an
    RGB-D sensor, 0.05."""


@dataclass(frozen=True, kw_only=True)
class Stats:
    """Flags of data stats."""

    folder: Annotated[str, Form(positional=True)]
    """Folder of shards, or the address of one (http, https, s3)."""
    clips: Annotated[int | None, Form(parse=count)] = None
    """Number of clips to read, evenly spaced (default: all)."""
    json: Annotated[Path | None, Form(metavar="FILE")] = None
    """Write all statistics to this file."""


@dataclass(frozen=True, kw_only=True)
class Show:
    """Flags of data show."""

    folder: Annotated[str, Form(positional=True)]
    """Folder of shards, or the address of one (http, https, s3)."""
    clip: Annotated[str, Form(metavar="INDEX|KEY")] = "0"
    """Clip to draw: its place in the manifest, from 0, or its key."""
    out: Annotated[Path, Form(metavar="DIR")] = Path()
    """Folder to write the pictures to."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """Flags of data index."""

    folder: Annotated[Path, Form(positional=True)]
    """Folder of tars with the members that docs/data.md lists."""
    name: str | None = None
    """Name of the data set in the manifest (default: the folder's)."""


@dataclass(frozen=True, kw_only=True)
class ImportCoco:
    """Flags of data import coco."""

    annotations: Annotated[tuple[Path, ...], Form(positional=True, metavar="JSON")]
    """Annotation files, or folders of such: all below them that have keypoints."""
    out: Annotated[Path, Form(positional=True, metavar="OUT")]
    """Folder of the shards."""
    images: Annotated[tuple[Path, ...], Form(metavar="DIR")] = ()
    """Folder of each file's images, or the video whose frames they are (default: beside it)."""
    names: Annotated[tuple[str, ...], Form(metavar="NAME")] = ()
    """Name of each source (default: the file's)."""
    licences: Annotated[tuple[str, ...], Form(metavar="TEXT")] = ()
    """Licence of each source (default: what the file says)."""
    skeleton_base: Annotated[Literal[0, 1] | None, Form(parse=first_index, metavar="0|1")] = None
    """Number of the first keypoint in skeletons, where the files do not tell."""
    clips_per_shard: int = 256
    """Number of clips of a shard."""


@dataclass(frozen=True, kw_only=True)
class ImportSleapAnipose:
    """Flags of data import sleap-anipose."""

    sessions: Annotated[tuple[Path, ...], Form(positional=True, metavar="SESSION")]
    """Folders with calibration.toml, points3d.h5, and tracks and video of each view."""
    out: Annotated[Path, Form(positional=True, metavar="OUT")]
    """Folder of the shards."""
    unit: Literal["m", "cm", "mm"] | None = None
    """Unit in which the calibration board was measured (default: unknown, clips are not metric)."""
    views: Annotated[tuple[str, ...], Form(metavar="NAME")] = ()
    """Views to take (default: all of the calibration)."""
    long_side: Annotated[int | None, Form(parse=count, metavar="PIXELS")] = None
    """Longer side of the stored images (default: as they are)."""
    clip_frames: Annotated[int, Form(parse=count, metavar="N")] = 48
    """Most times of a clip; a session becomes clips of about equal length."""
    name: str = "sleap-anipose"
    """Name of the source in the manifest."""
    licence: Annotated[str, Form(metavar="TEXT")] = "unknown"
    """Licence of the data."""
    clips_per_shard: Annotated[int, Form(parse=count, metavar="N")] = 16
    """Number of clips of a shard."""


@dataclass(frozen=True, kw_only=True)
class ImportDataSet:
    """Flags of data import NAME, for the sets of `datasets.table`."""

    root: Annotated[Path, Form(positional=True, metavar="SRC")]
    """Folder of the set, laid out as published."""
    out: Annotated[Path, Form(positional=True, metavar="OUT")]
    """Folder of the shards."""
    sequences: Annotated[tuple[str, ...] | None, Form(metavar="NAME")] = None
    """Sequences to import (default: all)."""
    long_side: Annotated[int | None, Form(parse=count, metavar="PIXELS")] = None
    """Longer side of the stored images (default: as they are)."""
    clip_frames: Annotated[int, Form(parse=count, metavar="N")] = 48
    """Most times of a clip; a sequence becomes clips of about equal length."""
    every: Annotated[int, Form(parse=count, metavar="N")] = 1
    """Take every N-th time."""
    most_tracks: Annotated[int, Form(parse=count, metavar="N")] = 4096
    """Most tracks of a clip, evenly chosen."""
    name: str | None = None
    """Name of the source in the manifest (default: the set's)."""
    licence: Annotated[str | None, Form(metavar="TEXT")] = None
    """Licence of the data (default: what the set states)."""
    depth_tolerance: Annotated[float | None, Form(parse=tolerance, metavar="SHARE")] = None
    """Relative difference up to which depths of two frames agree in the check (default: the set's)."""
    clips_per_shard: Annotated[int | None, Form(parse=count, metavar="N")] = None
    """Number of clips of a shard (default: those that make about 200 MB)."""
    unchecked: bool = False
    """Go on whatever the check of the first clips finds."""


@dataclass(frozen=True, kw_only=True)
class ImportVideo:
    """Flags of data import video."""

    videos: Annotated[tuple[Path, ...], Form(positional=True, metavar="VIDEO")]
    """Video files, or folders of frames."""
    out: Annotated[Path, Form(positional=True, metavar="OUT")]
    """Folder of the shards."""
    keypoints: Annotated[tuple[Path, ...], Form(metavar="NPZ")] = ()
    """File of each video's keypoints (default: beside it, of its name with .npz)."""
    confidence: float = 0.3
    """Confidence below which a keypoint is unknown."""
    long_side: Annotated[int | None, Form(parse=count, metavar="PIXELS")] = None
    """Longer side of the stored images (default: as they are)."""
    clip_frames: Annotated[int, Form(parse=count, metavar="N")] = 48
    """Most frames of a clip; a video becomes clips of about equal length."""
    name: str = "videos"
    """Name of the source in the manifest."""
    licence: Annotated[str, Form(metavar="TEXT")] = "unknown"
    """Licence of the videos and keypoints."""
    clips_per_shard: Annotated[int, Form(parse=count, metavar="N")] = 64
    """Number of clips of a shard."""


@dataclass(frozen=True, kw_only=True)
class ImportFit:
    """Flags of data import fit."""

    fits: Annotated[tuple[Path, ...], Form(positional=True, metavar="FIT_DIR")]
    """Folders that four-d fit wrote."""
    out: Annotated[Path, Form(positional=True, metavar="OUT")]
    """Folder of the shards."""
    name: str = "fits"
    """Name of the source in the manifest."""
    licence: Annotated[str, Form(metavar="TEXT")] = "unknown"
    """Licence of the videos."""
    clips_per_shard: Annotated[int, Form(parse=count, metavar="N")] = 16
    """Number of clips of a shard."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """Flags of data export LAYOUT."""

    shards: Annotated[Path, Form(positional=True)]
    """Folder of shards."""
    out: Annotated[Path, Form(positional=True, metavar="OUT")]
    """Folder to write, one folder in it for each clip; run again, those that are there stay."""
    tracks: Annotated[int, Form(parse=count, metavar="N")] = 4096
    """Tracks of a clip with a surface, of pixels evenly chosen over its frames (kubric only)."""


def add_verbs(verbs: Verbs[Verb]) -> None:
    """Add data make, import, export, index, check, stats and show."""
    data = verbs.add_parser("data", help="make, import, export, index, check, count and show shards")
    data = data.add_subparsers(required=True, metavar="VERB")
    text = "Make shards of synthetic multi-view video; whole ones are not made again."
    add_verb(data, "make", _data_make, text, _make, WORLD)
    imports = data.add_parser("import", help="turn other projects' data into shards")
    forms = imports.add_subparsers(required=True, metavar="FORM")
    text = "Turn keypoint annotations in COCO's form into shards with one vocabulary of names."
    add_verb(forms, "coco", _import_coco, text, lambda: ImportCoco)
    text = "Turn sessions of sleap-anipose (several views, tracks, triangulated points) into shards with cameras."
    add_verb(forms, "sleap-anipose", _import_sleap_anipose, text, lambda: ImportSleapAnipose)
    text = "Turn videos with keypoints of any detector (an NPZ file each) into shards."
    add_verb(forms, "video", _import_video, text, lambda: ImportVideo)
    text = "Turn fitted scenes (four-d fit) into shards with cameras, depth, masks and tracks, one clip a fit."
    add_verb(forms, "fit", _import_fit, text, lambda: ImportFit)
    imports.fill = lambda: _add_sets(forms)
    exports = data.add_parser("export", help="write shards in layouts that other projects' trainers read")
    layouts = exports.add_subparsers(required=True, metavar="LAYOUT")
    exports.fill = lambda: _add_layouts(layouts)
    text = "Write sidecars and manifest of tars that other software wrote in the layout; what has a sidecar keeps it."
    add_verb(data, "index", _data_index, text, lambda: Index)
    text = "Verify shards against the layout and their geometry; exit 1 if wrong."
    add_verb(data, "check", _data_check, text, lambda: Check)
    add_verb(data, "stats", _data_stats, "Count what is in the shards.", lambda: Stats)
    add_verb(data, "show", _data_show, "Draw a clip: frames, depth, mask, tracks, camera frusta.", lambda: Show)


def _add_sets(forms: Verbs[Verb]) -> None:
    """Add a verb for each data set: on first use, since their readers take seconds to import."""
    from four_d.datasets.table import DATASETS

    for dataset in DATASETS.values():
        text = f"Turn {dataset.title} into shards. Expected under SRC: {dataset.layout}."
        add_verb(forms, dataset.name, partial(_import_dataset, dataset), text, lambda: ImportDataSet)


def _add_layouts(layouts: Verbs[Verb]) -> None:
    """Add a verb for each layout that is written: on first use, as `_add_sets`."""
    from data_prep.exporters.export import LAYOUTS

    for layout in LAYOUTS.values():
        text = f"Write clips as {layout.title}: {layout.lacks}."
        add_verb(layouts, layout.name, partial(_export, layout), text, lambda: Export)


def _export(layout: Layout, arguments: Export) -> int:
    from data_prep.exporters.export import export
    from data_prep.exporters.views import Settings

    done = export(layout, arguments.shards, arguments.out, Settings(tracks=arguments.tracks))
    kept = f", {done.kept} were there" if done.kept else ""
    left = f", {len(done.left_out)} left out" if done.left_out else ""
    print(f"{arguments.out}: {done.written} clips written{kept}{left}")
    return 0


def _import_dataset(dataset: DataSet, arguments: ImportDataSet) -> int:
    from data_prep.importers.datasets import import_dataset
    from data_prep.importers.sequences import Settings

    settings = Settings(
        long_side=arguments.long_side,
        clip_frames=arguments.clip_frames,
        every=arguments.every,
        most_tracks=arguments.most_tracks,
        licence=arguments.licence,
        name=arguments.name,
        depth_tolerance=arguments.depth_tolerance,
    )
    manifest = import_dataset(
        dataset,
        arguments.root,
        arguments.out,
        settings,
        only=arguments.sequences,
        clips_per_shard=arguments.clips_per_shard,
        checked=not arguments.unchecked,
    )
    _print_made(arguments.out, manifest)
    print(*(f"{name}: {source.licence}" for name, source in manifest.sources.items()), sep="\n")
    return 0


def _print_made(out: Path, manifest: Manifest) -> None:
    """Say on stdout what a folder of shards holds."""
    print(f"{out}: {manifest.clips} clips, {manifest.frames} frames, {manifest.bytes / 1e6:.0f} MB")


def _data_index(arguments: Index) -> int:
    from four_d.data.indexing import index

    _print_made(arguments.folder, index(arguments.folder, arguments.name))
    return 0


def _make() -> type[Make]:
    from four_d.cli.world import Make

    return Make


def _data_make(arguments: Make) -> int:
    from data_prep.synthetic import make

    width, height = arguments.size
    manifest = make(
        arguments.out,
        shards=arguments.shards,
        seed=arguments.seed,
        clips_per_shard=arguments.clips_per_shard,
        workers=arguments.workers,
        settings=replace(arguments.world, width=width, height=height),
        held_out=arguments.held_out,
    )
    if manifest is None:
        print(f"{arguments.out}: other shards are still missing; whoever makes the last one writes the manifest")
    else:
        _print_made(arguments.out, manifest)
    return 0


def _import_coco(arguments: ImportCoco) -> int:
    from data_prep.importers.coco import VOCABULARY, Source, import_coco, sources_in

    files = arguments.annotations
    folders = [path for path in files if path.is_dir()]
    for name in ("images", "names", "licences"):
        given = getattr(arguments, name)
        if given and len(given) != len(files):
            raise UserError(f"--{name} has {len(given)} entries for {len(files)} annotation files; give one for each")
        if given and folders:
            raise UserError(f"--{name} is for annotation files, and {folders[0]} is a folder; say its files one by one")
    rows = zip_longest(files, arguments.images, arguments.names, arguments.licences)
    single = [Source(annotations=a, images=i, name=n, licence=t) for a, i, n, t in rows if a not in folders]
    sources = single + [source for folder in folders for source in sources_in(folder)]
    manifest = import_coco(
        sources, arguments.out, clips_per_shard=arguments.clips_per_shard, skeleton_base=arguments.skeleton_base
    )
    print(f"{arguments.out}: {manifest.clips} clips, {manifest.frames} frames; names and counts in {VOCABULARY}")
    return 0


def _import_sleap_anipose(arguments: ImportSleapAnipose) -> int:
    from data_prep.importers.sleap_anipose import Settings, import_sleap_anipose

    settings = Settings(
        unit=arguments.unit,
        views=arguments.views,
        long_side=arguments.long_side,
        clip_frames=arguments.clip_frames,
        name=arguments.name,
        licence=arguments.licence,
    )
    out, shards = arguments.out, arguments.clips_per_shard
    manifest = import_sleap_anipose(arguments.sessions, out, settings, clips_per_shard=shards)
    _print_made(out, manifest)
    return 0


def _import_video(arguments: ImportVideo) -> int:
    from data_prep.importers.video import Settings, import_videos

    settings = Settings(
        confidence=arguments.confidence,
        long_side=arguments.long_side,
        clip_frames=arguments.clip_frames,
        name=arguments.name,
        licence=arguments.licence,
    )
    manifest = import_videos(
        arguments.videos,
        arguments.out,
        settings,
        keypoints=arguments.keypoints,
        clips_per_shard=arguments.clips_per_shard,
    )
    _print_made(arguments.out, manifest)
    return 0


def _import_fit(arguments: ImportFit) -> int:
    from data_prep.importers.fit import Fitted, import_fits
    from four_d.fitting.as_data import fitted_clip, fitted_files

    fits = [Fitted(folder=fit, files=fitted_files(fit), make=fitted_clip) for fit in arguments.fits]
    manifest = import_fits(
        fits,
        arguments.out,
        name=arguments.name,
        licence=arguments.licence,
        clips_per_shard=arguments.clips_per_shard,
    )
    _print_made(arguments.out, manifest)
    return 0


def _data_check(arguments: Check) -> int:
    from four_d.data.check import check

    report = check(arguments.folder, clips=arguments.clips, depth_tolerance=arguments.depth_tolerance)
    print(report.table())
    if (advice := report.making_again()) is not None:
        print(advice)
    return 0 if report.ok else 1


def _data_stats(arguments: Stats) -> int:
    from four_d.data.stats import stats
    from four_d.outputs import write_json

    check_figures(arguments.json, "distributions", [arguments.folder])
    found = stats(arguments.folder, clips=arguments.clips)
    print(found.table())
    if arguments.json is not None:
        write_json(arguments.json, found.to_dict())
    return 0


def _data_show(arguments: Show) -> int:
    from four_d.data.show import show

    clip = int(arguments.clip) if arguments.clip.isdigit() else arguments.clip
    print(*show(arguments.folder, clip, arguments.out), sep="\n")
    return 0
