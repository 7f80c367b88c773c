"""An ensemble of attacks for defences that draw noise: AutoAttack's idea (Croce & Hein 2020), its
verdicts by success rates in place of single answers."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetpure.attacks.apgd import APGD
from hetpure.attacks.attack import (
    SILENT,
    Addresses,
    Attack,
    Monitor,
    Threat,
    unknown_groups,
)
from hetpure.attacks.square import Square
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.expectation import Query, answers
from hetpure.geometry import Norm
from hetpure.noise import Group, Noise
from hetpure.numbers import Number

FULL_CHECK_DRAWS = 10
CHECK = 255  # the attack number of the draws that rate candidates: no member's
DEFAULT = Number("8/255")


@dataclass(frozen=True, kw_only=True)
class AutoEOT(Attack):
    """Attacks one after another, each on the images that are not finished.

    AutoAttack lets go of an image after one wrong answer. Here an image is finished when its best
    candidate is wrong on all of `check_draws` noise draws that no member attacks with; which one is
    best is said by the share of those draws, and every candidate is rated once. The images
    themselves come first: what is always wrong is not attacked at all. Where nothing unknown is
    drawn one draw is certain, and this is the usual ensemble.

    The candidates are those of all members. A member that did not attack an image has the image's
    best candidate before it in its places. Those who choose among them use draws of their own.

    Args:
        epsilon: radius in pixel units [0, 1]; 8/255 may be written.
        norm: of the ball.
        steps: of each APGD.
        eot_samples: noise draws of each gradient and of each of Square's comparisons.
        targets: target classes of the targeted APGD.
        square_steps: of Square; each asks twice `eot_samples` times where there is noise.
        check_draws: draws that rate a candidate.
        members: attacks to run in place of APGD on cross-entropy, targeted APGD on DLR, APGD on the
            margin and Square; all in the ball of `epsilon`. The settings of these four do not
            reach them.
    """

    epsilon: Number = DEFAULT
    norm: Norm = "linf"
    steps: int = 100
    eot_samples: int = 20
    targets: int = 3
    square_steps: int = 5000
    check_draws: int = FULL_CHECK_DRAWS
    members: tuple[Attack, ...] = ()

    def __post_init__(self) -> None:
        if self.check_draws < 1:
            raise InputError(f"--model.attack.check_draws must be >= 1, got {self.check_draws}")
        for number, member in enumerate(self.attacks):
            if isinstance(member, AutoEOT):
                raise InputError(f"--model.attack.members[{number}] is an ensemble itself")
            if member.threat != self.threat:
                raise InputError(
                    f"--model.attack.members[{number}] ({member.name}) attacks"
                    f" {member.threat or 'outside any ball'}, the ensemble {self.threat}: give all"
                    " the same epsilon and norm"
                )

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """The members, in the order in which they are run."""
        return self.members or self._default_members()

    def _default_members(self) -> tuple[Attack, ...]:
        apgd = APGD(
            epsilon=self.epsilon, norm=self.norm, steps=self.steps, eot_samples=self.eot_samples
        )
        return (
            apgd,
            replace(apgd, loss="dlr", targets=self.targets),
            replace(apgd, loss="margin"),
            Square(
                epsilon=self.epsilon,
                norm=self.norm,
                steps=self.square_steps,
                eot_samples=self.eot_samples,
            ),
        )

    @property
    def name(self) -> str:
        return f"auto_eot_{self.norm}"

    @property
    def threat(self) -> Threat:
        return Threat(self.norm, self.epsilon)

    def describe(self) -> str:
        names = ", ".join(member.name for member in self.attacks)
        return f"{self.threat}, AutoEOT of {names}; {self.check_draws} check draws"

    def weaker_than_full(self) -> list[str]:
        names = {member.name for member in self.attacks}
        found = [said for member in self.attacks for said in member.weaker_than_full()]
        missing = [m.name for m in self._default_members() if m.name not in names]
        if missing:
            found.append(f"{self.name}: without {', '.join(missing)}")
        if self.check_draws < FULL_CHECK_DRAWS:
            found.append(f"{self.name}: {self.check_draws} check draws (full: {FULL_CHECK_DRAWS})")
        return list(dict.fromkeys(found))

    def notes(self, classes: int) -> list[str]:
        return list(dict.fromkeys(n for member in self.attacks for n in member.notes(classes)))

    def candidates(self, defense: Defense) -> int:
        return sum(member.candidates(defense) for member in self.attacks)

    def purifications(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        """An upper bound: images that are finished are not attacked."""
        return sum(member.purifications(defense, known) for member in self.attacks)

    def queries(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        """An upper bound; the last member's candidates are not rated, since nothing follows."""
        rated = 1 + sum(member.candidates(defense) for member in self.attacks[:-1])
        asked = sum(member.queries(defense, known) for member in self.attacks)
        return asked + rated * self._checks(defense, known)

    def draws(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        return max(member.draws(defense, known) for member in self.attacks)

    def _checks(self, defense: Defense, known: tuple[Group, ...]) -> int:
        return self.check_draws if unknown_groups(defense, known) else 1

    def __call__(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        addresses: Addresses,
        *,
        monitor: Monitor = SILENT,
    ) -> Tensor:
        draws = self._checks(defense, addresses.known)
        noises = replace(addresses, member=CHECK).draws(0, 0, draws)
        best = images
        wrong = wrong_draws(defense, images, labels, addresses.samples, noises, monitor)
        members = self.attacks
        candidates = []
        for number, member in enumerate(members):
            places = best.repeat(member.candidates(defense), 1, 1, 1, 1)
            (left,) = (wrong < draws).nonzero(as_tuple=True)
            if len(left):
                own = replace(addresses.take(left), member=addresses.member + number)
                found = member(defense, images[left], labels[left], own, monitor=monitor).detach()
                places[: len(found), left] = found  # fewer where classes are too few for targets
                if number + 1 < len(members):
                    for candidate in found:
                        rated = wrong_draws(
                            defense, candidate, labels[left], own.samples, noises, monitor
                        )
                        better = rated > wrong[left]
                        wrong[left[better]] = rated[better]
                        best = best.index_copy(0, left[better], candidate[better])
            candidates.append(places)
        return torch.cat(candidates)


def wrong_draws(
    defense: Defense,
    images: Tensor,
    labels: Tensor,
    samples: Tensor,
    noises: list[Noise],
    monitor: Monitor,
) -> Tensor:
    """On how many of the noises the defence is wrong about each image, (B,)."""
    query = Query(images, samples, defense.mask(images, samples), noises)
    logits = answers(defense, query, monitor.answered)
    return (logits.argmax(-1) != labels).sum(0)
