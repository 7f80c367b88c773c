"""What an evaluation will cost, for people: `hetpure plan`."""

from collections.abc import Mapping

from hetpure.evaluation.plan import RowPlan
from hetpure.memory import gigabytes
from hetpure.report.sheet import Sheet


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def cost_sheet(rows: Mapping[str, RowPlan], title: str) -> Sheet:
    """Cost by phase."""
    note = (
        "network calls: forward calls of all images together, recomputed ones included. one call:"
        " for one image in its micro-batch, forward / forward with backward, timed here just now."
        " gradient checks: about; a row's may take the time of five steps of the attack on a block,"
        " or a minute where that is longer. Other work on this machine makes the times longer."
    )
    cells = []
    for name, row in rows.items():
        cells.append((name, "gradient checks", "", "", duration(row.check_seconds)))
        for phase in row.phases:
            counts = f"{phase.network_calls:,}", f"{phase.differentiated:,}"
            cells.append(("", phase.name, *counts, duration(phase.seconds)))
        calls = sum(phase.network_calls for phase in row.phases)
        forward, both = (f"{1000 * seconds:.2f}" for seconds in row.call_seconds)
        call = f"all; one call takes {forward} / {both} ms" if row.steps else "all"
        cells.append(("", call, f"{calls:,}", "", duration(row.seconds)))
    cells.append(("total", "", "", "", duration(sum(row.seconds for row in rows.values()))))
    heads = ("defence", "phase", "network calls", "differentiated", "time")
    return Sheet(title, heads, cells, note, left=2)


def memory_sheet(rows: Mapping[str, RowPlan], budget: int) -> Sheet:
    """Memory by policy."""
    cells = []
    for name, row in rows.items():
        size = row.execution.micro_batch or 1
        tape, checkpoint = (
            gigabytes(row.footprint.need(size, row.steps, taped)) for taped in (row.steps, 0)
        )
        chosen = row.execution.describe(row.steps), gigabytes(row.gradient_bytes)
        cells.append((name, str(size), tape, checkpoint, *chosen, gigabytes(row.check_bytes)))
    return Sheet(
        f"Memory of a gradient; budget {gigabytes(budget)}",
        ("defence", "at once", "tape", "checkpoint", "chosen", "takes", "gradient check"),
        cells,
        "at once: images x noise draws in one batch. gradient check: in float64, with a copy of the"
        " networks.",
    )
