"""Loss landscapes of all rows on the same axes and scale, as maps and as surfaces."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hetpure.analysis.analysis import Summary
from hetpure.analysis.landscape import CURVATURE
from hetpure.analysis.lines import in_words
from hetpure.report.analyses.style import titled, wrapped


def draw_landscape(summary: Summary) -> Figure:
    """A column a row of the table: the mean map over all images, and the same as a surface."""
    rows, axis_values = summary.rows(), np.array(summary.drawn["axis"])
    losses = {row: np.array(summary.drawn["losses"][row]) for row in rows}
    low = min(float(of_row.min()) for of_row in losses.values())
    high = max(float(of_row.max()) for of_row in losses.values())
    scale: dict[str, Any] = {
        "vmin": low,
        "vmax": high if high > low else low + 1,
        "cmap": "viridis",
    }
    figure = Figure(figsize=(3.6 * len(rows) + 1.2, 7.2), layout="constrained")
    maps = []
    across, along = np.meshgrid(axis_values, axis_values)
    for number, row in enumerate(rows, start=1):
        (line,) = summary.of(row, CURVATURE)
        axis = figure.add_subplot(2, len(rows), number)
        image = axis.pcolormesh(axis_values, axis_values, losses[row].T, shading="nearest", **scale)
        axis.plot(0, 0, marker="+", color="white", markersize=9)
        axis.set(xlabel="DW direction", ylabel="rest of the white box's", aspect="equal")
        titled(axis, f"{wrapped(row, 28)}\n{CURVATURE}: {in_words(line, digits=None)}", 8)
        maps.append(axis)
        surface: Any = figure.add_subplot(2, len(rows), len(rows) + number, projection="3d")
        surface.plot_surface(along, across, losses[row], linewidth=0, **scale)
        surface.set(zlim=(scale["vmin"], scale["vmax"]))
        surface.set_xlabel("DW direction", fontsize=7)
        surface.set_ylabel("rest", fontsize=7)
        surface.set_zlabel("expected loss", fontsize=7)
        surface.tick_params(labelsize=6)
        surface.locator_params(nbins=5)
    figure.colorbar(image, ax=maps, shrink=0.8, label="expected loss")
    counts = sorted({line.n for line in summary.lines})
    intervals = "no intervals" if counts[-1] == 1 else "[...]: 95% intervals"
    figure.suptitle(f"Mean loss landscape; n = {counts[-1]}; {intervals}", fontsize=9)
    return figure
