"""Copies of a run's figures and pictures, in wandb and TensorBoard; ``metrics.jsonl`` is complete without them."""

from __future__ import annotations

import importlib.util
import logging
import os
import struct
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, cast, runtime_checkable

import numpy as np
from PIL import Image

from four_d.checkpoints import METRICS
from four_d.config import LoggingConfig, RunConfig
from four_d.errors import UserError
from four_d.outputs import write_whole
from four_d.schema import Plain, to_plain

if TYPE_CHECKING:
    from torch.utils.tensorboard.writer import SummaryWriter
    from wandb import Run

LOGGER = logging.getLogger(__name__)

EMPTY_WANDB = 7
"""Size in bytes of an offline run's empty file: its header."""
BLOCK, HEAD = 32768, 7
"""Bytes of a block of an offline run's file, and of the header of a record's piece."""
PIECE_ENDS = (1, 4)
"""Kinds of pieces, of LevelDB's log format, with which a record is complete: a whole one, and the last one."""


def check_copies(config: LoggingConfig) -> None:
    """Raise UserError for a copy whose package is not installed."""
    if config.wandb != "off" and importlib.util.find_spec("wandb") is None:
        raise UserError("logging.wandb needs the package wandb; install it, or set logging.wandb=off")
    if config.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            "logging.tensorboard needs the package tensorboard: pip install 'four_d[tensorboard]', or set "
            "logging.tensorboard=false"
        )


@runtime_checkable
class RunCopy(Protocol):
    """Copy of what a run records. A copy that fails is reported once and ends; the training goes on."""

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers by name."""
        ...

    def picture(self, step: int, name: str, file: Path) -> None:
        """Add a picture, a PNG."""
        ...

    def histogram(self, step: int, name: str, edges: Sequence[float], counts: Sequence[int]) -> None:
        """Add counts between ascending edges, one more than counts."""
        ...

    def close(self, exit_code: int) -> None:
        """Write everything, and release it."""
        ...


def copies(folder: Path, config: RunConfig, step: int) -> list[RunCopy]:
    """Copies that the config asks for, of a run that goes on after ``step``, whose later figures are forgotten."""
    found: list[RunCopy] = []
    if config.logging.wandb != "off":
        found.append(WandbCopy(folder, config, step))
    if config.logging.tensorboard:
        found.append(TensorBoardCopy(folder / "tensorboard", step))
    return found


class Media:
    """Limits of the pictures that copies get, in number and size."""

    def __init__(self, pictures: Path, config: LoggingConfig, step: int) -> None:
        self._config = config
        files = pictures.glob("*.png") if pictures.is_dir() else ()
        self._count = sum(int(file.stem.rpartition("-")[2]) <= step for file in files)
        self._told = False

    def allows(self) -> bool:
        """True for one more picture; says once that there are no more."""
        self._count += 1
        if self._count > self._config.media_count and not self._told:
            self._told = True
            LOGGER.warning(
                f"{self._config.media_count} pictures are copied (logging.media_count); further ones are in pictures/ "
                "alone"
            )
        return self._count <= self._config.media_count

    def sized(self, file: Path) -> Path:
        """File of a picture no larger than the limit: itself, or a smaller one beside it, for copies alone."""
        side = self._config.media_side
        with Image.open(file) as picture:
            if max(picture.size) <= side:
                return file
            small = file.parent / "small" / file.name
            small.parent.mkdir(exist_ok=True)
            picture.thumbnail((side, side))
            picture.save(small)
        return small


class TensorBoardCopy:
    """Copy in TensorBoard's event files.

    A new file says from which step on those before are void, so that a resumed run has each step once.
    """

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        resumed = folder.is_dir() and any(folder.iterdir())
        self._writer: SummaryWriter | None = SummaryWriter(str(folder), purge_step=step + 1 if resumed else None)

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add scalars."""

        def add(writer: SummaryWriter) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._write(add)

    def picture(self, step: int, name: str, file: Path) -> None:
        """Add an image."""
        with Image.open(file) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self._write(lambda writer: writer.add_image(f"pictures/{name}", pixels, step, dataformats="HWC"))

    def histogram(self, step: int, name: str, edges: Sequence[float], counts: Sequence[int]) -> None:
        """Add a histogram."""
        middles, held = np.sqrt(np.asarray(edges[:-1]) * np.asarray(edges[1:])), np.asarray(counts)
        facts = {"num": int(held.sum()), "sum": held @ middles, "sum_squares": held @ middles**2}
        ends = {"min": edges[0], "max": edges[-1]}
        limits = {"bucket_limits": list(edges[1:]), "bucket_counts": held.tolist()}
        self._write(lambda writer: writer.add_histogram_raw(name, **ends, **facts, **limits, global_step=step))

    def close(self, exit_code: int) -> None:  # noqa: ARG002 - as others have it
        """Close the file."""
        self._write(lambda writer: writer.close())

    def _write(self, add: Callable[[SummaryWriter], object]) -> None:
        """Add to the file at once: what a killed process had not written would be lost."""
        if self._writer is None:
            return
        try:
            add(self._writer)
            self._writer.flush()
        except Exception as error:  # of a full disk, a lost one: whatever its own thread stumbled over
            self._writer = None
            LOGGER.warning(f"warning: TensorBoard's copy ended ({_short(error)}); {METRICS} has all figures")


class WandbCopy:
    """Copy in wandb, whose own service may fail without ending the training."""

    def __init__(self, folder: Path, config: RunConfig, step: int) -> None:
        self._wandb = _import_wandb()
        forget_offline(folder / "wandb", step)
        self._run: Run | None = _start_wandb(self._wandb, folder, config)
        self._step = 0
        self._sent = _last_sent(self._run) if config.logging.wandb == "online" else -1
        # wandb's own name for it; online runs have one too, which is removed once it is sent
        self._file = Path(self._run.settings.sync_file) if config.logging.wandb == "offline" else None

    def numbers(self, step: int, values: Mapping[str, float]) -> None:
        """Add numbers by name."""
        self._log(step, values)

    def picture(self, step: int, name: str, file: Path) -> None:
        """Add an image."""
        with self._lasting():
            self._log(step, {f"pictures/{name}": self._wandb.Image(str(file))})

    def histogram(self, step: int, name: str, edges: Sequence[float], counts: Sequence[int]) -> None:
        """Add a histogram."""
        with self._lasting():
            self._log(step, {name: self._wandb.Histogram(np_histogram=(np.asarray(counts), np.asarray(edges)))})

    def _log(self, step: int, values: Mapping[str, object]) -> None:
        """Send values, unless the server has them from before this start, or wandb was lost."""
        self._step = step
        with self._lasting():
            if self._run is not None and step >= self._sent:
                self._run.log({"step": step, **values})

    def close(self, exit_code: int) -> None:
        """Wait until wandb has everything and its service has ended: only then an offline run's file is complete."""
        with self._lasting():
            if self._run is not None:
                self._run.finish(exit_code=exit_code)
                self._wandb.teardown()
                if self._file is not None and self._file.stat().st_size <= EMPTY_WANDB:
                    raise OSError(f"{self._file} is empty")

    @contextmanager
    def _lasting(self) -> Generator[None]:
        try:
            yield
        except Exception as error:  # of a lost connection, a full disk, a network: whatever wandb stumbles over
            self._run = None
            LOGGER.warning(
                f"warning: wandb ended at step {self._step} ({_short(error)}; was its service killed for want of "
                f"memory?) and lacks figures of this run; {METRICS} has them all"
            )
            with suppress(Exception):  # cancels its work and output at the interpreter's exit
                self._wandb.teardown()


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _last_sent(run: Run) -> int:
    """Last step that wandb's server has of a run that goes on; -1 of a new one."""
    if not run.resumed:
        return -1
    found = run.summary.get("step")
    return int(found) if isinstance(found, int | float) else -1


def forget_offline(folder: Path, step: int) -> None:
    """Cut wandb's offline files of earlier starts where figures of steps beyond ``step`` begin: they come again."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue] - made at run time

    for file in sorted(folder.glob("offline-run-*/run-*.wandb")):
        for place, content in _records(file):
            record = Record()
            record.ParseFromString(content)
            items = record.history.item if record.HasField("history") else ()
            steps = [float(item.value_json) for item in items if (item.key or "/".join(item.nested_key)) == "step"]
            if steps and steps[0] > step:
                os.truncate(file, place)
                break


def _records(file: Path) -> Iterator[tuple[int, bytes]]:
    """Place and content of each whole record in an offline file: LevelDB's log format behind wandb's own header."""
    content, place = file.read_bytes(), EMPTY_WANDB
    record, begin = b"", place
    while place + HEAD <= len(content):
        left = BLOCK - place % BLOCK
        if left < HEAD:  # padding
            place += left
            begin = place if not record else begin
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + HEAD])
        piece = content[place + HEAD : place + HEAD + length]
        if len(piece) < length or not kind:  # a killed service's last one
            return
        record += piece
        place += HEAD + length
        if kind in PIECE_ENDS:
            yield begin, record
            record, begin = b"", place


def _start_wandb(wandb: ModuleType, folder: Path, config: RunConfig) -> Run:
    """Start or continue a wandb run, whose id is stored in the run folder."""
    logging = config.logging
    path = folder / "wandb_id.txt"
    if not path.is_file():
        write_whole(path, uuid.uuid4().hex[:12])
    try:
        run = wandb.init(
            project=logging.wandb_project,
            name=config.name,
            id=path.read_text().strip(),
            dir=str(folder),
            mode=logging.wandb,
            # offline runs cannot ask the server what there is to resume; `wandb sync` appends by id
            resume="allow" if logging.wandb == "online" else None,
            config=cast(Plain, to_plain(config)),
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )
    except wandb.Error as error:
        reason = " ".join(str(error).split())
        raise UserError(f"wandb does not start ({reason}); set logging.wandb=offline or off") from error
    run.define_metric("*", step_metric="step")
    return run


def _import_wandb() -> ModuleType:
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"wandb cannot be imported ({error}); install it or set logging.wandb=off") from error
    return wandb
