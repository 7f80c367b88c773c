"""What an evaluation will cost, for people: `python evaluate.py --plan`."""

from collections.abc import Mapping

from rich.table import Table

from hetpure.evaluation.cost import RowPlan, total_seconds
from hetpure.memory import gigabytes


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def plan_tables(rows: Mapping[str, RowPlan], title: str, budget: int) -> list[Table]:
    """Cost by phase, and memory by policy."""
    return [_costs(rows, title), _memory(rows, budget)]


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
        call = f"{forward} / {both}" if row.steps else "-"
        at_most = f"at most {duration(row.check_seconds)}"
        table.add_row(name, "gradient checks", "", "", "", at_most)
        for phase in row.phases:
            table.add_row(
                "",
                phase.name,
                f"{phase.network_calls:,}",
                f"{phase.differentiated:,}",
                call if phase is row.phases[0] else "",
                duration(phase.seconds),
            )
        calls = sum(phase.network_calls for phase in row.phases)
        table.add_row("", "all", f"{calls:,}", "", "", duration(row.seconds), end_section=True)
    table.add_row("total", "", "", "", "", duration(total_seconds(rows)))
    return table


def _memory(rows: Mapping[str, RowPlan], budget: int) -> Table:
    table = Table(
        title=f"Memory of a gradient; budget {gigabytes(budget)}",
        caption="at once: images x noise draws in one batch. gradient check: in float64, with a"
        " copy of the networks.",
        caption_justify="left",
    )
    table.add_column("defence", overflow="fold")
    for head in ("at once", "tape", "checkpoint", "chosen", "takes", "gradient check"):
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
            gigabytes(row.check_bytes),
        )
    return table
