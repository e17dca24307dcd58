"""Does a file hold one of these byte strings, in whatever form somebody could still read it?

Written for tests and apart from ``sisa.residue``: only what unpacks Parquet, SQLite and archives is shared.
"""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Iterator
from functools import cache, lru_cache
from io import BytesIO
from pathlib import Path

from shards.unpacked import HEAD, opener_of

DEEPEST = 3  # layers in layers
_BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{16,}")
_ZLIB = re.compile(rb"\x78[\x01\x5e\x9c\xda]")


@cache
def forms(canary: bytes) -> frozenset[bytes]:
    """How a byte string may be written: as it is, in hexadecimal, in base64 at each offset, a text in UTF-16."""
    plain = {canary}
    if canary.isascii():
        plain |= {canary.decode().encode(coding) for coding in ("utf-16-le", "utf-16-be")}
    written = {form.hex().encode() for form in plain}
    written |= {form.upper() for form in written}
    for form in plain:
        for skipped in range(3):
            letters = base64.b64encode(bytes(skipped) + form).rstrip(b"=")
            # The first and the last letter may hold bits of what stands beside it.
            kept = letters[(0, 2, 3)[skipped] : -1 if (skipped + len(form)) % 3 else None]
            written |= {kept, kept.translate(bytes.maketrans(b"+/", b"-_"))}
    return frozenset(plain | written)


def layers(data: bytes, depth: int = DEEPEST) -> Iterator[bytes]:
    """These bytes, and whatever is packed in them."""
    yield data
    if depth == 0:
        return
    for run in _BASE64.findall(data):
        letters = run.translate(bytes.maketrans(b"-_", b"+/"))
        for skipped in range(4):
            whole = letters[skipped:]
            whole = whole[: len(whole) - (len(whole) % 4 == 1)]  # one letter alone stands for no byte
            yield from layers(base64.b64decode(whole + b"=" * (-len(whole) % 4)), depth - 1)
    for start in _ZLIB.finditer(data):
        try:
            plain = zlib.decompressobj().decompress(data[start.start() :])
        except zlib.error:
            continue
        yield from layers(plain, depth - 1)
    yield from _unpacked(data, depth)


def _unpacked(data: bytes, depth: int) -> Iterator[bytes]:
    opener = opener_of(data[:HEAD])
    if opener is None or data.startswith(b"SQLite"):  # a database is read from its file
        return
    for _, content in opener(BytesIO(data)):
        yield from layers(b"".join(content), depth - 1)


def _rows(path: Path) -> Iterator[bytes]:
    """The values of a database, which its pages may hold cut in pieces."""
    with path.open("rb") as file:
        head = file.read(HEAD)
        opener = opener_of(head)
        if opener is not None and head.startswith(b"SQLite"):
            file.seek(0)
            for _, content in opener(file):
                yield b"\0".join(content)


@lru_cache(maxsize=4096)
def _held(data: bytes, canaries: frozenset[bytes]) -> frozenset[bytes]:
    shown = b"\0\0\0\0".join(layers(data))
    return frozenset(canary for canary in canaries if any(form in shown for form in forms(canary)))


def found(path: Path, canaries: frozenset[bytes]) -> set[bytes]:
    """The canaries that a file holds, its name included; what cannot be unpacked raises, for it was not searched."""
    held = [_held(part, canaries) for part in (path.read_bytes(), path.name.encode(), *_rows(path))]
    return set[bytes]().union(*held)
