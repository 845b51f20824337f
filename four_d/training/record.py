"""What a run leaves behind: its config, its environment, its figures as JSON lines and, if wished, in wandb."""

from __future__ import annotations

import importlib.util
import json
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
from four_d.config import Plain, RunConfig, to_plain, to_yaml
from four_d.errors import UserError

if TYPE_CHECKING:
    from wandb import Run

METRICS, CONFIG, ENVIRONMENT = "metrics.jsonl", "config.yaml", "environment.json"
Figures = Mapping[str, float | int | str]
Split = Literal["train", "validation", "event"]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, which then takes the name ``path``: whole, or not there at all."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        if path.parent.is_dir():
            temporary.unlink(missing_ok=True)


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
    """The commit of the code that runs, with a + where files differ; None outside a working copy."""
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


_held: set[int] = set()
"""Descriptors of folders that are `alone`."""


def _forget_held() -> None:
    """In a forked process, which must not keep a folder when the one that asked for it is gone."""
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_held)


@contextmanager
def alone(folder: Path) -> Generator[None]:
    """Make a folder, and keep other processes that ask likewise from it, where the system and the disk can.

    UserError while another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if importlib.util.find_spec("fcntl") is None:
        yield
        return
    import fcntl

    number = os.open(folder, os.O_RDONLY)
    _held.add(number)
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
        _held.discard(number)
        os.close(number)


class RunRecord:
    """Writer of a run folder's text files. Only rank 0 makes one."""

    def __init__(self, folder: Path, config: RunConfig, data_fingerprint: str, step: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        write_atomically(folder / CONFIG, lambda path: path.write_text(to_yaml(config)))
        described = {**describe_machine(), "data": data_fingerprint}
        write_atomically(folder / ENVIRONMENT, lambda path: path.write_text(json.dumps(described, indent=1) + "\n"))
        forget_after(folder / METRICS, step)
        self._lines = (folder / METRICS).open("a", encoding="utf-8")
        self._wandb = _start_wandb(folder, config)

    def write(self, split: Split, step: int, figures: Figures) -> None:
        """One line of figures; numbers also go to wandb, as split/name."""
        clean = {name: _json_number(value) for name, value in figures.items()}
        self._lines.write(json.dumps({"split": split, "step": step, **clean}) + "\n")
        self._lines.flush()
        if self._wandb is not None:
            numbers = {f"{split}/{name}": value for name, value in figures.items() if not isinstance(value, str)}
            self._wandb.log({"step": step, **numbers})

    def picture(self, name: str, step: int, pixels: NDArray[np.uint8]) -> Path:
        """A picture into the run folder and to wandb."""
        path = self.folder / "pictures" / f"{name}-{step:07d}.png"
        write_atomically(path, lambda temporary: Image.fromarray(pixels).save(temporary, format="png"))
        if self._wandb is not None:
            import wandb

            self._wandb.log({"step": step, f"pictures/{name}": wandb.Image(str(path))})
        return path

    def close(self, exit_code: int) -> None:
        """Flush and let go of everything."""
        self._lines.close()
        if self._wandb is not None:
            self._wandb.finish(exit_code=exit_code)


def _json_number(value: float | int | str) -> float | int | str | None:
    """JSON has no NaN or infinity."""
    return None if isinstance(value, float) and not np.isfinite(value) else value


def read_metrics(folder: Path) -> list[Plain]:
    """The lines of a run's ``metrics.jsonl``; a last line that was cut off by a crash is left out."""
    lines: list[Plain] = []
    path = folder / METRICS
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(cast(Plain, json.loads(line)))
        except json.JSONDecodeError:
            break
    return lines


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of steps beyond ``step``: the resumed run takes them again."""
    if path.is_file():
        kept = [line for line in read_metrics(path.parent) if cast(int, line["step"]) <= step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _start_wandb(folder: Path, config: RunConfig) -> Run | None:
    """A wandb run whose id lives in the run folder, so that a resumed run goes on in the same place."""
    logging = config.logging
    if logging.wandb == "off":
        return None
    wandb = _import_wandb()
    path = folder / "wandb_id.txt"
    if not path.is_file():
        write_atomically(path, lambda temporary: temporary.write_text(uuid.uuid4().hex[:12]))
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
    run.define_metric("*", step_metric="step")
    return run


def _import_wandb() -> ModuleType:
    try:
        import wandb
    except ImportError as error:
        raise UserError(f"wandb cannot be imported ({error}); install it or set logging.wandb=off") from error
    return wandb
