"""Reference models that results began with, and that newer ones have replaced in ``checkpoints/``.

    python benchmarks/former.py unified-small          # prints the folder
    python benchmarks/former.py unified-base@d6f7869   # as that commit has it

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


def former(wanted: str) -> Path:
    """Folder of a model out of this repository's history. SystemExit where that is not there.

    Args:
        wanted: one of `NAMES`, or a name and the commit that has it, as NAME@COMMIT.

    """
    name, _, commit = wanted.partition("@")
    place = FORMER / commit
    folder = place / "checkpoints" / name
    if not (folder / "config.json").is_file():
        git = subprocess.run(
            ["git", "-C", str(ROOT), "archive", commit or COMMIT, f"checkpoints/{name}"],
            capture_output=True,
            check=False,
        )
        if git.returncode:
            told = git.stderr.decode().strip().splitlines()[-1:]
            raise SystemExit(
                f"{wanted} is in this repository's history alone, which git does not show: {' '.join(told)}"
            )
        with tarfile.open(fileobj=io.BytesIO(git.stdout)) as files:
            files.extractall(place, filter="data")
    return folder


if __name__ == "__main__":
    print(former(sys.argv[1]))
