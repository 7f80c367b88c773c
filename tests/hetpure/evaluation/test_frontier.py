"""Which settings nothing else beats, and the choice among them."""

import pytest

from hetpure.evaluation.frontier import Trial, choose, frontier
from hetpure.evaluation.statistics import Estimate


def reached(clean: float, robust: float, calls: int = 1) -> Trial:
    def estimate(value: float) -> Estimate:
        return Estimate(value, value - 0.05, value + 0.05, n=64, draws=5)

    name = f"{clean} {robust} {calls}"
    return Trial({"mask.threshold": name}, estimate(clean), estimate(robust), 0.4, calls, 1.0)


TRIALS = [
    reached(0.9, 0.3),
    reached(0.8, 0.6),
    reached(0.8, 0.5),  # beaten by the one above
    reached(0.7, 0.7, calls=6),
    reached(0.7, 0.7, calls=4),
    reached(0.6, 0.7),  # as robust as the ones above, less accurate
    reached(0.5, 0.2),
]


def test_frontier_is_what_no_other_trial_beats() -> None:
    assert frontier(TRIALS) == [TRIALS[0], TRIALS[1], TRIALS[4]]
    assert frontier(TRIALS[::-1]) == frontier(TRIALS)
    for trial in TRIALS:
        beaten = any(
            other.clean.accuracy >= trial.clean.accuracy
            and other.robust.accuracy >= trial.robust.accuracy
            and other != trial
            and (other.clean.accuracy, other.robust.accuracy)
            != (trial.clean.accuracy, trial.robust.accuracy)
            for other in TRIALS
        )
        assert beaten != (trial in [*frontier(TRIALS), TRIALS[3]])


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 0), (0.8, 0), (0.5, 1), (0.4, 4), (0.0, 4)])
def test_choice_follows_the_weight_of_clean_accuracy(weight: float, expected: int) -> None:
    assert choose(TRIALS, weight) == TRIALS[expected]
