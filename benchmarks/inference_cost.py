"""What do the answers of many adapters cost, against asking one after the other, and against the base alone?

    python -m benchmarks.inference_cost [--data DIR] [--quick] [--out FILE]

Eight shards are trained on a few records of Banking77 (DIR/banking77; without DIR made-up ones) over the packaged
encoder, and on made-up conversations over a small Llama. Then, by turns in rounds whose order rotates, on one thread:

    ensemble    all shards in one pass over one base, as ``sisa predict`` answers
    separate    PEFT's model with the eight adapters, asked with one after the other, in the same batches
    folded      a merge (``cat``) folded into full weights
    base        the base alone

The encoder's ensemble is asked with 1, 4 and 16 shards too, against the base. For the Llama, answers are generated
greedily, token by token, each side with caches of its own. Memory is the peak of a fresh process that answers, above
what it had when its libraries were imported: the ensemble's, and one plain model's plus the bytes of adapters and
caches. ``--quick`` runs the same code on tiny bases; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks import speed_bases
from benchmarks.data import spread, write_jsonl
from benchmarks.environment import environment, load, peak_memory
from benchmarks.executor_throughput import rotated
from benchmarks.speed_bases import SHARDS, Base
from orchestration.inline import InlineExecutor
from sisa.initialise import initialise
from sisa.predict import Predictor
from sisa.served import ServedHead
from sisa.session import Session, open_session
from sisa.train import train

if TYPE_CHECKING:
    import torch

RESULT = Path(__file__).parent / "results" / "inference_cost.json"
BATCH = 8
LONGEST = 200  # characters of a prompt: something of the answer must be left within the recipe's max_length
SIDES = ("ensemble", "separate", "folded", "base")


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured.

    Attributes:
        records: that the shards are trained on.
        texts: that are labelled in a round.
        tokens: that are generated in a round.
        rounds: counted ones.
    """

    records: int
    texts: int
    tokens: int
    rounds: int


WHOLE = Sizes(192, 64, 48, 7)
QUICK = Sizes(192, 4, 3, 1)
OTHERS = (1, 4, 16)  # shards that are asked too, for labels


class Asked:
    """A trained workspace, and every side over it.

    Args:
        session: of it.
        inputs: batches of inputs, (rows, width) tokens with their mask.
        tokens: to generate; 0 labels.
    """

    def __init__(self, session: Session, inputs: Sequence[dict[str, torch.Tensor]], tokens: int) -> None:
        self._session, self._inputs, self._tokens = session, inputs, tokens

    def heads(self) -> tuple[ServedHead, ...]:
        """What is served, read anew: a side that asks the base alone holds none of it."""
        return Predictor(self._session).held()[1]

    def side(self, name: str) -> Callable[[], Any]:
        """Loads what it needs; then answers all inputs each time it is called."""
        return {"ensemble": self._ensemble, "separate": self._separate, "folded": self._folded, "base": self._base}[
            name
        ]()

    def _ensemble(self) -> Callable[[], Any]:
        from sisa.aggregate import ensemble

        model = ensemble(self._session, self.heads())
        return lambda: self._ask(model)

    def _separate(self) -> Callable[[], Any]:
        from peft import PeftModel

        live = self._session.workspace.book.live()
        paths = [str(self._session.workspace.store.path(live[head.head.checkpoint].files)) for head in self.heads()]
        model = PeftModel.from_pretrained(self._plain(), paths[0], adapter_name="0").eval()
        for number, path in enumerate(paths[1:], 1):
            model.load_adapter(path, adapter_name=str(number))

        def ask() -> list[Any]:
            answers = []
            for number in range(len(paths)):
                model.set_adapter(str(number))
                answers.append(self._ask(model))
            return answers

        return ask

    def _folded(self) -> Callable[[], Any]:
        from sisa.base_model import pinned_path
        from sisa.merge import merge
        from sisa.plain_model import folded

        recipe = self._session.recipe
        base = str(pinned_path(recipe, self._session.options.base_model))
        model = folded(recipe, base, merge(self._session, self.heads(), "cat").tensors)
        return lambda: self._ask(model)

    def _base(self) -> Callable[[], Any]:
        model = self._plain()
        return lambda: self._ask(model)

    def cache_bytes(self) -> int:
        """Of one model's keys and values when an answer is written; 0 where none is."""
        config = self._plain().config.get_text_config()
        heads = getattr(config, "num_key_value_heads", 0)
        width = config.hidden_size // config.num_attention_heads
        length = self._inputs[0]["input_ids"].shape[1] + self._tokens
        return 2 * 4 * config.num_hidden_layers * heads * width * length if self._tokens else 0

    def _plain(self) -> Any:
        from sisa.base_model import load_base, pinned_path, quiet_transformers

        recipe = self._session.recipe
        with quiet_transformers():
            model, _ = load_base(recipe, str(pinned_path(recipe, self._session.options.base_model)))
        return model.eval()

    def _ask(self, model: Any) -> list[Any]:
        """Scores (rows, labels) or tokens (rows, width) of each batch."""
        import torch

        from sisa.determinism import reproducible

        with reproducible(self._session.recipe), torch.no_grad():
            return [self._written(model, rows) if self._tokens else model(**rows).logits for rows in self._inputs]

    def _written(self, model: Any, rows: dict[str, torch.Tensor]) -> torch.Tensor:
        made: torch.Tensor = model.generate(
            **rows,
            max_new_tokens=self._tokens,
            min_new_tokens=self._tokens,  # all sides the same number
            do_sample=False,
            pad_token_id=0,
        )
        return made


def check_together(together: Sequence[torch.Tensor], apart: Sequence[Sequence[torch.Tensor]]) -> None:
    """Raise unless the ensemble's scores, of each batch, are those of the adapters' mean probability."""
    import torch

    for number, scores in enumerate(together):
        mean = torch.stack([answers[number].softmax(-1) for answers in apart]).mean(0)
        if not torch.allclose(scores.softmax(-1), mean, atol=1e-5):
            raise RuntimeError("the sides do not answer the same, so their times are of different things")


def inputs_of(session: Session, texts: int) -> list[dict[str, torch.Tensor]]:
    """Labelled: ``texts`` records in batches of like length. Generated: one prompt alone."""
    from sisa.base_model import load_tokenizer, pinned_path
    from sisa.encoding import encode_prompt, pad_batch

    recipe = session.recipe
    tokenizer: Any = load_tokenizer(recipe, str(pinned_path(recipe, session.options.base_model)))
    fields = [stored.record.fields() for stored in session.workspace.survivors()][:texts]
    if recipe.task == "causal-lm":
        fields = [{"prompt": fields[0]["prompt"]}]
    tokens = sorted((encode_prompt(each, recipe, tokenizer) for each in fields), key=len)
    return [
        pad_batch(tokens[start : start + BATCH], tokenizer.pad_token_id, recipe.device)
        for start in range(0, len(tokens), BATCH)
    ]


def trained(base: Base, directory: Path, records: int, shards: int = SHARDS) -> Path:
    """A workspace of so many shards, trained on some records."""
    data, workspace = directory / "records.jsonl", directory / f"workspace-{shards}"
    short = [record for record in base.records if len(record.fields().get("prompt", "")) <= LONGEST]
    write_jsonl(data, spread(short, records))
    values = {name: value for name, value in base.values.items() if not name.endswith("_digest")} | {"shards": shards}
    initialise(workspace, base_model=str(base.path), data=[data], values=values)
    with open_session(workspace, executor="inline") as session:
        train(session, executor=InlineExecutor())
    return workspace


def measure(workspace: Path, sizes: Sizes, *, generates: bool) -> dict[str, Any]:
    """Times of all sides by turns, and memory."""
    with open_session(workspace, executor="inline") as session:
        asked = Asked(session, inputs_of(session, sizes.texts), sizes.tokens if generates else 0)
        sides = {name: asked.side(name) for name in SIDES}
        answers = {name: ask() for name, ask in sides.items()}
        if not generates:
            check_together(answers["ensemble"], answers["separate"])
        rounds = [_round(sides, number) for number in range(sizes.rounds)]
        heads = asked.heads()
        adapters = sum(len(head.weights) for head in heads)
    return {
        "shards": len(heads),
        "texts": None if generates else sizes.texts,
        "tokens": sizes.tokens if generates else None,
        "ensemble_over_separate": _times(rounds, "ensemble", "separate"),
        "folded_over_base": _times(rounds, "folded", "base"),
        "ensemble_over_base": _times(rounds, "ensemble", "base"),
        "memory": _memory(workspace, sizes, adapters, generates=generates),
        "rounds": rounds,
    }


def over_base(workspace: Path, sizes: Sizes) -> dict[str, float]:
    """How many times as long as the base the ensemble takes to label."""
    with open_session(workspace, executor="inline") as session:
        asked = Asked(session, inputs_of(session, sizes.texts), 0)
        sides = {name: asked.side(name) for name in ("ensemble", "base")}
        for ask in sides.values():
            ask()
        return _times([_round(sides, number) for number in range(sizes.rounds)], "ensemble", "base")


def _round(sides: Mapping[str, Callable[[], Any]], number: int) -> dict[str, Any]:
    seconds = {}
    for name in rotated(list(sides), number):
        started = time.perf_counter()
        sides[name]()
        seconds[name] = time.perf_counter() - started
    return {"seconds": seconds, "load_average": load()}


def _times(rounds: Sequence[Mapping[str, Any]], one: str, other: str) -> dict[str, float]:
    """Median and range of how many times as long one side takes, round by round."""
    ratios = [found["seconds"][one] / found["seconds"][other] for found in rounds]
    return {"median": median(ratios), "lowest": min(ratios), "highest": max(ratios)}


# -- memory -----------------------------------------------------------------------------------


def _memory(workspace: Path, sizes: Sizes, adapters: int, *, generates: bool) -> dict[str, int]:
    """Bytes at the peak of a process that answers, less what it had with its libraries alone."""
    found = {}
    for side in ("ensemble", "base"):
        command = [sys.executable, "-m", "benchmarks.inference_cost", "--alone", side, str(workspace)]
        counts = [str(sizes.texts), str(sizes.tokens if generates else 0)]
        found[side] = json.loads(subprocess.run(command + counts, check=True, capture_output=True, text=True).stdout)
    caches = (SHARDS - 1) * found["base"]["cache_bytes"]  # the base's process has one
    return {
        "ensemble": found["ensemble"]["bytes"],
        "base": found["base"]["bytes"],
        "adapters": adapters,
        "caches": caches,
    }


def alone(side: str, workspace: Path, texts: int, tokens: int) -> dict[str, int]:
    """What a process of its own needs to answer once."""
    import peft  # noqa: F401 - loaded before memory is counted, as by both sides
    import torch  # noqa: F401

    before = peak_memory()
    with open_session(workspace, executor="inline") as session:
        asked = Asked(session, inputs_of(session, texts), tokens)
        asked.side(side)()
        return {"bytes": peak_memory() - before, "cache_bytes": asked.cache_bytes()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="directory of banking77 and synthetic_persona_chat")
    parser.add_argument("--quick", action="store_true", help="tiny bases, made-up records; the figures mean nothing")
    parser.add_argument("--out", type=Path, help=f"default: {RESULT.name} in benchmarks/results, with --quick nowhere")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if given.alone is not None:
        side, workspace, texts, tokens = given.alone
        print(json.dumps(alone(side, Path(workspace), int(texts), int(tokens))))
        return
    if given.data is None and not given.quick:
        parser.error("name the records' directory with --data, or try the code with --quick")
    data, sizes = (None, QUICK) if given.quick else (given.data, WHOLE)
    out = given.out or (None if given.quick else RESULT)
    document: dict[str, Any] = {
        "schema": "inference-cost/1",
        "command": f"python -m benchmarks.inference_cost {'--quick' if given.quick else '--data DIR'}",
        "environment": environment(),
    }
    size = speed_bases.TINY if given.quick else speed_bases.SMALL
    makers: dict[str, Callable[[Path], Base]] = {
        "encoder": lambda path: speed_bases.encoder(data, path),
        "llama": lambda path: speed_bases.llama(size, data, path),
    }
    with tempfile.TemporaryDirectory(prefix="sisa-bench-") as scratch:
        for name, make in makers.items():
            directory = Path(scratch) / name
            (directory / "base").mkdir(parents=True)
            base = make(directory / "base")
            workspace = trained(base, directory, sizes.records)
            document[name] = measure(workspace, sizes, generates=name == "llama")
            if name == "encoder":
                document["encoder_by_shards"] = {
                    str(shards): over_base(trained(base, directory, sizes.records, shards), sizes) for shards in OTHERS
                } | {str(SHARDS): document[name]["ensemble_over_base"]}
            for what in ("ensemble_over_separate", "folded_over_base"):
                found = document[name][what]
                print(f"{name} {what} {found['median']:.2f} ({found['lowest']:.2f} to {found['highest']:.2f})")
    if out is not None:
        out.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
