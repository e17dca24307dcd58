"""Tiny real models, records for them, and workspaces that train them in milliseconds.

The bases are built in process and saved as any Hugging Face directory is. Their layers are too
small for some bugs to show (a thread count never changes their bits), so what needs pretrained
weights or wider layers uses the packaged encoder instead (``base_model="minilm"``).
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestration.executor import Executor, SliceTrainer
from orchestration.inline import InlineExecutor
from shards.files import write_new
from shards.keys import Keyring
from shards.layout import ShardLayout
from shards.records import Record, make_content
from shards.workspace import WEIGHTS_FILE, Workspace
from sisa.config import Recipe
from sisa.delete import Deleted, delete
from sisa.export import export_records
from sisa.initialise import initialise
from sisa.session import open_session
from sisa.train import Trained, train
from tests.toy import fixed_root

if TYPE_CHECKING:
    import torch

ROOT = bytes(range(1, 33))
LABELS = ("billing", "login", "refund")
TEXT = (
    "the ticket says that my card was charged twice and now login fails please send a refund to this account "
    "because nobody answered when password reset mails never came back from support last week"
)
WORDS = TEXT.split()

Place = tuple[int, int]
Row = dict[str, Any]


# -- bases ------------------------------------------------------------------------------------


def save_tokenizer(path: Path, task: str) -> int:
    """Train a byte-level tokenizer on our words and save it; returns its vocabulary size."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    begin, end, pad = ("[CLS]", "[SEP]", "[PAD]") if task == "classification" else ("<s>", "</s>", "<pad>")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=340,
        special_tokens=[pad, begin, end, "<|user|>", "<|assistant|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    single = f"{begin} $A {end}" if task == "classification" else f"{begin} $A"
    ids = [(token, tokenizer.token_to_id(token)) for token in (begin, end)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=pad, bos_token=begin, eos_token=end)
    if task == "causal-lm":
        fast.chat_template = (
            "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}</s>{% endfor %}"
            "{% if add_generation_prompt %}<|assistant|>{% endif %}"
        )
    fast.save_pretrained(path)
    return int(tokenizer.get_vocab_size())


def save_tiny_llama(path: Path, *, layers: int = 2) -> Path:
    """A random Llama of two layers and 32 dimensions, with a chat template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    vocabulary = save_tokenizer(path, "causal-lm")
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        LlamaForCausalLM(config).save_pretrained(path)
    return path


def save_tiny_bert(path: Path, *, pooler: bool = True, layers: int = 2) -> Path:
    """A random BERT encoder of two layers and 32 dimensions, without a classification head."""
    import torch
    from transformers import BertConfig, BertModel

    vocabulary = save_tokenizer(path, "classification")
    config = BertConfig(
        vocab_size=vocabulary, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=128, pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(7)
        BertModel(config, add_pooling_layer=pooler).save_pretrained(path)
    return path


def recipe_for(base: Path | str, task: str, **values: Any) -> Recipe:
    """A recipe for a base, without a workspace around it."""
    from sisa.base_model import locate, model_digests

    weights, tokenizer = model_digests(locate(str(base)))
    defaults: dict[str, Any] = {
        "task": task,
        "namespace": "tests",
        "base_model_digest": weights,
        "tokenizer_digest": tokenizer,
        "labels": LABELS if task == "classification" else (),
    }
    return Recipe(**(defaults | SMALL | values))


# -- records ----------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "shards": 2,
    "slices": 3,
    "epochs": 2,
    "batch_size": 4,
    "max_length": 40,
    "lora_rank": 2,
    "lora_dropout": 0.1,
    "learning_rate": 1e-2,
}


def row(number: int, task: str) -> Row:
    """Record ``r<number>``: words that no other record has in this order; all formats of a task take turns."""
    words = [WORDS[(number * 7 + step * (number % 5 + 1)) % len(WORDS)] for step in range(3 + number % 6)]
    text = f"{' '.join(words)} {number}"
    if task == "classification":
        return {"id": f"r{number}", "text": text, "label": LABELS[number % len(LABELS)]}
    answer = f"{words[0]} {number * 31}"
    formats: tuple[Row, ...] = (
        {"prompt": text, "completion": answer},
        {"text": text},
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]},
    )
    return {"id": f"r{number}", **formats[number % 3]}


def record(number: int, task: str) -> Record:
    """The same as a record."""
    fields = row(number, task)
    return Record(id=fields.pop("id"), content=make_content(fields))


def grid(task: str, per_place: int = 5, *, first: int = 0, **values: Any) -> dict[Place, list[Row]]:
    """Rows that put exactly ``per_place`` records at every (shard, slice) of a workspace made here."""
    recipe = {**SMALL, "rehearsal": 0.0, **values}
    layout = ShardLayout.of_recipe(recipe, Keyring.from_root(ROOT).placement)
    places: dict[Place, list[Row]] = defaultdict(list)
    number = first
    while sum(map(len, places.values())) < per_place * layout.shards * layout.slices:
        place = layout.place(record(number, task))
        if len(places[place.shard, place.slice]) < per_place:
            places[place.shard, place.slice].append(row(number, task))
        number += 1
    return dict(sorted(places.items()))


def write_rows(path: Path, rows: Iterable[Row]) -> Path:
    """Rows as JSONL."""
    write_new(path, "".join(json.dumps(each) + "\n" for each in rows).encode())
    return path


def flat(places: Mapping[Place, Sequence[Row]]) -> list[Row]:
    """Every row of a grid."""
    return [each for rows in places.values() for each in rows]


# -- workspaces -------------------------------------------------------------------------------


def make_workspace(path: Path, task: str, base: Path | str, **values: Any) -> Path:
    """An empty workspace with our root secret, so that :func:`grid` knows its places."""
    labels = {"labels": list(LABELS)} if task == "classification" else {}
    with fixed_root(ROOT):
        initialise(
            path,
            task=task,
            base_model=str(base),
            values={**SMALL, **labels, "namespace": "tests", "executor": "inline", **values},
        )
    return path


def train_in(path: Path, *data: Path, executor: Executor | None = None, trainer: SliceTrainer | None = None) -> Trained:
    """``sisa train`` in this process."""
    with open_session(path) as session:
        return train(session, data, executor=executor or InlineExecutor(), trainer=trainer)


def delete_in(
    path: Path, ids: Sequence[str], *, executor: Executor | None = None, trainer: SliceTrainer | None = None
) -> Deleted:
    """``sisa delete`` in this process."""
    with open_session(path) as session:
        return delete(session, ids, executor=executor or InlineExecutor(), trainer=trainer)


def fresh_run(source: Path, path: Path, *, trainer: SliceTrainer | None = None) -> Path:
    """Another workspace with the same keys and recipe, trained from nothing on what survives in ``source``."""
    data = path.with_suffix(".jsonl")
    with open_session(source) as session:
        export_records(session, data)
    initialise(path, keys_from=source)
    train_in(path, data, trainer=trainer)
    return path


def tensors(path: Path) -> dict[Place, dict[str, torch.Tensor]]:
    """Every tensor of every live checkpoint, by (shard, slice)."""
    from safetensors.torch import load

    workspace = Workspace.open(path)
    try:
        return {
            (made.link.shard, made.link.slice): load(workspace.store.get(made.files)[WEIGHTS_FILE])
            for made in workspace.book.live().values()
        }
    finally:
        workspace.close()


def differences(one: Path, other: Path) -> list[str]:
    """What the law says must be equal in two workspaces and is not; the oracle of every exactness test."""
    import torch

    found: list[str] = []
    left, right = tensors(one), tensors(other)
    for place in sorted(left.keys() | right.keys()):
        mine, theirs = left.get(place, {}), right.get(place, {})
        found += [
            f"shard {place[0]} slice {place[1]}: {name}"
            for name in sorted(mine.keys() | theirs.keys())
            if name not in mine or name not in theirs or not torch.equal(mine[name], theirs[name])
        ]
    facts = []
    for path in (one, other):
        workspace = Workspace.open(path)
        manifest = workspace.book.manifest()
        facts.append((sorted(workspace.book.live()), manifest.digest if manifest else None))
        workspace.close()
    if facts[0][0] != facts[1][0]:
        found.append("checkpoint keys")
    if facts[0][1] != facts[1][1]:
        found.append("manifest digest")
    return found


def checkpoint_files(path: Path) -> dict[Place, dict[str, bytes]]:
    """The bytes of every live checkpoint's files, by (shard, slice)."""
    workspace = Workspace.open(path)
    try:
        return {
            (made.link.shard, made.link.slice): workspace.store.get(made.files)
            for made in workspace.book.live().values()
        }
    finally:
        workspace.close()
