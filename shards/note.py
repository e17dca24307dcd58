"""Signed tree heads and proofs as text: C2SP signed-note, tlog-checkpoint and tlog-proof.

One value has one text: every reader refuses what the writer would not have written, apart from the
signature lines of others (witnesses) and a proof's ``extra`` line, which is unauthenticated and dropped.
Readers raise ValueError; the bounds keep what a stranger's file can cost small.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shards.digest import sha256
from shards.tlog import HASH_BYTES, SIZE_LIMIT

MAX_NOTE_BYTES = 16 * 1024
MAX_SIGNATURES = 16
MAX_PROOF_HASHES = 63
MAX_PROOF_BYTES = 4 * MAX_NOTE_BYTES  # the note, the hashes, and room for an extra line

_PROOF_VERSION = "c2sp.org/tlog-proof@v1"
_ED25519 = b"\x01"
_SIGNATURE = "\N{EM DASH} "
_KEY_ID_BYTES = 4
_NUMBER = re.compile(r"0|[1-9][0-9]{0,18}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class TreeHead:
    """What a log's operator signs: which log, how many leaves, and the root over them.

    Raises:
        ValueError: if the origin cannot name a key (empty, or with a space, plus or control
            character), the size is not in 0 .. 2**63 - 1, or the root is not 32 bytes.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        _check_name(self.origin)
        if not 0 <= self.size < SIZE_LIMIT:
            raise ValueError(f"no tree has {self.size} leaves")
        if len(self.root) != HASH_BYTES:
            raise ValueError(f"a root is {HASH_BYTES} bytes, not {len(self.root)}")

    def text(self) -> str:
        """The text that is signed (tlog-checkpoint): origin, size and root, each on its line."""
        return f"{self.origin}\n{self.size}\n{_to_base64(self.root)}\n"


@dataclass(frozen=True, slots=True)
class LogProof:
    """That the leaf at ``index`` is in a log, to be checked offline against a signed head.

    ``hashes`` is the inclusion proof, the leaf's sibling first; ``head`` is the signed note, verbatim.

    Raises:
        ValueError: if the head does not parse, has no such leaf, or a hash is too many or not 32 bytes.
    """

    index: int
    hashes: tuple[bytes, ...]
    head: str

    def __post_init__(self) -> None:
        if not 0 <= self.index < read_head(self.head).size:
            raise ValueError(f"the head's tree has no leaf {self.index}")
        if len(self.hashes) > MAX_PROOF_HASHES:
            raise ValueError(f"a proof has at most {MAX_PROOF_HASHES} hashes, not {len(self.hashes)}")
        if any(len(node) != HASH_BYTES for node in self.hashes):
            raise ValueError(f"a hash is {HASH_BYTES} bytes")

    def text(self) -> str:
        """The proof as a tlog-proof file."""
        lines = [_PROOF_VERSION, f"index {self.index}", *map(_to_base64, self.hashes)]
        return "\n".join(lines) + "\n\n" + self.head

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a tlog-proof file; an ``extra`` line must be well formed and is dropped.

        Raises:
            ValueError: if it is anything else.
        """
        if len(text.encode()) > MAX_PROOF_BYTES:
            raise ValueError(f"a proof is at most {MAX_PROOF_BYTES} bytes")
        top, _, head = text.partition("\n\n")
        version, *lines = top.split("\n")
        if version != _PROOF_VERSION:
            raise ValueError(f"the first line is not {_PROOF_VERSION}")
        if lines and lines[0].startswith("extra "):
            _from_base64(lines.pop(0).removeprefix("extra "))
        if not lines or not lines[0].startswith("index "):
            raise ValueError("the index line is missing")
        index = _to_number(lines.pop(0).removeprefix("index "))
        return cls(index, tuple(_from_base64(line) for line in lines), head)


def sign_head(head: TreeHead, key: Ed25519PrivateKey) -> str:
    """The signed note of a tree head; the key's name is the log's origin."""
    text = head.text()
    signature = key_id(head.origin, key.public_key()) + key.sign(text.encode())
    return f"{text}\n{_SIGNATURE}{head.origin} {_to_base64(signature)}\n"


def read_head(note: str) -> TreeHead:
    """The tree head of a signed note. Its signatures must be well formed and are not checked.

    Extension lines, which no monitor can check, are refused.

    Raises:
        ValueError: if the note is anything but a signed tree head.
    """
    text, _ = _split(note)
    return _read_text(text)


def signed_by(note: str, key: Ed25519PublicKey) -> bool:
    """Whether a signed tree head bears a valid signature of this key under the log's own name.

    Lines of other keys do not count, whatever they say. If any line claims this key (same name and key
    ID) and does not verify, the note is not signed; nor is one that ``read_head`` would refuse.
    """
    try:
        text, signatures = _split(note)
        origin = _read_text(text).origin
    except ValueError:
        return False
    own = key_id(origin, key)
    claims = [data for name, data in signatures if name == origin and data[:_KEY_ID_BYTES] == own]
    return bool(claims) and all(_valid(key, claim[_KEY_ID_BYTES:], text) for claim in claims)


def key_id(name: str, key: Ed25519PublicKey) -> bytes:
    """The 4 bytes that tell which of a name's keys signed; short, so a hint and never evidence."""
    return sha256(name.encode() + b"\n" + _ED25519 + key.public_bytes_raw())[:_KEY_ID_BYTES]


def _split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """A signed note's text, and the key name and data (key ID, then signature) of each signature line."""
    if len(note.encode()) > MAX_NOTE_BYTES:
        raise ValueError(f"a signed note is at most {MAX_NOTE_BYTES} bytes")
    text, blank, tail = note.rpartition("\n\n")
    *lines, end = tail.split("\n")
    if not blank or end or not 1 <= len(lines) <= MAX_SIGNATURES:
        raise ValueError(f"a signed note ends in a blank line and 1 to {MAX_SIGNATURES} signature lines")
    return text + "\n", [_read_signature(line) for line in lines]


def _read_signature(line: str) -> tuple[str, bytes]:
    if not line.startswith(_SIGNATURE):
        raise ValueError("a signature line begins with an em dash and a space")
    name, _, encoded = line.removeprefix(_SIGNATURE).partition(" ")
    _check_name(name)
    data = _from_base64(encoded)
    if len(data) <= _KEY_ID_BYTES:
        raise ValueError("a signature is a key ID and at least one byte")
    return name, data


def _read_text(text: str) -> TreeHead:
    lines = text.split("\n")
    if len(lines) != 4:
        raise ValueError("a tree head is three lines: origin, size and root")
    origin, size, root, _ = lines
    return TreeHead(origin, _to_number(size), _from_base64(root))


def _valid(key: Ed25519PublicKey, signature: bytes, text: str) -> bool:
    try:
        key.verify(signature, text.encode())
    except InvalidSignature:
        return False
    return True


def _check_name(name: str) -> None:
    if not name or "+" in name or _CONTROL.search(name) or any(character.isspace() for character in name):
        raise ValueError(f"{name!r} cannot name a key: empty, or with a space, plus or control character")


def _to_number(text: str) -> int:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number of at most 19 digits without leading zeros")
    return int(text)


def _to_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _from_base64(text: str) -> bytes:
    """Decode standard base64 of at least one byte, refusing every spelling but the one we would write."""
    data = base64.b64decode(text, validate=True)
    if not data or _to_base64(data) != text:
        raise ValueError("not canonical base64")
    return data
