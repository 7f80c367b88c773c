"""The end of a run: what is measured once, results, report and figure."""

from typing import Any

from hetpure.evaluation.description import Run
from hetpure.evaluation.provenance import peak_memory
from hetpure.evaluation.run_results import write_results
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.evaluation.store import Store
from hetpure.report.figure import draw
from hetpure.report.outcomes import outcome_panels
from hetpure.report.report import FIGURE, report


def finish(run: Run, store: Store) -> dict[str, Any]:
    """Measures latency and memory, writes results, draws the figure, and reports. The results."""
    first = run.read(0).images[:1]
    rows = {name: row for name, row in run.rows.items() if store.struck(name) is None}
    store.put_measured(
        {
            "peak_memory_bytes": peak_memory(run.device),
            "latency": {
                name: Stopwatch(row.defense, first, repeats=1).latency()
                for name, row in rows.items()
            },
        }
    )
    results = write_results(store)  # before the picture of them
    if rows:
        draw(outcome_panels(run, store, list(rows)), store.path / FIGURE)
    report(store.path, results)
    return results
