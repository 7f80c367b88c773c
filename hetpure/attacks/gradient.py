"""What attacks with gradients share: what they ask a defence, and what they keep of the answers."""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from hetpure.attacks.attack import (
    NAMES,
    SILENT,
    Addresses,
    Attack,
    Monitor,
    Threat,
    check_radius,
    unknown_groups,
)
from hetpure.attacks.losses import Loss, criterion, likely_targets, usable
from hetpure.defense import Defense
from hetpure.errors import InputError, check_choice
from hetpure.expectation import Answer, Average, Criterion, Query, answers, expected_gradient
from hetpure.geometry import Norm
from hetpure.gradients import Execution
from hetpure.noise import Group, Noise
from hetpure.numbers import Number

MaskPolicy = Literal["frozen", "recomputed", "soft", "all"]
MASKS: tuple[MaskPolicy, ...] = ("frozen", "recomputed", "soft")
Approximation = Literal["none", "bpda", "classifier_only"]
FULL_EOT = 20
TARGETS_ITERATION = 0xFFFF  # of the draws that choose target classes: no attack is that long


@dataclass(frozen=True, kw_only=True)
class GradientAttack(Attack):
    """An attack that follows the gradient of the expected loss over fresh noise draws.

    Args:
        epsilon: radius in pixel units [0, 1]; 8/255 may be written.
        norm: of the ball.
        steps: iterations.
        eot_samples: noise draws of each gradient.
        loss: what is maximised: cross_entropy, dlr or margin.
        average: what is averaged over the draws: the gradients of their losses, their
            probabilities or their logits.
        antithetic: draw noise in pairs of opposite sign.
        mask: what the attack knows of a heterogeneous purifier's mask: `frozen` (the clean
            image's), `recomputed` (each iterate's, no gradient through it; the published choice),
            `soft` (each iterate's, with a gradient straight through); `all` is one after another.
        targets: attack towards so many of the most likely wrong classes in turn, each a run of its
            own; 0 is untargeted.
        restarts: independent runs, of each target.
        approximation: a gradient that is not the defence's: `bpda` takes the purifier's derivative
            for the identity, `classifier_only` attacks the classifier alone (a transfer attack).
    """

    epsilon: Number = Number("8/255")  # noqa: RUF009 (immutable)
    norm: Norm = "linf"
    steps: int = 20
    eot_samples: int = 10
    loss: Loss = "cross_entropy"
    average: Average = "gradients"
    antithetic: bool = False
    mask: MaskPolicy = "all"
    targets: int = 0
    restarts: int = 1
    approximation: Approximation = "none"

    def __post_init__(self) -> None:
        check_radius(self.epsilon, self.norm)
        for name, allowed in (
            ("norm", Norm),
            ("loss", Loss),
            ("average", Average),
            ("mask", MaskPolicy),
            ("approximation", Approximation),
        ):
            check_choice(f"--model.attack.{name}", getattr(self, name), allowed)
        for name, least in (("steps", 1), ("eot_samples", 1), ("restarts", 1), ("targets", 0)):
            if getattr(self, name) < least:
                value = getattr(self, name)
                raise InputError(f"--model.attack.{name} must be >= {least}, got {value}")
        if self.antithetic and self.eot_samples % 2:
            raise InputError(
                f"--model.attack.eot_samples must be even where draws are antithetic pairs, got"
                f" {self.eot_samples}"
            )

    @property
    def threat(self) -> Threat | None:
        return Threat(self.norm, self.epsilon)

    def budget(self) -> str:
        """What the settings shared by all attacks with gradients are, where not the defaults."""
        said = [f"EOT {self.eot_samples}" + (" antithetic" if self.antithetic else "")]
        if self.average != "gradients":
            said.append(f"mean {self.average}")
        if self.targets:
            said.append(f"{self.targets} targets")
        if self.restarts > 1:
            said.append(f"{self.restarts} restarts")
        if self.approximation != "none":
            said.append(f"gradient {self.approximation}")
        if self.mask != "all":
            said.append(f"{self.mask} mask")
        return ", ".join(said)

    def notes(self, classes: int) -> list[str]:
        if usable(self.loss, classes, self.targets > 0) == self.loss:
            return []
        return [f"{self.name}: DLR needs more than {classes} classes: the margin was used"]

    def variants(self, defense: Defense) -> dict[str, Attack]:
        if self.mask != "all":
            return {"": self}
        if not defense.masked or self.approximation != "none":
            return {"": replace(self, mask="recomputed")}
        return {f"{mask} mask": replace(self, mask=mask) for mask in MASKS}

    def runs(self, defense: Defense) -> int:
        """Independent runs of one variant: no more targets than there are wrong classes."""
        targets = min(self.targets, defense.classifier.num_classes - 1)
        return self.restarts * max(targets, 1)

    def draws(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        drawn = unknown_groups(defense, known) and self.approximation != "classifier_only"
        return self.eot_samples if drawn else 1

    def queries(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        if not self.targets:
            return 0
        return len(self.variants(defense)) * self.draws(defense, known)

    def each_run(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        addresses: Addresses,
        monitor: Monitor,
    ) -> Iterator[tuple[int, Criterion]]:
        """The number of each run and what it maximises."""
        if not self.targets:
            for restart in range(self.restarts):
                yield restart, criterion(self.loss, labels)
            return
        noises = addresses.draws(0, TARGETS_ITERATION, self.draws(defense, addresses.known))
        query = Query(images, addresses.samples, defense.mask(images, addresses.samples), noises)
        logits = answers(defense, query, monitor.answered)
        targets = likely_targets(logits, labels, self.targets)
        for restart in range(self.restarts):
            for number, target in enumerate(targets):
                yield restart * len(targets) + number, criterion(self.loss, labels, target)

    def ask(
        self,
        defense: Defense,
        adversarial: Tensor,
        labels: Tensor,
        clean_mask: Tensor | None,
        losses: Criterion,
        addresses: Addresses,
        run: int,
        iteration: int,
        monitor: Monitor,
    ) -> Answer:
        """The gradient at the adversarial images, and what they are worth on the same draws."""
        known = addresses.known
        noises = addresses.draws(
            run, iteration, self.draws(defense, known), antithetic=self.antithetic
        )
        answer = expected_gradient(
            defense,
            self.query(defense, adversarial, addresses.samples, clean_mask, noises),
            losses,
            monitor.rows,
            average=self.average,
            execution=self.execution(defense),
            labels=labels,
        )
        values = {"loss": float(answer.loss.mean())}
        # Where a half ends inside an antithetic pair, both halves share its noise.
        whole = not self.antithetic or len(noises) % 4 == 0
        if answer.agreement is not None and whole:
            values["agreement"] = float(answer.agreement.mean())
        monitor.iteration(iteration, **values)
        return answer

    def query(
        self,
        defense: Defense,
        adversarial: Tensor,
        samples: Tensor,
        clean_mask: Tensor | None,
        noises: Sequence[Noise],
    ) -> Query:
        """What is asked at the adversarial images (B, C, H, W), with the mask that the policy
        takes."""
        mask = clean_mask
        if self.mask == "soft":
            adversarial = adversarial.detach().requires_grad_()
            with torch.enable_grad():
                mask = defense.mask(adversarial, samples, soft=True)
        elif self.mask == "recomputed":
            mask = defense.mask(adversarial, samples)
        return Query(adversarial, samples, mask, noises)

    def substitute(self, defense: Defense) -> str | None:
        """The name of what the attack follows where that is not the defence's gradient with its
        mask held fixed."""
        if self.execution(defense) is not None:
            return self.approximation
        return "soft mask" if self.mask == "soft" and defense.masked else None

    def __call__(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        addresses: Addresses,
        *,
        monitor: Monitor = SILENT,
    ) -> Tensor:
        if self.mask != "all":
            return self.attack_one(defense, images, labels, addresses, monitor)
        variants = self.variants(defense).values()
        return torch.cat(
            [one(defense, images, labels, addresses, monitor=monitor) for one in variants]
        )

    @abstractmethod
    def attack_one(
        self,
        defense: Defense,
        images: Tensor,
        labels: Tensor,
        addresses: Addresses,
        monitor: Monitor,
    ) -> Tensor:
        """The candidates of one variant, whose mask policy is not `all`."""

    def execution(self, defense: Defense) -> Execution | None:
        if self.approximation == "none" or defense.purifier is None:
            return None
        return Execution(self.approximation, micro_batch=defense.execution.micro_batch)

    def weaker_than_full(self) -> list[str]:
        found = []
        if self.eot_samples < FULL_EOT:
            published = f"(HetPure's published attack: {FULL_EOT})"
            found.append(f"{self.name}: {self.eot_samples} EOT draws {published}")
        if self.mask != "all":
            found.append(f"{self.name}: {self.mask} masks only")
        if self.approximation != "none":
            found.append(f"{self.name}: the gradient is an approximation, {self.approximation}")
        return found

    @property
    def title(self) -> str:
        """Norm and radius."""
        return f"{NAMES[self.norm]} {self.epsilon}"


class Best:
    """The best of the iterates seen so far, by image.

    Where the defence's answer is certain, one that is wrong beats one that is right. Where it is
    not, a few draws that happen to be wrong say little, and the expected loss decides alone.
    """

    def __init__(self, images: Tensor, *, certain: bool) -> None:
        self.images = images
        self.certain = certain
        self.worth: Tensor | None = None

    def consider(self, adversarial: Tensor, answer: Answer, labels: Tensor) -> Tensor:
        """Takes better iterates; which were taken (B,)."""
        worth = answer.loss
        if self.certain:
            wrong = (answer.logits.argmax(-1) != labels).all(0)
            worth = torch.stack([wrong.to(worth), worth], 1)
        else:
            worth = worth[:, None]
        better = torch.ones_like(labels, dtype=torch.bool)
        if self.worth is not None:
            first, second = worth[:, 0], self.worth[:, 0]
            better = first > second
            if self.certain:
                better |= (first == second) & (worth[:, 1] > self.worth[:, 1])
            worth = torch.where(better[:, None], worth, self.worth)
        self.worth = worth
        self.images = torch.where(better[:, None, None, None], adversarial.detach(), self.images)
        return better
