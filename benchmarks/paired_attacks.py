"""Is one attack stronger than another on the same defence? Every attack of a run against one of
them, paired by image: the accuracy of both on the images that both have, and its difference.

    python benchmarks/paired_attacks.py              # the run of docs/experiments/fashion_mnist.md
    python benchmarks/paired_attacks.py RUN --base "pgd_linf, recomputed mask" pgd_linf
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from committed import records_of

from hetpure.errors import InputError
from hetpure.evaluation.protocol import AUDIT, CLEAN, NULL, Record
from hetpure.evaluation.reading import read_run
from hetpure.evaluation.results import by_attack, draws_right
from hetpure.evaluation.statistics import in_points, mean_accuracy, paired_difference
from hetpure.program import run
from hetpure.report.sheet import Sheet
from hetpure.report.table import interval

COMMITTED = "full_fashion_mnist"
BASE = ("pgd_linf, recomputed mask", "pgd_linf")
HEADS = ("defence", "attack", "n", "under it", "under the base", "difference")


def table(records: Sequence[Record], base: Sequence[str]) -> str:
    """A row an attack on a defence; `base` are names of the attack that all others are held
    against, the first that a defence has. Defences without it are left out."""
    rows = []
    for name in dict.fromkeys(record.defense for record in records):
        attacks = by_attack([record for record in records if record.defense == name])
        held = next((attack for attack in base if attack in attacks), None)
        if held is None:
            continue
        by_sample = {record.sample: record for record in attacks[held]}
        for attack, of_attack in attacks.items():
            if attack in (CLEAN, NULL, held) or attack.startswith(AUDIT):
                continue
            ours = [record for record in of_attack if record.sample in by_sample]
            both = draws_right(ours), draws_right([by_sample[record.sample] for record in ours])
            accuracies = [interval(mean_accuracy(right).as_dict()) for right in both]
            moved = in_points(paired_difference(*both).as_dict())
            rows.append((name, attack, str(len(ours)), *accuracies, moved))
    if not rows:
        raise InputError(f"--base: no defence was attacked by {', '.join(base)} and by another one")
    return Sheet("", HEADS, rows).markdown()


def main(arguments: list[str]) -> None:
    """Reads the records and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a run's folder")
    parser.add_argument(
        "--base", nargs="+", default=BASE, help="names of the attack to hold against"
    )
    options = parser.parse_args(arguments)
    records = read_run(options.run).records if options.run else records_of(COMMITTED)
    print(table(records, options.base))


if __name__ == "__main__":
    run(main, sys.argv[1:])
