"""Is one attack stronger than another on the same defence? Every attack of a run against one of
them, paired by image: the accuracy of both on the images that both have, and its difference.

    python benchmarks/paired_attacks.py                    # the records of docs/results.md
    python benchmarks/paired_attacks.py RUN --base "pgd_linf, recomputed mask" pgd_linf
"""

import argparse
import json
import lzma
import sys
from collections.abc import Sequence
from pathlib import Path

from hetpure.errors import InputError
from hetpure.evaluation.protocol import AUDIT, CLEAN, NULL, Record
from hetpure.evaluation.records import RECORDS, RunFolder
from hetpure.evaluation.results import by_attack, draws_right
from hetpure.evaluation.statistics import in_points, mean_accuracy, paired_difference
from hetpure.report.table import interval
from lightning_modules.cli import run

COMMITTED = Path(__file__).parent.parent / "docs" / "results" / f"full_fashion_mnist.{RECORDS}.xz"
BASE = ("pgd_linf, recomputed mask", "pgd_linf")


def table(records: Sequence[Record], base: Sequence[str]) -> str:
    """A row an attack on a defence; `base` are names of the attack that all others are held
    against, the first that a defence has. Defences without it are left out."""
    lines = [
        "| defence | attack | n | under it | under the base | difference |",
        "|" + " --- |" * 6,
    ]
    for name in dict.fromkeys(record.defense for record in records):
        attacks = by_attack([record for record in records if record.defense == name])
        own = next((attacks[one] for one in base if one in attacks), None)
        if own is None:
            continue
        known = {record.sample: record for record in own}
        for attack, found in attacks.items():
            if attack in (CLEAN, NULL, own[0].attack) or attack.startswith(AUDIT):
                continue
            ours = [record for record in found if record.sample in known]
            both = draws_right(ours), draws_right([known[record.sample] for record in ours])
            cells = [interval(mean_accuracy(right).as_dict()) for right in both]
            moved = in_points(paired_difference(*both).as_dict())
            lines.append(f"| {name} | {attack} | {len(ours)} | {' | '.join(cells)} | {moved} |")
    if len(lines) == 2:
        raise InputError(f"--base: no defence was attacked by {', '.join(base)}")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Reads the records and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a run's folder")
    parser.add_argument(
        "--base", nargs="+", default=BASE, help="names of the attack to hold against"
    )
    parsed = parser.parse_args(arguments)
    if parsed.run is None:
        text = lzma.decompress(COMMITTED.read_bytes()).decode()
        records = [Record(**json.loads(line)) for line in text.splitlines()]
    else:
        records = RunFolder(parsed.run).read_records()
    print(table(records, parsed.base))


if __name__ == "__main__":
    run(main, sys.argv[1:])
