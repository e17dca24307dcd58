"""A full history, and after each step of it: no file outside the vault says whom it is about, or what.

The same is asked of real models and workers in ``tests/faults/test_world.py``.
"""

from __future__ import annotations

import base64
import gzip
import json
import shutil
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards.errors import HeldError, RecordError
from sisa import residue
from sisa.audit import audit_everything, audit_residue
from sisa.config import Settings
from sisa.export import export_records
from sisa.hold import hold, lift, refuse
from sisa.key import rotate
from sisa.letter import letter
from sisa.log import extension, newest_head, sealed_size
from sisa.receipt import receipt
from sisa.recover import recover
from sisa.retention import retire
from sisa.session import Session
from tests.canaries import found
from tests.sisa.trained import (
    INLINE,
    TRAINER,
    assert_lawful,
    forget,
    held,
    ingest,
    public_key,
    restored,
    retrain,
    write_json,
)
from tests.toy import toy_recipe, toy_session

# -- what is looked for is found -----------------------------------------------------------------

SECRET = b"TEXTCANARY of Anna"


def parquet(data: bytes) -> bytes:
    sink = BytesIO()
    pq.write_table(pa.table({"cell": [data.decode()] * 20}), sink, compression="zstd")
    return sink.getvalue()


FORMS: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda data: b"x" + data + b"y",
    "utf-16-le": lambda data: b"x" + data.decode().encode("utf-16-le"),
    "utf-16-be": lambda data: data.decode().encode("utf-16-be"),
    "hex": lambda data: data.hex().encode(),
    "HEX": lambda data: data.hex().upper().encode(),
    "base64": lambda data: b"it: " + base64.b64encode(data),
    "base64 at 1": lambda data: base64.b64encode(b"." + data + b".."),
    "base64 at 2": lambda data: base64.b64encode(b".." + data + b"."),
    "base64 after letters": lambda data: b"abc" + base64.b64encode(data * 3),
    "base64, URL-safe": lambda data: base64.urlsafe_b64encode(b"\xff\xfe\xfd" + data),
    "base64 in base64": lambda data: base64.b64encode(b'{"a": "' + base64.b64encode(data) + b'"}'),
    "hex in base64": lambda data: base64.b64encode(data.hex().encode()),
    "zlib": lambda data: b"at an offset" + zlib.compress(data * 3),
    "gzip": lambda data: gzip.compress(data * 3),
    "gzip in base64": lambda data: base64.b64encode(gzip.compress(data * 3)),
    "parquet": parquet,
    "base64 in parquet": lambda data: parquet(base64.b64encode(data)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_planted_canary_is_found_in_each_form(form: str, tmp_path: Path) -> None:
    planted = FORMS[form](SECRET)
    (tmp_path / "file").write_bytes(planted)
    assert found(tmp_path / "file", frozenset({SECRET, b"ANOTHERCANARY"})) == {SECRET}


@pytest.mark.parametrize("form", ["plain", "hex", "base64", "base64 at 1", "base64 at 2"])
def test_a_planted_salt_is_found_in_each_form(form: str, tmp_path: Path) -> None:
    salt = bytes(range(200, 232))
    (tmp_path / "file").write_bytes(FORMS[form](salt))
    assert found(tmp_path / "file", frozenset({salt})) == {salt}


def test_a_canary_in_a_database_is_found_though_its_pages_cut_it(tmp_path: Path) -> None:
    long = "x" * 4000
    with closing(sqlite3.connect(tmp_path / "file")) as database:
        database.execute("CREATE TABLE t (a TEXT)")
        rows = [(long + "y" * number + SECRET.decode() + long,) for number in range(120)]
        database.executemany("INSERT INTO t VALUES (?)", rows)
        database.commit()
    assert found(tmp_path / "file", frozenset({SECRET})) == {SECRET}


def test_a_canary_in_a_file_name_is_found(tmp_path: Path) -> None:
    (tmp_path / "TEXTCANARY of Anna.json").touch()
    assert found(tmp_path / "TEXTCANARY of Anna.json", frozenset({SECRET})) == {SECRET}


# -- the history ---------------------------------------------------------------------------------

TASKS = ("classification", "causal-lm")
SAID = ("ID", "SUBJECT", "TEXT", "LABEL", "ANSWER", "REQUESTER", "AUTHORISER", "REASON", "BASIS", "RECIPIENT")
WHO = {kind: f"{kind.upper()}CANARY Anna Schmidt" for kind in ("requester", "authoriser", "reason", "basis")}


class Killed(BaseException):
    """The process ends here."""


def named(number: int) -> str:
    return f"IDCANARY-{number}"


def written(path: Path, task: str, *numbers: int, **values: Any) -> Path:
    """A data file of canaries, with other ``values``."""
    lines: list[Mapping[str, Any]] = []
    for number in numbers:
        said = {"text": f"TEXTCANARY {number}", "label": "a"}
        if task == "causal-lm":
            said = {"prompt": f"TEXTCANARY {number}", "completion": f"ANSWERCANARY {number}"}
        lines.append({"id": named(number), "subject": f"SUBJECTCANARY-{number // 3}"} | said | values)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@dataclass(slots=True)
class Watch:
    """What may be read by others while a workspace lives.

    Attributes:
        anchor: the workspace's.
        given: a directory of what was handed out and must say nothing of anybody.
        salts: all that were ever drawn.
        steps: those looked at so far → number of files.
    """

    anchor: Path
    given: Path
    salts: set[bytes] = field(default_factory=set)
    steps: dict[str, int] = field(default_factory=dict)

    def look(self, session: Session, step: str) -> None:
        """Nothing is found outside the vault now."""
        workspace = session.workspace
        self.salts |= {stored.salt for part in workspace.parts() for stored in workspace.vault.read(part)}
        canaries = frozenset({f"{what}CANARY".encode() for what in SAID} | self.salts)
        files = [
            path
            for root in (workspace.path, self.anchor, self.given)
            for path in root.rglob("*")
            if path.is_file() and workspace.vault.root not in path.parents
        ]
        leaks = {str(path): held for path in files if (held := found(path, canaries))}
        assert not leaks, step
        self.steps[step] = len(files)

    def says(self, path: Path, *what: str) -> None:
        """What is looked for does stand where it may."""
        assert found(path, frozenset(f"{one}CANARY".encode() for one in what)) == {
            f"{one}CANARY".encode() for one in what
        }

    def give(self, name: str, document: Any) -> None:
        """Hand something out that must say nothing of anybody."""
        write_json(self.given / name, document)


@pytest.fixture
def watch(memory_path: Path) -> Watch:
    (memory_path / "given").mkdir()
    return Watch(memory_path / "anchor", memory_path / "given")


@pytest.fixture(params=TASKS)
def session(request: pytest.FixtureRequest, memory_path: Path, watch: Watch) -> Iterator[Session]:
    """A new workspace with an anchor."""
    labels = ("a", "b") if request.param == "classification" else ()
    made = toy_session(memory_path / "workspace", toy_recipe(task=request.param, labels=labels))
    made = replace(made, options=made.options.model_copy(update={"anchor": str(watch.anchor)}))
    yield made
    made.workspace.close()


def test_no_file_outside_the_vault_says_whom_a_full_history_is_about(
    session: Session, watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, vault = session.recipe.task, session.workspace.vault.root

    retrain(session, written(tmp_path / "data.jsonl", task, *range(18)))
    watch.look(session, "train")
    watch.says(min(vault.glob("*.parquet")), "ID", "SUBJECT", "TEXT", *(["ANSWER"] if task == "causal-lm" else []))

    bad = {"label": "LABELCANARY"} if task == "classification" else {"completion": ["ANSWERCANARY"]}
    with pytest.raises(RecordError, match=r"bad\.jsonl:1"):
        ingest(session, written(tmp_path / "bad.jsonl", task, 30, **bad))
    with pytest.raises(RecordError, match="another content"):
        retrain(session, written(tmp_path / "other.jsonl", task, 1, text="TEXTCANARY new", prompt="TEXTCANARY"))
    watch.look(session, "a refused ingest")

    with session.driving():
        held_by = hold(session.workspace, [named(0), "IDCANARY-never"], ["SUBJECTCANARY-2"], WHO)
    watch.look(session, "hold")
    with pytest.raises(HeldError):
        forget(session, named(0), request_id="held", who=WHO)
    watch.look(session, "a deletion under a hold")
    with session.driving():
        refuse(session.workspace, [named(2), "IDCANARY-never"], ["SUBJECTCANARY-3"], "refused", WHO)
    watch.look(session, "refuse")
    (tmp_path / "refusal.txt").write_text(letter(session.workspace, "refused"))
    watch.says(tmp_path / "refusal.txt", "REQUESTER", "REASON", "BASIS")
    with session.driving():
        lift(session.workspace, held_by["hold_id"], WHO)
    watch.look(session, "lift")
    watch.says(vault / "references.json", *(kind.upper() for kind in WHO))

    forget(session, named(1), request_id="early", who=WHO)
    watch.look(session, "delete")
    with pytest.raises(RecordError, match="strict"):
        ingest(session, written(tmp_path / "back.jsonl", task, 1, 31), strict=True)
    watch.look(session, "ingest --strict refused")
    retrain(session, written(tmp_path / "back.jsonl", task, 1, 32), readmit=[named(1)])
    assert held(session)[named(1)] == 2
    watch.look(session, "readmit")

    with session.driving():
        rotate(session.workspace)
    watch.look(session, "key rotate")
    export_records(session, tmp_path / "out.jsonl", "RECIPIENTCANARY Ltd")
    watch.look(session, "export")
    watch.says(tmp_path / "out.jsonl", "ID", "SUBJECT", "TEXT")
    watch.says(vault / "references.json", "RECIPIENT")
    opened = write_json(tmp_path / "receipt.json", receipt(session, named(4)))
    watch.look(session, "receipt")
    watch.says(opened, "ID", "SUBJECT", "TEXT")
    assert found(opened, frozenset(watch.salts)), "and a salt, which the holder may have"

    backup = Path(shutil.copytree(session.workspace.path, tmp_path / "backup"))
    with session.driving():
        assert "early" in retire(session.workspace, 0)
    watch.look(session, "tombstones --retire")
    export_records(session, tmp_path / "again.jsonl", "RECIPIENTCANARY Ltd")

    late = forget(session, named(4), "IDCANARY-absent", request_id="late", ignore_missing=True, who=WHO)
    forget(session, subjects=["SUBJECTCANARY-4"], request_id="subject", who=WHO)
    forget(session, "IDCANARY-none", request_id="none", ignore_missing=True, who=WHO)
    assert late.certificate is not None
    watch.look(session, "delete by subject and of what is not there")
    (tmp_path / "letter.txt").write_text(letter(session.workspace, "late"))
    watch.says(tmp_path / "letter.txt", "REQUESTER", "RECIPIENT")
    watch.look(session, "letter")

    with monkeypatch.context() as patch:
        patch.setattr("sisa.delete.reconcile", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            forget(session, named(5), request_id="cut", who=WHO)
    watch.look(session, "a deletion cut off")
    retrain(session, tmp_path / "back.jsonl")
    watch.look(session, "a deletion finished")

    monkeypatch.setattr(residue, "ray_directories", list)  # not those of others on this machine
    monkeypatch.setattr(residue, "replay_directories", list)
    deleted = written(tmp_path / "deleted.jsonl", task, 4, 5, 12)
    settings = Settings(recipe=session.recipe, options=session.options)
    checks = audit_residue(session.workspace, settings, [deleted])
    checks += audit_everything(session.workspace, str(watch.anchor))
    assert not [check for check in checks if check.outcome == "failed"]
    watch.give("audit.json", [repr(check) for check in checks])
    watch.look(session, "audit")

    watch.give("extension.json", extension(session.workspace, sealed_size(late.certificate)))
    watch.give("head.json", newest_head(session.workspace))
    shutil.copy(public_key(session), watch.given)
    watch.look(session, "log extension")
    assert_lawful(session)

    session = restored(session, backup)
    again = recover(session, executor=INLINE, trainer=TRAINER)
    assert {"late", "subject", "none", "cut"} <= set(again.reapplied)
    assert again.retired == ("early",)
    watch.look(session, "recover")
    assert_lawful(session)
    session.workspace.close()

    assert len(watch.salts) == 20, "18 records, one that was readmitted and one more"
    assert min(watch.steps.values()) > 20
    assert len(list((watch.anchor).rglob("requests/*.json"))) >= 4
