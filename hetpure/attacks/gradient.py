"""What attacks with gradients share: what they ask a defence, how they climb, what they keep."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import torch
from torch import Tensor

from hetpure.attacks.attack import Attack, Cost, InBall, Target, unknown_groups
from hetpure.attacks.losses import Loss, criterion, likely_targets, usable
from hetpure.defense import Defense
from hetpure.errors import FieldError, check_at_least, check_at_most, check_choice
from hetpure.expectation import Answer, Average, Criterion, Query, expected_gradient
from hetpure.gradients import Execution
from hetpure.noise import MOST_EOT_SAMPLES, MOST_RUNS, MOST_STEPS, Group, Noise
from hetpure.numbers import Number

MaskPolicy = Literal["frozen", "recomputed", "soft", "all"]
MASKS: tuple[MaskPolicy, ...] = ("frozen", "recomputed", "soft")
Approximation = Literal["none", "bpda", "classifier_only"]
FULL_EOT = 20
TARGETS_ITERATION = 0xFFFF  # of the draws that choose target classes: no attack is that long
State = TypeVar("State")


@dataclass(frozen=True)
class Ascent:
    """One ascent of an attack, with noise draws that no other has.

    Args:
        target: what is attacked.
        number: of the run, in the addresses of its noise.
        criterion: what is maximised.
        mask: of the clean images (B, 1, H, W), where the purifier looks at one.
    """

    target: Target
    number: int
    criterion: Criterion
    mask: Tensor | None


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """An attack that follows the gradient of the expected loss over fresh noise draws.

    Args:
        steps: iterations.
        eot_samples: noise draws of each gradient.
        loss: what is maximised: cross_entropy, dlr or margin.
        average: what is averaged over the draws: the gradients of their losses, their
            probabilities or their logits.
        antithetic: draw noise in pairs of opposite sign.
        mask: what the attack knows of a heterogeneous purifier's mask: `frozen` (the clean
            image's), `recomputed` (each iterate's, no gradient through it; the published choice),
            `soft` (each iterate's, with a gradient straight through), or `all`: three attacks, see
            `unfolded`.
        targets: attack towards so many of the most likely wrong classes in turn, each in a run of
            its own; 0 is untargeted.
        restarts: independent runs, of each target.
        resubmissions: ask for every iterate on so many further draws, without a gradient: the best
            iterate is then the one that is wrong on most of them, and of those the one with the
            largest loss. DiffHammer (Wang et al. 2024) and DiffBreak (Kassis et al. 2024) take 10.
        approximation: a gradient that is not the defence's: `bpda` takes the purifier's derivative
            for the identity, `classifier_only` attacks the classifier alone (a transfer attack).
    """

    steps: int = 20
    eot_samples: int = 10
    loss: Loss = "cross_entropy"
    average: Average = "gradients"
    antithetic: bool = False
    mask: MaskPolicy = "all"
    targets: int = 0
    restarts: int = 1
    resubmissions: int = 0
    approximation: Approximation = "none"

    def __post_init__(self) -> None:
        check_choice(self, "loss", Loss)
        check_choice(self, "average", Average)
        check_choice(self, "mask", MaskPolicy)
        check_choice(self, "approximation", Approximation)
        check_at_least(self, 1, "steps", "eot_samples", "restarts")
        check_at_least(self, 0, "targets", "resubmissions")
        check_at_most(self, MOST_STEPS, "steps")
        check_at_most(self, MOST_EOT_SAMPLES, "eot_samples")
        if self.restarts * max(self.targets, 1) > MOST_RUNS:
            runs = f"{self.restarts} x {max(self.targets, 1)}"
            raise FieldError(self, "restarts", f"x targets must be <= {MOST_RUNS}, got {runs}")
        if self.eot_samples + self.resubmissions > MOST_EOT_SAMPLES:
            draws = f"{self.resubmissions} + {self.eot_samples}"
            most = f"plus eot_samples must be <= {MOST_EOT_SAMPLES}, got {draws}"
            raise FieldError(self, "resubmissions", most)
        if self.resubmissions and self.approximation == "classifier_only":
            asked = f"must be 0 for a transfer attack, which asks no defence: {self.resubmissions}"
            raise FieldError(self, "resubmissions", asked)
        if self.antithetic and self.eot_samples % 2:
            even = f"must be even for antithetic pairs, got {self.eot_samples}"
            raise FieldError(self, "eot_samples", even)

    def notes(self, classes: int) -> list[str]:
        if usable(self.loss, classes, self.targets > 0) == self.loss:
            return []
        return [f"{self.name}: DLR needs more than {classes} classes: the margin was used"]

    def weaker_than_full(self) -> list[str]:
        weaknesses = self.below("eot_samples", FULL_EOT, "HetPure's published attack")
        if self.mask != "all":
            weaknesses.append(f"{self.name}: {self.mask} masks only")
        if self.approximation != "none":
            weaknesses.append(
                f"{self.name}: the gradient is an approximation, {self.approximation}"
            )
        return weaknesses

    def stronger(self) -> Mapping[str, Attack]:
        more: dict[str, Attack] = {}
        if 2 * self.steps <= MOST_STEPS:
            more["more steps"] = replace(self, steps=2 * self.steps)
        if 2 * self.eot_samples + self.resubmissions <= MOST_EOT_SAMPLES:
            more["more EOT draws"] = replace(self, eot_samples=2 * self.eot_samples)
        return more

    def transferred(self) -> Attack | None:
        return replace(self, approximation="classifier_only", resubmissions=0)

    def execution(self, defense: Defense) -> Execution | None:
        if self.approximation == "none" or defense.purifier is None:
            return None
        return Execution(self.approximation, micro_batch=defense.execution.micro_batch)

    def substitute(self, defense: Defense) -> str | None:
        """The name of what it follows, where that is not the gradient of the defence with its mask
        held fixed."""
        if self.execution(defense) is not None:
            return self.approximation
        return "soft mask" if self.mask == "soft" and defense.masked else None

    def followed(self, defense: Defense) -> Defense:
        """What it differentiates where `substitute` names something: the defence itself, or one
        that is cheaper."""
        return defense

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        """That of `climb`: a gradient a step, the last iterate of each run and the best."""
        return self._cost(defense, known, iterates=self.steps, candidates=2)

    def _cost(
        self, defense: Defense, known: tuple[Group, ...], *, iterates: int, candidates: int
    ) -> Cost:
        """Of an attack that asks for so many iterates and gives so many candidates in each run."""
        draws, parts = self._draws(defense, known), len(unfolded(self, defense))
        targets = min(self.targets, defense.classifier.num_classes - 1)  # all the wrong classes
        runs = parts * self.restarts * max(targets, 1)
        chosen = parts * draws if self.targets else 0  # queries that say which classes are likely
        resubmitted = runs * iterates * self._resubmissions(defense, known)
        return Cost(
            gradients=runs * iterates * draws,
            queries=chosen + resubmitted,
            candidates=runs * candidates,
            draws=draws,
        )

    def _draws(self, defense: Defense, known: tuple[Group, ...]) -> int:
        """Noise draws of each gradient: where nothing unknown is drawn one is all."""
        drawn = unknown_groups(defense, known) and self.approximation != "classifier_only"
        return self.eot_samples if drawn else 1

    def _resubmissions(self, defense: Defense, known: tuple[Group, ...]) -> int:
        """Draws on which an iterate is submitted once more."""
        drawn = unknown_groups(defense, known)
        return self.resubmissions if drawn else min(self.resubmissions, 1)

    def __call__(self, target: Target) -> Tensor:
        if self.mask == "all":
            parts = unfolded(self, target.defense).values()
            return torch.cat([part(target) for part in parts])
        return torch.stack([images for run in self._runs(target) for images in self.ascend(run)])

    def _runs(self, target: Target) -> Iterator[Ascent]:
        """One for each restart and target class."""
        defense, labels = target.defense, target.labels
        mask = defense.mask(target.images, target.samples)
        towards: list[Tensor | None] = [None]
        if self.targets:
            draws = self._draws(defense, target.addresses.known)
            noises = target.addresses.draws(0, TARGETS_ITERATION, draws)
            logits = target.answers(noises, mask)
            towards = list(likely_targets(logits, labels, self.targets))
        for number, classes in enumerate(self.restarts * towards):
            yield Ascent(target, number, criterion(self.loss, labels, classes), mask)

    @abstractmethod
    def ascend(self, run: Ascent) -> list[Tensor]:
        """The candidates of one run, (B, C, H, W) each."""

    def climb(
        self,
        run: Ascent,
        start: State,
        step: Callable[[State, Tensor], State],
        images_of: Callable[[State], Tensor],
    ) -> list[Tensor]:
        """The last image of an ascent and the best one, (B, C, H, W).

        Args:
            start: where the ascent begins, in what the attack changes: images, offsets, a flow.
            step: the next state, from a state and the gradient of the loss in its images.
            images_of: the adversarial images of a state, inside the ball and [0, 1].
        """
        state = start
        adversarial = images_of(state)
        best = Best(run.target.images)
        for iteration in range(self.steps):
            answer = self.ask(run, adversarial, iteration)
            best.consider(adversarial, answer.loss, self.wrong(run, adversarial, answer, iteration))
            state = step(state, answer.gradient)
            adversarial = images_of(state)
        return [adversarial, best.images]

    def ask(self, run: Ascent, adversarial: Tensor, iteration: int) -> Answer:
        """The gradient at adversarial images (B, C, H, W), and what they are worth on the same
        draws.

        The monitor hears the number of the run, the mean loss, and `right`, the share of images and
        draws that are classified as their labels. No iterate before depends on these draws, so
        `right` says without bias how accuracy falls from iterate to iterate.
        """
        noises = self.noises(run, iteration)
        answer = self.gradient_at(run, adversarial, noises)
        right = answer.logits.argmax(-1) == run.target.labels
        values: dict[str, float] = {
            "run": run.number,
            "loss": float(answer.loss.mean()),
            "right": float(right.double().mean()),
        }
        # Where a half ends inside an antithetic pair, both halves share its noise.
        whole = not self.antithetic or len(noises) % 4 == 0
        if answer.agreement is not None and whole:
            values["agreement"] = float(answer.agreement.mean())
        run.target.monitor.iteration(iteration, **values)
        return answer

    def noises(self, run: Ascent, iteration: int) -> list[Noise]:
        """On which the gradient of an iteration is taken."""
        addresses = run.target.addresses
        draws = self._draws(run.target.defense, addresses.known)
        return addresses.draws(run.number, iteration, draws, antithetic=self.antithetic)

    def gradient_at(self, run: Ascent, adversarial: Tensor, noises: Sequence[Noise]) -> Answer:
        """What the defence says of adversarial images (B, C, H, W) on these draws, and the gradient
        that the attack follows."""
        target = run.target
        defense = target.defense
        return expected_gradient(
            defense,
            self.query(defense, Query(adversarial, target.samples, run.mask, noises)),
            run.criterion,
            target.monitor.differentiated,
            average=self.average,
            execution=self.execution(defense),
            labels=target.labels,
        )

    def wrong(self, run: Ascent, adversarial: Tensor, answer: Answer, iteration: int) -> Tensor:
        """How often the answers for an iterate (B, C, H, W) are wrong, (B,).

        With resubmissions these are fresh draws, beyond those of the gradient's addresses. Without,
        a certain answer counts as it is; a few draws of an uncertain one that happen to be wrong
        say little, and none counts.
        """
        target = run.target
        addresses, labels = target.addresses, target.labels
        if count := self._resubmissions(target.defense, addresses.known):
            noises = addresses.draws(run.number, iteration, self.eot_samples + count)[-count:]
            known = None if self.mask == "frozen" else answer.mask
            logits = replace(target, images=adversarial.detach()).answers(noises, known)
            return (logits.argmax(-1) != labels).sum(0)
        return ((answer.logits.argmax(-1) != labels).all(0) & target.certain).long()

    def query(self, defense: Defense, query: Query) -> Query:
        """The same question with the mask that the policy takes, in place of the clean images'."""
        images, samples = query.images, query.samples
        if self.mask == "frozen" or self.approximation == "classifier_only":  # it looks at no mask
            return query
        if self.mask != "soft":
            return replace(query, mask=defense.mask(images, samples))
        images = images.detach().requires_grad_()
        with torch.enable_grad():
            return replace(query, images=images, mask=defense.mask(images, samples, soft=True))


@dataclass(frozen=True, kw_only=True)
class BallAttack(InBall, GradientAttack):
    """An attack with gradients whose candidates lie in a ball around their images."""

    def __post_init__(self) -> None:
        InBall.__post_init__(self)
        GradientAttack.__post_init__(self)

    def at_radius(self, epsilon: float) -> "BallAttack":
        return replace(self, epsilon=Number(epsilon))


def unfolded(attack: Attack, defense: Defense) -> dict[str, Attack]:
    """The attacks that an attack stands for against this defence, by what tells them apart.

    One with `mask: all` is three where the defence looks at a mask and the gradient is no
    approximation; else it is one, with recomputed masks. Every other attack is itself, as "".
    """
    if not isinstance(attack, GradientAttack) or attack.mask != "all":
        return {"": attack}
    if not defense.masked or attack.approximation != "none":
        return {"": replace(attack, mask="recomputed")}
    return {f"{mask} mask": replace(attack, mask=mask) for mask in MASKS}


class Best:
    """The best of the iterates seen so far, by image: the one that is wrong most often, and of
    those the one with the largest expected loss."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.wrong = images.new_zeros(len(images), dtype=torch.int64)
        self.loss = images.new_full((len(images),), -torch.inf, dtype=torch.float64)

    def consider(self, adversarial: Tensor, loss: Tensor, wrong: Tensor) -> Tensor:
        """Takes better iterates (B, C, H, W), by their expected losses (B,) and how often they are
        wrong (B,); which were taken (B,)."""
        better = (wrong > self.wrong) | ((wrong == self.wrong) & (loss > self.loss))
        self.wrong = torch.where(better, wrong, self.wrong)
        self.loss = torch.where(better, loss, self.loss)
        self.images = torch.where(better[:, None, None, None], adversarial.detach(), self.images)
        return better
