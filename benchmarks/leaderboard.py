"""The leaderboard of this project's own runs, docs/experiments/leaderboard.html, from the committed
records.

    python benchmarks/leaderboard.py
"""

import argparse

from committed import EXPERIMENTS, recorded_run, results_of

from hetpure.evaluation import compare as comparing
from hetpure.report import comparison
from hetpure.report.leaderboard import Contribution, compare_page

PAGE = EXPERIMENTS / "leaderboard.html"
RUNS = ("full_fashion_mnist", "attacks_secondary", "ablation_mask")
BASELINE = "full_fashion_mnist:uniform t=200"


def page() -> str:
    """All defences of these runs, counted as `single` under the worst attack of their run."""
    read = [recorded_run(name) for name in RUNS]
    columns, absent = comparing.read_columns(read, comparing.ROBUST, "single")
    baseline = comparing.find_baseline(columns, BASELINE)
    compared = comparing.compare(columns, baseline, comparing.ROBUST, "single")
    cautions = comparison.cautions(read, columns, absent, baseline, "single")
    results = {name: results_of(name) for name in RUNS}
    listed = [
        Contribution.of(name, results[name], config=f"../../configs/evaluate/{name}.yaml")
        for name in RUNS
    ]
    notes = comparison.notes(compared, baseline, "single")
    return compare_page(compared, "single", results, listed, list(cautions), notes)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
