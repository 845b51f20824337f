"""Generation of shards by worker processes. A shard is the unit of work, so that any job runner can distribute them."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from data_prep.synthetic.blender import check_blender
from data_prep.synthetic.clip import generate
from data_prep.synthetic.models import Models
from data_prep.synthetic.pictures import Photographs
from data_prep.synthetic.settings import HELD_OUT_SEED, WorldSettings
from four_d.data.contract import RawClip
from four_d.data.manifest import Manifest, refuse_foreign, shard_names
from four_d.data.shards import finalise, shard_done, write_shard
from four_d.errors import UserError
from four_d.progress import progress
from four_d.workers import context, describe_exit, ignore_signals

LOGGER = logging.getLogger("four_d.data_prep")  # not __name__: users silence, and the program shows, "four_d"

MAX_SHARDS = MAX_CLIPS = 1000
"""Maximum number of shards of a data set and of clips of a shard: together they use up the range of seeds."""
SEED_STRIDE = 618_034
"""Close to the golden ratio of the seed range, so that data sets of small seeds lie far apart in it."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """Settings that all shards of one run share."""

    folder: Path
    seed: int
    clips_per_shard: int
    held_out: bool
    settings: WorldSettings


def clip_seed(seed: int, shard: int, clip: int, *, held_out: bool = False) -> int:
    """Seed of one clip: a pure function, unique within a data set; held-out seeds start at 1,000,000."""
    within = (seed * SEED_STRIDE + shard * MAX_CLIPS + clip) % HELD_OUT_SEED
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
    """Make the ``shards`` that ``out`` lacks, spread over ``workers`` processes, then its manifest.

    Safe to run again, or elsewhere at the same time for other shards: a shard with its sidecar is skipped.
    None if other shards are still missing or under way: the run that makes the last one writes the manifest.
    UserError for a bad range, an unwritable folder or a missing extra, before anything is made.
    """
    settings = settings or WorldSettings()
    _check_assets(settings)
    _check(out, shards, clips_per_shard, workers)
    job = Job(
        folder=out,
        seed=seed,
        clips_per_shard=clips_per_shard,
        held_out=held_out,
        settings=settings,
    )
    missing = [index for index in shards if not shard_done(out, index)]
    for index in set(shards) - set(missing):
        _require_same(job, index)
    if existing := len(shards) - len(missing):
        LOGGER.warning(
            f"{out}: {existing} of {len(shards)} shards already exist and are kept; their seed, sizes and counts "
            "match, other options were not compared"
        )
    total = len(shards) * clips_per_shard
    with progress("synthetic clips", total, "clip") as bar:
        bar.resume(total - len(missing) * clips_per_shard)
        if workers == 1 or len(missing) < 2:
            for index in missing:
                make_shard(job, index, bar.advance)
        else:
            _run_workers(job, missing, min(workers, len(missing)), bar.advance)
    return finalise(out, name) if _all_complete(out) else None


def _require_same(job: Job, index: int) -> None:
    """Raise UserError if an existing shard was made with another seed, size or number of clips than ``job``'s."""
    settings = job.settings
    file = job.folder / f"shard-{index:06d}.json"
    samples = json.loads(file.read_text())["samples"]
    seeds = [clip_seed(job.seed, index, number, held_out=job.held_out) for number in range(job.clips_per_shard)]
    sizes = {(s["width"], s["height"], s["cameras"], s["frames"]) for s in samples}
    expected = {(settings.width, settings.height, settings.cameras, settings.cameras * settings.frames)}
    if sizes != expected or [int(s["key"].rsplit("-", 1)[-1]) for s in samples] != seeds:
        raise UserError(f"{file} was made with another seed, size or number of clips; choose another folder")


def make_shard(job: Job, index: int, done: Callable[[], None]) -> Path:
    """Make and write one shard, calling ``done`` after each clip; return the path of its sidecar."""

    def clips() -> Iterator[RawClip]:
        for number in range(job.clips_per_shard):
            yield generate(clip_seed(job.seed, index, number, held_out=job.held_out), job.settings)
            done()

    return write_shard(job.folder, index, clips())


def _all_complete(out: Path) -> bool:
    """True if every shard up to the last of the folder is complete."""
    last = max(int(path.stem.removeprefix("shard-")) for path in out.glob("shard-*[0-9].tar"))
    return all(shard_done(out, index) for index in range(last + 1))


def _check(out: Path, shards: range, clips_per_shard: int, workers: int) -> None:
    if not len(shards) or min(shards) < 0 or max(shards) >= MAX_SHARDS:
        raise UserError(
            f"shards {shards.start}:{shards.stop} is not a range; choose FIRST:END with 0 ≤ FIRST < END ≤ 1000"
        )
    if not 1 <= clips_per_shard <= MAX_CLIPS:
        raise UserError(f"clips per shard is {clips_per_shard}; choose a number from 1 to {MAX_CLIPS}")
    if workers < 1:
        raise UserError(f"workers is {workers}; choose 1 or more")
    missing = [module for module in ("embreex", "mujoco") if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f'the generator needs {" and ".join(missing)}: pip install "four_d[synth]"')
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {out}: {error.strerror}; choose another") from error
    refuse_foreign(out)
    if not os.access(out, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {out}; choose another folder or change its permissions")


def _check_assets(settings: WorldSettings) -> None:
    """Raise UserError if a folder of photographs or meshes holds none, or Blender or a panorama is missing.

    Name the photographs that cannot be read.
    """
    if settings.blender is not None:
        check_blender(settings.blender)
    if settings.hdri is not None and not (settings.hdri.is_file() and settings.hdri.suffix.lower() in (".hdr", ".exr")):
        raise UserError(f"{settings.hdri} is no .hdr or .exr file; give a panorama of one of these")
    if settings.photographs is not None:
        Photographs(settings.photographs).check()
    if settings.meshes is not None:
        if importlib.util.find_spec("trimesh") is None:
            raise UserError('meshes need trimesh: pip install "four_d[synth]"')
        Models(settings.meshes)


@dataclass(kw_only=True)
class _Worker:
    """Worker process, with its pipe and its current shard."""

    process: BaseProcess
    pipe: Connection
    shard: int | None = None

    def send_next(self, waiting: list[int]) -> None:
        """Send the worker its next shard, or None to end it."""
        self.shard = waiting.pop(0) if waiting else None
        with suppress(BrokenPipeError):  # the worker died: `_receive` notices
            self.pipe.send(self.shard)


def _work(job: Job, pipe: Connection) -> None:
    """Loop of a worker process: make the shards that the pipe gives until None; send progress or the error back."""
    ignore_signals()
    with suppress(EOFError, BrokenPipeError):  # the parent process is gone
        try:
            while isinstance(index := pipe.recv(), int):
                make_shard(job, index, lambda: pipe.send("clip"))
                pipe.send("shard")
        except BrokenPipeError:  # suppressed above: there is no one left to send it to
            raise
        except Exception as error:  # carried to the parent, which raises it
            pipe.send(error if isinstance(error, UserError) else RuntimeError(f"{type(error).__name__}: {error}"))


def _run_workers(job: Job, missing: list[int], workers: int, done: Callable[[], None]) -> None:
    """Spread shards over processes. If one is killed, the others finish the rest before the UserError that names it."""
    waiting, busy, failed = list(missing), list[_Worker](), list[str]()
    try:
        for _ in range(workers):
            busy.append(_start(job))
            busy[-1].send_next(waiting)
        while busy:
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                if not _receive(worker, waiting, done):
                    busy.remove(worker)
                    failed += _clean_up(job, worker)
    finally:
        for worker in busy:
            worker.process.kill()
            _clean_up(job, worker)
    if failed or waiting:
        unmade = f"; shards {', '.join(map(str, waiting))} were not begun" if waiting else ""
        raise UserError(
            f"{'; '.join(sorted(failed))}{unmade}. Finished shards stay: run the same command again, with fewer workers"
        )


def _start(job: Job) -> _Worker:
    """Start a worker with a pipe of its own: a shared queue would stay locked by a worker that is killed."""
    method = context()
    parent_end, worker_end = method.Pipe()
    process = method.Process(target=_work, args=(job, worker_end), daemon=True)
    process.start()
    worker_end.close()  # so that recv() raises EOFError once the worker has ended
    return _Worker(process=process, pipe=parent_end)


def _receive(worker: _Worker, waiting: list[int], done: Callable[[], None]) -> bool:
    """Handle one message of a worker; False if the worker has ended. Raise an error that it sent."""
    try:
        message = worker.pipe.recv()
    except (EOFError, ConnectionResetError):
        return False
    if isinstance(message, Exception):
        raise message
    if message == "clip":
        done()
    else:
        worker.send_next(waiting)
    return True


def _clean_up(job: Job, worker: _Worker) -> list[str]:
    """Remove the partial files of an ended worker; return a line for the error if it died while making a shard."""
    worker.process.join()
    worker.pipe.close()
    if worker.shard is None:
        return []
    name = shard_names(worker.shard)[0]
    for path in job.folder.glob(f".{Path(name).stem}.*.partial*"):
        path.unlink(missing_ok=True)
    return [f"the worker that made {name} {describe_exit(worker.process.exitcode)}"]
