"""Record of a run: config, environment, and figures as JSON lines and optionally in wandb."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Literal, cast

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from four_d import __version__
from four_d.checkpoints import ENVIRONMENT, METRICS
from four_d.config import RunConfig, to_yaml
from four_d.errors import UserError
from four_d.outputs import new_file, write_whole
from four_d.schema import Plain, to_plain

if TYPE_CHECKING:
    from wandb import Run

LOGGER = logging.getLogger(__name__)

EMPTY_WANDB = 7
"""Size in bytes of an offline run's empty file: its header."""
CONFIG = "config.yaml"
Figures = Mapping[str, float | int | str]
Split = Literal["train", "validation", "variation", "event"]


def describe_machine() -> Plain:
    """Versions, machine, code and command of this process."""
    return {
        "four_d": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "machine": platform.machine(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "commit": _commit(),
        "command": sys.argv,
    }


def _commit() -> str | None:
    """Commit of the running code, with a + if files differ; None outside a working copy."""
    git, folder = shutil.which("git"), Path(__file__).parent
    if git is None:
        return None
    found = subprocess.run(
        [git, "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Create and lock a folder, where the system and the disk support it.

    UserError while another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("fcntl") is None:
        yield
        return
    import fcntl

    number = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network disks cannot
            try:
                fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(
                    f"{folder} is being trained by another process; stop that one, or choose another name"
                ) from None
        yield
    finally:
        os.close(number)


class RunRecord:
    """Writer of a run folder's text files. Only rank 0 makes one."""

    def __init__(self, folder: Path, config: RunConfig, data_fingerprint: str, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        write_whole(folder / CONFIG, to_yaml(config))
        described = {**describe_machine(), "data": data_fingerprint}
        write_whole(folder / ENVIRONMENT, json.dumps(described, indent=1) + "\n")
        forget_after(folder / METRICS, step)
        self._lines = (folder / METRICS).open("a", encoding="utf-8")
        self._copy = None if config.logging.wandb == "off" else WandbCopy(folder, config)

    def write(self, split: Split, step: int, figures: Figures) -> None:
        """Write one line of figures; numbers also go to wandb, as split/name."""
        clean = {name: _json_number(value) for name, value in figures.items()}
        self._lines.write(json.dumps({"split": split, "step": step, **clean}) + "\n")
        self._lines.flush()
        if self._copy is not None:
            numbers = {f"{split}/{name}": value for name, value in figures.items() if not isinstance(value, str)}
            self._copy.log(step, lambda: numbers)

    def picture(self, name: str, step: int, pixels: NDArray[np.uint8]) -> Path:
        """Write an image to the run folder and to wandb."""
        path = self.folder / "pictures" / f"{name}-{step:07d}.png"
        with new_file(path) as partial:
            Image.fromarray(pixels).save(partial)
        if self._copy is not None:
            import wandb

            self._copy.log(step, lambda: {f"pictures/{name}": wandb.Image(str(path))})
        return path

    def close(self, exit_code: int) -> None:
        """Flush and release everything."""
        self._lines.close()
        if self._copy is not None:
            self._copy.close(exit_code)


def _json_number(value: float | int | str) -> float | int | str | None:
    """Convert NaN and infinity, which JSON lacks, to None."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_metrics(folder: Path) -> list[Plain]:
    """Read the lines of a run's ``metrics.jsonl``, without a last line truncated by a crash."""
    lines: list[Plain] = []
    path = folder / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(cast(Plain, json.loads(line)))
        except json.JSONDecodeError:
            break
    return lines


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps beyond ``step``, which the resumed run repeats."""
    if path.is_file():
        kept = [line for line in read_metrics(path.parent) if cast(int, line["step"]) <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_whole(path, text)


class WandbCopy:
    """Copy of the run's figures in wandb, whose own service may fail without ending the training.

    If it is killed or fails, one line reports it, and nothing more is sent; ``metrics.jsonl`` is complete.
    """

    def __init__(self, folder: Path, config: RunConfig) -> None:
        self._wandb = _import_wandb()
        self._run: Run | None = _start_wandb(self._wandb, folder, config)
        self._step = 0
        # wandb's own name for it; online runs have one too, which is removed once it is sent
        self._file = Path(self._run.settings.sync_file) if config.logging.wandb == "offline" else None

    def log(self, step: int, values: Callable[[], Mapping[str, object]]) -> None:
        """Send ``values()``, unless wandb was lost before."""
        self._step = step
        with self._lasting():
            if self._run is not None:
                self._run.log({"step": step, **values()})

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
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            LOGGER.warning(
                f"warning: wandb ended at step {self._step} ({reason}; was its service killed for want of memory?) and "
                f"lacks figures of this run; {METRICS} has them all"
            )
            with suppress(Exception):  # cancels its work and output at the interpreter's exit
                self._wandb.teardown()


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
