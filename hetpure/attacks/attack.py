"""What an attack is, what it is run against, and what it costs."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from hetpure.defense import Defense
from hetpure.errors import FieldError, InputError, check_at_least, check_choice
from hetpure.expectation import Query, answers
from hetpure.geometry import Norm
from hetpure.gradients import Execution
from hetpure.noise import BatchNoise, Group, Noise, attack_draw
from hetpure.numbers import Number

# Of float32: an image plus an offset of exactly epsilon is rounded to the nearest pixel value.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Threat:
    """What an adversarial image may be: within `epsilon` of the image in a norm, pixel units."""

    norm: Norm
    epsilon: float

    def __str__(self) -> str:
        return f"{self.norm.capitalize()} {self.epsilon}"

    @property
    def ball(self) -> str:
        """One text for one ball, however its radius was written."""
        return f"{self.norm.capitalize()} {float(self.epsilon):.9g}"


@dataclass(frozen=True)
class Addresses:
    """Where an attack on a block finds its noise.

    Args:
        samples: ids of the images (B,).
        noise: what the defence will run with, as far as the attacker knows it.
        known: the groups of it that the attacker knows: none is white-box, both is the
            deterministic white box (DW-box). The attack draws the others itself.
        member: number of the attack within an evaluation or an ensemble, so that no two share
            draws.
    """

    samples: Tensor
    noise: Noise
    known: tuple[Group, ...] = ()
    member: int = 0

    def draws(
        self, restart: int, iteration: int, count: int, *, antithetic: bool = False
    ) -> list[Noise]:
        """The attack's noises of one iteration; antithetic ones come in pairs of opposite sign."""
        noises = []
        for k in range(count):
            draw = attack_draw(self.member, restart, iteration, k // 2 if antithetic else k)
            if antithetic and k % 2:
                draw = replace(draw, negated=True)
            noises.append(self.noise.redraw(draw, keep=self.known))
        return noises

    def own_noise(self, restart: int, iteration: int = 0) -> BatchNoise:
        """What the attack draws for itself on these images, as a random start, whatever it knows of
        the defence's noise."""
        draw = attack_draw(self.member, restart, iteration, 0)
        return self.noise.redraw(draw).on(self.samples)


class Monitor:
    """Hears what an attack does; this one does not listen."""

    def differentiated(self, count: int) -> None:
        """So many purifications were differentiated, one an image and draw."""

    def answered(self, count: int) -> None:
        """So many purifications were computed without a gradient."""

    def iteration(self, number: int, **values: float) -> None:
        """Means over the block of one iteration, as its loss."""


SILENT = Monitor()


@dataclass(frozen=True)
class Target:
    """What an attack is run against: a defence on some images, and all that the attacker knows.

    Args:
        defense: what is asked and differentiated.
        images: (B, C, H, W) in pixel [0, 1].
        labels: (B,).
        addresses: of the images' noise.
        monitor: told of everything that is computed.
    """

    defense: Defense
    images: Tensor
    labels: Tensor
    addresses: Addresses
    monitor: Monitor = SILENT

    @property
    def samples(self) -> Tensor:
        """Ids of the images (B,)."""
        return self.addresses.samples

    @property
    def certain(self) -> bool:
        """Whether an answer of the defence is always the same: nothing unknown is drawn."""
        return not unknown_groups(self.defense, self.addresses.known)

    def answers(self, noises: Sequence[Noise], mask: Tensor | None = None) -> Tensor:
        """Logits (N, B, classes) of these images, with their own masks, on N noises. Where those
        masks (B, 1, H, W) are known, the classifier is not asked for them again."""
        if mask is None:
            mask = self.defense.mask(self.images, self.samples)
        query = Query(self.images, self.samples, mask, noises)
        return answers(self.defense, query, self.monitor.answered)

    def take(self, index: Tensor) -> "Target":
        """Some of the images, (R,) int64."""
        return replace(
            self,
            images=self.images[index],
            labels=self.labels[index],
            addresses=replace(self.addresses, samples=self.samples[index]),
        )


@dataclass(frozen=True)
class Cost:
    """What an attack asks of a defence for one image, at most.

    Args:
        gradients: purifications that are differentiated.
        queries: purifications without a gradient.
        candidates: adversarial images that it gives.
        draws: noise draws that are asked at once: with the images of a block they are a batch.
    """

    gradients: int = 0
    queries: int = 0
    candidates: int = 1
    draws: int = 1


@dataclass(frozen=True)
class Attack(ABC):
    """Holds hyper-parameters only; nothing is remembered between calls."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Short name in tables and records."""

    @property
    @abstractmethod
    def threat(self) -> Threat | None:
        """The ball that candidates lie in; None for an attack that moves images otherwise."""

    @abstractmethod
    def __call__(self, target: Target) -> Tensor:
        """(N, B, C, H, W) candidates inside the ball and [0, 1], N per image."""

    def check(self, defense: Defense, samples: Tensor, known: tuple[Group, ...] = ()) -> None:
        """InputError where it cannot attack this defence on the images with these ids (N,), given
        the groups of its noise that are known: asked before anything is computed."""
        return  # most can attack all

    def content(self) -> str:
        """A hash of what it reads from files, which makes its candidates; empty for most."""
        return ""

    @abstractmethod
    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        """What it asks of this defence, where the attacker knows these groups of its noise."""

    def describe(self) -> str:
        """The ball, the class, steps and draws, and what else is not set as by default."""
        words = [str(self.threat or "no ball"), type(self).__name__]
        for field in fields(self):
            value = getattr(self, field.name)
            default = value == field.default and field.name not in ("steps", "eot_samples")
            if not default and field.name not in ("epsilon", "norm"):
                words.append(f"{field.name} {value}")
        return ", ".join(words)

    def weaker_than_full(self) -> list[str]:
        """What of the budget is below the published full attack."""
        return []

    def below(self, field: str, full: int, published: str = "full") -> list[str]:
        """A line of `weaker_than_full` where a setting is below the published one."""
        value = getattr(self, field)
        return [f"{self.name}: {field} {value} ({published}: {full})"] if value < full else []

    def notes(self, classes: int) -> list[str]:
        """What it does otherwise than asked, for a classifier of so many classes."""
        return []

    def execution(self, defense: Defense) -> Execution | None:
        """How it differentiates the defence, where that is not the defence's own execution."""
        return None

    def stronger(self) -> "Mapping[str, Attack]":
        """For the audit, the same attack with more of one thing: it must not find less."""
        return {}

    def at_radius(self, epsilon: float) -> "Attack | None":
        """For the audit, the same attack in a ball of another radius, where its own has one."""
        return None

    def transferred(self) -> "Attack | None":
        """For the audit, the same attack on the classifier alone, which must not find more."""
        return None


@dataclass(frozen=True, kw_only=True)
class InBall(Attack):
    """An attack whose candidates lie in a ball around their images.

    Args:
        epsilon: radius in pixel units [0, 1]; 8/255 may be written.
        norm: of the ball.
    """

    epsilon: Number = Number("8/255")  # noqa: RUF009 (immutable)
    norm: Norm = "linf"

    def __post_init__(self) -> None:
        check_ball(self, self.epsilon, self.norm)

    @property
    def name(self) -> str:
        return f"{type(self).__name__.lower()}_{self.norm}"

    @property
    def threat(self) -> Threat:
        return Threat(self.norm, self.epsilon)


def unknown_groups(defense: Defense, known: tuple[Group, ...]) -> frozenset[Group]:
    """The groups of noise that a defence draws and an attacker does not know."""
    return defense.groups - frozenset(known)


def check_ball(owner: object, epsilon: float | None, norm: Norm) -> None:
    """FieldError unless these are radius (pixel units [0, 1]) and norm of the owner's ball."""
    check_choice(owner, "norm", Norm)
    check_at_least(owner, 0, "epsilon")
    if norm == "linf" and epsilon is not None and epsilon > 1:
        pixels = "more than a pixel's whole range [0, 1]: write 8/255 for 8 of 255 steps"
        raise FieldError(owner, "epsilon", f"is {epsilon}, {pixels}")


def check_candidates(
    candidates: Tensor, images: Tensor, samples: Tensor, threat: Threat | None
) -> None:
    """Asserts that candidates (N, B, C, H, W) are pixels in [0, 1] and in the ball around their
    images; the first that is not is named by its sample id."""
    finite = candidates.isfinite().flatten(2).all(2)
    pixels = ((candidates >= 0) & (candidates <= 1)).flatten(2).all(2)
    inside = torch.ones_like(pixels)
    if threat is not None:
        order = torch.inf if threat.norm == "linf" else 2
        sizes = torch.linalg.vector_norm(candidates - images, order, dim=(2, 3, 4))
        inside = sizes <= threat.epsilon + ROUNDING * sizes.max().clamp(min=1)
    for good, what in (
        (finite, "holds NaN or infinite pixels"),
        (pixels, "has pixels outside [0, 1]"),
        (inside, f"lies outside the ball {threat}"),
    ):
        if not good.all():
            number, image = (int(k) for k in (~good).nonzero()[0])
            raise AssertionError(
                f"the attack's candidate {number} of sample {int(samples[image])} {what}"
            )


def check_labels(labels: Tensor, samples: Tensor, classes: int) -> None:
    """InputError unless every label (B,) is a class, 0 to classes - 1."""
    bad = (labels < 0) | (labels >= classes)
    if bad.any():
        first = int(bad.nonzero()[0])
        raise InputError(
            f"sample {int(samples[first])} has the label {int(labels[first])}: the classifier knows"
            f" classes 0 to {classes - 1}; give it data with its own labels"
        )
