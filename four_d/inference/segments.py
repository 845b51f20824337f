"""Gaussians of a whole video, by a model that makes them of so many times at once: segment by segment.

A model's Gaussian head moves them to a fixed number of times. A longer video is seen again in stretches of so many
times, each of which begins at the last time of the one before, and each stretch's Gaussians are brought into the
video's world (`seams.align`). They are shown from there on until the next one's. A shorter video is made as long by
repeating frames.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from four_d.errors import UserError
from four_d.formats.splats import read_gaussians, write_gltf
from four_d.inference.inputs import Source
from four_d.inference.parts import Part, join_frames, take_frames
from four_d.inference.seams import Seam, align
from four_d.inference.video import Stream, Video
from four_d.rendering.memory import TORCH, free_bytes
from four_d.types import Gaussians, Prediction, Segment

FORMAT, INDEX = 1, "gaussians.json"
MANY = 1_000_000
"""Gaussians of one segment from which the memory that they need is said beforehand."""
MAKING = 3
"""Times their own size that a segment's Gaussians need besides, while they are made and written: the head's numbers,
these in another order, and the file."""
NUMBERS, BYTES = 14, 4
"""Of a Gaussian that does not move: place 3, quaternion 4, scales 3, opacity 1, colour 3; and of a number."""


class Segments:
    """Makes the segments of a video while its frames come, in order and in the video's world."""

    def __init__(
        self,
        see: Callable[[Source], Prediction],
        count: int,
        video: Video | Stream,
        floats: Float[Tensor, "f 3 h w"] | None = None,
    ) -> None:
        """Of a video whose frames are not read here.

        Args:
            see: what the model says of frames of ``count`` times, unbatched: Gaussians in their first camera's
                coordinates, whose times count from their first, and what ties those to the video's world.
            count: times.
            video: all of it.
            floats: its frames where they came as floats.

        """
        self._see, self._count, self._video, self._floats = see, count, video, floats
        self._times = video.times[:: video.cameras].tolist()
        self._next, self._ended = 0, 0
        self._held: Part | None = None
        self._made: list[Segment] = []
        self.seams: list[Seam] = []
        """How well each segment fits the video."""

    def add(self, part: Part) -> None:
        """The frames that follow."""
        self._held = part.take(part.frames) if self._held is None else _joined(self._held, part.take(part.frames))
        while self._next + self._count <= self._held.frames.stop // self._video.cameras:
            self._make(range(self._next, self._next + self._count))
            self._next += max(self._count - 1, 1)

    def end(self) -> tuple[Segment, ...]:
        """All segments, once every frame was added. Says on stderr when frames had to be repeated."""
        total = len(self._times)
        if total < self._count:
            print(
                f"this model makes Gaussians of {self._count} times, there are {total}: frames are repeated for them",
                file=sys.stderr,
            )
            self._make(range(total))
        elif self._next + (self._count > 1) < total:
            self._make(range(total - self._count, total))
        return tuple(self._made)

    def _make(self, times: range) -> None:
        """One more segment, of these times; what is no longer needed is let go."""
        assert self._held is not None
        cameras = self._video.cameras
        part = self._held.take(range(times.start * cameras, times.stop * cameras))
        spread = [index * len(times) // self._count for index in range(self._count)]
        seen = self._see(self._source(part, [time * cameras + k for time in spread for k in range(cameras)]))
        assert seen.gaussians is not None
        first = [spread.index(index) for index in range(len(times))]
        move, seam = align(part.prediction, take_frames(seen, [i * cameras + k for i in first for k in range(cameras)]))
        gaussians = _at_times(move.gaussians(seen.gaussians), first, self._times[times.start : times.stop])
        start = self._times[times.start]
        if self._made:
            start = (start + self._times[self._ended]) / 2
        self._ended = times.stop - 1
        self._made.append(Segment(gaussians=gaussians, start=start))
        self.seams.append(seam)
        self._held = self._held.take(range(times.start * cameras, self._held.frames.stop))

    def _source(self, part: Part, rows: Sequence[int]) -> Source:
        """These frames of a part, counted from its first."""
        video, which = self._video, [part.frames.start + row for row in rows]
        return Source(
            video=Video(
                frames=part.originals[list(rows)],
                times=video.times[which],
                total=video.total,
                indices=None if video.indices is None else tuple(video.indices[row] for row in which),
                cameras=video.cameras,
                part=(which, len(video.times)),
            ),
            floats=None if self._floats is None else self._floats[which],
        )


def _joined(one: Part, other: Part) -> Part:
    return Part(
        frames=range(one.frames.start, other.frames.stop),
        prediction=join_frames([one.prediction, other.prediction]),
        fit=one.fit,
        images=torch.cat([one.images, other.images]),
        originals=np.concatenate([one.originals, other.originals]),
    )


def _at_times(gaussians: Gaussians, rows: Sequence[int], times: Sequence[float]) -> Gaussians:
    """Of the offsets these rows, which are of these times (s)."""
    assert gaussians.offsets is not None
    return dataclasses.replace(gaussians, offsets=gaussians.offsets[list(rows)], offset_times=torch.tensor(times))


def check_memory(each: int, count: int, times: int) -> None:
    """Before anything is made: how much memory a video's Gaussians will need, said on stderr where they are `MANY`.

    Args:
        each: Gaussians of one segment.
        count: times that a segment moves to.
        times: of the video.

    Raises:
        UserError: that is more than is free.

    """
    number = max(-(-(times - 1) // max(count - 1, 1)), 1)
    own = each * BYTES * (NUMBERS + 3 * count)
    needed = number * own + max(MAKING * own, each * BYTES * TORCH.per_gaussian)
    told = f"this video becomes {f'{number} times ' if number > 1 else ''}{each:,} Gaussians"
    free = free_bytes(torch.device("cpu"))
    if free is not None and needed > free:
        fewer = "take fewer frames (--max-frames), or " if number > 1 else ""
        raise UserError(
            f"{told}, for which about {needed / 1e9:.2g} GB are needed besides the model's own memory, and "
            f"{free / 1e9:.2g} GB are free; {fewer}take a model of smaller pictures or a machine with more memory"
        )
    if each >= MANY:
        print(f"{told}: about {needed / 1e9:.2g} GB besides the model's own memory", file=sys.stderr)


def write_segments(folder: Path, segments: Sequence[Segment]) -> None:
    """Make a folder with a moving glTF file for each segment, and ``gaussians.json``, which says when each is shown."""
    folder.mkdir(parents=True)
    names = [f"{index:04d}.glb" for index in range(len(segments))]
    for name, segment in zip(names, segments, strict=True):
        write_gltf(folder / name, segment.gaussians)
    note = "each file is shown from its start (s) until the next one's"
    entries = [{"file": name, "start": segment.start} for name, segment in zip(names, segments, strict=True)]
    (folder / INDEX).write_text(json.dumps({"format": FORMAT, "note": note, "segments": entries}, indent=1) + "\n")


def read_segments(path: Path) -> tuple[Segment, ...]:
    """What `write_segments` wrote, or one segment of whatever else holds Gaussians (`read_gaussians`).

    UserError if the folder is of another kind or version, or a file is missing.
    """
    index = path / INDEX
    if not index.is_file():
        found = read_gaussians(path)
        return (Segment(gaussians=found, start=0.0 if found.offset_times is None else float(found.offset_times[0])),)
    try:
        content = json.loads(index.read_text())
        entries = [(str(entry["file"]), float(entry["start"])) for entry in content["segments"]]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{index} does not say which files there are ({error}); write the folder again") from error
    if content.get("format") != FORMAT or not entries:
        raise UserError(f"{index} is of format {content.get('format')}, this four_d reads {FORMAT}; write it again")
    return tuple(Segment(gaussians=read_gaussians(path / Path(file).name), start=start) for file, start in entries)
