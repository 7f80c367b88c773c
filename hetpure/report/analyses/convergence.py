"""How accuracy and loss go on with the attack's budget, and what becomes of classes and masks."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hetpure.analysis.analysis import Summary
from hetpure.analysis.convergence import ACCURACY, CLASS, EOT, LOSS, MASK, RADIUS, RESTARTS, STEPS
from hetpure.analysis.lines import Line
from hetpure.report.analyses.style import CYCLE, MARKERS, counted_images, spread, titled

PANELS = (STEPS, EOT, RESTARTS, RADIUS)


def draw_convergence(summary: Summary) -> Figure:
    """Above accuracies, below losses, a curve a row of the table; then classes and masks. A little
    shift keeps rows apart."""
    figure = Figure(figsize=(15, 6.8), layout="constrained")
    axes = figure.subplots(2, 5)
    for column, varied in enumerate(PANELS):
        for of_kind, quantity, scale, name in zip(
            axes, (ACCURACY, LOSS), (100.0, 1.0), ("accuracy (%)", "expected loss"), strict=True
        ):
            axis = of_kind[column]
            for number, row in enumerate(summary.rows()):
                _curve(axis, summary.of(row, quantity, varied), number, row, scale)
            axis.set(xlabel=varied, ylabel=name)
            if varied != RADIUS:
                axis.locator_params(axis="x", integer=True)
            if quantity == ACCURACY:
                axis.set_ylim(-3, 103)
    by_class, masks = axes[0][4], axes[1][4]
    for number, row in enumerate(summary.rows()):
        _curve(by_class, summary.of(row, CLASS), number, row, 100.0, joined=False)
        _curve(masks, summary.of(row, MASK, STEPS), number, row, 1.0)
    by_class.set(xlabel="class", ylabel="accuracy (%)", ylim=(-3, 103))
    masks.set(xlabel=STEPS, ylabel=MASK, ylim=(-0.03, 1.03))
    if not masks.lines:
        titled(masks, "no row has a mask", 8)
    for axis in (by_class, masks):
        axis.locator_params(axis="x", integer=True)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"The attack's budget; {counted_images(summary.lines)}", fontsize=9)
    return figure


def _curve(
    axis: Axes, lines: Sequence[Line], number: int, row: str, scale: float, *, joined: bool = True
) -> None:
    if not lines:
        return
    places = [line.at or 0.0 for line in lines]
    shift = 0.012 * (max(places) - min(places) or 1.0) * number
    values, bars = spread(lines, scale)
    axis.errorbar(
        [place + shift for place in places],
        values,
        yerr=bars,
        color=CYCLE[number % len(CYCLE)],
        marker=MARKERS[number % len(MARKERS)],
        markersize=4,
        linestyle="-" if joined else "none",
        elinewidth=0.8,
        label=row,
    )
