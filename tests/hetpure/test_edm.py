"""EDM's plan against the paper's formulas, and a Heun step by hand in the paper's own variables.

What many steps converge to is in `test_purification_law.py`.
"""

from collections.abc import Callable
from dataclasses import replace
from math import sqrt

import pytest
import torch
from torch import Tensor

from hetpure.denoiser import Denoiser, PredictionType, to_model
from hetpure.noise import BatchNoise, Purpose
from hetpure.purifiers import EDMPurifier, Step
from hetpure.schedule import NO_NOISE, Schedule, linear_schedule
from tests.hetpure.networks import cosine_schedule

LINEAR = linear_schedule()
Rows = Callable[..., BatchNoise]
EDM = EDMPurifier(levels=10, strength=0.3, sigma_min=0.02)


def sigmas(schedule: Schedule) -> Tensor:
    alphas = torch.tensor(schedule.alphas_cumprod, dtype=torch.float64)
    return ((1 - alphas) / alphas).sqrt()


def nearest(schedule: Schedule, sigma: float) -> int:
    return int((sigmas(schedule) - sigma).abs().argmin())


@pytest.mark.parametrize("schedule", [LINEAR, cosine_schedule()], ids=["linear", "cosine"])
@pytest.mark.parametrize(("steps", "rho"), [(10, 7.0), (5, 1.0), (18, 3.0), (2, 7.0)])
@pytest.mark.parametrize("lowest", [0.02, 0.002])
def test_levels_are_the_rho_spacing_at_the_nearest_index(
    lowest: float, steps: int, rho: float, schedule: Schedule
) -> None:
    """Karras et al., eq. 5. 0.002 is below every index: levels down there share index 0."""
    plan = EDMPurifier(levels=steps, strength=0.3, rho=rho, sigma_min=lowest).plan(schedule)
    high = float(sigmas(schedule)[300])
    fractions = torch.linspace(0, 1, steps, dtype=torch.float64)
    spaced = (high ** (1 / rho) * (1 - fractions) + lowest ** (1 / rho) * fractions) ** rho
    wanted = sorted({nearest(schedule, float(level)) for level in spaced}, reverse=True)
    assert [step.at for step in plan] == [step.via for step in plan] == wanted
    assert [step.to for step in plan] == [*wanted[1:], NO_NOISE]
    assert wanted[0] == 300


@pytest.mark.parametrize("steps", [1, 2, 5, 10])
def test_steps_are_two_calls_but_the_last(steps: int) -> None:
    plan = replace(EDM, levels=steps).plan(LINEAR)
    assert sum(step.network_calls for step in plan) == 2 * steps - 1
    assert [step.corrected for step in plan] == [*[True] * (steps - 1), False]


@pytest.mark.parametrize("churn", [0.5, 2.0, 100.0])
def test_churn_raises_every_level_by_gamma(churn: float) -> None:
    """Alg. 2: sigma_hat = (1 + gamma) sigma, gamma = min(S_churn / N, sqrt(2) - 1)."""
    gamma = min(churn / 10, sqrt(2) - 1)
    plan, still = replace(EDM, churn=churn).plan(LINEAR), EDM.plan(LINEAR)
    levels = sigmas(LINEAR)
    for step, quiet in zip(plan, still, strict=True):
        assert replace(step, via=step.at) == quiet
        assert step.via == nearest(LINEAR, float(levels[step.at]) * (1 + gamma))
    assert sum(step.via > step.at for step in plan) >= 8


def test_churn_happens_between_its_two_levels_only() -> None:
    levels = sigmas(LINEAR)
    churned = replace(EDM, churn=100.0).plan(LINEAR)
    low, high = float(levels[churned[6].at]), float(levels[churned[2].at])  # both ends belong to it
    plan = replace(EDM, churn=100.0, churn_min=low, churn_max=high).plan(LINEAR)
    assert [step.via > step.at for step in plan] == [2 <= k <= 6 for k in range(10)]
    assert plan[2:7] == churned[2:7]


def heun_by_hand(
    denoiser: Denoiser, state: Tensor, fresh: Tensor | float, step: Step, purifier: EDMPurifier
) -> Tensor:
    """Alg. 2 in the paper's variables: x has noise sigma on a clean image that is not scaled."""

    def scale(index: int) -> float:
        return denoiser.schedule.alphas_cumprod[index] ** 0.5

    def sigma(index: int) -> float:
        return float(sigmas(denoiser.schedule)[index])

    def slope(x: Tensor, index: int) -> Tensor:
        times = torch.full((len(x),), index)
        output = denoiser.network(scale(index) * x, times).sample
        if denoiser.prediction_type == "sample":
            return (x - output) / sigma(index)
        assert denoiser.prediction_type == "epsilon"
        return output

    x = state / scale(step.at)
    climb = sigma(step.via) ** 2 - sigma(step.at) ** 2
    x = x + sqrt(climb) * purifier.churn_noise * fresh
    length = sigma(step.to) - sigma(step.via)
    before = slope(x, step.via)
    after = slope(x + length * before, step.to)
    return scale(step.to) * (x + length * (before / 2 + after / 2))


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("churn", [0.0, 3.0])
def test_a_heun_step_by_hand(
    churn: float, prediction: PredictionType, denoiser: Denoiser, images: Tensor, rows: Rows
) -> None:
    denoiser.prediction_type = prediction
    purifier = replace(EDM, churn=churn, churn_noise=1.1)
    noise, state = rows(0, 1, 2, 3), to_model(images)
    for step in purifier.plan(LINEAR)[:-1]:
        assert (step.via > step.at) == (churn > 0)
        fresh = noise.normal(Purpose.REVERSE, images, step=step.at)
        found = purifier.advance(denoiser, step, state, images, None, noise)
        expected = heun_by_hand(denoiser, state, fresh, step, purifier)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
