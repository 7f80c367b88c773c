"""Distances of adversarial images from clean ones by noise level, beside what noise alone does."""

from matplotlib.figure import Figure

from hetpure.analysis.analysis import Summary
from hetpure.analysis.gap import ADVERSARIAL, BEFORE, DRAWS, FEATURES, PIXELS, PURIFIED, START
from hetpure.report.analyses.style import BLUE, GREEN, GREY, counted_images, spread, titled, wrapped

CURVES = (
    (START, ADVERSARIAL, GREEN, "o", "-"),
    (START, DRAWS, GREEN, "s", ":"),
    (PURIFIED, ADVERSARIAL, BLUE, "^", "-"),
    (PURIFIED, DRAWS, BLUE, "D", ":"),
)


def draw_gap(summary: Summary) -> Figure:
    """A row of panels a defence, pixels and features. The grey line is the distance before any
    noise; dotted curves are two draws of a clean image."""
    rows = summary.rows()
    figure = Figure(figsize=(8.4, 2.8 * len(rows) + 0.9), layout="constrained")
    axes = figure.subplots(len(rows), 2, squeeze=False)
    for of_row, row in zip(axes, rows, strict=True):
        for axis, space in zip(of_row, (PIXELS, FEATURES), strict=True):
            (before,) = summary.of(row, f"{BEFORE}, {ADVERSARIAL}", space)
            axis.axhline(before.value, color=GREY, linewidth=1.2, label=BEFORE)
            if before.low is not None and before.high is not None:
                axis.axhspan(before.low, before.high, color=GREY, alpha=0.2)
            for stage, pair, color, marker, style in CURVES:
                lines = summary.of(row, f"{stage}, {pair}", space)
                values, bars = spread(lines)
                axis.errorbar(
                    [line.at or 0.0 for line in lines],
                    values,
                    yerr=bars,
                    color=color,
                    marker=marker,
                    markersize=4,
                    linestyle=style,
                    elinewidth=0.8,
                    label=f"{stage}, {pair}",
                )
            axis.set(xlabel="noise level (fraction of T)", ylabel="L2 distance")
            if summary.of(row, f"{START}, {ADVERSARIAL}", space):
                axis.set_yscale("log", nonpositive="clip")
                axis.yaxis.set_major_formatter("{x:g}")
                axis.yaxis.set_minor_formatter("{x:g}")
                axis.tick_params(which="minor", labelsize=6)
            else:
                axis.set(xlabel="no purifier", xticks=[], ylim=(0, None))
            titled(axis, f"{wrapped(row, 40)}: {space}", 8)
            axis.grid(alpha=0.3)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    title = f"Distance of adversarial from clean images; {counted_images(summary.lines)}"
    figure.suptitle(title, fontsize=9)
    return figure
