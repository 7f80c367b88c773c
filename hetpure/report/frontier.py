"""Clean against robust accuracy of many settings, as a table and a figure."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hetpure.evaluation.description import Run
from hetpure.evaluation.search import Trial, frontier
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
    axis = figure.subplots()
    (clean, _), (robust, _) = _percent(trials)
    axis.scatter(clean, robust, s=18, color="#999999", label="tried")
    (clean, clean_spread), (robust, robust_spread) = _percent(frontier(trials))
    axis.errorbar(
        clean,
        robust,
        xerr=clean_spread,
        yerr=robust_spread,
        marker="o",
        color="#1b6ca8",
        elinewidth=0.8,
        label="frontier, 95% intervals",
    )
    (clean, _), (robust, _) = _percent([chosen])
    axis.scatter(
        clean, robust, s=160, facecolors="none", edgecolors="#c0392b", linewidths=2, label="chosen"
    )
    axis.set_xlabel("clean accuracy (%)")
    axis.set_ylabel("robust accuracy (%)")
    axis.set_title(textwrap.fill(title, 80), fontsize=9, parse_math=False)
    axis.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=120, format="png")


def _percent(trials: Sequence[Trial]) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Clean and robust accuracies (n,) with how far their intervals reach down and up (2, n)."""
    axes = [[trial.clean for trial in trials], [trial.robust for trial in trials]]
    parts = [100 * np.array([[e.accuracy, e.low, e.high] for e in axis]).T for axis in axes]
    return [(middle, np.stack([middle - low, high - middle])) for middle, low, high in parts]
