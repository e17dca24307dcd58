"""Many patterns in one stream of bytes: what a plain search finds, however the bytes come."""

from __future__ import annotations

import random

import pytest

from shards.bytesearch import Patterns, find, joined

TEXT = 'Zoë asks: "where is parcel 555?"'.encode()


def patterns(*wanted: bytes) -> Patterns:
    return Patterns(dict.fromkeys(wanted, ()))


@pytest.mark.parametrize("lengths", [(6, 12), (12, 20), (16, 40)])
def test_a_search_finds_what_a_plain_search_finds(lengths: tuple[int, int]) -> None:
    draw = random.Random(7)
    data = bytes(draw.choices(b"\x00ab", k=20_000))
    wanted = [bytes(draw.choices(b"\x00ab", k=draw.randint(*lengths))) for _ in range(300)]
    wanted += [data[start : start + draw.randint(*lengths)] for start in draw.choices(range(19_900), k=100)]
    expected = {pattern for pattern in wanted if pattern in data}
    assert find(patterns(*wanted), [data]) == expected
    assert 100 <= len(expected) < 380


@pytest.mark.parametrize("size", [1, 5, 8, 16, 31, 1000])
def test_how_bytes_come_in_chunks_changes_nothing(size: int) -> None:
    alone = [b"abcdef", b"ghijklmnop", TEXT[:15], TEXT[:16], TEXT]
    decoys: dict[bytes, tuple[bytes, ...]] = {b"customer-1": (b"big-customer-10", b"customer-10")}
    wanted = Patterns(decoys | dict.fromkeys(alone, ()))
    for before in range(0, 70, 3):
        for pattern in alone:
            data = bytes(before) + pattern + b"\x00big-customer-10" * (before % 2)
            found = find(wanted, (data[start : start + size] for start in range(0, len(data), size)))
            assert found == {other for other in alone if other in pattern}


@pytest.mark.parametrize("pattern", [TEXT[:9], TEXT])
@pytest.mark.parametrize("end", range(9))
def test_what_lies_at_the_very_end_or_beginning_is_found(pattern: bytes, end: int) -> None:
    assert find(patterns(pattern), [bytes(4096 + 3) + pattern + b"\x01" * end]) == {pattern}
    assert find(patterns(pattern), [b"\x01" * end + pattern + b"\x00"]) == {pattern}


def test_half_a_pattern_at_the_end_is_none() -> None:
    assert find(patterns(TEXT, TEXT[:10] + b"\0\0"), [TEXT[:10]]) == set()


def test_a_pattern_counts_outside_of_its_decoys_only() -> None:
    wanted = Patterns({b"customer-1": (b"customer-12",)})
    assert find(wanted, [b"?customer-12\0"]) == set()
    assert find(wanted, [b"?customer-12\0customer-1\0"]) == {b"customer-1"}


def test_a_pattern_too_short_to_be_searched_for_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 6 bytes"):
        patterns(b"short")


def test_without_patterns_nothing_is_found() -> None:
    assert find(patterns(), [TEXT]) == set()


def test_joined_values_are_kept_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.bytesearch.CHUNK", 8)
    assert list(joined([b"abcd", b"efgh", b"ij"])) == [b"abcd\0efgh\0", b"ij\0"]
