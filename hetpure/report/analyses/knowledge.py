"""Accuracy against network calls: a panel a row and sampler, a curve for what is known."""

from matplotlib.figure import Figure

from hetpure.analysis.analysis import Summary
from hetpure.analysis.knowledge import KNOWN
from hetpure.evaluation.protocol import CLEAN
from hetpure.report.analyses.style import (
    CYCLE,
    GREY,
    MARKERS,
    counted_images,
    spread,
    titled,
    wrapped,
)

COLORS = (GREY, *CYCLE)


def draw_knowledge(summary: Summary) -> Figure:
    """Points of one number of calls stand a little beside each other, so that none hides another;
    curves that coincide everywhere can be told by their markers."""
    rows = summary.rows()
    samplers = {
        row: list(dict.fromkeys(line.series for line in summary.lines if line.row == row))
        for row in rows
    }
    columns = max(len(names) for names in samplers.values())
    size = (max(3.2 * columns, 5.0), 2.8 * len(rows) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False, sharey=True)
    for of_row, row in zip(axes, rows, strict=True):
        for axis in of_row[len(samplers[row]) :]:
            axis.set_axis_off()
        for axis, sampler in zip(of_row, samplers[row], strict=False):
            for number, setting in enumerate((CLEAN, *KNOWN)):
                lines = summary.of(row, setting, sampler)
                values, bars = spread(lines, 100)
                calls = [line.at or 0.0 for line in lines]
                shift = 0.02 * (max(calls) - min(calls) or 1.0) * (number - 2)
                axis.errorbar(
                    [at + shift for at in calls],
                    values,
                    yerr=bars,
                    marker=MARKERS[number],
                    markersize=4,
                    elinewidth=0.8,
                    linewidth=1.2,
                    color=COLORS[number],
                    label=setting,
                )
            if len(set(calls)) == 1:
                axis.set_xlim(calls[0] - 0.5, calls[0] + 0.5)
            axis.set_xticks(calls, [f"{at:g}" for at in calls])
            axis.set(xlabel="network calls of one purification", ylim=(-3, 103))
            titled(axis, f"{wrapped(row, 40)}\n{sampler}", 8)
            axis.grid(alpha=0.3)
        of_row[0].set_ylabel("accuracy (%)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    figure.suptitle(f"What the attacker knows; {counted_images(summary.lines)}", fontsize=9)
    return figure
