"""How right `python evaluate.py --plan` is: predicts an evaluation, runs it, and compares.

Every option is evaluate.py's; the run should take a minute or more, on a machine that does nothing
else.

    python benchmarks/plan.py
    python benchmarks/plan.py --config configs/evaluate/quick.yaml --data.limit 128
"""

import sys
import time

from lightning_modules.cli import run
from lightning_modules.evaluation_cli import evaluation_cli


def main(arguments: list[str]) -> None:
    """Predicts, runs and compares, row by row and in all."""
    cli = evaluation_cli(arguments)
    cli.prepare()
    plan = cli.model.plan()
    start = time.perf_counter()
    cli.evaluate()
    seconds = time.perf_counter() - start
    timing = cli.model.folder.read_timing()
    rows = [
        (
            name,
            sum(phase.seconds for phase in row.phases),
            sum(entry["seconds"] for entry in timing if entry.get("defense") == name),
        )
        for name, row in plan.items()
    ]
    gradient_checks = sum(entry.get("gradient_checks", 0) for entry in timing)
    predicted = sum(row.gradient_check_seconds for row in plan.values())
    rows.append(("gradient_checks", predicted, gradient_checks))
    rows.append(("whole evaluation", sum(row.seconds for row in plan.values()), seconds))
    print("| part | predicted, s | real, s | predicted / real |\n| --- | --- | --- | --- |")
    for name, predicted, real in rows:
        print(f"| {name} | {predicted:.1f} | {real:.1f} | {predicted / real:.2f} |")


if __name__ == "__main__":
    run(main, sys.argv[1:])
