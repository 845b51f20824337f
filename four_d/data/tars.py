"""Listing of a shard's tar without trust in it: plain members only, so that no header can send the reader astray."""

from __future__ import annotations

from pathlib import Path

BLOCK = 512
"""Bytes of a header, and the unit of which every member fills a whole number."""


_LONGEST = 1 << 20
"""Bytes of a header's extension beyond which it is refused."""


class BadTarError(ValueError):
    """Error for bytes that are not a tar of plain files."""


def members(path: Path) -> dict[str, tuple[int, int]]:
    """List a tar's members: name → (offset of its data, size), without a leading ``./``. Folders are left out.

    Reads ustar, and the longer names of PAX and GNU. BadTarError for a damaged tar, and for links and other members
    that are no plain files.
    """
    found: dict[str, tuple[int, int]] = {}
    total = path.stat().st_size
    with path.open("rb") as file:
        at, longer = 0, ""
        while True:
            header = file.read(BLOCK)
            if header == bytes(BLOCK):
                return found
            kind, name, size = _member(header, at)
            if at + BLOCK + size > total:
                raise BadTarError(f"member {name} of {size} bytes ends beyond the file")
            if kind in "xL":
                if size > _LONGEST:
                    raise BadTarError(f"the header at byte {at} has {size} bytes of extensions")
                longer = _long_name(kind, file.read(size), at)
            elif kind == "0":
                name = (longer or name).removeprefix("./")
                if name in found:
                    raise BadTarError(f"two members are named {name}")
                found[name], longer = (at + BLOCK, size), ""
            else:
                longer = ""
            at += BLOCK + -(-size // BLOCK) * BLOCK
            file.seek(at)


def _long_name(kind: str, data: bytes, at: int) -> str:
    """Name in an extension of a header; empty without one."""
    try:
        if kind == "L":
            return data.rstrip(b"\0").decode()
        name = ""
        while data:
            length, _, rest = data.partition(b" ")
            key, _, value = rest[: int(length) - len(length) - 2].decode().partition("=")
            if key == "size" or key.startswith("GNU.sparse"):
                raise BadTarError(f"the header at byte {at} is of a file that is not stored as it is ({key})")
            name = value if key == "path" else name
            data = data[max(int(length), 1) :]
        return name
    except ValueError as error:
        raise BadTarError(f"the header at byte {at} has extensions that cannot be read") from error


def _member(header: bytes, at: int) -> tuple[str, str, int]:
    """Kind (``0`` is a plain file), name and size."""
    if len(header) < BLOCK:
        raise BadTarError("ends without its last block")
    try:
        said = int(header[148:156].strip(b" \0") or b"0", 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
        name = header[:100].split(b"\0")[0].decode()
        folder = header[345:500].split(b"\0")[0].decode() if header[257:263] == b"ustar\0" else ""
    except ValueError as error:
        raise BadTarError(f"the header at byte {at} is not one of a plain file") from error
    if sum(header) - sum(header[148:156]) + 8 * 32 != said:
        raise BadTarError(f"the header at byte {at} does not match its checksum")
    kind = header[156:157].decode("latin-1").replace("\0", "0")
    if kind not in ("0", "5", "x", "g", "L") or size < 0:
        raise BadTarError(f"member {name} at byte {at} is not a plain file")
    return kind, f"{folder}/{name}" if folder else name, size
