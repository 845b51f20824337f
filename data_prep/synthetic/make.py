"""Clips into shards. One shard is one unit of work, so that any job runner can spread them."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import queue
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Protocol

from data_prep.synthetic.clip import generate
from data_prep.synthetic.settings import HELD_OUT_SEED, WorldSettings
from four_d.data.contract import RawClip
from four_d.data.manifest import Manifest
from four_d.data.shards import finalise, shard_done, write_shard
from four_d.errors import UserError
from four_d.progress import progress

MOST_SHARDS = MOST_CLIPS = 1000
"""A data set has at most so many shards, and a shard so many clips: together they use up the seeds there are."""
SEED_STRIDE = 618_034
"""Near the golden section of the seeds' range: data sets of small seeds lie far apart in it."""
POLL_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to make; a worker takes the shards one by one."""

    folder: Path
    seed: int
    clips_per_shard: int
    held_out: bool
    settings: WorldSettings


class Inbox(Protocol):
    """A queue of numbers between processes, as this module uses it."""

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        """The next; queue.Empty after ``timeout`` seconds."""
        ...

    def put(self, obj: object) -> None:
        """Send one."""
        ...


def clip_seed(seed: int, shard: int, clip: int, *, held_out: bool = False) -> int:
    """The seed of one clip: a pure function, different for all clips of a data set; held-out ones from 1,000,000 on."""
    within = (seed * SEED_STRIDE + shard * MOST_CLIPS + clip) % HELD_OUT_SEED
    return within + HELD_OUT_SEED * held_out


def make(
    out: Path,
    shards: range,
    seed: int,
    *,
    clips_per_shard: int = 16,
    workers: int = 1,
    held_out: bool = False,
    settings: WorldSettings | None = None,
    name: str = "synthetic",
) -> Manifest | None:
    """Make those of ``shards`` that ``out`` lacks, spread over ``workers`` processes, and then its manifest.

    Running it again, or elsewhere at the same time for other shards, does no harm: a shard with its sidecar is skipped.
    None where earlier shards are still to come from elsewhere: whoever makes the last one writes the manifest.
    UserError for a bad range, an unwritable folder or a missing extra, before anything is made.
    """
    _check(out, shards, clips_per_shard, workers)
    job = Job(
        folder=out,
        seed=seed,
        clips_per_shard=clips_per_shard,
        held_out=held_out,
        settings=settings or WorldSettings(),
    )
    missing = [index for index in shards if not shard_done(out, index)]
    for index in set(shards) - set(missing):
        _require_same(job, index)
    total = len(shards) * clips_per_shard
    with progress("synthetic clips", total, "clip") as bar:
        bar.resume(total - len(missing) * clips_per_shard)
        if workers == 1 or len(missing) < 2:
            for index in missing:
                make_shard(job, index, bar.advance)
        else:
            _spread(job, missing, min(workers, len(missing)), bar.advance)
    return finalise(out, name) if _all_there(out) else None


def _require_same(job: Job, index: int) -> None:
    """UserError if a shard that is there was made with another seed, size or count of clips than ``job``'s."""
    wanted = job.settings
    file = job.folder / f"shard-{index:06d}.json"
    samples = json.loads(file.read_text())["samples"]
    seeds = [clip_seed(job.seed, index, number, held_out=job.held_out) for number in range(job.clips_per_shard)]
    sizes = {(s["width"], s["height"], s["cameras"], s["frames"]) for s in samples}
    expected = {(wanted.width, wanted.height, wanted.cameras, wanted.cameras * wanted.frames)}
    if sizes != expected or [int(s["key"].rsplit("-", 1)[-1]) for s in samples] != seeds:
        raise UserError(f"{file} was made with another seed, size or count of clips; choose another folder")


def make_shard(job: Job, index: int, done: Callable[[], None]) -> Path:
    """Make and write one shard; ``done`` is called after each clip. The sidecar's path."""

    def clips() -> Iterator[RawClip]:
        for number in range(job.clips_per_shard):
            yield generate(clip_seed(job.seed, index, number, held_out=job.held_out), job.settings)
            done()

    return write_shard(job.folder, index, clips())


def _all_there(out: Path) -> bool:
    """Whether no shard up to the folder's last is missing or under way."""
    last = max(int(path.stem.removeprefix("shard-")) for path in out.glob("shard-*[0-9].tar"))
    return all(shard_done(out, index) for index in range(last + 1))


def _check(out: Path, shards: range, clips_per_shard: int, workers: int) -> None:
    if not len(shards) or min(shards) < 0 or max(shards) >= MOST_SHARDS:
        raise UserError(
            f"shards {shards.start}:{shards.stop} is no range; choose FIRST:END with 0 ≤ FIRST < END ≤ 1000"
        )
    if not 1 <= clips_per_shard <= MOST_CLIPS:
        raise UserError(f"clips per shard is {clips_per_shard}; choose a number from 1 to {MOST_CLIPS}")
    if workers < 1:
        raise UserError(f"workers is {workers}; choose 1 or more")
    lacking = [module for module in ("embreex", "mujoco") if importlib.util.find_spec(module) is None]
    if lacking:
        raise UserError(f'the generator needs {" and ".join(lacking)}: pip install "four_d[synth]"')
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; choose another") from error
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {out}; choose another folder or change its permissions")


def _work(job: Job, tasks: Inbox, news: Inbox) -> None:
    """A worker's life: shards from ``tasks`` until None. To ``news``: True per clip, at the end None or an error."""
    try:
        while isinstance(index := tasks.get(), int):
            make_shard(job, index, lambda: news.put(True))
    except Exception as error:  # carried to the parent, which raises it
        news.put(error if isinstance(error, UserError) else RuntimeError(f"{type(error).__name__}: {error}"))
    else:
        news.put(None)


def _spread(job: Job, missing: list[int], workers: int, done: Callable[[], None]) -> None:
    """Shards over processes. They start afresh rather than by fork: torch and embree hold threads."""
    context = multiprocessing.get_context("spawn")
    tasks, news = context.Queue(), context.Queue()
    for index in [*missing, *[None] * workers]:
        tasks.put(index)
    processes = [context.Process(target=_work, args=(job, tasks, news), daemon=True) for _ in range(workers)]
    for process in processes:
        process.start()
    try:
        _listen(processes, news, done)
    finally:
        for process in processes:
            process.terminate()
            process.join()


def _listen(processes: Sequence[BaseProcess], news: Inbox, done: Callable[[], None]) -> None:
    """Count clips until all workers have ended; raise what one of them raised."""
    working = len(processes)
    while working:
        try:
            message = news.get(timeout=POLL_S)
        except queue.Empty:
            if any(process.exitcode for process in processes):
                raise UserError(
                    "a worker process was killed, perhaps for want of memory; choose fewer workers"
                ) from None
            continue
        if isinstance(message, Exception):
            raise message
        if message is None:
            working -= 1
        else:
            done()
