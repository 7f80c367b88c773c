"""A gradient check that catches the bugs that evaluations of purifiers are known for."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser, to_pixels
from hetpure.gradient_check import (
    STEP_SIZES,
    GradientCheck,
    check_gradient,
    cosines,
    float64_device,
    in_float64,
    repeatable,
)
from hetpure.gradients import Execution
from hetpure.noise import BatchNoise
from hetpure.purifiers import HeterogeneousPurifier, Purifier, Step, UniformPurifier

LABELS, SAMPLES = torch.tensor([0, 1, 2, 3]), torch.arange(4)
Rows = Callable[..., BatchNoise]
Loss = Callable[[nn.Module, Tensor, Execution], Tensor]
EXACT = {
    "tape": Execution("tape"),
    "checkpoint": Execution("checkpoint"),
    "hybrid": Execution("hybrid", 2),
}
every_policy = pytest.mark.parametrize("policy", EXACT)


def others(policy: str) -> list[Execution]:
    """The policy in use first, then the others."""
    return [EXACT[policy], *(how for name, how in EXACT.items() if name != policy)]


@dataclass(frozen=True)
class SmoothUniform(UniformPurifier):
    """Without the clamp to [0, 1]: nothing but smooth functions from image to logits."""

    def finish(self, state: Tensor) -> Tensor:
        return to_pixels(state)


def cross_entropy(noise: BatchNoise, mask: Tensor | None) -> Loss:
    """The loss of an attack, with noise and mask held fixed."""

    def loss(defense: nn.Module, images: Tensor, how: Execution) -> Tensor:
        labels = LABELS[: len(images)]
        return F.cross_entropy(defense(images, noise, mask, how), labels, reduction="sum")

    return loss


def directions(images: Tensor, count: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(count, *images.shape, generator=generator, dtype=torch.float64)


FINE = GradientCheck("tape", ("tape", "checkpoint"), True, 1e-6, 1e-4, 3, 2)


@pytest.mark.parametrize(
    ("changes", "passed"),
    [
        ({"finite_difference_error": 1e-4}, True),
        ({"policies_equal": False}, False),
        ({"finite_difference_error": 2e-4}, False),
        ({"finite_difference_error": float("nan")}, False),
        ({"directions": 0}, False),
        ({"cosine_to_exact": 0.985}, False),
        ({"cosine_to_exact": float("nan")}, False),
        ({"cosine_to_exact": -0.5, "approximation": True}, True),
        ({"cosine_to_float32": 0.995, "lowest_cosine_to_float32": 0.9}, True),
        ({"cosine_to_float32": 0.985, "lowest_cosine_to_float32": 0.9}, False),
        ({"cosine_to_float32": 0.985, "lowest_cosine_to_float32": 0.9, "cosine_bound": 0.9}, True),
        ({"cosine_to_float32": float("nan"), "lowest_cosine_to_float32": 0.9}, False),
    ],
    ids=[
        "at the bound", "unequal", "wrong slope", "nan", "nothing checked", "attack is off",
        "attack is nan", "approximation", "accelerated", "accelerated too far", "unless told",
        "accelerated to nan",
    ],
)  # fmt: skip
def test_what_a_gradient_check_needs(changes: dict[str, object], passed: bool) -> None:
    found = replace(FINE, **changes)  # type: ignore[arg-type]
    assert found.passed is passed
    assert found.as_dict()["passed"] is passed


@every_policy
def test_gradient_check_of_the_real_defence_passes(
    policy: str,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
    half_mask: Tensor,
    rows: Rows,
) -> None:
    """ReLUs, the final clamp, single-step resampling: the defaults, from a float32 module."""
    defense = Defense(classifier, HeterogeneousPurifier(steps=20), denoiser).float()
    loss = cross_entropy(rows(0, 1, 2, 3), half_mask)
    found = check_gradient(defense, loss, images, directions(images), others(policy))
    assert found.passed, found
    assert found.finite_difference_error < 1e-5
    assert (found.policy, found.directions, found.images) == (policy, 3, 4)
    assert {parameter.dtype for parameter in defense.parameters()} == {torch.float32}


GENERATOR = torch.Generator()


@dataclass(frozen=True)
class GeneratorNoise(SmoothUniform):
    """Planted: noise from a generator, which nothing rewinds for the second call of a step."""

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


@dataclass(frozen=True)
class KnowsItsSecondCall(SmoothUniform):
    """Planted: what is called again to be differentiated is another function."""

    def advance(self, denoiser, step, state, images, mask, noise):  # type: ignore[no-untyped-def]
        after = super().advance(denoiser, step, state, images, mask, noise)
        return 0.5 * after + 0.5 * after.detach() if torch.is_grad_enabled() else after


@every_policy
@pytest.mark.parametrize(
    ("purifier", "equal"),
    [
        (GeneratorNoise(steps=20, strength=0.2), False),
        (DetachedStep(steps=20, strength=0.2), True),
        (KnowsItsSecondCall(steps=20, strength=0.2), True),
    ],
    ids=["redrawn noise", "detached step", "half detached where differentiated"],
)
def test_gradient_check_catches_a_planted_bug(
    purifier: Purifier,
    equal: bool,
    policy: str,
    denoiser: Denoiser,
    smooth_classifier: Classifier,
    images: Tensor,
    rows: Rows,
) -> None:
    """The loss itself is right in all cases: nothing else would show that the gradient is not."""
    addressed = cross_entropy(rows(0, 1, 2, 3), None)

    def loss(defense: nn.Module, x: Tensor, how: Execution) -> Tensor:
        GENERATOR.manual_seed(0)  # every forward pass sees the same noise
        return addressed(defense, x, how)

    defense = Defense(smooth_classifier, purifier, denoiser)
    values = {how: loss(defense, images.clone().requires_grad_(), how) for how in EXACT.values()}
    assert len({value.item() for value in values.values()}) == 1
    found = check_gradient(defense, loss, images, directions(images, 1), others(policy))
    assert not found.passed, found
    assert found.policies_equal is equal
    exact = isinstance(purifier, GeneratorNoise) and policy == "tape"  # the others are wrong
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
    """A step that is longer than a pixel's way to its kink says nothing about the slope there."""

    def run(distance: float) -> GradientCheck:
        point = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
        point[0, 0, 0, 0] = distance
        return check_gradient(
            Kinked(kink),
            lambda module, x, how: module(x),
            point,
            torch.ones(1, *point.shape),
            [EXACT["tape"]],
        )

    across = run(min(STEP_SIZES) / 2)
    assert (across.directions, across.passed) == (0, False)
    assert across.finite_difference_error == float("inf")
    beside = run(max(STEP_SIZES) / 50)
    assert (beside.directions, beside.passed) == (1, True)
    assert beside.finite_difference_error < 1e-8


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_cosines_are_by_image(size: float) -> None:
    """An image with a large gradient does not hide one whose gradient is wrong."""
    exact = torch.tensor([[100.0, 0.0], [1.0, 0.0]])
    ours = torch.tensor([[100.0, 0.0], [0.0, 1.0]])
    assert cosines(size * ours, exact).tolist() == pytest.approx([1, 0])
    assert cosines(3 * exact, size * exact).tolist() == pytest.approx([1, 1])


def test_where_float64_is_computed() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    assert [float64_device(d) for d in (cpu, cuda, torch.device("mps"))] == [cpu, cuda, cpu]
    module = nn.Linear(2, 3)
    double = in_float64(module)
    assert (double.weight.dtype, module.weight.dtype) == (torch.float64, torch.float32)
    assert torch.equal(double.weight.float(), module.weight)


def test_an_accelerator_is_asked_for_the_same_bits_inside_only() -> None:
    def asked() -> tuple[bool, bool]:
        warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
        return torch.are_deterministic_algorithms_enabled(), warn_only

    with repeatable(torch.device("cpu")):
        assert asked() == (False, False)
    with repeatable(torch.device("cuda")):
        assert asked() == (True, True)
    assert asked() == (False, False)
