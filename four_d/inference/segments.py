"""Memory and files of a video's Gaussians in segments."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from four_d.errors import UserError
from four_d.formats.splats import read_gaussians, write_gltf
from four_d.memory import free_bytes
from four_d.rendering.memory import TORCH
from four_d.types import Segment
from four_d.windows.segments import stretches

LOGGER = logging.getLogger(__name__)

FORMAT, INDEX = 1, "gaussians.json"
MANY = 1_000_000
"""Number of Gaussians of a segment from which their memory is reported beforehand."""
MAKING = 3
"""Peak temporary memory while building and writing a segment, as a multiple of its size: the head's output, a reordered
copy, and the file."""
NUMBERS, BYTES = 14, 4
"""Number of values of a static Gaussian (mean 3, quaternion 4, scales 3, opacity 1, colour 3), and bytes of each."""


def check_memory(each: int, count: int, times: int) -> None:
    """Check beforehand that a video's Gaussians fit into memory; reports the need on stderr if they are `MANY`.

    Args:
        each: number of Gaussians of a segment.
        count: number of times of a segment.
        times: number of times of the video.

    Raises:
        UserError: more than the free memory.

    """
    number = len(stretches(count).plan(times))
    own = each * BYTES * (NUMBERS + 3 * count)
    needed = number * own + max(MAKING * own, each * BYTES * TORCH.per_gaussian)
    subject = f"this video becomes {f'{number} times ' if number > 1 else ''}{each:,} Gaussians"
    free = free_bytes(torch.device("cpu"))
    if free is not None and needed > free:
        fewer = "take fewer frames (--max-frames), or " if number > 1 else ""
        raise UserError(
            f"{subject}, for which about {needed / 1e9:.2g} GB are needed besides the model's own memory, and "
            f"{free / 1e9:.2g} GB are free; {fewer}take a model of smaller pictures or a machine with more memory"
        )
    if each >= MANY:
        LOGGER.warning(f"{subject}: about {needed / 1e9:.2g} GB besides the model's own memory")


def write_segments(folder: Path, segments: Sequence[Segment]) -> None:
    """Write a folder with an animated glTF file per segment, and ``gaussians.json`` with the start of each."""
    folder.mkdir(parents=True)
    names = [f"{index:04d}.glb" for index in range(len(segments))]
    for name, segment in zip(names, segments, strict=True):
        write_gltf(folder / name, segment.gaussians)
    note = "each file is shown from its start (s) until the next one's"
    entries = [{"file": name, "start": segment.start} for name, segment in zip(names, segments, strict=True)]
    (folder / INDEX).write_text(json.dumps({"format": FORMAT, "note": note, "segments": entries}, indent=1) + "\n")


def read_segments(path: Path) -> tuple[Segment, ...]:
    """Read a folder of `write_segments`, or one segment from any other file of Gaussians (`read_gaussians`).

    UserError if the folder is of another kind or version, or a file is missing.
    """
    index = path / INDEX
    if not index.is_file():
        gaussians = read_gaussians(path)
        times = gaussians.offset_times
        return (Segment(gaussians=gaussians, start=0.0 if times is None else float(times[0])),)
    try:
        content = json.loads(index.read_text())
        entries = [(str(entry["file"]), float(entry["start"])) for entry in content["segments"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{index} does not say which files there are ({error}); write the folder again") from error
    if content.get("format") != FORMAT or not entries:
        raise UserError(f"{index} is of format {content.get('format')}, this four_d reads {FORMAT}; write it again")
    return tuple(Segment(gaussians=read_gaussians(path / Path(file).name), start=start) for file, start in entries)
