"""The cheapest budget near the strongest attack that was tried, and what it would save."""

from dataclasses import dataclass

from hetpure.attacks import APGD, PGD, Attack


@dataclass(frozen=True)
class Recommended:
    """An attack with a budget.

    Args:
        attack: its name.
        steps: iterations.
        eot_samples: noise draws of each.
        gradients: its network calls for one image, in those of one gradient of the whole defence.
        tried: gradients of the largest budget that it was compared with.
    """

    attack: str
    steps: int
    eot_samples: int
    gradients: int
    tried: int


# What benchmarks/strength.py finds in the committed records of docs/experiments/attacks.md, which a
# test holds it to; None while there are none.
RECOMMENDED: Recommended | None = Recommended(
    "progressive", steps=20, eot_samples=4, gradients=56, tried=80
)


def saving(attack: Attack, recommended: Recommended | None = None) -> str | None:
    """In one line, what the recommended budget would save of a PGD or APGD that costs more; None
    for a cheaper attack, for one of another class, and for one that costs more than what was tried:
    of that nothing is known. By default what is recommended is `RECOMMENDED`.
    """
    enough = recommended or RECOMMENDED
    if enough is None or not isinstance(attack, PGD | APGD) or type(attack) not in (PGD, APGD):
        return None
    runs = attack.restarts * max(attack.targets, 1)
    gradients = runs * attack.steps * attack.eot_samples
    if not enough.gradients < gradients <= enough.tried:
        return None
    return (
        f"{enough.attack} with {enough.steps} steps of {enough.eot_samples} draws would save"
        f" {1 - enough.gradients / gradients:.0%} of the calls of {attack.name}; on one purifier it"
        f" came within 4 points of the strongest of the attacks tried, of at most {enough.tried}"
        " gradients; each larger budget still found more (docs/experiments/attacks.md)"
    )
