"""Record of a run: config, environment, and figures as JSON lines and optionally in copies."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal, cast

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
from four_d.schema import Plain
from four_d.training.copies import Media, copies
from four_d.training.pace import Histogram

CONFIG, PICTURES = "config.yaml", "pictures"
Figures = Mapping[str, float | int | str]
Split = Literal["train", "validation", "variation", "histogram"]


def versions() -> dict[str, str]:
    """Versions that all processes of a run must have."""
    python = platform.python_version()
    return {
        "four_d": __version__,
        "python": python,
        "torch": str(torch.__version__),
        "lightning": lightning.__version__,
    }


def describe_machine() -> Plain:
    """Versions, machine, code and command of this process."""
    return {
        **versions(),
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

    def __init__(self, folder: Path, config: RunConfig, data_fingerprint: str, step: int, processes: int = 1) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        write_whole(folder / CONFIG, to_yaml(config))
        described = {**describe_machine(), "data": data_fingerprint, "processes": processes}
        write_whole(folder / ENVIRONMENT, json.dumps(described, indent=1) + "\n")
        forget_after(folder / METRICS, step)
        self._lines = (folder / METRICS).open("a", encoding="utf-8")
        self._copies = copies(folder, config, step)
        self._media = Media(folder / PICTURES, config.logging, step)

    def write(self, split: Split, step: int, figures: Figures) -> None:
        """Write one line of figures; numbers also go to the copies, as split/name."""
        clean = {name: _json_number(value) for name, value in figures.items()}
        self._line(split, step, clean)
        numbers = {f"{split}/{name}": value for name, value in figures.items() if not isinstance(value, str)}
        for copy in self._copies:
            copy.numbers(step, numbers)

    def histogram(self, name: str, step: int, found: Histogram) -> None:
        """Write a histogram as one line, and to the copies."""
        edges, counts = found.buckets()
        self._line("histogram", step, {"name": name, "edges": edges, "counts": counts, "most": found.most})
        for copy in self._copies:
            copy.histogram(step, f"histogram/{name}", edges, counts)

    def _line(self, split: Split, step: int, values: Mapping[str, object]) -> None:
        self._lines.write(json.dumps({"split": split, "step": step, **values}) + "\n")
        self._lines.flush()

    def picture(self, name: str, step: int, pixels: NDArray[np.uint8]) -> Path:
        """Write an image to the run folder, and to the copies as far as `Media` allows."""
        path = self.folder / PICTURES / f"{name}-{step:07d}.png"
        with new_file(path) as partial:
            Image.fromarray(pixels).save(partial)
        if self._copies and self._media.allows():
            sized = self._media.sized(path)
            for copy in self._copies:
                copy.picture(step, name, sized)
        return path

    def close(self, exit_code: int) -> None:
        """Flush and release everything."""
        self._lines.close()
        for copy in self._copies:
            copy.close(exit_code)


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
