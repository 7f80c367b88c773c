"""Strength per network call: equal budgets, calls counted by hand, and which budget is enough."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from hetpure.attacks import APGD, PGD, DiffHammer, Progressive
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block, Protocol, Record, evaluate_block
from hetpure.evaluation.reading import RecordedRun
from hetpure.report.recommended import RECOMMENDED, Recommended
from hetpure.schedule import linear_schedule
from tests.hetpure.attacks.defenses import linear
from tests.hetpure.networks import seeded_unet

N, DRAWS = 400, 2


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("strength")


@pytest.fixture
def defense(benchmark: ModuleType) -> Defense:
    """The benchmark's purifier on a tiny network, for 8x8 images of three channels."""
    classifier = linear(torch.linspace(-1, 1, 4 * 192).reshape(4, 192))
    denoiser = Denoiser(seeded_unet(), linear_schedule())
    return Defense(classifier, benchmark.PURIFIER, denoiser, policy="tape")


def test_all_attacks_of_a_budget_take_as_many_gradients(
    benchmark: ModuleType, defense: Defense
) -> None:
    for budget in benchmark.BUDGETS.values():
        made = benchmark.attacks(budget)
        kinds = [PGD, APGD, Progressive, DiffHammer]
        assert [type(attack) for attack in made.values()] == kinds[: 3 + (budget.eot_samples > 1)]
        for attack in made.values():
            attack.check(defense, torch.arange(1))
            assert attack.cost(defense).gradients == budget.steps * budget.eot_samples
            assert float(attack.epsilon) == 16 / 255
            if isinstance(attack, PGD):
                reach = attack.steps * float(attack.step_size) / float(attack.epsilon)
                assert reach == pytest.approx(2.5)
        config = benchmark.evaluation(budget)
        assert [config.attack, *(further.attack for further in config.attacks.values())] == list(
            made.values()
        )


def test_calls_of_an_attack_are_what_choosing_and_reporting_leave(
    benchmark: ModuleType, defense: Defense
) -> None:
    """Five network calls a purification; of a coarse one two."""
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    block = Block(images, torch.tensor([0, 1, 2]), torch.arange(3))
    for attack, calls in (
        (PGD(steps=3, eot_samples=2), 3 * 2 * 5),
        (APGD(steps=3, eot_samples=1), 4 * 5),
        (DiffHammer(steps=2, eot_samples=2, resubmissions=3), 2 * 2 * 5 + 2 * 3 * 5),
        (
            Progressive(steps=3, eot_samples=2, coarse=benchmark.COARSE, exact_steps=1),
            2 * (2 * 2 + 1 * 5),
        ),
    ):
        records = evaluate_block("d", defense, attack, block, Protocol(4, 3), 0).records
        clean, attacked = records[0], records[-1]
        assert clean.network_calls == 5 * (3 + 4)
        assert benchmark.attack_calls(attacked, clean.network_calls, 3) == calls


def recorded(benchmark: ModuleType, attacks: Mapping[str, tuple[int, NDArray[np.bool_]]]) -> Any:
    """A run of these attacks, by calls an image and which images (n,) are right on both draws."""

    def record(attack: str, sample: int, right: bool, calls: int, candidates: int) -> Record:
        return Record(
            "d", attack, sample, 1, [int(right)] * DRAWS, [3 * right] * candidates, 0,
            0.1, 0.1, None, calls, "Linf 0.1", [],
        )  # fmt: skip

    asked = 5 * (3 + DRAWS)
    records = [record("clean", sample, True, asked, 1) for sample in range(N)]
    records += [record("null", sample, True, 2 * asked, 2) for sample in range(N)]
    for name, (calls, right) in attacks.items():
        whole = calls + 5 * (2 * 3 + DRAWS)
        records += [record(name, k, bool(right[k]), whole, 3) for k in reversed(range(len(right)))]
    return RecordedRun("run", records, {"run": {"selection_draws": 3}}, finished=True)


def first(count: int, start: int = 0) -> NDArray[np.bool_]:
    """Of N images so many are right, from the `start` on."""
    places = np.arange(N)
    right: NDArray[np.bool_] = (places >= start) & (places < start + count)
    return right


@pytest.fixture
def runs(benchmark: ModuleType) -> dict[str, Any]:
    """The strongest is the dearest. As near to it in the mean are two: one leaves other images
    right, so that its difference is uncertain; one leaves nearly the same."""
    cheap = {"pgd_linf": (20, first(140)), "apgd": (20, first(104, start=200))}
    dear = {"pgd_linf": (200, first(100)), "diffhammer": (180, first(104))}
    return {"5x1": recorded(benchmark, cheap), "20x4": recorded(benchmark, dear)}


def test_the_recommended_budget_is_the_cheapest_that_is_near_with_certainty(
    benchmark: ModuleType, runs: dict[str, Any]
) -> None:
    cells = benchmark.read_cells(runs)
    strongest, enough = benchmark.strongest(cells), benchmark.recommended(cells)
    assert (strongest.attack, strongest.budget) == ("pgd", "20x4")
    assert (enough.attack, enough.budget, enough.calls) == ("diffhammer", "20x4", 180)
    alone = benchmark.read_cells({"5x1": runs["5x1"]})
    assert benchmark.recommended(alone) is benchmark.strongest(alone)


def test_what_is_recommended_is_told_in_gradients(
    benchmark: ModuleType, runs: dict[str, Any]
) -> None:
    """180 calls, where the 80 gradients of PGD take 200."""
    assert benchmark.recommendation(runs) == Recommended(
        "diffhammer", 20, 4, gradients=72, tried=80
    )


def test_the_plan_recommends_what_the_committed_records_say(benchmark: ModuleType) -> None:
    """Where this fails, copy what `python benchmarks/strength.py report` says."""
    runs = benchmark.committed()
    assert (benchmark.recommendation(runs) if runs else None) == RECOMMENDED


def test_the_worst_of_all_is_image_by_image(benchmark: ModuleType, runs: dict[str, Any]) -> None:
    """PGD leaves images 0 to 139 right and APGD 200 to 303: no image survives both."""
    (worst,) = [
        cell
        for cell in benchmark.read_cells({"5x1": runs["5x1"]})
        if cell.attack == benchmark.PER_SAMPLE
    ]
    assert worst.right.shape == (N, DRAWS) and not worst.right.any()
    assert worst.calls == 40


def test_the_table_marks_both(benchmark: ModuleType, runs: dict[str, Any]) -> None:
    lines = benchmark.table(runs).splitlines()
    rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines[4:]]
    marked = {tuple(row[:3]): row[-1] for row in rows if row[-1]}
    assert marked == {
        ("pgd", "20x4", "200"): "strongest",
        ("diffhammer", "20x4", "180"): "recommended",
    }
    assert lines[0] == f"**n = {N} validation images**"
    (uncertain,) = [row for row in rows if row[0] == "apgd"]
    assert uncertain[5].startswith("+1.0 [-")


def test_runs_on_other_images_are_refused(benchmark: ModuleType, runs: dict[str, Any]) -> None:
    fewer = recorded(benchmark, {"pgd": (20, first(10)[: N // 2])})
    with pytest.raises(InputError, match=r"10x2 has 200, 5x1 has 400: finish them"):
        benchmark.read_cells({"5x1": runs["5x1"], "10x2": fewer})


def test_the_figure_is_drawn(benchmark: ModuleType, runs: dict[str, Any], tmp_path: Path) -> None:
    benchmark.draw(runs, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert min(picture.size) > 300


def test_unknown_words_are_named(benchmark: ModuleType) -> None:
    with pytest.raises(InputError, match=r"7x7: allowed are 5x1, 10x2, .*, report, figure"):
        benchmark.main(["5x1", "7x7"])
