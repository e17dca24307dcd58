"""One transformers model, asked without PEFT: a merge over a base of its own, or an ensemble as it is exported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from shards.errors import InputError
from shards.records import Record
from sisa.base_model import load_base, load_tokenizer, pinned_path, quiet_transformers
from sisa.batches import chunks
from sisa.determinism import reproducible
from sisa.encoding import IGNORED, encode, encode_prompt, end_token_id, pad_batch
from sisa.session import Session


def merged_model(session: Session, tensors: Mapping[str, torch.Tensor]) -> PlainModel:
    """The base, fresh from disk, with a merge's full weights (by the base's own names) in place of its own.

    Raises:
        InputError: if they are not this base's, or leave a head that no file holds.
    """
    with quiet_transformers():
        model, missing = load_base(session.recipe, str(pinned_path(session.recipe, session.options.base_model)))
    own = model.state_dict()
    odd = [name for name, tensor in tensors.items() if name not in own or own[name].shape != tensor.shape]
    odd += sorted(missing - tensors.keys())
    if odd or not tensors:
        raise InputError(
            "full weights that this base can take",
            f"none that fit, for instance of {odd[0]}" if odd else "a merge that is an adapter only",
            "export the merge, and evaluate what was exported",
        )
    model.load_state_dict(tensors, strict=False)
    return PlainModel(session, model.eval())


class PlainModel:
    """A model of the recipe's task, asked under the recipe's switches."""

    def __init__(self, session: Session, model: Any) -> None:
        self._recipe, self._options, self._model = session.recipe, session.options, model
        base = str(pinned_path(session.recipe, session.options.base_model))
        self._tokenizer: Any = load_tokenizer(session.recipe, base)

    def logits(self, inputs: Sequence[dict[str, Any]]) -> torch.Tensor:
        """Scores (N, labels) of each input's ``text``."""
        texts = [encode_prompt(fields, self._recipe, self._tokenizer) for fields in inputs]
        with reproducible(self._recipe), torch.no_grad():
            parts = [
                self._model(**self._batch(part)).logits.double().cpu()
                for part in chunks(texts, self._recipe.batch_size)
            ]
        return torch.cat(parts)

    def answer_scores(self, records: Sequence[Record]) -> list[torch.Tensor]:
        """The log-probability (nats) of each target token, one tensor (tokens) a record."""
        found = []
        with reproducible(self._recipe), torch.no_grad():
            for record in records:
                example = encode(record, self._recipe, self._tokenizer)
                wanted = torch.tensor(example.targets[1:], device=self._recipe.device)
                asked = wanted != IGNORED
                scores = self._model(**self._batch([example.tokens])).logits[0, :-1][asked].double().log_softmax(-1)
                found.append(scores.gather(1, wanted[asked][:, None])[:, 0].cpu())
        return found

    def generate(self, inputs: Sequence[dict[str, Any]]) -> list[str]:
        """The greedy answer to each input's ``prompt`` or ``messages``."""
        from transformers import GenerationConfig

        self._model.generation_config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self._options.max_new_tokens,
            eos_token_id=end_token_id(self._recipe, self._tokenizer),
            pad_token_id=self._tokenizer.pad_token_id,
        )
        answers = []
        with reproducible(self._recipe), torch.no_grad(), quiet_transformers():
            for fields in inputs:
                prompt = encode_prompt(fields, self._recipe, self._tokenizer)
                tokens = self._model.generate(**self._batch([prompt]))[0, len(prompt) :]
                answers.append(str(self._tokenizer.decode(tokens, skip_special_tokens=True)))
        return answers

    def _batch(self, texts: Sequence[Sequence[int]]) -> dict[str, Any]:
        return pad_batch(texts, self._tokenizer.pad_token_id, self._recipe.device)
