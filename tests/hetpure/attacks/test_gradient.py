"""What attacks with gradients ask: masks, averages over draws, antithetic pairs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks import PGD
from hetpure.attacks.gradient import Ascent, Best
from hetpure.attacks.losses import criterion, cross_entropy
from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.expectation import Answer, Average, Query, expected_gradient, expected_loss
from hetpure.gradients import Execution
from hetpure.noise import BatchNoise, Noise, Purpose, Stream
from hetpure.purifiers import (
    EDMPurifier,
    GuidedPurifier,
    HeterogeneousPurifier,
    Purifier,
    UniformPurifier,
)
from hetpure.samplers import DDIM, DDPM, VPSDE
from tests.hetpure.attacks.defenses import ADDRESSES, SAMPLES, Counter, Spy, linear, target_of

LABELS = torch.tensor([0, 1, 2, 3])
NOISES = [Noise.of(7, Stream.PROBE, k) for k in range(4)]
averages = pytest.mark.parametrize("average", ["gradients", "probabilities", "logits"])
LOGITS = torch.tensor([[2.0, 1.0, -1.0, 0.5], [0.0, 3.0, 1.0, 2.5]], dtype=torch.float64)


@pytest.fixture
def defense(denoiser: Denoiser, classifier: Classifier) -> Spy:
    purifier = HeterogeneousPurifier(steps=4, sampler=DDPM(clip_x0=False))
    return Spy(classifier, purifier, denoiser, AttentionMask(threshold=0.5), "tape")


@pytest.mark.parametrize("policy", ["frozen", "recomputed", "soft"])
def test_each_mask_policy_gives_its_mask(policy: Any, defense: Spy, images: Tensor) -> None:
    attack = PGD(epsilon=0.3, steps=3, step_size=0.2, eot_samples=1, mask=policy)
    attack(target_of(defense, images, LABELS))
    clean = defense.mask(images, SAMPLES)
    present = [defense.mask(call.images, SAMPLES) for call in defense.calls]
    for call, mask in zip(defense.calls, present, strict=True):
        assert torch.equal(call.mask, clean if policy == "frozen" else mask)
    moved = sum(not torch.equal(mask, clean) for mask in present)
    assert moved >= 2, "the iterates' masks are not the clean images'"


def test_a_soft_mask_is_the_hard_one_with_the_relaxed_ones_derivative(
    defense: Defense, images: Tensor
) -> None:
    weights = torch.linspace(-1, 1, 256, dtype=torch.float64).reshape(4, 1, 8, 8)
    mask = defense.attention_mask
    for made in (mask, replace(mask, selection="area", threshold=0.3)):
        point = images.clone().requires_grad_()
        soft = made(defense.classifier, point, SAMPLES, soft=True)
        assert torch.equal(soft.detach(), made(defense.classifier, images, SAMPLES))
        (gradient,) = torch.autograd.grad((weights * soft).sum(), point)
        again = images.clone().requires_grad_()
        scores = made.scores(defense.classifier, again)
        relaxed = made.relaxed(scores, made.select(scores.detach()))[:, None]
        (expected,) = torch.autograd.grad((weights * relaxed).sum(), again)
        torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-15)
        assert (gradient.flatten(1).norm(dim=1) > 0).all()
        # Half where the hard mask begins; of scores that tie there, an area takes some.
        assert (relaxed[soft == 1] >= 0.5).all() and (soft[relaxed > 0.5] == 1).all()


@pytest.mark.parametrize("placement", ["inverted", "shifted", "random"])
def test_soft_control_masks(placement: Any, defense: Defense, images: Tensor) -> None:
    made = replace(defense.attention_mask, placement=placement)
    point = images.clone().requires_grad_()
    soft = made(defense.classifier, point, SAMPLES, soft=True)
    assert torch.equal(soft.detach(), made(defense.classifier, images, SAMPLES))
    (gradient,) = torch.autograd.grad(soft.square().sum(), point)
    assert gradient.isfinite().all()
    assert bool(gradient.any()) == (placement != "random")


@pytest.mark.parametrize("micro_batch", [None, 3, 4])
@averages
def test_a_soft_masks_gradient_is_that_of_one_graph(
    average: Average, micro_batch: int | None, defense: Defense, images: Tensor
) -> None:
    """However the rows are cut, and the mask made once for all draws."""
    defense.execution = Execution("tape", micro_batch=micro_batch)
    losses = criterion("cross_entropy", LABELS)
    point = images.clone().requires_grad_()
    mask = defense.mask(point, SAMPLES, soft=True)
    logits = torch.stack([defense(point, noise.on(SAMPLES), mask) for noise in NOISES])
    loss = expected_loss(logits, losses, average)
    (expected,) = torch.autograd.grad(loss.sum(), point)
    again = images.clone().requires_grad_()
    query = Query(again, SAMPLES, defense.mask(again, SAMPLES, soft=True), NOISES)
    answer = expected_gradient(defense, query, losses, average=average)
    torch.testing.assert_close(answer.gradient, expected, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(answer.loss, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(answer.logits, logits.detach(), rtol=1e-10, atol=1e-12)
    held = replace(query, mask=query.mask.detach())
    hard = expected_gradient(defense, held, losses, average=average).gradient
    cosine = F.cosine_similarity(hard.flatten(1), expected.flatten(1))
    assert (cosine < 0.9999).all(), "the mask's part of the gradient is seen"


def test_averages_by_hand() -> None:
    logits = torch.stack([LOGITS, LOGITS.flip(1)])
    losses = criterion("cross_entropy", torch.tensor([0, 1]))
    each = torch.stack([cross_entropy(one, torch.tensor([0, 1])) for one in logits])
    torch.testing.assert_close(expected_loss(logits, losses, "gradients"), each.mean(0))
    likely = logits.softmax(-1).mean(0)[[0, 1], [0, 1]]
    torch.testing.assert_close(expected_loss(logits, losses, "probabilities"), -likely.log())
    mean = F.cross_entropy(logits.mean(0), torch.tensor([0, 1]), reduction="none")
    torch.testing.assert_close(expected_loss(logits, losses, "logits"), mean)


@averages
def test_rows_that_do_not_fit_are_asked_twice_for_mean_answers_only(
    average: Average, defense: Defense, images: Tensor
) -> None:
    rows: list[int] = []
    defense.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    query = Query(images, SAMPLES, defense.mask(images, SAMPLES), NOISES)
    for size, asked in ((None, 16), (8, 16 if average == "gradients" else 32)):
        defense.execution = Execution("tape", micro_batch=size)
        rows.clear()
        expected_gradient(defense, query, criterion("margin", LABELS), average=average)
        assert sum(rows) == asked


def test_agreement_is_the_cosine_between_the_halves(defense: Defense, images: Tensor) -> None:
    """Of a single draw there is none; the monitor hears the mean of each iteration."""
    mask, losses = defense.mask(images, SAMPLES), criterion("cross_entropy", LABELS)

    def ask(noises: list[Noise]) -> Answer:
        return expected_gradient(defense, Query(images, SAMPLES, mask, noises), losses)

    first, second, whole = (ask(noises) for noises in (NOISES[:2], NOISES[2:], NOISES))
    torch.testing.assert_close(whole.gradient, (first.gradient + second.gradient) / 2)
    expected = F.cosine_similarity(first.gradient.flatten(1), second.gradient.flatten(1))
    torch.testing.assert_close(whole.agreement, expected)
    assert ask(NOISES[:1]).agreement is None
    counter = Counter()
    attack = PGD(epsilon=0.1, steps=3, step_size=0.05, eot_samples=2, mask="frozen")
    attack(target_of(defense, images, LABELS, ADDRESSES, counter))
    assert [number for number, _ in counter.iterations] == [0, 1, 2]
    for _, values in counter.iterations:
        assert set(values) == {"loss", "agreement"} and -1 <= values["agreement"] <= 1


def test_antithetic_draws_are_pairs_whose_normals_have_opposite_signs() -> None:
    """All else is alike, and what is known stays as it is."""
    like = torch.empty(4, 1, 8, 8, dtype=torch.float64)
    addresses = replace(ADDRESSES, known=("reverse",))
    noises = addresses.draws(0, 3, 4, antithetic=True)
    assert noises[::2] == addresses.draws(0, 3, 2)
    a, b = (noise.on(SAMPLES) for noise in noises[2:])
    for purpose in (Purpose.FORWARD, Purpose.RESAMPLE, Purpose.REVERSE):
        sign = 1 if purpose == Purpose.REVERSE else -1
        assert torch.equal(a.normal(purpose, like), sign * b.normal(purpose, like))
        assert torch.equal(a.uniform(purpose, like), b.uniform(purpose, like))
        assert torch.equal(a.integers(purpose, 100), b.integers(purpose, 100))
    last = BatchNoise.stack(noises[2:], SAMPLES).take(torch.tensor([5]))
    assert torch.equal(last.normal(Purpose.FORWARD, like[:1]), b.normal(Purpose.FORWARD, like)[1:2])


def test_antithetic_pairs_of_a_linear_answer_cancel_its_noise(images: Tensor) -> None:
    """Where the answer is linear in the noise, the mean over a pair is the answer without any."""

    class Linear(Defense):
        groups = frozenset(("forward", "reverse"))

        def forward(
            self, images: Tensor, noise: BatchNoise, mask: Any = None, policy: Any = None
        ) -> Tensor:
            moved = images + noise.normal(Purpose.FORWARD, images)
            return moved.flatten(1)[:, :4]

    defense = Linear(linear(torch.eye(64, dtype=torch.float64)[:4]))
    attack = PGD(epsilon=0.1, eot_samples=2, antithetic=True, average="logits", mask="recomputed")
    run = Ascent(target_of(defense, images), 0, criterion("cross_entropy", LABELS), None)
    answer = attack.ask(run, images, 0)
    expected = cross_entropy(images.flatten(1)[:, :4], LABELS)
    torch.testing.assert_close(answer.loss, expected)
    other = replace(attack, antithetic=False).ask(run, images, 0)
    assert not torch.isclose(other.loss, expected).any()


def test_the_best_iterate_counts_what_is_certain(images: Tensor) -> None:
    """A wrong answer beats a larger loss only where the answer is certain."""

    def answer(loss: float, wrong: bool) -> Answer:
        logits = torch.zeros(1, 4, 4).scatter(2, (LABELS + wrong)[None, :, None] % 4, 1.0)
        return Answer(images, torch.full((4,), loss, dtype=torch.float64), logits, None)

    for certain in (True, False):
        best = Best(images, certain=certain)
        best.consider(images + 1, answer(1.0, True), LABELS)
        assert torch.equal(best.images, images + 1)
        taken = best.consider(images + 2, answer(5.0, False), LABELS)
        assert taken.all() != certain
        best.consider(images + 3, answer(2.0, True), LABELS)
        assert torch.equal(best.images, images + (3 if certain else 2))


@pytest.mark.parametrize("approximation", ["bpda", "classifier_only"])
def test_an_approximation_is_the_policy_of_that_name(
    approximation: Any, defense: Defense, images: Tensor
) -> None:
    exact = PGD(epsilon=0.1, steps=2, step_size=0.05, eot_samples=2, mask="recomputed")
    target = target_of(defense, images, LABELS)
    last, _ = replace(exact, approximation=approximation)(target)
    defense.execution = Execution(approximation)
    torch.testing.assert_close(last, exact(target)[0], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "purifier",
    [
        UniformPurifier(steps=4),
        UniformPurifier(steps=4, sampler=DDIM(eta=0.5)),
        UniformPurifier(steps=4, sampler=DDPM()),
        UniformPurifier(steps=4, sampler=VPSDE()),
        HeterogeneousPurifier(steps=4),
        HeterogeneousPurifier(steps=4, sampler=DDPM()),
        GuidedPurifier(strength=0.004),
        EDMPurifier(levels=3, churn=2.0),
        None,
    ],
    ids=repr,
)
def test_groups_are_those_that_a_purification_asks_for(
    purifier: Purifier | None, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """What is locked must be all there is: a group that is asked for and not named would be taken
    for known."""
    defense = Defense(classifier, purifier, denoiser if purifier else None)
    asked: set[str] = set()

    class Watched(BatchNoise):
        def words(self, purpose: Purpose, *rest: Any) -> Tensor:
            asked.add("reverse" if purpose == Purpose.REVERSE else "forward")
            return super().words(purpose, *rest)

    noise = Noise.of(7, Stream.PROBE).on(SAMPLES)
    with torch.no_grad():
        defense(images, Watched(**vars(noise)), defense.mask(images, SAMPLES))
    assert asked == defense.groups


@pytest.mark.parametrize("known", [("forward", "reverse"), ("forward",), ()], ids=str)
def test_what_is_known_needs_no_expectation(
    known: Any, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """With both groups known a query is one draw, the one that the defence runs with."""
    defense = Spy(classifier, UniformPurifier(steps=20, sampler=DDPM()), denoiser)
    attack = PGD(epsilon=0.1, steps=2, step_size=0.05, eot_samples=3)
    assert attack.cost(defense, known).draws == (1 if len(known) == 2 else 3)
    attack(target_of(defense, images, LABELS, replace(ADDRESSES, known=known)))
    for call in defense.calls:
        for group in ("forward", "reverse"):
            streams = getattr(call.noise, group)[:, 0]
            assert (streams == (Stream.DW_BOX if group in known else Stream.ATTACK)).all()
    ddim = Defense(classifier, UniformPurifier(steps=4), denoiser)
    assert attack.cost(ddim, ("forward",)).draws == 1, "DDIM has no reverse noise"
