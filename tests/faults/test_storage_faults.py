"""Training and forgetting on a shared directory and on a bucket that misbehaves end as they do here.

The bucket is a real S3 server in a process of its own, struck between the network and its application.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pyarrow.fs import FileSelector, FileSystem, FileType

from shards import remote
from shards.digest import tensor_digest
from shards.errors import InputError, IntegrityError, StorageError
from shards.law import check_law
from shards.place import Place
from shards.publication import announced
from shards.remote import INDEX
from shards.vault import vault_digest
from shards.workspace import CONFIG_FILE, WEIGHTS_FILE, Workspace
from sisa.certificate import NOT_CLAIMED_OF_STORAGE, certificate_path
from sisa.delete import delete
from sisa.document import read_certificate
from sisa.session import Session
from sisa.status import status
from sisa.train import train
from sisa.verify_workspace import verify_against
from tests.canaries import found
from tests.flows.fixtures import Site, classification
from tests.flows.helpers import QUICK, begin, done, refused, settings, sisa, ticket, write_jsonl
from tests.s3 import S3Server, s3_server
from tests.sisa.trained import assert_lawful, forget, reopened, retrain
from tests.toy import ToyTrainer, toy_recipe, toy_session

__all__ = ["classification"]

CANARIES = frozenset({b"CANARY-TEXT-01", b"CANARY-TEXT-04", b"CANARY-ID-01", b"CANARY-ID-04"})
DELETED = ("CANARY-ID-01", "CANARY-ID-04")
FAULTS: dict[str, dict[str, int]] = {
    "well behaved": {},
    "503": {"refuse": 40},
    "slow": {"delay": 40},
    "lost answers": {"lose": 50},
    "interrupted uploads": {"cut": 9},
    "half stored": {"shorten": 11},
    "stale listings": {"stale": 1},
}
SLOW = ("well behaved", "slow", "lost answers", "interrupted uploads", "half stored", "stale listings")
PATIENCE = 12  # runs until a command must have come through


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    """One server for all tests of this file."""
    with s3_server() as server:
        server.make_bucket("bucket")
        yield server


@pytest.fixture(autouse=True)
def behaving(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test ordered ends with it."""
    yield
    if "s3" in request.fixturenames:
        request.getfixturevalue("s3").misbehave()


@dataclass(frozen=True, slots=True)
class Ended:
    """What must be equal wherever records and checkpoints lie."""

    manifest: str
    tensors: dict[str, str]
    survivors: str


def write_data(path: Path) -> Path:
    """Twelve records; what is to be deleted can be recognised."""
    lines = [
        {"id": f"CANARY-ID-{n:02}", "subject": f"s{n // 3}", "text": f"CANARY-TEXT-{n:02}.", "label": "a"}
        for n in range(12)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def session_at(path: Path, storage: str | None) -> Session:
    """A new toy workspace that keeps records and checkpoints in ``storage``."""
    session = toy_session(path, toy_recipe())
    session.workspace.close()
    (path / CONFIG_FILE).write_text(json.dumps({"storage": storage}))
    return replace(session, workspace=Workspace.open(path))


def persistently(act: Callable[[], object]) -> int:
    """Run a command again while the storage hinders it, as its message says; returns how often it was hindered."""
    hindrances: list[str] = []
    while len(hindrances) < PATIENCE:
        try:
            act()
        except StorageError as error:
            hindrances.append(str(error))
        else:
            return len(hindrances)
    raise AssertionError("\n".join(hindrances))


def ended(session: Session) -> Ended:
    workspace = session.workspace
    manifest = workspace.book.manifest()
    assert manifest is not None
    live = workspace.book.live()
    assert workspace.intact().keys() == live.keys()
    return Ended(
        manifest.digest, {key: made.tensors for key, made in live.items()}, vault_digest(workspace.survivors())
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Ended:
    """How it ends in the workspace's own directory."""
    directory = tmp_path_factory.mktemp("undisturbed")
    session = session_at(directory / "w", None)
    try:
        retrain(session, write_data(directory / "data.jsonl"))
        forget(session, *DELETED, request_id="case")
        return ended(session)
    finally:
        session.workspace.close()


def top(session: Session) -> Place:
    """What the workspace has in its storage."""
    place = session.workspace.place()
    assert place is not None
    return place


def download(session: Session, into: Path) -> list[Path]:
    """Every object of the bucket below the workspace's prefix, looked at without the code under test."""
    filesystem, base = FileSystem.from_uri(top(session).where())
    infos = filesystem.get_file_info(FileSelector(base, recursive=True, allow_not_found=True))
    files = []
    for number, info in enumerate(info for info in infos if info.type == FileType.File):
        name = info.path.removeprefix(f"{base}/").replace("/", "_")
        (into / f"{number}-{name}").write_bytes(filesystem.open_input_stream(info.path).read())
        files.append(into / f"{number}-{name}")
    return files


def canaries_in(files: list[Path]) -> set[bytes]:
    return set[bytes]().union(*(found(file, CANARIES) for file in files))


def local_files(session: Session) -> list[Path]:
    return [path for path in session.workspace.path.rglob("*") if path.is_file()]


def verified(session: Session) -> dict[str, set[str]]:
    """Outcome → names of the checks of the certificate against the workspace."""
    path = certificate_path(session.workspace, "case")
    document = read_certificate(path.read_bytes())
    checks = verify_against(document, session.workspace.path)
    return {outcome: {c.name for c in checks if c.outcome == outcome} for outcome in ("failed", "passed")}


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in FAULTS]
)
def test_a_history_on_a_bucket_that_misbehaves_ends_as_it_does_here(
    fault: str, s3: S3Server, undisturbed: Ended, tmp_path: Path
) -> None:
    session = session_at(tmp_path / "w", s3.uri(f"bucket/{uuid.uuid4().hex}"))
    data = write_data(tmp_path / "data.jsonl")
    try:
        s3.misbehave(**FAULTS[fault])
        persistently(lambda: retrain(session, data))
        struck = s3.struck()
        s3.misbehave()
        (tmp_path / "before").mkdir()
        assert canaries_in(download(session, tmp_path / "before")) == CANARIES
        s3.misbehave(**FAULTS[fault])
        persistently(lambda: forget(session, *DELETED, request_id="case"))
        later = s3.struck()
        assert all(counts.get(name, 0) > 0 for counts in (struck, later) for name in FAULTS[fault]), (struck, later)
        s3.misbehave()
        assert ended(session) == undisturbed
        session = reopened(session)
        session.workspace.sweep()
        assert_lawful(session)
        assert verified(session)["failed"] == set()
        (tmp_path / "after").mkdir()
        left = download(session, tmp_path / "after")
        assert len(left) > 10
        assert canaries_in(left) == set()
        assert canaries_in(local_files(session)) == set()
        assert not list((session.workspace.path / "vault").glob("*.parquet"))
        assert not list((session.workspace.path / "store").iterdir())
    finally:
        session.workspace.close()


@pytest.mark.usefixtures("ray_cluster")
def test_what_workers_on_ray_made_the_driver_uploads(s3: S3Server, undisturbed: Ended, tmp_path: Path) -> None:
    """They read records and parents from the bucket and write nothing to it."""
    from orchestration.ray_executor import RayExecutor

    credentials = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    executor = RayExecutor(2, runtime_env={"env_vars": credentials})
    session = session_at(tmp_path / "w", s3.uri(f"bucket/{uuid.uuid4().hex}"))
    try:
        s3.misbehave(refuse=60)
        train(session, [write_data(tmp_path / "data.jsonl")], executor=executor, trainer=ToyTrainer())
        delete(session, DELETED, request_id="case", executor=executor, trainer=ToyTrainer())
        assert ended(session) == undisturbed
        assert_lawful(session)
        assert not list((session.workspace.path / "store").iterdir())
    finally:
        session.workspace.close()


def test_a_deletion_is_announced_when_it_is_accepted(s3: S3Server, tmp_path: Path) -> None:
    """Readers without the ledger are told at once, and not when the training ends."""
    session = session_at(tmp_path / "w", s3.uri(f"bucket/{uuid.uuid4().hex}"))
    try:
        retrain(session, write_data(tmp_path / "data.jsonl"))
        before, _ = announced(top(session))
        delete(session, DELETED[:1], request_id="case", queue=True)
        after, _ = announced(top(session))
        assert after.generation == before.generation + 1
        assert after == session.workspace.book.manifest()
    finally:
        session.workspace.close()


def test_a_history_in_a_shared_directory_ends_as_it_does_in_the_workspace(undisturbed: Ended, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    session = session_at(tmp_path / "w", str(tmp_path / "shared"))
    try:
        retrain(session, write_data(tmp_path / "data.jsonl"))
        shared = [path for path in (tmp_path / "shared").rglob("*") if path.is_file()]
        assert canaries_in(shared) == CANARIES
        assert canaries_in(local_files(session)) == set()
        forget(session, *DELETED, request_id="case")
        assert ended(session) == undisturbed
        session = reopened(session)
        assert_lawful(session)
        assert verified(session)["failed"] == set()
        assert canaries_in([path for path in (tmp_path / "shared").rglob("*") if path.is_file()]) == set()
        assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o755, "the location itself is its owner's affair"
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "shared").glob("*/*") if path.is_dir()} == {0o700}
    finally:
        session.workspace.close()


def test_a_storage_that_is_not_mounted_is_told_before_anything_is_done(tmp_path: Path) -> None:
    session = session_at(tmp_path / "w", str(tmp_path / "not mounted"))
    try:
        with pytest.raises(StorageError, match="make a place for records and checkpoints"):
            retrain(session, write_data(tmp_path / "data.jsonl"))
        assert session.workspace.book.pinned() is None
        assert not (tmp_path / "not mounted").exists()
    finally:
        session.workspace.close()


def test_two_workspaces_in_one_storage_leave_each_other_alone(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    one, two = (session_at(tmp_path / name, str(tmp_path / "shared")) for name in ("one", "two"))
    try:
        for session in (one, two):
            retrain(session, write_data(tmp_path / "data.jsonl"))
        forget(one, *DELETED, request_id="case")
        one.workspace.sweep()
        assert len(two.workspace.survivors()) == 12
        assert two.workspace.intact().keys() == two.workspace.book.live().keys()
    finally:
        one.workspace.close()
        two.workspace.close()


def test_an_older_copy_of_the_workspace_is_refused_before_it_sweeps_what_the_newer_one_stored(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    session = session_at(tmp_path / "w", str(tmp_path / "shared"))
    data = write_data(tmp_path / "data.jsonl")
    shutil.copytree(tmp_path / "w", tmp_path / "unused")
    retrain(session, data)
    shutil.copytree(tmp_path / "w", tmp_path / "older")
    forget(session, *DELETED, request_id="case")
    before = {path for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    for name in ("unused", "older"):
        copy = replace(session, workspace=Workspace.open(tmp_path / name))
        with pytest.raises(IntegrityError, match="drive the newer workspace"):
            retrain(copy, data)
        copy.workspace.close()
    assert {path for path in (tmp_path / "shared").rglob("*") if path.is_file()} == before
    assert_lawful(session)
    session.workspace.close()


def test_a_storage_that_was_taken_away_or_changed_destroys_nothing(tmp_path: Path) -> None:
    for name in ("shared", "other"):
        (tmp_path / name).mkdir()
    session = session_at(tmp_path / "w", str(tmp_path / "shared"))
    data = write_data(tmp_path / "data.jsonl")
    retrain(session, data)
    before = {path: path.read_bytes() for path in (tmp_path / "shared").rglob("*") if path.is_file()}
    for storage in (str(tmp_path / "other"), None):
        (session.workspace.path / CONFIG_FILE).write_text(json.dumps({"storage": storage}))
        session = reopened(session)
        with pytest.raises(IntegrityError, match="put `storage` in"):
            retrain(session, data)
    assert {path: path.read_bytes() for path in before} == before
    (session.workspace.path / CONFIG_FILE).write_text(json.dumps({"storage": str(tmp_path / "shared")}))
    session = reopened(session)
    assert retrain(session, data).added == 0
    session.workspace.close()


def test_a_workspace_that_was_in_itself_is_not_swept_when_a_storage_is_named(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    session = session_at(tmp_path / "w", None)
    data = write_data(tmp_path / "data.jsonl")
    retrain(session, data)
    before = set(local_files(session))
    (session.workspace.path / CONFIG_FILE).write_text(json.dumps({"storage": str(tmp_path / "shared")}))
    session = reopened(session)
    with pytest.raises(IntegrityError):
        retrain(session, data)
    assert set(local_files(session)) == before
    session.workspace.close()


@pytest.mark.slow
def test_real_adapters_on_a_bucket_that_refuses_are_those_of_the_workspace(
    s3: S3Server, tiny_bert: Path, tmp_path: Path
) -> None:
    rows = [ticket(number) for number in range(16)]
    data = write_jsonl(tmp_path / "records.jsonl", rows)
    deleted = write_jsonl(tmp_path / "deleted.jsonl", rows[3:4])
    s3.misbehave(refuse=60)
    told = {}
    for name, storage in (("here", []), ("there", [f"storage={s3.uri('bucket/torch')}"])):
        workspace, certificate = tmp_path / name, tmp_path / f"{name}.json"
        arguments = ("--task", "classification", "--base-model", tiny_bert, "--data", data)
        begin(workspace, *arguments, *settings(*QUICK, *storage))
        done("train", "-w", workspace)
        done("delete", "-w", workspace, "--id", rows[3]["id"], "--certificate", certificate)
        checked = done("verify", certificate, "-w", workspace, "--replay", "affected")
        assert checked["failed"] == 0
        assert [check["outcome"] for check in checked["checks"] if check["level"] == "V3"] == ["passed"]
        answer = sisa("predict", "-w", workspace, "--text", "where is my parcel?").out
        document = done("status", "-w", workspace)
        tensors = [shard["head"]["tensor_digest"] for shard in document["shards"]]
        told[name] = (document["manifest_digest"], tensors, answer)
    assert told["here"] == told["there"]
    assert s3.struck()["refuse"] > 0
    residue = done("audit", "-w", tmp_path / "there", "--residue", "--records", deleted)
    unsearched = {check["name"] for check in residue["checks"] if check["outcome"] == "not_checked"}
    assert len([name for name in unsearched if name.startswith("what lies at s3://bucket/torch/sisa-log-")]) == 2
    assert {check["outcome"] for check in residue["checks"]} == {"passed", "not_checked"}


def test_a_command_cannot_be_sent_to_another_storage(tmp_path: Path, classification: Site) -> None:
    result = sisa("train", "-w", classification.path, "--set", f"storage={tmp_path}")
    refused(result, "sisa.yaml", "before the first ingest")


@pytest.mark.parametrize("location", ["relative/path", "s3://user:secret@bucket/x"])
def test_a_location_that_is_none_is_refused_by_init(location: str, tmp_path: Path, tiny_bert: Path) -> None:
    data = write_jsonl(tmp_path / "records.jsonl", [ticket(number) for number in range(4)])
    arguments = ("--task", "classification", "--base-model", tiny_bert, "--data", data)
    refused(sisa("init", tmp_path / "w", *arguments, "--set", f"storage={location}"), "storage")
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("said", ["storage: 3", "storage: relative", "storage: [", "storage: s3://[/x"])
def test_a_configuration_without_a_location_for_its_storage_is_refused(said: str, tmp_path: Path) -> None:
    session = session_at(tmp_path / "w", None)
    session.workspace.close()
    (tmp_path / "w" / CONFIG_FILE).write_text(said)
    with pytest.raises(InputError):
        Workspace.open(tmp_path / "w")
    (tmp_path / "w" / CONFIG_FILE).write_text(f"storage: {tmp_path / 'w' / 'inside'}")
    with pytest.raises(InputError, match="outside the workspace"):
        Workspace.open(tmp_path / "w")


# -- on a bucket -----------------------------------------------------------------------------------


@pytest.fixture
def bucket_session(s3: S3Server, tmp_path: Path) -> Iterator[Session]:
    """A workspace trained on a bucket."""
    session = session_at(tmp_path / "w", s3.uri(f"bucket/{uuid.uuid4().hex}"))
    retrain(session, write_data(tmp_path / "data.jsonl"))
    yield session
    session.workspace.close()


def test_whoever_opens_the_workspace_finds_its_storage_and_status_says_where(
    bucket_session: Session, undisturbed: Ended
) -> None:
    opened = Workspace.open(bucket_session.workspace.path)
    try:
        assert len(opened.survivors()) == 12
    finally:
        opened.close()
    told = status(bucket_session)
    heads = [shard["head"] for shard in told["shards"]]
    assert told["storage_bytes"] > 0
    for head in heads:
        assert head["adapter_dir"].startswith("s3://bucket/")
        filesystem, path = FileSystem.from_uri(head["adapter_dir"])
        assert tensor_digest(filesystem.open_input_stream(f"{path}/{WEIGHTS_FILE}").read()) == head["tensor_digest"]


def test_what_is_served_can_be_read_from_the_storage_without_the_ledger(bucket_session: Session) -> None:
    place = top(bucket_session)
    manifest, adapters = announced(place)
    assert manifest == bucket_session.workspace.book.manifest()
    assert adapters.keys() == {head.checkpoint for head in manifest.heads}
    for adapter in adapters.values():
        assert place.read(f"{adapter}/{WEIGHTS_FILE}")
    forget(bucket_session, *DELETED, request_id="case")
    later, _ = announced(place)
    assert later == bucket_session.workspace.book.manifest() != manifest


def test_a_manifest_that_a_killed_driver_did_not_announce_is_announced_by_the_next(bucket_session: Session) -> None:
    place = top(bucket_session)
    place.replace("manifest.json", b"{}")
    with pytest.raises(IntegrityError, match="a damaged one"):
        announced(place)
    with bucket_session.driving():
        assert announced(place)[0] == bucket_session.workspace.book.manifest()


def test_a_certificate_says_what_a_storage_service_may_keep(bucket_session: Session) -> None:
    forget(bucket_session, *DELETED, request_id="case")
    path = certificate_path(bucket_session.workspace, "case")
    said = read_certificate(path.read_bytes()).predicate["not_claimed"]
    assert set(NOT_CLAIMED_OF_STORAGE) <= set(said)


def test_a_missing_or_damaged_object_is_seen_and_made_again(bucket_session: Session) -> None:
    workspace = bucket_session.workspace
    damaged, missing, unlisted = sorted(made.files for made in workspace.book.live().values())[:3]
    place = workspace.store.place
    place.replace(f"{damaged}/{WEIGHTS_FILE}", b"x")
    place.remove(missing)
    place.remove(f"{unlisted}/{INDEX}")
    session = reopened(bucket_session)
    workspace = session.workspace
    assert [workspace.store.intact(name) for name in (damaged, missing, unlisted)] == [False] * 3
    assert {check.name for check in check_law(workspace) if check.outcome == "failed"} >= {
        "the store holds what the ledger says"
    }
    retrain(session)
    assert workspace.intact().keys() == workspace.book.live().keys()
    assert_lawful(session)
    workspace.close()


def test_a_damaged_part_is_seen_by_the_next_process_and_by_the_law_of_this_one(bucket_session: Session) -> None:
    workspace = bucket_session.workspace
    part = workspace.parts()[0]
    workspace.survivors()
    workspace.vault.place.replace(part.file, b"x")
    workspace.survivors()  # what was verified once in a process is not read again
    assert {check.name for check in check_law(workspace) if check.outcome == "failed"} == {
        "the vault holds what the ledger says"
    }
    with pytest.raises(IntegrityError, match="other bytes"):
        reopened(bucket_session).workspace.survivors()


def test_what_a_purge_destroys_is_gone_from_memory_too(bucket_session: Session, s3: S3Server) -> None:
    workspace = bucket_session.workspace
    reader = replace(bucket_session, workspace=Workspace.open(workspace.path)).workspace
    try:
        live = {made.files for made in workspace.book.live().values()}
        for opened in (workspace, reader):
            opened.survivors()
            for name in live:
                opened.store.get(name)
        forget(bucket_session, *DELETED, request_id="case")
        purged = live - {made.files for made in workspace.book.live().values()}
        assert purged
        for name in purged:
            with pytest.raises(IntegrityError):
                workspace.store.get(name)
        reader.survivors()
        for opened in (workspace, reader):
            held = [one.record.id for records in opened.vault._decoded.values() for one in records]
            assert sorted(held) == sorted(one.record.id for one in workspace.survivors())
    finally:
        reader.close()


def test_small_objects_and_parts_are_read_once_a_process(bucket_session: Session, s3: S3Server) -> None:
    session = reopened(bucket_session)
    workspace = session.workspace
    seen = [made.seen for made in workspace.book.live().values()]

    def look() -> int:
        s3.misbehave()
        workspace.survivors()
        for name in seen:
            workspace.store.get(name)
        return s3.struck().get("requests", 0)

    assert look() > 0
    assert look() == 0
    workspace.close()


def test_a_listing_that_shows_what_is_gone_makes_no_stray(bucket_session: Session, s3: S3Server) -> None:
    workspace = bucket_session.workspace
    stray = workspace.store.put({"a": b"1"})
    place = workspace.store.place
    s3.misbehave()
    assert stray in place.names()
    s3.misbehave(stale=1)
    assert stray in place.names()
    workspace.store.purge(stray)
    assert stray in place.names(), "this listing is out of date"
    law = {check.name: check.outcome for check in check_law(workspace)}
    assert law["nothing is stored that no fact names"] == "passed"


def test_what_a_listing_does_not_show_yet_is_read_all_the_same(bucket_session: Session, s3: S3Server) -> None:
    place = bucket_session.workspace.store.place
    s3.misbehave(stale=1)
    place.names()
    name = bucket_session.workspace.store.put({"a": b"1"})
    assert name not in place.names(), "this listing is out of date"
    assert bucket_session.workspace.store.intact(name)


def test_a_purge_removes_what_only_the_list_of_files_names(bucket_session: Session, s3: S3Server) -> None:
    store = bucket_session.workspace.store
    s3.misbehave(stale=1)
    store.place.names()
    name = store.put({"a": b"CANARY", "b": b"2"})
    store.purge(name)
    s3.misbehave()
    assert not store.holds(name)
    assert name not in store.place.names()


def test_small_files_go_up_in_one_request_of_which_an_interruption_leaves_nothing(
    bucket_session: Session, s3: S3Server
) -> None:
    s3.misbehave()
    bucket_session.workspace.store.place.write("a", os.urandom(9_000_000))
    assert s3.struck().get("multipart", 0) == 0
    bucket_session.workspace.store.place.write("b", os.urandom(11_000_000))
    assert s3.struck()["multipart"] > 0


UPLOADER = """
import sys
from pathlib import Path
from shards.workspace import Workspace
workspace = Workspace.open(Path(sys.argv[1]))
print("begins", flush=True)
while True:
    workspace.store.put({"weights": bytes(9_000_000), "b": b"1"})
    workspace.store.purge(next(iter(workspace.store.objects() - workspace.referenced_objects())))
"""


def test_an_upload_whose_process_is_killed_leaves_only_what_is_swept(bucket_session: Session, s3: S3Server) -> None:
    workspace = bucket_session.workspace
    s3.misbehave(delay=1)
    command = [sys.executable, "-c", UPLOADER, str(workspace.path)]
    for wait in (0.7, 1.1, 1.6):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begins\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(wait)
            process.send_signal(signal.SIGKILL)
    s3.misbehave()
    workspace.sweep()
    assert workspace.store.objects() == workspace.referenced_objects()
    assert_lawful(bucket_session)


def test_a_bucket_that_is_gone_is_a_storage_error_and_the_command_can_be_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    with s3_server() as server:
        server.make_bucket("bucket")
        session = session_at(tmp_path / "w", server.uri("nowhere"))
        with pytest.raises(StorageError, match="there is no bucket nowhere"):
            retrain(session, write_data(tmp_path / "data.jsonl"))
        server.make_bucket("nowhere")
        assert retrain(session, write_data(tmp_path / "data.jsonl")).added == 12
        server.pause()
        with pytest.raises(StorageError, match="Timeout was reached"):
            retrain(session)
        server.process.send_signal(signal.SIGCONT)
        retrain(session)
        assert_lawful(session)
        session.workspace.close()
