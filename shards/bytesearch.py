"""Which of many byte strings occur in a stream? Reads each byte once, however many are wanted.

Each pattern is known by six of its bytes (sixteen if it is long), its anchor. All positions of a
buffer are held against a bit filter of hashed anchors, in columns of eight-byte words; what passes
is looked up, and only then compared in full.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

CHUNK = 8 << 20  # bytes read at a time
SHORTEST = 6  # bytes of a pattern
_WIDE = 16
_MASK = pa.scalar((1 << 8 * SHORTEST) - 1, pa.uint64())
# 2^64 over the golden ratio: multiplying by it mixes the upper bits.
_SPREAD = pa.scalar(0x9E3779B97F4A7C15, pa.uint64())
_FILTER_BITS = 25
_VARIED = 5  # different bytes: an anchor good enough
_ANCHORS_TRIED = 16


class Patterns:
    """Byte strings that are searched for together.

    Args:
        decoys: pattern → longer byte strings inside which it does not count.

    Raises:
        ValueError: if a pattern has fewer than ``SHORTEST`` bytes.
    """

    def __init__(self, decoys: Mapping[bytes, Collection[bytes]]) -> None:
        if any(len(pattern) < SHORTEST for pattern in decoys):
            raise ValueError(f"a pattern must have at least {SHORTEST} bytes")
        self._decoys = decoys
        short = [pattern for pattern in decoys if len(pattern) < _WIDE]
        long = [pattern for pattern in decoys if len(pattern) >= _WIDE]
        self._anchors = [_Anchors(width, some) for width, some in ((SHORTEST, short), (_WIDE, long)) if some]
        # No pattern, and no decoy around it, reaches further than this from the pattern's anchor.
        self.reach = max(map(len, chain(decoys, *decoys.values())), default=0)

    def hits(self, buffer: bytes, low: int, high: int) -> Iterator[tuple[int, bytes]]:
        """(start, pattern) of every pattern whose anchor begins in ``buffer[low:high]``."""
        for start, end in chain.from_iterable(anchors.places(buffer, low, high) for anchors in self._anchors):
            pattern = buffer[max(start, 0) : end]
            if pattern in self._decoys and not self._is_decoy(buffer, start, pattern):
                yield start, pattern

    def _is_decoy(self, buffer: bytes, start: int, pattern: bytes) -> bool:
        return any(
            buffer[max(start - offset, 0) : start - offset + len(decoy)] == decoy
            for decoy in self._decoys[pattern]
            for offset in _occurrences(decoy, pattern)
        )


class _Anchors:
    """Where patterns may be, by anchors of one width in bytes."""

    def __init__(self, width: int, patterns: Sequence[bytes]) -> None:
        self._width = width
        # For the hash of an anchor: (where it begins in a pattern, the pattern's length).
        self._shapes: dict[int, set[tuple[int, int]]] = defaultdict(set)
        offsets = [_anchor_offset(pattern, width) for pattern in patterns]
        anchors = [pattern[offset : offset + width] for pattern, offset in zip(patterns, offsets, strict=True)]
        hashes = self._hashes(b"".join(anchor.ljust(_WIDE, b"\0") for anchor in anchors), 2 * len(anchors))
        bits = bytearray(1 << _FILTER_BITS - 3)
        for pattern, offset, hashed in zip(patterns, offsets, hashes.to_pylist()[::2], strict=True):
            self._shapes[hashed].add((offset, len(pattern)))
            slot = hashed >> 64 - _FILTER_BITS
            bits[slot >> 3] |= 1 << (slot & 7)
        self._filter = pa.Array.from_buffers(pa.bool_(), 1 << _FILTER_BITS, [None, pa.py_buffer(bytes(bits))])

    def places(self, buffer: bytes, low: int, high: int) -> Iterator[tuple[int, int]]:
        """(start, end) of what may be a pattern whose anchor begins in ``buffer[low:high]``."""
        for first in range(low, min(low + 8, high)):
            count = (high - first + 7) // 8
            hashes = self._hashes(buffer[first : first + 8 * count + 8], count)
            slots = pc.shift_right(hashes, pa.scalar(64 - _FILTER_BITS, pa.uint64()))
            likely = pc.indices_nonzero(pc.take(self._filter, slots, boundscheck=False))
            for word, hashed in zip(likely.to_pylist(), pc.take(hashes, likely).to_pylist(), strict=True):
                for offset, length in self._shapes.get(hashed, ()):
                    start = first + 8 * word - offset
                    yield start, start + length

    def _hashes(self, buffer: bytes, count: int) -> pa.UInt64Array:
        """Of the anchors that begin at every eighth byte."""
        padded = buffer.ljust(8 * count + 8, b"\0")
        words = pa.Array.from_buffers(pa.uint64(), count + 1, [None, pa.py_buffer(padded)])
        first, second = words.slice(0, count), words.slice(1)
        if self._width == _WIDE:
            return pc.multiply(pc.add(pc.multiply(first, _SPREAD), second), _SPREAD)
        return pc.multiply(pc.bit_wise_and(first, _MASK), _SPREAD)


def _anchor_offset(pattern: bytes, width: int) -> int:
    """Where a pattern's anchor begins: runs of zeros are everywhere, and endings differ more than beginnings."""
    best, most = 0, 0
    last = len(pattern) - width
    for offset in range(last, max(last - _ANCHORS_TRIED, -1), -1):
        different = len(set(pattern[offset : offset + width]))
        if different > most:
            best, most = offset, different
        if most >= _VARIED:
            break
    return best


def _occurrences(whole: bytes, part: bytes) -> Iterator[int]:
    start = whole.find(part)
    while start >= 0:
        yield start
        start = whole.find(part, start + 1)


@dataclass(slots=True)
class Stream:
    """Searches bytes that come in chunks.

    Attributes:
        patterns: what is searched for.
        found: what was found so far; complete once the stream is closed.
    """

    patterns: Patterns
    found: set[bytes] = field(default_factory=set)
    _buffer: bytes = b""
    _searched: int = 0

    def feed(self, chunk: bytes) -> None:
        """The next bytes."""
        self._buffer += chunk
        self._search(len(self._buffer) - self.patterns.reach)

    def close(self) -> None:
        """There are no more."""
        self._search(len(self._buffer))

    def _search(self, high: int) -> None:
        if high <= self._searched:
            return
        self.found.update(pattern for _, pattern in self.patterns.hits(self._buffer, self._searched, high))
        cut = max(high - self.patterns.reach, 0)
        self._buffer, self._searched = self._buffer[cut:], high - cut


def find(patterns: Patterns, chunks: Iterable[bytes]) -> set[bytes]:
    """Which patterns occur in bytes that come in chunks."""
    stream = Stream(patterns)
    for chunk in chunks:
        stream.feed(chunk)
    stream.close()
    return stream.found


def joined(values: Iterable[bytes]) -> Iterator[bytes]:
    """Values with a zero byte after each, in chunks."""
    batch, size = [], 0
    for value in values:
        batch.append(value + b"\0")
        size += len(value)
        if size >= CHUNK:
            yield b"".join(batch)
            batch, size = [], 0
    yield b"".join(batch)
