"""Policies and approximations by their definitions. `test_purifier_family.py` shows that every
purifier's gradient is exact, `test_gradient_check.py` that a check would see where one is not."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hetpure.defense
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.gradients import (
    Execution,
    GradientError,
    Policy,
    input_gradient,
    run_plan,
)
from hetpure.memory import saved_bytes
from hetpure.noise import BatchNoise
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import VPSDE

LABELS = torch.tensor([0, 1, 2, 3])
Rows = Callable[..., BatchNoise]


@pytest.mark.parametrize(
    ("execution", "recomputed", "text"),
    [
        (Execution("tape"), 0, "tape"),
        (Execution("checkpoint"), 10, "checkpoint"),
        (Execution("hybrid", 3), 7, "hybrid, 3 of 10 steps taped"),
        (Execution("hybrid", 0), 10, "hybrid, 0 of 10 steps taped"),
        (Execution("hybrid", 12), 0, "hybrid, 10 of 10 steps taped"),
        (Execution("adjoint"), 10, "adjoint"),
        (Execution("bpda"), 0, "bpda"),
    ],
    ids=str,
)
def test_how_many_steps_are_called_again(execution: Execution, recomputed: int, text: str) -> None:
    assert execution.recomputed(10) == recomputed
    assert execution.describe(10) == text
    assert execution.resolved


def test_a_recomputed_step_keeps_its_state_only(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    """What autograd saves grows by one state a recomputed step, and by the inside of the network
    for a taped one."""
    images.requires_grad_()
    saved: dict[tuple[str, int], int] = {}
    state = images.nbytes
    for steps in (10, 20):  # plans of two and of four calls
        defense = Defense(classifier, UniformPurifier(steps=steps, strength=0.2), denoiser)
        for how in (Execution("tape"), Execution("checkpoint"), Execution("hybrid", 1)):
            answer = partial(defense, images, rows(0, 1, 2, 3), policy=how)
            saved[how.policy, steps] = saved_bytes(answer, [defense])
    assert saved["checkpoint", 20] - saved["checkpoint", 10] == 2 * state
    assert saved["hybrid", 20] - saved["hybrid", 10] == 2 * state
    assert saved["tape", 20] - saved["tape", 10] > 100 * 2 * state


@pytest.mark.parametrize("recomputed", range(5))
def test_gradients_of_an_input_add_up_in_the_tapes_order(recomputed: int) -> None:
    """Numbers whose float sum depends on the order; the input also serves the start; another one
    wants no gradient, and there is none of a third."""
    scales = (1.0, 1e16, -1e16, 3.0)
    point = torch.full((1, 1), 2.0, dtype=torch.float64, requires_grad=True)
    fixed = torch.ones(1, 1, dtype=torch.float64)

    def advance(step: int, state: Tensor, image: Tensor, other: Tensor, absent: None) -> Tensor:
        assert absent is None and not other.requires_grad
        return state + scales[step] * image * other

    def gradient(again: int) -> Tensor:
        last = run_plan(range(4), advance, 0.1 * point, (point, fixed, None), again)
        return torch.autograd.grad(last.sum(), point)[0]

    assert torch.equal(gradient(recomputed), gradient(0))


def test_nothing_is_kept_without_a_gradient(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    """Whatever the policy: no image that wants a gradient, or none allowed."""
    defense = Defense(classifier, UniformPurifier(steps=20, sampler=VPSDE()), denoiser)
    answers = []
    for policy in get_args(Policy):
        defense.execution = Execution(policy)
        assert saved_bytes(partial(defense, images, rows(0, 1, 2, 3)), [defense]) == 0
        answers.append(defense(images, rows(0, 1, 2, 3)))
        with torch.no_grad():
            answers.append(defense(images.clone().requires_grad_(), rows(0, 1, 2, 3)))
    assert all(torch.equal(answer, answers[0]) for answer in answers), "the defence itself answers"


@pytest.mark.parametrize("policy", get_args(Policy))
def test_no_parameter_gets_a_gradient(
    policy: Policy, denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    """Also where the caller left them trainable."""
    purifier = UniformPurifier(steps=20, sampler=VPSDE())
    defense = Defense(classifier, purifier, denoiser, policy=policy).requires_grad_()
    images.requires_grad_()
    loss = F.cross_entropy(defense(images, rows(0, 1, 2, 3)), LABELS)
    input_gradient(loss, images)
    assert all(parameter.grad is None for parameter in defense.parameters())
    assert images.grad is None


@pytest.mark.parametrize(
    ("taped", "again"), [(6, 0), (4, 2), (1, 5), (0, 6)], ids=["all", "four", "one", "none"]
)
def test_auto_tapes_what_fits_and_changes_nothing(
    taped: int,
    again: int,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
    half_mask: Tensor,
    rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defense = Defense(classifier, HeterogeneousPurifier(steps=20), denoiser)
    budget = defense.footprint(images).need(4, 6, taped) if taped else 1
    monkeypatch.setattr(hetpure.defense, "budget_bytes", lambda device: budget)
    images.requires_grad_()
    tape, ours = (defense(images, rows(0, 1, 2, 3), half_mask, policy) for policy in ("tape", None))
    with count_network_calls(defense) as counter:
        gradient = input_gradient(ours.square().sum(), images)
    assert torch.equal(gradient, input_gradient(tape.square().sum(), images))
    assert len(counter) == again
    with count_network_calls(defense) as counter:
        defense(images, rows(0, 1, 2, 3), half_mask)
    assert len(counter) == 6, "memory is measured once for a shape"


def test_bpda_is_the_classifiers_gradient_at_the_purified_image(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    defense = Defense(classifier, UniformPurifier(steps=20), denoiser, policy="bpda")
    noise = rows(0, 1, 2, 3)
    purified = defense.purify(images, noise).requires_grad_()
    expected = input_gradient(classifier(purified).square().sum(), purified)
    images.requires_grad_()
    with count_network_calls(defense) as counter:
        logits = defense(images, noise)
        gradient = input_gradient(logits.square().sum(), images)
    assert torch.equal(logits, classifier(purified)), "the value is the defence's own"
    assert torch.equal(gradient, expected)
    assert (len(counter), 0) == defense.gradient_calls() == (2, 0)


def test_classifier_only_knows_of_no_purifier(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    defense = Defense(classifier, UniformPurifier(steps=20), denoiser, policy="classifier_only")
    images.requires_grad_()
    with count_network_calls(defense) as counter:
        gradient = input_gradient(defense(images, rows(0, 1, 2, 3)).square().sum(), images)
    assert torch.equal(gradient, input_gradient(classifier(images).square().sum(), images))
    assert (len(counter), 0) == defense.gradient_calls() == (0, 0)


def test_a_policy_can_be_changed_at_any_time(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    defense = Defense(classifier, UniformPurifier(steps=20), denoiser, policy="tape")
    defense.execution = replace(defense.execution, policy="checkpoint", micro_batch=2)
    assert defense.gradient_calls() == (4, 2)
    with pytest.raises(InputError, match="adjoint"):
        defense.execution = Execution("adjoint")
    assert defense.execution.policy == "checkpoint"


OTHER = torch.ones((), requires_grad=True)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x: x.detach().sum(), "detached"),
        (lambda x: x.detach().sum() * OTHER, "detached"),
        (lambda x: (x - x.detach()).sqrt().sum(), "NaN or infinite"),
        (lambda x: (x * float("nan")).sum(), "NaN or infinite"),
        (lambda x: (x * 0).sum(), "zero for 2 of 2 images"),
        (lambda x: (x + 5).clamp(0, 1).sum(), "zero for 2 of 2 images"),
        (lambda x: x[1].sum(), "zero for 1 of 2 images"),
    ],
    ids=["detached", "of something else", "infinite", "nan", "zero", "saturated", "one dead"],
)
def test_useless_gradient_is_an_error(loss: Callable[[Tensor], Tensor], message: str) -> None:
    images = torch.rand(2, 1, 4, 4).requires_grad_()
    with pytest.raises(GradientError, match=message):
        input_gradient(loss(images), images)
