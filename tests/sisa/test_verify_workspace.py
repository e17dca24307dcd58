"""What a workspace says against a certificate: each of these checks can fail, alone where it can.

The file itself is beyond reproach in each attack: whoever has only that, and the key, believes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shards import kinds
from shards.law import check_law
from shards.lineage import lineage_digest
from shards.manifest import ModelManifest
from shards.records import make_content
from shards.vault import StoredRecord
from shards.workspace import WEIGHTS_FILE
from sisa.acceptance import accept
from sisa.certificate import certificate_path
from sisa.certificate import statement as state
from sisa.document import read_certificate
from sisa.export import register_derived
from sisa.ingest import Ingested, commit
from sisa.session import Session
from sisa.verify_workspace import verify_against
from tests.shards.test_law import (
    PLANNED,
    STORED,
    TENSORS,
    VAULT,
    hold_with,
    lose_a_part,
    sign_anew,
)
from tests.sisa.forging import (
    failed,
    forge,
    from_the_file,
    head_size,
    logged_anew,
    rest_on,
    signed,
    with_the_workspace,
)
from tests.sisa.trained import forget, retrain, trained
from tests.toy import safetensors_of, stored, toy_record

TOMBSTONES = "the request's tombstones hold"
CLAIMS = "its claims are the ledger's facts"
REBUILT = "the certificate, derived anew from what is stored, is the same"
HEADS = "heads on disk are the heads certified"
UNSEEN = "the deleted records are in no live training set"
RECORDS = "the surviving records hash to the served checkpoints' keys"


@pytest.fixture
def session(memory_path: Path) -> Iterator[Session]:
    """Twelve records trained, one of them deleted."""
    made = trained(memory_path / "workspace")
    forget(made, "r1", request_id="req")
    yield made
    made.workspace.close()


def move_on(session: Session) -> None:
    """Something happens after which a certificate is not derived anew any more."""
    register_derived(session, "predictions", b"answers", [head for head, _ in session.workspace.book.served()])


# -- what is stored is not what was certified -------------------------------------------------------


def leave_all_as_it_is(_: Session) -> None:
    """No harm."""


def store_other_tensors_for_a_head(session: Session) -> None:
    """The object is whole, and the fact that names it says the old tensors."""
    workspace = session.workspace
    _, made = workspace.book.served()[0]
    files = workspace.store.put(workspace.store.get(made.files) | {WEIGHTS_FILE: safetensors_of(bytes(32))})
    workspace.ledger.append([(kinds.CHECKPOINT, replace(made, files=files).to_json())])
    workspace.sweep()


def store_a_purged_checkpoint_again(session: Session) -> None:
    """Everything about it is as it was before the deletion, the files too."""
    workspace = session.workspace
    before = {key: (made, workspace.store.get(made.files)) for key, made in workspace.book.live().items()}
    forget(session, "r4", request_id="latest")
    gone = next(key for key in before if key not in workspace.book.live())
    stale, files = before[gone]
    workspace.store.put(files)
    workspace.ledger.append([(kinds.CHECKPOINT, stale.to_json())])


def hold_another_text(session: Session) -> None:
    """Vault and commitment agree on it; only what was trained on it does not."""
    keys, namespace = session.workspace.keys, session.workspace.pinned().namespace

    def other(one: StoredRecord) -> StoredRecord:
        record = replace(one.record, content=make_content({"text": "another", "label": "a"}))
        return StoredRecord.of(record, keys, namespace, truncated=False)

    hold_with(session.workspace, other)


def lose_a_part_of_the_vault(session: Session) -> None:
    move_on(session)
    lose_a_part(session.workspace)


@pytest.mark.parametrize(
    ("harm", "request_id", "names"),
    [
        (leave_all_as_it_is, "req", []),
        (move_on, "req", []),
        (store_other_tensors_for_a_head, "req", [HEADS, TENSORS]),
        (store_a_purged_checkpoint_again, "latest", [UNSEEN, STORED, PLANNED]),
        (hold_another_text, "req", [RECORDS]),
        (lose_a_part_of_the_vault, "req", [RECORDS, VAULT]),
    ],
)
def test_each_harm_to_what_is_stored_fails_its_check(
    session: Session, harm: Callable[[Session], None], request_id: str, names: list[str]
) -> None:
    harm(session)
    path = certificate_path(session.workspace, request_id)
    assert failed(with_the_workspace(path, session.workspace)) == names


# -- what the ledger says is not what was certified -------------------------------------------------


def forget_the_requests(session: Session) -> None:
    """The log is signed anew without any; it still names the certificates."""
    sign_anew(session.workspace, lambda facts: [fact for fact in facts if fact[0] != kinds.REQUEST])


def tell_the_same_at_another_time(session: Session) -> None:
    """The log is signed anew with the same facts in it, but for when they were logged."""
    sign_anew(session.workspace, list)
    move_on(session)


def certify_tensors_that_a_step_never_had(session: Session) -> None:
    """For a moment a manifest is served whose lineage digest covers them, and the honest one again."""
    workspace, lie = session.workspace, signed(session.workspace, "req")
    said, manifest = lie["predicate"], session.workspace.book.manifest()
    assert manifest is not None
    lineage = next(lineage for lineage in said["lineages"] if len(lineage["links"]) > 1)
    lineage["links"][0]["tensors"] = "0" * 64
    end = ""
    for link in lineage["links"]:
        end = lineage_digest(end, link["key"], link["tensors"], link["root"], said["environments"][link["environment"]])
    heads = [replace(head, lineage=end) if head.shard == lineage["shard"] else head for head in manifest.heads]
    said["after"] = ModelManifest.of(manifest.generation + 1, manifest.recipe, heads).to_json()
    rest_on(workspace, lie, [(kinds.MANIFEST, said["after"])], instead_of=[kinds.MANIFEST])
    forge(workspace, lie, "req", head_size(lie))
    honest = replace(manifest, generation=manifest.generation + 2)
    workspace.ledger.append([(kinds.MANIFEST, honest.to_json())])


@pytest.mark.parametrize(
    ("harm", "names"),
    [
        (forget_the_requests, [TOMBSTONES]),
        (tell_the_same_at_another_time, [CLAIMS]),
        (certify_tensors_that_a_step_never_had, [CLAIMS]),
    ],
)
def test_each_harm_to_the_ledger_fails_its_check(
    session: Session, harm: Callable[[Session], None], names: list[str]
) -> None:
    harm(session)
    path = certificate_path(session.workspace, "req")
    assert failed(from_the_file(path, session.workspace)) == []
    assert failed(with_the_workspace(path, session.workspace)) == names


def test_a_statement_of_absence_whose_request_is_not_in_the_ledger_fails(session: Session) -> None:
    """It has no tombstone to be missed."""
    accept(session, [], [], [session.workspace.tag("nobody").hex()], "req-2")
    retrain(session)
    forget_the_requests(session)
    path = certificate_path(session.workspace, "req-2")
    assert failed(with_the_workspace(path, session.workspace)) == [TOMBSTONES]


def test_absence_from_a_release_that_was_superseded_before_the_request_fails(session: Session) -> None:
    """What is served may hold the record by now; every proof is of what was served before."""
    workspace, never = session.workspace, session.workspace.tag("nobody").hex()
    accept(session, [], [], [never], "early")
    retrain(session)
    superseded = signed(workspace, "early")
    commit(session, stored(session, map(toy_record, range(12, 24))), Ingested(12, 0, 0, 0))
    retrain(session)
    request = accept(session, [], [], [never], "late")
    lie = state(workspace, request, check_law(workspace), len(workspace.ledger.since(0)))
    said, old = lie["predicate"], superseded["predicate"]
    for name in ("after", "kept", "retrained", "lineages", "environments", "absence"):
        said[name] = old[name]
    lie["subject"] = superseded["subject"]
    released = [fact["seq"] for fact in old["log"]["facts"] if fact["kind"] == kinds.MANIFEST]
    kept = [fact["seq"] for fact in said["log"]["facts"] if fact["kind"] != kinds.MANIFEST]
    logged_anew(workspace, lie, [*kept, *released])
    path = forge(workspace, lie, "late", head_size(lie))
    assert failed(from_the_file(path, workspace)) == []
    assert failed(with_the_workspace(path, workspace)) == [CLAIMS, REBUILT]
    move_on(session)
    assert failed(with_the_workspace(path, workspace)) == [CLAIMS]


def test_a_tombstone_that_is_named_and_not_there_is_told(session: Session) -> None:
    """Such a file contradicts itself too; here only the workspace is asked."""
    document = read_certificate(certificate_path(session.workspace, "req").read_bytes())
    document.predicate["request"]["targets"]["tombstones"].append("ab" * 32)
    checks = verify_against(document, session.workspace.path)
    assert failed(checks) == [TOMBSTONES, CLAIMS, REBUILT]
    assert next(check.detail for check in checks if check.name == TOMBSTONES) == "tombstone abababababab is gone"
