"""Clean against robust accuracy: which settings nothing else beats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hetpure.evaluation.statistics import Estimate

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One combination of settings that was evaluated: dotted names and values, and what it
    reached. `seconds` is what its evaluation took."""

    settings: Settings
    clean: Estimate
    robust: Estimate
    coverage: float | None
    network_calls: int
    seconds: float


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one equals or exceeds in both accuracies and exceeds in one, from
    the highest clean accuracy to the lowest. Of equals, the one with the fewest network calls."""
    best: list[Trial] = []
    for trial in sorted(
        trials, key=lambda t: (-t.clean.accuracy, -t.robust.accuracy, t.network_calls)
    ):
        if not best or trial.robust.accuracy > best[-1].robust.accuracy:
            best.append(trial)
    return best


def choose(trials: Sequence[Trial], clean_weight: float) -> Trial:
    """The trial with the highest weighted mean of clean and robust accuracy; always on the frontier
    for a weight between 0 and 1."""
    return max(
        frontier(trials),
        key=lambda t: clean_weight * t.clean.accuracy + (1 - clean_weight) * t.robust.accuracy,
    )
