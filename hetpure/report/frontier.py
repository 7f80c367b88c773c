"""Clean against robust accuracy of many settings, as a table and a figure."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.table import Table

from hetpure.evaluation.frontier import Trial, frontier
from hetpure.evaluation.statistics import Estimate
from hetpure.report.table import interval


def frontier_rows(trials: Sequence[Trial], chosen: Trial) -> list[tuple[str, ...]]:
    """A head, then the frontier from the most accurate to the most robust; `*` is chosen."""
    settings = [path.rpartition(".")[2] for path in chosen.settings]
    head = ("", *settings, "clean", "robust", "attended", "network calls")
    body = [
        (
            "*" if trial == chosen else "",
            *(str(value) for value in trial.settings.values()),
            interval(trial.clean.as_dict()),
            interval(trial.robust.as_dict()),
            "-" if trial.coverage is None else f"{trial.coverage:.0%}",
            str(trial.network_calls),
        )
        for trial in frontier(trials)
    ]
    return [head, *body]


def frontier_table(trials: Sequence[Trial], chosen: Trial, title: str) -> Table:
    """The frontier for the terminal."""
    head, *body = frontier_rows(trials, chosen)
    table = Table(title=title, caption="*: chosen. Accuracy in % with its 95% interval.")
    for column in head:
        table.add_column(column)
    for row in body:
        table.add_row(*row)
    return table


def frontier_markdown(
    trials: Sequence[Trial], chosen: Trial, title: str, notes: Sequence[str]
) -> str:
    """The same for Markdown, with notes below it."""
    head, *body = frontier_rows(trials, chosen)
    lines = [f"**{title}**", "", _line(head), "|" + " --- |" * len(head), *map(_line, body)]
    lines += ["", "*: chosen. Accuracy in % with its 95% interval.", ""]
    return "\n".join([*lines, *(f"- {note}" for note in notes)]) + "\n"


def draw_frontier(trials: Sequence[Trial], chosen: Trial, title: str, path: Path) -> None:
    """Writes a PNG: every trial, those on the frontier with intervals, the chosen one marked."""
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axis = figure.subplots()
    clean, robust = _points(trials)
    axis.scatter(clean, robust, s=18, color="#999999", label="tried")
    best = frontier(trials)
    clean, robust = _points(best)
    axis.errorbar(
        clean,
        robust,
        xerr=_spread([trial.clean for trial in best]),
        yerr=_spread([trial.robust for trial in best]),
        marker="o",
        color="#1b6ca8",
        elinewidth=0.8,
        label="frontier, 95% intervals",
    )
    clean, robust = _points([chosen])
    axis.scatter(
        clean, robust, s=160, facecolors="none", edgecolors="#c0392b", linewidths=2, label="chosen"
    )
    axis.set_xlabel("clean accuracy (%)")
    axis.set_ylabel("robust accuracy (%)")
    axis.set_title(textwrap.fill(title, 80), fontsize=9)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120)


def _points(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    return (
        [100 * trial.clean.accuracy for trial in trials],
        [100 * trial.robust.accuracy for trial in trials],
    )


def _spread(estimates: Sequence[Estimate]) -> list[list[float]]:
    return [
        [100 * (e.accuracy - e.low) for e in estimates],
        [100 * (e.high - e.accuracy) for e in estimates],
    ]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
