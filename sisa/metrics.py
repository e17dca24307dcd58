"""How good answers are: pure functions of probabilities, scores of tokens, and texts.

F1 and AUC are scikit-learn's. ROUGE-L is ten lines of our own: the package rouge-score was last released in
2022, and pulls in a language toolkit for its stemmer. Nothing is stemmed here; with stems, as TOFU has it,
the numbers are a little higher.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch

BINS = 15  # of the calibration error, as in Guo et al. (arXiv 1706.04599)


def classification(probabilities: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    """Every metric of labelled texts.

    Args:
        probabilities: of each label (N, C), each row adding up to 1.
        targets: number of the true label (N).

    Raises:
        ValueError: if the shapes do not fit, or there is nothing to judge.
    """
    if probabilities.ndim != 2 or not len(targets) or targets.shape != probabilities.shape[:1]:
        raise ValueError(f"probabilities (N, C) and targets (N), not {probabilities.shape} and {targets.shape}")
    return {
        "accuracy": accuracy(probabilities, targets),
        "macro_f1": macro_f1(probabilities, targets),
        "log_loss": log_loss(probabilities, targets),
        "calibration_error": calibration_error(probabilities, targets),
        "brier": brier(probabilities, targets),
    }


def accuracy(probabilities: torch.Tensor, targets: torch.Tensor) -> float:
    """Share of texts whose likeliest label (the first of equally likely ones) is the true one."""
    return float((probabilities.argmax(-1) == targets).double().mean())


def macro_f1(probabilities: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean F1 over the labels that are true or answered somewhere."""
    from sklearn.metrics import f1_score

    answered = probabilities.argmax(-1)
    return float(f1_score(targets.numpy(), answered.numpy(), average="macro", zero_division=0.0))


def log_loss(probabilities: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean negative log-probability (nats) of the true label; infinite where one was given no chance."""
    return float(-probabilities.gather(1, targets[:, None]).double().log().mean())


def brier(probabilities: torch.Tensor, targets: torch.Tensor) -> float:
    """Mean squared distance from certainty of the true label, over all labels (Brier 1950): 0 to 2."""
    truth = torch.nn.functional.one_hot(targets, probabilities.shape[1])
    return float((probabilities.double() - truth).square().sum(-1).mean())


def calibration_error(probabilities: torch.Tensor, targets: torch.Tensor, bins: int = BINS) -> float:
    """Expected calibration error of the answered label (ECE): equal bins of confidence, weighted by their texts."""
    confidence, answered = probabilities.double().max(-1)
    gap = (answered == targets).double() - confidence
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    sums = torch.zeros(bins, dtype=torch.float64).index_add_(0, place, gap)
    return float(sums.abs().sum() / len(targets))


def perplexity(scores: Sequence[torch.Tensor]) -> float:
    """``exp`` of the mean negative log-probability over all tokens of all answers.

    Args:
        scores: the log-probability (nats) of each target token, one tensor (tokens) an answer.
    """
    tokens = torch.cat([score.double() for score in scores])
    return math.exp(-float(tokens.mean()))


def answer_probability(scores: Sequence[torch.Tensor]) -> float:
    """Mean over answers of ``exp`` of their mean log-probability a token (TOFU, arXiv 2401.06121)."""
    return math.fsum(math.exp(float(score.double().mean())) for score in scores) / len(scores)


@dataclass(frozen=True, slots=True)
class Rouge:
    """How much of a reference's words an answer has, in their order.

    Attributes:
        recall: share of the reference's words.
        f1: harmonic mean of that and the share of the answer's words.
    """

    recall: float
    f1: float


def rouge_l(answer: str, reference: str) -> Rouge:
    """ROUGE-L (Lin 2004): the longest common subsequence of words; lower case, ASCII letters and digits, no stems."""
    ours, theirs = (re.findall("[a-z0-9]+", text.lower()) for text in (answer, reference))
    if not ours or not theirs:
        return Rouge(0.0, 0.0)
    row = [0] * (len(theirs) + 1)
    for word in ours:
        before, row = row, [0]
        for at, other in enumerate(theirs):
            row.append(before[at] + 1 if word == other else max(row[at], before[at + 1]))
    return Rouge(row[-1] / len(theirs), 2 * row[-1] / (len(ours) + len(theirs)))
