"""What attacks with gradients ask: masks, averages over draws, antithetic pairs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks import (
    APGD,
    PGD,
    DiffAttack,
    DiffHammer,
    FilterAttack,
    LowFrequency,
    StAdv,
)
from hetpure.attacks.gradient import Ascent, Best, GradientAttack
from hetpure.attacks.losses import criterion, cross_entropy
from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError
from hetpure.expectation import Answer, Average, Query, expected_gradient, expected_loss
from hetpure.gradients import Execution
from hetpure.noise import Address, BatchNoise, Noise, Purpose, Stream, attack_draw
from hetpure.purifiers import (
    EDMPurifier,
    GuidedPurifier,
    HeterogeneousPurifier,
    Purifier,
    UniformPurifier,
)
from hetpure.samplers import DDIM, DDPM, VPSDE
from tests.hetpure.attacks.defenses import (
    ADDRESSES,
    SAMPLES,
    Counter,
    Noisy,
    Spy,
    linear,
    target_of,
)

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


@pytest.mark.parametrize(
    ("attack", "classified", "masks"),
    [
        (PGD(eot_samples=4, resubmissions=3, steps=2, mask="frozen"), 14, 3),
        (PGD(eot_samples=4, resubmissions=3, steps=2, mask="recomputed"), 14, 3),
        (PGD(eot_samples=4, resubmissions=3, steps=2, mask="soft"), 14, 3),
        (APGD(eot_samples=4, resubmissions=3, steps=2, mask="recomputed"), 21, 4),
        (PGD(eot_samples=4, targets=1, steps=2, mask="recomputed"), 4 + 8, 3),
        (DiffHammer(eot_samples=4, resubmissions=3, steps=2, mask="recomputed"), 14, 3),
        (DiffHammer(eot_samples=4, grafted=True, steps=2, mask="recomputed"), 8, 3),
        (DiffHammer(eot_samples=4, steps=2, mask="soft"), 8, 1 + 8),
        (PGD(steps=2, mask="all").transferred(), 2, 1),
    ],
    ids=repr,
)
def test_an_iterates_mask_is_made_once(
    attack: GradientAttack, classified: int, masks: int, defense: Spy, images: Tensor
) -> None:
    """Whatever the draws: one forward pass of the classifier for each iterate's mask and one for
    the clean images', beside one for each purified image. A transfer attack looks at no mask."""
    calls: list[int] = []
    with defense.classifier.register_forward_hook(lambda _, x, logits: calls.append(len(logits))):
        attack(target_of(defense, images, LABELS))
    assert sum(len(call.images) for call in defense.calls) == classified * 4
    assert sum(calls) == (classified + masks) * 4


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
        assert set(values) == {"run", "loss", "right", "agreement"}
        assert -1 <= values["agreement"] <= 1


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


KINDS: dict[str, type[GradientAttack]] = {
    "pgd": PGD,
    "apgd": APGD,
    "diffattack": DiffAttack,
    "diffhammer": DiffHammer,
    "low_frequency": LowFrequency,
    "stadv": StAdv,
    "filter": FilterAttack,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_iteration_says_its_run_and_how_often_it_is_right(
    kind: str, classifier: Classifier, images: Tensor
) -> None:
    """As the defence itself answers that iterate on that iteration's draws, restart by restart."""
    defense, counter = Noisy(classifier), Counter()
    labels = classifier(images).argmax(1)
    attack: Any = KINDS[kind](steps=3, eot_samples=4, restarts=2, mask="frozen")
    attack(target_of(defense, images, labels, ADDRESSES, counter))
    asked = 4 if kind == "apgd" else 3
    said = [(number, values["run"], values["right"]) for number, values in counter.iterations]
    calls = list(defense.calls)  # one an iteration, of all images and draws
    assert len(said) == len(calls) == 2 * asked
    shares = []
    for (number, run, right), call, place in zip(said, calls, range(2 * asked), strict=True):
        assert (run, number) == divmod(place, asked)
        assert len(call.images) == 16
        answers = defense(call.images, call.noise).argmax(1)
        shares.append(float((answers == labels.repeat(4)).double().mean()))
        assert right == pytest.approx(shares[-1], abs=1e-12)
    assert len(set(shares)) > 1, "there is something to tell"


def test_each_target_class_is_a_run(classifier: Classifier, images: Tensor) -> None:
    counter = Counter()
    attack = PGD(steps=2, eot_samples=2, targets=2, restarts=2, mask="frozen")
    attack(target_of(Noisy(classifier), images, LABELS, ADDRESSES, counter))
    runs = [values["run"] for _, values in counter.iterations]
    assert runs == [0, 0, 1, 1, 2, 2, 3, 3]


def test_the_best_iterate_is_wrong_most_often_and_then_has_the_largest_loss(
    images: Tensor,
) -> None:
    best = Best(images)

    def consider(number: int, loss: float, wrong: int) -> bool:
        losses = torch.full((4,), loss, dtype=torch.float64)
        return bool(best.consider(images + number, losses, torch.full((4,), wrong)).all())

    assert consider(1, -3.0, 0)
    assert consider(2, -5.0, 2)
    assert not consider(3, 9.0, 1)
    assert not consider(4, -6.0, 2)
    assert torch.equal(best.images, images + 2)
    assert consider(5, -4.0, 2)
    assert torch.equal(best.images, images + 5)


def test_one_draw_counts_where_it_is_certain(classifier: Classifier, images: Tensor) -> None:
    """A wrong answer beats a larger loss there; a few draws that are wrong by chance do not."""
    logits = F.one_hot(torch.tensor([[1, 1, 2, 3]]), 4).double()
    answer = Answer(images, torch.zeros(4, dtype=torch.float64), logits, None)
    attack = PGD(mask="recomputed")
    for defense, expected in ((Defense(classifier), [1, 0, 0, 0]), (Noisy(classifier), [0] * 4)):
        run = Ascent(target_of(defense, images, LABELS), 0, criterion("margin", LABELS), None)
        assert attack.wrong(run, images, answer, 0).tolist() == expected


@pytest.mark.parametrize("antithetic", [False, True])
def test_resubmissions_are_fresh_draws_that_choose_the_best_iterate(
    antithetic: bool, classifier: Classifier, images: Tensor
) -> None:
    """Of addresses that no gradient has. They do not move the attack, and the best image is the
    iterate that is wrong on most of them."""
    defense = Noisy(classifier)
    labels = classifier(images).argmax(1)
    settings: Any = {"epsilon": 0.3, "steps": 4, "step_size": 0.1, "eot_samples": 2}
    attack = PGD(**settings, antithetic=antithetic, mask="recomputed", resubmissions=5)
    last, best = attack(target_of(defense, images, labels))
    calls = list(defense.calls)  # of each iterate that of the gradient, and five of one draw
    gradients, further = calls[::6], [calls[place + 1 : place + 6] for place in range(0, 24, 6)]
    assert [len(call.images) for call in calls] == [8, 4, 4, 4, 4, 4] * 4
    used: set[int] = set()
    for iteration, (asked, again) in enumerate(zip(gradients, further, strict=True)):
        assert all(torch.equal(call.images, asked.images[:4]) for call in again)
        fresh = [int(call.noise.reverse[0, 1]) for call in again]
        assert fresh == [attack_draw(0, 0, iteration, 2 + k).index for k in range(5)]
        used |= set(asked.noise.reverse[:, 1].tolist())
        assert not used & set(fresh)
    wrong = torch.stack(
        [
            torch.stack([defense(call.images, call.noise).argmax(1) != labels for call in again])
            for again in further
        ]
    ).sum(1)
    for image in range(4):
        chosen = [k for k in range(4) if torch.equal(further[k][0].images[image], best[image])]
        assert len(chosen) == 1 and wrong[chosen[0], image] == wrong[:, image].max()
    assert (wrong.amax(0) > wrong.amin(0)).any(), "there is something to choose"
    plain = replace(attack, resubmissions=0)(target_of(defense, images, labels))
    assert torch.equal(plain[0], last)


def test_resubmissions_beyond_the_address_space_are_refused() -> None:
    assert PGD(eot_samples=10, resubmissions=65526).resubmissions == 65526
    with pytest.raises(FieldError, match=r"PGD.resubmissions .* <= 65536, got 65527 \+ 10"):
        PGD(eot_samples=10, resubmissions=65527)
    assert "more EOT draws" not in PGD(eot_samples=10, resubmissions=65520).stronger()


def test_a_transfer_attack_asks_no_defence() -> None:
    with pytest.raises(FieldError, match="resubmissions must be 0 for a transfer attack"):
        PGD(approximation="classifier_only", resubmissions=1)
    transferred = PGD(resubmissions=3).transferred()
    assert transferred == PGD(approximation="classifier_only")


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
        def address(self, purpose: Purpose, step: int, repeat: int) -> Address:
            asked.add("reverse" if purpose == Purpose.REVERSE else "forward")
            return super().address(purpose, step, repeat)

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
