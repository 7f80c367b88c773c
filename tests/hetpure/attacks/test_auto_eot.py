"""The ensemble: who is attacked by whom, on which draws, and that single draws decide nothing."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetpure.attacks.apgd import APGD
from hetpure.attacks.attack import Addresses, Attack, Cost, Target, Threat
from hetpure.attacks.auto_eot import CHECK, AutoEOT
from hetpure.attacks.autoattack import AutoAttack
from hetpure.attacks.square import Square
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.evaluation.protocol import Block, Cell, Protocol, evaluate_cell
from hetpure.evaluation.statistics import mean_accuracy
from hetpure.noise import BatchNoise, Group, Purpose, Stream
from tests.hetpure.attacks.defenses import ADDRESSES, SAMPLES, Counter, target_of

LABELS = torch.zeros(4, dtype=torch.int64)
EPSILON = 0.1


class Unsure(Defense):
    """Errs with a probability for each image: its first pixel, or a constant one; class 0 is right
    and class 1 is not. The slope is everywhere finite and nowhere zero."""

    def __init__(self, rate: float | None = None, *, drawn: bool = True) -> None:
        super().__init__(
            Classifier(nn.Flatten(), num_classes=4, mean=[0.0], std=[1.0], attention_blocks=())
        )
        self.rate = rate
        self.drawn = drawn
        self.calls: list[BatchNoise] = []

    @property
    def groups(self) -> frozenset[Group]:
        return frozenset(("forward",) if self.drawn else ())

    def forward(
        self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
    ) -> Tensor:
        self.calls.append(noise)
        pixel = images[:, :1, :1, 0]
        uniform = torch.full_like(pixel, 0.5)
        if self.drawn:
            uniform = noise.uniform(Purpose.FORWARD, pixel)
        rate = pixel if self.rate is None else torch.full_like(pixel, self.rate)
        sign = 1 - 2 * (uniform < rate)[:, :, 0].to(images.dtype)
        slopes = 1e-3 * torch.arange(1.0, 5.0) * images.flatten(1).sum(1, keepdim=True)
        return torch.eye(4)[0] * sign + slopes.to(images.dtype)


@dataclass(frozen=True)
class Setter(Attack):
    """Sets the first pixel, the rate of errors: a candidate for each value. Remembers its calls."""

    values: tuple[float, ...] = (0.0,)
    name: str = "setter"
    epsilon: float = EPSILON
    calls: list[Addresses] = field(default_factory=list)

    @property
    def threat(self) -> Threat:
        return Threat("linf", self.epsilon)

    def cost(self, defense: Defense, known: tuple[Group, ...] = ()) -> Cost:
        return Cost(gradients=5, queries=3, candidates=len(self.values), draws=2)

    def __call__(self, target: Target) -> Tensor:
        self.calls.append(target.addresses)
        candidates = target.images.repeat(len(self.values), 1, 1, 1, 1)
        for candidate, value in zip(candidates, self.values, strict=True):
            candidate[:, :, :1, 0] = value
        return candidates


@dataclass(frozen=True)
class SetterOfEven(Setter):
    """Succeeds on images with an even sample id."""

    def __call__(self, target: Target) -> Tensor:
        even = (target.samples % 2 == 0)[:, None, None, None]
        return torch.where(even, super().__call__(target), target.images)


@dataclass(frozen=True, kw_only=True)
class Ensemble(AutoEOT):
    """Of any members."""

    members: tuple[Attack, ...]

    @property
    def attacks(self) -> tuple[Attack, ...]:
        return self.members


def ensemble(*members: Attack, **settings: Any) -> AutoEOT:
    return Ensemble(epsilon=EPSILON, members=members, **settings)


@pytest.fixture
def flat() -> Tensor:
    """Images on which `Unsure` errs in 100, 0, 30 and 60% of the draws."""
    images = torch.full((4, 1, 2, 2), 0.5)
    images[:, 0, 0, 0] = torch.tensor([1.0, 0.0, 0.3, 0.6])
    return images


def test_finished_images_are_not_attacked_again(flat: Tensor) -> None:
    """Not those that are wrong already, nor those that a member has broken on all draws; an image
    that a member did not attack has its best candidate in the member's places."""
    first, second, third = SetterOfEven((0.2, 1.0)), Setter((0.9,)), Setter((0.1,))
    defense, counter = Unsure(), Counter()
    attack = ensemble(first, second, third)
    candidates = attack(target_of(defense, flat, LABELS, ADDRESSES, counter))
    assert [call.samples.tolist() for call in first.calls] == [[7, 100, 5]]
    assert [call.samples.tolist() for call in second.calls] == [[7, 5]]  # 100 is finished
    assert sum(counter.queries) == 10 * (4 + 2 * 3 + 2)  # each once, the last member's never
    cost = attack.cost(defense)
    assert cost == Cost(gradients=15, queries=9 + 10 * (1 + 2 + 1), candidates=4, draws=2)
    assert len(candidates) == 4 and sum(counter.queries) <= 4 * cost.queries
    rates = candidates[:, :, 0, 0, 0]
    expected = [[1.0, 0.0, 0.2, 0.6], [1.0, 0.0, 1.0, 0.6], [1.0, 0.9, 1.0, 0.9]]
    torch.testing.assert_close(rates, torch.tensor([*expected, [1.0, 0.1, 1.0, 0.1]]))


def test_a_single_wrong_draw_finishes_nothing() -> None:
    """A coin decides nothing: of 64 images that are wrong every other time none is finished."""
    samples = torch.arange(64)
    images, labels = torch.full((64, 1, 2, 2), 0.5), torch.zeros(64, dtype=torch.int64)
    members = Setter((0.5, 0.4)), Setter((0.6,)), Setter((0.0,))
    attack = ensemble(*members, check_draws=30)
    attack(target_of(Unsure(), images, labels, Addresses(samples, ADDRESSES.noise)))
    assert [call.samples.tolist() for member in members for call in member.calls] == [
        samples.tolist()
    ] * 3


def test_the_best_is_the_one_with_the_highest_rate(flat: Tensor) -> None:
    """What stands where a member did not attack: here all images are finished after the first."""
    first, second = Setter((0.5, 1.0, 0.7)), Setter((0.0, 0.0))
    candidates = ensemble(first, second)(target_of(Unsure(), flat, LABELS))
    assert second.calls == []
    assert torch.equal(candidates[3:, :, 0, 0, 0], torch.ones(2, 4))
    assert torch.equal(candidates[:3, 0], flat[0].expand(3, -1, -1, -1))  # finished from the start


def test_members_and_checks_never_share_draws(flat: Tensor) -> None:
    members = [Setter((0.1,)), Setter((0.1,)), Setter((0.1,))]
    defense = Unsure()
    known: tuple[Group, ...] = ("reverse",)
    addresses = replace(ADDRESSES, known=known, member=2)
    ensemble(*members, check_draws=3)(target_of(defense, flat, LABELS, addresses))
    assert [call.member for member in members for call in member.calls] == [2, 3, 4]
    assert all(call.known == known for member in members for call in member.calls)
    numbers = {int(draw) for noise in defense.calls for draw in noise.forward[:, 1]}
    assert {number >> 40 for number in numbers} == {CHECK}
    assert len(numbers) == 3
    assert all((noise.forward[:, 0] == Stream.ATTACK).all() for noise in defense.calls)
    assert all((noise.reverse[:, 0] == Stream.DW_BOX).all() for noise in defense.calls)


@pytest.mark.parametrize("known", [(), ("forward",)], ids=["deterministic", "all known"])
def test_one_draw_is_certain_where_nothing_is_drawn(known: Any, flat: Tensor) -> None:
    defense = Unsure(drawn=bool(known))
    counter = Counter()
    addresses = replace(ADDRESSES, known=known)
    attack = ensemble(Setter((0.45,)), Setter((1.0,)))
    attack(target_of(defense, flat, LABELS, addresses, counter))
    assert sum(counter.queries) <= 2 * 4
    assert attack.cost(defense, known).queries == 3 + 3 + 2


def test_the_default_members_share_its_settings() -> None:
    attack = AutoEOT(epsilon=0.5, norm="l2", steps=7, eot_samples=3, square_steps=11)
    shared: dict[str, Any] = {"epsilon": 0.5, "norm": "l2", "eot_samples": 3}
    apgd, square = APGD(**shared, steps=7), Square(**shared, steps=11)
    targeted = replace(apgd, loss="dlr", targets=3)
    assert attack.attacks == (apgd, targeted, replace(apgd, loss="margin"), square)
    assert attack.notes(2) == [
        "apgd_dlr_l2_targeted: DLR needs more than 2 classes: the margin was used"
    ]


def test_at_least_as_strong_as_its_best_member(classifier: Classifier, images: Tensor) -> None:
    """Against a deterministic defence: the usual ensemble, whose members are alone no better."""
    defense, noise = Defense(classifier), ADDRESSES.noise.on(SAMPLES)
    labels = defense(images, noise).argmax(1)
    attack = AutoEOT(epsilon=0.01, steps=4, eot_samples=1, square_steps=6)

    def broken(member: Attack) -> Tensor:
        candidates = member(target_of(defense, images, labels))
        return torch.stack([defense(x, noise).argmax(1) != labels for x in candidates]).any(0)

    alone = torch.stack([broken(member) for member in attack.attacks])
    assert alone.any() and not alone.all(1).any()
    assert (broken(attack) | ~alone).all()


# The null argument: an attack of strength zero must find the clean accuracy.


@pytest.mark.parametrize("rate", [0.02, 0.1])
@pytest.mark.parametrize("kind", ["ensemble", "official"])
def test_the_null_attack_finds_the_truth(kind: str, rate: float) -> None:
    """Chosen by rates and reported on fresh draws, whatever looked for the images: nothing."""
    images = torch.rand(800, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    block = Block(images, torch.zeros(800, dtype=torch.int64), torch.arange(800))
    shared: dict[str, Any] = {"epsilon": 0.0, "steps": 1, "eot_samples": 1}
    attack: Attack = AutoEOT(**shared, square_steps=2)
    if kind == "official":
        attack = AutoAttack(**shared, version="rand")
    protocol = Protocol()
    cell = Cell("null", attack, report_from=protocol.report_draws)
    outcome = evaluate_cell("row", Unsure(rate), cell, block, protocol, seed=7)
    assert torch.equal(outcome.adversarial, images)
    right = torch.tensor([record.predictions for record in outcome.records]) == 0
    estimate = mean_accuracy(right.numpy())
    assert estimate.low <= 1 - rate <= estimate.high
    assert estimate.high - estimate.low < 0.02
