"""What every purifier owes to an evaluation, of whatever family: exact gradients, a plan that says
its cost, noise that an attacker can know, and results that follow the sample and not the batch."""

from dataclasses import fields
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser, PredictionType, to_pixels
from hetpure.gradients import Execution, Policy, input_gradient
from hetpure.noise import (
    FORWARD_GROUP,
    Address,
    BatchNoise,
    Group,
    Noise,
    Purpose,
    Stream,
    attack_draw,
)
from hetpure.numbers import Number
from hetpure.purifiers import (
    EDMPurifier,
    GradualPurifier,
    GuidedPurifier,
    HeterogeneousPurifier,
    LikelihoodPurifier,
    Purifier,
    Resampling,
    UniformPurifier,
)
from hetpure.samplers import DDIM, DDPM, VPODE, VPSDE, Sampler
from hetpure.schedule import NO_NOISE, linear_schedule
from tests.hetpure.networks import seeded_unet, states

SCHEDULE = linear_schedule()
LABELS, IDS = torch.tensor([0, 1, 2, 3]), torch.tensor([11, 3, 40, 7])
META = torch.device("meta")  # tensors without values
REPORT = Noise.of(7, Stream.REPORT)
DRAW = attack_draw(0, 1, 2, 3)
ANCESTRAL = DDPM(clip_x0=False)
SAMPLERS: dict[str, Sampler] = {
    "ddim": DDIM(),
    "eta": DDIM(eta=0.5),
    "ddpm": ANCESTRAL,
    "vp-sde": VPSDE(),
    "vp-ode": VPODE(),
}
DEPARTING: tuple[Resampling, ...] = ("none", "fused")
FAMILY: dict[str, Purifier] = {
    **{
        f"uniform {name}": UniformPurifier(steps=20, strength=0.2, sampler=sampler)
        for name, sampler in SAMPLERS.items()
    },
    "edm": EDMPurifier(levels=3, strength=0.2),
    "edm churn": EDMPurifier(levels=3, strength=0.2, churn=1.0),
    "guided": GuidedPurifier(
        steps=20, strength=0.1, sampler=ANCESTRAL, guidance=2.0, rounds=2, output="x0"
    ),
    **{
        f"heterogeneous {name} {how}": HeterogeneousPurifier(
            steps=20, sampler=SAMPLERS[name], resampling=how, resample_jump=2
        )
        for name in ("ddim", "ddpm")
        for how in get_args(Resampling)
    },
    "heterogeneous ddim recombine": HeterogeneousPurifier(steps=20, recombine=True),
    "heterogeneous ddpm recombine": HeterogeneousPurifier(20, ANCESTRAL, recombine=True),
    "heterogeneous state": HeterogeneousPurifier(steps=20, output="state"),
    **{
        f"heterogeneous {name} {how} departing": HeterogeneousPurifier(
            20, SAMPLERS[name], resampling=how, resample_jump=2, known="departure"
        )
        for name in ("ddim", "ddpm")
        for how in DEPARTING
    },
    "gradual ddpm": GradualPurifier(steps=20, strengths=(0.05, 0.05, 0.15)),
    "gradual ddim": GradualPurifier(steps=20, sampler=DDIM(), strengths=(0.05, 0.15)),
    "likelihood": LikelihoodPurifier(steps=2),
    "likelihood ball": LikelihoodPurifier(steps=2, radius=Number("8/255")),
}
FROM_THE_LAST_INDEX = [  # jumps are cut off there
    HeterogeneousPurifier(
        10, ANCESTRAL, t_large=1.0, t_small=0.5, resampling=how, resample_jump=600
    )
    for how in ("single_step", "fused")
]
REVERSE_NOISE = {
    name
    for name in FAMILY
    if {"eta", "ddpm", "vp-sde", "churn", "guided", "likelihood"} & set(name.split())
}
every_purifier = pytest.mark.parametrize("purifier", FAMILY.values(), ids=FAMILY.keys())
Asked = list[tuple[Purpose, int, int]]


def smooth(purifier: Purifier) -> Purifier:
    """Its twin without the clamp to [0, 1]: nothing but smooth functions from image to logits."""

    class Smooth(type(purifier)):  # type: ignore[misc]
        def finish(self, state: Tensor) -> Tensor:
            return to_pixels(state)

    return Smooth(**{field.name: getattr(purifier, field.name) for field in fields(purifier)})


def loss(defense: Defense, images: Tensor, mask: Tensor, policy: Policy | Execution) -> Tensor:
    """That of an attack, with noise and mask held fixed."""
    logits = defense(images, REPORT.on(IDS[: len(images)]), mask, policy)
    return F.cross_entropy(logits, LABELS[: len(images)], reduction="sum")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The addresses of all noise that is drawn, in order."""
    found: Asked = []
    address = BatchNoise.address

    def record(self: BatchNoise, purpose: Purpose, step: int, repeat: int) -> Address:
        found.append((purpose, step, repeat))
        return address(self, purpose, step, repeat)

    monkeypatch.setattr(BatchNoise, "address", record)
    return found


class NothingIsWaitedFor(TorchDispatchMode):
    """Refuses what makes a program wait for its accelerator: reading a value of a tensor (which
    tensors without values refuse themselves), and copying numbers to it."""

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), named: Any = None
    ) -> Any:
        copied = [t for t in tree_leaves(arguments) if isinstance(t, Tensor) and t.device != META]
        assert not any(tensor.dim() for tensor in copied), function
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("prediction_type", ["epsilon", "edm"])
@every_purifier
def test_no_step_waits_for_the_device(purifier: Purifier, prediction_type: PredictionType) -> None:
    """Start, steps and their gradients run on tensors that have no values."""
    denoiser = Denoiser(seeded_unet(), SCHEDULE, prediction_type).to(META).requires_grad_(False)
    images = torch.empty(2, 3, 8, 8, device=META)
    mask = torch.empty(2, 1, 8, 8, device=META) if purifier.needs_mask else None
    noise = REPORT.on(IDS[:2].to(META))
    with NothingIsWaitedFor():
        state = purifier.start(denoiser, images, noise)
        for step in purifier.plan(SCHEDULE):
            point = state.detach().requires_grad_()
            state = purifier.advance(denoiser, step, point, images, mask, noise)
            torch.autograd.grad(state.sum(), point)
        purifier.finish(state)


@every_purifier
def test_every_policy_is_tape_bit_for_bit(
    purifier: Purifier,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
    half_mask: Tensor,
) -> None:
    """A step uses its mask twice: that gradient adds up in another order, so it agrees to
    rounding."""
    defense = Defense(classifier, purifier, denoiser)
    images, half_mask = images[:2].requires_grad_(), half_mask[:2]
    half_mask.requires_grad_(purifier.needs_mask)
    wanted = [images, half_mask] if purifier.needs_mask else [images]
    tape = loss(defense, images, half_mask, "tape")
    expected = torch.autograd.grad(tape, wanted)
    for how in (Execution("checkpoint"), Execution("hybrid", 1)):
        recomputed = loss(defense, images, half_mask, how)
        assert torch.equal(tape, recomputed)
        found = torch.autograd.grad(recomputed, wanted)
        assert torch.equal(found[0], expected[0]), how
        for ours, exact in zip(found[1:], expected[1:], strict=True):
            torch.testing.assert_close(ours, exact, rtol=1e-10, atol=1e-14)


@every_purifier
def test_gradient_agrees_with_finite_differences(
    purifier: Purifier,
    denoiser: Denoiser,
    smooth_classifier: Classifier,
    images: Tensor,
    half_mask: Tensor,
) -> None:
    """To 1e-6, by differences taken here and not by the gradient check's code."""
    defense = Defense(smooth_classifier, smooth(purifier), denoiser)
    images, mask = images[:2], half_mask[:2]
    point = images.clone().requires_grad_()
    gradient = input_gradient(loss(defense, point, mask, "checkpoint"), point)
    generator = torch.Generator().manual_seed(9)
    direction = torch.randn(images.shape, generator=generator, dtype=torch.float64)
    slope = (gradient * direction).sum()
    errors = []
    for size in (1e-4, 1e-5):
        above = loss(defense, images + size * direction, mask, "tape")
        below = loss(defense, images - size * direction, mask, "tape")
        errors.append(float(abs((above - below) / (2 * size) / slope - 1)))
    assert min(errors) < 1e-6


@every_purifier
def test_its_plan_tells_the_calls_before_any_image(
    purifier: Purifier, denoiser: Denoiser, classifier: Classifier, half_mask: Tensor
) -> None:
    """Counted at the network, for images of all kinds."""
    defense = Defense(classifier, purifier, denoiser)
    assert defense.plan == purifier.plan(SCHEDULE)
    for images in (torch.zeros(4, 1, 8, 8), torch.ones(4, 1, 8, 8), torch.rand(4, 1, 8, 8)):
        with count_network_calls(defense) as calls:
            defense.purify(images.double(), REPORT.on(IDS), half_mask)
        assert calls == [4] * defense.network_calls


@every_purifier
def test_its_result_does_not_depend_on_batch_or_order(
    purifier: Purifier, denoiser: Denoiser, images: Tensor, half_mask: Tensor
) -> None:
    """To rounding only: the UNet's matrix products add up in an order that depends on the size of
    the batch."""
    whole = states(purifier, denoiser, images, half_mask, REPORT.on(IDS))[-1]
    for order in ([2], [3, 0], [1, 3, 2, 0]):
        noise = REPORT.on(IDS[order])
        part = states(purifier, denoiser, images[order], half_mask[order], noise)[-1]
        torch.testing.assert_close(part, whole[order], rtol=0, atol=1e-12)
    others = states(purifier, denoiser, images, half_mask, REPORT.on(IDS + 1))[-1]
    assert not torch.isclose(others, whole).all((1, 2, 3)).any()


@pytest.mark.parametrize("purifier", [*FAMILY.values(), *FROM_THE_LAST_INDEX])
def test_no_address_is_used_twice(
    purifier: Purifier, denoiser: Denoiser, images: Tensor, half_mask: Tensor, asked: Asked
) -> None:
    states(purifier, denoiser, images, half_mask, REPORT.on(IDS))[-1]
    start = purifier.plan(SCHEDULE)[0].at
    assert start == NO_NOISE or asked[0] == (Purpose.FORWARD, start, 0)
    assert len(asked) == len(set(asked))


@pytest.mark.parametrize(
    "keep",
    [(), ("forward",), ("reverse",), ("forward", "reverse")],
    ids=["white-box", "DW-box, forward", "DW-box, reverse", "DW-box, both"],
)
@pytest.mark.parametrize("name", FAMILY)
def test_an_attacker_who_knows_noise_meets_it_again(
    name: str,
    keep: tuple[Group, ...],
    denoiser: Denoiser,
    images: Tensor,
    half_mask: Tensor,
    asked: Asked,
) -> None:
    """The groups that it keeps have the same draws, the others none of them; the result is the
    same bit for bit exactly where every group that the purifier uses is kept."""
    purifier, other = FAMILY[name], REPORT.redraw(DRAW, keep)
    results = [
        states(purifier, denoiser, images, half_mask, noise.on(IDS))[-1]
        for noise in (REPORT, other)
    ]
    addresses = set(asked)
    used: set[Group] = {"forward" if a[0] in FORWARD_GROUP else "reverse" for a in addresses}
    assert used == ({"forward", "reverse"} if name in REVERSE_NOISE else {"forward"})
    for purpose, step, repeat in addresses:
        first, second = (n.on(IDS).words(purpose, step, repeat, 64) for n in (REPORT, other))
        group = "forward" if purpose in FORWARD_GROUP else "reverse"
        assert torch.equal(first, second) if group in keep else not (first == second).any()
    assert torch.equal(*results) == (used <= set(keep))
    if not used <= set(keep):
        assert not torch.isclose(*results).all((1, 2, 3)).any()
