"""What is left of a gradient check where all of it would cost too much: little, and never a kind of
step that nobody looked at."""

import pytest
import torch
from torch import Tensor

from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.evaluation.defense_check import check_defense_gradient
from hetpure.evaluation.extent import Extent, extents, thinned, thinned_plan
from hetpure.evaluation.run_results import inexact
from hetpure.gradient_check import cosines
from hetpure.gradients import Execution, Policy, input_gradient
from hetpure.noise import Noise, Purpose, Stream, noise_for
from hetpure.purifiers import EDMPurifier, HeterogeneousPurifier, Purifier, Step, UniformPurifier
from hetpure.report.gradient_checks import gradient_checks_sheet
from hetpure.schedule import NO_NOISE, linear_schedule

SAMPLES = torch.arange(4)
PURIFIERS: dict[str, Purifier] = {
    "uniform": UniformPurifier(steps=100, strength=0.2),
    "state": UniformPurifier(steps=100, strength=0.2, output="state"),
    "single step": HeterogeneousPurifier(steps=100),
    "fused": HeterogeneousPurifier(steps=100, resampling="fused", resample_jump=3, output="state"),
    "multi step": HeterogeneousPurifier(steps=50, resampling="multi_step", resample_jump=3),
    "edm": EDMPurifier(levels=12, strength=0.5),
}


def kinds(plan: tuple[Step, ...]) -> set[tuple[bool, ...]]:
    """What the code of a step branches on."""
    return {
        (step.known, step.corrected, step.via > step.at, step.to == NO_NOISE, step.repeat > 0)
        for step in plan
    }


@pytest.mark.parametrize("purifier", PURIFIERS.values(), ids=PURIFIERS.keys())
def test_thinned_plans_hold_every_kind_of_step_in_order(purifier: Purifier) -> None:
    plan = purifier.plan(linear_schedule())
    assert len(plan) > 10
    for count in range(1, len(plan) + 3):
        thin = thinned_plan(plan, count)
        assert [step for step in plan if step in thin] == list(thin), "as they are, in order"
        assert kinds(thin) == kinds(plan)
        assert min(count, len(plan)) <= len(thin) <= count + len(kinds(plan))
    assert thinned_plan(plan, len(plan)) == plan
    assert len(thinned_plan(plan, 1)) == len(kinds(plan))


def test_steps_are_spread_evenly() -> None:
    plan = tuple(Step(at=at, via=at, to=at - 1) for at in range(23, 0, -1))
    assert [step.at for step in thinned_plan(plan, 3)] == [23, 12, 1]
    assert [step.at for step in thinned_plan(plan, 1)] == [23]
    assert thinned_plan((), 5) == ()


def test_extents_go_down_to_one_of_everything() -> None:
    plan = PURIFIERS["uniform"].plan(linear_schedule())
    assert len(plan) == 20
    widest_first = extents(plan, 9)
    assert [(e.images, e.directions, len(e.plan), e.block) for e in widest_first] == [
        (2, 3, 20, 9),
        (2, 1, 20, 9),
        (1, 1, 20, 9),
        (1, 1, 10, 5),
        (1, 1, 5, 3),
        (1, 1, 3, 2),
        (1, 1, 2, 1),
    ]
    assert [(e.images, e.directions, e.block) for e in extents(plan, 1)][:2] == [
        (1, 3, 1),
        (1, 1, 1),
    ]
    assert extents((), 2) == [
        Extent(2, 3, (), 2), Extent(2, 1, (), 2), Extent(1, 1, (), 2), Extent(1, 1, (), 1)
    ]  # fmt: skip


def test_a_thinned_defence_takes_its_steps_and_no_others(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """By hand: the plan's steps one after another, from the whole plan's start."""
    purifier = HeterogeneousPurifier(steps=50)
    whole = Defense(classifier, purifier, denoiser, policy=Execution("hybrid", 6, 3))
    plan = thinned_plan(whole.plan, 4)
    short = thinned(whole, plan)
    assert len(plan) < len(whole.plan) == 15 and short.network_calls == len(plan)
    assert short.execution == Execution("hybrid", -(-6 * len(plan) // 15), 3)
    noise, mask = noise_for(images), whole.mask(images)
    state = purifier.start(denoiser, images, noise)
    for step in plan:
        state = purifier.advance(denoiser, step, state, images, mask, noise)
    assert torch.equal(short.purify(images, noise, mask), purifier.finish(state))
    assert thinned(whole, whole.plan) is whole
    assert len(whole.plan) == 15, "the defence itself keeps its plan"


@pytest.mark.parametrize("policy", ["tape", "checkpoint", Execution("hybrid", 7)], ids=str)
def test_a_thinned_gradient_check_says_what_it_looked_at(
    policy: Policy | Execution, denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    defense = Defense(classifier, HeterogeneousPurifier(steps=50), denoiser, policy=policy)
    extent = extents(defense.plan, 4)[-1]
    check = check_defense_gradient(defense, images, SAMPLES, 7, bound=1e-5, extent=extent)
    assert check.passed and check.cosine_to_exact == pytest.approx(1, abs=1e-12)
    assert (check.images, check.directions, check.steps, check.of_steps) == (1, 1, 4, 15)
    assert check.policy == defense.execution.describe(15), "the attack's own"
    assert {"checkpoint", "tape"} <= set(check.compared) and len(check.compared) == 3
    table = gradient_checks_sheet({"row": {"gradient_check": check.as_dict()}}).markdown()
    assert "| 1 image, 1 direction, 4 of 15 steps |" in table
    older = {**check.as_dict(), "steps": None, "of_steps": None}
    assert (
        "| 1 image, 1 direction |"
        in gradient_checks_sheet({"row": {"gradient_check": older}}).markdown()
    ), "results that do not say had all"


class DetachedStep(HeterogeneousPurifier):
    """Planted in every step of one kind."""

    def advance(self, denoiser, step, state, images, mask, noise):  # type: ignore[no-untyped-def]
        seen = state.detach() if step.repeat else state
        return super().advance(denoiser, step, 0.5 * seen + 0.5 * state, images, mask, noise)


def test_a_thinned_gradient_check_catches_what_a_kind_of_step_does_wrong(
    denoiser: Denoiser, smooth_classifier: Classifier, images: Tensor
) -> None:
    defense = Defense(smooth_classifier, DetachedStep(steps=50), denoiser, policy="tape")
    extent = extents(defense.plan, 4)[-1]
    check = check_defense_gradient(defense, images, SAMPLES, 7, bound=1e-5, extent=extent)
    assert check.finite_difference_error > 1e-2 and not check.passed


def test_an_approximation_is_held_to_all_steps(
    denoiser: Denoiser, classifier: Classifier, images: Tensor
) -> None:
    """By hand, one draw: over fewer steps the purifier's derivative is nearer to the identity."""
    defense = Defense(classifier, UniformPurifier(steps=50), denoiser, policy="bpda")
    extent = extents(defense.plan, 1)[-1]
    check = check_defense_gradient(defense, images[:1], SAMPLES[:1], 7, bound=1e-5, extent=extent)
    assert check.approximation and (check.steps, check.of_steps) == (2, 5)
    noise = Noise.of(7, Stream.PROBE).on(SAMPLES[:1])

    def gradient(defense: Defense, policy: Policy) -> Tensor:
        point = images[:1].clone().requires_grad_()
        logits = defense(point, noise, policy=policy)
        return input_gradient((noise.normal(Purpose.START, logits) * logits).sum(), point)

    expected = cosines(gradient(defense, "bpda"), gradient(defense, "tape"))
    assert check.cosine_to_exact == pytest.approx(float(expected), abs=1e-9)
    short = thinned(defense, extent.plan)
    other = cosines(gradient(short, "bpda"), gradient(short, "tape"))
    assert abs(float(other - expected)) > 1e-6


def test_results_say_that_not_all_steps_were_checked() -> None:
    row = {"attacked": "gradient_check", "inexact": []}
    all_steps = {"cosine_to_exact": 1.0}
    some = all_steps | {"steps": 20, "of_steps": 100}
    assert inexact("a", row, {"gradient_check": some}) == [
        "a: its gradient is checked on 20 of 100 steps"
    ]
    for gradient_check in (all_steps, all_steps | {"steps": 9, "of_steps": 9}):
        assert inexact("a", row, {"gradient_check": gradient_check}) == []
