"""The end of a run: what is measured once, results, report and figure."""

from typing import Any

from hetpure.evaluation.description import Run
from hetpure.evaluation.provenance import peak_memory
from hetpure.evaluation.run_results import write_results
from hetpure.evaluation.stopwatch import latency
from hetpure.evaluation.store import Store
from hetpure.report.figure import draw
from hetpure.report.outcomes import outcome_panels
from hetpure.report.report import FIGURE, report


def finish(run: Run, store: Store) -> dict[str, Any]:
    """Measures latency and memory, writes results, draws the figure, and reports. The results."""
    block = run.read(0)
    rows = {name: row for name, row in run.rows.items() if store.struck(name) is None}
    once = block.images[:1]
    store.put_measured(
        {
            "peak_memory_bytes": peak_memory(run.device),
            "latency": {name: latency(row.defense, once) for name, row in rows.items()},
        }
    )
    results = write_results(store)  # before the picture of them
    if rows:
        attacked = {  # the first cell is the clean images
            name: store.images(name, row.cells[1].name)[0].to(run.device)
            for name, row in rows.items()
        }
        panels = outcome_panels(
            {name: row.defense for name, row in rows.items()},
            block,
            attacked,
            run.images.class_names,
            run.config.seed,
        )
        draw(panels, store.path / FIGURE)
    report(store.path, results)
    return results
