"""One stacked bar a defence: what of its robustness is noise."""

from matplotlib.figure import Figure

from hetpure.analysis.analysis import Summary
from hetpure.analysis.lines import in_words
from hetpure.analysis.randomness import BOTH, GRADIENT, MORE, REPORT, WHITE
from hetpure.evaluation.protocol import CLEAN
from hetpure.report.analyses.style import (
    BLUE,
    GREY,
    ORANGE,
    SKY,
    counted_images,
    spread,
    titled,
    wrapped,
)

LEGIBLE = 6  # points that a number needs


def draw_randomness(summary: Summary) -> Figure:
    """From below: what is left under DW-both, report noise, gradient noise. Right of the bar the
    accuracies that they are differences of. A share below 0, or too small for its number, is a
    line of text above the bar."""
    rows = summary.rows()
    figure = Figure(figsize=(max(6.6, 1.6 * len(rows) + 1.5), 5.0), layout="constrained")
    axis = figure.subplots()
    accuracies = {
        name: [summary.of(row, name)[0] for row in rows] for name in (CLEAN, WHITE, MORE, BOTH)
    }
    shares = {name: [summary.of(row, name)[0] for row in rows] for name in (GRADIENT, REPORT)}
    bottom, above = [0.0] * len(rows), ["" for _ in rows]
    parts = (
        ("left", accuracies[BOTH], BLUE),
        (REPORT, shares[REPORT], SKY),
        (GRADIENT, shares[GRADIENT], ORANGE),
    )
    for name, lines, color in parts:
        heights = [100 * max(line.value, 0.0) for line in lines]
        axis.bar(range(len(rows)), heights, 0.55, bottom=bottom, color=color, label=name)
        for place, (line, base, height) in enumerate(zip(lines, bottom, heights, strict=True)):
            words = in_words(line, 100, 0)
            if height < LEGIBLE:
                above[place] += f"{name} {words}\n"
                continue
            ink, middle = ("white" if color == BLUE else "black"), base + height / 2
            axis.text(place, middle, words, ha="center", va="center", fontsize=7, color=ink)
        bottom = [base + height for base, height in zip(bottom, heights, strict=True)]
    for place, (words, top) in enumerate(zip(above, bottom, strict=True)):
        axis.text(place, top + 1, words.rstrip(), ha="center", va="bottom", fontsize=7)
    for shift, name, marker in zip((-0.36, 0.36, 0.42, 0.48), accuracies, "o^sD", strict=True):
        values, bars = spread(accuracies[name], 100)
        axis.errorbar(
            [place + shift for place in range(len(rows))],
            values,
            yerr=bars,
            fmt=marker,
            markersize=4,
            color=GREY if name == CLEAN else "black",
            elinewidth=0.8,
            label=name,
        )
    axis.set_xticks(range(len(rows)), [wrapped(row) for row in rows], fontsize=8)
    axis.set(ylabel="accuracy (%)", ylim=(0, 105))
    titled(axis, f"What of the white box's robustness is noise\n{counted_images(summary.lines)}")
    axis.grid(axis="y", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    return figure
