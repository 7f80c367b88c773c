"""The stochasticity laboratory: what an attacker's knowledge, its draws and its directions do to a
defence. An analysis is a function of a row, a block of images and settings that gives records; its
summary is a function of the records, and its picture (`hetpure.report.analyses`) of the summary."""

from hetpure.analysis.analysis import Analysis
from hetpure.analysis.convergence import Convergence
from hetpure.analysis.gap import Gap
from hetpure.analysis.knowledge import Knowledge
from hetpure.analysis.landscape import Landscape
from hetpure.analysis.randomness import Randomness
from hetpure.analysis.trajectories import Trajectories

ANALYSES: dict[str, type[Analysis]] = {
    kind.name: kind for kind in (Randomness, Knowledge, Trajectories, Gap, Landscape, Convergence)
}

__all__ = [
    "ANALYSES",
    "Analysis",
    "Convergence",
    "Gap",
    "Knowledge",
    "Landscape",
    "Randomness",
    "Trajectories",
]
