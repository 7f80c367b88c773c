"""Right or wrong by sample: McNemar's test, Newcombe's paired interval, `worst`, success."""

from math import comb

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binomtest

from hetpure.evaluation.statistics import (
    attack_success,
    in_points,
    mcnemar,
    mean_accuracy,
    paired_proportions,
    vote_accuracy,
    wilson,
    worst_accuracy,
)

Outcomes = NDArray[np.bool_]


def pairs(both: int, first: int, second: int, none: int) -> tuple[Outcomes, Outcomes]:
    """Two outcomes with these counts: both right, only the first, only the second, none."""
    ours = [True] * (both + first) + [False] * (second + none)
    theirs = [True] * both + [False] * first + [True] * second + [False] * none
    return np.array(ours), np.array(theirs)


@pytest.mark.parametrize(("first", "second"), [(1, 7), (7, 1), (2, 12), (0, 5), (0, 6), (3, 20)])
def test_mcnemar_is_the_binomial_sum(first: int, second: int) -> None:
    """Both tails of fair coins: twice the smaller one, by hand."""
    found = mcnemar(*pairs(10, first, second, 4))
    total, few = first + second, min(first, second)
    by_hand = 2 * sum(comb(total, k) for k in range(few + 1)) / 2**total
    assert found.p_value == pytest.approx(by_hand, rel=1e-12)
    assert found.p_value == pytest.approx(binomtest(first, total).pvalue, rel=1e-12)
    assert (found.only_first, found.only_second) == (first, second)


def test_mcnemar_sees_discordant_samples_only() -> None:
    assert mcnemar(*pairs(30, 0, 0, 34)).p_value == 1
    assert mcnemar(*pairs(0, 5, 5, 0)).p_value == 1
    assert mcnemar(*pairs(0, 2, 9, 0)).p_value == mcnemar(*pairs(500, 2, 9, 300)).p_value


def test_mcnemar_is_symmetric() -> None:
    first, second = pairs(5, 2, 9, 3)
    found, swapped = mcnemar(first, second), mcnemar(second, first)
    assert found.p_value == swapped.p_value
    assert (found.only_first, found.only_second) == (swapped.only_second, swapped.only_first)


@pytest.mark.parametrize("total", range(1, 40, 3))
def test_mcnemar_cries_wolf_at_most_one_time_in_twenty(total: int) -> None:
    """Exactly: the probability, were both equal, of all outcomes with p <= .05."""
    alarms = [
        comb(total, k) / 2**total
        for k in range(total + 1)
        if mcnemar(*pairs(0, k, total - k, 0)).p_value <= 0.05
    ]
    assert sum(alarms) <= 0.05


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998 (paired data), method 10
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((53, 0, 0, 1), -0.0729, 0.0729),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((59, 6, 16, 80), -0.1186, -0.0046),  # R's contingencytables, cavo_2012
    ],
)
def test_newcombe_equals_published_intervals(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    found = paired_proportions(*pairs(*counts))
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert found.difference == (counts[1] - counts[2]) / sum(counts)
    assert found.n == sum(counts)


def test_newcombe_by_hand_where_the_correlation_is_negative() -> None:
    """(2, 6, 7, 3): ad - bc = -36 needs no correction; p1 = 8/18, p2 = 9/18, margins 8 10 9 9."""
    found = paired_proportions(*pairs(2, 6, 7, 3))
    ours, theirs = wilson(8, 18), wilson(9, 18)
    phi = -36 / (8 * 10 * 9 * 9) ** 0.5
    x, y = 8 / 18 - ours.low, theirs.high - 9 / 18
    assert found.low == pytest.approx(-1 / 18 - (x * x - 2 * phi * x * y + y * y) ** 0.5)


def test_newcombe_mirrors_when_swapped() -> None:
    first, second = pairs(14, 5, 1, 22)
    found, swapped = paired_proportions(first, second), paired_proportions(second, first)
    assert (-swapped.high, -swapped.low) == pytest.approx((found.low, found.high), abs=1e-15)
    assert swapped.difference == -found.difference


@pytest.mark.parametrize("counts", [(30, 0, 0, 0), (0, 0, 0, 30), (32, 0, 0, 32), (1, 0, 0, 0)])
def test_newcombe_of_equal_outcomes_is_around_zero_and_not_empty(
    counts: tuple[int, int, int, int],
) -> None:
    found = paired_proportions(*pairs(*counts))
    assert found.difference == 0
    assert -1 <= found.low < 0 < found.high <= 1
    assert found.low == pytest.approx(-found.high)


def test_newcombe_is_narrower_where_samples_are_hard_for_both() -> None:
    """The same shares, 60% and 50% of 100, once paired and once as if drawn apart."""
    together, apart = pairs(50, 10, 0, 40), pairs(30, 30, 20, 20)
    widths = [found.high - found.low for found in (paired_proportions(*together),
                                                   paired_proportions(*apart))]  # fmt: skip
    assert widths[0] < 0.6 * widths[1]


@pytest.mark.parametrize(
    ("law", "n", "width"),
    [
        ((0.5, 0.2, 0.1, 0.2), 50, 0.31),
        ((0.2, 0.6, 0.1, 0.1), 50, 0.38),
        ((0.3, 0.1, 0.1, 0.5), 100, 0.19),
    ],
)
def test_newcombe_covers_the_truth(
    law: tuple[float, float, float, float], n: int, width: float
) -> None:
    """600 tables of nominally 95%: one standard error is 0.9 points, and the interval is up to one
    point too wide at such n. The mean width keeps an interval of everything from passing."""
    tables = np.random.default_rng(0).multinomial(n, law, size=600).tolist()
    found = [paired_proportions(*pairs(*table)) for table in tables]
    truth = law[1] - law[2]
    covered = np.mean([each.low <= truth <= each.high for each in found])
    mean_width = np.mean([each.high - each.low for each in found])
    print(covered, mean_width)
    assert 0.93 <= covered <= 0.985
    assert mean_width < width


def test_other_samples_are_no_pairs() -> None:
    for paired in (mcnemar, paired_proportions):
        with pytest.raises(ValueError, match="3 and 4 samples"):
            paired(np.ones(3, dtype=bool), np.ones(4, dtype=bool))


def test_worst_is_right_in_all_draws() -> None:
    correct = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0], [1, 1, 1]], dtype=bool)
    found = worst_accuracy(correct)
    assert (found.accuracy, found.n, found.draws) == (0.5, 4, 3)
    assert (found.low, found.high) == (wilson(2, 4).low, wilson(2, 4).high)


def test_worst_is_below_the_other_protocols_and_equals_them_for_one_draw() -> None:
    correct = np.random.default_rng(0).random((40, 5)) < 0.8
    labels = np.zeros(40, dtype=np.int64)
    predictions = np.where(correct, 0, 1)
    worst = worst_accuracy(correct).accuracy
    assert worst < mean_accuracy(correct).accuracy
    assert worst < vote_accuracy(predictions, labels).accuracy
    assert worst_accuracy(correct[:, :1]) == mean_accuracy(correct[:, :1])


def test_attack_success_is_over_clean_correct_samples() -> None:
    """Of four right before, one is lost; the sample that was wrong before counts for nothing."""
    before = np.array([1, 1, 1, 1, 0, 0], dtype=bool)
    after = np.array([1, 1, 1, 0, 0, 1], dtype=bool)
    found = attack_success(before, after, draws=7)
    assert (found.accuracy, found.n, found.draws) == (0.25, 4, 7)
    assert (found.low, found.high) == (wilson(1, 4).low, wilson(1, 4).high)


def test_attack_success_without_a_clean_correct_sample_says_nothing() -> None:
    found = attack_success(np.zeros(5, dtype=bool), np.ones(5, dtype=bool))
    assert (found.n, found.low, found.high) == (0, 0, 1)


def test_points_have_a_sign_and_nothing_has_no_minus() -> None:
    assert in_points({"difference": -1e-17, "low": -0.324, "high": 0.324}) == "+0.0 [-32.4, +32.4]"
    assert in_points({"difference": -0.0004, "low": -0.2, "high": -0.0}) == "+0.0 [-20.0, +0.0]"
    assert in_points({"difference": -0.1, "low": -0.15, "high": -0.05}) == "-10.0 [-15.0, -5.0]"
