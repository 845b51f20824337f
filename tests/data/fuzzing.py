"""Trials of damaged data sets: opened, read, prepared for training, checked and drawn, each within bounds."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from four_d.data.check import check
from four_d.data.contract import RawClip
from four_d.data.crops import CropRule
from four_d.data.loading import DataConfig, prepared
from four_d.data.sampling import SamplingConfig
from four_d.data.shards import SampleIndex, finalise, write_shard
from four_d.data.show import show
from four_d.data.sources import SourceConfig, Sources
from four_d.errors import UserError
from four_d.types import Clip, map_tensors
from tests.data.damage import DAMAGES, EVIL
from tests.helpers import box_clip, without_surface

SECONDS = 20.0
"""Processor time of one trial above which it counts as hanging."""


@dataclass
class Tally:
    """Outcome of the trials."""

    trials: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    slowest_s: float = 0.0


def sound_set(folder: Path) -> Path:
    """Two small clips in one shard, one with a surface, one with depth and tracks."""
    clip = box_clip(seed=1, frames=3, cameras=1, size=(16, 20))
    write_shard(folder, 0, [clip, without_surface(box_clip(seed=2, frames=3, cameras=1, size=(16, 20)), tracks=8)])
    finalise(folder, "fuzz")
    return folder


def run(seeds: Iterable[int], root: Path, *, check_every: int = 10) -> Tally:
    """Damage a sound set once per seed and use it; ``root`` is an empty folder."""
    tally = Tally()
    home = root / "a" / "b"  # two folders below, so that "../../evil" is seen too
    whole, out = sound_set(home / "sound"), home / "out"
    for seed in seeds:
        shutil.rmtree(home / "set", ignore_errors=True)
        shutil.copytree(whole, home / "set")
        rng = np.random.default_rng(seed)
        damage = DAMAGES[seed % len(DAMAGES)]
        started = time.process_time()
        try:
            damage(home / "set", rng)
            before = listing(root, out)
            outcome = trial(home / "set", out, full=seed // len(DAMAGES) % check_every == 0)
            if strangers := changed(before, listing(root, out)):
                tally.crashes.append(f"seed {seed}, {damage.__name__}: wrote {', '.join(strangers)}")
        except Exception as error:
            outcome = "crash"
            tally.crashes.append(f"seed {seed}, {damage.__name__}: {type(error).__name__}: {error!s:.200}")
        spent = time.process_time() - started
        if spent > SECONDS:
            tally.crashes.append(f"seed {seed}, {damage.__name__}: {spent:.0f} s")
        tally.slowest_s = max(tally.slowest_s, spent)
        tally.trials += 1
        tally.kinds[damage.__name__] += 1
        tally.outcomes[outcome] += 1
    return tally


Entry = tuple[int, int, int]
"""Type and rights, size, and time of the last change of a file or folder."""


def listing(root: Path, out: Path) -> dict[str, Entry]:
    """List everything below a folder but what is in ``out``, and the places outside that the damage names."""
    found: dict[str, Entry] = {}
    for folder, folders, files in os.walk(root):
        if Path(folder) == out.parent:
            folders.remove(out.name) if out.name in folders else None
        for name in (*folders, *files):
            path = Path(folder, name)
            found[str(path)] = _entry(path)
    for name in EVIL:
        if name.startswith(("/", "~")) and os.path.lexists(path := Path(name).expanduser()):
            found[str(path)] = _entry(path)
    for folder in {Path.cwd(), Path(tempfile.gettempdir()), Path.home()}:  # shallow: others write below them
        found |= {str(path): _entry(path) for path in folder.glob("*evil*")}
    return found


def changed(before: dict[str, Entry], after: dict[str, Entry]) -> list[str]:
    """List what is new, gone or changed between two listings."""
    return sorted(path for path in before.keys() | after.keys() if before.get(path) != after.get(path))


def _entry(path: Path) -> Entry:
    state = path.lstat()
    # a folder's time changes with what is in it, which is listed by itself
    if stat.S_ISDIR(state.st_mode):
        return state.st_mode, 0, 0
    return state.st_mode, state.st_size, state.st_mtime_ns


def trial(folder: Path, out: Path, *, full: bool) -> str:
    """Use a set as a run does; ``full`` checks and draws it as well. Anything but UserError is raised."""
    outcome = "refused"
    with suppress(UserError):
        outcome = train_on(folder)
    if full:
        with suppress(UserError):
            report = check(folder, shown=False)
            assert report.table()
            show(folder, 0, out)
    return outcome


def train_on(folder: Path) -> str:
    """Prepare every clip as an example is; the clips that were skipped are named."""
    source = SourceConfig(path=str(folder))
    sampling = SamplingConfig(min_frames=2, max_frames=2)
    config = DataConfig(sources={"a": source}, sampling=sampling, image_size=(16, 16), images_per_batch=4, surface=True)
    sources = Sources(config.sources)
    rng = np.random.default_rng(0)

    def choose(sample: SampleIndex) -> tuple[list[int], CropRule]:
        return config.frames(sample, 2, rng), CropRule(size=config.image_size)

    def make(raw: RawClip) -> Clip:
        return prepared(raw, config, rng)

    named: list[str] = []
    for index in range(len(sources.readers[0])):
        clip, _, skipped = sources.clip(0, index, choose, make)
        assert all("sample" in line and "shard-" in line for line in skipped), "a bad clip is named"
        named += skipped
        assert finite(clip), "NaN reached an example"
    return "skipped" if named else "sound"


def finite(clip: Clip) -> bool:
    """True if no tensor of an example holds NaN or infinity."""
    found = True

    def look(value: torch.Tensor) -> torch.Tensor:
        nonlocal found
        found &= not value.is_floating_point() or bool(value.isfinite().all())
        return value

    map_tensors(clip, look)
    return found
