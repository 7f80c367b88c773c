"""DiffAttack: the deviation by its definition, its gradient exact under every policy, and what the
attack makes of it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks import PGD
from hetpure.attacks.diffattack import Deviated, DiffAttack
from hetpure.attacks.gradient import Ascent
from hetpure.attacks.losses import criterion
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.expectation import Query, answers
from hetpure.gradients import APPROXIMATIONS, Execution, Policy
from hetpure.noise import BatchNoise, Purpose
from hetpure.purifiers import (
    EDMPurifier,
    GuidedPurifier,
    HeterogeneousPurifier,
    Purifier,
    UniformPurifier,
)
from hetpure.samplers import DDPM, VPSDE
from hetpure.schedule import NO_NOISE
from tests.hetpure.attacks.defenses import ADDRESSES, SAMPLES, target_of, unit

LABELS = torch.tensor([0, 1, 2, 3])
SMOOTH = DDPM(clip_x0=False)
FAMILY: dict[str, Purifier] = {
    "ddim": UniformPurifier(steps=20, strength=0.2),
    "ddpm": UniformPurifier(steps=20, strength=0.2, sampler=SMOOTH),
    "vp-sde": UniformPurifier(steps=20, strength=0.2, sampler=VPSDE(), output="state"),
    "edm": EDMPurifier(levels=3, strength=0.2, churn=1.0),
    "guided": GuidedPurifier(steps=20, strength=0.1, sampler=SMOOTH, guidance=2.0, rounds=2),
    "heterogeneous": HeterogeneousPurifier(
        steps=20, sampler=SMOOTH, resampling="multi_step", resample_jump=2
    ),
}
Rows = Callable[..., BatchNoise]
FEW: dict[str, Any] = {"epsilon": 0.1, "steps": 2, "eot_samples": 2}


@pytest.fixture(params=FAMILY)
def defense(request: Any, denoiser: Denoiser, smooth_classifier: Classifier) -> Defense:
    return Defense(smooth_classifier, FAMILY[request.param], denoiser)


def diffattack(**settings: Any) -> DiffAttack:
    return DiffAttack(**FEW | {"step_size": 0.04, "random_start": False} | settings)


def test_deviation_by_hand(
    defense: Defense, images: Tensor, half_mask: Tensor, rows: Rows, denoiser: Denoiser
) -> None:
    """The mean over steps of the mean squared difference between the state and sqrt(abar) (2 x - 1)
    + sqrt(1 - abar) n; beside it stand the defence's own logits, bit for bit."""
    purifier, noise = defense.purifier, rows(0, 1, 2, 3)
    answers = Deviated(defense)(images, noise, half_mask)
    assert torch.equal(answers[:, :-1], defense(images, noise, half_mask))
    distances, state = [], purifier.start(denoiser, images, noise)
    for step in defense.plan:
        state = purifier.advance(denoiser, step, state, images, half_mask, noise)
        diffused = 2 * images - 1
        if step.to != NO_NOISE:
            alpha = denoiser.schedule.alpha_cumprod(step.to)
            normal = noise.normal(Purpose.FORWARD, images, step=step.to)
            diffused = alpha**0.5 * diffused + (1 - alpha) ** 0.5 * normal
        distances.append((state - diffused).square().mean((1, 2, 3)))
    assert len({step.to for step in defense.plan}) > 1
    torch.testing.assert_close(answers[:, -1], torch.stack(distances).mean(0), rtol=1e-12, atol=0)
    assert (answers[:, -1] > 0).all()


def test_policies_agree_bit_for_bit_and_call_the_network_as_ever(
    defense: Defense, images: Tensor, half_mask: Tensor, rows: Rows
) -> None:
    """In logits, deviation, and the gradient of both, in a soft mask too."""
    steps, calls = len(defense.plan), [step.network_calls for step in defense.plan]
    weights = torch.arange(1.0, 6.0, dtype=torch.float64)
    inputs = [images.requires_grad_()]
    if defense.masked:
        half_mask = (0.1 + 0.7 * half_mask).requires_grad_()
        inputs.append(half_mask)
    results = {}
    for how in (Execution("tape"), Execution("checkpoint"), Execution("hybrid", steps // 2)):
        with count_network_calls(defense) as counter:
            output = Deviated(defense)(images, rows(0, 1, 2, 3), half_mask, how)
            gradients = torch.autograd.grad((output * weights).sum(), inputs)
        results[how.policy] = [output, *gradients]
        assert len(counter) == sum(calls) + sum(calls[: how.recomputed(steps)])
    for tensors in results.values():
        assert all(map(torch.equal, tensors, results["tape"]))


def test_gradient_against_finite_differences(
    defense: Defense, images: Tensor, half_mask: Tensor, rows: Rows
) -> None:
    """Of the deviation, which hangs on the image by the states and by what they are held against;
    in a random direction, in float64, every image by itself."""
    towards = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).double()
    towards = unit(towards)

    def deviation(images: Tensor) -> Tensor:
        return Deviated(defense)(images, rows(0, 1, 2, 3), half_mask, "checkpoint")[:, -1]

    (gradient,) = torch.autograd.grad(deviation(images.requires_grad_()).sum(), images)
    up, down = (deviation(images.detach() + h * towards) for h in (1e-4, -1e-4))
    ours = (gradient * towards).sum((1, 2, 3))
    torch.testing.assert_close(ours, (up - down) / 2e-4, rtol=1e-6, atol=1e-9)


def test_auto_takes_what_the_defence_has_chosen(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    """Memory is measured once for a shape, however often the attack asks."""
    defense = Defense(classifier, UniformPurifier(steps=20), denoiser)
    defense(images.requires_grad_(), rows(0, 1, 2, 3))
    with count_network_calls(defense) as counter:
        Deviated(defense)(images, rows(0, 1, 2, 3))
    assert len(counter) == defense.network_calls


@pytest.mark.parametrize("policy", APPROXIMATIONS)
def test_what_does_not_differentiate_every_step_is_refused(
    policy: Policy, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    purifier = UniformPurifier(steps=20, sampler=VPSDE())
    defense = Defense(classifier, purifier, denoiser, policy=policy)
    with pytest.raises(InputError, match=f"gradient {policy} does not; make it auto, tape"):
        diffattack()(target_of(defense, images, LABELS))


@pytest.mark.parametrize("what", ["no purifier", "weight 0", "classifier only"])
def test_where_it_is_pgd(
    what: str, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Bit for bit."""
    purifier = None if what == "no purifier" else HeterogeneousPurifier(steps=10)
    defense = Defense(classifier, purifier, denoiser if purifier else None, policy="tape")
    approximation = "classifier_only" if what == "classifier only" else "none"
    settings = {**FEW, "norm": "l2", "mask": "soft", "approximation": approximation}
    ours = DiffAttack(**settings, deviation_weight=0.0 if what == "weight 0" else 1.0)
    target = target_of(defense, images, LABELS)
    assert torch.equal(ours(target), PGD(**settings)(target))


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("average", ["gradients", "logits"])
def test_a_step_goes_along_both_losses(
    average: str,
    micro_batch: Any,
    denoiser: Denoiser,
    smooth_classifier: Classifier,
    images: Tensor,
) -> None:
    """One l2 step against the gradient by hand: of the classification loss and, three times, of the
    mean deviation over the draws."""
    execution = Execution("tape", micro_batch=micro_batch)
    purifier = UniformPurifier(steps=10, strength=0.2, sampler=SMOOTH)
    defense = Defense(smooth_classifier, purifier, denoiser, policy=execution)
    point, noises = images.clone().requires_grad_(), ADDRESSES.draws(0, 0, 2)
    answers = torch.stack([Deviated(defense)(point, noise.on(SAMPLES)) for noise in noises])
    logits, deviations = answers[..., :-1], answers[..., -1]
    if average == "logits":
        logits = logits.mean(0, keepdim=True)
    losses = [F.cross_entropy(draw, LABELS, reduction="none") for draw in logits]
    total = torch.stack(losses).mean(0) + 3 * deviations.mean(0)
    (gradient,) = torch.autograd.grad(total.sum(), point)
    attack = diffattack(norm="l2", epsilon=9.0, steps=1, deviation_weight=3.0, average=average)
    last, _ = attack(target_of(defense, images, LABELS))
    torch.testing.assert_close((last - images) / 0.04, unit(gradient), rtol=0, atol=1e-9)


def test_an_answer_tells_of_the_classification_alone(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """So the best iterate is the one that is classified worst, and no deviation is taken for a
    class: here it is far above all logits."""
    defense = Defense(classifier, FAMILY["ddpm"], denoiser)
    attack = diffattack(deviation_weight=1e6, mask="recomputed")
    losses = criterion("cross_entropy", LABELS)
    answer = attack.ask(Ascent(target_of(defense, images, LABELS), 0, losses, None), images, 0)
    noises = ADDRESSES.draws(0, 0, 2)
    expected = answers(defense, Query(images, SAMPLES, None, noises))
    assert torch.equal(answer.logits, expected)
    loss = torch.stack([F.cross_entropy(draw, LABELS, reduction="none") for draw in expected])
    torch.testing.assert_close(answer.loss, loss.mean(0), rtol=1e-12, atol=0)
