"""What training speed is measured on: two bases and their records, published ones or made-up ones."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from benchmarks.data import banking_records, labels_of, spread, synthetic_records, write_jsonl
from benchmarks.settings import recipe_values
from shards.records import Record, make_content, read_records
from sisa.base_model import PACKAGED, locate, model_digests, quiet_transformers
from sisa.config import Recipe, make_settings

SHARDS = 8
ENCODER = {"batch_size": 8, "max_length": 64}
CAUSAL = {"batch_size": 4, "max_length": 128}
LONG = {"batch_size": 4, "max_length": 512}
SETTINGS = recipe_values(SHARDS, 1, 0.0) | {"encoder": ENCODER, "llama": CAUSAL, "long_llama": LONG}
_TURNS = (1, 3, 5)  # of a conversation that come before the answer


@dataclass(frozen=True, slots=True)
class Llama:
    """A decoder with random weights: how large, and how many tokens its tokenizer and its head know."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    tokens: int
    vocabulary: int
    positions: int
    dtype: str = "float32"


SMALL = Llama(256, 6, 4, 2, 688, 4096, 4096, 256)
WIDE = Llama(256, 6, 4, 2, 688, 4096, 32_000, 256)
HALF_BILLION = Llama(896, 24, 14, 2, 4864, 16_384, 32_000, 1024, "bfloat16")
TINY = Llama(32, 3, 4, 2, 64, 340, 340, 256)


@dataclass(frozen=True, slots=True)
class Base:
    """A base with records that suit it.

    Attributes:
        path: of the base.
        records: enough for every measurement.
        values: keys of its recipes.
    """

    path: Path
    records: tuple[Record, ...]
    values: dict[str, Any]

    def recipe(self, **changes: Any) -> Recipe:
        """The recipe with some keys changed."""
        return make_settings(self.values | {"base_model": str(self.path)} | changes, "the benchmark").recipe


@dataclass(frozen=True, slots=True)
class Job:
    """What one process trains, as it reads it from a file.

    Attributes:
        recipe: as JSON.
        base: where it lies.
        records: their file.
        patches: names in :mod:`benchmarks.speed_patches`.
    """

    recipe: dict[str, Any]
    base: str
    records: str
    patches: tuple[str, ...] = ()

    def write(self, path: Path) -> Path:
        """Write it for a process."""
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> Job:
        """What :meth:`write` wrote."""
        values = json.loads(path.read_text())
        return cls(values["recipe"], values["base"], values["records"], tuple(values["patches"]))

    def shards(self) -> list[list[Record]]:
        """The records in shards of equal size."""
        records = [item.record for item in read_records([Path(self.records)], self.recipe["task"])]
        return [records[number::SHARDS] for number in range(SHARDS)]


def make_job(base: Base, per_shard: int, scratch: Path, patches: tuple[str, ...] = (), **changes: Any) -> Job:
    """A job over ``per_shard`` records a shard, its records written."""
    path = scratch / "records.jsonl"
    write_jsonl(path, spread(base.records, per_shard * SHARDS))
    return Job(base.recipe(**changes).to_json(), str(base.path), str(path), patches)


def encoder(data: Path | None, scratch: Path) -> Base:
    """The packaged encoder on Banking77; without data a tiny one on made-up texts."""
    records = synthetic_records(1000) if data is None else banking_records(data / "banking77")
    path = locate(PACKAGED) if data is not None else _tiny_encoder(records, scratch)
    return _base(path, records, "classification", **ENCODER, labels=list(labels_of(records)))


def llama(size: Llama, data: Path | None, scratch: Path) -> Base:
    """A decoder on persona chat: some turns of a conversation, and the answer to be learnt."""
    conversations = _made_up() if data is None else _conversations(data / "synthetic_persona_chat")
    records = [
        _record(number, {"prompt": "\n".join(lines[:turns]), "completion": "\n" + lines[turns]})
        for number, (lines, turns) in enumerate(zip(conversations, cycle(_TURNS), strict=False))
    ]
    _save_llama(size, conversations, scratch)
    return _base(scratch, records, "causal-lm", **CAUSAL)


def long_llama(size: Llama, data: Path | None, scratch: Path) -> Base:
    """The same on texts of about 64 to 512 tokens, for a GPU."""
    conversations = _made_up() if data is None else _conversations(data / "synthetic_persona_chat")
    records = [
        _record(number, {"text": " ".join("\n".join(lines).split()[: 50 + number * 37 % 350])})
        for number, lines in enumerate(conversations)
    ]
    _save_llama(size, conversations, scratch)
    return _base(scratch, records, "causal-lm", **LONG, dtype=size.dtype, device="cuda")


def _base(path: Path, records: Sequence[Record], task: str, **values: Any) -> Base:
    weights, tokenizer = model_digests(path)
    digests = {"task": task, "base_model_digest": weights, "tokenizer_digest": tokenizer}
    return Base(path, tuple(records), recipe_values(SHARDS, 1, 0.0) | digests | values)


def _record(number: int, fields: dict[str, Any]) -> Record:
    return Record(f"c{number:05d}", make_content(fields))


def _conversations(directory: Path) -> list[list[str]]:
    """Lines of each conversation that has enough of them."""
    found = []
    for path in sorted(directory.glob("*.csv")):
        with path.open(newline="", encoding="utf-8") as handle:
            found += [row["Best Generated Conversation"].splitlines() for row in csv.DictReader(handle)]
    return [lines for lines in found if len(lines) > max(_TURNS)]


def _made_up() -> list[list[str]]:
    texts = cycle(str(record.fields()["text"]) for record in synthetic_records(300))
    return [list(islice(texts, 6)) for _ in range(400)]


def _save_llama(size: Llama, conversations: Sequence[Sequence[str]], path: Path) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    _save_tokenizer([line for lines in conversations for line in lines], size.tokens, "<s> $A", path)
    config = LlamaConfig(
        vocab_size=size.vocabulary, hidden_size=size.hidden, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.positions, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(getattr(torch, size.dtype)).save_pretrained(path)


def _tiny_encoder(records: Sequence[Record], path: Path) -> Path:
    import torch
    from transformers import BertConfig, BertModel

    _save_tokenizer([str(record.fields()["text"]) for record in records], TINY.tokens, "<s> $A </s>", path)
    config = BertConfig(
        vocab_size=TINY.vocabulary, hidden_size=TINY.hidden, intermediate_size=TINY.intermediate,
        num_hidden_layers=TINY.layers, num_attention_heads=TINY.heads, max_position_embeddings=TINY.positions,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(path)
    return path


def _save_tokenizer(texts: Sequence[str], tokens: int, single: str, path: Path) -> None:
    """Train a byte-level tokenizer on ``texts`` and save it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=tokens,
        special_tokens=["<pad>", "<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", 1), ("</s>", 2)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(path)
