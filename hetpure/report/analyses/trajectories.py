"""Mean cosines of steps over all images, and beside them the paths from one image."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hetpure.analysis.analysis import Summary
from hetpure.analysis.trajectories import BETWEEN, EOT, KNOWN, SINGLE, TO_KNOWN, WITHIN
from hetpure.report.analyses.style import (
    BLUE,
    MARKERS,
    ORANGE,
    RED,
    counted_images,
    spread,
    titled,
    wrapped,
)

COLORS = {KNOWN: RED, EOT: BLUE, SINGLE: ORANGE}
MATRICES = (
    ("within", KNOWN),
    ("within", EOT),
    ("between", EOT),
    ("within", SINGLE),
    ("between", SINGLE),
)


def draw_trajectories(summary: Summary) -> Figure:
    """A row of panels a defence: mean cosines with intervals; the mean matrices of cosines between
    steps; the paths of the first image in their plane, the expected loss as height."""
    rows = summary.rows()
    figure = Figure(figsize=(16.5, 3.4 * len(rows) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(rows), 7, width_ratios=(1.7, 1, 1, 1, 1, 1, 1.9))
    for number, row in enumerate(rows):
        _means(figure.add_subplot(grid[number, 0]), summary, row)
        drawn = summary.drawn[row]
        for column, (matrices, kind) in enumerate(MATRICES, start=1):
            axis = figure.add_subplot(grid[number, column])
            if kind not in drawn[matrices]:
                axis.set_axis_off()
                continue
            end = len(drawn[matrices][kind]) + 0.5
            image = axis.imshow(
                np.array(drawn[matrices][kind], dtype=np.float64),  # NaN, and white, for None
                vmin=-1,
                vmax=1,
                cmap="RdBu_r",
                extent=(0.5, end, end, 0.5),
            )
            axis.locator_params(integer=True, nbins=5)
            words = "within a path" if matrices == "within" else "between paths"
            titled(axis, f"{kind}\n{words}", 7)
            axis.set_xlabel("step", fontsize=7)
            axis.tick_params(labelsize=6)
            if column == len(MATRICES):
                figure.colorbar(image, ax=axis, shrink=0.7, label="cosine")
        if drawn["picture"] is not None:
            axis = figure.add_subplot(grid[number, 6], projection="3d")
            _paths(axis, drawn["picture"])
    title = f"Cosines of an attack's steps; {counted_images(summary.lines)}; right: one image"
    figure.suptitle(title, fontsize=9)
    return figure


def _means(axis: Axes, summary: Summary, row: str) -> None:
    """Of each kind of path: within, between, to DW-both."""
    for number, kind in enumerate((KNOWN, EOT, SINGLE)):
        for place, quantity in enumerate((WITHIN, BETWEEN, TO_KNOWN)):
            lines = summary.of(row, quantity, kind)
            values, bars = spread(lines)
            axis.errorbar(
                [place + 0.18 * (number - 1)] * len(lines),
                values,
                yerr=bars,
                fmt=MARKERS[number],
                color=COLORS[kind],
                markersize=5,
                label=kind if place == 0 else None,
            )
    axis.axhline(0, color="black", linewidth=0.6)
    axis.set_xticks(range(3), ["within\na path", "between\npaths", "to\nDW-both"], fontsize=7)
    axis.set(ylabel="mean cosine", ylim=(-1.05, 1.05))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(fontsize=6)
    titled(axis, wrapped(row, 30), 8)


def _paths(axis: Any, picture: Mapping[str, Any]) -> None:
    """Iterates of the first image; a dot is the end of a path."""
    for kind, paths in picture["paths"].items():
        for number, path in enumerate(np.array(paths)):
            width, label = (2.0 if kind == KNOWN else 0.8), (kind if number == 0 else None)
            axis.plot(*path.T, color=COLORS[kind], linewidth=width, alpha=0.8, label=label)
            axis.scatter(*path[-1:].T, color=COLORS[kind], s=8)
    axis.set_box_aspect(None, zoom=0.85)  # room for the last axis' label
    share = f"{100 * picture['explained']:.0f}% of the variance"
    axis.set_xlabel("component 1", fontsize=6)
    axis.set_ylabel("component 2", fontsize=6)
    axis.set_zlabel("expected loss", fontsize=6)
    axis.tick_params(labelsize=5)
    titled(axis, f"one image: its plane holds {share}", 7)
