"""The pictures of analyses: each a function of a summary."""

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

PICTURES: dict[str, Callable[[Summary], Figure]] = {
    "randomness": draw_randomness,
    "knowledge": draw_knowledge,
    "trajectories": draw_trajectories,
    "gap": draw_gap,
    "landscape": draw_landscape,
    "convergence": draw_convergence,
}


def draw(analysis: str, summary: Summary, path: Path) -> None:
    """Writes the picture of an analysis as PNG."""
    PICTURES[analysis](summary).savefig(path, dpi=120, format="png")
