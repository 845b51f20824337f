"""Decoding of video files: stream, frame times and frames (extra `video`)."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from four_d.errors import UserError
from four_d.progress import progress
from four_d.video import colour, foreign
from four_d.video.images import IMAGE_RATE
from four_d.video.remarks import Remarks, some

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

_COVERS = 0x400 | 0x800
"""FFmpeg's disposition flags of cover images and thumbnails."""
_CUT = 0.9
"""Fraction of its stated duration that a file without a frame count must contain, or else it counts as cut short."""
_LOOSE = 3
"""Number of missing frames below which such a file never counts as cut short."""
_CONVERT = "convert it to H.264 MP4 (ffmpeg -i IN -pix_fmt yuv420p OUT.mp4) or to images"


class UnlikeIndex(Exception):  # noqa: N818 - no error: `VideoFile.survey` mends it
    """Mismatch between the frames that decode and the file's index."""


@dataclass(kw_only=True)
class VideoFile:
    """Video file with frame times from its index, or exact ones after a full decode (`survey`)."""

    path: Path
    said: Remarks
    times: list[float] = field(default_factory=list[float])
    """Seconds of every frame since the first, in presentation order."""
    exact: bool = False
    """True if the times are those of the frames that decode."""
    _stamps: list[int | None] = field(default_factory=list[int | None])
    _corrupt: int = 0
    """Number of packets that the container marks as damaged."""

    @classmethod
    def open(cls, path: Path, said: Remarks) -> VideoFile:
        """Read the index. UserError if the file is no video."""
        found = cls(path=path, said=said)
        with _opened(path, found.said) as (container, stream):
            stamps, found._corrupt = _index(container, stream, found.said)
            found._take(sorted(stamps, key=lambda pts: pts or 0), stream, Remarks(path, silent=True))
        if None in stamps or len(set(stamps)) < len(stamps) or not stamps or found._corrupt:
            found.survey()
        return found

    def survey(self) -> None:
        """Decode all frames once for exact times; reports lost frames. UserError if nothing decodes."""
        if self.exact:
            return
        promised = set(self._stamps)
        with _opened(self.path, self.said) as (container, stream):
            decoder = _Decoder(container, stream)
            with progress(f"counting frames of {self.path.name}", len(self.times), "frame") as bar:
                stamps: list[int | None] = []
                for frame in decoder.frames():
                    stamps.append(frame.pts)
                    bar.advance()
            if not stamps:
                why = f"none of its frames does ({decoder.reason})" if decoder.broken else "it holds no frame"
                raise UserError(f"{self.path} does not decode as a video: {why}; copy or record it again")
            self._take(stamps, stream, self.said)
            if decoder.broken or self._corrupt:
                first = next((pts for pts in stamps if pts is not None), 0)
                lost = [pts - first for pts in promised - set(stamps) if pts is not None]
                self.said.say(_damage(sorted(float(pts * (stream.time_base or 1)) for pts in lost), self.times))
        self.exact = True

    def _take(self, stamps: list[int | None], stream: av.VideoStream, said: Remarks) -> None:
        self._stamps, self.times = stamps, _seconds(stamps, stream, said)

    def frames(self, chosen: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """Yield the frames of ascending indices, which may repeat.

        Raises:
            UnlikeIndex: the frames that decode differ from the index; call `survey` and choose again.
            UserError: frames of several sizes.

        """
        shape: tuple[int, ...] | None = None
        place = 0
        with _opened(self.path, self.said) as (container, stream):
            decoder = _Decoder(container, stream)
            for index, frame in enumerate(decoder.frames()):
                if index >= len(self._stamps) or frame.pts != self._stamps[index]:
                    raise self._unlike()
                while place < len(chosen) and chosen[place] == index:
                    shown = colour.picture(frame, stream, self.said)
                    shape = shape or shown.shape
                    if shown.shape != shape:
                        sizes = " to ".join(f"{size[1]}×{size[0]}" for size in (shape, shown.shape))
                        raise UserError(f"{self.path} changes its picture size on the way ({sizes}); cut it there")
                    yield shown
                    place += 1
                if place == len(chosen):
                    self.exact |= index == len(self._stamps) - 1
                    return
            raise self._unlike()

    def _unlike(self) -> Exception:
        if not self.exact:
            return UnlikeIndex()
        return UserError(f"{self.path} decodes differently each time; convert it to images, or copy it again")


class _Decoder:
    """Decoder of a stream that skips damaged packets."""

    def __init__(self, container: InputContainer, stream: av.VideoStream) -> None:
        self._container, self._stream = container, stream
        self.broken = 0
        """Number of packets that failed to decode."""
        self.reason = ""
        """Reason of the last failure; empty without any."""

    def frames(self) -> Iterator[av.VideoFrame]:
        """Yield the frames in presentation order."""
        from av.error import EOFError as EndOfFile
        from av.error import FFmpegError

        self._stream.thread_type = "AUTO"  # pyright: ignore[reportAttributeAccessIssue]
        for packet in _packets(self._container, self._stream):
            try:
                found = packet.decode()
            except EndOfFile:
                return
            except FFmpegError as error:
                self.broken += 1
                self.reason = error.strerror
                continue
            yield from found


def _packets(container: InputContainer, stream: av.VideoStream) -> Iterator[av.Packet[av.VideoStream]]:
    """Yield the packets of a stream up to the end or the first read error."""
    from av.error import FFmpegError

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except (StopIteration, FFmpegError):
            return
        yield packet


def _index(container: InputContainer, stream: av.VideoStream, said: Remarks) -> tuple[list[int | None], int]:
    """Time stamps of the packets whose frames are shown, and number of damaged ones; reports a truncated file."""
    count, corrupt, end = 0, 0, 0.0
    stamps: list[int | None] = []
    for packet in _packets(container, stream):
        if not packet.size:
            continue
        count += 1
        corrupt += packet.is_corrupt
        if packet.pts is not None and stream.time_base is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * stream.time_base))
        if not getattr(packet, "is_discard", False):
            stamps.append(packet.pts)
    if stream.frames > count:
        said.say(f"is cut short: only {count} of its {stream.frames} frames are there")
    length = container.duration
    if not stream.frames and length is not None and len(container.streams) == 1:
        seconds, start = length / 1e6, (container.start_time or 0) / 1e6
        # in a video of few frames the delay of the first or the duration of the last is a large fraction
        loose = _LOOSE * (end - start) / max(count, 1)
        if 0 < end - start < min(_CUT * seconds, seconds - loose):
            said.say(f"is cut short: only {end - start:.2f} s of its {seconds:.2f} s are there")
    return stamps, corrupt


def _seconds(stamps: list[int | None], stream: av.VideoStream, said: Remarks) -> list[float]:
    """Seconds since the first frame; evenly spaced if time stamps are missing or not ascending."""
    known = [pts for pts in stamps if pts is not None]
    back = any(after < before for before, after in itertools.pairwise(known))
    if stream.time_base is None or len(known) < len(stamps) or back:
        rate = stream.average_rate or Fraction(IMAGE_RATE)
        what = (
            "time stamps run backwards"
            if back
            else "has no time stamps of some frames"
            if known
            else "has no time stamps"
        )
        said.say(f"{what}: taken as {float(rate):g} frames a second")
        return [float(index / rate) for index in range(len(stamps))]
    same = len(known) - len(set(known))
    if same:
        said.say(f"{same} of {len(known)} frames have the time stamp of the one before")
    return [float((pts - known[0]) * stream.time_base) for pts in known]


def _damage(lost: list[float], times: list[float]) -> str:
    """Description of lost frames: times in the index that do not decode, else gaps between those that do."""
    smeared = "those after them may be smeared"
    if lost:
        where = f"at {lost[0]:.2f} s" if len(lost) == 1 else f"between {lost[0]:.2f} s and {lost[-1]:.2f} s"
        count = f"{len(lost)} of {len(times) + len(lost)} frames"
        return f"is damaged: {count} do not decode ({where}) and are left out; {smeared}"
    steps = np.diff(times)
    gaps = [i for i in range(len(steps)) if steps[i] > 1.5 * np.median(steps)]
    if gaps:
        where = some([f"{times[i]:.2f} s and {times[i + 1]:.2f} s" for i in gaps])
        return f"is damaged: frames are missing between {where}; {smeared}"
    return "is damaged: some of it does not decode; pictures may be smeared"


@contextmanager
def _opened(path: Path, said: Remarks) -> Generator[tuple[InputContainer, av.VideoStream]]:
    """Open a file and its video stream, turning errors into one UserError."""
    try:
        import av
        from av.error import FFmpegError
    except ImportError as error:
        raise UserError(f"reading {path} takes PyAV; install it with: pip install 'four_d[video]'") from error
    try:
        # with file: no name is taken for a pattern or another protocol, and no reference in the file is fetched
        with av.open(f"file:{path}", options={"protocol_whitelist": "file,crypto,data"}) as container:
            yield container, _stream(path, container, said)
    except (FFmpegError, IndexError) as error:
        raise UserError(f"{path} does not decode as a video: {_reason(path, error)}") from error


def _reason(path: Path, error: Exception) -> str:
    what = foreign.what_is(path)
    if what is not None:
        return f"it {what}"
    told = getattr(error, "strerror", None) or str(error)
    with path.open("rb") as stream:
        start = stream.read(12)
    if start[4:8] in (b"ftyp", b"mdat", b"wide", b"free", b"moov"):
        return f"its index is missing or damaged ({told}): the recording or download was cut off; copy it again"
    return f"{told}; if a player shows it, {_CONVERT}"


def _stream(path: Path, container: InputContainer, said: Remarks) -> av.VideoStream:
    """Video stream that players show, never a cover image."""
    best = container.streams.best("video")
    videos = [
        stream for stream in container.streams.video if not _cover(stream, best is None or stream.index == best.index)
    ]
    if not videos:
        held = "only a cover picture" if container.streams.video else "sound" if container.streams.audio else "no video"
        raise UserError(f"{path} does not decode as a video: it holds {held}, no moving pictures; give a video")
    largest = max(videos, key=lambda each: each.width * each.height)
    chosen = next((each for each in videos if best is not None and each.index == best.index), largest)
    if chosen.codec_context is None:  # pyright: ignore[reportUnnecessaryComparison] - if no decoder is built in
        raise UserError(f"{path} does not decode as a video: PyAV has no decoder for it; {_CONVERT}")
    if len(videos) > 1:
        said.say(
            f"holds {len(videos)} videos: taking number {videos.index(chosen) + 1}, {chosen.width}×{chosen.height}"
        )
    return chosen


def _cover(stream: av.VideoStream, best: bool) -> bool:
    """True for a cover image or thumbnails; in versions of PyAV without dispositions, for all but the best stream."""
    disposition = getattr(stream, "disposition", None)
    return not best if disposition is None else bool(disposition.value & _COVERS)
