"""An input goes where the user's rule says, and the answer says what has become of those shards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shards.errors import ConfigError, RecordError
from shards.trunk import TRUNK
from sisa.delete import delete
from sisa.ingest import ingest
from sisa.predict import Predictor
from sisa.session import Session, open_session
from tests.flows.helpers import refused, sisa
from tests.models import delete_in, make_workspace, row, train_in, write_rows
from tests.reference import heads_of, shard_logits

SUBJECTS = [f"person-{number}" for number in range(6)]
RULE = {"field": "region", "shards": {"EU": [0], "US": [1, 2]}}


def rows(first: int = 0, count: int = 24) -> list[dict[str, Any]]:
    return [
        row(number, "classification") | {"subject": SUBJECTS[number % len(SUBJECTS)]}
        for number in range(first, first + count)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    root = tmp_path_factory.mktemp("routed")
    workspace = make_workspace(root / "workspace", "classification", tiny_bert, shards=3, slices=2, epochs=1)
    train_in(workspace, write_rows(root / "data.jsonl", rows()))
    return workspace


@pytest.fixture
def workspace(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "workspace")
    return tmp_path / "workspace"


@pytest.fixture
def session(trained: Path) -> Iterator[Session]:
    with open_session(trained, routing="subject") as session:
        yield session


def asked(path: Path, routing: Any, *inputs: dict[str, Any]) -> list[dict[str, Any]]:
    with open_session(path, routing=routing) as session:
        return list(Predictor(session).answer([{"text": "my card", **each} for each in inputs]).rows)


def home(path: Path, subject: str) -> int:
    with open_session(path) as session:
        return session.workspace.layout().shard_of(subject)


def ids_of(subject: str) -> list[str]:
    return [each["id"] for each in rows() if each["subject"] == subject]


def in_shard(path: Path, shard: int) -> list[str]:
    return [each["id"] for each in rows() if home(path, each["subject"]) == shard]


def test_a_subject_is_answered_by_the_shard_its_records_are_in_and_by_no_other(session: Session) -> None:
    from sisa.aggregate import classify

    heads = heads_of(session)
    assert len(heads) == 3
    inputs = [{"text": "my card was charged", "subject": subject} for subject in SUBJECTS]
    answers = Predictor(session).answer(inputs).rows
    assert len({answer["routed"]["answered"][0] for answer in answers}) > 1
    for subject, fields, answer in zip(SUBJECTS, inputs, answers, strict=True):
        place = session.workspace.layout().shard_of(subject)
        assert answer["routed"] == {"by": "subject", "shards": [place], "answered": [place]}
        assert answer["note"] is None
        (alone,) = classify(session, [heads[place]], [fields])
        assert answer["probabilities"] == pytest.approx(alone, abs=1e-6)


def test_an_input_without_the_field_is_answered_by_all_shards_and_says_so(trained: Path) -> None:
    plain = asked(trained, None, {})[0]
    assert set(plain) == {"id", "label", "probabilities", "generation"}
    for routing, fields, why in (
        ("subject", {}, "no subject"),
        (RULE, {}, "no region"),
        (RULE, {"region": "Mars"}, "no shards are listed for this region"),
    ):
        (answer,) = asked(trained, routing, fields)
        assert answer["routed"] == {"by": None, "shards": [0, 1, 2], "answered": [0, 1, 2]}
        assert answer["note"] == f"{why}: answered by all shards"
        assert answer["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-6)


def test_a_rule_by_a_field_asks_the_shards_it_lists(trained: Path) -> None:
    europe, states = asked(trained, RULE, {"region": "EU"}, {"region": "US"})
    assert europe["routed"] == {"by": "region", "shards": [0], "answered": [0]}
    assert states["routed"] == {"by": "region", "shards": [1, 2], "answered": [1, 2]}
    assert europe["probabilities"] != states["probabilities"]


@pytest.mark.parametrize("value", [7, True, "", "  ", ["a"], {"a": 1}, 0.5])
@pytest.mark.parametrize("routing", ["subject", {"field": "subject", "shards": {"7": [0]}}])
def test_what_is_no_text_cannot_be_routed(trained: Path, routing: Any, value: Any) -> None:
    with pytest.raises(RecordError, match="subject of input 2"):
        asked(trained, routing, {"subject": "a"}, {"subject": value})


@pytest.mark.parametrize(
    ("routing", "why"),
    [
        ({"field": "region", "shards": {"EU": [3]}}, "no shard 3; they are numbered 0 to 2"),
        ({"field": "region", "shards": {"EU": [-1]}}, "no shard -1"),
        ({"field": "region", "shards": {"EU": []}}, "'EU' needs numbers of shards"),
        ({"field": "region", "shards": {"EU": [1, 1]}}, "each once"),
        ({"field": "region", "shards": {}}, "routing"),
        ({"field": "", "shards": {"EU": [1]}}, "routing"),
        ({"field": "region", "shards": {"EU": ["1"]}}, "routing"),
        ({"field": "region", "shards": {"EU": [True]}}, "routing"),
        ({"field": "region"}, "routing"),
        ("learnt", "routing"),
    ],
)
def test_a_rule_that_cannot_be_followed_is_refused(trained: Path, routing: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        asked(trained, routing, {})


def test_a_rule_can_be_written_on_the_command_line(trained: Path) -> None:
    rule = "routing={field: region, shards: {EU: [0]}}"
    line = json.dumps({"text": "my card", "region": "EU"})
    result = sisa("predict", "-w", trained, "--input", "-", "--set", rule, stdin=line)
    assert result.code == 0, result.err
    assert json.loads(result.out)["routed"] == {"by": "region", "shards": [0], "answered": [0]}
    line = json.dumps({"text": "my card", "subject": 3})
    refused(
        sisa("predict", "-w", trained, "--input", "-", "--set", "routing=subject", stdin=line), "input 1", "subject"
    )


def test_a_subject_without_a_surviving_record_is_said(workspace: Path) -> None:
    subject = next(each for each in SUBJECTS if in_shard(workspace, home(workspace, each)) != ids_of(each))
    place = home(workspace, subject)
    gone = f"no surviving record of this subject is in shard {place}"
    never = asked(workspace, "subject", {"subject": "nobody"})[0]
    assert never["label"] is not None
    assert never["note"].startswith("no surviving record of this subject is in shard")
    assert asked(workspace, "subject", {"subject": subject})[0]["note"] is None
    delete_in(workspace, ids_of(subject))
    (answer,) = asked(workspace, "subject", {"subject": subject})
    assert (answer["note"], answer["routed"]["answered"]) == (gone, [place])
    assert answer["label"] is not None


def test_a_shard_that_lost_records_and_has_not_relearnt_says_so(workspace: Path) -> None:
    shard = home(workspace, SUBJECTS[0])
    with open_session(workspace) as session:
        head = next(head for head in heads_of(session) if head.head.shard == shard)
        last = session.workspace.book.live()[head.head.checkpoint].link.slice
        victims = [
            stored.record.id
            for stored in session.workspace.survivors(shard)
            if session.workspace.layout().place(stored.record).slice == last
        ]
        assert last > 0
        assert len(victims) > 1
        delete(session, victims[:1], queue=True)
    (answer,) = asked(workspace, {"field": "of", "shards": {"x": [shard]}}, {"of": "x"})
    assert answer["routed"]["answered"] == [shard]
    assert answer["note"].startswith(f"shard {shard} is behind its records")
    train_in(workspace)
    assert asked(workspace, {"field": "of", "shards": {"x": [shard]}}, {"of": "x"})[0]["note"] is None


def test_records_taken_in_and_not_learnt_are_said(workspace: Path, tmp_path: Path) -> None:
    with open_session(workspace) as session:
        ingest(session, [write_rows(tmp_path / "more.jsonl", rows(24, 12))])
    answers = asked(workspace, "subject", *({"subject": subject} for subject in SUBJECTS))
    assert all("is behind its records" in answer["note"] for answer in answers)


def test_a_shard_that_serves_nothing_gives_no_answer_and_no_other_answers_for_it(workspace: Path) -> None:
    shard = home(workspace, SUBJECTS[0])
    others = [number for number in range(3) if number != shard]
    rule = {"field": "of", "shards": {"one": [shard], "all": [0, 1, 2]}}
    with open_session(workspace) as session:
        delete(session, in_shard(workspace, shard), queue=True)
    one, every = asked(workspace, rule, {"of": "one"}, {"of": "all"})
    assert (one["label"], one["probabilities"]) == (None, None)
    assert one["routed"] == {"by": "of", "shards": [shard], "answered": []}
    assert one["note"] == f"shard {shard} serves nothing: its records are not learnt"
    assert every["routed"]["answered"] == others
    assert every["note"] == one["note"]
    assert every["label"] is not None
    train_in(workspace)
    one = asked(workspace, rule, {"of": "one"})[0]
    assert one["note"] == f"shard {shard} serves nothing: it has no records"
    (subject,) = asked(workspace, "subject", {"subject": SUBJECTS[0]})
    assert subject["label"] is None
    assert "no surviving record of this subject" in subject["note"]


# -- with a trunk -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def on_a_trunk(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Path:
    """As above, and a record of every subject in the trunk besides."""
    root = tmp_path_factory.mktemp("trunk")
    workspace = make_workspace(root / "workspace", "classification", tiny_bert, shards=3, slices=2, epochs=1)
    common = [each | {"retention": "permanent"} for each in rows(24, 6)]
    train_in(workspace, write_rows(root / "data.jsonl", rows() + common))
    with open_session(workspace) as session:
        assert len(list(session.workspace.survivors(TRUNK))) == 6
    return workspace


def test_a_subject_with_a_record_in_the_trunk_alone_is_said(on_a_trunk: Path, tmp_path: Path) -> None:
    path = Path(shutil.copytree(on_a_trunk, tmp_path / "workspace"))
    subject = next(each for each in SUBJECTS if in_shard(path, home(path, each)) != ids_of(each))
    place = home(path, subject)
    assert asked(path, "subject", {"subject": subject})[0]["note"] is None
    delete_in(path, ids_of(subject))
    with open_session(path) as session:
        assert subject in {stored.record.subject for stored in session.workspace.survivors(TRUNK)}
    (answer,) = asked(path, "subject", {"subject": subject})
    assert answer["note"] == f"no surviving record of this subject is in shard {place}"
    assert (answer["routed"]["answered"], answer["label"] is not None) == ([place], True)


def test_weights_count_a_shards_own_records_and_none_of_the_trunk(on_a_trunk: Path) -> None:
    import torch

    from sisa.aggregate import classify

    inputs = [{"text": "my card was charged"}]
    with open_session(on_a_trunk, aggregation="weighted") as session:
        heads = heads_of(session)
        own = [len(list(session.workspace.survivors(head.head.shard))) for head in heads]
        assert [head.records for head in heads] == own
        assert sum(own) == 24
        assert len(set(own)) > 1
        (ours,) = classify(session, heads, inputs)
        shares = shard_logits(session, heads, inputs)[:, 0].softmax(-1)
    weights = torch.tensor(own, dtype=torch.float64) / 24
    assert list(ours.values()) == pytest.approx((weights @ shares).tolist(), abs=1e-5)
