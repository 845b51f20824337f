"""`four-d data check`: verification of a folder's shard layout and of its clips' geometry."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from four_d.data import tars
from four_d.data.consistency import findings
from four_d.data.contract import KEY, modalities, order_problems, problems
from four_d.data.manifest import Manifest, SampleIndex, ShardInfo, check_size, load_manifest, load_sidecar
from four_d.data.measures import Finding, Measure, Note, Unchecked
from four_d.data.remote import locate
from four_d.data.runs import choose
from four_d.data.shards import CorruptSample, ShardReader, open_shards
from four_d.errors import UserError
from four_d.progress import progress

_MEMBER = re.compile(
    r"clip\.json|(cameras|intrinsics)\.npy|(triangles|instances|vertices|moving)\.npy\.gz|moving_vertices\.npy"
    r"|tracks(_visible|_valid)?\.npy|keypoints(_valid|_pixels|_pixels_valid|_visible)?\.npy"
    r"|f\d{3,}\.(image\.(jpg|png)|(depth|dynamic)\.png|(faces|barycentric)\.npy\.gz)"
)


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One failed check, and its place."""

    shard: str
    check: str
    what: str
    """Description, with the measured value and its limit."""
    remedy: str
    key: str | None = None
    frame: int | None = None

    def __str__(self) -> str:
        place = [self.shard, self.key, None if self.frame is None else f"frame {self.frame}"]
        remedy = self.remedy[:1].upper() + self.remedy[1:]
        return f"{', '.join(part for part in place if part)}: {self.check}: {self.what}. {remedy}."


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """Findings of `check`."""

    place: str
    """Folder, or address without its signature."""
    shards: int
    clips: int
    """Number of clips read and measured."""
    failures: list[Failure]
    measures: list[Measure]
    said: list[tuple[str, Unchecked | Note]] = field(default_factory=list[tuple[str, Unchecked | Note]])
    """Keys of clips, and what of them could not be checked or was tolerated."""

    @property
    def ok(self) -> bool:
        """True if there are no failures."""
        return not self.failures

    def table(self) -> str:
        """Table of each check with its worst value and limit; then the failures, one line each (the first 40)."""
        rows = [f"{self.place}: {self.shards} shards, {self.clips} clips checked"]
        rows += [f"{'check':<24}{'clips':>6}{'worst':>12}{'limit':>12}{'failed':>8}"]
        for name in dict.fromkeys(m.check for m in self.measures):
            measures = [m for m in self.measures if m.check == name]
            worst = (max if measures[0].above else min)(measures, key=lambda m: m.value)
            sign = "≤" if worst.above else "≥"
            limit = f"{sign} {worst.limit:.4g}"
            rows.append(
                f"{name:<24}{len(measures):>6}{worst.value:>12.4g}{limit:>12}{sum(not m.ok for m in measures):>8}"
            )
        rows += [str(failure) for failure in self.failures[:40]]
        if len(self.failures) > 40:
            rows.append(f"… and {len(self.failures) - 40} more")
        rows += self._said()
        rows.append("no failures" if self.ok else f"{len(self.failures)} failures")
        return "\n".join(rows)

    def making_again(self) -> str | None:
        """One line on how failed shards are made again; None if there are none."""
        shards = [shard for shard in dict.fromkeys(f.shard for f in self.failures) if shard.endswith(".tar")]
        if not shards:
            return None
        files = f"{shards[0]} and {Path(shards[0]).with_suffix('.json')}"
        more = f" (and {len(shards) - 1} more pairs)" if len(shards) > 1 else ""
        return f"existing shards are never overwritten: delete {files}{more}, then make them again"

    def unchecked(self) -> list[str]:
        """One line for each thing that could not be checked, with the reason and clips counted."""
        told = [(key, each) for key, each in self.said if isinstance(each, Unchecked)]
        return self._counted((key, f"not checked: {each.what}: {each.why}") for key, each in told)

    def _said(self) -> list[str]:
        """One line for each thing that was tolerated, then for each that could not be checked."""
        rows = self._counted((key, f"note: {each.text}") for key, each in self.said if isinstance(each, Note))
        unchecked = self.unchecked()
        if self.clips and not unchecked:
            rows.append("everything that data check knows of what these clips hold was checked in each")
        return rows + unchecked

    def _counted(self, told: Iterable[tuple[str, str]]) -> list[str]:
        """Different texts of (key of a clip, text), each with the number of clips and one of them."""
        keys: dict[str, list[str]] = {}
        for key, text in told:
            keys.setdefault(text, []).append(key)
        return [f"{text} ({len(found)} of {self.clips} clips, as {found[0]})" for text, found in keys.items()]


def check(
    folder: str | Path, clips: int | None = None, *, depth_tolerance: float | None = None, shown: bool = True
) -> CheckReport:
    """Verify a data set, in a folder or behind an address: files and checksums, layout, and the geometry of its clips.

    ``clips`` limits the geometry (and checksums) to that many clips spread over the data set, and their shards; names
    and sizes of all shards are checked in any case. Depths within the fraction ``depth_tolerance`` of each other are
    equal (None: what each clip states, else 0.02): more suits a noisy sensor. UserError if there is no readable
    manifest; behind an address also for a file that cannot be fetched whole.
    """
    place = locate(folder)
    if isinstance(place, Path):
        reader, failures = _opened(load_manifest(place))
    else:
        reader, failures = open_shards(folder), list[Failure]()
    complete, listed = reader.shards, len(reader.shards) + len(failures)
    failures += _count_failures(reader.manifest, reader, len(failures))
    chosen = spread(len(reader), clips)
    found: list[tuple[str, Finding]] = []
    used = {reader.samples[index].shard for index in chosen}
    with reader, progress("check", len(chosen) + len(used), "clip", shown=shown) as bar:
        for info in (info for info in complete if info.shard in used):
            samples = [sample for sample in reader.samples if sample.shard == info.shard]
            failures += reader.with_tar(info, lambda path, of=(info, samples): list(_shard_failures(path, *of)))
            bar.advance()
        for index in chosen:
            of_clip, wrong = _check_clip(reader, index, depth_tolerance)
            found += [(reader.samples[index].key, finding) for finding in of_clip]
            failures += wrong
            bar.advance(failures=str(len(failures)))
    return CheckReport(
        place=reader.place,
        shards=listed,
        clips=len(chosen),
        failures=failures,
        measures=[finding for _, finding in found if isinstance(finding, Measure)],
        said=[(key, finding) for key, finding in found if not isinstance(finding, Measure)],
    )


def _opened(manifest: Manifest) -> tuple[ShardReader, list[Failure]]:
    """Open the shards of a folder whose files are there, with a failure for each of the others."""
    failures: list[Failure] = []
    complete: list[ShardInfo] = []
    for info in manifest.shards:
        problem = _error_of(lambda info=info: _check_files(manifest, info))
        if problem is None:
            complete.append(info)
        else:
            failures.append(Failure(shard=info.shard, check="files", what=problem, remedy="make or fetch it again"))
    return ShardReader(dataclasses.replace(manifest, shards=complete)), failures


def spread(count: int, limit: int | None) -> list[int]:
    """Choose ``limit`` of ``count`` indices (all if None), evenly spaced."""
    if count == 0:
        return []
    return np.unique(np.linspace(0, count - 1, min(count, limit or count)).round().astype(int)).tolist()


def _error_of(function: Callable[[], None]) -> str | None:
    try:
        function()
    except UserError as error:
        return str(error)
    return None


def _check_files(manifest: Manifest, info: ShardInfo) -> None:
    check_size(manifest.folder, info)
    sidecar = load_sidecar(manifest.folder / info.sidecar)
    if sidecar.info != info:
        raise UserError(f"{info.sidecar} disagrees with manifest.json about counts or checksums")


def _count_failures(manifest: Manifest, reader: ShardReader, broken: int) -> Iterator[Failure]:
    keys = [sample.key for sample in reader.samples]
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        yield Failure(shard="manifest.json", key=twice, check="keys", what="duplicate key", remedy="rename one clip")
    counted = len(keys), sum(sample.frames for sample in reader.samples)
    if not broken and counted != (manifest.clips, manifest.frames):
        yield Failure(
            shard="manifest.json",
            check="counts",
            what=f"says {manifest.clips} clips, {manifest.frames} frames; the sidecars {counted[0]} and {counted[1]}",
            remedy="write the manifest again",
        )


def _shard_failures(path: Path, info: ShardInfo, samples: list[SampleIndex]) -> Iterator[Failure]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != info.sha256:
        yield Failure(
            shard=info.shard,
            check="checksum",
            what=f"sha256 is {digest[:12]}…, not {info.sha256[:12]}…",
            remedy="its bytes have changed since it was written: make or fetch it again",
        )
    try:
        stored = tars.members(path)
    except tars.BadTarError as error:
        yield Failure(shard=info.shard, check="tar", what=f"is not a complete tar ({error})", remedy="make it again")
        return
    listed = {f"{s.key}.{name}": (at, size) for s in samples for name, (at, size, _) in s.members.items()}
    for name in sorted(stored.keys() ^ listed.keys()):
        found_in = "the tar but not in the sidecar" if name in stored else "the sidecar but not in the tar"
        yield Failure(
            shard=info.shard,
            key=name.split(".")[0],
            check="members",
            what=f"member {name.partition('.')[2]} is in {found_in}",
            remedy="make the shard again",
        )
    for name in sorted(stored.keys() & listed.keys()):
        if stored[name] != listed[name]:
            yield Failure(
                shard=info.shard,
                key=name.split(".")[0],
                check="members",
                what=f"member {name.partition('.')[2]} is at {stored[name]}, the sidecar says {listed[name]}",
                remedy="make the shard again",
            )


def _check_clip(reader: ShardReader, index: int, depth_tolerance: float | None) -> tuple[list[Finding], list[Failure]]:
    sample = reader.samples[index]

    def failure(check: str, what: str, remedy: str, frame: int | None = None) -> Failure:
        return Failure(shard=sample.shard, key=sample.key, check=check, what=what, remedy=remedy, frame=frame)

    wrong = [
        failure("members", f"unknown member {name}", "the layout has no such member: leave it out")
        for name in sample.members
        if not _MEMBER.fullmatch(name)
    ]
    if not KEY.fullmatch(sample.key):
        wrong.append(
            failure("keys", f"{sample.key!r} is not a valid key", "use 1 to 60 ASCII letters, digits, '-' and '_'")
        )
    chosen = choose(sample.times, sample.camera_ids, sample.width * sample.height)
    rest = sorted(set(range(sample.frames)) - set(chosen.frames))
    try:
        clip = reader.read(index, chosen.frames if rest else None, verify=False)
        found = problems(clip)
        for first in range(0, len(rest), len(chosen.frames)):  # by parts, for the sake of memory
            found += problems(reader.read(index, rest[first : first + len(chosen.frames)], verify=False))
    except CorruptSample as error:
        frame = re.match(r"f(\d+)\.", error.member)
        what = f"member {error.member} {error.reason}"
        wrong.append(failure("members", what, "make the shard again", int(frame[1]) if frame else None))
        return [Unchecked(what="geometry", why="a member is damaged")], wrong
    if rest:
        found += order_problems(dataclasses.replace(clip.info, times=sample.times, camera_ids=sample.camera_ids))
    wrong += [failure("layout", problem, "write the clip as docs/data.md says") for problem in dict.fromkeys(found)]
    if modalities(clip) != sample.modalities or (clip.info.width, clip.info.height) != (sample.width, sample.height):
        wrong.append(failure("counts", "modalities or size differ from the sidecar's", "make the shard again"))
    if wrong:
        return [Unchecked(what="geometry", why="the clip is not in the layout")], wrong
    measured = list(findings(clip, depth_tolerance, chosen.streams))
    for m in (m for m in measured if isinstance(m, Measure) and not m.ok):
        sign = "at most" if m.above else "at least"
        what = f"{m.what}: {m.value:.4g}, {sign} {m.limit:.4g} allowed"
        wrong.append(failure(m.check, what, m.remedy, None if m.frame is None else chosen.frames[m.frame]))
    if rest:
        text = f"of clips with many frames some were measured, evenly chosen ({len(chosen.frames)} of {sample.frames})"
        measured.append(Note(text=text))
    return measured, wrong
