"""Writing of clips into WebDataset shards, and random access to their frames by byte offset."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import tarfile
import warnings
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from webdataset.writer import TarWriter

from four_d.data.contract import (
    KEY,
    ClipInfo,
    KeypointArrays,
    RawClip,
    SurfaceArrays,
    TrackArrays,
    damage,
    modalities,
)
from four_d.data.crops import Crop, CropRule, principal_points
from four_d.data.encoding import (
    CLIP,
    Array,
    BadMemberError,
    decode_gzip,
    decode_image,
    decode_info,
    decode_npy,
    encode_clip,
    npy_header,
    unpack_cameras,
    unpack_intrinsics,
)
from four_d.data.manifest import (
    Manifest,
    SampleIndex,
    ShardInfo,
    Sidecar,
    SourceInfo,
    check_size,
    finalise,
    load_manifest,
    load_sidecar,
    merge_sources,
    refuse_foreign,
    shard_names,
    write_sidecar,
)
from four_d.data.remote import CacheConfig, Remote, RemoteSamples, locate
from four_d.errors import UserError
from four_d.outputs import hold, new_file, remove_left_behind

if TYPE_CHECKING:
    from typing import Self

LOGGER = logging.getLogger(__name__)

__all__ = [
    "CorruptSample",
    "Manifest",
    "SampleIndex",
    "ShardReader",
    "finalise",
    "load_manifest",
    "open_shards",
    "shard_done",
    "write_shard",
]

T = TypeVar("T")

OPEN_FILES = 64
"""Maximum number of shards that one process keeps open."""
GROUP = 8
"""Images that are decoded before they are resized: taking turns at each costs 1 ms per 8 images, in cold caches."""


class CorruptSample(UserError):  # noqa: N818, a suffix Error would hide that it is one sample's
    """Error for a sample whose bytes violate the layout or the sidecar."""

    def __init__(self, shard: str, key: str, member: str, reason: str) -> None:
        super().__init__(f"{shard}: sample {key}, member {member}: {reason}; make or fetch the shard again")
        self.shard, self.key, self.member, self.reason = shard, key, member, reason

    def __reduce__(self) -> tuple[type[CorruptSample], tuple[str, str, str, str]]:
        """Support pickling, from a loader's worker to its parent."""
        return type(self), (self.shard, self.key, self.member, self.reason)


def shard_done(folder: Path, index: int) -> bool:
    """True if a shard is complete: its sidecar exists."""
    return (folder / shard_names(index)[1]).is_file()


def write_shard(folder: Path, index: int, clips: Iterable[RawClip], *, lossless: bool = False) -> Path:
    """Write one shard and then its sidecar, whose path is returned. Equal clips give equal bytes.

    A shard with a sidecar stays as it is, which is logged on stderr; its clips are not iterated. ``lossless`` stores
    images as PNG.

    Raises:
        UserError: a full disk, a folder that is not writable, or a tar or manifest in it that four_d did not write.
        ValueError: a clip that violates the layout.

    """
    name, sidecar_name = shard_names(index)
    if shard_done(folder, index):
        message = f"{folder / name} already exists and is kept; to write it again, delete it and {sidecar_name}"
        LOGGER.warning(message)
        return folder / sidecar_name
    refuse_foreign(folder)
    _refuse_foreign_tar(folder / name)
    remove_left_behind(folder.glob(f".{Path(name).stem}.*.partial.tar"))
    samples: list[SampleIndex] = []
    sources: dict[str, SourceInfo] = {}
    with new_file(folder / name) as partial, partial.open("wb") as file:
        hold(file.fileno())
        sink = _Sink(file)
        with TarWriter(cast("BinaryIO", sink), encoder=False, mtime=0, compress=False) as writer:
            for clip in clips:
                samples.append(_write_clip(writer, name, clip, lossless, {sample.key for sample in samples}))
                sources = merge_sources(folder, [sources, _source_of(clip.info)])
        if not samples:
            raise ValueError(f"{name}: a shard needs at least one clip")
    info = ShardInfo(
        shard=name, sidecar=sidecar_name, clips=len(samples), bytes=sink.size, sha256=sink.digest.hexdigest()
    )
    return write_sidecar(folder, Sidecar(info=info, sources=sources, samples=samples))


def _refuse_foreign_tar(path: Path) -> None:
    """Raise UserError for a tar of other data. One of ours may lack its sidecar, if writing was interrupted."""
    if not path.is_file():
        return
    try:
        with tarfile.open(path) as tar:
            if any(member.name.endswith(f".{CLIP}") for member in tar):
                return
    except tarfile.TarError:
        pass
    raise UserError(f"{path} exists and is not a shard that four_d wrote; choose another folder")


class _Sink:
    """File that hashes and counts the bytes written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


def _write_clip(writer: TarWriter, shard: str, clip: RawClip, lossless: bool, used_keys: set[str]) -> SampleIndex:
    if clip.key in used_keys:
        raise ValueError(f"{shard}: two clips have the key {clip.key}")
    data = encode_clip(clip, lossless=lossless)
    members: dict[str, tuple[int, int, int]] = {}
    position = writer.tarstream.offset
    for extension in sorted(data):  # the order in which TarWriter writes
        size = len(data[extension])
        members[extension] = (position + tarfile.BLOCKSIZE, size, zlib.crc32(data[extension]))
        position += tarfile.BLOCKSIZE + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    writer.write({"__key__": clip.key, **data})
    if writer.tarstream.offset != position:
        raise AssertionError(f"{shard}: the tar's size does not match the recorded offsets")
    return SampleIndex(
        key=clip.key,
        source=clip.info.source,
        shard=shard,
        width=clip.info.width,
        height=clip.info.height,
        times=clip.info.times,
        camera_ids=clip.info.camera_ids,
        modalities=modalities(clip),
        members=members,
    )


def _source_of(info: ClipInfo) -> dict[str, SourceInfo]:
    frames, home = len(info.times), info.home or ""
    return {info.source: SourceInfo(licence=info.licence, metric=info.metric, clips=1, frames=frames, home=home)}


class ShardReader:
    """Random access to the clips of a data set, and to single frames of them.

    Files open on first use and once per process, so that a reader may be sent to worker processes; within a process it
    is for one thread. UserError at once if a shard or sidecar of a folder is missing or has the wrong size; files of a
    `Remote` are fetched when they are needed, and of those sidecars the last ``kept`` stay in memory (None: all).
    """

    def __init__(self, data: Manifest | Path | Remote, *, kept: int | None = None) -> None:
        self._remote = data if isinstance(data, Remote) else None
        if isinstance(data, Remote):
            self.manifest = data.manifest()
        else:
            self.manifest = data if isinstance(data, Manifest) else load_manifest(data)
        self._infos = {info.shard: info for info in self.manifest.shards}
        self._files: OrderedDict[str, int] = OrderedDict()
        if isinstance(data, Remote):
            self._samples = RemoteSamples(data, self.manifest.shards, kept)
            self.shards = self._samples.shards
        else:
            sidecars = [self._sidecar(info) for info in self.manifest.shards]
            self._samples = [sample for sidecar in sidecars for sample in sidecar.samples]
            self.shards = [sidecar.info for sidecar in sidecars]

    @property
    def place(self) -> str:
        """Folder, or address without its signature."""
        return str(self.manifest.folder if self._remote is None else self._remote.address)

    @property
    def remote(self) -> bool:
        """True if the files are behind an address."""
        return self._remote is not None

    @property
    def samples(self) -> Sequence[SampleIndex]:
        """All clips, in the order of shards and of clips in them."""
        return self._samples

    def _sidecar(self, info: ShardInfo) -> Sidecar:
        check_size(self.manifest.folder, info)
        sidecar = load_sidecar(self.manifest.folder / info.sidecar)
        if sidecar.info != info:
            raise UserError(
                f"{self.manifest.folder / info.sidecar}: differs from manifest.json; "
                "write the manifest again (four-d data make finalises the folder)"
            )
        return sidecar

    def expect(self, now: Sequence[int], later: Sequence[int]) -> None:
        """Have the shards of these indices at hand: those needed ``now``, and those needed ``later``."""
        if self._remote is not None:
            self._remote.expect([self.shards[index] for index in now], [self.shards[index] for index in later])

    def __len__(self) -> int:
        return len(self._samples)

    def __getstate__(self) -> dict[str, object]:
        """State without the open files."""
        return {**self.__dict__, "_files": OrderedDict[str, int]()}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_files"):  # __init__ may have raised before it was set
            self.close()

    def close(self) -> None:
        """Close the files; reading opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def index(self, key: str) -> int:
        """Index of the clip with a key. UserError if there is none."""
        for number, sample in enumerate(self.samples):
            if sample.key == key:
                return number
        raise UserError(f"{self.place}: no clip {key!r}; `four-d data stats` and the sidecars list the keys")

    def read(
        self,
        index: int,
        frames: Sequence[int] | None = None,
        *,
        verify: bool = True,
        rule: CropRule | None = None,
    ) -> RawClip:
        """Read a clip, or only the given frames of it, in the order given; its `ClipInfo` then describes those frames.

        With ``frames`` the surface is read at their times and the neighbouring times only; with ``rule`` images are
        cropped as they are decoded, and all else is left to `sampling.to_clip`. CorruptSample if its bytes are damaged
        or, unless ``verify`` is False, violate the layout; IndexError if a frame does not exist.
        """
        sample = self.samples[index]
        if frames is not None and not all(0 <= frame < sample.frames for frame in frames):
            raise IndexError(f"clip {sample.key} has frames 0 to {sample.frames - 1}, not {list(frames)}")
        # Pillow's of strange images, torch's of arrays that are read-only; not at each image, where it costs 4 % of all
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clip = _Reading(self, sample, frames).clip(rule)
        if verify and (wrong := damage(clip)) is not None:
            raise CorruptSample(sample.shard, sample.key, CLIP, wrong)
        return clip

    def with_tar(self, info: ShardInfo, use: Callable[[Path], T]) -> T:
        """Return ``use`` of a shard's file, or of its local copy."""
        return use(self.manifest.folder / info.shard) if self._remote is None else self._remote.with_tar(info, use)

    def member(self, sample: SampleIndex, name: str) -> bytes:
        """Read a member's bytes, verified. CorruptSample if absent, truncated or changed."""
        if name not in sample.members:
            raise CorruptSample(sample.shard, sample.key, name, "is missing")
        offset, size, crc = sample.members[name]
        data = self.piece(sample, name, offset, size)
        if zlib.crc32(data) != crc:
            raise CorruptSample(sample.shard, sample.key, name, "does not match its checksum")
        return data

    def piece(self, sample: SampleIndex, name: str, offset: int, size: int) -> bytes:
        """Read ``size`` bytes of a shard, unverified."""
        if offset < 0 or size < 0 or offset + size > self._infos[sample.shard].bytes:
            raise CorruptSample(sample.shard, sample.key, name, "lies outside the shard by its sidecar")
        try:
            data = os.pread(self._file(sample.shard), size, offset)
        except OSError as error:
            raise CorruptSample(sample.shard, sample.key, name, f"cannot be read ({error.strerror})") from error
        if len(data) != size:
            raise CorruptSample(sample.shard, sample.key, name, "is truncated")
        return data

    def _file(self, shard: str) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= OPEN_FILES:
            os.close(self._files.popitem(last=False)[1])
        if self._remote is None:
            self._files[shard] = os.open(self.manifest.folder / shard, os.O_RDONLY | os.O_CLOEXEC)
        else:
            for gone in [name for name, number in self._files.items() if not os.fstat(number).st_nlink]:
                os.close(self._files.pop(gone))  # the cache dropped it: its room is free once nobody reads it
            self._files[shard] = self._remote.open(self._infos[shard])
        return self._files[shard]


def open_shards(place: str | Path, cache: CacheConfig | None = None, kept: int | None = None) -> ShardReader:
    """Open the shards of a folder or behind an address, whose files are kept in ``cache`` (None: the default one).

    UserError if a shard of a folder is missing or of the wrong size, or an address does not answer; ``kept`` as in
    `ShardReader`.
    """
    found = locate(place)
    return ShardReader(found if isinstance(found, Path) else Remote(found, cache or CacheConfig()), kept=kept)


class _Reading:
    """State of one call of `ShardReader.read`."""

    def __init__(self, reader: ShardReader, sample: SampleIndex, frames: Sequence[int] | None) -> None:
        self._reader, self._sample = reader, sample
        if not KEY.fullmatch(sample.key):  # which names files in `data show`
            raise CorruptSample(sample.shard, sample.key, CLIP, "its key is not 1 to 60 letters, digits, '-' and '_'")
        info = self._decode("clip.json", decode_info)
        if (info.times, info.camera_ids) != (sample.times, sample.camera_ids):
            raise CorruptSample(sample.shard, sample.key, "clip.json", "its frames differ from the sidecar's")
        self._frames = range(sample.frames) if frames is None else frames
        self._times = _needed_times(info, self._frames) if frames is not None else None
        self._info = _restrict(info, self._frames, self._times)
        self._size = (info.height, info.width)

    def clip(self, rule: CropRule | None) -> RawClip:
        sample = self._sample
        poses = intrinsics = None
        if "cameras.npy" in sample.members:
            packed = self._array("cameras.npy", "<f8", (sample.frames, 5, 4))
            poses, intrinsics = unpack_cameras(packed[list(self._frames)])
        elif "intrinsics.npy" in sample.members:
            rows = self._array("intrinsics.npy", "<f8", (sample.frames, 4))
            intrinsics = unpack_intrinsics(rows[list(self._frames)])
        crop = rule and rule.at(principal_points(intrinsics, len(self._frames), self._size), self._size)
        unit = np.float32(self._info.depth_unit or 0)
        return RawClip(
            key=sample.key,
            info=self._info,
            images=self._images() if crop is None else self._cropped(crop),
            world_from_camera=poses,
            intrinsics=intrinsics,
            depth=self._maps("depth.png", "I;16", lambda counts: np.multiply(counts, unit, dtype=np.float32)),
            dynamic=self._maps("dynamic.png", "L", lambda mask: np.greater(mask, 127)),
            surface=self._surface() if "triangles.npy.gz" in sample.members else None,
            tracks=self._tracks() if "tracks.npy" in sample.members else None,
            keypoints=self._keypoints() if "keypoints.npy" in sample.members else None,
            crop=crop,
        )

    def _images(self) -> NDArray[np.uint8]:
        images = np.empty((0, 0, 0, 3), np.uint8)
        for row, frame in enumerate(self._frames):
            image = self._image(frame, 1)
            if row == 0:  # no earlier: a size that only clip.json says must not take memory
                images = np.empty((len(self._frames), *self._size, 3), np.uint8)
            images[row] = image
        return images

    def _cropped(self, crop: Crop) -> NDArray[np.uint8]:
        images = np.empty((len(self._frames), 3, *crop.size), np.uint8)  # as tensors have them
        for first in range(0, len(self._frames), GROUP):
            decoded = [self._image(frame, crop.reduction) for frame in self._frames[first : first + GROUP]]
            for row, image in enumerate(decoded, first):
                images[row] = crop.pixels(row, image, crop.reduction if image.shape[:2] != self._size else 1)
        return images.transpose(0, 2, 3, 1)

    def _image(self, frame: int, reduction: int) -> NDArray[np.uint8]:
        name = f"f{frame:03d}.image."
        name += "png" if name + "png" in self._sample.members else "jpg"
        image = self._decode(name, lambda data: decode_image(data, "RGB", *self._size, reduction=reduction))
        return cast(NDArray[np.uint8], image)

    def _maps(self, extension: str, mode: str, convert: Callable[[Array], Array]) -> NDArray[Any] | None:
        if f"f000.{extension}" not in self._sample.members:
            return None
        names = [f"f{frame:03d}.{extension}" for frame in self._frames]
        decoded = (self._decode(name, lambda data: decode_image(data, mode, *self._size)) for name in names)
        return np.stack([convert(each) for each in decoded])

    def _surface(self) -> SurfaceArrays:
        h, w = self._size  # of images that were read
        faces = np.empty((len(self._frames), h, w), np.int32)
        barycentric = np.empty((len(self._frames), 2, h, w), np.uint16)
        for row, frame in enumerate(self._frames):
            faces[row] = self._array(f"f{frame:03d}.faces.npy.gz", "<i4", (h, w))
            barycentric[row] = self._array(f"f{frame:03d}.barycentric.npy.gz", "<u2", (2, h, w))
        moving = self._array("moving.npy.gz", "<i4", (None,))
        return SurfaceArrays(
            faces=faces,
            barycentric=barycentric,
            triangles=self._array("triangles.npy.gz", "<i4", (None, 3)),
            instances=self._array("instances.npy.gz", "<i4", (None,)),
            vertices=self._array("vertices.npy.gz", "<f4", (None, 3)),
            moving=moving,
            moving_vertices=self._moving_vertices(len(moving)),
        )

    def _moving_vertices(self, count: int) -> NDArray[np.float32]:
        name = "moving_vertices.npy"
        if self._times is None:
            return self._array(name, "<f4", (None, count, 3))
        offset, size, _ = self._sample.members.get(name, (0, 0, 0))
        if not size:
            raise CorruptSample(self._sample.shard, self._sample.key, name, "is missing")
        head = self._reader.piece(self._sample, name, offset, min(size, 256))
        dtype, shape, start = self._checked(name, head, npy_header)
        if dtype != np.dtype("<f4") or len(shape) != 3 or shape[1:] != (count, 3) or shape[0] <= max(self._times):
            reason = f"is {dtype} {shape}, not <f4 (t, {count}, 3)"
            raise CorruptSample(self._sample.shard, self._sample.key, name, reason)
        row = count * 12
        if start + shape[0] * row != size:
            raise CorruptSample(self._sample.shard, self._sample.key, name, f"has {size} bytes, which are not {shape}")
        first, last = min(self._times), max(self._times)
        data = self._reader.piece(self._sample, name, offset + start + first * row, (last + 1 - first) * row)
        rows = np.frombuffer(data, "<f4").reshape(-1, count, 3)
        return rows[[time - first for time in self._times]]

    def _tracks(self) -> TrackArrays:
        shape = (None, len(self._info.track_times or []))
        points = self._array("tracks.npy", "<f4", (*shape, 3))
        shape = (len(points), shape[1])
        return TrackArrays(
            points=points,
            visible=self._array("tracks_visible.npy", "|b1", shape),
            valid=self._array("tracks_valid.npy", "|b1", shape),
        )

    def _keypoints(self) -> KeypointArrays:
        said, frames = self._info.keypoints, list(self._frames)
        shape = (self._sample.frames, 0 if said is None else len(said.names))
        return KeypointArrays(
            points=self._array("keypoints.npy", "<f4", (*shape, 3))[frames],
            valid=self._array("keypoints_valid.npy", "|b1", shape)[frames],
            pixels=self._array("keypoints_pixels.npy", "<f4", (*shape, 2))[frames],
            pixels_valid=self._array("keypoints_pixels_valid.npy", "|b1", shape)[frames],
            visible=self._array("keypoints_visible.npy", "|b1", shape)[frames],
        )

    def _array(self, name: str, dtype: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
        def decode(data: bytes) -> Array:
            return decode_npy(decode_gzip(data) if name.endswith(".gz") else data, dtype, shape)

        return self._decode(name, decode)

    def _decode(self, name: str, decode: Callable[[bytes], T]) -> T:
        return self._checked(name, self._reader.member(self._sample, name), decode)

    def _checked(self, name: str, data: bytes, decode: Callable[[bytes], T]) -> T:
        try:
            return decode(data)
        except BadMemberError as error:
            raise CorruptSample(self._sample.shard, self._sample.key, name, str(error)) from error


def _needed_times(info: ClipInfo, frames: Sequence[int]) -> list[int] | None:
    """Surface times at the frames' times and next to them, which the dynamics mask needs."""
    if not info.surface_times:
        return None
    axis = np.asarray(info.surface_times)
    nearest = {int(np.abs(axis - info.times[frame]).argmin()) for frame in frames}
    return sorted({time for at in nearest for time in (at - 1, at, at + 1) if 0 <= time < len(axis)})


def _restrict(info: ClipInfo, frames: Sequence[int], times: Sequence[int] | None) -> ClipInfo:
    surface_times = info.surface_times
    if surface_times is not None and times is not None:
        surface_times = [surface_times[time] for time in times]
    return dataclasses.replace(
        info,
        times=[info.times[frame] for frame in frames],
        camera_ids=[info.camera_ids[frame] for frame in frames],
        surface_times=surface_times,
    )
