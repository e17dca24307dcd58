"""``sisa.yaml``: what is in the recipe, what is refused, and how it is written and read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import ConfigError
from shards.workspace import CONFIG_FILE
from sisa.config import (
    Recipe,
    RunOptions,
    Settings,
    known_keys,
    make_settings,
    parse_overrides,
    read_settings,
    write_settings,
)
from tests.toy import toy_recipe

OPTIONS = RunOptions(base_model="toy")

# Another value for every key of a recipe: each must give another digest.
OTHER: dict[str, Any] = {
    "task": "causal-lm", "namespace": "other", "base_model_digest": "1" * 64, "tokenizer_digest": "1" * 64,
    "labels": ("b", "a"), "shards": 5, "slices": 5, "epochs": 5, "rehearsal": 0.75, "max_length": 5, "batch_size": 5,
    "accumulation": 5, "learning_rate": 0.5, "schedule": "cosine", "warmup_updates": 5, "weight_decay": 0.5,
    "max_grad_norm": 0.5, "lora_rank": 5, "lora_alpha": 5.0, "rslora": True, "lora_dropout": 0.5,
    "target_modules": ("query",), "end_token": "x", "dtype": "bfloat16", "attention": "eager", "device": "cuda",
    "threads": 5, "batching": "order", "layers": "last-2", "lanes": 4, "loss_positions": 5,
    "gradient_checkpointing": True, "tf32": True, "sdpa_backends": ("math",),
}  # fmt: skip


def test_every_key_of_the_recipe_is_in_its_digest() -> None:
    recipe = toy_recipe()
    for key in set(Recipe.model_fields) - {"bytes_version"}:
        other = toy_recipe(**{key: OTHER[key]})
        assert other.digest != recipe.digest, key
    assert toy_recipe().digest == recipe.digest


def test_the_digest_of_a_recipe_does_not_change_with_the_program() -> None:
    # A stored workspace would not be recognised any more. Raise BYTES_VERSION with it, or put it back.
    assert toy_recipe().to_json()["bytes_version"] == 2
    assert len(toy_recipe().digest) == 64


def test_recipe_and_run_options_share_no_key() -> None:
    assert not set(Recipe.model_fields) & set(RunOptions.model_fields)
    assert known_keys() == set(Recipe.model_fields) | set(RunOptions.model_fields)


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)


@settings(max_examples=100, deadline=None)
@given(
    namespace=TEXT,
    labels=st.lists(TEXT, min_size=2, max_size=4, unique=True),
    rate=st.floats(1e-9, 1.0),
    data=st.lists(TEXT, max_size=3),
    end=st.none() | TEXT,
    columns=st.dictionaries(TEXT, TEXT, max_size=2),
)
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    namespace: str,
    labels: list[str],
    rate: float,
    data: list[str],
    end: str | None,
    columns: dict[str, str],
) -> None:
    directory = tmp_path_factory.mktemp("config")
    recipe = toy_recipe(namespace=namespace, labels=tuple(labels), learning_rate=rate, end_token=end)
    made = Settings(recipe=recipe, options=RunOptions(base_model="toy", data=tuple(data), columns=columns))
    write_settings(directory, made)
    assert read_settings(directory, {}) == made
    assert read_settings(directory, {}).recipe.digest == recipe.digest


@pytest.mark.parametrize(
    "label", ["yes", "no", "null", "1", "1e3", "~", "true", "2020-01-01", "a: b", "#a", "- a", "..."]
)
def test_labels_that_yaml_would_read_as_something_else_stay_text(label: str, tmp_path: Path) -> None:
    made = Settings(recipe=toy_recipe(labels=(label, "other")), options=OPTIONS)
    write_settings(tmp_path, made)
    assert read_settings(tmp_path, {}).recipe.labels == (label, "other")


def test_every_key_is_written_with_type_default_meaning_and_kind(tmp_path: Path) -> None:
    write_settings(tmp_path, Settings(recipe=toy_recipe(), options=OPTIONS))
    lines = (tmp_path / CONFIG_FILE).read_text().splitlines()
    for section, kind in ((Recipe, "recipe"), (RunOptions, "not recipe")):
        for key, info in section.model_fields.items():
            at = next(number for number, line in enumerate(lines) if line.startswith(f"{key}: "))
            assert lines[at - 2] == f"# {info.description}"
            assert lines[at - 1].startswith("#   type: ")
            assert " · default: " in lines[at - 1]
            assert lines[at - 1].endswith(f" · {kind}")
    assert set(yaml.safe_load((tmp_path / CONFIG_FILE).read_text())) == known_keys()


def test_overrides_are_read_as_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    write_settings(tmp_path, Settings(recipe=toy_recipe(), options=OPTIONS))
    given = parse_overrides(
        ["epochs=7", "learning_rate=1e-3", "target_modules=[query, key]", "end_token=null", "workers = 3"]
    )
    read = read_settings(tmp_path, given)
    assert (read.recipe.epochs, read.recipe.learning_rate, read.options.workers) == (7, 1e-3, 3)
    assert read.recipe.target_modules == ("query", "key")
    assert read.recipe.end_token is None


@pytest.mark.parametrize("pair", ["epochs", "", "=", "=3", "epochz=1", "Epochs=1", "recipe=1", "epochs=[", "epochs: 1"])
def test_an_override_that_is_no_key_and_value_is_refused(pair: str) -> None:
    with pytest.raises(ConfigError):
        parse_overrides([pair])


def test_an_unknown_key_is_refused_with_the_likely_one() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'rehearsal'\?"):
        make_settings({"rehersal": 1}, "here")
    with pytest.raises(ConfigError, match="known keys: "):
        make_settings({"zzzzzz": 1}, "here")


def test_every_wrong_value_is_named_at_once() -> None:
    values = {**toy_recipe().to_json(), "base_model": "toy", "epochs": 0, "rehearsal": 2, "workers": "many"}
    with pytest.raises(ConfigError) as caught:
        make_settings(values, "here")
    for key in ("epochs", "rehearsal", "workers"):
        assert key in caught.value.found


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", float("inf")), ("learning_rate", float("nan")), ("lora_alpha", float("inf")),
        ("weight_decay", float("nan")), ("epochs", True), ("epochs", 1.0), ("epochs", "1"), ("labels", "ab"),
        ("labels", ["a"]), ("labels", ["a", ""]), ("bytes_version", 1), ("layers", "last"), ("layers", "last-0"),
        ("lanes", 0), ("namespace", ""), ("rehearsal", True),
    ],
)  # fmt: skip
def test_a_value_that_is_not_of_its_kind_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=key):
        make_settings({**toy_recipe().to_json(), "base_model": "toy", key: value}, "here")


def test_a_whole_number_stands_for_a_float_and_changes_no_digest() -> None:
    values = {**toy_recipe().to_json(), "base_model": "toy"}
    one, other = (make_settings({**values, "lora_alpha": alpha}, "here") for alpha in (16, 16.0))
    assert one.recipe.digest == other.recipe.digest


def test_a_configuration_that_is_missing_broken_or_not_a_mapping_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sisa init"):
        read_settings(tmp_path, {})
    for data in (b"", b"- a", b"a: [", b"\xff\xfe\xfa", b"5"):
        (tmp_path / CONFIG_FILE).write_bytes(data)
        with pytest.raises(ConfigError, match=CONFIG_FILE):
            read_settings(tmp_path, {})


def test_a_key_twice_in_the_file_is_refused(tmp_path: Path) -> None:
    write_settings(tmp_path, Settings(recipe=toy_recipe(), options=OPTIONS))
    with (tmp_path / CONFIG_FILE).open("a") as file:
        file.write("\nepochs: 9\n")
    with pytest.raises(ConfigError, match="epochs"):
        read_settings(tmp_path, {})


def test_recipe_and_options_are_frozen_and_picklable() -> None:
    import copy

    recipe = toy_recipe()
    with pytest.raises(ValueError, match="frozen"):
        recipe.epochs = 9  # type: ignore[misc]
    assert copy.deepcopy(recipe) == recipe
    assert hash(recipe) == hash(toy_recipe())
