"""Results are a function of the records."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import FRESH, Counting, estimate, outcomes, protocols, summarise
from hetpure.evaluation.statistics import mean_accuracy, paired_difference, wilson

CLEAN = Record("d", "clean", 7, 1, [1, 1, 1], [3], 0, 0.0, 0.0, 0.25, 9, "Linf 0.0", [], 1, 1)
ATTACKED = Record(
    "d", "pgd_linf", 7, 1, [1, 2, 1], [1, 3], 0, 0.1, 0.5, 0.5, 90, "Linf 0.1", [], 2, 1
)
OF_DRAWS: tuple[Counting, ...] = ("single", "vote", "worst")
EARLIER: dict[str, Any] = {"mean_logit": None, "mean_probability": None}


def attacked(name: str, sample: int, kept: int, **changes: object) -> Record:
    return replace(ATTACKED, attack=name, sample=sample, selection=[kept, 3], **changes)


def test_how_outcomes_are_counted() -> None:
    """A tie is wrong; where there is one draw, all countings are one."""
    records = [replace(CLEAN, predictions=draws) for draws in ([1, 2], [1, 1], [2, 2], [1, 1])]
    single, vote, worst = (outcomes(records, counting) for counting in OF_DRAWS)
    assert single.tolist() == [[True, False], [True, True], [False, False], [True, True]]
    assert vote.tolist() == worst.tolist() == [False, True, False, True]
    assert estimate(vote, 2) == wilson(2, 4, 2) and estimate(single, 2) == mean_accuracy(single)
    records = [replace(CLEAN, predictions=draws) for draws in ([1, 1, 2], [1, 1, 1])]
    assert outcomes(records, "vote").all() and outcomes(records, "worst").tolist() == [False, True]
    split = [replace(CLEAN, predictions=draws) for draws in ([1, 1, 2, 2, 3], [1, 1, 7, 2, 3])]
    assert outcomes(split, "vote").tolist() == [False, True]
    one = [replace(CLEAN, predictions=[k], mean_logit=k, mean_probability=k) for k in (1, 2, 1)]
    assert len({estimate(outcomes(one, counting), 1) for counting in FRESH}) == 1


def test_means_are_right_where_their_class_is_the_label() -> None:
    """Whatever the draws say one by one."""
    pairs = [(1, 2), (1, 1), (2, 1), (1, 2)]
    records = [replace(CLEAN, predictions=[2, 2, 2], mean_logit=m, mean_probability=p)
               for m, p in pairs]  # fmt: skip
    assert outcomes(records, "mean_logit").tolist() == [True, True, False, True]
    assert outcomes(records, "mean_probability").tolist() == [False, True, True, False]
    counted = protocols(records)
    assert counted["mean_logit"] == wilson(3, 4, 3).as_dict()
    assert counted["mean_probability"] == wilson(2, 4, 3).as_dict()
    assert tuple(counted) == FRESH


def test_means_that_a_record_lacks_are_left_out_and_not_guessed() -> None:
    """As in records of earlier versions, even where one of many lacks them. What was counted before
    is what it was."""
    earlier = [replace(CLEAN, **EARLIER), replace(ATTACKED, **EARLIER)]
    before, now = (summarise(records)["d"] for records in (earlier, [CLEAN, ATTACKED]))
    assert tuple(before["clean"]) == OF_DRAWS and tuple(now["clean"]) == FRESH
    for kind in ("clean", "robust"):
        assert before[kind] == {k: v for k, v in now[kind].items() if not k.startswith("mean_")}
    half = protocols([CLEAN, replace(CLEAN, sample=8, mean_logit=None)])
    assert tuple(half) == ("single", "vote", "worst", "mean_probability")


def test_under_known_noise_there_is_one_counting() -> None:
    assert tuple(protocols([replace(ATTACKED, known=["forward"])])) == ("dw_box",)


def test_the_null_attack_is_counted_in_every_way_that_an_attack_is() -> None:
    """By hand, of two samples: the null attack is wrong once in three draws of one of them."""
    null = replace(CLEAN, attack="null", selection=[3, 3])
    records = [
        CLEAN, ATTACKED, null,
        replace(CLEAN, sample=8),
        replace(ATTACKED, sample=8, predictions=[2, 2, 2], mean_logit=2, mean_probability=2),
        replace(null, sample=8, predictions=[1, 2, 1], mean_logit=2),
    ]  # fmt: skip
    summary = summarise(records)["d"]
    attack, beside = summary["attacks"]["pgd_linf"], summary["null_attack"]
    assert set(FRESH) <= attack.keys() & beside.keys()
    accuracies = {name: (beside[name]["accuracy"], attack[name]["accuracy"]) for name in FRESH[1:]}
    assert accuracies == {
        "vote": (1.0, 0.5), "worst": (0.5, 0.0),
        "mean_logit": (0.5, 0.0), "mean_probability": (1.0, 0.5),
    }  # fmt: skip
    assert {beside["worst"]["draws"], attack["worst"]["draws"]} == {3}


def test_summary_by_hand() -> None:
    second = [
        replace(CLEAN, sample=8, predictions=[2, 1, 2], coverage=0.75),
        replace(ATTACKED, sample=8, predictions=[2, 2, 2], linf=0.3),
    ]
    summary = summarise([CLEAN, ATTACKED, *second])["d"]
    assert summary["samples"] == 2
    assert summary["clean"]["single"]["accuracy"] == pytest.approx(4 / 6)
    assert summary["clean"]["vote"]["accuracy"] == 0.5
    assert summary["robust"]["single"]["accuracy"] == pytest.approx(2 / 6)
    assert summary["robust"]["vote"]["accuracy"] == 0.5
    assert summary["robust"]["worst"]["accuracy"] == 0
    for key in (*FRESH, "success"):
        assert summary["attacks"]["pgd_linf"][key] == summary["robust"][key]
    assert summary["robust"]["attacks"] == {"pgd_linf": 2}
    assert summary["robust_by_all"] is None
    assert summary["perturbation"]["max_linf"] == 0.3
    assert summary["mask_coverage"] == {"clean": 0.5, "adversarial": 0.5}
    assert summary["network_calls"] == 2 * 99


def test_robust_is_over_attacks_in_one_ball_that_know_no_noise() -> None:
    """By selection draws, not by the report. An attack in another ball, one that moves images
    otherwise and one that knows the noise have the fewest right, and are not it."""
    records = [
        CLEAN,
        ATTACKED,
        attacked("wide", 7, 0, threat="Linf 0.2"),
        attacked("stadv", 7, 0, threat=None),
        attacked("dw", 7, 0, known=["forward", "reverse"], predictions=[2]),
        attacked("square", 7, 0, predictions=[1, 1, 1]),
        attacked("audit: more steps", 7, 0),
    ]
    summary = summarise(records)["d"]
    assert summary["robust"]["attacks"] == {"pgd_linf": 0, "square": 1}
    assert summary["robust"]["single"]["accuracy"] == 1
    assert set(summary["attacks"]) == {"pgd_linf", "wide", "stadv", "dw", "square"}
    assert set(summary["attacks"]["dw"]) >= {"dw_box"} and "single" not in summary["attacks"]["dw"]
    assert summary["audit_calls"] == 90


def test_attacks_on_the_first_samples_only_have_a_robust_of_their_own() -> None:
    records = [
        CLEAN,
        replace(CLEAN, sample=8),
        attacked("pgd_linf", 7, 2, predictions=[1, 1, 1]),
        attacked("pgd_linf", 8, 2, predictions=[1, 1, 1]),
        attacked("square", 7, 0, predictions=[2, 2, 2]),
    ]
    summary = summarise(records)["d"]
    whole, by_all = summary["robust"]["single"], summary["robust_by_all"]["single"]
    assert (whole["accuracy"], whole["n"], whole["draws"]) == (1.0, 2, 3)
    assert (by_all["accuracy"], by_all["n"]) == (0.0, 1)


def test_success_is_over_what_was_right_before() -> None:
    """Of three samples two are right by majority; the attack turns one of them."""
    records = []
    for sample, before, after in (
        (1, [1, 1, 2], [2, 2, 1]),
        (2, [1, 1, 1], [1, 1, 2]),
        (3, [2] * 3, [2] * 3),
    ):
        records += [
            replace(CLEAN, sample=sample, predictions=before),
            attacked("pgd_linf", sample, 1, predictions=after),
        ]
    success = summarise(records)["d"]["attacks"]["pgd_linf"]["success"]
    assert (success["accuracy"], success["n"]) == (0.5, 2)


# Differences from the baseline


def of_row(name: str, right: list[int], samples: list[int]) -> Iterator[Record]:
    """Two draws a sample: `right` of them under attack, both on the clean image."""
    for count, sample in zip(right, samples, strict=True):
        clean = replace(CLEAN, defense=name, sample=sample, predictions=[1, 1])
        predictions = [1] * count + [0] * (2 - count)
        yield clean
        yield replace(clean, attack="pgd", selection=[0, 2], predictions=predictions)


def test_each_other_row_has_a_difference() -> None:
    both = [*of_row("other", [2, 1, 0], [0, 1, 2]), *of_row("base", [0, 1, 0], [0, 1, 2])]
    rows = summarise(both, "base")
    assert "difference" not in rows["base"] and "difference" not in summarise(both)["other"]
    robust = np.array([[1, 1], [1, 0], [0, 0]], dtype=bool)
    expected = paired_difference(robust, np.array([[0, 0], [1, 0], [0, 0]], dtype=bool))
    assert rows["other"]["difference"]["robust"] == expected.as_dict()
    assert expected.difference == pytest.approx(1 / 3)
    assert rows["other"]["difference"]["clean"]["difference"] == 0


def test_samples_are_paired_by_their_id_not_by_their_place() -> None:
    right = [k % 3 for k in range(40)]
    ours = [*of_row("other", right, list(range(40)))]
    base = [*of_row("base", right, list(range(40)))]
    straight = summarise([*ours, *base], "base")["other"]["difference"]
    assert summarise([*ours, *base[::-1]], "base")["other"]["difference"] == straight
