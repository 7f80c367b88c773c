"""An ensemble of attacks for defences that draw noise: AutoAttack's idea (Croce & Hein 2020), its
verdicts by success rates in place of single answers."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetpure.attacks.apgd import APGD
from hetpure.attacks.attack import Attack, Cost, InBall, Target, unknown_groups
from hetpure.attacks.square import Square
from hetpure.defense import Defense
from hetpure.errors import check_at_least, check_at_most
from hetpure.noise import MOST_EOT_SAMPLES, MOST_RUNS, MOST_STEPS, Group, Noise

FULL_CHECK_DRAWS = 10
CHECK = 255  # the attack number of the draws that rate candidates: no member's


@dataclass(frozen=True, kw_only=True)
class AutoEOT(InBall):
    """APGD on cross-entropy, targeted APGD on DLR, APGD on the margin and Square, in turn, each
    on the images that are not finished.

    AutoAttack lets go of an image after one wrong answer. Here an image is finished when its best
    candidate is wrong on all of `check_draws` noise draws that no member attacks with; which one is
    best is said by the share of those draws, and every candidate is rated once. The images
    themselves come first: what is always wrong is not attacked at all. Where nothing unknown is
    drawn one draw is certain, and this is the usual ensemble.

    The candidates are those of all members. A member that did not attack an image has the image's
    best candidate before it in its places. Those who choose among them use draws of their own.

    Args:
        steps: of each APGD.
        eot_samples: noise draws of each gradient and of each of Square's comparisons.
        targets: target classes of the targeted APGD.
        square_steps: of Square; each asks twice `eot_samples` times where there is noise.
        check_draws: draws that rate a candidate.
    """

    steps: int = 100
    eot_samples: int = 20
    targets: int = 3
    square_steps: int = 5000
    check_draws: int = FULL_CHECK_DRAWS

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "steps", "eot_samples", "square_steps", "check_draws")
        check_at_least(self, 0, "targets")
        check_at_most(self, MOST_STEPS, "steps", "square_steps")
        check_at_most(self, MOST_EOT_SAMPLES, "eot_samples", "check_draws")
        check_at_most(self, MOST_RUNS, "targets")

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """The members, in the order in which they are run; all in the ensemble's ball."""
        epsilon, norm, draws = self.epsilon, self.norm, self.eot_samples
        apgd = APGD(epsilon=epsilon, norm=norm, steps=self.steps, eot_samples=draws)
        return (
            apgd,
            replace(apgd, loss="dlr", targets=self.targets),
            replace(apgd, loss="margin"),
            Square(epsilon=epsilon, norm=norm, steps=self.square_steps, eot_samples=draws),
        )

    @property
    def name(self) -> str:
        return f"auto_eot_{self.norm}"

    def weaker_than_full(self) -> list[str]:
        weaknesses = [words for member in self.attacks for words in member.weaker_than_full()]
        return weaknesses + self.below("check_draws", FULL_CHECK_DRAWS)

    def notes(self, classes: int) -> list[str]:
        return [note for member in self.attacks for note in member.notes(classes)]

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        """At most: images that are finished are not attacked. The last member's candidates are not
        rated, since nothing follows."""
        members = [member.cost(defense, known) for member in self.attacks]
        candidates = [member.candidates for member in members]
        checks = self.check_draws if unknown_groups(defense, known) else 1
        return Cost(
            gradients=sum(member.gradients for member in members),
            queries=sum(member.queries for member in members) + (1 + sum(candidates[:-1])) * checks,
            candidates=sum(candidates),
            draws=max(member.draws for member in members),
        )

    def __call__(self, target: Target) -> Tensor:
        defense, addresses = target.defense, target.addresses
        draws = 1 if target.certain else self.check_draws
        # A restart of its own for every attack of an evaluation: no two rate on the same draws.
        noises = replace(addresses, member=CHECK).draws(addresses.member, 0, draws)
        best = target.images
        wrong = wrong_draws(target, noises)
        candidates = []
        for number, member in enumerate(self.attacks):
            count = member.cost(defense, addresses.known).candidates
            places = best.repeat(count, 1, 1, 1, 1)
            (left,) = (wrong < draws).nonzero(as_tuple=True)
            if len(left):
                part = target.take(left)
                part = replace(
                    part, addresses=replace(part.addresses, member=addresses.member + number)
                )
                adversarial = member(part).detach()
                places[: len(adversarial), left] = adversarial
                if number + 1 < len(self.attacks):
                    for images in adversarial:
                        rated = wrong_draws(replace(part, images=images), noises)
                        better = rated > wrong[left]
                        wrong[left[better]] = rated[better]
                        best = best.index_copy(0, left[better], images[better])
            candidates.append(places)
        return torch.cat(candidates)


def wrong_draws(target: Target, noises: list[Noise]) -> Tensor:
    """On how many of the noises the defence is wrong about each of the target's images, (B,)."""
    return (target.answers(noises).argmax(-1) != target.labels).sum(0)
