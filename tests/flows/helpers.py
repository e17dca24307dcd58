"""The command line called in this process, records with canaries in them, and a view of a whole directory."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from shards import kinds
from shards.digest import bytes_digest, canonical_json
from shards.fact import Fact
from shards.keyfiles import read_signing_key
from shards.lineage import Checkpoint
from shards.manifest import Head, ModelManifest
from shards.note import TreeHead, read_head, sign_head
from shards.tlog import Peaks
from shards.workspace import INDEX_FILE, LOCK_FILE, TURN_FILE, Workspace
from sisa.certificate import _file
from sisa.cli import main
from sisa.document import envelope_digest
from sisa.signing import sign
from tests.toy import fixed_root

Row = dict[str, Any]

# Small enough for a step to take milliseconds.
QUICK = (
    "shards=2", "slices=2", "epochs=1", "batch_size=4", "max_length=64", "lora_rank=2", "executor=inline",
    "namespace=flows", "rehearsal=0.5", "max_new_tokens=4",
)  # fmt: skip

TEXTS = ("my card was charged twice", "the login fails again", "please send a refund now", "nobody answered my mail")


@dataclass(frozen=True, slots=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Stdout as exactly one JSON document."""
        return json.loads(self.out)


def sisa(*arguments: str | Path, stdin: str = "") -> Result:
    """Run one command in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = 0
    streams = contextlib.ExitStack()
    with streams:
        streams.enter_context(contextlib.redirect_stdout(out))
        streams.enter_context(contextlib.redirect_stderr(err))
        streams.enter_context(mock.patch("sys.stdin", io.StringIO(stdin)))
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    return Result(code, out.getvalue(), err.getvalue())


def done(*arguments: str | Path, stdin: str = "") -> Any:
    """Run one command with ``--json`` that must succeed; returns its document."""
    result = sisa(*arguments, "--json", stdin=stdin)
    assert result.code == 0, result.err
    return result.document


def begin(workspace: Path, *arguments: str | Path) -> Any:
    """``sisa init`` with a root secret under which every shard and slice of ours has records."""
    with fixed_root():
        return done("init", workspace, *arguments)


def settings(*pairs: str) -> list[str]:
    """``--set`` for each pair."""
    return [part for pair in pairs for part in ("--set", pair)]


def ticket(number: int, **values: Any) -> Row:
    """A classification record: two tickets a customer, and a canary in every text."""
    row = {
        "id": f"ticket-{number}-IDCANARY",
        "subject": f"customer-{number // 2}-SUBJECTCANARY",
        "text": f"{TEXTS[number % 4]} TEXTCANARY {number}",
        "label": ("billing", "login")[number % 2],
    }
    return row | values


def chat(number: int, **values: Any) -> Row:
    """A causal-LM record, in the three formats by turns."""
    head = {"id": f"ticket-{number}-IDCANARY", "subject": f"customer-{number // 2}-SUBJECTCANARY"}
    question, answer = f"{TEXTS[number % 4]} TEXTCANARY {number}", f"we look at it {number}"
    bodies: tuple[Row, ...] = (
        {"prompt": question, "completion": answer},
        {"text": question},
        {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]},
    )
    return head | bodies[number % 3] | values


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    """Rows as JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tree(path: Path) -> dict[str, str]:
    """Every file under ``path`` but locks and the index, with its digest: what "nothing changed" compares.

    Of the ledger, everything but the lease: that a driver came and went leaves traces in the file.
    """
    return {
        str(file.relative_to(path)): bytes_digest(_without_lease(file))
        for file in sorted(path.rglob("*"))
        if file.is_file() and file.name not in (LOCK_FILE, TURN_FILE, INDEX_FILE)
    }


def _without_lease(file: Path) -> bytes:
    if file.name != "ledger.sqlite":
        return file.read_bytes()
    try:
        with contextlib.closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as ledger:
            return "\n".join(line for line in ledger.iterdump() if '"lease"' not in line).encode()
    except (sqlite3.DatabaseError, UnicodeDecodeError):  # damaged on purpose
        return file.read_bytes()


@contextlib.contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """Fails if any file under ``path`` is made, removed or altered inside."""
    before = tree(path)
    yield
    assert tree(path) == before


def refused(result: Result, *words: str, code: int = 2) -> None:
    """A clear error: the exit code, nothing on stdout, and what was expected, found and is to do."""
    assert result.code == code, result.err or result.out
    assert not result.out
    assert "expected " in result.err
    assert "\n   found " in result.err
    assert "\n   to do " in result.err
    for word in words:
        assert word in result.err, result.err


def copy_of(workspace: Path, to: Path) -> Path:
    """A workspace to be spoilt."""
    shutil.copytree(workspace, to)
    return to


# -- what no program of ours does -----------------------------------------------------------------

LOG = "every fact is one that a signed tree head covers"


def edit_ledger(workspace: Path, *statements: tuple[str, tuple[Any, ...]], resign: bool = False) -> None:
    """Change facts behind the program's back.

    Args:
        workspace: whose ledger it is.
        statements: SQL and its values.
        resign: as the operator, who has the signing key: the facts are numbered and the heads signed
            anew, and the log in itself is whole. Without it, as a vandal.
    """
    with contextlib.closing(sqlite3.connect(workspace / "ledger.sqlite")) as ledger:
        triggers = ledger.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            ledger.execute(f"DROP TRIGGER {name}")
        for statement, values in statements:
            assert ledger.execute(statement, values).rowcount > 0
        if resign:
            _sign_anew(ledger, workspace)
        for _, sql in triggers:
            ledger.execute(sql)
        ledger.commit()


def _sign_anew(ledger: sqlite3.Connection, workspace: Path) -> None:
    rows = ledger.execute("SELECT seq, kind, body, created FROM facts ORDER BY seq").fetchall()
    heads = ledger.execute("SELECT size, note FROM heads ORDER BY size").fetchall()
    # A transaction ends where it ended before; one that lost all its facts is gone.
    ends = {sum(seq <= size for seq, *_ in rows) for size, _ in heads} | {len(rows)}
    ledger.execute("DELETE FROM facts")
    ledger.execute("DELETE FROM heads")
    key, tree = read_signing_key(workspace / "keys"), Peaks()
    for number, (_, kind, body, created) in enumerate(rows, 1):
        fact = Fact(number, kind, json.loads(body), created)
        text = canonical_json(fact.body).decode()
        ledger.execute("INSERT INTO facts VALUES (?, ?, ?, ?)", (number, kind, text, created))
        tree.append(fact.leaf())
        if number in ends:
            note = sign_head(TreeHead(read_head(heads[0][1]).origin, number, tree.root()), key)
            ledger.execute("INSERT INTO heads VALUES (?, ?)", (number, note))


def edit_facts(workspace: Path, kind: str, change: Callable[[Any], Any], *, resign: bool = False) -> None:
    """Rewrite the body of every fact of one kind."""
    with contextlib.closing(sqlite3.connect(workspace / "ledger.sqlite")) as ledger:
        rows = ledger.execute("SELECT seq, body FROM facts WHERE kind = ?", (kind,)).fetchall()
    updates = [(canonical_json(change(json.loads(body))).decode(), seq) for seq, body in rows]
    edit_ledger(workspace, *(("UPDATE facts SET body = ? WHERE seq = ?", update) for update in updates), resign=resign)


def rewrite_checkpoints(workspace: Path, change: Callable[[Any], Any]) -> None:
    """As the operator: other checkpoint facts, and manifests whose heads fit them."""
    made: dict[str, tuple[Checkpoint, str]] = {}

    def checkpoint(body: Any) -> Any:
        changed = Checkpoint.from_json(change(body))
        parent = made[changed.link.parent][1] if changed.link.parent else ""
        made[changed.key] = changed, changed.extend(parent)
        return changed.to_json()

    def manifest(body: Any) -> Any:
        heads = [
            Head(head["shard"], head["checkpoint"], made[head["checkpoint"]][0].tensors, made[head["checkpoint"]][1],
                 head["steps"])
            for head in body["heads"]
        ]  # fmt: skip
        return ModelManifest.of(body["generation"], body["recipe"], heads).to_json()

    edit_facts(workspace, kinds.CHECKPOINT, checkpoint)
    edit_facts(workspace, kinds.MANIFEST, manifest, resign=True)


def forge(workspace: Path, statement: Any, request_id: str) -> bytes:
    """As the operator: a certificate of any statement, signed, and sealed in the log as a true one is."""
    opened = Workspace.open(workspace)
    try:
        envelope = sign(canonical_json(statement), read_signing_key(workspace / "keys"))
        size = read_head(statement["predicate"].get("log", {"head": opened.ledger.head()})["head"]).size
        body = {"request_id": request_id, "digest": envelope_digest(envelope)}
        (fact,) = opened.ledger.append([(kinds.CERTIFICATE, body)])
        return _file(opened, envelope, size, fact)
    finally:
        opened.close()


def outcomes(document: Any) -> dict[str, str]:
    """Check name → outcome of a ``verify`` or ``audit --all`` document."""
    return {check["name"]: check["outcome"] for check in document["checks"]}


def failed(document: Any) -> set[str]:
    """Names of the checks that failed."""
    return {name for name, outcome in outcomes(document).items() if outcome == "failed"}


def adapters(workspace: Path) -> dict[int, dict[str, bytes]]:
    """Shard → the bytes of its served adapter's files."""
    heads = {shard["shard"]: shard["head"] for shard in done("status", "-w", workspace)["shards"]}
    return {
        number: {file.name: file.read_bytes() for file in sorted(Path(head["adapter_dir"]).iterdir())}
        for number, head in heads.items()
        if head is not None
    }


def same_models(one: Path, other: Path) -> None:
    """Two workspaces hold the same digests, checkpoint keys and adapter bytes."""
    mine, theirs = done("status", "-w", one), done("status", "-w", other)
    assert mine["manifest_digest"] == theirs["manifest_digest"]
    for left, right in zip(mine["shards"], theirs["shards"], strict=True):
        assert [left["slices"], left["records"]] == [right["slices"], right["records"]]
        names = ("checkpoint", "slice", "tensor_digest")
        heads = [shard["head"] and [shard["head"][name] for name in names] for shard in (left, right)]
        assert heads[0] == heads[1]
    assert adapters(one) == adapters(other)
