"""The end of a run: what is measured once, results, pages and pictures."""

import textwrap
from collections.abc import Sequence
from typing import Any

import torch

from hetpure.errors import only_warned
from hetpure.evaluation.description import Run
from hetpure.evaluation.provenance import peak_memory
from hetpure.evaluation.run_results import Contents, write_results
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.evaluation.store import Store
from hetpure.noise import Noise, Stream
from hetpure.report.figure import Panel, draw
from hetpure.report.finding import by_defense
from hetpure.report.gallery import choose
from hetpure.report.measured import measure
from hetpure.report.report import FIGURE, report, write_markdown

ROWS = 6  # of the figure


def finish(run: Run, store: Store) -> dict[str, Any]:
    """Measures latency and memory, writes results and pages, draws the pictures, and shows the
    tables. The results."""
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
    results = write_results(store)
    write_markdown(store.path, results)  # before the pictures, which may fail
    if rows:
        with only_warned(FIGURE):
            draw(_outcome_panels(run, store, list(rows)), store.path / FIGURE)
    with only_warned("the gallery"):
        records = Contents.read(store).records(complete=True)
        measure(run, store, choose(by_defense(records)))
    report(store.path, results)
    return results


@torch.no_grad()
def _outcome_panels(run: Run, store: Store, rows: Sequence[str]) -> list[Panel]:
    """The first images clean, then for each of these rows that has a purifier: adversarial under
    the main attack, mask, purified."""
    block, names = run.read(0).first(ROWS), run.images.class_names
    noise = Noise.of(run.config.seed, Stream.REPORT).on(block.samples)

    def named(classes: torch.Tensor) -> list[str]:
        return [names[k] for k in classes.tolist()]

    panels = [Panel("clean", block.images, named(block.labels))]
    for name in rows:
        row = run.rows[name]
        defense, label = row.defense, textwrap.fill(name, 16)
        if not defense.stochastic:
            continue
        saved, _ = store.images(name, row.cells[1].name)  # the first cell is the clean images
        adversarial = saved[: len(block.images)].to(run.device)
        answers = named(defense.classifier(adversarial).argmax(1))
        panels.append(Panel(f"{label}\nadversarial", adversarial, answers))
        mask = defense.mask(adversarial, block.samples)
        if mask is not None:
            shares = [f"{100 * share:.0f}%" for share in mask.flatten(1).mean(1).tolist()]
            panels.append(Panel(f"{label}\nmask", mask, shares))
        purified = defense.purify(adversarial, noise, mask)
        answers = named(defense.classifier(purified).argmax(1))
        panels.append(Panel(f"{label}\npurified", purified, answers))
    return panels
