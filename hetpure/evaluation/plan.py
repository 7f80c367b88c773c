"""What the whole of a run costs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hetpure.acceleration import unaccelerated
from hetpure.evaluation.cost import cell_cost
from hetpure.evaluation.description import Run
from hetpure.evaluation.extent import IMAGES, Extent
from hetpure.evaluation.protocol import Cell, Protocol
from hetpure.evaluation.row_check import allowance, checked_defenses, fitting_extents
from hetpure.evaluation.rows import Row
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.gradients import Execution
from hetpure.memory import Footprint


@dataclass(frozen=True)
class Phase:
    """A part of an evaluation: forward network calls of all its images together, recomputed ones
    included, how many of them are differentiated, and predicted seconds."""

    name: str
    network_calls: int
    differentiated: int
    seconds: float


@dataclass(frozen=True)
class RowPlan:
    """One defence's part of a plan: its phases, how it is computed, seconds of one network call for
    one image (forward, forward with backward), what it takes in memory, and the steps of the
    purifier that is attacked; predicted seconds of its gradient checks, the most that they may
    take, and the bytes of float64 that they need."""

    phases: Sequence[Phase]
    execution: Execution
    call_seconds: tuple[float, float]
    footprint: Footprint
    steps: int
    check_seconds: float
    most_check_seconds: float
    check_bytes: int

    @property
    def seconds(self) -> float:
        """Of the whole defence, its gradient checks included."""
        return self.check_seconds + sum(phase.seconds for phase in self.phases)

    @property
    def gradient_bytes(self) -> int:
        """What one gradient takes in memory as it is computed."""
        taped = self.steps - self.execution.recomputed(self.steps)
        return self.footprint.need(self.execution.micro_batch or 1, self.steps, taped)


def phases(
    row: Row,
    protocol: Protocol,
    cells: Iterable[tuple[Cell, int]],
    evaluated: Stopwatch,
    attacked: Stopwatch,
) -> list[Phase]:
    """The parts of a row's evaluation, each cell with its images; gradient checks left out."""
    parts = []
    for cell, images in cells:
        if not images:
            continue
        cost = cell_cost(row, cell, protocol)
        parts.append(
            Phase(
                cell.name,
                images * cost.network_calls,
                images * cost.differentiated,
                images * cost.seconds(evaluated, attacked),
            )
        )
    return parts


def check_seconds(extents: Iterable[Extent], clock: Stopwatch, allowed: float) -> float:
    """Predicted seconds of one gradient check on extents from the widest to the least: of the look
    at the least, and of the widest one that the allowed time has room for. The clock times passes
    in float32, in which extents count."""
    seconds = {extent: extent.work * clock.forward for extent in extents}
    *_, least = seconds
    widest = next((extent for extent in seconds if seconds[extent] <= allowed), least)
    return sum(seconds[extent] for extent in {least, widest})


def plan(run: Run) -> dict[str, RowPlan]:
    """By row. Every network is timed here, on the run's first block."""
    return {name: _plan(run, row) for name, row in run.rows.items()}


def _plan(run: Run, row: Row) -> RowPlan:
    images, config = run.read(0).images, run.config
    attacked = evaluated = Stopwatch(row.defense, images)
    if row.surrogate is not None:
        attacked = Stopwatch(row.surrogate, images)
    defense = row.attacked
    size = defense.execution.micro_batch or 1
    forward, both = attacked.step(size)
    checked = list(checked_defenses(row).values())
    extents = [fitting_extents(each, images, run.check_budget) for each in checked]
    clocks = [Stopwatch(unaccelerated(each), images[:IMAGES], repeats=1) for each in checked]
    allowed = allowance(row, attacked, config.attack)
    share = allowed / len(checked)
    return RowPlan(
        phases=phases(
            row,
            config.protocol,
            [*run.main_cells(row), *run.audit_slices(row)],
            evaluated,
            attacked,
        ),
        execution=defense.execution,
        call_seconds=(forward / size, both / size),
        footprint=defense.footprint(images),
        steps=len(defense.plan),
        check_seconds=sum(
            check_seconds(looks, clock, share) for looks, clock in zip(extents, clocks, strict=True)
        ),
        most_check_seconds=allowed,
        check_bytes=max(next(iter(memory.values())) for memory in extents),
    )
