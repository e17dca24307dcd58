"""Words for people: nothing in them steers a terminal, and nothing fills a screen."""

from __future__ import annotations

import pytest

from sisa.wording import counted, named, plain, quoted


@pytest.mark.parametrize(
    "one", ["\n", "\r", "\t", "\x1b", "\x7f", "\x9b", "\u200b", "\u202e", "\u2028", "\u2029", "\ufeff"]
)
def test_what_steers_is_a_space(one: str) -> None:
    assert plain(f"a{one}b") == "a b"


@pytest.mark.parametrize(
    "text", ["", "Anna Schmidt", "Ægir Þór", "王小明", "אבגד", "ميم", "[bold]x[/]", "{0} %s", "👍"]
)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert plain(text) == text


def test_a_long_name_is_cut_and_its_length_told() -> None:
    assert quoted("a" * 80) == repr("a" * 80)
    assert quoted("a" * 100_000) == repr("a" * 80) + "... (100000 characters)"
    assert quoted("a\x1b\u202e") == r"'a\x1b\u202e'"


def test_of_many_names_the_first_are_shown_and_the_rest_counted() -> None:
    assert named(["a"]) == "'a'"
    assert named(list("abcdefghij")).endswith("'i', 'j'")
    assert named(list("abcdefghijkl")).endswith("'i', 'j' and 2 more")


def test_one_of_a_thing_takes_no_s() -> None:
    assert [counted(number, "record") for number in (0, 1, 2)] == ["0 records", "1 record", "2 records"]
