"""Every metric against numbers worked out by hand, and the edges where it has to say something."""

from __future__ import annotations

import math

import pytest
import torch

from sisa.metrics import (
    Rouge,
    accuracy,
    answer_probability,
    brier,
    calibration_error,
    classification,
    log_loss,
    macro_f1,
    perplexity,
    rouge_l,
)

SURE = torch.tensor([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.3, 0.3, 0.4]], dtype=torch.float64)
TRUE = torch.tensor([0, 1, 1, 2])


def test_metrics_of_labels_are_those_worked_out_by_hand() -> None:
    assert accuracy(SURE, TRUE) == 0.75
    # label 0: one of two answers; label 1: one of two texts; label 2: both
    assert macro_f1(SURE, TRUE) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert log_loss(SURE, TRUE) == pytest.approx(-sum(map(math.log, (0.8, 0.3, 0.7, 0.4))) / 4)
    assert brier(SURE, TRUE) == pytest.approx((0.06 + 0.86 + 0.14 + 0.54) / 4)
    assert classification(SURE, TRUE)["calibration_error"] == calibration_error(SURE, TRUE)


def test_calibration_error_is_the_gap_of_each_bin_weighted_by_its_texts() -> None:
    half = torch.tensor([[0.5, 0.5]] * 4, dtype=torch.float64)
    assert calibration_error(half, torch.tensor([0, 0, 1, 1])) == 0
    assert calibration_error(half, torch.tensor([0, 0, 0, 0])) == 0.5
    # gaps in two bins do not cancel each other
    mixed = torch.tensor([[0.9, 0.1], [0.6, 0.4]], dtype=torch.float64)
    assert calibration_error(mixed, torch.tensor([1, 0]), bins=10) == pytest.approx((0.9 + 0.4) / 2)
    # ... but inside one they do
    assert calibration_error(mixed, torch.tensor([1, 0]), bins=1) == pytest.approx(abs(0.5 - 0.75))


def test_certainty_falls_into_the_last_bin_and_is_calibrated_when_right() -> None:
    certain = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert calibration_error(certain, torch.tensor([0, 1])) == 0
    assert calibration_error(certain, torch.tensor([1, 0])) == 1


def test_no_chance_for_the_true_label_is_an_infinite_loss_and_not_a_large_one() -> None:
    assert log_loss(torch.tensor([[1.0, 0.0]]), torch.tensor([1])) == math.inf


def test_of_equally_likely_labels_the_first_is_answered() -> None:
    assert accuracy(torch.tensor([[0.4, 0.4, 0.2]]), torch.tensor([0])) == 1
    assert accuracy(torch.tensor([[0.2, 0.4, 0.4]]), torch.tensor([2])) == 0


def test_macro_f1_leaves_out_labels_that_are_nowhere() -> None:
    none_of_the_third = torch.tensor([[0.9, 0.1, 0.0], [0.1, 0.9, 0.0]])
    assert macro_f1(none_of_the_third, torch.tensor([0, 1])) == 1


@pytest.mark.parametrize("targets", [torch.tensor([0]), torch.tensor([], dtype=torch.long)])
def test_shapes_that_do_not_fit_are_refused(targets: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="targets"):
        classification(SURE[: 2 * len(targets)], targets)


def test_perplexity_counts_tokens_and_answer_probability_counts_answers() -> None:
    scores = [torch.tensor([0.5, 0.5]).log(), torch.tensor([0.125]).log()]
    assert perplexity(scores) == pytest.approx((0.5 * 0.5 * 0.125) ** (-1 / 3))
    assert answer_probability(scores) == pytest.approx((0.5 + 0.125) / 2)
    assert perplexity([torch.zeros(3)]) == answer_probability([torch.zeros(3)]) == 1


# What the package rouge-score 0.1.2 gives without its stemmer.
@pytest.mark.parametrize(
    ("answer", "reference", "recall", "f1"),
    [
        ("The cat sat on the mat.", "the cat lay on a mat", 4 / 6, 4 / 6),
        ("on mat cat", "the cat lay on a mat", 2 / 6, 4 / 9),
        ("We're in Kyoto, 1984!", "were in kyoto 1984", 3 / 4, 6 / 9),
        ("runs", "run", 0.0, 0.0),
        ("a b a b a", "b a b", 1.0, 6 / 8),
    ],
)
def test_rouge_l_is_what_the_reference_program_gives(answer: str, reference: str, recall: float, f1: float) -> None:
    found = rouge_l(answer, reference)
    assert found.recall == pytest.approx(recall)
    assert found.f1 == pytest.approx(f1)


def test_rouge_l_of_nothing_is_nothing() -> None:
    assert rouge_l("", "a") == rouge_l("a", "") == rouge_l("?", "!") == Rouge(0.0, 0.0)
