"""Listing of a shard's tar without trust in it: plain members only, so that no header can send the reader astray."""

from __future__ import annotations

from pathlib import Path

BLOCK = 512
"""Bytes of a header, and the unit of which every member fills a whole number."""


class BadTarError(ValueError):
    """Error for bytes that are not a tar of plain files."""


def members(path: Path) -> dict[str, tuple[int, int]]:
    """List a tar's members: name → (offset of its data, size). BadTarError for a damaged one, or other members."""
    found: dict[str, tuple[int, int]] = {}
    total = path.stat().st_size
    with path.open("rb") as file:
        at = 0
        while True:
            header = file.read(BLOCK)
            if header == bytes(BLOCK):
                return found
            name, size = _member(header, at)
            if at + BLOCK + size > total:
                raise BadTarError(f"member {name} of {size} bytes ends beyond the file")
            found[name] = at + BLOCK, size
            at += BLOCK + -(-size // BLOCK) * BLOCK
            file.seek(at)


def _member(header: bytes, at: int) -> tuple[str, int]:
    if len(header) < BLOCK:
        raise BadTarError("ends without its last block")
    try:
        said = int(header[148:156].strip(b" \0") or b"0", 8)
        size = int(header[124:136].strip(b" \0") or b"0", 8)
        name = header[:100].split(b"\0")[0].decode()
    except ValueError as error:
        raise BadTarError(f"the header at byte {at} is not one of a plain file") from error
    if sum(header) - sum(header[148:156]) + 8 * 32 != said:
        raise BadTarError(f"the header at byte {at} does not match its checksum")
    if header[156:157] not in b"0\0" or size < 0:
        raise BadTarError(f"member {name} at byte {at} is not a plain file")
    return name, size
