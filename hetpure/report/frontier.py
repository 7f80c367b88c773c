"""Clean against robust accuracy of many settings, as a table and a figure."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from hetpure.evaluation.description import Run
from hetpure.evaluation.search import Trial, frontier
from hetpure.evaluation.statistics import Estimate
from hetpure.numbers import counted
from hetpure.report.sheet import Sheet
from hetpure.report.table import interval


def frontier_page(
    run: Run, trials: Sequence[Trial], chosen: Trial, clean_weight: float
) -> tuple[Sheet, list[str]]:
    """The frontier of a search from the most accurate to the most robust, `*` is chosen; and notes
    on how it was made."""
    attack, protocol = run.config.attack, run.config.protocol
    title = f"{run.images.description}: {attack.describe()}; n = {chosen.clean.n}"
    names = {"classifier": run.config.classifier}
    names |= {f"denoiser {key}": name for key, name in run.config.denoisers.items()}
    notes = [
        f"{counted(len(trials), 'setting')} tried; the chosen one has the highest mean of clean and"
        f" robust accuracy, clean weighing {clean_weight:g}. These accuracies chose it: they"
        " flatter it.",
        f"{counted(protocol.report_draws, 'report draw')},"
        f" {counted(protocol.selection_draws, 'selection draw')}",
        *(f"weaker than full: {line}" for line in attack.weaker_than_full()),
        *(f"weaker than full: {line}" for line in protocol.weaker_than_full()),
        *(f"`{names.get(key, key)}@{digest[:12]}`" for key, digest in run.weights.items()),
    ]
    settings = [path.rpartition(".")[2] for path in chosen.settings]
    heads = ("", *settings, "clean", "robust", "attended", "network calls")
    rows = [
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
    note = "*: chosen. Accuracy in % with its 95% interval."
    return Sheet(title, heads, rows, note, left=len(heads)), notes


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
