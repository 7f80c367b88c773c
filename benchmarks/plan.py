"""How right `python evaluate.py --plan` is: predicts an evaluation, runs it, and compares.

Every option is evaluate.py's; the run should take a minute or more, on a machine that does nothing
else.

    python benchmarks/plan.py
    python benchmarks/plan.py --config configs/evaluate/quick.yaml --data.limit 128
"""

import sys

from hetpure.evaluation.plan import plan
from hetpure.evaluation.run_results import Contents
from hetpure.program import run
from lightning_modules.evaluation_cli import evaluation_cli


def main(arguments: list[str]) -> None:
    """Predicts, runs and compares, row by row and in all."""
    cli = evaluation_cli(arguments)
    cli.prepare()
    plans = plan(cli.model.described)
    cli.evaluate()
    contents = Contents.read(cli.model.store)
    parts = [
        (
            name,
            sum(phase.seconds for phase in row.phases),
            sum(done.seconds for job, done in contents.finished.items() if job.row == name),
        )
        for name, row in plans.items()
    ]
    parts.append(("all rows", sum(part[1] for part in parts), sum(part[2] for part in parts)))
    checks = sum(check["seconds"] for check in contents.checks.values())
    predicted = sum(row.check_seconds for row in plans.values())
    parts.append(("gradient checks", predicted, checks))
    print("| part | predicted, s | real, s | predicted / real |\n| --- | --- | --- | --- |")
    for name, predicted, real in parts:
        print(f"| {name} | {predicted:.1f} | {real:.1f} | {predicted / real:.2f} |")


if __name__ == "__main__":
    run(main, sys.argv[1:])
