"""When a stage-1 step of HetPure puts the known pixels back: both orders against their formulas,
written out line by line, with noise that was recorded beforehand."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError
from hetpure.noise import BatchNoise, Purpose
from hetpure.purifiers import HeterogeneousPurifier, Resampling, Step, UniformPurifier
from hetpure.schedule import NO_NOISE, linear_schedule
from tests.hetpure.networks import states

SCHEDULE = linear_schedule()
U = 3
FUSED = HeterogeneousPurifier(steps=20, resampling="fused", resample_jump=U, output="state")
DEPARTING = replace(FUSED, known="departure")
CONFIG = Path(__file__).parents[2] / "configs" / "evaluate" / "reference_hetpure.yaml"
Rows = Callable[..., BatchNoise]


class Recorded:
    """Noise from a list of tensors, by purpose and index; any other is an error."""

    def __init__(self, shape: torch.Size) -> None:
        generator = torch.Generator().manual_seed(6)
        self.draws = {
            (purpose, index): torch.randn(shape, generator=generator, dtype=torch.float64)
            for purpose in (Purpose.FORWARD, Purpose.RESAMPLE)
            for index in (200, 150, 100)
        }

    def normal(self, purpose: Purpose, like: Tensor, *, step: int, repeat: int = 0) -> Tensor:
        assert repeat == 0
        return self.draws[purpose, step]


class Formulas:
    """The paper's letters: q, a step up, a DDIM step, M x + (1 - M) y."""

    def __init__(self, denoiser: Denoiser, images: Tensor, mask: Tensor, noise: Recorded) -> None:
        self.denoiser, self.images, self.mask, self.noise = denoiser, images, mask, noise
        self.alpha = [float(value) for value in SCHEDULE.alphas_cumprod]

    def q(self, t: int) -> Tensor:
        n, a = self.noise.draws[Purpose.FORWARD, t], self.alpha[t]
        return a**0.5 * (2 * self.images - 1) + (1 - a) ** 0.5 * n

    def up(self, x: Tensor, t: int) -> Tensor:
        n, kept = self.noise.draws[Purpose.RESAMPLE, t], self.alpha[t + U] / self.alpha[t]
        return kept**0.5 * x + (1 - kept) ** 0.5 * n

    def ddim(self, x: Tensor, t: int, s: int) -> Tensor:
        times = torch.full((len(x),), t)
        e, a, b = self.denoiser.network(x, times).sample, self.alpha[t], self.alpha[s]
        x0 = (x - (1 - a) ** 0.5 * e) / a**0.5
        return b**0.5 * x0 + (1 - b) ** 0.5 * e

    def combined(self, x: Tensor, known: Tensor) -> Tensor:
        return self.mask * x + (1 - self.mask) * known


@pytest.fixture
def formulas(denoiser: Denoiser, images: Tensor, half_mask: Tensor) -> Formulas:
    return Formulas(denoiser, images, half_mask, Recorded(images.shape))


def found(purifier: HeterogeneousPurifier, f: Formulas) -> list[Tensor]:
    return states(purifier, f.denoiser, f.images, f.mask, f.noise)  # type: ignore[arg-type]


def assert_all_close(ours: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(ours, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("jumps", [True, False], ids=["fused", "none"])
def test_departure_is_the_published_order(jumps: bool, formulas: Formulas) -> None:
    """Known pixels first, at the start too; then U up; then down. At t_s nothing is put back."""
    f = formulas
    x = f.q(200)
    expected = [x]
    for t, s in ((200, 150), (150, 100)):
        x = f.combined(x, f.q(t))
        x = f.ddim(f.up(x, t), t + U, s) if jumps else f.ddim(x, t, s)
        expected.append(x)
    expected.append(f.ddim(expected[-1], 100, 50))
    expected.append(f.ddim(expected[-1], 50, 0))
    purifier = DEPARTING if jumps else replace(DEPARTING, resampling="none")
    assert_all_close(found(purifier, f), expected)


@pytest.mark.parametrize("jumps", [True, False], ids=["fused", "none"])
def test_landing_puts_known_pixels_back_after_a_step(jumps: bool, formulas: Formulas) -> None:
    f = formulas
    expected = [f.q(200)]
    expected.append(f.combined(f.ddim(expected[-1], 200, 150), f.q(150)))
    x, t = (f.up(expected[-1], 150), 150 + U) if jumps else (expected[-1], 150)
    expected.append(f.combined(f.ddim(x, t, 100), f.q(100)))
    x, t = (f.up(expected[-1], 100), 100 + U) if jumps else (expected[-1], 100)
    expected.append(f.ddim(x, t, 50))
    expected.append(f.ddim(expected[-1], 50, 0))
    purifier = FUSED if jumps else replace(FUSED, resampling="none")
    assert_all_close(found(purifier, f), expected)


def test_the_default_is_landing_with_the_plans_it_had() -> None:
    assert HeterogeneousPurifier() == HeterogeneousPurifier(known="landing")
    assert FUSED.plan(SCHEDULE) == (
        Step(200, 200, 150, known=True),
        Step(150, 153, 100, known=True),
        Step(100, 103, 50),
        Step(50, 50, 0),
    )
    assert replace(FUSED, resampling="single_step").plan(SCHEDULE) == (
        Step(200, 200, 150, known=True),
        Step(150, 153, 150, repeat=1),
        Step(150, 150, 100, known=True),
        Step(100, 103, 100, repeat=1),
        Step(100, 100, 50),
        Step(50, 50, 0),
    )


def test_departure_and_landing_differ(formulas: Formulas) -> None:
    ours, other = found(DEPARTING, formulas), found(FUSED, formulas)
    assert torch.equal(ours[0], other[0])
    assert not any(torch.isclose(a, b).all() for a, b in zip(ours[1:], other[1:], strict=True))


@pytest.mark.parametrize("resampling", ["fused", "none"])
def test_with_one_step_in_stage_1_a_departing_mask_is_inert(
    resampling: Resampling, denoiser: Denoiser, images: Tensor, half_mask: Tensor, rows: Rows
) -> None:
    """Whatever the mask: bit for bit. Landing, the same surrogate feels it."""
    noise = rows(0, 1, 2, 3)
    masks = (half_mask, torch.zeros_like(half_mask), torch.ones_like(half_mask))
    short = HeterogeneousPurifier(steps=10, resampling=resampling, known="departure")
    one, *others = (states(short, denoiser, images, mask, noise) for mask in masks)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    landing = replace(short, known="landing")
    one, other, _ = (states(landing, denoiser, images, mask, noise) for mask in masks)
    assert not torch.isclose(one[-1], other[-1]).all()


def test_departing_with_a_mask_of_ones_is_the_uniform_purifier(
    denoiser: Denoiser, images: Tensor, rows: Rows
) -> None:
    noise = rows(0, 1, 2, 3)
    departing = replace(DEPARTING, resampling="none")
    uniform = UniformPurifier(steps=20, strength=0.2, through=0.1, output="state")
    ours = states(departing, denoiser, images, torch.ones_like(images), noise)
    expected = states(uniform, denoiser, images, None, noise)
    assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_a_departing_jump_stops_at_the_last_index() -> None:
    purifier = replace(DEPARTING, t_large=1.0, t_small=0.5, resample_jump=600)
    vias = [step.via for step in purifier.plan(SCHEDULE) if step.to >= 500]
    assert vias == [999] * 10
    assert all(step.via == step.at for step in purifier.plan(SCHEDULE) if step.to < 500)


@pytest.mark.parametrize("resampling", ["single_step", "multi_step"])
def test_departure_with_another_resampling_is_refused(resampling: Resampling) -> None:
    with pytest.raises(FieldError, match=f"departure .* fused or none, not with {resampling}"):
        HeterogeneousPurifier(resampling=resampling, known="departure")
    with pytest.raises(FieldError, match="known is 'both', allowed are landing, departure"):
        HeterogeneousPurifier(known="both")  # type: ignore[arg-type]


def test_the_reference_config_follows_the_published_order() -> None:
    """The defence's hundred calls, each of the fifty of stage 1 from U above; a surrogate of two
    calls that no mask reaches."""
    rows: dict[str, Any] = yaml.safe_load(CONFIG.read_text())["model"]["defenses"]
    for row in rows.values():
        plan = HeterogeneousPurifier(**row["purifier"]["init_args"]).plan(SCHEDULE)
        assert [(step.via - step.at, step.to) for step in plan] == [
            (3 if t > 100 else 0, t - 2) for t in range(200, 0, -2)
        ]
        assert [step.at for step in plan if step.known] == list(range(198, 100, -2))
    (surrogate,) = (row["surrogate"] for row in rows.values() if "surrogate" in row)
    plan = HeterogeneousPurifier(**surrogate["init_args"]).plan(SCHEDULE)
    assert plan == (Step(200, 203, 100), Step(100, 100, 0))
    assert plan[-1].to != NO_NOISE
