"""Accuracies and their differences: published intervals, numbers by hand, and what intervals
promise: coverage."""

from collections.abc import Callable
from itertools import combinations, product
from math import comb, prod

import numpy as np
import pytest
from numpy.typing import NDArray

from hetpure.evaluation import statistics
from hetpure.evaluation.statistics import (
    BETS,
    attack_success,
    evidence,
    exchangeable,
    holm,
    in_points,
    mcnemar,
    mean_accuracy,
    paired_difference,
    paired_proportions,
    visible,
    wilson,
)

Outcomes = NDArray[np.bool_]
Law = Callable[[int, int], tuple[Outcomes, Outcomes]]


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where coverage needs many intervals, not exact ones: an end is good to 8%."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)


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


def test_one_stray_draw_does_not_tighten_the_interval() -> None:
    """1 of 320 draws right: a bootstrap alone would end at 1.25%, below Wilson's 5.7% for none."""
    correct = np.zeros((64, 5), dtype=bool)
    correct[3, 2] = True
    assert mean_accuracy(correct).high >= wilson(0, 64).high
    assert mean_accuracy(~correct).low <= wilson(64, 64).low


@pytest.mark.usefixtures("few_resamples")
def test_bootstrap_interval_covers_the_truth() -> None:
    """Samples with rates ~ Beta(2, 1), 64 samples, 5 draws: the truth 2/3 is covered about 95% of
    the time. 300 repetitions: three standard errors are 3.8 points, plus the small-sample
    shortfall of a percentile bootstrap (about one point at n = 64)."""
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        rates = generator.beta(2, 1, size=64)
        correct = generator.random((64, 5)) < rates[:, None]
        estimate = mean_accuracy(correct)
        covered += estimate.low <= 2 / 3 <= estimate.high
    assert 0.90 <= covered / 300 <= 0.99


def test_draws_do_not_pretend_to_be_samples() -> None:
    """More draws of the same samples must not shrink the interval to that of n * draws samples."""
    generator = np.random.default_rng(2)
    rates = generator.random(50) < 0.6
    noisy = np.where(rates, 0.95, 0.05)[:, None]
    estimate = mean_accuracy(generator.random((50, 200)) < noisy)
    assert estimate.high - estimate.low > 0.2  # 10,000 independent draws would give 0.02


def test_attack_success_is_over_clean_correct_samples() -> None:
    """Of four right before, one is lost; the sample that was wrong before counts for nothing."""
    before = np.array([1, 1, 1, 1, 0, 0], dtype=bool)
    after = np.array([1, 1, 1, 0, 0, 1], dtype=bool)
    assert attack_success(before, after) == wilson(1, 4)
    nothing = attack_success(np.zeros(5, dtype=bool), np.ones(5, dtype=bool))
    assert (nothing.n, nothing.low, nothing.high) == (0, 0, 1)


# Outcomes in pairs


def pairs(both: int, first: int, second: int, none: int) -> tuple[Outcomes, Outcomes]:
    """Two outcomes with these counts: both right, only the first, only the second, none."""
    ours = [True] * (both + first) + [False] * (second + none)
    theirs = [True] * both + [False] * first + [True] * second + [False] * none
    return np.array(ours), np.array(theirs)


def test_mcnemar_is_the_binomial_sum() -> None:
    """Both tails of fair coins: twice the smaller one, by hand. Concordant samples say nothing."""
    for first, second in ((1, 7), (7, 1), (0, 5), (3, 20)):
        result = mcnemar(*pairs(10, first, second, 4))
        total, few = first + second, min(first, second)
        by_hand = 2 * sum(comb(total, k) for k in range(few + 1)) / 2**total
        assert result.p_value == pytest.approx(by_hand, rel=1e-12)
        assert (result.only_first, result.only_second) == (first, second)
        assert result.p_value == mcnemar(*pairs(500, first, second, 300)).p_value
    assert mcnemar(*pairs(30, 0, 0, 34)).p_value == mcnemar(*pairs(0, 5, 5, 0)).p_value == 1


@pytest.mark.parametrize(
    ("counts", "low", "high"),
    [
        ((36, 12, 2, 0), 0.0569, 0.3404),  # Newcombe 1998 (paired data), method 10
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((53, 0, 0, 1), -0.0729, 0.0729),
        ((1, 0, 0, 0), -0.7935, 0.7935),  # by hand: Wilson's 1/1 begins at .2065
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((59, 6, 16, 80), -0.1186, -0.0046),  # R's contingencytables, cavo_2012
    ],
)
def test_newcombe_equals_published_intervals(
    counts: tuple[int, int, int, int], low: float, high: float
) -> None:
    result = paired_proportions(*pairs(*counts))
    assert (result.low, result.high) == pytest.approx((low, high), abs=6e-5)
    assert result.difference == (counts[1] - counts[2]) / sum(counts)
    assert result.n == sum(counts)


def test_newcombe_by_hand_where_the_correlation_is_negative() -> None:
    """(2, 6, 7, 3): ad - bc = -36 needs no correction; p1 = 8/18, p2 = 9/18, margins 8 10 9 9."""
    result = paired_proportions(*pairs(2, 6, 7, 3))
    ours, theirs = wilson(8, 18), wilson(9, 18)
    phi = -36 / (8 * 10 * 9 * 9) ** 0.5
    x, y = 8 / 18 - ours.low, theirs.high - 9 / 18
    assert result.low == pytest.approx(-1 / 18 - (x * x - 2 * phi * x * y + y * y) ** 0.5)


def test_newcombe_mirrors_when_swapped() -> None:
    first, second = pairs(14, 5, 1, 22)
    result, swapped = paired_proportions(first, second), paired_proportions(second, first)
    assert (-swapped.high, -swapped.low) == pytest.approx((result.low, result.high), abs=1e-15)
    assert swapped.difference == -result.difference


@pytest.mark.parametrize(
    ("law", "n", "width"),
    [
        pytest.param((0.5, 0.2, 0.1, 0.2), 50, 0.31, marks=pytest.mark.slow),
        ((0.2, 0.6, 0.1, 0.1), 50, 0.38),
        pytest.param((0.3, 0.1, 0.1, 0.5), 100, 0.19, marks=pytest.mark.slow),
    ],
)
def test_newcombe_covers_the_truth(
    law: tuple[float, float, float, float], n: int, width: float
) -> None:
    """600 tables of nominally 95%: one standard error is 0.9 points, and the interval is up to one
    point too wide at such n. The mean width keeps an interval of everything from passing."""
    tables = np.random.default_rng(0).multinomial(n, law, size=600).tolist()
    result = [paired_proportions(*pairs(*table)) for table in tables]
    truth = law[1] - law[2]
    covered = np.mean([each.low <= truth <= each.high for each in result])
    mean_width = np.mean([each.high - each.low for each in result])
    assert 0.93 <= covered <= 0.985
    assert mean_width < width


# Means in pairs


def draw(generator: np.random.Generator, rates: NDArray[np.float64], draws: int = 5) -> Outcomes:
    answers: Outcomes = generator.random((len(rates), draws)) < rates[:, None]
    return answers


def correlated(seed: int, n: int = 64) -> tuple[Outcomes, Outcomes]:
    """A hard sample is hard for both: logits share most of their spread; the first is better, by
    .0877 (over 1,000,000 samples, standard error .0003)."""
    generator = np.random.default_rng(seed)
    hardness = 2 * generator.normal(size=n)
    logits = [hardness + shift + generator.normal(size=n) / 2 for shift in (0.6, 0.0)]
    first, second = (draw(generator, 1 / (1 + np.exp(-logit))) for logit in logits)
    return first, second


def few_better(seed: int, n: int = 64) -> tuple[Outcomes, Outcomes]:
    """Draws agree; the first alone is right on 3% of the samples, the second never: -> .03."""
    hardness = np.random.default_rng(seed).random((n, 1))
    return np.repeat(hardness < 0.8, 5, axis=1), np.repeat(hardness < 0.77, 5, axis=1)


def wide_gap(seed: int, n: int = 64) -> tuple[Outcomes, Outcomes]:
    """Draws agree; the first is right on 95%, the second on 20% of the samples: -> .75."""
    hardness = np.random.default_rng(seed).random((n, 1))
    return np.repeat(hardness < 0.95, 5, axis=1), np.repeat(hardness < 0.2, 5, axis=1)


def test_a_difference_is_that_of_the_means() -> None:
    first, second = correlated(0)
    result = paired_difference(first, second)
    assert result.difference == pytest.approx(first.mean() - second.mean(), abs=1e-12)
    assert result.low < result.difference < result.high
    assert result.n == 64
    fewer = paired_difference(first[:, :1], second)  # draws may differ
    assert fewer.high - fewer.low > result.high - result.low


def test_no_difference_seen_is_not_none_proved() -> None:
    """Wilson: in none of 64 samples better leaves up to 5.7% of them, either way."""
    same = np.repeat(np.random.default_rng(0).random((64, 1)) < 0.5, 5, axis=1)
    result = paired_difference(same, same)
    assert result.difference == 0
    assert (result.low, result.high) == pytest.approx((-wilson(0, 64).high, wilson(0, 64).high))


def test_a_gap_that_one_side_always_wins_is_far_from_zero() -> None:
    """60 of 64 samples better, none worse. By hand, Wilson's 60/64 is [.850, .975] and 0/64 ends at
    .0567, so the lower end is .9375 - sqrt(.0875^2 + .0567^2) = .833."""
    first, second = np.ones((64, 5), dtype=bool), np.zeros((64, 5), dtype=bool)
    second[:4] = True
    result = paired_difference(first, second)
    assert result.difference == 60 / 64
    assert result.low == pytest.approx(0.8333, abs=1e-4)
    assert 0.975 <= result.high < 1


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    ("law", "truth", "n", "width"),
    [
        (correlated, 0.0877, 64, 0.19),
        pytest.param(correlated, 0.0877, 256, 0.095, marks=pytest.mark.slow),
        (few_better, 0.03, 64, 0.16),
        pytest.param(wide_gap, 0.75, 64, 0.26, marks=pytest.mark.slow),
    ],
)
def test_the_interval_covers_the_truth(law: Law, truth: float, n: int, width: float) -> None:
    """200 repetitions of nominally 95%: one standard error is 1.5 points. The mean width keeps an
    interval that covers everything from passing."""
    result = [paired_difference(*law(seed, n)) for seed in range(200)]
    covered = sum(each.low <= truth <= each.high for each in result) / 200
    mean_width = np.mean([each.high - each.low for each in result])
    assert covered >= 0.93
    assert mean_width < width


def test_other_samples_cannot_be_paired() -> None:
    first, second = correlated(0)
    with pytest.raises(ValueError, match="64 and 63 samples"):
        paired_difference(first, second[:63])
    for paired in (mcnemar, paired_proportions):
        with pytest.raises(ValueError, match="64 and 63 samples"):
            paired(first[:, 0], second[:63, 0])


def test_points_have_a_sign_and_nothing_has_no_minus() -> None:
    assert in_points({"difference": -1e-17, "low": -0.324, "high": 0.324}) == "+0.0 [-32.4, +32.4]"
    assert in_points({"difference": -0.0004, "low": -0.2, "high": -0.0}) == "+0.0 [-20.0, +0.0]"
    assert in_points({"difference": -0.1, "low": -0.15, "high": -0.05}) == "-10.0 [-15.0, -5.0]"


def test_evidence_is_a_fair_game() -> None:
    """One value by hand; and over all outcomes of a law whose mean is the bound, it is 1."""
    assert evidence(np.array([1.0]), 0.2, -1.0) == pytest.approx(np.mean(1 + BETS * 0.8 / 1.2))
    bound, low, values = 0.1, -1.0, (-1.0, 0.0, 1.0)
    law = {-1.0: 0.2, 0.0: 0.5, 1.0: 0.3}
    assert sum(value * share for value, share in law.items()) == pytest.approx(bound)
    expected = sum(
        prod(law[value] for value in drawn) * evidence(np.array(drawn), bound, low)
        for drawn in product(values, repeat=5)
    )
    assert expected == pytest.approx(1.0)
    below = {-1.0: 0.4, 0.0: 0.4, 1.0: 0.2}  # a smaller mean pays less
    expected = sum(
        prod(below[value] for value in drawn) * evidence(np.array(drawn), bound, low)
        for drawn in product(values, repeat=5)
    )
    assert expected < 0.8


def test_evidence_may_be_looked_at_after_every_value() -> None:
    """It ever reaches 20 in fewer than a twentieth of the games; an interval of 95% that is looked
    at as often excludes the truth in far more."""
    generator = np.random.default_rng(3)
    games = generator.choice([-1.0, 0.0, 1.0], p=[0.2, 0.6, 0.2], size=(400, 100))
    ever = [any(evidence(game[:n], 0.0, -1.0) >= 20 for n in range(1, 101)) for game in games]
    steps = np.arange(1, 101)
    deviation = np.abs(games.cumsum(1) / steps) / np.sqrt(0.4 / steps)
    assert np.mean(ever) < 0.05 < 0.2 < np.mean((deviation[:, 9:] > 1.96).any(1))


def test_what_so_many_values_can_see() -> None:
    for n, needed in ((16, 20.0), (64, 1e4), (256, 1e4)):
        share = visible(n, needed, 0.05)
        assert share is not None
        ones = round(share * n)
        assert evidence(np.arange(n) < ones, 0.05, -1.0) >= needed
        assert evidence(np.arange(n) < ones - 1, 0.05, -1.0) < needed
    assert visible(8, 1e4, 0.05) is None


def test_holm_asks_less_of_each_next_claim() -> None:
    """At .1: 1 over the level times 3, 2 and 1; half of the level asks for half as much of it."""
    equal = dict.fromkeys("abc", 1 / 3)
    assert holm({"a": 31.0, "b": 21.0, "c": 9.0}, 0.1, equal) == {"a", "b"}
    assert holm({"a": 29.0, "b": 29.0, "c": 29.0}, 0.1, equal) == set()
    assert holm({}, 0.1, {}) == set()
    half = {"a": 0.5, "b": 0.25, "c": 0.25}
    assert holm({"a": 21.0, "b": 19.0, "c": 19.0}, 0.1, half) == {"a"}
    assert holm({"a": 21.0, "b": 21.0, "c": 11.0}, 0.1, half) == {"a", "b", "c"}
    assert holm({"a": 19.0, "b": 39.0, "c": 39.0}, 0.1, half) == set()


def test_the_range_of_claims_is_the_permutations() -> None:
    """Every way to deal each sample's answers to claim and replay, counted one by one."""
    claimed = np.array([[1, 0], [1, 1], [0, 0]], dtype=bool)
    counted = np.array([[0, 1], [1, 0], [0, 1]], dtype=bool)
    sums = []
    pools = [[*first, *second] for first, second in zip(claimed, counted, strict=True)]
    for hands in product(*(combinations(pool, 2) for pool in pools)):
        sums.append(sum(sum(hand) for hand in hands))
    ordered = np.sort(sums)
    level = 0.8
    low, high = exchangeable(claimed, counted, level)
    assert np.mean(ordered < round(6 * low)) <= 0.1 < np.mean(ordered <= round(6 * low))
    assert np.mean(ordered > round(6 * high)) <= 0.1 < np.mean(ordered >= round(6 * high))


def test_one_draw_each_is_mcnemars_test() -> None:
    """Nine samples that only the claim has right: p = 2 / 512, inside at 99.7% and not at 99%."""
    claimed = np.ones((20, 1), dtype=bool)
    counted = claimed.copy()
    counted[:9] = False
    p_value = mcnemar(claimed[:, 0], counted[:, 0]).p_value
    assert p_value == pytest.approx(2 / 512)
    assert exchangeable(claimed, counted, 1 - p_value * 1.01)[1] < 1
    assert exchangeable(claimed, counted, 1 - p_value * 0.99)[1] == 1


def test_honest_claims_are_mostly_inside_and_a_lie_is_not() -> None:
    generator = np.random.default_rng(0)
    rates = generator.beta(0.5, 0.3, size=(100, 1))
    outside = 0
    for _ in range(100):
        first, second = (generator.random((100, 20)) < rates for _ in range(2))
        low, high = exchangeable(first, second, 0.95)
        outside += not low <= first.mean() <= high
        lie = first | (generator.random((100, 20)) < 0.2)  # about 7 points more
        assert lie.mean() > exchangeable(lie, second, 0.95)[1]
    assert outside <= 10  # of 100: at most 5% are expected


def test_draws_that_agree_leave_one_claim() -> None:
    """Of an even and of an odd number of answers."""
    right = np.array([[1, 1, 1], [0, 0, 0], [1, 1, 1]], dtype=bool)
    assert exchangeable(right[:2], right[:2], 0.95) == (0.5, 0.5)
    assert exchangeable(right, right, 0.95) == (2 / 3, 2 / 3)
