"""What is searched for when records were deleted: every form, nothing that occurs by chance or is a survivor's."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence

import pytest

from shards.bytesearch import find
from shards.needles import _cut, needles, patterns_of
from shards.records import Record, make_content

SHORT = 'Zoë asks: "where is parcel 555?"'
TEXT = SHORT.encode()
LONG = " ".join(f"word{number * number}" for number in range(300))
TOKENS = tuple(range(1000, 1040))


def support(record_id: str, text: str, **values: object) -> Record:
    return Record(id=record_id, content=make_content({"text": text, "label": "delivery"} | values))


GONE = support("ticket-0007", SHORT)
GONE_LONG = support("ticket-0008", LONG)


def tokenise(record: Record) -> Sequence[int]:
    return TOKENS


def found_in(data: bytes, *records: Record, survivors: Sequence[Record] = ()) -> set[str]:
    """Which forms of the records are in some bytes."""
    wanted, left_out = needles(records or (GONE,), tokenise, survivors)
    assert left_out == []
    found = find(patterns_of(wanted), [data])
    return {needle.what for needle in wanted if found & set(needle.patterns)}


@pytest.mark.parametrize(
    "data",
    [
        TEXT,
        SHORT.encode("utf-16-le"),
        SHORT.encode("utf-16"),
        json.dumps({"text": SHORT}).encode(),
        json.dumps({"text": SHORT}, ensure_ascii=False).encode(),
        GONE.content.encode(),
    ],
    ids=["utf-8", "utf-16-le", "utf-16-with-mark", "json-ascii", "json", "canonical"],
)
def test_text_is_found_in_every_form_it_is_stored_in(data: bytes) -> None:
    assert "text" in found_in(b"\x07\x00before" + data + b"after")


def test_text_with_folded_white_space_is_found() -> None:
    assert found_in(b"a line of a letter", support("ticket-0009", "a  line\n\tof a\u00a0letter")) == {"text"}


@pytest.mark.parametrize(
    "content",
    [
        {"prompt": "where is the parcel?", "completion": "it is on its way"},
        {"messages": [{"role": "user", "content": "where?"}, {"role": "assistant", "content": "it is on its way"}]},
    ],
)
def test_every_field_but_the_label_is_searched_for(content: dict[str, object]) -> None:
    assert found_in(b"... it is on its way ...", Record("ticket-0007", make_content(content))) == {"text"}


def test_a_label_is_the_recipes_and_not_searched_for() -> None:
    assert found_in(b"labels: [delivery]") == set()


def test_an_id_is_found() -> None:
    assert found_in(b"\x00ticket-0007\x00") == {"id"}


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[1:-1]], ids=["whole", "without-special-tokens"])
@pytest.mark.parametrize("code", ["H", "i", "q"])
def test_token_arrays_of_each_width_are_found(code: str, tokens: Sequence[int]) -> None:
    assert found_in(b"\x01" + struct.pack(f"<{len(tokens)}{code}", *tokens) + b"\x02") == {"tokens"}


def test_tokens_too_large_for_two_bytes_are_found() -> None:
    found, _ = needles([GONE], lambda record: [number << 10 for number in TOKENS])
    data = struct.pack("<40i", *(number << 10 for number in TOKENS))
    assert find(patterns_of(found), [data])


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_token_lists_in_json_are_found(separators: tuple[str, str]) -> None:
    assert found_in(json.dumps({"input_ids": TOKENS}, separators=separators).encode()) == {"tokens"}


@pytest.mark.parametrize("part", [LONG[:100], LONG[-100:], LONG[700:1300]], ids=["beginning", "end", "middle"])
def test_a_part_of_a_long_text_is_found(part: str) -> None:
    assert found_in(part.encode(), GONE_LONG) == {"text"}


def test_pieces_cover_a_text_from_beginning_to_end() -> None:
    for length in (47, 48, 49, 96, 97, 500, 5000):
        text = "".join(chr(ord("a") + number * number % 26) for number in range(length))
        pieces = _cut(text, 48)
        assert pieces[0] == text[:48]
        assert pieces[-1] == text[-48:]
        assert len(pieces) <= 16
        if length <= 16 * 48:
            reached = {at + step for piece in pieces for at in [text.find(piece)] for step in range(len(piece))}
            assert len(reached) == length or "".join(pieces).startswith(text[:48])


@pytest.mark.parametrize("record_id", ["r1", "ab-12", "1042337", "20261121", "deadbeef00", "aaaaaaaaaaaaaa"])
def test_ids_that_occur_by_chance_are_not_checked(record_id: str) -> None:
    found, left_out = needles([support(record_id, LONG)])
    assert [needle.what for needle in found] == ["text"]
    assert left_out == ["record 1: ID too short"]


@pytest.mark.parametrize("record_id", ["r-1042", "5f0c6d1e-23", "123456789012", "ticket-7"])
def test_ids_that_do_not_occur_by_chance_are_searched_for(record_id: str) -> None:
    found, _ = needles([support(record_id, "short")])
    assert [needle.what for needle in found] == (["id"] if record_id != "5f0c6d1e-23" else [])


def test_texts_and_token_lists_that_are_too_short_are_not_checked() -> None:
    found, left_out = needles([support("ticket-0007", "yes"), GONE], lambda record: (0, 1, 2, 3, 9))
    assert {(needle.record, needle.what) for needle in found} == {
        ("record 1", "id"),
        ("record 2", "id"),
        ("record 2", "text"),
    }
    assert left_out == ["record 1: text too short", "record 1: tokens too short", "record 2: tokens too short"]


def test_no_needle_names_an_id() -> None:
    found, _ = needles([GONE, GONE_LONG], tokenise)
    assert {needle.record for needle in found} == {"record 1", "record 2"}


@pytest.mark.parametrize("stored", [b"customer-12", "customer-12".encode("utf-16-le")])
def test_an_id_inside_a_longer_surviving_id_is_no_residue(stored: bytes) -> None:
    gone, survivor = support("customer-1", LONG), support("customer-12", SHORT)
    found, left_out = needles([gone], None, [survivor])
    assert left_out == []
    assert not find(patterns_of(found), [b"?" + stored + b"\0"])
    assert find(patterns_of(found), [b"?" + stored + b"\0customer-1\0"])


def test_an_id_that_is_held_again_is_not_checked() -> None:
    found, left_out = needles([GONE], None, [support("ticket-0007", LONG)])
    assert [needle.what for needle in found] == ["text"]
    assert left_out == ["record 1: ID is that of a surviving record"]


def test_what_a_survivor_says_too_is_left_out_and_the_rest_is_searched_for() -> None:
    system = "You are a helpful assistant of the parcel service, polite and brief in all your answers."
    gone = support("ticket-0007", f"{system} {LONG}")
    survivor = support("ticket-0009", f"{system} Good day to you.")
    assert find(patterns_of(needles([gone])[0]), [survivor.content.encode()])
    found, left_out = needles([gone], None, [survivor])
    assert left_out == []
    assert not find(patterns_of(found), [survivor.content.encode()])
    assert find(patterns_of(found), [gone.content.encode()])


def test_a_text_that_is_all_a_survivors_is_not_checked() -> None:
    twin = support("ticket-0009", f"he said: {SHORT}")
    found, left_out = needles([GONE], tokenise, [twin])
    assert [needle.what for needle in found] == ["id"]
    assert left_out == ["record 1: text also in surviving records", "record 1: tokens also in surviving records"]
