"""How much an attack finds for its network calls, and how many are enough.

    python benchmarks/strength.py                       # all budgets, the cheapest first: hours
    python benchmarks/strength.py 5x1 10x2              # these budgets
    python benchmarks/strength.py report                # the table of what is there
    python benchmarks/strength.py figure                # docs/experiments/strength.png

Started again it goes on where it was stopped. A budget is iterations x noise draws. Each is an
evaluation of its own, in runs/strength, of one purifier on the packaged validation images: PGD,
APGD, DiffHammer and progressive gradients, all with as many gradients. The figure is made from the
committed records: those of budget 5x1 are strength_5x1.records.jsonl.xz.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from committed import EXPERIMENTS, has_records, recorded_run
from matplotlib.figure import Figure
from numpy.typing import NDArray

from datamodules.fashion_mnist import read_packaged
from hetpure.acceleration import Acceleration
from hetpure.attacks import APGD, PGD, Attack, DiffHammer, Progressive
from hetpure.errors import InputError
from hetpure.evaluation.cells import AttackConfig
from hetpure.evaluation.description import Evaluation, Images, Networks, describe
from hetpure.evaluation.facts import run_record
from hetpure.evaluation.protocol import CLEAN, NULL, Protocol, Record
from hetpure.evaluation.reading import RecordedRun, read_run
from hetpure.evaluation.results import by_attack, draws_right, worst
from hetpure.evaluation.rows import DefenseConfig
from hetpure.evaluation.run_results import write_results
from hetpure.evaluation.statistics import (
    Estimate,
    in_points,
    mean_accuracy,
    paired_difference,
    wilson,
)
from hetpure.evaluation.store import RUN, Store
from hetpure.evaluation.worker import evaluate
from hetpure.numbers import Number
from hetpure.presets import FASHION_MNIST_CLASSES
from hetpure.program import run
from hetpure.purifiers import UniformPurifier
from hetpure.report.recommended import Recommended
from hetpure.report.sheet import Sheet
from hetpure.report.table import interval

ROOT = Path(__file__).parent.parent
RUNS = ROOT / "runs" / "strength"
FIGURE = EXPERIMENTS / "strength.png"
NAME = "strength_"  # of committed records, before the budget

RADIUS = 16  # of 255 pixel levels, Linf
PURIFIER = UniformPurifier(strength=0.1, steps=50)  # 5 network calls
COARSE = UniformPurifier(strength=0.1, steps=20)  # 2
PROTOCOL = Protocol(report_draws=10, selection_draws=5)
BLOCK = 50  # images
NEAR = 0.04  # an accuracy so near to that of the strongest attack is as good
PER_SAMPLE = "all of them"


@dataclass(frozen=True)
class Look:
    """How the figure shows an attack; by what its calls are multiplied there."""

    label: str
    colour: str  # of Okabe & Ito, who are told apart by the colour-blind
    marker: str
    moved: float = 1.0


LOOKS = {
    "pgd": Look("PGD", "#0072b2", "o", 0.94),
    "apgd": Look("APGD", "#e69f00", "s"),
    "diffhammer": Look("DiffHammer", "#009e73", "^", 1.06),
    "progressive": Look("progressive gradients", "#cc79a7", "D"),
    PER_SAMPLE: Look("all of them, the worst by image", "#555555", "x"),
}


class Budget(NamedTuple):
    """Iterations, and noise draws of each: as many gradients as their product."""

    steps: int
    eot_samples: int

    def __str__(self) -> str:
        return f"{self.steps}x{self.eot_samples}"


BUDGETS = {str(b): b for b in (Budget(5, 1), Budget(10, 2), Budget(20, 4), Budget(40, 5))}
BUDGETS["100x10"] = Budget(100, 10)


def attacks(budget: Budget) -> dict[str, Attack]:
    """By name, each with the losses that it has by default. A step of fixed size is 2.5 radii over
    the number of steps (Madry et al. 2018). APGD asks for one iterate more than it takes steps. An
    EM needs two draws."""
    steps, draws = budget
    ball: dict[str, Any] = {"epsilon": Number(f"{RADIUS}/255"), "eot_samples": draws}
    size: dict[str, Any] = {"step_size": Number(f"{5 * RADIUS}/{2 * 255 * steps}")}
    exact = -(-steps // 2)
    made: dict[str, Attack] = {
        "pgd": PGD(**ball, **size, steps=steps),
        "apgd": APGD(**ball, steps=steps - 1),
        "progressive": Progressive(**ball, **size, steps=steps, coarse=COARSE, exact_steps=exact),
    }
    if draws > 1:
        made["diffhammer"] = DiffHammer(**ball, **size, steps=steps)
    return made


def evaluation(budget: Budget) -> Evaluation:
    """All attacks of one budget on the purifier, in bfloat16, on the packaged networks."""
    main, *others = attacks(budget).items()
    return Evaluation(
        classifier="fashion_mnist_wrn",
        denoisers={"ddpm": "fashion_mnist_ddpm"},
        defenses={"uniform t=100": DefenseConfig(purifier=PURIFIER, denoiser="ddpm")},
        attack=main[1],
        attacks={name: AttackConfig(attack) for name, attack in others},
        protocol=PROTOCOL,
        audit=None,
        acceleration=Acceleration(precision="bfloat16"),
    )


def validation_images(count: int | None = None) -> Images:
    """The first so many packaged validation images."""
    data = read_packaged("validation").take(slice(count))
    return Images.of(
        data.images.float() / 255,
        data.labels,
        FASHION_MNIST_CLASSES,
        data.samples,
        "Fashion-MNIST validation images (packaged subset)",
    )


def measure(config: Evaluation, images: Images, store: Store) -> None:
    """Computes what the store has not yet."""
    networks, device = Networks.load(config), torch.device("cpu")
    described = describe(config, networks, images, store, device=device, largest=BLOCK)
    with store.locked():
        store.begin(run_record(described))
        evaluate(described, store)
    write_results(store)


@dataclass(frozen=True)
class Cell:
    """What an attack with a budget left of the images.

    Args:
        attack: its name.
        budget: iterations x draws.
        calls: forward network calls of the attack for one image, those of choosing and reporting
            left out.
        samples: ids of the images, ascending.
        right: whether each is right on each report draw (n, draws).
    """

    attack: str
    budget: str
    calls: float
    samples: tuple[int, ...]
    right: NDArray[np.bool_]

    @property
    def accuracy(self) -> Estimate:
        """Counted as `single`."""
        return mean_accuracy(self.right)

    @property
    def worst(self) -> Estimate:
        """Right on all report draws."""
        return wilson(int(self.right.all(1).sum()), len(self.right), self.right.shape[1])


def attack_calls(record: Record, of_clean: int, selection_draws: int) -> int:
    """The forward network calls that an attack spent on one image: what its record counts, without
    the draws that choose and report. The clean image's are of one candidate."""
    reports, candidates = len(record.predictions), len(record.selection) - 1
    purification = of_clean // (selection_draws + reports)
    return record.network_calls - purification * (candidates * selection_draws + reports)


def cells_of(budget: str, measured: RecordedRun) -> list[Cell]:
    """Those of one run, and what is left by the worst of its attacks, image by image."""
    by_name = by_attack(measured.records)
    clean = {record.sample: record.network_calls for record in by_name.pop(CLEAN)}
    by_name.pop(NULL, None)
    draws, cells = measured.about["run"]["selection_draws"], []

    def cell(name: str, records: Sequence[Record], calls: float) -> Cell:
        ordered = sorted(records, key=lambda record: record.sample)
        samples = tuple(record.sample for record in ordered)
        return Cell(name, budget, calls, samples, draws_right(ordered))

    for name, records in by_name.items():
        spent = [attack_calls(r, clean[r.sample], draws) for r in records]
        cells.append(cell(name.partition("_")[0], records, float(np.mean(spent))))
    total = sum(each.calls for each in cells)
    return [*cells, cell(PER_SAMPLE, worst(by_name), total)]


def read_cells(runs: Mapping[str, RecordedRun]) -> list[Cell]:
    """Of all runs by budget. InputError where one has other images than the first: nothing could be
    paired."""
    cells = [cell for budget, measured in runs.items() for cell in cells_of(budget, measured)]
    for cell in cells:
        if cell.samples != cells[0].samples:
            here, there = (f"{c.budget} has {len(c.samples)}" for c in (cell, cells[0]))
            raise InputError(f"not all runs have the same images: {here}, {there}: finish them")
    return cells


def strongest(cells: Sequence[Cell]) -> Cell:
    """The one attack with one budget that leaves the fewest images right."""
    return min(single(cells), key=lambda cell: cell.right.mean())


def single(cells: Sequence[Cell]) -> list[Cell]:
    """Those of one attack each, the cheapest first."""
    alone = [cell for cell in cells if cell.attack != PER_SAMPLE]
    return sorted(alone, key=lambda cell: cell.calls)


def recommended(cells: Sequence[Cell]) -> Cell:
    """The cheapest that is within `NEAR` of the strongest with certainty: the upper end of the 95%
    interval of the difference, paired by image, is not above it. The strongest was chosen on these
    images, which flatters it: it is hard to be near to."""
    best = strongest(cells)
    return next(
        cell
        for cell in single(cells)
        if cell is best or paired_difference(cell.right, best.right).high <= NEAR
    )


def recommendation(runs: Mapping[str, RecordedRun]) -> Recommended:
    """The recommended cell, as `hetpure plan` knows it. PGD of the same budget has the calls of as
    many gradients as the budget says."""
    cells = read_cells(runs)
    enough = recommended(cells)
    budget = BUDGETS[enough.budget]
    (pgd,) = (c for c in cells if (c.attack, c.budget) == ("pgd", enough.budget))
    gradients = round(budget.steps * budget.eot_samples * enough.calls / pgd.calls)
    tried = max(BUDGETS[name].steps * BUDGETS[name].eot_samples for name in runs)
    return Recommended(enough.attack, *budget, gradients, tried)


def table(runs: Mapping[str, RecordedRun]) -> str:
    """A row a cell; the strongest and the recommended one are marked."""
    cells = read_cells(runs)
    best, enough = strongest(cells), recommended(cells)
    n, draws = best.right.shape
    rows = []
    for cell in cells:
        difference = "-"
        if cell is not best and cell.attack != PER_SAMPLE:
            difference = in_points(paired_difference(cell.right, best.right).as_dict())
        marks = {"strongest": cell is best, "recommended": cell is enough}
        rows.append(
            (
                cell.attack,
                cell.budget,
                f"{cell.calls:,.0f}",
                interval(cell.accuracy.as_dict()),
                interval(cell.worst.as_dict()),
                difference,
                ", ".join(mark for mark, here in marks.items() if here),
            )
        )
    heads = ("attack", "budget", "calls", "single", f"worst of {draws}", "more than strongest", "")
    return Sheet(f"n = {n} validation images", heads, rows, left=2).markdown()


def draw(runs: Mapping[str, RecordedRun], path: Path) -> None:
    """Accuracy against the attack's network calls, a line an attack. Attacks with equal calls are
    moved apart by a few percent of them, so that their intervals can be seen."""
    cells = read_cells(runs)
    best, enough = strongest(cells), recommended(cells)
    figure = Figure(figsize=(6.8, 4.6), layout="constrained")
    axis = figure.subplots()
    axis.axhline(100 * best.right.mean(), color="#999999", linewidth=0.8, linestyle="--")
    for name, look in LOOKS.items():
        of_attack = [cell for cell in cells if cell.attack == name]
        if not of_attack:
            continue
        places = [look.moved * cell.calls for cell in of_attack]
        values = [cell.accuracy for cell in of_attack]
        middle, low, high = 100 * np.array([(e.accuracy, e.low, e.high) for e in values]).T
        axis.errorbar(
            places,
            middle,
            yerr=[middle - low, high - middle],
            label=look.label,
            color=look.colour,
            marker=look.marker,
            markersize=5,
            linewidth=1.2,
            elinewidth=0.8,
            capsize=2,
        )
        if enough in of_attack:
            where = of_attack.index(enough)
            rim = {"facecolors": "none", "edgecolors": "#d55e00", "linewidths": 1.8, "zorder": 3}
            axis.scatter(places[where], middle[where], s=170, label="recommended", **rim)
    ticks = sorted({round(cell.calls) for cell in cells if cell.attack == "pgd"})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.set_xlabel("network calls of the attack, an image")
    axis.set_ylabel("robust accuracy, single (%)")
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120, format="png")


def finished() -> dict[str, RecordedRun]:
    """The runs that came to their end, by budget."""
    runs = {name: RUNS / name for name in BUDGETS}
    read = {name: read_run(path) for name, path in runs.items() if (path / RUN).exists()}
    return {name: found for name, found in read.items() if found.finished}


def committed() -> dict[str, RecordedRun]:
    """Those whose records are committed, by budget."""
    return recorded([NAME + name for name in BUDGETS if has_records(NAME + name)])


def recorded(names: Sequence[str]) -> dict[str, RecordedRun]:
    """By budget, the committed records of these names."""
    return {name.removeprefix(NAME): recorded_run(name) for name in names}


def main(arguments: list[str]) -> None:
    """Measures what is asked for, or shows what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    known = (*BUDGETS, "report", "figure")
    parser.add_argument("what", nargs="*", default=list(BUDGETS), metavar="WHAT", help=str(known))
    what = parser.parse_args(arguments).what
    if unknown := set(what) - set(known):
        raise InputError(f"{', '.join(sorted(unknown))}: allowed are {', '.join(known)}")
    for name, budget in BUDGETS.items():
        if name in what:
            print(f"{name}: {RUNS / name}", flush=True)
            measure(evaluation(budget), validation_images(), Store(RUNS / name))
    if "figure" in what:
        if not (kept := committed()):
            raise InputError("no records of a budget are committed: there is nothing to draw")
        draw(kept, FIGURE)
        return
    done = finished()
    print(f"{table(done)}\n\n{recommendation(done)}" if done else "no budget is finished")


if __name__ == "__main__":
    run(main, sys.argv[1:])
