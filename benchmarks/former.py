"""Reference models that results began with, and that newer ones have replaced in ``checkpoints/``.

    python benchmarks/former.py unified-small     # prints the folder

They are taken out of this repository's history, into ``runs/former``.
"""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FORMER = Path("runs/former")
COMMIT = "72adf65"
"""Last one whose ``checkpoints/`` holds `NAMES`."""
NAMES = ("unified-small", "dgs_lrm-small")


def former(name: str) -> Path:
    """Folder of a former model, from this repository's history. SystemExit where that is not there."""
    folder = FORMER / "checkpoints" / name
    if not (folder / "config.json").is_file():
        git = subprocess.run(
            ["git", "-C", str(ROOT), "archive", COMMIT, f"checkpoints/{name}"], capture_output=True, check=False
        )
        if git.returncode:
            told = git.stderr.decode().strip().splitlines()[-1:]
            raise SystemExit(f"{name} is in this repository's history alone, which git does not show: {' '.join(told)}")
        with tarfile.open(fileobj=io.BytesIO(git.stdout)) as files:
            files.extractall(FORMER, filter="data")
    return folder


if __name__ == "__main__":
    print(former(sys.argv[1]))
