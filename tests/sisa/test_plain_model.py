"""A merge asked as one plain model says what it is made of: of one shard alone, what that shard says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sisa.aggregate import ensemble, generate
from sisa.encoding import end_token_id
from sisa.merge import merge
from sisa.plain_model import PlainModel, merged_model
from sisa.session import Session, open_session
from tests import reference
from tests.models import record
from tests.reference import heads_of, tokenizer_of
from tests.sisa.answering import INPUTS, TEXTS, greedy_by_hand, trained

PROMPTS = [{"prompt": text} for text in TEXTS]
CONTENTS = [record(number, "causal-lm").fields() for number in range(4)]


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    return trained(tmp_path_factory.mktemp("writer"), "causal-lm", tiny_llama, slices=1, max_new_tokens=8)


@pytest.fixture
def session(writer: Path) -> Iterator[Session]:
    with open_session(writer) as session:
        yield session


def of_one_shard(session: Session) -> PlainModel:
    return merged_model(session, merge(session, heads_of(session)[:1], "cat").tensors)


def test_labels_are_those_of_the_shard_alone(tmp_path: Path, tiny_bert: Path) -> None:
    import torch

    with open_session(trained(tmp_path, "classification", tiny_bert, slices=1)) as session:
        ours = of_one_shard(session).logits(INPUTS)
        (theirs,) = reference.shard_logits(session, heads_of(session)[:1], INPUTS)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize("most", [1024, 2])
def test_scores_of_answers_are_those_of_the_shard_alone_however_many_at_once(session: Session, most: int) -> None:
    import torch

    session = replace(session, recipe=session.recipe.model_copy(update={"loss_positions": most}))
    ours = of_one_shard(session).answer_scores(CONTENTS)
    theirs = reference.answer_scores(session, heads_of(session)[:1], CONTENTS)
    for one, (other,) in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        assert torch.allclose(one, other, rtol=0, atol=1e-4)


def test_an_ensemble_that_pools_logits_is_scored_by_their_mean(writer: Path) -> None:
    import torch

    with open_session(writer, aggregation="logit") as session:
        heads = heads_of(session)
        ours = PlainModel(session, ensemble(session, heads)).answer_scores(CONTENTS)
        for content, scores in zip(CONTENTS, ours, strict=True):
            logits, tokens = reference.answer_logits(session, heads, content)
            theirs = logits.mean(0).log_softmax(-1)[range(len(tokens)), tokens]
            assert torch.allclose(scores, theirs, rtol=0, atol=1e-4)


def test_an_answer_ends_where_it_was_trained_to_end_also_at_an_ordinary_token(session: Session) -> None:
    """Of a plain model as of the shards: what an end token stands for is no part of the answer."""
    heads, tokenizer = heads_of(session)[:1], tokenizer_of(session)
    (by_hand,) = reference.by_peft(session, heads)
    whole = greedy_by_hand([by_hand], list(tokenizer(TEXTS[0])["input_ids"]), -1, 8)
    ordinary = whole[2]
    assert ordinary not in tokenizer.all_special_ids
    token = tokenizer.convert_ids_to_tokens(ordinary)
    changed = replace(session, recipe=session.recipe.model_copy(update={"end_token": token}))
    assert end_token_id(changed.recipe, tokenizer) == ordinary
    expected: list[Any] = []
    for text in TEXTS:
        tokens = greedy_by_hand([by_hand], list(tokenizer(text)["input_ids"]), ordinary, 8)
        expected.append(tokenizer.decode(tokens, skip_special_tokens=True))
    assert expected[0] == tokenizer.decode(whole[: whole.index(ordinary)], skip_special_tokens=True)
    assert of_one_shard(changed).generate(PROMPTS) == expected
    assert generate(changed, heads, PROMPTS) == expected
