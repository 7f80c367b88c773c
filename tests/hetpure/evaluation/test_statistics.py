"""Intervals against published numbers and against their own promise: coverage."""

import numpy as np
import pytest

from hetpure.evaluation.statistics import majority, mean_accuracy, vote_accuracy, wilson


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_intervals(correct: int, n: int, low: float, high: float) -> None:
    estimate = wilson(correct, n)
    assert (estimate.low, estimate.high) == pytest.approx((low, high), abs=5e-5)
    assert estimate.accuracy == correct / n


def test_single_is_wilson_where_draws_agree() -> None:
    column = np.array([True] * 30 + [False] * 34)[:, None]
    estimate = mean_accuracy(np.repeat(column, 5, axis=1))
    assert (estimate.low, estimate.high) == (wilson(30, 64).low, wilson(30, 64).high)
    assert (estimate.n, estimate.draws) == (64, 5)


def test_single_all_right_keeps_an_interval() -> None:
    estimate = mean_accuracy(np.ones((64, 5), dtype=bool))
    assert estimate.accuracy == 1
    assert estimate.low == pytest.approx(64 / (64 + 3.8415), abs=1e-4)  # Wilson at p = 1


def test_one_stray_draw_does_not_tighten_the_interval() -> None:
    """1 of 320 draws right: a bootstrap alone would end at 1.25%, below Wilson's 5.7% for none."""
    correct = np.zeros((64, 5), dtype=bool)
    correct[3, 2] = True
    assert mean_accuracy(correct).high >= wilson(0, 64).high
    assert mean_accuracy(~correct).low <= wilson(64, 64).low


def test_bootstrap_interval_covers_the_truth() -> None:
    """Samples with rates ~ Beta(2, 1), 64 samples, 5 draws: the truth 2/3 is covered about 95% of
    the time. 300 repetitions: three standard errors are 3.8 points, plus the small-sample
    shortfall of a percentile bootstrap (about one point at n = 64)."""
    generator = np.random.default_rng(1)
    covered = 0
    for repetition in range(300):
        rates = generator.beta(2, 1, size=64)
        correct = generator.random((64, 5)) < rates[:, None]
        estimate = mean_accuracy(correct, seed=repetition)
        covered += estimate.low <= 2 / 3 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.99


def test_draws_do_not_pretend_to_be_samples() -> None:
    """More draws of the same samples must not shrink the interval to that of n * draws samples."""
    generator = np.random.default_rng(2)
    rates = generator.random(50) < 0.6
    noisy = np.where(rates, 0.95, 0.05)[:, None]
    estimate = mean_accuracy(generator.random((50, 200)) < noisy)
    assert estimate.high - estimate.low > 0.2  # 10,000 independent draws would give 0.02


def test_same_seed_same_interval() -> None:
    correct = np.random.default_rng(0).random((20, 3)) < 0.5
    assert mean_accuracy(correct) == mean_accuracy(correct)


def test_majority_and_ties() -> None:
    predictions = np.array([[1, 1, 2], [1, 2, 3], [1, 1, 2], [4, 4, 4]])
    assert majority(predictions).tolist() == [1, -1, 1, 4]
    assert majority(np.array([[1, 1, 2, 2]])).tolist() == [-1]
    assert majority(np.array([[1, 1, 2, 2, 3]])).tolist() == [-1]


def test_a_tie_counts_as_wrong() -> None:
    labels = np.array([1, 1])
    estimate = vote_accuracy(np.array([[1, 2], [1, 1]]), labels)
    assert (estimate.accuracy, estimate.n, estimate.draws) == (0.5, 2, 2)


def test_a_plurality_wins_without_an_absolute_majority() -> None:
    assert vote_accuracy(np.array([[7, 7, 1, 2, 3]]), np.array([7])).accuracy == 1
