"""What analyses will cost, for people."""

from collections.abc import Sequence

from hetpure.numbers import counted
from hetpure.report.plan import duration
from hetpure.report.sheet import Sheet


def cost_sheet(costs: Sequence[tuple[str, str, int, float]], images: int) -> Sheet:
    """Analysis, row, network calls and seconds of what is still to be done, a line each."""
    rows = [
        (analysis, row, f"{calls:,}", duration(seconds) if seconds else "-")
        for analysis, row, calls, seconds in costs
    ]
    calls, seconds = sum(cost[2] for cost in costs), sum(cost[3] for cost in costs)
    rows.append(("total", "", f"{calls:,}", duration(seconds)))
    note = (
        "network calls: forward calls of all images together, recomputed ones included, at most;"
        " what is already there counts as none. time: of these calls alone, timed here just now, so"
        " it takes at least that; a dash: there are none, as without a purifier."
    )
    heads = ("analysis", "defence", "network calls", "time")
    return Sheet(f"{counted(images, 'image')} of each defence", heads, rows, note, left=2)
