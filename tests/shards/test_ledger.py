"""The ledger: facts are appended in one transaction, every one a leaf under a signed head, none ever altered."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shards import kinds
from shards.digest import canonical_json, tree_leaf
from shards.errors import IntegrityError, OperationError, StorageError
from shards.keys import endorsed, public_pem
from shards.ledger import Ledger
from shards.note import TreeHead, read_head, sign_head, signed_by
from shards.tlog import tree_hash, verify_consistency, verify_inclusion

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
ORIGIN = "example.org/log"

Body = dict[str, Any]


def naming(kind: str, key: Ed25519PrivateKey, **values: Any) -> tuple[str, Body]:
    return kind, {"public_key": public_pem(key.public_key()).decode(), **values}


GENESIS = naming(kinds.GENESIS, KEY, log=ORIGIN)
PEM = public_pem(OTHER.public_key())
SUCCESSOR = naming(kinds.KEY, OTHER, reason="lost", endorsement=None)


def opened(path: Path, key: Ed25519PrivateKey = KEY, *, create: bool = False) -> Ledger:
    return Ledger(path, lambda: key, create=create)


@pytest.fixture
def ledger(memory_path: Path) -> Iterator[Ledger]:
    """A log of its genesis alone."""
    with closing(opened(memory_path / "ledger.sqlite", create=True)) as made:
        made.append([GENESIS])
        yield made


@pytest.fixture
def log(ledger: Ledger) -> Ledger:
    """A log of seven facts under four heads: 1, 2 to 4, 5, 6 to 7."""
    ledger.append([("a/1", {"n": 2}), ("b/1", {"n": 3}), ("a/1", {"n": 4})])
    ledger.append([("a/1", {"n": 5})])
    ledger.append([("b/1", {"n": 6}), ("c/1", {"n": 7, "text": "ü 🎫"})])
    return ledger


def vandalise(path: Path, *statements: str, **values: Any) -> None:
    """Change the file as any program can: the triggers that stand in the way are part of it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        for (name,) in other.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            other.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            other.execute(statement, values if ":" in statement else {})


def contents(path: Path) -> list[list[tuple[Any, ...]]]:
    with closing(sqlite3.connect(path)) as other:
        return [other.execute(f"SELECT * FROM {table} ORDER BY 1").fetchall() for table in ("facts", "heads")]


def resign(path: Path) -> None:
    """Sign every head anew over what is stored now, as only a holder of the key can."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        rows = other.execute("SELECT seq, kind, body, created FROM facts ORDER BY seq").fetchall()
        leaves = [leaf(*row) for row in rows]
        for (size,) in other.execute("SELECT size FROM heads").fetchall():
            note = sign_head(TreeHead(ORIGIN, size, tree_hash(leaves[:size])), KEY)
            other.execute("UPDATE heads SET note = ? WHERE size = ?", (note, size))


def leaf(seq: int, kind: str, body: str, created: str) -> bytes:
    names = [canonical_json(value).decode() for value in (created, kind)]
    return tree_leaf(f'{{"body":{body},"created":{names[0]},"kind":{names[1]},"seq":{seq}}}'.encode())


# -- facts ---------------------------------------------------------------------------------------


def test_facts_come_back_in_order_and_by_kind(ledger: Ledger) -> None:
    ledger.append([("a/1", {"n": 1}), ("b/1", {"n": 2})])
    ledger.append([("a/1", {"n": 3, "text": "ü"})])
    assert [(fact.kind, fact.body) for fact in ledger.facts("a/1", "b/1")] == [
        ("a/1", {"n": 1}),
        ("b/1", {"n": 2}),
        ("a/1", {"n": 3, "text": "ü"}),
    ]
    assert [fact.seq for fact in ledger.facts("a/1")] == [2, 4]
    assert ledger.facts("c/1") == []
    assert all(fact.created.endswith("+00:00") for fact in ledger.facts("a/1"))


def test_since_gives_what_came_after_a_size(log: Ledger) -> None:
    assert [fact.body["n"] for fact in log.since(4)] == [5, 6, 7]
    assert [fact.seq for fact in log.since(0)] == [1, 2, 3, 4, 5, 6, 7]
    assert log.since(7) == []


def test_an_append_is_all_or_nothing(ledger: Ledger) -> None:
    before = contents(ledger.path)
    with pytest.raises(StorageError, match="append facts"):
        ledger.append([("a/1", {"n": 1}), (None, {"n": 2})])  # type: ignore[list-item]
    assert contents(ledger.path) == before
    ledger.append([("a/1", {"n": 3})])
    assert len(ledger.facts("a/1")) == 1
    assert ledger.problems() == []


def test_what_json_cannot_carry_is_refused_before_anything_is_written(ledger: Ledger) -> None:
    before = contents(ledger.path)
    with pytest.raises(ValueError, match=r".+"):
        ledger.append([("a/1", {"n": 1}), ("a/1", {"n": float("nan")})])
    assert contents(ledger.path) == before


@pytest.mark.parametrize("table", ["facts", "heads"])
@pytest.mark.parametrize("statement", ["UPDATE {} SET {} = '{{}}'", "DELETE FROM {}"])
def test_facts_and_heads_cannot_be_edited_or_removed(statement: str, table: str, log: Ledger) -> None:
    before = contents(log.path)
    with closing(sqlite3.connect(log.path)) as other:
        with pytest.raises(sqlite3.IntegrityError, match="never"):
            other.execute(statement.format(table, "body" if table == "facts" else "note"))
        other.rollback()
    assert contents(log.path) == before


def test_facts_are_durable_and_seen_by_another_reader(ledger: Ledger) -> None:
    ledger.append([("a/1", {"n": 1})])
    with closing(opened(ledger.path)) as reader:
        ledger.append([("a/1", {"n": 2})])
        assert [fact.body["n"] for fact in reader.facts("a/1")] == [1, 2]


def test_the_journal_is_the_one_without_the_reset_bug(ledger: Ledger) -> None:
    with closing(sqlite3.connect(ledger.path)) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() != ("wal",)
    assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("truncate",)
    assert ledger._db.execute("PRAGMA synchronous").fetchone() == (3,)


def test_what_sqlite_frees_is_overwritten(ledger: Ledger) -> None:
    assert ledger._db.execute("PRAGMA secure_delete").fetchone() == (1,)


def test_a_newer_ledger_is_refused_and_left_alone(ledger: Ledger) -> None:
    with closing(sqlite3.connect(ledger.path)) as other:
        other.execute("PRAGMA user_version = 99")
    before = ledger.path.read_bytes()
    with pytest.raises(OperationError, match="schema 99"):
        opened(ledger.path)
    assert ledger.path.read_bytes() == before


def test_a_missing_ledger_is_never_made_by_opening(memory_path: Path) -> None:
    with pytest.raises(StorageError, match="no file"):
        opened(memory_path / "ledger.sqlite")
    assert list(memory_path.iterdir()) == []


def test_a_file_that_is_no_ledger_is_damage_and_is_not_said_to_have_lost_nothing(memory_path: Path) -> None:
    (memory_path / "ledger.sqlite").write_bytes(b"no database at all, " * 100)
    with pytest.raises(IntegrityError, match="not a database") as raised:
        opened(memory_path / "ledger.sqlite")
    assert "restore it from a backup" in raised.value.remedy


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"CREATE TABLE facts", b"CREATE TABLE f\xffcts"), (b"seq INTEGER PRIMARY KEY", b"s\xffq INTEGER PRIMARY KEY")],
)
def test_a_damaged_schema_is_damage(old: bytes, new: bytes, log: Ledger) -> None:
    log.close()
    data = log.path.read_bytes()
    assert old in data
    log.path.write_bytes(data.replace(old, new))
    with pytest.raises(IntegrityError, match=r"ledger\.sqlite"), closing(opened(log.path)) as damaged:
        damaged.check()


# -- the log -------------------------------------------------------------------------------------


def test_every_fact_is_a_leaf(log: Ledger) -> None:
    facts = log.since(0)
    assert log.leaves() == [fact.leaf() for fact in facts]
    assert log.leaves() == [tree_leaf(canonical_json(fact.to_json())) for fact in facts]
    assert len(set(log.leaves())) == 7


def test_every_append_ends_with_a_signed_head(log: Ledger) -> None:
    _, heads = contents(log.path)
    assert [size for size, _ in heads] == [1, 4, 5, 7]
    for size, note in heads:
        assert read_head(note) == TreeHead(ORIGIN, size, tree_hash(log.leaves()[:size]))
        assert signed_by(note, KEY.public_key())
    log.check()


def test_a_fact_is_found_under_the_head_of_its_append(log: Ledger) -> None:
    sizes = {seq: read_head(log.head_after(seq)).size for seq in range(1, 8)}
    assert sizes == {1: 1, 2: 4, 3: 4, 4: 4, 5: 5, 6: 7, 7: 7}
    assert log.head_after(6) == log.head(7) == log.head()


@pytest.mark.parametrize("size", [0, 2, 8])
def test_a_head_that_was_never_signed_is_not_made_up(size: int, log: Ledger) -> None:
    with pytest.raises(IntegrityError, match=f"no tree head of size {size}"):
        log.head(size)


def test_no_head_covers_a_fact_that_was_never_appended(log: Ledger) -> None:
    with pytest.raises(IntegrityError, match="no tree head of size 8"):
        log.head_after(8)


def test_inclusion_proofs_hold_in_every_tree_that_has_the_fact(log: Ledger) -> None:
    for size in (1, 4, 5, 7):
        root = read_head(log.head(size)).root
        for seq, proof in log.prove(range(1, size + 1), size).items():
            assert verify_inclusion(root, size, seq - 1, log.leaves()[seq - 1], proof)
            assert not verify_inclusion(root, size, seq - 1, log.leaves()[seq % 7], proof)


def test_consistency_proofs_hold_between_every_two_heads(log: Ledger) -> None:
    heads = [read_head(log.head(size)) for size in (1, 4, 5, 7)]
    for old in heads:
        for new in heads:
            if old.size <= new.size:
                proof = log.consistency(old.size, new.size)
                assert verify_consistency(old.size, old.root, new.size, new.root, proof)


def test_a_body_in_any_script_is_one_leaf_wherever_it_is_computed(ledger: Ledger) -> None:
    body = {"text": 'ü ß 你好 🎫 \u2028 \x00 "\\', "ключ": ["\ud7ff", 1.5, None]}
    (fact,) = ledger.append([("ä/1", body)])
    with closing(opened(ledger.path)) as reader:
        (read,) = reader.facts("ä/1")
        assert read == fact
        assert read.body == body
        assert reader.leaves()[-1] == fact.leaf()
        reader.check()


# -- who may append ------------------------------------------------------------------------------


def test_a_log_begins_with_its_genesis(memory_path: Path) -> None:
    with closing(opened(memory_path / "ledger.sqlite", create=True)) as empty:
        beginnings: list[list[tuple[str, Body]]] = [
            [("a/1", {})],
            [("a/1", {}), GENESIS],
            [naming(kinds.KEY, KEY, log=ORIGIN)],
        ]
        for facts in beginnings:
            with pytest.raises(IntegrityError, match="begins with its genesis"):
                empty.append(facts)
        assert contents(empty.path) == [[], []]
        assert empty.problems() != [], "an empty log is no log"
        empty.append([GENESIS])
        with pytest.raises(IntegrityError, match="begins with its genesis"):
            empty.append([naming(kinds.GENESIS, KEY, log="example.org/another")])
        empty.check()


@pytest.mark.parametrize(
    "change", [{"log": None}, {"log": "two words"}, {"log": 1}, {"public_key": None}, {"public_key": "no PEM"}]
)
def test_a_genesis_that_names_no_log_or_no_key_is_refused(change: Body, memory_path: Path) -> None:
    with closing(opened(memory_path / "ledger.sqlite", create=True)) as empty:
        with pytest.raises(IntegrityError, match="fact 1 is damaged"):
            empty.append([(kinds.GENESIS, GENESIS[1] | change)])
        assert contents(empty.path) == [[], []]


def test_a_signing_key_that_the_log_does_not_name_cannot_append(log: Ledger) -> None:
    before = contents(log.path)
    with closing(opened(log.path, OTHER)) as stranger:
        with pytest.raises(IntegrityError, match="another signing key"):
            stranger.append([("a/1", {"n": 8})])
        with pytest.raises(IntegrityError, match="another signing key"):
            log.append([("a/1", {"n": 8})], key=OTHER)
    assert contents(log.path) == before


def test_after_a_rotation_old_heads_verify_under_the_old_key_and_new_ones_under_the_new(log: Ledger) -> None:
    with pytest.raises(IntegrityError, match="another signing key"):
        log.append([SUCCESSOR])  # it is the new key that signs the fact that names it
    log.append([SUCCESSOR, ("a/1", {"n": 9})], key=OTHER)
    with closing(opened(log.path, OTHER)) as rotated:
        rotated.append([("a/1", {"n": 10})])
        rotated.check()
        signers = {size: signed_by(note, KEY.public_key()) for size, note in contents(log.path)[1]}
        assert signers == {1: True, 4: True, 5: True, 7: True, 9: False, 10: False}
        assert all(signed_by(rotated.head(size), OTHER.public_key()) for size in (9, 10))
    with pytest.raises(IntegrityError, match="another signing key"):
        log.append([("a/1", {"n": 11})])


def test_a_new_head_signed_by_a_key_of_the_past_is_detected(log: Ledger) -> None:
    log.append([SUCCESSOR], key=OTHER)
    note = sign_head(read_head(log.head()), KEY)
    vandalise(log.path, "UPDATE heads SET note = :note WHERE size = 8", note=note)
    assert log.problems() == ["facts 8 to 8: tree head 8 is not signed by the log's key"]


@pytest.mark.parametrize(
    "said",
    [
        {"reason": "planned", "endorsement": "00" * 64},
        {"reason": "planned", "endorsement": OTHER.sign(endorsed(ORIGIN, PEM)).hex()},
        {"reason": "planned", "endorsement": KEY.sign(endorsed("example.org/other", PEM)).hex()},
        {"reason": "planned", "endorsement": None},
        {"reason": "lost", "endorsement": KEY.sign(endorsed(ORIGIN, PEM)).hex()},
        {"reason": "better", "endorsement": KEY.sign(endorsed(ORIGIN, PEM)).hex()},
        {},
    ],
)
def test_a_key_that_is_not_endorsed_as_it_says_is_refused_and_detected(said: Body, log: Ledger) -> None:
    """Whoever has the file and no key can write any next key, and sign with that."""
    with pytest.raises(IntegrityError, match="fact 8 is damaged"):
        log.append([naming(kinds.KEY, OTHER, **said)], key=OTHER)
    row = (8, kinds.KEY, canonical_json(naming(kinds.KEY, OTHER, **said)[1]).decode(), "now")
    head = TreeHead(ORIGIN, 8, tree_hash([*log.leaves(), leaf(*row)]))
    with closing(sqlite3.connect(log.path, isolation_level=None)) as other:
        other.execute("INSERT INTO facts VALUES (?, ?, ?, ?)", row)
        other.execute("INSERT INTO heads VALUES (8, ?)", (sign_head(head, OTHER),))
    assert [problem.partition(" (")[0] for problem in log.problems()] == ["fact 8 is damaged"]


def test_a_planned_key_that_the_one_before_endorsed_is_taken(log: Ledger) -> None:
    said = {"reason": "planned", "endorsement": KEY.sign(endorsed(ORIGIN, PEM)).hex()}
    log.append([naming(kinds.KEY, OTHER, **said)], key=OTHER)
    assert log.problems() == []


def test_two_ledgers_on_one_file_take_turns(log: Ledger) -> None:
    with closing(opened(log.path)) as other:
        for number in range(8, 14, 2):
            log.append([("a/1", {"n": number})])
            other.append([("a/1", {"n": number + 1})])
        assert [fact.body["n"] for fact in log.since(7)] == [8, 9, 10, 11, 12, 13]
        assert log.leaves() == other.leaves()
        log.check()


def test_leaves_are_those_of_one_moment_however_others_append(log: Ledger) -> None:
    with closing(opened(log.path)) as reader, closing(opened(log.path)) as writer:
        writer._db.execute("PRAGMA busy_timeout = 0")
        rows = reader._rows

        def overtaken(after: int = 0) -> Any:
            read = rows(after)
            with pytest.raises(StorageError, match="locked"):
                writer.append([("a/1", {"n": 8})])
            return read

        reader._rows = overtaken  # type: ignore[method-assign]
        assert len(reader.leaves()) == 7


class FailingCommit:
    """A connection whose next commit fails."""

    def __init__(self, inner: sqlite3.Connection, *, done: bool) -> None:
        self._inner = inner
        self._done = done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def execute(self, statement: str, *values: Any) -> Any:
        if statement == "COMMIT":
            if self._done:
                self._inner.execute(statement)
            raise sqlite3.OperationalError("disk I/O error")
        return self._inner.execute(statement, *values)


@pytest.mark.parametrize("done", [False, True])
def test_after_a_failed_commit_an_append_goes_on_from_what_is_stored(done: bool, log: Ledger) -> None:
    inner = log._db
    log._db = FailingCommit(inner, done=done)  # type: ignore[assignment]
    with pytest.raises(StorageError, match="disk I/O error"):
        log.append([("a/1", {"n": 8})])
    log._db = inner
    stored = [8] if done else []
    assert [fact.body["n"] for fact in log.since(7)] == stored
    (fact,) = log.append([("a/1", {"n": 9})])
    assert fact.seq == 8 + len(stored)
    assert [fact.body["n"] for fact in log.since(7)] == [*stored, 9]
    log.check()


# -- what is detected ----------------------------------------------------------------------------

SHIFT = "UPDATE facts SET seq = -seq - 1 WHERE seq > {0}", "UPDATE facts SET seq = -seq WHERE seq < 0"
CLOSE = "UPDATE facts SET seq = 1 - seq WHERE seq > {0}", "UPDATE facts SET seq = -seq WHERE seq < 0"
INSERTED = "INSERT INTO facts (seq, kind, body, created) VALUES ({}, 'a/1', '{{}}', '2026-01-01T00:00:00.000+00:00')"
COPIED = "INSERT INTO facts SELECT {1}, kind, body, created FROM facts WHERE seq = {0}"


def moved(fact: int, to: int) -> tuple[str, ...]:
    return f"UPDATE facts SET seq = 0 WHERE seq = {fact}", *swap_in(fact, to)


def swap_in(fact: int, to: int) -> tuple[str, ...]:
    return f"UPDATE facts SET seq = {fact} WHERE seq = {to}", f"UPDATE facts SET seq = {to} WHERE seq = 0"


VANDALISM = {
    "a body edited": (["UPDATE facts SET body = '{\"n\":0}' WHERE seq = 3"], "facts 2 to 4: tree head 4 was signed"),
    "a body spelt otherwise": (["UPDATE facts SET body = '{\"n\": 3}' WHERE seq = 3"], "facts 2 to 4: tree head 4"),
    "a kind edited": (["UPDATE facts SET kind = 'z/1' WHERE seq = 5"], "facts 5 to 5: tree head 5 was signed"),
    "a time edited": (["UPDATE facts SET created = '1970' WHERE seq = 7"], "facts 6 to 7: tree head 7 was signed"),
    "the genesis edited": (["UPDATE facts SET body = '{}' WHERE seq = 1"], "fact 1 is damaged"),
    "another log's name": (
        [f"UPDATE facts SET body = replace(body, '{ORIGIN}', 'example.org/other') WHERE seq = 1"],
        "facts 1 to 1: tree head 1 was signed",
    ),
    "a fact that is no JSON": (["UPDATE facts SET body = '{' WHERE seq = 6"], "facts 6 to 7: tree head 7 was signed"),
    "a fact removed": (["DELETE FROM facts WHERE seq = 3"], "fact 3 is missing"),
    "the first fact removed": (["DELETE FROM facts WHERE seq = 1"], "fact 1 is missing"),
    "the last fact removed": (["DELETE FROM facts WHERE seq = 7"], "facts 6 to 7: there are 6"),
    "a fact removed and the gap closed": (
        ["DELETE FROM facts WHERE seq = 3", *(part.format(3) for part in CLOSE)],
        "facts 2 to 4: tree head 4 was signed",
    ),
    "the genesis removed and the gap closed": (
        ["DELETE FROM facts WHERE seq = 1", *(part.format(1) for part in CLOSE)],
        "fact 1 is 'a/1': a log begins with its genesis",
    ),
    "everything removed": (["DELETE FROM facts"], "facts 1 to 1: the log does not begin with its genesis"),
    "two facts exchanged": (moved(2, 3), "facts 2 to 4: tree head 4 was signed"),
    "two facts of different appends exchanged": (moved(4, 5), "facts 2 to 4: tree head 4 was signed"),
    "a fact inserted": ([*(part.format(2) for part in SHIFT), INSERTED.format(3)], "facts 2 to 4: tree head 4 was"),
    "a fact inserted before the genesis": (
        [*(part.format(0) for part in SHIFT), INSERTED.format(1)],
        "fact 1 is 'a/1': a log begins with its genesis",
    ),
    "a fact after the last head": ([INSERTED.format(8)], "fact 8 and later have no signed tree head"),
    "a fact after a gap": ([INSERTED.format(9)], "fact 8 and later have no signed tree head"),
    "a fact duplicated after the last head": ([COPIED.format(7, 8)], "fact 8 and later have no signed tree head"),
    "a fact duplicated over the next": (
        ["DELETE FROM facts WHERE seq = 5", COPIED.format(4, 5)],
        "facts 5 to 5: tree head 5 was signed",
    ),
    "a fact duplicated in between": (
        [*(part.format(5) for part in SHIFT), COPIED.format(5, 6)],
        "facts 6 to 7: tree head 7 was signed",
    ),
    "a gap": (["UPDATE facts SET seq = seq + 90 WHERE seq = 7"], "fact 7 is missing"),
    "the newest head removed": (["DELETE FROM heads WHERE size = 7"], "fact 6 and later have no signed tree head"),
    "every head removed": (["DELETE FROM heads"], "fact 1 and later have no signed tree head"),
    "the newest head under another size": (["UPDATE heads SET size = 6 WHERE size = 7"], "facts 6 to 6: tree head 7"),
    "the newest head promised for later": (
        ["UPDATE heads SET size = 8 WHERE size = 7"],
        "facts 6 to 8: there are 7, and a tree head of 8",
    ),
    "a head before all facts": (
        ["UPDATE heads SET size = 0 WHERE size = 7"],
        "facts 1 to 0: there are 7, and a tree head of 0",
    ),
    "the newest head edited": (
        ["UPDATE heads SET note = replace(note, char(10) || '7' || char(10), char(10) || '6' || char(10))"],
        "facts 6 to 7: tree head 6 was signed over other facts",
    ),
    "the newest head an older one": (
        ["UPDATE heads SET note = (SELECT note FROM heads WHERE size = 5) WHERE size = 7"],
        "facts 6 to 7: tree head 5 was signed",
    ),
    "the newest head no head": (
        ["UPDATE heads SET note = 'x' WHERE size = 7"],
        "facts 6 to 7: its tree head is damaged",
    ),
    "the newest head without its signature": (
        ["UPDATE heads SET note = substr(note, 1, instr(note, char(10) || char(10)) + 1) WHERE size = 7"],
        "facts 6 to 7: its tree head is damaged",
    ),
}


@pytest.mark.parametrize("name", VANDALISM)
def test_vandalism_is_found_by_check_and_refused_by_the_next_append(name: str, log: Ledger) -> None:
    statements, found = VANDALISM[name]
    vandalise(log.path, *statements)
    assert_broken(log.path, found)


def assert_broken(path: Path, found: str) -> None:
    """Problems name the facts; check and the next append refuse, and the append writes nothing."""
    before = contents(path)
    with closing(opened(path)) as fresh:
        (problem,) = fresh.problems()
        assert problem.startswith(found)
        with pytest.raises(IntegrityError) as raised:
            fresh.check()
        assert raised.value.found == problem
        with pytest.raises(IntegrityError):
            fresh.append([("a/1", {"n": 8})])
    assert contents(path) == before


def test_a_head_signed_again_by_another_key_is_detected(log: Ledger) -> None:
    note = sign_head(read_head(log.head()), OTHER)
    vandalise(log.path, "UPDATE heads SET note = :note WHERE size = 7", note=note)
    assert_broken(log.path, "facts 6 to 7: tree head 7 is not signed by the log's key")


def test_a_forked_head_is_detected_though_the_log_s_own_key_signed_it(log: Ledger) -> None:
    fork = sign_head(TreeHead(ORIGIN, 7, tree_hash([*log.leaves()[:6], tree_leaf(b"another seventh")])), KEY)
    vandalise(log.path, "UPDATE heads SET note = :note WHERE size = 7", note=fork)
    assert_broken(log.path, "facts 6 to 7: tree head 7 was signed over other facts")


def test_a_head_of_another_log_is_detected_though_it_covers_the_same_facts(log: Ledger) -> None:
    note = sign_head(TreeHead("example.org/other", 7, tree_hash(log.leaves())), KEY)
    vandalise(log.path, "UPDATE heads SET note = :note WHERE size = 7", note=note)
    assert_broken(log.path, "facts 6 to 7: tree head 7 was signed over other facts")


@pytest.mark.parametrize(
    ("damage", "found"),
    [
        ("UPDATE heads SET note = (SELECT note FROM heads WHERE size = 5) WHERE size = 4", "facts 2 to 4: tree head 5"),
        ("UPDATE heads SET note = 'x' WHERE size = 4", "facts 2 to 4: its tree head is damaged"),
        ("UPDATE heads SET size = 3 WHERE size = 4", "facts 2 to 3: tree head 4 was signed"),
    ],
)
def test_an_older_head_edited_is_detected(damage: str, found: str, log: Ledger) -> None:
    vandalise(log.path, damage)
    with closing(opened(log.path)) as fresh:
        (problem,) = fresh.problems()
        assert problem.startswith(found)
        with pytest.raises(IntegrityError):
            fresh.check()


def test_an_older_head_signed_again_by_another_key_is_detected(log: Ledger) -> None:
    note = sign_head(read_head(log.head(4)), OTHER)
    vandalise(log.path, "UPDATE heads SET note = :note WHERE size = 4", note=note)
    assert log.problems() == ["facts 2 to 4: tree head 4 is not signed by the log's key"]


def test_an_older_head_that_is_gone_takes_no_fact_along_and_is_never_made_up(log: Ledger) -> None:
    """The newest head signs for its facts too; that there was one in between is not in the log."""
    vandalise(log.path, "DELETE FROM heads WHERE size = 4")
    assert log.problems() == []
    with pytest.raises(IntegrityError, match="no tree head of size 4"):
        log.head(4)
    vandalise(log.path, "UPDATE facts SET body = '{\"n\":0}' WHERE seq = 3")
    assert log.problems() == ["facts 2 to 5: tree head 5 was signed over other facts"]


def test_facts_edited_under_an_open_ledger_are_detected(log: Ledger) -> None:
    with closing(opened(log.path)) as other:
        other.append([("a/1", {"n": 8})])
    vandalise(log.path, "UPDATE facts SET body = '{\"n\":0}' WHERE seq = 8")
    before = contents(log.path)
    with pytest.raises(IntegrityError, match="tree head 8 was signed over other facts"):
        log.append([("a/1", {"n": 9})])
    with pytest.raises(IntegrityError, match="tree head 8 was signed over other facts"):
        log.leaves()
    assert contents(log.path) == before


@pytest.mark.parametrize(
    ("table", "column"), [("facts", "kind"), ("facts", "body"), ("facts", "created"), ("heads", "note")]
)
def test_one_flipped_bit_anywhere_is_detected(table: str, column: str, ledger: Ledger) -> None:
    """Every bit of every byte, one after the other; what is no UTF-8 any more included."""
    ledger.append([("a/1", {"n": 2, "text": "ü"})])
    key = "seq" if table == "facts" else "size"
    flipped, size = 0, 0
    vandalise(ledger.path)
    with closing(sqlite3.connect(ledger.path, isolation_level=None)) as other:
        other.execute("PRAGMA synchronous = OFF")
        update = f"UPDATE {table} SET {column} = CAST(? AS TEXT) WHERE {key} = ?"
        for row, text in other.execute(f"SELECT {key}, {column} FROM {table}").fetchall():
            data = text.encode()
            size += len(data)
            for bit in range(8 * len(data)):
                edited = bytearray(data)
                edited[bit // 8] ^= 1 << bit % 8
                other.execute(update, (bytes(edited), row))
                assert ledger.problems(), (row, bit, bytes(edited))
                flipped += 1
            other.execute(update, (data, row))
    ledger.check()
    assert flipped == 8 * size > 0


@pytest.mark.parametrize("text", ["body", "created"])
def test_a_fact_whose_text_is_damaged_is_named_by_whoever_reads_it(text: str, log: Ledger) -> None:
    vandalise(log.path, f"UPDATE facts SET {text} = CAST(x'22ff22' AS TEXT) WHERE seq = 5")
    with closing(opened(log.path)) as fresh:
        if text == "body":
            with pytest.raises(IntegrityError, match="fact 5 is damaged"):
                fresh.facts("a/1")
        assert fresh.problems()[0].startswith("fact 5 is damaged")
        with pytest.raises(IntegrityError):
            fresh.append([("a/1", {"n": 8})])


# -- what is not detected: the anchor's part -----------------------------------------------------


def test_a_prefix_is_a_whole_log_so_only_an_anchor_tells_a_rollback(log: Ledger) -> None:
    later = read_head(log.head())
    vandalise(log.path, "DELETE FROM facts WHERE seq > 5", "DELETE FROM heads WHERE size > 5")
    with closing(opened(log.path)) as rolled_back:
        assert rolled_back.problems() == []
        rolled_back.append([("a/1", {"n": 6}), ("a/1", {"n": 7})])
        forked = read_head(rolled_back.head())
    assert (forked.size, forked.origin) == (later.size, later.origin)
    assert forked.root != later.root, "and whoever kept the later head sees it"


def test_a_history_signed_anew_by_its_operator_is_whole_so_only_an_anchor_tells(log: Ledger) -> None:
    kept = read_head(log.head())
    vandalise(log.path, "UPDATE facts SET body = '{\"n\":0}' WHERE seq = 3")
    resign(log.path)
    with closing(opened(log.path)) as rewritten:
        assert rewritten.problems() == []
        assert read_head(rewritten.head()).root != kept.root
        assert not verify_consistency(7, kept.root, 7, read_head(rewritten.head()).root, [])
