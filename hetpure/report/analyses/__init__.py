"""The pictures of analyses: each a function of a summary."""

import textwrap
from collections.abc import Callable
from pathlib import Path

from matplotlib.figure import Figure

from hetpure.analysis.analysis import Summary
from hetpure.report.analyses.convergence import draw_convergence
from hetpure.report.analyses.gap import draw_gap
from hetpure.report.analyses.knowledge import draw_knowledge
from hetpure.report.analyses.landscape import draw_landscape
from hetpure.report.analyses.randomness import draw_randomness
from hetpure.report.analyses.trajectories import draw_trajectories

LETTERS = 17  # of the small print, to an inch
PICTURES: dict[str, Callable[[Summary], Figure]] = {
    "randomness": draw_randomness,
    "knowledge": draw_knowledge,
    "trajectories": draw_trajectories,
    "gap": draw_gap,
    "landscape": draw_landscape,
    "convergence": draw_convergence,
}


def draw(analysis: str, summary: Summary, path: Path, about: str = "") -> None:
    """Writes the picture of an analysis as PNG; below it stands what attack it is about."""
    figure = PICTURES[analysis](summary)
    width = round(figure.get_figwidth() * LETTERS)
    figure.supxlabel(textwrap.fill(about, width), fontsize=7, parse_math=False)
    figure.savefig(path, dpi=120, format="png")
