"""What the recommended budget saves, in numbers that can be counted by hand."""

import pytest

from hetpure.attacks import APGD, BPDA, PGD, Attack, DiffHammer, Square
from hetpure.report.recommended import Recommended, saving

ENOUGH = Recommended("apgd", 20, 4, gradients=80, tried=2_000)


@pytest.mark.parametrize(
    ("attack", "share"),
    [
        (PGD(steps=40, eot_samples=5), "60%"),
        (APGD(steps=100, eot_samples=20), "96%"),
        (PGD(steps=10, eot_samples=4, restarts=2, targets=2, loss="dlr"), "50%"),
    ],
    ids=["pgd", "apgd", "runs"],
)
def test_a_dearer_attack_is_told_what_it_could_save(attack: Attack, share: str) -> None:
    line = saving(attack, ENOUGH)
    assert line is not None
    assert line.startswith(
        f"apgd with 20 steps of 4 draws would save {share} of the calls of {attack.name};"
    )


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=20, eot_samples=4),
        PGD(steps=100, eot_samples=21),
        APGD(steps=5, eot_samples=1),
        BPDA(steps=200, eot_samples=20),
        DiffHammer(steps=200, eot_samples=20),
        Square(),
    ],
    ids=lambda attack: attack.name,
)
def test_nothing_is_said_of_others(attack: Attack) -> None:
    """Of cheaper ones, of those dearer than what was tried, and of other classes."""
    assert saving(attack, ENOUGH) is None
