"""Words for people: what somebody gave made fit to print, long names cut, nouns beside their numbers."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

_CHARACTERS = 80
_NAMES = 10


def plain(text: str) -> str:
    """A text without what steers a terminal or turns the direction of reading: spaces in its place.

    Control and format characters, line and paragraph separators (Unicode Cc, Cf, Zl, Zp).
    """
    return "".join(" " if unicodedata.category(one) in {"Cc", "Cf", "Zl", "Zp"} else one for one in text)


def quoted(text: str) -> str:
    """A text in quotes, escaped, and cut if it is long."""
    if len(text) <= _CHARACTERS:
        return repr(text)
    return f"{text[:_CHARACTERS]!r}... ({len(text)} characters)"


def named(names: Sequence[str]) -> str:
    """The first of many names, and how many more there are."""
    more = len(names) - _NAMES
    return ", ".join(map(quoted, names[:_NAMES])) + (f" and {more} more" if more > 0 else "")


def counted(number: int, noun: str) -> str:
    """A number and its noun, which takes an s unless there is one."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
