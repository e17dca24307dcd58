"""One test for each defect, seen in other unlearning systems, that needs a real model to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestration.executor import Lesson
from shards.errors import ConfigError
from sisa.adapter import Adapter, process_adapter
from sisa.base_model import load_tokenizer
from sisa.course import turns_of
from sisa.encoding import encode
from sisa.learner import LoraTrainer
from sisa.predict import Predictor
from sisa.session import Session, open_session
from tests.exactness.conftest import Trained, Trainery
from tests.models import (
    checkpoint_files,
    delete_in,
    differences,
    flat,
    fresh_run,
    recipe_for,
    record,
    save_tiny_llama,
    tensors,
    train_in,
    write_rows,
)

INPUTS = {
    "classification": [{"text": "my card was charged twice"}, {"text": "login fails"}],
    "causal-lm": [{"prompt": "my card was charged twice"}],
}


def predictions(session: Session, task: str) -> list[Any]:
    rows = Predictor(session).answer(INPUTS[task]).rows
    return [{name: value for name, value in row.items() if name != "generation"} for row in rows]


def adapted(base: Path, *target_modules: str) -> set[str]:
    """Names of the base's modules that get an adapter."""
    from peft.tuners.lora import LoraLayer

    adapter = Adapter(recipe_for(base, "causal-lm", target_modules=target_modules), str(base))
    return {
        name.removeprefix("base_model.model.model.")
        for name, module in adapter.model.named_modules()
        if isinstance(module, LoraLayer)
    }


def test_defect_06_target_modules_are_matched_by_whole_names_never_by_substring(tmp_path: Path) -> None:
    base = save_tiny_llama(tmp_path / "base", layers=12)
    assert adapted(base, "layers.1.self_attn.q_proj") == {"layers.1.self_attn.q_proj"}  # not layers.10 and 11
    assert adapted(base, "q_proj") == {f"layers.{number}.self_attn.q_proj" for number in range(12)}
    assert adapted(base, "mlp.up_proj") == {f"layers.{number}.mlp.up_proj" for number in range(12)}
    for name in ("1.self_attn.q_pro", "_proj", "layers.1", "ayers.1.self_attn.q_proj"):
        with pytest.raises(ConfigError, match="target_modules"):
            adapted(base, name)


def test_defect_07_the_head_is_trained_per_shard_stored_with_the_adapter_and_rolled_back_with_it(
    trainery: Trainery,
) -> None:
    trained = trainery("classification", rehearsal=0.25)
    name = "base_model.model.classifier.weight"
    heads = {place: tensors(trained.path)[place][name] for place in trained.places}
    places = sorted(heads)
    assert all(not heads[one].equal(heads[two]) for one in places for two in places if one < two)
    delete_in(trained.path, trained.ids(0, 1) + trained.ids(0, 2))
    assert tensors(trained.path)[0, 0][name].equal(heads[0, 0])
    with open_session(trained.path) as session:  # what is served for the shard is the clean prefix, head and all
        manifest = session.workspace.book.manifest()
        assert manifest is not None
        head = manifest.head(0)
        assert head is not None
        assert session.workspace.book.live()[head.checkpoint].link.slice == 0
    assert differences(trained.path, fresh_run(trained.path, trained.scratch / "fresh")) == []


@pytest.mark.parametrize("gone", [0, 3, 8])
def test_defect_11_batches_are_filled_with_the_surviving_records_only(tiny_bert: Path, gone: int) -> None:
    """A removed record leaves no hole: every batch but the last of a pass is full."""
    recipe = recipe_for(tiny_bert, "classification", batch_size=4)
    left = tuple(record(number, "classification") for number in range(9) if number != gone)
    tokenizer = load_tokenizer(recipe, str(tiny_bert))
    examples = {each.id: encode(each, recipe, tokenizer) for each in left}
    turns = turns_of(Lesson((left, left[::-1]), None, bytes(32)), recipe, examples)
    assert [len(turn.records) for turn in turns] == [4, 4, 4, 4]


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_defect_13_random_state_is_set_in_every_step_and_prediction_runs_without_dropout(
    trainery: Trainery, task: str
) -> None:
    import torch

    trained = trainery(task, rehearsal=0.25)
    with open_session(trained.path) as session:
        assert session.recipe.lora_dropout > 0
        first = predictions(session, task)
        torch.manual_seed(5)
        assert predictions(session, task) == first
        process_adapter(session.recipe, str(session.options.base_model)).model.train()
        assert predictions(session, task) == first
    for ambient in (1, 2):
        torch.manual_seed(ambient)
        copy = trainery(task, rehearsal=0.25)
        delete_in(copy.path, copy.ids(0, 0)[:1])
        if ambient == 1:
            reference = checkpoint_files(copy.path)
        else:
            assert checkpoint_files(copy.path) == reference


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_defect_14_the_seed_is_set_before_the_adapter_is_created(task: str, tiny_bert: Path, tiny_llama: Path) -> None:
    import torch

    base = tiny_bert if task == "classification" else tiny_llama
    recipe = recipe_for(base, task)
    torch.manual_seed(1)
    one = Adapter(recipe, str(base))
    torch.rand(10)
    two = Adapter(recipe, str(base))
    one.reset(77)
    two.reset(77)
    assert one.dump() == two.dump()
    two.reset(78)
    assert one.dump() != two.dump()


def test_defect_15_a_step_from_a_stored_parent_equals_the_step_in_one_go(trainery: Trainery) -> None:
    """Resuming is from a slice boundary only, where all state is explicit: there is no other state to lose."""
    trained = trainery("causal-lm", rehearsal=0.25)
    kept = checkpoint_files(trained.path)
    with open_session(trained.path) as session:
        workspace = session.workspace
        for made in workspace.book.live().values():
            if made.link.slice > 0:
                workspace.store.purge(made.files)  # lost, as after a damaged disk
    fresh = fresh_run(trained.path, trained.scratch / "fresh")
    again = train_in(trained.path, write_rows(trained.scratch / "data.jsonl", flat(trained.places)))
    assert len(again.reconciled.damaged) == 4
    assert checkpoint_files(trained.path) == kept
    assert differences(trained.path, fresh) == []


def test_defect_16_deterministic_mode_is_strict_inside_a_step_and_the_callers_own_after(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from orchestration.executor import Lesson
    from sisa import course
    from sisa.loss import lane_losses

    seen: list[tuple[bool, bool, int]] = []
    sound = lane_losses

    def watched(*arguments: Any) -> Any:
        seen.append(
            (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                torch.get_num_threads(),
            )
        )
        return sound(*arguments)

    monkeypatch.setattr(course, "lane_losses", watched)
    before = torch.get_deterministic_debug_mode(), torch.get_num_threads()
    torch.set_deterministic_debug_mode("warn")
    try:
        records = tuple(record(number, "causal-lm") for number in range(5))
        LoraTrainer(recipe_for(tiny_llama, "causal-lm"), str(tiny_llama)).train(Lesson((records,), None, b"s" * 32))
        assert torch.get_deterministic_debug_mode() == 1
        assert torch.get_num_threads() == before[1]
    finally:
        torch.set_deterministic_debug_mode(before[0])
    assert seen == [(True, False, 1)] * 2


@pytest.mark.parametrize("task", ["classification", "causal-lm"])
def test_defect_19_predictions_after_a_deletion_are_recomputed_never_corrected(trainery: Trainery, task: str) -> None:
    trained: Trained = trainery(task, rehearsal=0.25)
    with open_session(trained.path) as session:
        before = predictions(session, task)
    delete_in(trained.path, trained.ids(0, 0) + trained.ids(0, 1) + trained.ids(0, 2))  # a whole term of the mean
    fresh = fresh_run(trained.path, trained.scratch / "fresh")
    with open_session(trained.path) as session, open_session(fresh) as other:
        after = predictions(session, task)
        assert after == predictions(other, task)  # every bit of every probability
    assert after != before or task == "causal-lm"


def test_adapter_configurations_hold_nothing_of_the_workspace_or_the_clock(trainery: Trainery) -> None:
    trained = trainery("classification", rehearsal=0.25)
    texts = {files["adapter_config.json"] for files in checkpoint_files(trained.path).values()}
    assert len(texts) == 1
    assert str(trained.path) not in json.dumps(json.loads(texts.pop()))
