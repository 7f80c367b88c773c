"""The draws of a replay, and how often it raises a false alarm."""

import numpy as np

from hetpure.evaluation.statistics import CONFIDENCE, exchangeable
from hetpure.evaluation.verification import MOST_REPORT_DRAWS, fresh_draws, noises_of, rounded
from hetpure.noise import SEEDS, Draw, Stream


def test_no_two_replays_share_a_draw_and_none_has_one_of_the_run() -> None:
    """The null attack's report draws come right after the run's."""
    of_run = range(2 * MOST_REPORT_DRAWS)
    spans = [fresh_draws(seed, MOST_REPORT_DRAWS) for seed in (0, 1, 2, SEEDS - 1)]
    for first, second in zip([of_run, *spans], spans, strict=False):
        assert first[-1] < second[0]
    Draw(Stream.REPORT, spans[-1][-1])  # an address has room for it


def test_what_the_attacker_knew_is_kept_and_the_rest_is_drawn_anew() -> None:
    (noise,) = noises_of(7, Stream.REPORT, fresh_draws(3, 1), ("forward",))
    assert noise.seed == 7 and noise.forward == Draw(Stream.DW_BOX)
    assert noise.reverse == Draw(Stream.REPORT, 4 * 2 * MOST_REPORT_DRAWS)
    (noise,) = noises_of(7, Stream.REPORT, fresh_draws(3, 1), ())
    assert noise.forward == noise.reverse == Draw(Stream.REPORT, 8 * MOST_REPORT_DRAWS)


def test_honest_runs_of_many_claims_raise_at_most_one_alarm_in_twenty() -> None:
    """At most 5% of 200 such runs are expected to; more than 19 have a chance below 1%."""
    generator = np.random.default_rng(0)
    claims, runs, alarms = 8, 200, 0
    level = 1 - (1 - CONFIDENCE) / claims
    for _ in range(runs):
        rates = generator.beta(0.5, 0.5, size=(claims, 30, 1))
        first, second = (generator.random((claims, 30, 4)) < rates for _ in range(2))
        bounds = [exchangeable(a, b, level) for a, b in zip(first, second, strict=True)]
        means = first.mean((1, 2))
        alarms += any(not low <= m <= high for (low, high), m in zip(bounds, means, strict=True))
    assert alarms <= 19


def test_rounding_may_change_few_answers() -> None:
    assert [rounded(n) for n in (1, 16, 100, 1000)] == [1, 1, 2, 20]
