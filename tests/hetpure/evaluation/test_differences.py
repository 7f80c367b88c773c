"""Differences of two defences on the same samples: their intervals, results and table column."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from hetpure.evaluation import statistics
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import summarise
from hetpure.evaluation.statistics import Difference, mean_accuracy, paired_difference, wilson
from hetpure.report.table import defenses_sheet, markdown, note, terminal

Answers = NDArray[np.bool_]
Law = Callable[[int, int], tuple[Answers, Answers]]


def draw(generator: np.random.Generator, rates: NDArray[np.float64], draws: int = 5) -> Answers:
    found: Answers = generator.random((len(rates), draws)) < rates[:, None]
    return found


def correlated(seed: int, n: int = 64) -> tuple[Answers, Answers]:
    """A hard sample is hard for both: logits share most of their spread; the first is better."""
    generator = np.random.default_rng(seed)
    hardness = 2 * generator.normal(size=n)
    logits = [hardness + shift + generator.normal(size=n) / 2 for shift in (0.6, 0.0)]
    first, second = (draw(generator, 1 / (1 + np.exp(-logit))) for logit in logits)
    return first, second


def few_better(seed: int, n: int = 64) -> tuple[Answers, Answers]:
    """Draws agree; the first alone is right on 3% of the samples, the second never: -> .03."""
    hardness = np.random.default_rng(seed).random((n, 1))
    return np.repeat(hardness < 0.8, 5, axis=1), np.repeat(hardness < 0.77, 5, axis=1)


def wide_gap(seed: int, n: int = 64) -> tuple[Answers, Answers]:
    """Draws agree; the first is right on 95%, the second on 20% of the samples: -> .75."""
    hardness = np.random.default_rng(seed).random((n, 1))
    return np.repeat(hardness < 0.95, 5, axis=1), np.repeat(hardness < 0.2, 5, axis=1)


@pytest.fixture
def fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Coverage needs many intervals, not exact ones: with 1,000 resamples an end is good to 8% of a
    standard error."""
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    return


def test_a_difference_is_that_of_the_means() -> None:
    first, second = correlated(0)
    found = paired_difference(first, second)
    assert found.difference == pytest.approx(first.mean() - second.mean(), abs=1e-12)
    assert found.low < found.difference < found.high
    assert found.n == 64


def test_draw_counts_may_differ() -> None:
    first, second = correlated(0)
    found = paired_difference(first[:, :1], second)
    assert found.difference == pytest.approx(first[:, :1].mean() - second.mean(), abs=1e-12)
    assert found.high - found.low > paired_difference(first, second).high - found.low


def test_other_samples_cannot_be_paired() -> None:
    first, second = correlated(0)
    with pytest.raises(ValueError, match="64 and 63 samples"):
        paired_difference(first, second[:63])


def test_no_difference_seen_is_not_none_proved() -> None:
    """Wilson: in none of 64 samples better leaves up to 5.7% of them, either way."""
    same = np.repeat(np.random.default_rng(0).random((64, 1)) < 0.5, 5, axis=1)
    found = paired_difference(same, same)
    assert found.difference == 0
    assert (found.low, found.high) == pytest.approx((-wilson(0, 64).high, wilson(0, 64).high))


def test_equal_noisy_answers_hold_zero_inside() -> None:
    answers, _ = correlated(1)
    found = paired_difference(answers, answers)
    assert found.difference == 0
    assert found.low < -0.01
    assert found.high > 0.01


def test_a_gap_that_one_side_always_wins_is_far_from_zero() -> None:
    """60 of 64 samples better, none worse. By hand, Wilson's 60/64 is [.850, .975] and 0/64 ends at
    .0567, so the lower end is .9375 - sqrt(.0875^2 + .0567^2) = .833."""
    first, second = np.ones((64, 5), dtype=bool), np.zeros((64, 5), dtype=bool)
    second[:4] = True
    found = paired_difference(first, second)
    assert found.difference == 60 / 64
    assert found.low == pytest.approx(0.8333, abs=1e-4)
    assert 0.975 <= found.high < 1


def test_swapping_mirrors_the_interval() -> None:
    """Up to Monte Carlo error: an end of 10,000 resamples is good to 3% of its distance."""
    first, second = correlated(2)
    found, swapped = paired_difference(first, second), paired_difference(second, first)
    assert swapped.difference == -found.difference
    tolerance = 0.04 * (found.high - found.low)
    assert (-swapped.high, -swapped.low) == pytest.approx((found.low, found.high), abs=tolerance)


def test_pairing_is_narrower_where_samples_are_hard_for_both() -> None:
    first, second = correlated(3, n=256)
    found = paired_difference(first, second)
    mixed = paired_difference(first, second[np.random.default_rng(0).permutation(256)])
    assert mixed.difference == pytest.approx(found.difference, abs=1e-12)
    assert found.high - found.low < 0.8 * (mixed.high - mixed.low)


@pytest.mark.usefixtures("fewer_resamples")
@pytest.mark.parametrize(
    ("law", "truth", "n", "width"),
    [
        (correlated, 0.0877, 64, 0.19),
        (correlated, 0.0877, 256, 0.095),
        (few_better, 0.03, 64, 0.16),
        (wide_gap, 0.75, 64, 0.26),
    ],
)
def test_the_interval_covers_the_truth(law: Law, truth: float, n: int, width: float) -> None:
    """200 repetitions of nominally 95%: one standard error is 1.5 points. The mean width keeps an
    interval that covers everything from passing."""
    found = [paired_difference(*law(seed, n), seed=seed) for seed in range(200)]
    covered = sum(each.low <= truth <= each.high for each in found) / 200
    mean_width = np.mean([each.high - each.low for each in found])
    print(covered, mean_width)
    assert covered >= 0.93
    assert mean_width < width


def test_the_truth_of_correlated_answers() -> None:
    """The number that the test above uses: 1,000,000 samples, standard error .0003."""
    first, second = correlated(9, n=1_000_000)
    assert first.mean() - second.mean() == pytest.approx(0.0877, abs=0.001)


def bootstrap_of_before(correct: Answers, seed: int) -> tuple[float, float]:
    """mean_accuracy's interval as it was written before differences came."""
    generator = np.random.default_rng(seed)
    (n, draws), rates = correct.shape, correct.mean(1)
    means = [
        generator.binomial(draws, rates[generator.integers(n, size=(500, n))]).mean(1) / draws
        for _ in range(20)
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - 0.95) / 2, (1 + 0.95) / 2])
    return float(low), float(high)


@pytest.mark.parametrize("seed", [0, 5])
def test_accuracies_have_the_numbers_they_had(seed: int) -> None:
    """To the last bit: published tables were made with them."""
    for correct in correlated(seed, n=100):
        found = mean_accuracy(correct, seed)
        assert (found.low, found.high) == bootstrap_of_before(correct, seed)


CLEAN = Record("base", "clean", 0, 1, [1, 1], [2], 0, 0.0, 0.0, None, 9, "Linf 0.0", [])
SELECTED = [0, 2]


def records(name: str, right: list[int], samples: list[int]) -> Iterator[Record]:
    """Two draws a sample: `right` of them under attack, both on the clean image."""
    for count, sample in zip(right, samples, strict=True):
        predictions = [1] * count + [0] * (2 - count)
        clean = replace(CLEAN, defense=name, sample=sample)
        yield clean
        yield replace(clean, attack="null", selection=[2, 2])
        yield replace(clean, attack="pgd", selection=SELECTED, predictions=predictions)


def test_each_other_row_has_a_difference() -> None:
    found = summarise(
        [*records("other", [2, 1, 0], [0, 1, 2]), *records("base", [0, 1, 0], [0, 1, 2])], "base"
    )
    assert "difference" not in found["base"]
    robust = np.array([[1, 1], [1, 0], [0, 0]], dtype=bool)
    expected = paired_difference(robust, np.array([[0, 0], [1, 0], [0, 0]], dtype=bool))
    assert found["other"]["difference"]["robust"] == expected.as_dict()
    assert found["other"]["difference"]["robust"]["difference"] == pytest.approx(1 / 3)
    everywhere = np.ones((3, 2), dtype=bool)
    clean = paired_difference(everywhere, everywhere).as_dict()
    assert found["other"]["difference"]["clean"] == clean
    assert json.loads(json.dumps(clean)).keys() == {"difference", "low", "high", "n"}


def test_samples_are_paired_by_their_id_not_by_their_place() -> None:
    right = [k % 3 for k in range(40)]
    ours = [*records("other", right, list(range(40)))]
    base = [*records("base", right, list(range(40)))]
    backwards = [*records("base", right[::-1], list(range(39, -1, -1)))]
    straight = summarise([*ours, *base], "base")["other"]["difference"]
    assert summarise([*ours, *backwards], "base")["other"]["difference"] == straight


def test_no_baseline_no_difference() -> None:
    both = [*records("other", [2], [0]), *records("base", [0], [0])]
    assert all("difference" not in row for row in summarise(both).values())


def results(**run: Any) -> dict[str, Any]:
    both = [*records("base", [1] * 8, [*range(8)]), *records("other", [2] * 8, [*range(8)])]
    defenses = summarise(both, run.get("baseline"))
    for row in defenses.values():
        row["purification_calls"] = 9
        row["audit"] = None
    settings = {"report_draws": 2, "selection_draws": 1, "attacks": {}, "audit": None}
    return {
        "samples": 8,
        "run": {"data": "toy", "attack": "PGD", **settings, **run},
        "defenses": defenses,
        "notes": [],
        "weaker_than_full": [],
    }


def test_the_table_compares_each_row_with_the_baseline() -> None:
    found = results(baseline="base")
    sheet = defenses_sheet(found)
    assert sheet.heads[-1] == "robust difference"
    base, other = sheet.rows
    assert base[-1] == "-"
    robust = Difference(**found["defenses"]["other"]["difference"]["robust"])
    low, high = 100 * robust.low, 100 * robust.high
    assert other[-1] == f"+50.0 [{low:+.1f}, {high:+.1f}]"
    assert "robust difference: single, in points from 'base', paired" in note(found)
    assert "not corrected for their number" in note(found)
    assert markdown(found).splitlines()[2].endswith("| robust difference |")
    assert len(terminal(found)[0].columns) == len(other)


@pytest.mark.parametrize("run", [{"baseline": None}, {}], ids=["none", "of before"])
def test_without_a_baseline_there_is_no_column(run: dict[str, None]) -> None:
    found = results(**run)
    assert "difference" not in markdown(found)
    sheet = defenses_sheet(found)
    assert [len(row) for row in sheet.rows] == [len(sheet.heads)] * 2
