"""Writing of imported clips as shards, which can be broken off and goes on, but only with the same sources."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from data_prep.importers.vocabulary import Vocabulary
from four_d.data.contract import RawClip
from four_d.data.encoding import CLIP, BadMemberError, decode_info
from four_d.data.manifest import Manifest, SampleIndex, load_sidecar, refuse_foreign, shard_names
from four_d.data.shards import finalise, shard_done, write_shard
from four_d.errors import UserError
from four_d.outputs import write_json
from four_d.progress import progress

VOCABULARY = "vocabulary.json"
MOST_FRAMES = 999
"""Frames of a clip in the layout; longer videos become several."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Files and settings that clips were made of, which `clip.json` records as ``generator``."""

    name: str
    """Command that made them."""
    files: dict[str, str]
    """Digest of each file (`digest`)."""
    settings: dict[str, object]

    def to_dict(self) -> dict[str, object]:
        """Content of ``generator``."""
        return {"name": self.name, "version": 1, "settings": {**self.settings, "files": self.files}}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One clip to come: its key, where it is from, and how it is made."""

    key: str
    origin: Origin
    make: Callable[[], RawClip]
    files: Callable[[], dict[str, str]] = dict
    """Digests of files that this clip is read from, beside those of ``origin``: made when needed, since it takes long.
    """

    def whole_origin(self) -> Origin:
        """``origin`` with the digests of the clip's own files."""
        return replace(self.origin, files={**self.origin.files, **self.files()})


def digest(path: Path) -> str:
    """SHA-256 of a file. UserError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or type(error).__name__}; check the path") from error


def write_clips(
    out: Path, plans: Sequence[Planned], vocabulary: Vocabulary | None, *, name: str, clips_per_shard: int
) -> Manifest:
    """Write the clips that ``out`` lacks, in this order, then `VOCABULARY` and the manifest. Finished shards stay.

    Args:
        out: folder of the shards.
        plans: all clips of the data set.
        vocabulary: counts of their names; None: they have none.
        name: of the data set.
        clips_per_shard: clips of each shard but the last.

    Raises:
        UserError: fewer than one clip in a shard, two clips of one key, or shards in ``out`` of other clips, files or
            settings.

    """
    if clips_per_shard < 1:
        raise UserError(f"clips per shard is {clips_per_shard}; choose 1 or more")
    keys = Counter(plan.key for plan in plans)
    if twice := [key for key, count in keys.items() if count > 1]:
        raise UserError(
            f"two clips would have the key {twice[0]}, from names that are alike in it; rename one of the sources, or "
            "import it into another folder"
        )
    out.mkdir(parents=True, exist_ok=True)
    refuse_foreign(out)
    parts = [plans[start : start + clips_per_shard] for start in range(0, len(plans), clips_per_shard)]
    finished = {index: part for index, part in enumerate(parts) if shard_done(out, index)}
    with progress(f"comparing {name} with what is there", sum(map(len, finished.values())), "clip") as bar:
        for index, part in finished.items():
            _require_same(out, index, part, bar.advance)
    with progress(f"importing {name}", len(plans), "clip") as bar:
        bar.resume(sum(len(part) for index, part in enumerate(parts) if shard_done(out, index)))

        def clips(part: Sequence[Planned]) -> Iterator[RawClip]:
            for plan in part:
                clip = plan.make()
                yield replace(clip, info=replace(clip.info, generator=plan.whole_origin().to_dict()))
                bar.advance()

        for index, part in enumerate(parts):
            if not shard_done(out, index):
                write_shard(out, index, clips(part))
    if vocabulary is not None:
        write_json(out / VOCABULARY, vocabulary.to_dict())
    return finalise(out, name)


def _require_same(out: Path, index: int, part: Sequence[Planned], advance: Callable[[], None]) -> None:
    """Raise UserError if a finished shard holds other clips, or clips of other files or settings."""
    shard, sidecar = shard_names(index)
    samples = load_sidecar(out / sidecar).samples
    if [sample.key for sample in samples] != [plan.key for plan in part]:
        told = _difference(_made(out / shard, samples[0]), replace(part[0].origin, files={})) if samples else None
        why = f"was made {told}" if told else "is of other sources, annotations or counts of clips"
        raise UserError(f"{out / shard} {why}; choose another folder, or empty it to import all again")
    compared: Origin | None = None
    for sample, plan in zip(samples, part):
        origin = plan.whole_origin()
        advance()
        if origin == compared:  # clips of one origin come together
            continue
        compared = origin
        made = _made(out / shard, sample)
        if made != origin.to_dict():
            raise UserError(
                f"{out / shard} was made {_difference(made, origin) or 'of other files'}; choose another folder, or "
                "empty it to import all again"
            )


def _made(shard: Path, sample: SampleIndex) -> dict[str, object]:
    """Read the ``generator`` of a finished clip."""
    offset, size, _ = sample.members[CLIP]
    with shard.open("rb") as file:
        file.seek(offset)
        data = file.read(size)
    try:
        return decode_info(data).generator or {}
    except BadMemberError as error:
        raise UserError(f"{shard}: clip {sample.key}: {CLIP} {error}; delete it with its sidecar") from error


def _difference(made: dict[str, object], origin: Origin) -> str | None:
    """Difference between the origin of a finished clip and that of the one to come; None without a known one."""
    settings = made.get("settings")
    then = cast(dict[str, object], settings) if isinstance(settings, dict) else {}
    files = then.get("files")
    if made.get("name") != origin.name or not isinstance(files, dict) or (origin.files and not files):
        return "by something else, or by an earlier version, which did not record its files"
    before = cast(dict[str, object], files)
    if other := next((name for name, value in origin.settings.items() if name in then and then[name] != value), None):
        return f"with another {other.replace('_', ' ')}"
    if origin.settings.keys() != then.keys() - {"files"}:
        return "by another version, which had other settings"
    changed = [name for name, value in origin.files.items() if before.get(name, value) != value]
    return f"before {changed[0]} was changed" if changed else None
