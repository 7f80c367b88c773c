"""The continuous adjoint is an approximation that results are compared with: it must be that of the
equation that the purifier solves, along the noise that it saw, in memory that does not grow."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.gradients import Policy, input_gradient
from hetpure.memory import saved_bytes
from hetpure.noise import BatchNoise, noise_for
from hetpure.purifiers import HeterogeneousPurifier, Output, Purifier, UniformPurifier
from hetpure.samplers import DDIM, VPODE, VPSDE, Sampler
from hetpure.schedule import Schedule, linear_schedule
from tests.hetpure.networks import Optimal

SCHEDULE = linear_schedule()
LABELS = torch.tensor([0, 1, 2, 3])
Rows = Callable[..., BatchNoise]
every_sampler = pytest.mark.parametrize("sampler", [VPSDE(), VPODE()], ids=["sde", "ode"])
every_output = pytest.mark.parametrize("output", ["x0", "state"])


def denoise(centre: float = 0.5, schedule: Schedule = SCHEDULE) -> Denoiser:
    return Denoiser(Optimal(schedule, centre=centre), schedule)


def identity() -> Classifier:
    """Its logits are the pixels."""
    return Classifier(nn.Flatten(), num_classes=64, mean=[0.0], std=[1.0]).double()


def gradient(defense: Defense, images: Tensor, noise: BatchNoise, policy: Policy) -> Tensor:
    point = images.clone().requires_grad_()
    loss = F.cross_entropy(defense(point, noise, None, policy), LABELS, reduction="sum")
    return input_gradient(loss, point)


@every_output
@every_sampler
def test_its_value_is_the_tapes_bit_for_bit(
    sampler: Sampler,
    output: Output,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
    rows: Rows,
) -> None:
    purifier = UniformPurifier(steps=20, strength=0.2, sampler=sampler, output=output)
    defense = Defense(classifier, purifier, denoiser, policy="adjoint")
    noise = rows(0, 1, 2, 3)
    tape, unrecorded = defense(images, noise, policy="tape"), defense(images, noise)
    found = defense(images.requires_grad_(), noise)
    assert found.requires_grad
    assert torch.equal(found, tape) and torch.equal(unrecorded, tape)


@every_output
@every_sampler
def test_it_grows_towards_the_exact_gradient(
    sampler: Sampler, output: Output, smooth_classifier: Classifier, images: Tensor, rows: Rows
) -> None:
    """On finer grids, by angle and by length; on a coarse one it is another gradient."""
    cosines, errors = [], []
    for steps in (20, 100, 500):
        purifier = UniformPurifier(steps=steps, strength=0.3, sampler=sampler, output=output)
        defense = Defense(smooth_classifier, purifier, denoise())
        exact, found = (
            gradient(defense, images, rows(0, 1, 2, 3), how).flatten()
            for how in ("tape", "adjoint")
        )
        cosines.append(float(torch.cosine_similarity(exact, found, dim=0)))
        errors.append(float((found - exact).norm() / exact.norm()))
    assert cosines[0] < cosines[1] < cosines[2] and cosines[2] > 0.99
    assert errors[0] > errors[1] > errors[2]


@every_sampler
def test_it_is_the_equations_own_slope(sampler: Sampler, images: Tensor, rows: Rows) -> None:
    """For Gaussian data the slope of the state is known: with variances v and u and signals a and b
    at the start and at the end, sqrt(v / u) along the flow and sqrt(a / b) v / u along the SDE.
    Half the step, half the error."""
    errors = []
    for factor in (1, 2, 4):
        schedule = linear_schedule(1000 * factor, 1e-4 / factor, 2e-2 / factor)
        purifier = UniformPurifier(stride=1, strength=0.06, sampler=sampler, output="state")
        level = schedule.alpha_cumprod
        first, last = level(purifier.plan(schedule)[0].at), level(0)
        start, end = (alpha * Optimal.S**2 + 1 - alpha for alpha in (first, last))
        slope = (end / start) ** 0.5
        if sampler.stochastic:
            slope = (first / last) ** 0.5 * end / start
        defense = Defense(identity(), purifier, denoise(0.0, schedule), policy="adjoint")
        point = images.clone().requires_grad_()
        found = input_gradient(defense(point, rows(0, 1, 2, 3)).sum(), point)
        errors.append(float((found / (first**0.5 * slope) - 1).abs().max()))
    assert errors[-1] < 0.01
    assert [errors[0] / errors[1], errors[1] / errors[2]] == pytest.approx([2, 2], rel=0.1)


@every_output
@every_sampler
def test_memory_does_not_grow_with_the_steps(
    sampler: Sampler,
    output: Output,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
    rows: Rows,
) -> None:
    images.requires_grad_()

    def kept(steps: int, policy: Policy) -> int:
        purifier = UniformPurifier(steps=5 * steps, strength=0.2, sampler=sampler, output=output)
        defense = Defense(classifier, purifier, denoiser, policy=policy)
        assert len(defense.plan) == steps
        return saved_bytes(lambda: defense(images, rows(0, 1, 2, 3)), [defense])

    assert kept(40, "adjoint") == kept(10, "adjoint") < kept(10, "tape") / 4


@every_output
@every_sampler
def test_its_network_calls_are_told(
    sampler: Sampler, output: Output, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """All of them, and those that are differentiated: as they are counted at the network."""
    purifier = UniformPurifier(steps=20, strength=0.2, sampler=sampler, output=output)
    defense = Defense(classifier, purifier, denoiser, policy="adjoint")
    recorded: list[bool] = []
    denoiser.network.register_forward_pre_hook(
        lambda _, args: recorded.append(torch.is_grad_enabled() and args[0].requires_grad)
    )
    with count_network_calls(defense) as counter:
        gradient(defense, images, noise_for(images), "adjoint")
    assert len(counter) == len(recorded)
    assert (len(recorded), sum(recorded)) == defense.gradient_calls()


@pytest.mark.parametrize(
    ("purifier", "named"),
    [
        (UniformPurifier(sampler=DDIM()), "DDIM"),
        (HeterogeneousPurifier(), "HeterogeneousPurifier"),
        (None, "a plain classifier"),
    ],
    ids=["ddim", "heterogeneous", "plain"],
)
def test_no_equation_is_an_error(
    purifier: Purifier | None,
    named: str,
    denoiser: Denoiser,
    classifier: Classifier,
    images: Tensor,
) -> None:
    line = f"^gradient adjoint .*VPSDE or VPODE, not .*{named}.*: use auto$"
    network = denoiser if purifier else None
    with pytest.raises(InputError, match=line):
        Defense(classifier, purifier, network, policy="adjoint")
    defense = Defense(classifier, purifier, network)
    with pytest.raises(InputError, match=line):
        defense(images.requires_grad_(), noise_for(images), policy="adjoint")
