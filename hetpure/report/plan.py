"""What an evaluation will cost, for people: `python evaluate.py --plan`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from hetpure.evaluation.cost import GradientCheckPlan, Phase
from hetpure.gradients import Execution
from hetpure.memory import Footprint, gigabytes


@dataclass(frozen=True)
class RowPlan:
    """One defence's part of a plan: its phases, how it is computed, seconds of one network call for
    one row (forward, forward with backward), what it takes in memory, and the steps of the purifier
    that is attacked; the first look at its gradients, and its gradient checks by name."""

    phases: Sequence[Phase]
    execution: Execution
    call_seconds: tuple[float, float]
    footprint: Footprint
    steps: int
    gradients: Phase
    gradient_checks: Mapping[str, GradientCheckPlan]

    @property
    def seconds(self) -> float:
        """Of the whole defence, its gradient checks included."""
        return sum(phase.seconds for phase in self.all_phases)

    @property
    def all_phases(self) -> list[Phase]:
        """In order, gradients and gradient checks first."""
        named = [
            replace(plan.phase, name=f"{name.replace('_', ' ')} ({plan.phase.name})")
            for name, plan in self.gradient_checks.items()
        ]
        return [self.gradients, *named, *self.phases]

    @property
    def gradient_check_seconds(self) -> float:
        """Of the first gradients and of all gradient checks."""
        return self.gradients.seconds + sum(
            plan.phase.seconds for plan in self.gradient_checks.values()
        )

    @property
    def gradient_check_bytes(self) -> int:
        """What its gradient checks take in memory, their networks in float64 included."""
        return max(plan.memory for plan in self.gradient_checks.values())

    @property
    def gradient_bytes(self) -> int:
        """What one gradient takes in memory as it is computed."""
        taped = self.steps - self.execution.recomputed(self.steps)
        return self.footprint.need(self.execution.micro_batch or 1, self.steps, taped)


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_tables(rows: Mapping[str, RowPlan], title: str, budget: int) -> list[Table]:
    """Cost by phase, and memory by policy."""
    return [_costs(rows, title), _memory(rows, budget)]


def total_seconds(rows: Mapping[str, RowPlan]) -> float:
    """Of the whole evaluation."""
    return sum(row.seconds for row in rows.values())


def total_bytes(rows: Mapping[str, RowPlan]) -> int:
    """The most that is taken at once beside the networks."""
    return max(max(row.gradient_bytes, row.gradient_check_bytes) for row in rows.values())


def _costs(rows: Mapping[str, RowPlan], title: str) -> Table:
    note = (
        "network calls: forward calls of all images together, recomputed ones included. one call:"
        " for one image in its micro-batch, forward / forward with backward, timed here just now."
        " Other work on this machine makes the times longer."
    )
    table = Table(title=title, caption=note, caption_justify="left")
    table.add_column("defence", overflow="fold")
    for head in ("phase", "network calls", "differentiated", "one call (ms)", "time"):
        table.add_column(head, justify="right")
    for name, row in rows.items():
        forward, both = (f"{1000 * seconds:.2f}" for seconds in row.call_seconds)
        one = f"{forward} / {both}" if row.steps else "-"
        for place, phase in enumerate(row.all_phases):
            table.add_row(
                name if place == 0 else "",
                phase.name,
                f"{phase.network_calls:,}",
                f"{phase.differentiated:,}",
                one if phase is row.phases[0] else "",
                duration(phase.seconds),
            )
        calls = sum(phase.network_calls for phase in row.all_phases)
        table.add_row("", "all", f"{calls:,}", "", "", duration(row.seconds), end_section=True)
    table.add_row("total", "", "", "", "", duration(total_seconds(rows)))
    return table


def _memory(rows: Mapping[str, RowPlan], budget: int) -> Table:
    table = Table(
        title=f"Memory of a gradient; budget {gigabytes(budget)}",
        caption="rows: images x noise draws computed at once. gradient check: in float64, with a copy"
        " of the networks.",
        caption_justify="left",
    )
    table.add_column("defence", overflow="fold")
    for head in ("rows", "tape", "checkpoint", "chosen", "takes", "gradient_check"):
        table.add_column(head, justify="right")
    for name, row in rows.items():
        size = row.execution.micro_batch or 1

        def need(taped: int, row: RowPlan = row, size: int = size) -> str:
            return gigabytes(row.footprint.need(size, row.steps, taped))

        table.add_row(
            name,
            str(size),
            need(row.steps),
            need(0),
            row.execution.describe(row.steps),
            gigabytes(row.gradient_bytes),
            gigabytes(row.gradient_check_bytes),
        )
    return table
