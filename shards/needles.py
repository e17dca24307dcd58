"""What to search for when records were deleted: their text, IDs and tokens in each form they may be stored in.

What is not searched for: words that were changed (translated, lower-cased, cut shorter than a
piece), and whatever is so short that it also occurs by chance; the caller is told of the latter.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from struct import pack
from typing import Literal, TypeVar

from shards.bytesearch import SHORTEST, Patterns, find, joined
from shards.records import Record

What = Literal["id", "text", "tokens"]
Tokenise = Callable[[Record], Sequence[int]]
_Cuttable = TypeVar("_Cuttable", str, tuple[int, ...])
# One piece of a field: the bytes of each form it may be stored in, the plain one first.
_Piece = tuple[bytes, ...]

SHORTEST_HEXADECIMAL = 12  # bytes: digests and keys are full of hexadecimal digits
FEWEST_DIFFERENT = 4  # characters or tokens: "------" is everywhere
# Long fields are searched for in pieces, so that a cut-off line of a log is found too.
TEXT_PIECE = 48
TOKEN_PIECE = 16
MOST_PIECES = 16  # of one field, spread evenly


@dataclass(frozen=True, slots=True)
class Needle:
    """What is searched for.

    Attributes:
        record: the record's position in the list that was given; never its ID.
        what: which of its forms.
        patterns: any of these byte strings is a residue of it.
        decoys: longer byte strings of surviving records that hold a pattern; inside one of these
            the pattern is theirs (``customer-1`` in ``customer-12``).
    """

    record: str
    what: What
    patterns: tuple[bytes, ...]
    decoys: tuple[bytes, ...] = ()


def needles(
    records: Sequence[Record], tokenise: Tokenise | None = None, survivors: Sequence[Record] = ()
) -> tuple[list[Needle], list[str]]:
    r"""The needles of deleted records.

    Text is every string of the content but the label, as it is and with white space folded, in
    UTF-8, UTF-16-LE and JSON-escaped with and without ``\u``. A field of more than ``TEXT_PIECE``
    characters is searched for in pieces. Tokens are little-endian integers of 2, 4 and 8 bytes and
    decimal lists, in pieces too. Pieces that a survivor holds as well (a system prompt) are left out.

    Args:
        records: the caller's own copy of the deleted records.
        tokenise: the tokens of a record, without padding; None searches for no tokens.
        survivors: the records that may be there.

    Returns:
        The needles, and what cannot be searched for without false hits.
    """
    wanted, left_out = _of_ids(records, survivors)
    texts = [{name: _text_pieces(text) for name, text in _texts(record)} for record in records]
    held = (form.encode() for record in survivors for _, text in _texts(record) for form in {text, _folded(text)})
    found = [_of_pieces("text", texts, held)]
    if tokenise is not None:
        tokens = [{"tokens": _token_pieces(tokenise(record))} for record in records]
        found.append(_of_pieces("tokens", tokens, (_int32(tokenise(record)) for record in survivors)))
    for more, missed in found:
        wanted += more
        left_out += missed
    return wanted, left_out


def patterns_of(wanted: Iterable[Needle]) -> Patterns:
    """All patterns of all needles, to be searched for together."""
    decoys: dict[bytes, set[bytes]] = defaultdict(set)
    for needle in wanted:
        for pattern in needle.patterns:
            decoys[pattern].update(needle.decoys)
    return Patterns(decoys)


def _name(number: int) -> str:
    return f"record {number}"


def _of_ids(records: Sequence[Record], survivors: Sequence[Record]) -> tuple[list[Needle], list[str]]:
    wanted: list[Needle] = []
    left_out: list[str] = []
    longer = _longer_ids({record.id for record in records}, [record.id for record in survivors])
    for number, record in enumerate(records, 1):
        if not _distinctive(record.id):
            left_out.append(f"{_name(number)}: ID too short")
        elif record.id in longer[record.id]:
            left_out.append(f"{_name(number)}: ID is that of a surviving record")
        else:
            decoys = tuple(chain.from_iterable(map(_forms, longer[record.id])))
            wanted.append(Needle(_name(number), "id", _forms(record.id), decoys))
    return wanted, left_out


def _longer_ids(ids: set[str], survivors: Sequence[str]) -> Mapping[str, set[str]]:
    """For each ID: the survivors' IDs that hold it."""
    patterns = Patterns({record_id.encode(): () for record_id in ids if _distinctive(record_id)})
    whole = "\0".join(["", *survivors, ""]).encode()
    longer: dict[str, set[str]] = defaultdict(set)
    for start, pattern in patterns.hits(whole, 0, len(whole)):
        around = slice(whole.rindex(b"\0", 0, start) + 1, whole.index(b"\0", start))
        longer[pattern.decode()].add(whole[around].decode())
    return longer


def _of_pieces(
    what: What, cut: Sequence[Mapping[str, Sequence[_Piece]]], survivors: Iterable[bytes]
) -> tuple[list[Needle], list[str]]:
    """One needle a record, from the pieces of its fields that no survivor holds in plain form."""
    wanted: list[Needle] = []
    left_out: list[str] = []
    own = {piece[0] for fields in cut for pieces in fields.values() for piece in pieces}
    shared = find(Patterns(dict.fromkeys(own, ())), joined(survivors))
    for number, fields in enumerate(cut, 1):
        patterns: list[bytes] = []
        for name, pieces in fields.items():
            kept = [piece for piece in pieces if piece[0] not in shared]
            patterns += chain.from_iterable(kept)
            if not kept:
                left_out.append(f"{_name(number)}: {name} {'also in surviving records' if pieces else 'too short'}")
        if patterns:
            wanted.append(Needle(_name(number), what, tuple(dict.fromkeys(patterns))))
    return wanted, left_out


def _texts(record: Record) -> Iterator[tuple[str, str]]:
    """(name, text) of each string field that is a record's own; labels are part of the recipe."""
    for name, value in record.fields().items():
        if name == "messages":
            yield from ((f"message {number}", message["content"]) for number, message in enumerate(value, 1))
        elif name != "label":
            yield name, value


def _folded(text: str) -> str:
    return " ".join(text.split())


def _text_pieces(text: str) -> list[_Piece]:
    cut = chain(_cut(text, TEXT_PIECE), _cut(_folded(text), TEXT_PIECE))
    return [_forms(piece) for piece in dict.fromkeys(cut) if _distinctive(piece)]


def _token_pieces(tokens: Sequence[int]) -> list[_Piece]:
    inner = tuple(tokens[1:-1])  # other caches may leave out the special tokens at the ends
    return [_token_forms(piece) for piece in _cut(inner, TOKEN_PIECE) if len(set(piece)) >= FEWEST_DIFFERENT]


def _cut(whole: _Cuttable, size: int) -> list[_Cuttable]:
    """At most ``MOST_PIECES`` pieces of one size from beginning to end, or the whole if it is no longer."""
    last = len(whole) - size
    if last <= 0:
        return [whole]
    count = min(MOST_PIECES, -(-len(whole) // size))
    starts = [number * last // (count - 1) for number in range(count)]
    return [whole[start : start + size] for start in starts]


def _distinctive(text: str) -> bool:
    """Is it long and varied enough not to occur by chance?"""
    least = SHORTEST_HEXADECIMAL if set(text) <= set("0123456789abcdefABCDEF-") else SHORTEST
    return len(text.encode()) >= least and len(set(text)) >= FEWEST_DIFFERENT


def _forms(text: str) -> _Piece:
    escaped = (json.dumps(text, ensure_ascii=ascii_only)[1:-1].encode() for ascii_only in (True, False))
    return tuple(dict.fromkeys((text.encode(), text.encode("utf-16-le"), *escaped)))


def _int32(tokens: Sequence[int]) -> bytes:
    return pack(f"<{len(tokens)}i", *tokens)


def _token_forms(tokens: Sequence[int]) -> _Piece:
    short = [pack(f"<{len(tokens)}H", *tokens)] if max(tokens) < 1 << 16 else []
    decimal = [separator.join(map(str, tokens)).encode() for separator in (", ", ",")]
    return (_int32(tokens), pack(f"<{len(tokens)}q", *tokens), *short, *decimal)
