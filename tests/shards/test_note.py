"""Signed tree heads and log proofs as text: published vectors, one spelling per value, who signed."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from shards import note as notes
from shards.digest import sha256, tree_leaf
from shards.note import (
    MAX_NOTE_BYTES,
    MAX_PROOF_BYTES,
    LogProof,
    TreeHead,
    key_id,
    read_head,
    sign_head,
    signed_by,
)
from shards.tlog import EMPTY_ROOT, inclusion_proofs, tree_hash, verify_inclusion

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
PUBLIC = KEY.public_key()
ORIGIN = "sisa.example/namespace"
HEAD = TreeHead(ORIGIN, 5, sha256(b"root"))
NOTE = sign_head(HEAD, KEY)
ROOT64 = base64.b64encode(HEAD.root).decode()
SIGNATURE = NOTE.split("\n")[-2]
PROOF = LogProof(2, (sha256(b"one"), sha256(b"two")), NOTE)

quick = settings(max_examples=200, derandomize=True, deadline=None, database=None)


def line(name: str, data: bytes) -> str:
    return f"\N{EM DASH} {name} {base64.b64encode(data).decode()}\n"


def verifier_key(text: str) -> tuple[str, bytes, Ed25519PublicKey]:
    """Name, key ID and key of a verifier key in the text form of the note specification."""
    name, identifier, encoded = text.split("+", 2)
    kind, *public = base64.b64decode(encoded)
    assert kind == 1
    return name, bytes.fromhex(identifier), Ed25519PublicKey.from_public_bytes(bytes(public))


# Published verifier keys, each with a note that it signed: the specification's own, and two of the
# implementation that the format comes from.
SAYING = "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
PETER = (
    "\N{EM DASH} PeterNeumann "
    "x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
ENOCH = (
    "\N{EM DASH} EnochRoot "
    "rwz+eBzmZa0SO3NbfRGzPCpDckykFXSdeX+MNtCOXm2/5n2tiOHp+vAF1aGrQ5ovTG01oOTGwnWLox33WWd1RvMc+QQ=\n"
)
PUBLISHED = {
    "example.com/foo+530d903a+AekyeRrm56hApGFkyQR4ZCbV54Id2LKaANYcrnKv3U2k": (
        "This is an example message.\n\n\N{EM DASH} example.com/foo "
        "Uw2QOkn8srV1yJGh2VYRlL1Tnagv1YEq6TfXppzi2ONncAlTgK7Ztg1ERYNZXsYjOBH3mFXmRKuwHjG1Yu72IneyaQM=\n"
    ),
    "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW": f"{SAYING}\n{PETER}",
    "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop": f"{SAYING}\n{PETER}{ENOCH}",
}
SPECIFIED = (
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\N{EM DASH} example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    "\N{EM DASH} witness.example.com/w1 "
    "jWbPPwAAAABkGFDLEZMHwSRaJNiIDoe9DYn/zXcrtPHeolMI5OWXEhZCB9dlrDJsX3b2oyin1nPZqhf5nNo0xUe+mbIUBkBIfZ+qnA==\n"
)


@pytest.mark.parametrize("vkey", PUBLISHED)
def test_published_notes_verify_with_their_published_keys(vkey: str) -> None:
    name, identifier, key = verifier_key(vkey)
    assert key_id(name, key) == identifier
    text, signatures = notes._split(PUBLISHED[vkey])
    (claim,) = [data for signer, data in signatures if signer == name]
    assert claim[:4] == identifier
    key.verify(claim[4:], text.encode())


def test_published_notes_that_are_no_tree_heads_are_signed_by_nobody_here() -> None:
    for vkey, note in PUBLISHED.items():
        assert not signed_by(note, verifier_key(vkey)[2])


def test_the_specified_checkpoint_reads_and_writes_back() -> None:
    head = read_head(SPECIFIED)
    assert (head.origin, head.size) == ("example.com/behind-the-sofa", 20852163)
    assert SPECIFIED.startswith(head.text() + "\n\N{EM DASH} ")
    assert not signed_by(SPECIFIED, PUBLIC)


def test_a_head_is_three_lines_and_its_note_adds_one_signature() -> None:
    assert HEAD.text() == f"{ORIGIN}\n5\n{ROOT64}\n"
    text, blank, signature = NOTE.rpartition("\n\n")
    assert (text + "\n", blank) == (HEAD.text(), "\n\n")
    data = key_id(ORIGIN, PUBLIC) + KEY.sign(HEAD.text().encode())
    assert signature == line(ORIGIN, data)


def test_a_signed_head_reads_back_and_only_its_key_signed_it() -> None:
    assert read_head(NOTE) == HEAD
    assert signed_by(NOTE, PUBLIC)
    assert not signed_by(NOTE, OTHER_KEY.public_key())


def test_signing_one_head_twice_gives_one_note() -> None:
    assert sign_head(HEAD, KEY) == NOTE


def test_the_empty_log_has_a_head() -> None:
    head = TreeHead(ORIGIN, 0, EMPTY_ROOT)
    assert read_head(sign_head(head, KEY)) == head


def test_a_change_of_any_character_takes_the_signature_away() -> None:
    for place, character in enumerate(NOTE):
        for other in {"A", "0", "\n", " ", "é", chr(ord(character) ^ 1)} - {character}:
            assert not signed_by(NOTE[:place] + other + NOTE[place + 1 :], PUBLIC), (place, other)
        assert not signed_by(NOTE[:place] + NOTE[place + 1 :], PUBLIC), place


def test_a_signature_of_another_head_does_not_count() -> None:
    for other in (TreeHead(ORIGIN, 6, HEAD.root), TreeHead(ORIGIN, 5, sha256(b"fork"))):
        assert not signed_by(other.text() + "\n" + SIGNATURE + "\n", PUBLIC)


def test_a_signature_under_another_name_than_the_logs_does_not_count() -> None:
    witness = key_id("witness.example", PUBLIC) + KEY.sign(HEAD.text().encode())
    assert not signed_by(HEAD.text() + "\n" + line("witness.example", witness), PUBLIC)


def test_lines_of_unknown_keys_are_ignored() -> None:
    own = key_id(ORIGIN, PUBLIC)
    strangers = [
        line("witness.example", b"\0\0\0\0anything"),
        line("witness.example", own + bytes(64)),  # our key ID under another name
        line(ORIGIN, bytes([own[0] ^ 1]) + own[1:] + bytes(64)),  # our name with another key ID
        SIGNATURE.replace(ORIGIN, "witness.example") + "\n",
        sign_head(HEAD, OTHER_KEY).split("\n")[-2] + "\n",
    ]
    for stranger in strangers:
        assert signed_by(NOTE + stranger, PUBLIC)
        assert signed_by(f"{HEAD.text()}\n{stranger}{SIGNATURE}\n", PUBLIC)
        assert not signed_by(f"{HEAD.text()}\n{stranger}", PUBLIC)
    assert signed_by(NOTE + "".join(strangers), OTHER_KEY.public_key())


@pytest.mark.parametrize("signature", [bytes(64), bytes(1), bytes(63), bytes(65), KEY.sign(b"something else")])
def test_a_line_of_the_key_that_does_not_verify_spoils_the_note(signature: bytes) -> None:
    bad = line(ORIGIN, key_id(ORIGIN, PUBLIC) + signature)
    assert not signed_by(NOTE + bad, PUBLIC)
    assert not signed_by(f"{HEAD.text()}\n{bad}{SIGNATURE}\n", PUBLIC)
    assert not signed_by(f"{HEAD.text()}\n{bad}", PUBLIC)


MALFORMED_BODIES = {
    "no origin": f"\n5\n{ROOT64}\n",
    "origin with a space": f"a log\n5\n{ROOT64}\n",
    "origin with a no-break space": f"a\u00a0log\n5\n{ROOT64}\n",
    "origin with a line separator": f"a\u2028log\n5\n{ROOT64}\n",
    "origin with a plus": f"a+log\n5\n{ROOT64}\n",
    "leading zero": f"{ORIGIN}\n05\n{ROOT64}\n",
    "two zeros": f"{ORIGIN}\n00\n{ROOT64}\n",
    "sign": f"{ORIGIN}\n+5\n{ROOT64}\n",
    "negative": f"{ORIGIN}\n-5\n{ROOT64}\n",
    "underscore": f"{ORIGIN}\n1_0\n{ROOT64}\n",
    "space before the size": f"{ORIGIN}\n 5\n{ROOT64}\n",
    "digits of another script": f"{ORIGIN}\n\u0665\n{ROOT64}\n",
    "hexadecimal": f"{ORIGIN}\n0x5\n{ROOT64}\n",
    "no size": f"{ORIGIN}\n\n{ROOT64}\n",
    "size of 2**63": f"{ORIGIN}\n{2**63}\n{ROOT64}\n",
    "size of many digits": f"{ORIGIN}\n{'9' * 5000}\n{ROOT64}\n",
    "no root": f"{ORIGIN}\n5\n\n",
    "root without padding": f"{ORIGIN}\n5\n{ROOT64[:-1]}\n",
    "root with too much padding": f"{ORIGIN}\n5\n{ROOT64}=\n",
    "root with loose last bits": f"{ORIGIN}\n5\n{'A' * 42}B=\n",
    "root in the alphabet of links": f"{ORIGIN}\n5\n{'_' * 42}8=\n",
    "root of 31 bytes": f"{ORIGIN}\n5\n{base64.b64encode(bytes(31)).decode()}\n",
    "root of 33 bytes": f"{ORIGIN}\n5\n{base64.b64encode(bytes(33)).decode()}\n",
    "root in hex": f"{ORIGIN}\n5\n{HEAD.root.hex()}\n",
    "space after the root": f"{ORIGIN}\n5\n{ROOT64} \n",
    "two lines": f"{ORIGIN}\n5\n",
    "extension line": f"{HEAD.text()}extension\n",
    "empty extension line": f"{HEAD.text()}\n",
    "carriage returns": HEAD.text().replace("\n", "\r\n"),
    "null character": f"{ORIGIN}\x00\n5\n{ROOT64}\n",
    "escape sequence": f"{ORIGIN}\x1b[2J\n5\n{ROOT64}\n",
    "control character above ASCII": f"{ORIGIN}\u009b2J\n5\n{ROOT64}\n",
    "delete": f"{ORIGIN}\x7f\n5\n{ROOT64}\n",
    "tab": f"{ORIGIN}\n5\t\n{ROOT64}\n",
    "byte order mark in the size": f"{ORIGIN}\n\ufeff5\n{ROOT64}\n",
}


@pytest.mark.parametrize("text", MALFORMED_BODIES.values(), ids=MALFORMED_BODIES)
def test_a_malformed_head_is_refused_even_if_signed(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_head(f"{text}\n{SIGNATURE}\n")
    origin = text.split("\n", maxsplit=1)[0]
    assert not signed_by(f"{text}\n{line(origin, key_id(origin, PUBLIC) + KEY.sign(text.encode()))}", PUBLIC)


MALFORMED_NOTES = {
    "empty": "",
    "line feeds": "\n\n\n",
    "no signature": HEAD.text(),
    "blank line and no signature": HEAD.text() + "\n",
    "no blank line": HEAD.text() + SIGNATURE + "\n",
    "no last line feed": NOTE[:-1],
    "line feed too many": NOTE + "\n",
    "text after the signatures": NOTE + "more\n",
    "blank line between signatures": f"{NOTE}\n{SIGNATURE}\n",
    "hyphen for dash": NOTE.replace("\N{EM DASH}", "-"),
    "no space after the dash": NOTE.replace("\N{EM DASH} ", "\N{EM DASH}"),
    "two spaces after the dash": NOTE.replace("\N{EM DASH} ", "\N{EM DASH}  "),
    "no name": NOTE + line("", bytes(68)),
    "name with an escape sequence": NOTE + line("a\x1b[2Jb", bytes(68)),
    "name with a plus": NOTE + line("a+b", bytes(68)),
    "name with a wide space": NOTE + line("a\u3000b", bytes(68)),
    "no encoded signature": NOTE + f"\N{EM DASH} {ORIGIN}\n",
    "empty encoded signature": NOTE + line(ORIGIN, b""),
    "key ID alone": NOTE + line(ORIGIN, bytes(4)),
    "signature that is not base64": NOTE + f"\N{EM DASH} {ORIGIN} !!!!\n",
    "signature without padding": NOTE.rstrip("=\n") + "\n",
    "signature with loose last bits": NOTE + "\N{EM DASH} a AAAAAAB=\n",
    "space at the end": NOTE[:-1] + " \n",
    "carriage return at the end": NOTE[:-1] + "\r\n",
    "seventeen signatures": NOTE + line("witness.example", bytes(68)) * 16,
    "lone surrogate": NOTE.replace("sisa", "s\ud800sa"),
    "byte order mark": "\ufeff\n" + NOTE,
}


@pytest.mark.parametrize("note", MALFORMED_NOTES.values(), ids=MALFORMED_NOTES)
def test_a_malformed_note_is_refused_whoever_signed_it(note: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_head(note)
    assert not signed_by(note, PUBLIC)


def test_sixteen_signatures_and_sixteen_kibibytes_are_the_limit() -> None:
    assert signed_by(NOTE + line("witness.example", bytes(68)) * 15, PUBLIC)
    room = MAX_NOTE_BYTES - len((NOTE + line("w", b"")).encode())
    full = NOTE + line("w", bytes(room // 4 * 3))
    full = full.replace(" w ", " w" + "w" * (MAX_NOTE_BYTES - len(full.encode())) + " ")
    assert len(full.encode()) == MAX_NOTE_BYTES
    assert signed_by(full, PUBLIC)
    longer = full.replace(" ww", " www") if " ww" in full else full.replace(" w ", " ww ")
    assert len(longer.encode()) == MAX_NOTE_BYTES + 1
    with pytest.raises(ValueError, match="bytes"):
        read_head(longer)
    assert not signed_by(longer, PUBLIC)


def test_a_name_may_be_in_any_script() -> None:
    head = TreeHead("wörk.example/δένδρο", 5, HEAD.root)
    assert read_head(sign_head(head, KEY)) == head
    assert signed_by(sign_head(head, KEY), PUBLIC)


@pytest.mark.parametrize("origin", ["", " ", "a b", "a+b", "a\nb", "a\x00b", "a\x85b", "a\u2003b", "\ta"])
def test_no_head_is_made_for_an_origin_that_cannot_name_a_key(origin: str) -> None:
    with pytest.raises(ValueError, match="cannot name a key"):
        TreeHead(origin, 5, HEAD.root)


@pytest.mark.parametrize(("size", "root"), [(-1, HEAD.root), (2**63, HEAD.root), (5, b""), (5, HEAD.root[:-1])])
def test_no_head_is_made_of_a_size_or_root_that_cannot_be(size: int, root: bytes) -> None:
    with pytest.raises(ValueError, match=r"leaves|bytes"):
        TreeHead(ORIGIN, size, root)


def test_a_proof_is_its_version_index_hashes_and_the_note_verbatim() -> None:
    hashes = "".join(base64.b64encode(node).decode() + "\n" for node in PROOF.hashes)
    assert PROOF.text() == f"c2sp.org/tlog-proof@v1\nindex 2\n{hashes}\n{NOTE}"
    assert LogProof.parse(PROOF.text()) == PROOF


def test_a_proof_without_hashes_reads_back() -> None:
    proof = LogProof(0, (), sign_head(TreeHead(ORIGIN, 1, HEAD.root), KEY))
    assert proof.text().startswith("c2sp.org/tlog-proof@v1\nindex 0\n\nsisa.example")
    assert LogProof.parse(proof.text()) == proof


def test_an_extra_line_is_accepted_and_dropped() -> None:
    with_extra = PROOF.text().replace("index", "extra ZXh0cmE=\nindex")
    assert LogProof.parse(with_extra) == PROOF
    assert LogProof.parse(with_extra).text() == PROOF.text()


def test_signatures_of_witnesses_stay_in_a_proof() -> None:
    proof = LogProof(2, PROOF.hashes, NOTE + line("witness.example", bytes(76)))
    assert LogProof.parse(proof.text()) == proof
    assert signed_by(LogProof.parse(proof.text()).head, PUBLIC)


HASH64 = base64.b64encode(PROOF.hashes[0]).decode()
MALFORMED_PROOFS = {
    "empty": "",
    "note alone": NOTE,
    "other version": PROOF.text().replace("@v1", "@v2"),
    "space after the version": PROOF.text().replace("@v1", "@v1 "),
    "blank first line": "\n" + PROOF.text(),
    "no index": PROOF.text().replace("index 2\n", ""),
    "number without index": PROOF.text().replace("index 2", "2"),
    "index without a number": PROOF.text().replace("index 2", "index "),
    "index in capitals": PROOF.text().replace("index", "Index"),
    "leading zero": PROOF.text().replace("index 2", "index 02"),
    "negative index": PROOF.text().replace("index 2", "index -2"),
    "index with a tab": PROOF.text().replace("index 2", "index\t2"),
    "index of many digits": PROOF.text().replace("index 2", "index " + "9" * 5000),
    "index twice": PROOF.text().replace("index 2", "index 2\nindex 2"),
    "index not in the tree": PROOF.text().replace("index 2", "index 5"),
    "extra line twice": PROOF.text().replace("index", "extra AAAA\nextra AAAA\nindex"),
    "extra line after the index": PROOF.text().replace("index 2", "index 2\nextra AAAA"),
    "extra line without data": PROOF.text().replace("index", "extra \nindex"),
    "extra line that is not base64": PROOF.text().replace("index", "extra !\nindex"),
    "extra line with loose last bits": PROOF.text().replace("index", "extra AB==\nindex"),
    "extra line too long": PROOF.text().replace("index", f"extra {'A' * MAX_PROOF_BYTES}\nindex"),
    "extra line alone": "c2sp.org/tlog-proof@v1\nextra AAAA\n\n" + NOTE,
    "hash without padding": PROOF.text().replace(HASH64, HASH64[:-1]),
    "hash of 31 bytes": PROOF.text().replace(HASH64, base64.b64encode(bytes(31)).decode()),
    "hash in hex": PROOF.text().replace(HASH64, PROOF.hashes[0].hex()),
    "hash with a space": PROOF.text().replace(HASH64, HASH64 + " "),
    "two hashes on a line": PROOF.text().replace(HASH64 + "\n", HASH64),
    "64 hashes": PROOF.text().replace(HASH64, "\n".join([HASH64] * 63)),
    "no note": PROOF.text().removesuffix(NOTE),
    "no blank line before the note": PROOF.text().replace("\n\n", "\n", 1),
    "two blank lines before the note": PROOF.text().replace("\n\n", "\n\n\n", 1),
    "carriage returns": PROOF.text().replace("\n", "\r\n"),
    "text after the note": PROOF.text() + "more",
    "lone surrogate": PROOF.text() + "\ud800",
    "unsigned head": PROOF.text().removesuffix(SIGNATURE + "\n"),
}


@pytest.mark.parametrize("text", MALFORMED_PROOFS.values(), ids=MALFORMED_PROOFS)
def test_a_malformed_proof_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        LogProof.parse(text)


def test_sixty_three_hashes_are_the_most_a_proof_has() -> None:
    head = sign_head(TreeHead(ORIGIN, 2**63 - 1, HEAD.root), KEY)
    proof = LogProof(2**63 - 2, (HEAD.root,) * 63, head)
    assert LogProof.parse(proof.text()) == proof
    with pytest.raises(ValueError, match="at most 63"):
        LogProof(0, (HEAD.root,) * 64, head)


@pytest.mark.parametrize(("index", "hashes"), [(-1, ()), (5, ()), (0, (b"short",))])
def test_no_proof_is_made_that_could_not_be_read_back(index: int, hashes: tuple[bytes, ...]) -> None:
    with pytest.raises(ValueError, match=r"leaf|bytes"):
        LogProof(index, hashes, NOTE)
    with pytest.raises(ValueError, match="signed note"):
        LogProof(0, (), HEAD.text())


def test_a_proof_on_paper_is_checked_with_the_head_it_carries() -> None:
    leaves = [tree_leaf(b"fact %d" % number) for number in range(11)]
    note = sign_head(TreeHead(ORIGIN, 11, tree_hash(leaves)), KEY)
    proofs = inclusion_proofs(leaves, range(len(leaves)))
    for index, leaf in enumerate(leaves):
        proof = LogProof.parse(LogProof(index, tuple(proofs[index]), note).text())
        head = read_head(proof.head)
        assert signed_by(proof.head, PUBLIC)
        assert verify_inclusion(head.root, head.size, proof.index, leaf, proof.hashes)
        assert not verify_inclusion(head.root, head.size, proof.index, leaves[index - 1], proof.hashes)


origins = st.text(st.characters(blacklist_categories=["Z", "C"], blacklist_characters="+"), min_size=1, max_size=40)
hashes32 = st.binary(min_size=32, max_size=32)


@quick
@given(origins, st.integers(1, 2**63 - 1), hashes32, st.lists(hashes32, max_size=63), st.data())
def test_every_head_and_proof_reads_back(
    origin: str, size: int, root: bytes, hashes: list[bytes], data: st.DataObject
) -> None:
    head = TreeHead(origin, size, root)
    note = sign_head(head, KEY)
    assert read_head(note) == head
    assert signed_by(note, PUBLIC)
    proof = LogProof(data.draw(st.integers(0, size - 1)), tuple(hashes), note)
    assert LogProof.parse(proof.text()) == proof


@quick
@given(st.integers(0, len(PROOF.text())), st.integers(0, 3), st.text("ABab01=+/ \n\r\x00—é", max_size=3))
def test_whatever_reads_as_a_proof_writes_back_the_same(place: int, removed: int, inserted: str) -> None:
    """No two texts are one proof: what was bent is refused or is another proof."""
    text = PROOF.text()
    text = text[:place] + inserted + text[place + removed :]
    try:
        proof = LogProof.parse(text)
    except ValueError:
        return
    assert proof.text() == text
