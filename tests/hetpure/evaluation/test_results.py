"""Results are a function of the records."""

from dataclasses import replace

import pytest

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import summarise

CLEAN = Record("d", "clean", 7, 1, [1, 1, 1], [3], 0, 0.0, 0.0, 0.25, 9, "Linf 0.0", [])
NULL = replace(CLEAN, attack="null", selection=[3, 3])
ATTACKED = Record("d", "pgd_linf", 7, 1, [1, 2, 1], [1, 3], 0, 0.1, 0.5, 0.5, 90, "Linf 0.1", [])


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
    for protocol in ("single", "vote", "worst"):
        assert summary["attacks"]["pgd_linf"][protocol] == summary["robust"][protocol]
    assert summary["robust"]["worst"]["accuracy"] == 0
    assert summary["robust"]["success"] == summary["attacks"]["pgd_linf"]["success"]
    assert summary["robust"]["attacks"] == {"pgd_linf": 2}
    assert summary["robust_by_all"] is None
    assert summary["perturbation"]["max_linf"] == 0.3
    assert summary["mask_coverage"] == {"clean": 0.5, "adversarial": 0.5}
    assert summary["network_calls"] == 2 * 99


def test_robust_is_the_worst_attack_for_each_sample() -> None:
    """Chosen by selection draws, not by the report draws."""
    other = replace(ATTACKED, attack="other", selection=[0, 3], predictions=[1, 1, 1])
    summary = summarise([CLEAN, ATTACKED, other])["d"]
    assert summary["robust"]["single"]["accuracy"] == 1
    assert summary["attacks"]["pgd_linf"]["single"]["accuracy"] == pytest.approx(2 / 3)


def attacked(name: str, sample: int, kept: int, **changes: object) -> Record:
    return replace(ATTACKED, attack=name, sample=sample, selection=[kept, 3], **changes)


def test_robust_is_over_attacks_in_one_ball_that_know_no_noise() -> None:
    """An attack in another ball, one that moves images otherwise and one that knows the noise have
    the fewest right, and are not it."""
    records = [
        CLEAN,
        ATTACKED,
        attacked("wide", 7, 0, threat="Linf 0.2"),
        attacked("stadv", 7, 0, threat=None),
        attacked("dw", 7, 0, known=["forward", "reverse"], predictions=[2]),
        attacked("square", 7, 0, predictions=[2, 2, 2]),
        attacked("audit: more steps", 7, 0),
    ]
    summary = summarise(records)["d"]
    assert summary["robust"]["attacks"] == {"pgd_linf": 0, "square": 1}
    assert summary["robust"]["single"]["accuracy"] == 0
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
    assert summary["robust"]["single"] | {"low": 0, "high": 0} == {
        "accuracy": 1.0, "low": 0, "high": 0, "n": 2, "draws": 3,
    }  # fmt: skip
    assert summary["robust_by_all"]["single"]["n"] == 1
    assert summary["robust_by_all"]["single"]["accuracy"] == 0


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
