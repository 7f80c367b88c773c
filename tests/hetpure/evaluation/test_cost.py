"""What an evaluation is said to cost is what it costs, in network calls to the last one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from hetpure.attacks import PGD, Attack
from hetpure.attacks.apgd import APGD
from hetpure.attacks.bpda import BPDA
from hetpure.attacks.null import NullAttack
from hetpure.attacks.square import Square
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.evaluation import row_check
from hetpure.evaluation.cost import cell_cost
from hetpure.evaluation.defense_check import float64_footprint
from hetpure.evaluation.extent import extents
from hetpure.evaluation.plan import check_seconds, phases
from hetpure.evaluation.protocol import (
    CLEAN_CELL,
    Block,
    Cell,
    Protocol,
    evaluate_block,
    evaluate_cell,
)
from hetpure.evaluation.row_check import allowance, check_gradients, fitting_extents
from hetpure.evaluation.rows import Row
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.gradients import Execution, Policy
from hetpure.noise import Group
from hetpure.purifiers import EDMPurifier, HeterogeneousPurifier, Purifier, UniformPurifier
from hetpure.samplers import DDPM
from tests.hetpure.evaluation.runs import begin, small

LABELS, SAMPLES = torch.tensor([0, 1, 2, 3]), torch.tensor([11, 3, 40, 7])
ATTACK = PGD(steps=3, eot_samples=2, restarts=2, mask="recomputed")
CELLS = (CLEAN_CELL, Cell("pgd", ATTACK))
PROTOCOL = Protocol(report_draws=4, selection_draws=3)
Make = Callable[..., Defense]


@pytest.fixture
def make(denoiser: Denoiser, classifier: Classifier) -> Make:
    def made(purifier: Purifier | None, policy: Policy | Execution = "tape") -> Defense:
        return Defense(classifier, purifier, denoiser if purifier else None, policy=policy)

    return made


def row(defense: Defense, surrogate: Defense | None = None, *cells: Cell) -> Row:
    return Row("d", defense, surrogate, cells=cells or CELLS)


class Calls:
    """Images that went through diffusion networks in float64, and those with a gradient."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows = self.differentiated = 0
        forward = Denoiser.forward

        def counted(denoiser: Denoiser, x: Tensor, timesteps: int | Tensor) -> Tensor:
            if x.dtype == torch.float64:
                self.rows += len(x)
                self.differentiated += len(x) if torch.is_grad_enabled() else 0
            return forward(denoiser, x, timesteps)

        monkeypatch.setattr(Denoiser, "forward", counted)


def on(row: Row, count: int) -> list[tuple[Cell, int]]:
    """The cells of a row on so many images."""
    return [(cell, cell.images(count)) for cell in row.cells]


@pytest.mark.parametrize(
    "policy",
    ["tape", "checkpoint", Execution("hybrid", 2, 3), Execution("tape", micro_batch=3), "bpda"],
    ids=str,
)
@pytest.mark.parametrize(
    "purifier",
    [HeterogeneousPurifier(steps=20), EDMPurifier(levels=3), None],
    ids=["heterogeneous", "edm", "plain"],
)
def test_phases_count_every_call(
    purifier: Purifier | None,
    policy: Policy | Execution,
    make: Make,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defense = make(purifier, policy)
    stopwatch = Stopwatch(defense, images)
    parts = phases(row(defense), PROTOCOL, on(row(defense), 4), stopwatch, stopwatch)
    calls = Calls(monkeypatch)
    block = Block(images, LABELS, SAMPLES)
    records = evaluate_block("d", defense, ATTACK, block, PROTOCOL, seed=0).records
    assert sum(phase.network_calls for phase in parts) == calls.rows
    assert sum(record.network_calls for record in records) == calls.rows
    assert sum(phase.differentiated for phase in parts) == calls.differentiated
    assert [phase.name for phase in parts] == ["clean", "pgd"]
    standard = sum(record.network_calls for record in records if record.attack == "clean")
    assert parts[0].network_calls == standard


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=2, eot_samples=2, mask="frozen"),
        PGD(steps=2, eot_samples=2, targets=2, mask="soft"),
        PGD(steps=2, eot_samples=2, approximation="classifier_only"),
        APGD(steps=2, eot_samples=2, mask="recomputed"),
        Square(steps=3, eot_samples=2),
        BPDA(steps=2, eot_samples=2),
        NullAttack(),
    ],
    ids=lambda attack: attack.describe(),
)
@pytest.mark.parametrize("known", [(), ("forward",), ("forward", "reverse")], ids=str)
def test_every_attacks_calls_are_foreseen(
    attack: Attack,
    known: tuple[Group, ...],
    make: Make,
    images: Tensor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defense = make(HeterogeneousPurifier(steps=20, sampler=DDPM()), "checkpoint")
    stopwatch, cell = Stopwatch(defense, images), Cell("a", attack, known)
    (phase,) = phases(row(defense, None, cell), PROTOCOL, [(cell, 4)], stopwatch, stopwatch)
    calls = Calls(monkeypatch)
    block = Block(images, LABELS, SAMPLES)
    right = torch.zeros(4, dtype=torch.long)
    records = evaluate_cell("d", defense, cell, block, PROTOCOL, seed=0, clean=right).records
    assert phase.differentiated == calls.differentiated
    if isinstance(attack, Square) and len(known) == 2:  # stops once a certain answer is wrong
        assert phase.network_calls >= calls.rows
    else:
        assert phase.network_calls == calls.rows == sum(r.network_calls for r in records)


def test_a_surrogate_is_what_the_attack_costs(
    make: Make, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    defense, surrogate = make(HeterogeneousPurifier(steps=20)), make(UniformPurifier(steps=10))
    clocks = Stopwatch(defense, images), Stopwatch(surrogate, images)
    parts = phases(row(defense, surrogate), PROTOCOL, on(row(defense), 4), *clocks)
    calls = Calls(monkeypatch)
    block = Block(images, LABELS, SAMPLES)
    evaluate_block("d", defense, ATTACK, block, PROTOCOL, seed=0, attacked=surrogate)
    assert sum(phase.network_calls for phase in parts) == calls.rows
    answered = 4 * (4 + 4 * 3) * defense.network_calls
    assert parts[1].network_calls == 4 * 12 * surrogate.network_calls + answered


class Known(Stopwatch):
    """A machine where a row's call takes a second forward and three with backward, the classifier
    a tenth of that, and a mask half a second."""

    def step(self, rows: int) -> tuple[float, float]:
        return rows * 1.0, rows * 3.0

    classifier = (0.1, 0.3)
    mask = 0.5


@pytest.mark.parametrize(
    ("policy", "gradient"),
    [
        (Execution("tape"), 6 * 3 + 0.3),
        (Execution("checkpoint"), 6 * 3 + 6 * 1 + 0.3),
        (Execution("hybrid", 4), 6 * 3 + 2 * 1 + 0.3),
        (Execution("bpda"), 6 * 1 + 0.3),
        (Execution("classifier_only"), 0.3),
    ],
    ids=lambda value: value.policy if isinstance(value, Execution) else "",
)
def test_seconds_are_calls_times_what_a_call_takes(
    policy: Execution, gradient: float, make: Make, images: Tensor
) -> None:
    stopwatch = Known(make(HeterogeneousPurifier(steps=20), policy), images)
    clean, attack = phases(
        row(stopwatch.defense), PROTOCOL, on(row(stopwatch.defense), 100), stopwatch, stopwatch
    )
    answer = 6 * 1 + 0.1
    assert clean.seconds == pytest.approx(100 * (7 * answer + 2 * 0.5))
    # Two restarts of three iterations, two draws each; a mask once an iteration. Then the report,
    # and four candidates on three draws.
    answers = 4 * answer + 0.5 + 4 * (3 * answer + 0.5)
    assert attack.seconds == pytest.approx(100 * (12 * gradient + 6 * 0.5 + answers))


@pytest.mark.parametrize(
    ("attack", "images", "seconds"),
    [
        (PGD(eot_samples=2), 4, 5 * 4 * 2 * (6 * 3 + 0.3 + 0.5 / 2)),
        (PGD(eot_samples=2), 1, 5 * 2 * (6 * 3 + 0.3 + 0.5 / 2)),
        (BPDA(eot_samples=1), 4, 5 * 4 * (6 * 1 + 0.3 + 0.5)),
        (BPDA(eot_samples=1), 1, 60),
    ],
    ids=["four images", "one image", "bpda", "a minute"],
)
def test_gradient_checks_may_take_five_steps_of_the_attack_or_a_minute(
    attack: Attack, images: int, seconds: float, make: Make
) -> None:
    defense = make(HeterogeneousPurifier(steps=20), "tape")
    clock = Known(defense, torch.rand(images, 1, 8, 8))
    assert allowance(row(defense), clock, attack) == pytest.approx(seconds)


def test_a_gradient_check_is_predicted_as_it_is_made(make: Make, images: Tensor) -> None:
    """The least look, and the widest one that the time allows, in forward passes."""
    clock = Known(make(HeterogeneousPurifier(steps=20)), images)
    assert clock.forward == 1
    widest, second, *others, least = extents(clock.defense.plan, len(images))
    looks = (widest, second, *others, least)
    assert check_seconds(looks, clock, widest.work) == widest.work + least.work
    assert check_seconds(looks, clock, widest.work - 1) == second.work + least.work
    assert check_seconds(looks, clock, 0) == check_seconds([least], clock, 1e9) == least.work


def test_what_purifies_nothing_is_timed_by_its_classifier(make: Make, images: Tensor) -> None:
    clock = Stopwatch(make(None), images, repeats=1)
    assert clock.forward == clock.classifier[0] > 0


def test_a_gradient_check_keeps_to_the_memory(make: Make, images: Tensor) -> None:
    """Policies are left out first, then an image; of the least it takes what that needs."""
    defense = make(HeterogeneousPurifier(steps=20), "tape")
    footprint = float64_footprint(defense, images)

    def widest(count: int, taped: int, less: int) -> tuple[int, int]:
        budget = footprint.need(count, 6, taped) - less
        fitting = fitting_extents(defense, images, budget)
        (extent, memory), *_ = fitting.items()
        assert memory <= budget or extent == extents(defense.plan, len(images))[-1]
        return extent.images, memory

    assert widest(2, 6, 0) == (2, footprint.need(2, 6, 6))
    assert widest(2, 6, 1) == (2, footprint.need(2, 6, 3))
    assert widest(2, 1, 0) == (2, footprint.need(2, 6, 1))
    assert widest(2, 1, 1)[0] == 1
    assert widest(1, 1, footprint.need(1, 6, 1))[0] == 1


@pytest.mark.parametrize("minute", [1e9, 0.0], ids=["time enough", "no time"])
def test_a_gradient_check_looks_as_far_as_the_time_allows(
    minute: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_check, "MINUTE", minute)
    monkeypatch.setattr(row_check, "ATTACK_STEPS", 0)
    run, _ = begin(tmp_path, *small(), largest=4)
    check = check_gradients(run, run.rows["purified"])["gradient_check"]
    assert check["passed"] and check["of_steps"] == 2
    expected = (2, 3, 2) if minute else (1, 1, 2)
    assert (check["images"], check["directions"], check["steps"]) == expected


def test_a_stopwatch_measures_once_and_does_not_time_huge_batches(
    make: Make, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopwatch = Stopwatch(make(HeterogeneousPurifier(steps=20)), images)
    stopwatch.cap = 8
    calls = Calls(monkeypatch)
    small = stopwatch.step(6)
    assert small[0] > 0 and small[1] > 0
    assert calls.rows == 6 * 2 * 4, "a first call and three, forward and with backward"
    assert stopwatch.step(6) == small
    huge, whole = stopwatch.step(80), stopwatch.step(8)
    assert huge == (10 * whole[0], 10 * whole[1])
    assert calls.rows == (6 + 8) * 2 * 4


def test_what_is_open_is_chosen_by_memory(make: Make, images: Tensor) -> None:
    roomy, defense = 10**9, make(HeterogeneousPurifier(steps=20), "auto")

    def chosen(defense: Defense, budget: int) -> Execution:
        row(defense).compute(Execution(), images, ATTACK, budget)
        return defense.execution

    assert chosen(defense, roomy) == Execution("tape", None, 8), "four images, two draws"
    footprint = defense.footprint(images)
    budget = footprint.need(3, 6, 6)
    tight = chosen(defense, budget)
    assert tight.resolved and tight.micro_batch is not None and tight != chosen(defense, roomy)
    assert footprint.need(tight.micro_batch, 6, 6 - tight.recomputed(6)) <= budget
    assert chosen(make(None), roomy) == Execution("tape", None, 4)


def test_the_bar_counts_what_the_plan_counts(make: Make) -> None:
    """A taped step is three passes, a recomputed one four; the plain classifier counts as one."""
    attack = Cell("a", PGD(steps=1, eot_samples=2, mask="recomputed"))
    for defense, surrogate, answer, gradient in (
        (make(None), None, 1, 3),
        (make(HeterogeneousPurifier(steps=20), "checkpoint"), None, 6, 24),
        (make(HeterogeneousPurifier(steps=20)), make(UniformPurifier(steps=20)), 6, 6),
    ):
        cost = cell_cost(row(defense, surrogate), attack, PROTOCOL)
        assert (cost.answer_work, cost.gradient_work) == (answer, gradient)
        drawn = bool(defense.groups)
        answers = 4 + 2 * 3 if drawn else 1 + 2
        assert cost.work == (2 if drawn else 1) * gradient + answers * answer
