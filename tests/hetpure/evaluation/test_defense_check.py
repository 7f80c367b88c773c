"""The gradient check of a whole defence, as an evaluation asks for it: what is compared, what
attacks follow in the gradient's place, and mistakes planted in how it is asked."""

import zlib
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetpure.acceleration import Acceleration, FastNetwork
from hetpure.attacks import PGD
from hetpure.attacks.bpda import BPDA
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.evaluation.defense_check import (
    _interior_point,
    check_defense_gradient,
    float64_footprint,
    policies,
)
from hetpure.expectation import Query
from hetpure.gradient_check import GradientCheck, Kind
from hetpure.gradients import Execution, Policy
from hetpure.noise import Noise, Purpose, Stream
from hetpure.purifiers import (
    EDMPurifier,
    GuidedPurifier,
    HeterogeneousPurifier,
    Purifier,
    Step,
    UniformPurifier,
)
from hetpure.report.gradient_checks import gradient_checks_sheet

SAMPLES = torch.arange(4)


@pytest.mark.parametrize(
    ("policy", "compared"),
    [
        ("tape", {"tape", "checkpoint", "hybrid, 3 of 6 steps taped"}),
        ("checkpoint", {"tape", "checkpoint", "hybrid, 3 of 6 steps taped"}),
        (
            Execution("hybrid", 5),
            {"tape", "checkpoint", "hybrid, 3 of 6 steps taped", "hybrid, 5 of 6 steps taped"},
        ),
        ("bpda", {"tape", "checkpoint", "hybrid, 3 of 6 steps taped"}),
    ],
    ids=["tape", "checkpoint", "hybrid", "bpda"],
)
def test_all_exact_policies_are_compared_and_the_one_in_use_is_among_them(
    policy: Policy | Execution,
    compared: set[str],
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
) -> None:
    defense = Defense(classifier, HeterogeneousPurifier(steps=20), denoiser, policy=policy)
    check = check_defense_gradient(defense, images, SAMPLES, seed=7, bound=1e-5)
    assert check.passed
    assert check.policy == defense.execution.describe(6)
    assert set(check.compared) == compared
    assert check.approximation is (check.policy == "bpda")
    if check.approximation:
        assert -1 <= check.cosine_to_exact < 0.999
    else:
        assert check.compared[0] == check.policy
        assert check.cosine_to_exact == pytest.approx(1, abs=1e-12)


def test_what_does_not_fit_in_double_precision_is_left_out(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    defense = Defense(classifier, HeterogeneousPurifier(steps=20), denoiser)
    footprint = float64_footprint(defense, images)
    for taped, names in ((6, ["checkpoint", "hybrid", "tape"]), (2, ["checkpoint", "hybrid"])):
        executions = policies(defense, 4, footprint, footprint.need(4, 6, taped))
        assert [how.policy for how in executions] == names
    assert executions[1].taped_steps == 2
    least = policies(defense, 4, footprint, 1)
    assert [(how.policy, how.taped_steps) for how in least] == [("checkpoint", None), ("hybrid", 1)]
    assert float64_footprint(defense.float(), images.float()) == footprint


def test_a_surrogate_tells_its_cosine_to_the_defence(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    defense = Defense(classifier, HeterogeneousPurifier(steps=20), denoiser)
    coarse = Defense(classifier, HeterogeneousPurifier(steps=10), denoiser)
    for surrogate, low, high in ((coarse, -1, 0.999), (defense, 1 - 1e-12, 1 + 1e-12)):
        check = check_defense_gradient(surrogate, images, SAMPLES, 7, bound=1e-5, evaluated=defense)
        assert check.passed and check.approximation
        assert low <= check.cosine_to_exact <= high


def test_cosines_of_what_attacks_follow_in_the_gradients_place(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """Told of each such attack that could be run on the defence, and judged of none; by hand for
    the soft mask."""
    attacks = [PGD(mask=mask) for mask in ("frozen", "recomputed", "soft")]
    attacks += [PGD(mask="soft", loss="margin"), BPDA(), PGD(approximation="classifier_only")]

    def checked(purifier: Purifier | None) -> GradientCheck:
        defense = Defense(classifier, purifier, denoiser if purifier else None)
        return check_defense_gradient(defense, images, SAMPLES, 7, bound=1e-5, attacks=attacks)

    assert checked(None).substitute_cosines == {}
    uniform = checked(UniformPurifier(steps=10)).substitute_cosines
    assert uniform.keys() == {"bpda", "classifier_only"}
    check = checked(HeterogeneousPurifier(steps=10))
    cosines = check.substitute_cosines
    assert check.passed and list(cosines) == ["soft mask", "bpda", "classifier_only"]
    assert all(-1 <= cosine < 0.9999 for cosine in (*cosines.values(), *uniform.values()))
    shown = gradient_checks_sheet({"row": {"gradient_check": check.as_dict()}}).markdown()
    assert f"soft mask {cosines['soft mask']:.3f}, bpda {cosines['bpda']:.3f}" in shown

    defense = Defense(classifier, HeterogeneousPurifier(steps=10), denoiser)
    gradients = []
    for soft in (False, True):
        x = images.detach().requires_grad_()
        total = x.new_zeros(())
        for draw in range(2):
            noise = Noise.of(7, Stream.PROBE, draw).on(SAMPLES)
            logits = defense(x, noise, defense.mask(x, SAMPLES, soft=True) if soft else None)
            weights = Noise.of(7, Stream.PROBE).on(SAMPLES).normal(Purpose.START, logits)
            total = total + (weights * logits).sum()
        gradients.append(torch.autograd.grad(total, x)[0].flatten(1))
    by_hand = torch.cosine_similarity(*gradients).mean()
    assert cosines["soft mask"] == pytest.approx(float(by_hand), abs=1e-9)


class Coarse(FastNetwork):
    """A network in so few bits that its gradient is another one."""

    def __init__(self, network: nn.Module, noise: float) -> None:
        super().__init__(network, Acceleration())
        self.noise = noise

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return super().forward(x, timesteps) + torch.sin(1e4 * x) * self.noise


@pytest.mark.parametrize(("noise", "passed"), [(1e-7, True), (1e-3, False)])
def test_an_accelerated_gradient_is_judged_and_exactness_is_shown_on_the_plain_one(
    noise: float, passed: bool, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    coarse = Denoiser(Coarse(denoiser.network, noise), denoiser.schedule)
    fast = Defense(classifier, HeterogeneousPurifier(steps=20), coarse)
    fast.execution = Execution("checkpoint", micro_batch=6)
    check = check_defense_gradient(fast, images, SAMPLES, seed=7, bound=1e-5)
    assert check.policies_equal and check.finite_difference_error <= 1e-5
    assert check.cosine_to_float32 is not None and check.lowest_cosine_to_float32 is not None
    assert check.lowest_cosine_to_float32 <= check.cosine_to_float32
    assert (check.cosine_to_float32 >= 0.99) is check.passed is passed
    if not passed:
        allowed = check_defense_gradient(fast, images, SAMPLES, 7, bound=1e-5, cosine_bound=-1.0)
        assert allowed.passed, "unless the bound allows it"
        assert "allow it with cosine_bound" in str(check.failure)


@pytest.mark.parametrize("mistake", ["masks", "a piece is lost", "noise", "device"])
def test_what_the_attack_computes_is_checked_and_not_only_the_defence(
    mistake: str,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Planted in how an attack cuts rows into pieces, or in what its device computes: the defence,
    asked by itself, is exact in all cases."""
    defense = Defense(classifier, HeterogeneousPurifier(steps=20), denoiser)
    defense.execution = Execution("tape", micro_batch=3)
    assert check_defense_gradient(defense, images, SAMPLES, seed=7, bound=1e-5).passed
    pieces = Query.pieces

    def wrong(query: Query, size: int, full: bool) -> Any:
        for entries, rows, noise, mask in pieces(query, size, full):
            index = entries % len(query.images)
            if len(query.images) == 2:  # the exact gradient of the slice
                yield index, rows, noise, mask
            elif mistake == "masks" and mask is not None:
                yield index, rows, noise, 1 - mask
            elif mistake == "noise":
                yield index, rows, noise.take(torch.arange(len(index)).flip(0)), mask
            elif mistake == "a piece is lost":
                yield index, rows.detach() + 0.2 * (index == 0)[:, None, None, None], noise, mask
            else:
                yield index, rows.flip(3), noise, mask

    monkeypatch.setattr(Query, "pieces", wrong)
    check = check_defense_gradient(defense, images, SAMPLES, seed=7, bound=1e-5)
    assert check.policies_equal and check.finite_difference_error <= 1e-5
    assert not check.passed and check.cosine_to_exact < 0.99


@dataclass(frozen=True)
class Cut(HeterogeneousPurifier):
    """Planted: one step goes on from the known pixels only."""

    def advance(self, denoiser, step: Step, state, images, mask, noise):  # type: ignore[no-untyped-def]
        seen = state.detach() if step.at == 150 else state
        return super().advance(denoiser, step, seen, images, mask, noise)


@pytest.mark.parametrize("policy", ["tape", "checkpoint", Execution("hybrid", 2)], ids=str)
def test_a_cut_state_fails_in_one_line_under_every_policy(
    policy: Policy | Execution, denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    """Under recomputation no gradient comes back to the steps before: no traceback of that."""
    defense = Defense(smooth_classifier, Cut(steps=20), denoiser, policy=policy)
    check = check_defense_gradient(defense, images, SAMPLES, seed=7, bound=1e-5)
    assert check.policies_equal
    assert check.finite_difference_error > 1e-2 and not check.passed


def straight_through(images: Tensor, levels: int) -> Tensor:
    """Quantised images whose gradient says that they are not."""
    return images + ((levels * images).round() / levels - images).detach()


def hashed_noise(images: Tensor) -> Tensor:
    """Standard normal, by the bits of the images (B, C, H, W)."""
    generator = torch.Generator().manual_seed(zlib.crc32(images.detach().numpy().tobytes()))
    return torch.randn(images.shape, generator=generator, dtype=images.dtype)


@dataclass(frozen=True)
class Quantised(UniformPurifier):
    """Planted: it looks at 8-bit images, and gives the gradient of others."""

    levels: int = 255

    def start(self, denoiser, images, noise):  # type: ignore[no-untyped-def]
        return super().start(denoiser, straight_through(images, self.levels), noise)


@dataclass(frozen=True)
class QuantisedStep(UniformPurifier):
    """Planted in one step of four."""

    def advance(self, denoiser, step: Step, state, images, mask, noise):  # type: ignore[no-untyped-def]
        seen = straight_through(state, 100) if step.at == 100 else state
        return super().advance(denoiser, step, seen, images, mask, noise)


@dataclass(frozen=True)
class PartlyQuantised(HeterogeneousPurifier):
    """Planted in one step; the known pixels of the next ones come from the image itself."""

    def advance(self, denoiser, step: Step, state, images, mask, noise):  # type: ignore[no-untyped-def]
        seen = straight_through(state, 100) if step.at == 150 else state
        return super().advance(denoiser, step, seen, images, mask, noise)


@dataclass(frozen=True)
class Hashed(HeterogeneousPurifier):
    """Planted: noise that no seed repeats, since every image has its own."""

    def start(self, denoiser, images, noise):  # type: ignore[no-untyped-def]
        return super().start(denoiser, images + 0.1 * hashed_noise(images), noise)


@dataclass(frozen=True)
class HashedBytes(UniformPurifier):
    """Planted: such noise by the images' 8-bit values, which cut off what is behind the point."""

    def start(self, denoiser, images, noise):  # type: ignore[no-untyped-def]
        noisy = images + 0.1 * hashed_noise((255 * images).byte().double())
        return super().start(denoiser, noisy, noise)


@dataclass(frozen=True)
class HashedStep(UniformPurifier):
    """Planted: such noise in one step, which a clamp ends."""

    def advance(self, denoiser, step: Step, state, images, mask, noise):  # type: ignore[no-untyped-def]
        after = super().advance(denoiser, step, state, images, mask, noise)
        return (after + 0.3 * hashed_noise(after)).clamp(-1, 1) if step.at == 100 else after


@dataclass(frozen=True)
class Clamped(UniformPurifier):
    """Honest: a clamp and a ReLU in every step."""

    def advance(self, denoiser, step: Step, state, images, mask, noise):  # type: ignore[no-untyped-def]
        after = super().advance(denoiser, step, state, images, mask, noise)
        return torch.relu(after.clamp(-1, 1) + 0.5) - 0.5


class Convolutions(nn.Module):
    """A diffusion network that costs next to nothing and has a kink in every hidden pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(*sides, 3, padding=1) for sides in ((1, 4), (4, 1)))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x) + times[:, None, None, None].to(x) / 1000)
        return x + self.last(hidden)


@pytest.fixture
def small_denoiser(denoiser: Denoiser) -> Denoiser:
    torch.manual_seed(5)
    small = Denoiser(Convolutions(), denoiser.schedule)
    return small.double().eval().requires_grad_(False)


@pytest.fixture
def small_classifier() -> Classifier:
    """Of ReLUs, which must not be blamed for what a purifier does."""
    torch.manual_seed(6)
    convolution = nn.Conv2d(1, 8, 3)
    network = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    whole = Classifier(network, num_classes=4, mean=[0.4], std=[0.3], attention_blocks=["0"])
    return whole.double().eval().requires_grad_(False)


BROKEN: dict[str, tuple[Kind, Purifier]] = {
    "quantised input": ("straight through", Quantised(steps=20)),
    "quantised to 4 bits": ("straight through", Quantised(steps=20, levels=15)),
    "quantised step": ("straight through", QuantisedStep(steps=20, strength=0.2)),
    "quantised step beside the image": ("detached", PartlyQuantised(steps=20)),
    "cut state": ("detached", Cut(steps=20)),
    "hash of the image": ("jumps", Hashed(steps=20)),
    "hash of the 8-bit image": ("jumps", HashedBytes(steps=20)),
    "hash in a step, clamped": ("jumps", HashedStep(steps=20, strength=0.2)),
}
HONEST: dict[str, Purifier | None] = {
    "no purifier": None,
    "uniform": UniformPurifier(steps=20),
    "heterogeneous": HeterogeneousPurifier(steps=20),
    "EDM": EDMPurifier(levels=2),
    "guided": GuidedPurifier(steps=50, strength=0.1, guidance=2.0, rounds=1),
    "clamps and ReLUs in every step": Clamped(steps=20),
}
SEEDS = range(5)


@pytest.mark.parametrize("name", BROKEN)
def test_broken_gradients_are_told_apart(
    name: str, small_denoiser: Denoiser, small_classifier: Classifier, images: Tensor
) -> None:
    kind, purifier = BROKEN[name]
    defense = Defense(small_classifier, purifier, small_denoiser, policy="tape")
    for seed in SEEDS:
        check = check_defense_gradient(defense, images, SAMPLES, seed, bound=1e-5)
        assert (check.policies_equal, check.passed, check.kind) == (True, False, kind), seed
    content = check.as_dict()
    assert f": {kind} |" in gradient_checks_sheet({"row": {"gradient_check": content}}).markdown()
    del content["kind"]  # as earlier versions wrote it
    assert kind not in gradient_checks_sheet({"row": {"gradient_check": content}}).markdown()


@pytest.mark.parametrize("name", HONEST)
def test_honest_gradients_pass_whatever_the_seed(
    name: str, small_denoiser: Denoiser, small_classifier: Classifier, images: Tensor
) -> None:
    purifier = HONEST[name]
    denoiser = small_denoiser if purifier else None
    defense = Defense(small_classifier, purifier, denoiser, policy="tape")
    for seed in SEEDS:
        check = check_defense_gradient(defense, images, SAMPLES, seed, bound=1e-5)
        assert (check.passed, check.kind, check.directions) == (True, None, 3), (seed, check)


def test_the_interior_point_lies_where_8_bit_values_change() -> None:
    """Half of the pixels where they are cut off, the others where they are rounded; by brute force,
    a step to both sides."""
    images = torch.linspace(0, 1, 128, dtype=torch.float32).reshape(2, 1, 8, 8)
    point = _interior_point(images)
    assert point.dtype == torch.float64 and 0.09 < point.min() < point.max() < 0.91
    assert (point - (0.1 + 0.8 * images)).abs().max() <= 1 / 255
    low, high = 255 * (point - 1e-9), 255 * (point + 1e-9)
    assert (low.floor() != high.floor()).double().mean() == 0.5
    assert (low.round() != high.round()).double().mean() == 0.5
