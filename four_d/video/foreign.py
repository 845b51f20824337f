"""Descriptions of files that cannot be used, each with a remedy."""

from __future__ import annotations

import re
from pathlib import Path

from four_d.errors import UserError

RAW_SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("3fr", "arw", "cr2", "cr3", "crw", "dcr", "dng", "erf", "iiq", "kdc", "mrw", "nef", "nrw", "orf", "pef"),
        *("raf", "raw", "rw2", "rwl", "sr2", "srf", "srw", "x3f"),
    )
)
"""Suffixes of raw camera photos, by maker."""
_RAW = "is a camera's raw photo; develop it to JPEG, PNG or TIFF"
_HEIC = "is a HEIC picture, which takes a decoder that is not here; convert it to JPEG or PNG"
_HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
_HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_STARTS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the file itself; fetch that with: git lfs pull"),
    (b"<!doctype", "is a web page; download the file itself"),
    (b"<html", "is a web page; download the file itself"),
    (b"%pdf", "is a PDF; save its pictures as PNG"),
    (b"pk\x03\x04", "is a ZIP archive; unpack it and give what is in it"),
    (b"\x1f\x8b", "is a gzip archive; unpack it and give what is in it"),
    (b"7z\xbc\xaf", "is a 7z archive; unpack it and give what is in it"),
    (b"rar!", "is a RAR archive; unpack it and give what is in it"),
    (b"\x93numpy", "is a NumPy array; load it in Python and give the array"),
    (b"\x89hdf", "is an HDF5 file; write its frames as pictures"),
    (b"#extm3u", "is a playlist, not the video itself; download that into one file"),
    (b"ffconcat", "is a list of files, not a video; join them into one file"),
)
_PICTURES = (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8", b"II*\x00", b"MM\x00*", b"P5", b"P6", b"BM")
_MOTION_JPEG = frozenset({".mjpeg", ".mjpg"})
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)


def check_there(path: Path, wanted: str) -> None:
    """Raise UserError unless ``path`` is a folder or a file; ``wanted`` describes what to give."""
    if path.is_dir() or path.is_file():
        return
    if _ADDRESS.match(str(path)):
        address = str(path).replace(":/", "://", 1)  # paths keep only one of its slashes
        raise UserError(f"{address} is an address, not a file; download it first, then give the file")
    if path.exists():
        raise UserError(f"{path} is neither a file nor a folder; record it into a file first")
    if any(mark in path.name for mark in "*?%"):
        raise UserError(f"{path} does not exist; patterns are not filled in: give the folder")
    raise UserError(f"{path} does not exist; give {wanted}")


def is_picture(path: Path) -> bool:
    """True if a file's first bytes are those of an image, except for Motion JPEG, whose frames are JPEG images."""
    start = _start(path)
    if start[:3] == b"\xff\xd8\xff" and path.suffix.lower() in _MOTION_JPEG:
        return False
    return start.startswith(_PICTURES) or start[8:12] in (b"WEBP", b"avif", b"avis")


def what_is(path: Path) -> str | None:
    """Description, with a remedy, of a file that is read neither as image nor as video; None if unrecognised."""
    start = _start(path)
    if not start:
        return "is empty (0 bytes); copy or record it again"
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        return _HEIC
    for mark, meaning in _STARTS:
        if start.lower().lstrip(b"\xef\xbb\xbf \r\n\t").startswith(mark):
            return meaning
    if start[257:262] == b"ustar":
        return "is a tar archive; unpack it and give what is in it"
    if start[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free") or start.startswith(b"\x1aE\xdf\xa3"):
        return None
    named = by_name(path)
    if named is not None:
        return named
    try:
        text = start.decode()
    except UnicodeDecodeError:
        return None
    printable = all(letter.isprintable() or letter.isspace() for letter in text)
    return "is a text file; give the file that holds the pictures" if printable else None


def by_name(path: Path) -> str | None:
    """Description, with a remedy, of an unsupported kind of image, by its suffix; None for others."""
    suffix = path.suffix.lower()
    return _RAW if suffix in RAW_SUFFIXES else _HEIC if suffix in _HEIC_SUFFIXES else None


def _start(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(512)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror or error}); check its permissions") from error
