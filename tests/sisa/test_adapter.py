"""The adapter slot carries nothing over, the base never changes, and any PEFT user can load the result."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestration.executor import Lesson
from shards import kinds
from shards.digest import tensor_digest
from shards.errors import ConfigError, IntegrityError, RecipeMismatchError
from shards.law import check_law
from shards.workspace import WEIGHTS_FILE
from sisa.adapter import Adapter, process_adapter
from sisa.base_model import load_base, load_tokenizer, locate
from sisa.config import Recipe
from sisa.learner import LoraTrainer
from sisa.predict import Predictor
from sisa.session import open_session
from tests.models import LABELS, flat, grid, make_workspace, recipe_for, record, save_tiny_bert, train_in, write_rows

TASKS = ("classification", "causal-lm")


def lesson(task: str, *, first: int = 0, parent: bytes | None = None, seed: bytes = b"s" * 32) -> Lesson:
    """Two passes over six records: batches of four and two."""
    records = tuple(record(number, task) for number in range(first, first + 6))
    return Lesson((records, records[::-1]), parent, seed)


def in_another_process(recipe: Recipe, base: Path, task: str) -> str:
    """Tensor digest of the same step, taken in a process that has done nothing else."""
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from shards.digest import tensor_digest\n"
        "from sisa.config import Recipe\n"
        "from sisa.learner import LoraTrainer\n"
        "from tests.sisa.test_adapter import lesson\n"
        "recipe = Recipe.model_validate_json(sys.argv[1], strict=False)\n"
        "files = LoraTrainer(recipe, sys.argv[2]).train(lesson(sys.argv[3]))\n"
        "print(tensor_digest(files['adapter_model.safetensors']))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(recipe.to_json()), str(base), task],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def bases(tiny_bert: Path, tiny_llama: Path) -> dict[str, Path]:
    return {"classification": tiny_bert, "causal-lm": tiny_llama}


@pytest.mark.parametrize("task", ["causal-lm", pytest.param("classification", marks=pytest.mark.slow)])
def test_a_step_after_other_steps_equals_the_step_in_a_fresh_process(bases: dict[str, Path], task: str) -> None:
    import torch

    trainer = LoraTrainer(recipe_for(bases[task], task), str(bases[task]))
    other = trainer.train(lesson(task, first=50, seed=b"o" * 32))
    trainer.train(lesson(task, first=80, parent=other[WEIGHTS_FILE]))
    torch.rand(3)
    here = trainer.train(lesson(task))
    assert tensor_digest(here[WEIGHTS_FILE]) == in_another_process(trainer.recipe, bases[task], task)


@pytest.mark.parametrize("task", TASKS)
def test_the_base_keeps_its_bits_through_training(bases: dict[str, Path], task: str) -> None:
    import torch

    recipe, base = recipe_for(bases[task], task), str(bases[task])
    LoraTrainer(recipe, base).train(lesson(task))
    fresh, missing = load_base(recipe, base)
    trained = {
        name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".original_module", ""): tensor
        for name, tensor in process_adapter(recipe, base).model.state_dict().items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    compared = [name for name in fresh.state_dict() if name not in missing]
    assert trained.keys() >= set(compared)
    assert [name for name in compared if not torch.equal(trained[name], fresh.state_dict()[name])] == []


@pytest.mark.parametrize("task", TASKS)
def test_only_adapter_and_head_are_trainable_and_saved(bases: dict[str, Path], task: str) -> None:
    from safetensors.torch import load

    adapter = Adapter(recipe_for(bases[task], task), str(bases[task]))
    names = set(load(adapter.dump()))
    assert all("lora_A" in name or "lora_B" in name or "classifier" in name for name in names)
    assert any("classifier" in name for name in names) == (task == "classification")
    assert len(adapter.parameters()) == len(names)


def test_tensors_of_another_shape_are_refused(bases: dict[str, Path]) -> None:
    small, large = (
        Adapter(recipe_for(bases["causal-lm"], "causal-lm", lora_rank=rank), str(bases["causal-lm"])) for rank in (2, 3)
    )
    with pytest.raises(IntegrityError, match="adapter"):
        small.load(large.dump())


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int32"])
def test_tensors_of_another_type_are_refused(bases: dict[str, Path], dtype: str) -> None:
    import torch
    from safetensors.torch import load, save

    adapter = Adapter(recipe_for(bases["causal-lm"], "causal-lm"), str(bases["causal-lm"]))
    adapter.reset(1)
    before = adapter.dump()
    name, tensor = next(iter(load(before).items()))
    other = save(load(before) | {name: tensor.to(getattr(torch, dtype))})
    with pytest.raises(IntegrityError, match=name):
        adapter.load(other)
    assert adapter.dump() == before
    adapter.load(before)


def pickled(mark: Path) -> bytes:
    """A pickle that whoever unpickles it runs: it leaves a mark."""
    return f"cos\nsystem\n(S'touch {mark}'\ntR.".encode()


def pickled_in_zip(mark: Path) -> bytes:
    """The same as torch saves it."""
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        archive.writestr("archive/data.pkl", pickled(mark))
        archive.writestr("archive/version", "3\n")
    return sink.getvalue()


PICKLES = {"pickle": pickled, "torch": pickled_in_zip}


@pytest.mark.parametrize("how", PICKLES)
def test_the_pickles_of_these_tests_do_leave_a_mark(how: str, tmp_path: Path) -> None:
    mark, file = tmp_path / "mark", tmp_path / "file"
    file.write_bytes(PICKLES[how](mark))
    script = "import sys, torch; torch.load(sys.argv[1], weights_only=False)"
    subprocess.run([sys.executable, "-c", script, str(file)], capture_output=True, timeout=240, check=False)
    assert mark.exists()


@pytest.mark.parametrize("how", PICKLES)
def test_a_pickle_is_refused_as_an_adapter(how: str, bases: dict[str, Path], tmp_path: Path) -> None:
    adapter = Adapter(recipe_for(bases["causal-lm"], "causal-lm"), str(bases["causal-lm"]))
    with pytest.raises(IntegrityError, match="no safetensors file"):
        adapter.load(PICKLES[how](tmp_path / "mark"))
    with pytest.raises(ValueError, match="not a safetensors file"):
        tensor_digest(PICKLES[how](tmp_path / "mark"))
    assert not (tmp_path / "mark").exists()


@pytest.fixture(scope="module")
def served(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained workspace; tests that change it work on a copy."""
    directory = tmp_path_factory.mktemp("served")
    workspace = make_workspace(directory / "workspace", "classification", tiny_bert)
    train_in(workspace, write_rows(directory / "data.jsonl", flat(grid("classification", 2))))
    return workspace


@pytest.mark.parametrize("how", PICKLES)
@pytest.mark.parametrize("name", ["adapter_model.bin", "pytorch_model.bin", WEIGHTS_FILE])
@pytest.mark.parametrize("signed", [False, True])
def test_a_pickle_offered_as_a_served_object_is_refused_and_not_loaded(
    served: Path, how: str, name: str, signed: bool, tmp_path: Path
) -> None:
    workspace, mark = tmp_path / "copy", tmp_path / "mark"
    shutil.copytree(served, workspace)
    with open_session(workspace) as session:
        book, store = session.workspace.book, session.workspace.store
        _, made = book.served()[0]
        Predictor(session).answer([{"text": "my card"}])
        if signed:  # by an operator who means ill: object, fact and tree head agree
            files = {other: data for other, data in store.get(made.files).items() if other != WEIGHTS_FILE}
            bad = replace(made, files=store.put(files | {name: PICKLES[how](mark)}))
            session.workspace.ledger.append([(kinds.CHECKPOINT, bad.to_json())])
        else:
            (store.path(made.files) / name).write_bytes(PICKLES[how](mark))
        with pytest.raises(IntegrityError):
            Predictor(session).answer([{"text": "my card"}])
        assert made.key not in session.workspace.intact()
        failing = {check.name for check in check_law(session.workspace) if check.outcome == "failed"}
        assert "every checkpoint's tensors are those recorded" in failing
    assert not mark.exists()


def test_unknown_target_modules_are_refused_and_the_real_ones_named(bases: dict[str, Path]) -> None:
    recipe = recipe_for(bases["causal-lm"], "causal-lm", target_modules=("no_such_module",))
    with pytest.raises(ConfigError, match=r"down_proj.*q_proj"):
        Adapter(recipe, str(bases["causal-lm"]))


def test_a_base_with_other_bytes_than_the_pinned_ones_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    workspace = make_workspace(tmp_path / "workspace", "causal-lm", base)
    weights = base / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with open_session(workspace) as session, pytest.raises(RecipeMismatchError, match="base model"):
        session.trainer()


def test_a_tokenizer_with_other_bytes_than_the_pinned_ones_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_llama, base)
    workspace = make_workspace(tmp_path / "workspace", "causal-lm", base)
    (base / "chat_template.jinja").write_text("{{ messages }}")
    with open_session(workspace) as session, pytest.raises(RecipeMismatchError, match="tokenizer"):
        session.trainer()


def test_a_base_without_safetensors_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_llama, tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").rename(tmp_path / "base" / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="safetensors"):
        locate(str(tmp_path / "base"))


def test_a_base_without_its_pooler_gets_one_trained_and_saved_the_same_in_every_process(tmp_path: Path) -> None:
    from safetensors.torch import load

    base = save_tiny_bert(tmp_path / "base", pooler=False)
    recipe = recipe_for(base, "classification")
    trainer = LoraTrainer(recipe, str(base))
    files = trainer.train(lesson("classification"))
    saved = load(files[WEIGHTS_FILE])
    pooler = {name for name in saved if "pooler" in name}
    assert {name.rpartition(".")[2] for name in pooler} == {"weight", "bias"}
    assert not any("lora" in name for name in pooler)
    adapter = process_adapter(recipe, str(base))
    adapter.reset(1)
    fresh = load(adapter.dump())
    assert all(not fresh[name].equal(saved[name]) for name in pooler)
    assert tensor_digest(files[WEIGHTS_FILE]) == in_another_process(recipe, base, "classification")


def pretrained_head(path: Path, labels: int) -> Path:
    """A classifier that was trained already, so to speak."""
    import torch
    from transformers import AutoModelForSequenceClassification

    encoder = save_tiny_bert(path / "encoder")
    with torch.random.fork_rng():
        torch.manual_seed(11)
        model: Any = AutoModelForSequenceClassification.from_pretrained(str(encoder), num_labels=labels)
        model.save_pretrained(str(path / "classifier"))
    for file in encoder.iterdir():
        if not (path / "classifier" / file.name).exists():
            shutil.copy(file, path / "classifier" / file.name)
    return path / "classifier"


def test_a_pretrained_head_of_as_many_labels_is_where_every_shard_starts(tmp_path: Path) -> None:
    from safetensors.torch import load, load_file

    base = pretrained_head(tmp_path, len(LABELS))
    adapter = Adapter(recipe_for(base, "classification"), str(base))
    theirs = load_file(base / "model.safetensors")["classifier.weight"]
    for seed in (1, 2):
        adapter.reset(seed)
        assert load(adapter.dump())["base_model.model.classifier.weight"].equal(theirs)


def test_a_pretrained_head_of_other_labels_is_drawn_anew_from_the_seed(tmp_path: Path) -> None:
    from safetensors.torch import load

    base = pretrained_head(tmp_path, len(LABELS) + 2)
    adapter = Adapter(recipe_for(base, "classification"), str(base))
    heads = []
    for seed in (1, 2, 1):
        adapter.reset(seed)
        heads.append(load(adapter.dump())["base_model.model.classifier.weight"])
    assert tuple(heads[0].shape) == (len(LABELS), 32)
    assert heads[0].equal(heads[2])
    assert not heads[0].equal(heads[1])


@pytest.mark.parametrize("dtype", ["bfloat16", "nf4"])
@pytest.mark.parametrize("task", TASKS)
def test_a_base_of_less_precision_trains_to_the_same_bits_every_time(
    bases: dict[str, Path], task: str, dtype: str
) -> None:
    import torch
    from safetensors.torch import load

    trainer = LoraTrainer(recipe_for(bases[task], task, dtype=dtype), str(bases[task]))
    files = trainer.train(lesson(task))
    trainer.train(lesson(task, first=70))
    saved, again = load(files[WEIGHTS_FILE]), load(trainer.train(lesson(task))[WEIGHTS_FILE])
    assert saved.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in saved.items())
    assert all(bool(tensor.isfinite().all()) for tensor in saved.values())
    assert {tensor.dtype for name, tensor in saved.items() if "lora" in name} == {torch.float32}


def test_a_base_that_keeps_running_statistics_is_refused(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    sound = AutoModelForSequenceClassification.from_pretrained

    def planted(*arguments: Any, **options: Any) -> Any:
        model, info = sound(*arguments, **options)
        model.norm = torch.nn.BatchNorm1d(4)
        return model, info

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", planted)
    with pytest.raises(ConfigError, match="running statistics"):
        load_base(recipe_for(tiny_bert, "classification"), str(tiny_bert))


@pytest.mark.parametrize("task", TASKS)
def test_a_served_adapter_directory_loads_with_plain_peft_and_gives_our_logits(
    bases: dict[str, Path], task: str, tmp_path: Path
) -> None:
    import torch
    from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification

    workspace = make_workspace(tmp_path / "workspace", task, bases[task])
    train_in(workspace, write_rows(tmp_path / "data.jsonl", flat(grid(task, 2))))
    with open_session(workspace) as session:
        book, store = session.workspace.book, session.workspace.store
        manifest = book.manifest()
        assert manifest is not None
        directories = [store.path(book.live()[head.checkpoint].files) for head in manifest.heads]
        recipe = session.recipe
    tokenizer: Any = load_tokenizer(recipe, str(bases[task]))
    inputs = tokenizer("my card was charged twice", return_tensors="pt")
    adapter = process_adapter(recipe, str(bases[task]))
    adapter.model.eval()
    seen = []
    for directory in directories:
        if task == "classification":
            theirs = AutoPeftModelForSequenceClassification.from_pretrained(str(directory), num_labels=len(LABELS))
        else:
            theirs = AutoPeftModelForCausalLM.from_pretrained(str(directory))
        theirs.eval()
        adapter.load((directory / WEIGHTS_FILE).read_bytes())
        with torch.inference_mode():
            ours, expected = adapter.model(**inputs).logits, theirs(**inputs).logits
        assert torch.allclose(ours, expected, rtol=0, atol=1e-5)
        seen.append(ours)
    assert not torch.allclose(seen[0], seen[1], rtol=0, atol=1e-3)  # the shards did learn different things
