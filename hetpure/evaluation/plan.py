"""What the whole of a run costs."""

from hetpure.evaluation.cost import RowPlan, phases
from hetpure.evaluation.description import Run
from hetpure.evaluation.row_check import allowance, checked_defenses, fitting_extents
from hetpure.evaluation.rows import Row
from hetpure.evaluation.stopwatch import Stopwatch


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
    return RowPlan(
        phases=phases(row, config.protocol, len(run.images), evaluated, attacked),
        execution=defense.execution,
        call_seconds=(forward / size, both / size),
        footprint=defense.footprint(images),
        steps=len(defense.plan),
        check_seconds=allowance(row, attacked, config.attack),
        check_bytes=max(
            next(iter(fitting_extents(checked, images, run.check_budget).values()))
            for checked in checked_defenses(row).values()
        ),
    )
