"""Data sets behind an address (http, https, s3): their files fetched whole, with retries, and kept in a bounded cache.

The cache is a folder that all processes of a machine share. Shards are named there by their SHA-256, which the manifest
states and each download must have. Who downloads a file holds a lock on it, so that the others wait and do not fetch it
too; it appears under its name when it is whole and flushed. What was not used for longest gives way.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import os
import queue
import random
import re
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any, TypeVar, cast, overload
from urllib.parse import unquote, urlsplit

import fsspec
import numpy as np
from fsspec import AbstractFileSystem
from fsspec.callbacks import Callback

from four_d.data.manifest import (
    MANIFEST,
    Manifest,
    SampleIndex,
    ShardInfo,
    Sidecar,
    load_manifest,
    parse_manifest,
    parse_sidecar,
)
from four_d.errors import UserError, first_line
from four_d.progress import progress

LOGGER = logging.getLogger(__name__)

T = TypeVar("T")

SCHEMES = ("http", "https", "s3")
ATTEMPTS = 8
"""Tries of one file, after pauses that double from `PAUSE_S`."""
PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0
STALL_S = 60.0
"""Seconds without a byte after which a try has failed."""
THREADS = 2
"""Files that one process fetches ahead at a time."""
INDEX_THREADS = 8
"""Sidecars fetched at a time where all are needed."""
LARGEST_INDEX = 256 << 20
"""Bytes of a manifest or sidecar beyond which it is refused."""
_LATER = frozenset({408, 425, 429})
"""HTTP statuses of the 400s that another try may not have."""
_HOPELESS = frozenset({"NoCredentialsError", "TooManyRedirects"})
"""Names of errors, of packages that may not be there, after which no other try helps."""
_WHOLE = re.compile(r"[0-9a-f]{64}\.(?:tar|json)")
_PARTIAL = re.compile(r"\.[0-9a-f]{64}\.(?:tar|json)\.(\d+)\.partial")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Local copies of shards from an address; those not used for longest give way."""

    folder: str | None = None
    """Folder on a local disk, for all runs and processes of a machine; null: ``four_d`` in ``$XDG_CACHE_HOME``, or in
    ``~/.cache``."""
    size_gb: float = 50.0
    """Maximum size in GB (10⁹ bytes), above 0; room for two windows of ``data.shuffle_shards`` is needed."""

    def __post_init__(self) -> None:
        if self.size_gb <= 0:
            raise UserError(f"size_gb is {self.size_gb}; choose a positive number")

    @property
    def path(self) -> Path:
        """Folder, the default one resolved."""
        if self.folder is not None:
            return Path(self.folder).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "four_d"


@dataclass(frozen=True)
class Address:
    """Address of a data set: a folder on a server or in a bucket."""

    scheme: str
    base: str
    """Without the query, and without a slash at the end."""
    query: str = ""
    """Kept behind each file's name, as signatures are; never shown."""

    def __str__(self) -> str:
        head, separator, rest = self.base.partition("://")
        host, slash, path = rest.partition("/")
        return head + separator + host.rpartition("@")[2] + slash + path  # no user, no password

    def of(self, name: str) -> str:
        """Address of a file in the folder."""
        return f"{self.base}/{name}{self.query}"


class FetchError(UserError):
    """Error for a file that could not be fetched, after all tries."""


def locate(place: str | Path) -> Path | Address:
    """Tell a folder from an address. UserError for an address that is not read, ``pipe:`` commands among them."""
    text = str(place)
    if text.startswith("pipe:"):
        raise UserError(
            f"{text}: a pipe: address runs a command, and is never read; give a folder, http(s):// or s3://"
        )
    scheme, separator, _ = text.partition("://")
    if not separator:
        return Path(place)
    parts = urlsplit(text)
    if scheme == "file" and parts.netloc in ("", "localhost"):
        return Path(unquote(parts.path))
    if scheme not in SCHEMES or not parts.netloc:
        raise UserError(f"{text}: not an address that is read; give a folder, file:///…, http(s)://… or s3://…")
    base = text.partition("#")[0].partition("?")[0].rstrip("/").removesuffix(f"/{MANIFEST}")
    return Address(scheme, base, f"?{parts.query}" if parts.query else "")


class Cache:
    """Bounded folder of whole files, safe among processes. Errors of writing are UserErrors."""

    def __init__(self, config: CacheConfig) -> None:
        self.folder, self._limit = config.path, round(config.size_gb * 1e9)

    def find(self, name: str) -> Path | None:
        """Path of a file that is there, now the last used; None without it."""
        path = self.folder / name
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    @contextmanager
    def claim(self, name: str, size: int, *, wait: bool = True) -> Generator[Path | None]:
        """Yield the path to write a file of ``size`` bytes to, which takes its name when the block ends without error.

        Size 0 is unknown. None if it is there already or, unless ``wait``, another is at it or no room is left.
        """
        if size > self._limit:
            raise UserError(
                f"a file of {size / 1e9:.3g} GB does not fit in the cache {self.folder} of {self._limit / 1e9:.3g} GB; "
                "raise data.cache.size_gb"
            )
        with self._told():
            self.folder.mkdir(parents=True, exist_ok=True)
        partial = self.folder / f".{name}.{size}.partial"
        held = self._hold(partial, wait)
        if held is None:
            yield None
            return
        try:
            if self.find(name) is not None or not (self._make_room(partial) or wait):
                yield None
                return
            with self._told():
                yield partial
                with partial.open("rb") as file:
                    os.fsync(file.fileno())
                if not size:
                    self._make_room(partial)
                partial.replace(self.folder / name)
        finally:
            with suppress(OSError):
                partial.unlink()
            os.close(held)

    def _hold(self, partial: Path, wait: bool) -> int | None:
        """Descriptor of the file with its lock, None if another process has it."""
        while True:
            with self._told():
                number = os.open(partial, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
            try:
                _lock(number, wait=wait)
                if os.path.samestat(os.fstat(number), partial.stat()):
                    return number
            except BlockingIOError:
                os.close(number)
                return None
            except FileNotFoundError:
                pass
            os.close(number)  # meanwhile renamed to its name, or given up

    def _make_room(self, own: Path) -> bool:
        """Remove what was not used for longest until all fits; False if it does not, with what others download."""
        with self._told():
            lock = os.open(self.folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o644)
        try:
            _lock(lock, wait=True)
            whole, total = list[tuple[int, int, Path]](), 0
            for path in self.folder.iterdir():
                with suppress(FileNotFoundError):
                    if match := _PARTIAL.fullmatch(path.name):
                        size = max(int(match[1]), path.stat().st_size)
                        total += 0 if path != own and _left_behind(path) else size
                    elif _WHOLE.fullmatch(path.name):  # never another file, whatever folder this is
                        status = path.stat()
                        whole.append((status.st_mtime_ns, status.st_size, path))
                        total += status.st_size
            for _, size, path in sorted(whole):
                if total <= self._limit:
                    break
                path.unlink(missing_ok=True)
                total -= size
            return total <= self._limit
        finally:
            os.close(lock)

    @contextmanager
    def _told(self) -> Generator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _FULL and not isinstance(
                error, PermissionError | FileExistsError | NotADirectoryError
            ):
                raise
            reason = error.strerror or type(error).__name__
            raise UserError(f"cannot write the cache {self.folder}: {reason}; set data.cache.folder") from error


def _lock(number: int, *, wait: bool) -> None:
    """Lock an open file until it is closed; without ``wait``, BlockingIOError if another process has it.

    UserError on a disk without locks, such as some network disks.
    """
    import fcntl  # Windows has none, and reads local data all the same

    try:
        fcntl.flock(number, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        told = error.strerror or type(error).__name__
        raise UserError(
            f"the cache's disk has no file locks ({told}); set data.cache.folder to a local disk"
        ) from error


def _left_behind(partial: Path) -> bool:
    """True if nobody downloads it any more, and it was removed."""
    number = os.open(partial, os.O_RDWR | os.O_CLOEXEC)
    try:
        _lock(number, wait=False)
        partial.unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(number)


class Remote:
    """Files of one data set behind an address. May be sent to worker processes, which connect by themselves."""

    def __init__(self, address: Address, cache: CacheConfig) -> None:
        self.address, self._config = address, cache
        self._cache = Cache(cache)
        self._ahead: _Ahead | None = None
        self._system: AbstractFileSystem | None = None
        self._starting = threading.Lock()

    def __getstate__(self) -> tuple[Address, CacheConfig]:
        """State without connections and threads."""
        return self.address, self._config

    def __setstate__(self, state: tuple[Address, CacheConfig]) -> None:
        self.__init__(*state)

    def manifest(self, attempts: int = ATTEMPTS) -> Manifest:
        """Fetch the manifest, anew every time. FetchError if that fails, UserError for a broken one."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / MANIFEST
            self._persistently(MANIFEST, lambda: self._download(MANIFEST, path, LARGEST_INDEX), attempts)
            manifest = parse_manifest(path.read_bytes(), f"{self.address}/{MANIFEST}", Path(str(self.address)))
        for info in manifest.shards:
            if len(info.sha256) != 64 or not set(info.sha256) <= set("0123456789abcdef"):
                raise UserError(f"{self.address}/{MANIFEST}: {info.shard} has no SHA-256; write the manifest again")
        return manifest

    def sidecar(self, info: ShardInfo) -> Sidecar:
        """Fetch a shard's sidecar, or take it from the cache. UserError if it is not that of the shard."""
        # of this address alone, since nothing says what its bytes have to be
        name = hashlib.sha256(f"{self.address} {info.sha256}".encode()).hexdigest() + ".json"

        def read(path: Path) -> Sidecar:
            return parse_sidecar(path.read_bytes(), f"{self.address}/{info.sidecar}", info.sidecar)

        def check(path: Path) -> None:
            try:
                found = read(path)
            except UserError as error:
                raise _BadCopyError(str(error)) from error
            if found.info != info:
                raise _BadCopyError("it differs from manifest.json")

        return self._use(info.sidecar, name, 0, LARGEST_INDEX, check, read)

    def open(self, info: ShardInfo) -> int:
        """Descriptor of a shard's local copy, fetched if it is not there. FetchError if that fails."""
        return self.with_tar(info, lambda path: os.open(path, os.O_RDONLY | os.O_CLOEXEC))

    def with_tar(self, info: ShardInfo, use: Callable[[Path], T]) -> T:
        """Return ``use`` of a shard's local copy, fetched if it is not there. FetchError if that fails."""
        return self._use(*self._shard(info), use)

    def sidecars(self, infos: Sequence[ShardInfo]) -> list[Sidecar]:
        """Fetch many sidecars, some at a time."""
        with ThreadPool(INDEX_THREADS) as pool, progress(f"index of {self.address}", len(infos), "shard") as bar:
            found = list[Sidecar]()
            for sidecar in pool.imap(self.sidecar, infos):
                found.append(sidecar)
                bar.advance()
            return found

    def expect(self, now: Iterable[ShardInfo], later: Iterable[ShardInfo]) -> None:
        """Keep what is needed ``now``, and fetch in the background what is missing of it, then of ``later``."""
        with self._starting:
            if self._ahead is None:
                self._ahead = _Ahead(self._fetch_ahead)
        for urgency, infos in enumerate((now, later)):
            for info in infos:
                if self._cache.find(f"{info.sha256}.tar") is None:
                    self._ahead.add(urgency, info)

    def _fetch_ahead(self, info: ShardInfo) -> None:
        self.sidecar(info)
        self._fetch(*self._shard(info), wait=False)

    def _shard(self, info: ShardInfo) -> tuple[str, str, int, int, Callable[[Path], None]]:
        def check(path: Path) -> None:
            size = path.stat().st_size
            if size != info.bytes:
                raise _BadCopyError(f"{size} bytes came instead of {info.bytes}")
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != info.sha256:
                raise _BadCopyError(f"its SHA-256 is {digest[:12]}…, not {info.sha256[:12]}… as manifest.json says")

        return info.shard, f"{info.sha256}.tar", info.bytes, info.bytes, check

    def _use(
        self, file: str, name: str, size: int, most: int, check: Callable[[Path], None], use: Callable[[Path], T]
    ) -> T:
        """Result of ``use`` on the local copy of a file."""
        while True:
            path = self._cache.find(name)
            if path is None:
                self._fetch(file, name, size, most, check)
                path = self._cache.folder / name
            with suppress(FileNotFoundError):  # another process needed the room just now
                return use(path)

    def _fetch(
        self, file: str, name: str, size: int, most: int, check: Callable[[Path], None], *, wait: bool = True
    ) -> None:
        with self._cache.claim(name, size, wait=wait) as partial:
            if partial is not None:

                def attempt() -> None:
                    self._download(file, partial, most)
                    check(partial)

                self._persistently(file, attempt, ATTEMPTS)

    def _persistently(self, file: str, attempt: Callable[[], None], attempts: int) -> None:
        """Call ``attempt`` until it succeeds. FetchError after the last, or where another would not help."""
        for number in itertools.count(1):
            try:
                attempt()
            except UserError:
                raise
            except Exception as error:  # of fsspec, aiohttp, botocore or the network: no list of them is complete
                if isinstance(error, OSError) and error.errno in _FULL:
                    raise
                final = _is_final(error)
                if final or number == attempts:
                    raise FetchError(f"{self.address}/{file}: {_reason(error)}; {_remedy(error, number)}") from error
                pause = min(PAUSE_S * 2 ** (number - 1), LONGEST_PAUSE_S) * random.uniform(0.5, 1)
                LOGGER.warning(f"{self.address}/{file}: {_reason(error)}; try {number + 1} of {attempts} follows")
                time.sleep(pause)
            else:
                return

    def _download(self, file: str, to: Path, most: int) -> None:
        with self._starting:
            if self._system is None:
                self._system = _connect(self.address)
        self._system.get_file(self.address.of(file), str(to), callback=cast("Any", _limit(most)))


def read_manifest(place: str | Path, attempts: int = ATTEMPTS) -> Manifest:
    """Read the manifest of a folder or behind an address. UserError if it cannot be read."""
    found = locate(place)
    return load_manifest(found) if isinstance(found, Path) else Remote(found, CacheConfig()).manifest(attempts)


class RemoteSamples(Sequence[SampleIndex]):
    """All clips of a remote data set, by sidecars fetched on first use; the last ``kept`` stay in memory (None: all).

    Where all are wanted, or the manifest does not say what the shards hold, all are fetched at once.
    """

    def __init__(self, remote: Remote, shards: Sequence[ShardInfo], kept: int | None) -> None:
        self._remote, self._kept = remote, kept
        self.shards = list(shards)
        """Shards with their contents."""
        self._loaded: OrderedDict[int, list[SampleIndex]] = OrderedDict()
        if kept is None or not all(info.contents for info in shards):
            found = remote.sidecars(shards)
            self.shards = [sidecar.info for sidecar in found]
            if kept is None:
                self._loaded = OrderedDict((at, sidecar.samples) for at, sidecar in enumerate(found))
        self._ends = np.cumsum([info.clips for info in self.shards], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @overload
    def __getitem__(self, index: int) -> SampleIndex: ...
    @overload
    def __getitem__(self, index: slice) -> list[SampleIndex]: ...
    def __getitem__(self, index: int | slice) -> SampleIndex | list[SampleIndex]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        shard = int(np.searchsorted(self._ends, number, side="right"))
        if shard in self._loaded:
            self._loaded.move_to_end(shard)
        else:
            self._loaded[shard] = self._remote.sidecar(self.shards[shard]).samples
            if self._kept is not None and len(self._loaded) > max(self._kept, 1):
                self._loaded.popitem(last=False)
        return self._loaded[shard][number - int(self._ends[shard]) + self.shards[shard].clips]


class _BadCopyError(Exception):
    """Error for bytes that came and are not the file's."""


class _Ahead:
    """Threads that fetch what is expected, the urgent first. Errors are left to whoever needs the file."""

    def __init__(self, fetch: Callable[[ShardInfo], None]) -> None:
        self._fetch, self._numbers = fetch, itertools.count()
        self._queue: queue.PriorityQueue[tuple[int, int, ShardInfo]] = queue.PriorityQueue()
        self._queued = set[str]()
        for _ in range(THREADS):
            threading.Thread(target=self._work, daemon=True).start()

    def add(self, urgency: int, info: ShardInfo) -> None:
        if info.sha256 not in self._queued:
            self._queued.add(info.sha256)
            self._queue.put((urgency, next(self._numbers), info))

    def _work(self) -> None:
        while True:
            _, _, info = self._queue.get()
            try:
                self._fetch(info)
            except Exception as error:
                LOGGER.debug(f"{info.shard} was not fetched ahead: {error}")
            finally:
                self._queued.discard(info.sha256)


def _connect(address: Address) -> AbstractFileSystem:
    """File system of an address. UserError without the package for it."""
    if address.scheme == "s3":
        limits = {"connect_timeout": STALL_S, "read_timeout": STALL_S, "retries": {"max_attempts": 1}}
        options: dict[str, Any] = {"config_kwargs": limits}
    else:
        import aiohttp  # takes long, and most runs need none

        limit = aiohttp.ClientTimeout(total=None, sock_connect=STALL_S, sock_read=STALL_S)
        options = {"client_kwargs": {"timeout": limit, "trust_env": True}}
    try:
        return fsspec.filesystem(address.scheme, skip_instance_cache=True, **options)
    except ImportError as error:
        raise UserError(f"{address}: s3 needs a package that is not installed; pip install 'four_d[remote]'") from error


def _limit(most: int) -> Callback:
    """Callback that stops a download of more than ``most`` bytes."""

    class Limit(Callback):
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            if self.value > most:
                raise _BadCopyError(f"more than the {most} bytes came that it may have")

    return Limit()


def _is_final(error: Exception) -> bool:
    """True if another try would not help."""
    if isinstance(error, FileNotFoundError | PermissionError) or type(error).__name__ in _HOPELESS:
        return True
    status = getattr(error, "status", None)  # aiohttp's
    return isinstance(status, int) and 400 <= status < 500 and status not in _LATER


def _reason(error: Exception) -> str:
    status = getattr(error, "status", None)
    if type(error).__name__ == "TooManyRedirects":
        return "the server sends it from one address to the next without end"
    if isinstance(status, int):
        return f"the server answers {status} {getattr(error, 'message', '')}".rstrip()
    if isinstance(error, FileNotFoundError):
        return "is not there"
    if "Timeout" in type(error).__name__:
        return f"nothing came for {STALL_S:g} s"
    if isinstance(error, PermissionError):
        return f"access is denied ({first_line(error)})"
    return str(error) if isinstance(error, _BadCopyError) else f"{type(error).__name__}: {first_line(error)}"


def _remedy(error: Exception, tries: int) -> str:
    if type(error).__name__ == "NoCredentialsError":
        return "give credentials as the AWS tools take them; of a public bucket, set FSSPEC_S3_ANON=true"
    if isinstance(error, _BadCopyError):
        return f"{tries} tries: upload the file again, with the manifest that was written for it"
    if _is_final(error):
        return "check the address and that you may read it"
    return f"{tries} tries failed: check the network and the server, and start again; a run goes on where it stopped"
