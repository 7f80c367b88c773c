"""The memory policies, and a certificate that catches the two bugs that evaluations of purifiers
are known for. That every purifier's gradient is exact is in `test_purifier_family.py`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser, to_pixels
from hetpure.gradients import Certificate, GradientError, Policy, certify, input_gradient
from hetpure.noise import RowNoise
from hetpure.purifiers import HeterogeneousPurifier, Purifier, Step, UniformPurifier

LABELS = torch.tensor([0, 1, 2, 3])
Rows = Callable[..., RowNoise]
Loss = Callable[[nn.Module, Tensor, Policy], Tensor]


@dataclass(frozen=True)
class SmoothUniform(UniformPurifier):
    """Without the clamp to [0, 1]: nothing but smooth functions from image to logits."""

    def finish(self, state: Tensor) -> Tensor:
        return to_pixels(state)


def cross_entropy(noise: RowNoise, mask: Tensor | None) -> Loss:
    """The loss of an attack, with noise and mask held fixed."""

    def loss(defense: nn.Module, images: Tensor, policy: Policy) -> Tensor:
        labels = LABELS[: len(images)]
        return F.cross_entropy(defense(images, noise, mask, policy), labels, reduction="sum")

    return loss


def directions(images: Tensor, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(count, *images.shape, generator=generator, dtype=torch.float64)


def test_checkpoint_keeps_the_states_only(
    denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    """What autograd saves grows by one state a step: `tape` keeps the inside of the network too."""
    saved: dict[tuple[Policy, int], int] = {}
    images.requires_grad_()
    for policy in get_args(Policy):
        for steps in (5, 20):  # plans of one and of four calls
            kept: list[int] = []
            defense = Defense(classifier, UniformPurifier(steps=steps, strength=0.2), denoiser)
            with torch.autograd.graph.saved_tensors_hooks(
                lambda tensor, kept=kept: kept.append(tensor.numel()) or tensor,  # type: ignore[misc]
                lambda tensor: tensor,
            ):
                defense(images, rows(0, 1, 2, 3), policy=policy)
            saved[policy, steps] = sum(kept)
    assert saved["checkpoint", 20] - saved["checkpoint", 5] == 3 * images.numel()
    assert saved["tape", 20] - saved["tape", 5] > 100 * 3 * images.numel()


@pytest.mark.parametrize("policy", get_args(Policy))
def test_no_parameter_gets_a_gradient(
    policy: Policy, denoiser: Denoiser, classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    """Also where the caller left them trainable."""
    defense = Defense(classifier, UniformPurifier(steps=20), denoiser).requires_grad_()
    images.requires_grad_()
    input_gradient(cross_entropy(rows(0, 1, 2, 3), None)(defense, images, policy), images)
    assert all(parameter.grad is None for parameter in defense.parameters())
    assert images.grad is None


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


# The certificate.


@pytest.mark.parametrize(
    ("equal", "error", "count", "passed"),
    [(True, 1e-4, 1, True), (False, 0.0, 1, False), (True, 2e-4, 1, False), (True, 0.0, 0, False)],
    ids=["at the bound", "not the tape's", "wrong slope", "nothing checked"],
)
def test_certificate_needs_all_three(equal: bool, error: float, count: int, passed: bool) -> None:
    assert Certificate("checkpoint", equal, error, 1e-4, count, images=1).passed is passed


@pytest.mark.parametrize("policy", get_args(Policy))
def test_certificate_of_the_real_defence_passes(
    policy: Policy,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
    half_mask: Tensor,
    rows: Rows,
) -> None:
    """ReLUs, the final clamp, single-step resampling: the defaults, from a float32 module."""
    defense = Defense(classifier, HeterogeneousPurifier(steps=20), denoiser).float()
    loss = cross_entropy(rows(0, 1, 2, 3), half_mask)
    found = certify(defense, loss, images, directions(images), policy)
    assert found.passed, found
    assert found.finite_difference_error < 1e-5
    assert (found.policy, found.directions, found.images) == (policy, 3, 4)
    assert found.as_dict()["passed"] is True
    assert {parameter.dtype for parameter in defense.parameters()} == {torch.float32}


GENERATOR = torch.Generator()


@dataclass(frozen=True)
class GeneratorNoise(SmoothUniform):
    """Planted: noise from a generator, which `checkpoint` does not rewind for the second call."""

    def advance(self, denoiser, step, state, images, mask, noise):  # type: ignore[no-untyped-def]
        fresh = torch.randn(state.shape, generator=GENERATOR, dtype=state.dtype)
        return super().advance(denoiser, step, state + 0.3 * fresh, images, mask, noise)


class Blind(Denoiser):
    def forward(self, x: Tensor, timesteps: int | Tensor) -> Tensor:
        return super().forward(x, timesteps).detach()


@dataclass(frozen=True)
class DetachedStep(SmoothUniform):
    """Planted: one of four steps takes the predicted noise for a constant."""

    def advance(self, denoiser, step: Step, state, images, mask, noise):  # type: ignore[no-untyped-def]
        seen = Blind(denoiser.network, denoiser.schedule) if step.at == 100 else denoiser
        return super().advance(seen, step, state, images, mask, noise)


@pytest.mark.parametrize(
    ("purifier", "policy", "equal"),
    [
        (GeneratorNoise(steps=20, strength=0.2), "checkpoint", False),
        (GeneratorNoise(steps=20, strength=0.2), "tape", False),
        (DetachedStep(steps=20, strength=0.2), "checkpoint", True),
        (DetachedStep(steps=20, strength=0.2), "tape", True),
    ],
    ids=["redrawn noise", "redrawn noise, taped", "detached step", "detached step, taped"],
)
def test_certificate_catches_a_planted_bug(
    purifier: Purifier,
    policy: Policy,
    equal: bool,
    denoiser: Denoiser,
    smooth_classifier: Classifier,
    images: Tensor,
    rows: Rows,
) -> None:
    """The loss itself is right in all cases: nothing else would show that the gradient is not."""
    addressed = cross_entropy(rows(0, 1, 2, 3), None)

    def loss(defense: nn.Module, x: Tensor, how: Policy) -> Tensor:
        GENERATOR.manual_seed(0)  # every forward pass sees the same noise
        return addressed(defense, x, how)

    defense = Defense(smooth_classifier, purifier, denoiser)
    assert torch.equal(loss(defense, images, "tape"), loss(defense, images, "checkpoint"))
    found = certify(defense, loss, images, directions(images), policy)
    assert not found.passed, found
    assert found.equal_to_tape is equal
    exact = isinstance(purifier, GeneratorNoise) and policy == "tape"  # the other policy is wrong
    assert (found.finite_difference_error > 100 * found.bound) is not exact


class Kinked(nn.Module):
    """Slope 1 right of the kink and 0 left of it."""

    def __init__(self, kink: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.kink = kink

    def forward(self, x: Tensor) -> Tensor:
        return self.kink(x).sum()


@pytest.mark.parametrize(
    "kink", [nn.ReLU(), F.relu, lambda x: x.clamp(0, 1)], ids=["nn.ReLU", "F.relu", "clamp"]
)
def test_steps_across_a_kink_are_discarded(kink: Callable[[Tensor], Tensor]) -> None:
    """A pixel 2e-5 from its kink: a step of 1e-4 says nothing about the slope there."""
    point = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    point[0, 0, 0, 0] = 2e-5

    def run(*sizes: float) -> Certificate:
        return certify(
            Kinked(kink),
            lambda module, x, policy: module(x),
            point,
            torch.ones(1, *point.shape),
            "tape",
            step_sizes=sizes,
        )

    across = run(1e-4)
    assert (across.directions, across.passed) == (0, False)
    assert across.finite_difference_error == float("inf")
    beside = run(1e-4, 1e-6)
    assert (beside.directions, beside.passed) == (1, True)
    assert beside.finite_difference_error < 1e-8
