"""What is packed in files: Parquet, Arrow, gzip, zip, SQLite, base64 ... known by content, not by name.

Unpacks in memory alone: a temporary file would be a copy of its own. Not unpacked are encrypted
files, tar archives (their members lie there as they are) and formats not listed in ``_OPENERS``.
"""

from __future__ import annotations

import binascii
import bz2
import gzip
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from shards.bytesearch import CHUNK, joined
from shards.errors import StorageError
from shards.sqlite_texts import texts

# (name, content in chunks) of each thing packed in a file.
Layers = Iterator[tuple[str, Iterable[bytes]]]
Opener = Callable[[BinaryIO], Layers]

# What readers raise over damaged, truncated, encrypted or foreign files.
BROKEN = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zlib.error,
    lzma.LZMAError,
    zipfile.BadZipFile,
    pa.ArrowException,
    StorageError,
)
_PIECE = 1 << 16


def chunks(source: Any) -> Iterator[bytes]:
    """A file in chunks; of a truncated one all that comes before the error."""
    batch = bytearray()
    try:
        while piece := source.read1(_PIECE):
            batch += piece
            if len(batch) >= CHUNK:
                yield bytes(batch)
                batch.clear()
    except BROKEN:
        yield bytes(batch)
        raise
    yield bytes(batch)


# -- archives ----------------------------------------------------------------------------------


def _gzip(source: BinaryIO) -> Layers:
    with gzip.GzipFile(fileobj=source) as plain:
        yield "gzip content", chunks(plain)


def _bz2(source: BinaryIO) -> Layers:
    with bz2.BZ2File(source) as plain:
        yield "bzip2 content", chunks(plain)


def _xz(source: BinaryIO) -> Layers:
    with lzma.LZMAFile(source) as plain:
        yield "xz content", chunks(plain)


def _zstd(source: BinaryIO) -> Layers:
    yield "zstd content", chunks(pa.CompressedInputStream(pa.PythonFile(source, mode="r"), "zstd"))


def _zip(source: BinaryIO) -> Layers:
    with zipfile.ZipFile(source) as archive:
        for info in archive.infolist():
            yield f"zip member {info.filename}", _zip_member(archive, info)


def _zip_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(info) as member:
        yield from chunks(member)


# -- tables ------------------------------------------------------------------------------------


def _parquet(source: BinaryIO) -> Layers:
    with pq.ParquetFile(source) as file:
        for name in dict.fromkeys(file.schema_arrow.names):
            batches = file.iter_batches(batch_size=1024, columns=[name], use_threads=False)
            columns = (column for batch in batches for column in batch.columns)
            yield f"parquet column {name}", chain.from_iterable(map(_values, columns))


def _arrow_file(source: BinaryIO) -> Layers:
    reader = pyarrow.ipc.open_file(source)
    for number, name in enumerate(reader.schema.names):
        batches = map(reader.get_batch, range(reader.num_record_batches))
        yield f"arrow column {name}", chain.from_iterable(_values(batch.column(number)) for batch in batches)


def _arrow_stream(source: BinaryIO) -> Layers:
    try:
        names = pyarrow.ipc.open_stream(source).schema.names
    except (pa.ArrowException, OSError):
        return  # other files may begin with four bytes of 0xff too
    for number, name in enumerate(names):
        source.seek(0)
        reader = pyarrow.ipc.open_stream(source)
        yield f"arrow column {name}", chain.from_iterable(_values(batch.column(number)) for batch in reader)


def _values(array: Any) -> Iterator[bytes]:
    """The values of an Arrow array: strings one by one, everything else as it lies in memory."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        yield from _values(array.dictionary)
    elif pa.types.is_struct(kind):
        for number in range(kind.num_fields):
            yield from _values(array.field(number))
    elif pa.types.is_list(kind) or pa.types.is_large_list(kind):
        yield from _values(array.values)
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind):
        yield from joined(value for value in array.cast(pa.large_binary()).to_pylist() if value is not None)
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        yield from joined(value for value in array.to_pylist() if value is not None)
    else:  # the first buffer says which are null, and would lie between the values of two batches
        yield from (buffer.to_pybytes() for buffer in array.buffers()[1:] if buffer is not None)


def _sqlite(source: BinaryIO) -> Layers:
    if isinstance(source, BytesIO):
        raise ValueError("a SQLite database inside another file: only its pages were searched")
    yield "sqlite row", joined(texts(Path(source.name)))


_OPENERS: Mapping[bytes, Opener] = {
    b"PAR1": _parquet,
    b"ARROW1": _arrow_file,
    b"\xff\xff\xff\xff": _arrow_stream,
    b"\x1f\x8b\x08": _gzip,
    b"BZh": _bz2,
    b"\xfd7zXZ\0": _xz,
    b"\x28\xb5\x2f\xfd": _zstd,
    b"PK\x03\x04": _zip,
    b"SQLite format 3\0": _sqlite,
}
HEAD = max(map(len, _OPENERS))  # bytes by which a format is known


def opener_of(head: bytes) -> Opener | None:
    """How to unpack what begins with these (at least ``HEAD``) bytes; None if nothing is packed in it.

    The opener takes the whole as a binary file, positioned at its beginning, and raises any of
    ``BROKEN`` while it or the content of a layer is read.
    """
    return next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)


# -- base64 ------------------------------------------------------------------------------------

SHORTEST_BASE64 = 40  # characters
LONGEST_BASE64 = 16 << 20
_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_"
_BREAKS = b"\r\n"
_FLAT = bytes(ord("x") if byte in _ALPHABET + _BREAKS else ord(" ") for byte in range(256))
_STANDARD = bytes.maketrans(b"-_", b"+/")
_BLANK_LINE = re.compile(rb"\r\n\r\n|\n\n|\r\r")


@dataclass(slots=True)
class Base64:
    """Decodes the long base64 strings, plain or URL-safe, in one line or several, among bytes that come in chunks.

    Letters of the alphabet may stand before a string, as in ``/a/<base64>`` or in a line above, and nothing
    tells where it begins. So it is decoded from each of four places; one of them meets its groups of four.

    Attributes:
        reach: no more bytes than this are ever looked for in one piece; a string that is cut
            because it exceeds ``LONGEST_BASE64`` is decoded with so much overlap.
    """

    reach: int
    _rest: bytes = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """What the strings that end in the next bytes say."""
        buffer = self._rest + chunk
        flat = buffer.translate(_FLAT)
        open_from = len(flat.rstrip(b"x"))  # a string at the end may go on in the next chunk
        yield from _decoded(buffer[:open_from], flat[:open_from])
        self._rest = buffer[open_from:]
        if len(self._rest) > LONGEST_BASE64:
            yield from _decodings(self._rest)
            # With a line break after each letter a byte takes four.
            self._rest = self._rest[max(len(self._rest) - 8 * self.reach, 0) :]

    def close(self) -> Iterator[bytes]:
        """There are no more bytes: what the last string says."""
        yield from _decoded(self._rest, self._rest.translate(_FLAT))


def _decoded(buffer: bytes, flat: bytes) -> Iterator[bytes]:
    start = flat.find(b"x" * SHORTEST_BASE64)
    while start >= 0:
        end = flat.find(b" ", start)
        end = len(flat) if end < 0 else end
        yield from _decodings(buffer[start:end])
        start = flat.find(b"x" * SHORTEST_BASE64, end)


def _decodings(lines: bytes) -> Iterator[bytes]:
    """What lines of letters may say: together, up to a blank line; and what is packed in one of them."""
    for passage in _BLANK_LINE.split(lines):
        letters = passage.translate(None, _BREAKS)
        if len(letters) < SHORTEST_BASE64:
            continue
        for skipped in range(4):
            yield _decode(letters[skipped:])
        for line in passage.split()[1:]:  # the first begins the whole
            if len(line) >= SHORTEST_BASE64 and opener_of(_decode(line[:SHORTEST_BASE64])):
                yield _decode(line)


def _decode(letters: bytes) -> bytes:
    letters = letters[: len(letters) - (len(letters) % 4 == 1)]  # one character alone stands for no byte
    return binascii.a2b_base64(letters.translate(_STANDARD) + b"=" * (-len(letters) % 4))
