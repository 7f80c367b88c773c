"""A gradient check that catches the bugs that evaluations of purifiers are known for."""

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser, to_pixels
from hetpure.gradient_check import (
    ADVICE,
    SHORT,
    STEP_SIZES,
    GradientCheck,
    Kind,
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
    assert (across.directions, across.passed, across.kind) == (0, False, "kinks")
    assert across.finite_difference_error == math.inf
    assert "could not be checked" in str(across.failure)
    beside = run(max(STEP_SIZES) / 50)
    assert (beside.directions, beside.passed, beside.kind) == (1, True, None)
    assert beside.finite_difference_error < 1e-8


def hashed(images: Tensor) -> Tensor:
    """Standard normal, a function of the bits of all images (B, ...) together."""
    generator = torch.Generator().manual_seed(zlib.crc32(images.detach().numpy().tobytes()))
    return torch.randn(images.shape, generator=generator, dtype=torch.float64)


def rounded(images: Tensor, levels: int = 255) -> Tensor:
    return (levels * images).round() / levels


def smooth(images: Tensor) -> Tensor:
    return (3 * images).sin()


POINT = torch.linspace(0.2, 0.8, 32, dtype=torch.float64).reshape(2, 1, 4, 4)
TIES = ((255 * POINT).floor() + 0.5) / 255
FUNCTIONS: dict[str, tuple[Kind | None, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    # kind, what is computed, and what is differentiated in its place
    "smooth": (None, smooth, smooth),
    "quantised": ("straight through", rounded, smooth),
    "coarsely": ("straight through", lambda x: rounded(x, 7), smooth),
    "ReLU of quantised": ("straight through", lambda x: F.relu(rounded(x) - 0.5), smooth),
    "partly quantised": ("detached", lambda x: smooth(x) + rounded(x), lambda x: smooth(x) + x),
    "detached": ("detached", lambda x: smooth(x) * x, lambda x: smooth(x) * x.detach()),
    "half detached": ("detached", smooth, lambda x: 0.5 * smooth(x)),
    "hash": ("jumps", lambda x: smooth(x) + 0.1 * hashed(x), smooth),
    "faint hash": ("jumps", lambda x: smooth(x) + 1e-4 * hashed(x), smooth),
    "sign by hash": ("jumps", lambda x: smooth(x) * hashed(x)[0, 0, 0, 0].sign(), smooth),
    "hash of float32": ("jumps", lambda x: smooth(x) + 0.1 * hashed(x.float()), smooth),
    "clamped hash": ("jumps", lambda x: (smooth(x) + 0.1 * hashed(x)).clamp(0, 0.9), smooth),
    "ReLU of hash": ("jumps", lambda x: F.relu(smooth(x) + hashed(x)), smooth),
    "hash of quantised": ("jumps", lambda x: rounded(x) + 0.1 * hashed(x), smooth),
}  # fmt: skip


def planted(
    computed: Callable[[Tensor], Tensor],
    differentiated: Callable[[Tensor], Tensor],
    point: Tensor,
    along: Tensor,
    wanted: int | None = None,
) -> GradientCheck:
    """The check of a function whose gradient is another one's."""

    def loss(module: nn.Module, x: Tensor, how: Execution) -> Tensor:
        other = differentiated(x)
        weights = torch.linspace(1, 2, x.numel(), dtype=x.dtype).reshape(x.shape)
        return (weights * (computed(x).detach() + other - other.detach())).sum()

    return check_gradient(nn.Identity(), loss, point, along, [EXACT["tape"]], wanted=wanted)


@pytest.mark.parametrize("point", [POINT, TIES], ids=["anywhere", "where rounding jumps"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_what_is_wrong_with_a_gradient_is_told_apart(name: str, point: Tensor) -> None:
    kind, computed, differentiated = FUNCTIONS[name]
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        along = torch.randn(3, *point.shape, generator=generator, dtype=torch.float64)
        found = planted(computed, differentiated, point, along / along[0].norm())
        assert found.kind == kind, (seed, found)
        assert found.passed is (kind is None)
        assert found.failure == (ADVICE[kind] if kind else None)
        assert found.as_dict()["kind"] == kind


def test_noise_by_a_hash_of_rounded_images_is_seen_where_rounding_jumps() -> None:
    """Its gradient is exact wherever the images' 8-bit values stay."""

    def computed(x: Tensor) -> Tensor:
        return smooth(x) + x * hashed(rounded(x))

    along = directions(POINT, 1)
    for point, kind in ((POINT, None), (TIES, "jumps")):
        held = hashed(rounded(point))
        assert planted(computed, lambda x, h=held: smooth(x) + x * h, point, along).kind == kind


def test_a_quantised_step_that_jumps_between_two_places_is_no_random_one() -> None:
    point = POINT.clone()
    point[0, 0, 0, 0] = 50.5 / 255 - 1.45 * SHORT
    found = planted(rounded, smooth, point, torch.ones(1, *point.shape, dtype=torch.float64))
    assert found.kind == "straight through"


def test_another_direction_is_taken_where_all_step_sizes_cross_a_kink() -> None:
    """And no more of them than are wanted."""
    point = POINT.clone()
    point[0, 0, 0, 0] = SHORT / 2

    def kinked(x: Tensor) -> Tensor:
        return smooth(x) + F.relu(x)

    def loss(module: nn.Module, x: Tensor, how: Execution) -> Tensor:
        return kinked(x).sum()

    across, beside = torch.ones(2, *point.shape, dtype=torch.float64)
    beside[0, 0, 0, 0] = 0
    tape = [EXACT["tape"]]
    for along, wanted, compared in (
        ([across, across], 1, 0),
        ([across, beside], 1, 1),
        ([beside, across, beside], 2, 2),
        ([beside, across], 2, 1),
        ([beside, beside, beside], 2, 2),
    ):
        found = check_gradient(nn.Identity(), loss, point, along, tape, wanted=wanted)
        assert (found.directions, found.passed) == (compared, compared > 0)
        assert found.kind == (None if compared else "kinks")


def test_a_kink_that_nothing_watches_is_no_jump_and_no_detached_step() -> None:
    point = POINT.clone()
    point[0, 0, 0, 0] = SHORT / 3
    found = planted(Tensor.abs, Tensor.abs, point, torch.ones(1, *point.shape))
    assert (found.kind, found.directions) == ("kinks", 1)
    assert "raise gradient_bound" in str(found.failure)


def test_every_kind_has_its_own_advice() -> None:
    """Kinks have two: with and without a direction that tells anything."""
    unlike = [replace(FINE, kind=kind) for kind in ADVICE]
    unlike += [replace(FINE, kind="kinks", directions=0, finite_difference_error=math.inf)]
    unlike += [replace(FINE, kind="kinks", finite_difference_error=1.0)]
    assert {check.kind for check in unlike} == set(get_args(Kind))
    assert len({check.failure for check in unlike}) == len(unlike) == 5
    assert all("another seed" not in str(check.failure) for check in unlike[:3])
    assert all("\n" not in str(check.failure) for check in unlike)


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
