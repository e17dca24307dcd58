"""Hashing: no two inputs share an encoding, and what is hashed is the tensors, not their container."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.digest import (
    bytes_digest,
    canonical_json,
    derive,
    digest,
    file_digest,
    files_digest,
    keyed,
    parse_json,
    tensor_digest,
)

quick = settings(max_examples=200, derandomize=True, deadline=None, database=None)
texts = st.lists(st.text(max_size=6), max_size=5)


@quick
@given(texts, texts)
def test_different_fields_have_different_digests(one: list[str], other: list[str]) -> None:
    assert (digest("d", *one) == digest("d", *other)) == (one == other)
    assert (keyed(b"k", "d", *one) == keyed(b"k", "d", *other)) == (one == other)


@pytest.mark.parametrize(
    ("one", "other"), [(["ab", "c"], ["a", "bc"]), (["a", ""], ["a"]), ([""], []), (["a\0"], ["a", ""])]
)
def test_field_boundaries_are_part_of_the_digest(one: list[str], other: list[str]) -> None:
    assert digest("d", *one) != digest("d", *other)


def test_domains_purposes_and_keys_separate() -> None:
    values = {
        digest("a", "x"),
        digest("b", "x"),
        keyed(b"k", "a", "x"),
        keyed(b"l", "a", "x"),
        derive(b"k" * 32, "a", "x"),
        derive(b"k" * 32, "b", "x"),
        derive(b"k" * 32, "a", "x", 0),
        derive(b"l" * 32, "a", "x"),
    }
    assert len(values) == 8
    assert {len(value) for value in values} == {32}


@quick
@given(st.dictionaries(st.text(max_size=4), st.integers(-(2**53) + 1, 2**53 - 1) | st.text(max_size=4), max_size=6))
def test_canonical_json_ignores_the_order_of_keys(value: dict[str, Any]) -> None:
    backwards = dict(reversed(list(value.items())))
    assert canonical_json(value) == canonical_json(backwards)
    assert parse_json(canonical_json(value)) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53 + 1])
def test_canonical_json_refuses_what_json_cannot_carry(value: object) -> None:
    with pytest.raises(ValueError, match=r".+"):
        canonical_json({"x": value})


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, "a": 2}', '{"a": {"b": 1, "b": 1}}', "NaN", "[Infinity]", "-Infinity", "1e999", "[-1e999]", "{", ""],
)
def test_strict_parsing_refuses(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse_json(text)


def test_strict_parsing_takes_the_rest() -> None:
    assert parse_json(b'{"a": [1, 2.5, "x", null, true]}') == {"a": [1, 2.5, "x", None, True]}


def test_plain_digests_are_what_sha256sum_prints(tmp_path: Path) -> None:
    data = b"x" * 300_000
    (tmp_path / "f").write_bytes(data)
    assert bytes_digest(data) == file_digest(tmp_path / "f") == hashlib.sha256(data).hexdigest()


def test_a_set_of_files_is_named_by_names_and_contents() -> None:
    named = files_digest({"a": "1", "b": "2"})
    assert named == files_digest({"b": "2", "a": "1"})
    assert len({named, files_digest({"a": "2", "b": "1"}), files_digest({"a": "1"}), files_digest({})}) == 4


def container(tensors: dict[str, tuple[str, list[int], bytes]], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file with its tensors in the given order."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


ONE = ("F32", [2, 1], bytes(range(8)))
TWO = ("F32", [2], bytes(range(8, 16)))


def test_tensor_digest_ignores_the_container() -> None:
    plain = container({"a": ONE, "b": TWO})
    turned = container({"b": TWO, "a": ONE})
    described = container({"a": ONE, "b": TWO}, {"format": "pt", "made": "elsewhere"})
    assert plain != turned != described
    assert tensor_digest(plain) == tensor_digest(turned) == tensor_digest(described)


def test_tensor_digest_sees_names_types_shapes_and_bytes() -> None:
    variants = [
        {"a": ONE, "b": TWO},
        {"a": TWO, "b": ONE},
        {"a": ONE, "c": TWO},
        {"a": ONE},
        {"a": ("F32", [1, 2], ONE[2]), "b": TWO},
        {"a": ("I32", [2, 1], ONE[2]), "b": TWO},
        {"a": ("F32", [2, 1], bytes(range(1, 9))), "b": TWO},
    ]
    digests = sorted(tensor_digest(container(tensors)) for tensors in variants)
    assert all(one != other for one, other in pairwise(digests))


@pytest.mark.parametrize("data", [b"", b"not safetensors at all", container({"a": ONE})[:-1]])
def test_tensor_digest_refuses_other_files(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensor_digest(data)


@pytest.mark.parametrize("length", [0, 1, 100_000_000, 100_000_001, 2**40, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 1])
def test_tensor_digest_refuses_a_header_of_another_length_than_it_has(length: int) -> None:
    sound = container({"a": ONE})
    tensor_digest(sound)
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensor_digest(length.to_bytes(8, "little") + sound[8:])


def under(header: bytes, data: bytes = bytes(8)) -> bytes:
    """A safetensors file with this header."""
    return len(header).to_bytes(8, "little") + header + data


def test_tensor_digest_refuses_a_header_above_the_cap_before_it_parses_it() -> None:
    header = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    tensor_digest(under(header.ljust(1_000_000)))
    with pytest.raises(ValueError, match="header too large"):
        tensor_digest(under(header.ljust(100_000_001)))


@pytest.mark.parametrize("depth", [200, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [(b'{"a":', b"}"), (b"[", b"]")])
@pytest.mark.parametrize("within", [b"%b", b'{"a":%b}', b'{"__metadata__":{"a":%b}}'])
def test_tensor_digest_refuses_a_nested_header(within: bytes, opening: bytes, closing: bytes, depth: int) -> None:
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensor_digest(under(within % (opening * depth + b"1" + closing * depth)))


@pytest.mark.parametrize(
    ("shape", "offsets"),
    [
        ([2**63, 2], [0, 8]),
        ([2**62, 4], [0, 8]),
        ([2**62, 4], [0, 0]),  # 0 modulo 2**64
        ([2**61, 2**61], [0, 8]),
        ([2**64 + 2], [0, 8]),
        ([-2], [0, 8]),
        ([2.5], [0, 8]),
        ([3], [0, 8]),
        ([2], [0, 2**63]),
        ([2], [2**64 - 8, 2**64]),
        ([2], [8, 0]),
        ([2], [-8, 0]),
        ([1], [0, 4]),  # and four bytes that no tensor covers
        ([1], [4, 8]),
    ],
)
def test_tensor_digest_refuses_shapes_and_places_that_are_not_the_datas(shape: list[Any], offsets: list[Any]) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": offsets}})
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensor_digest(under(header.encode()))


def test_tensor_digest_refuses_two_tensors_in_one_place() -> None:
    one = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensor_digest(under(json.dumps({"a": one, "b": one}).encode()))
