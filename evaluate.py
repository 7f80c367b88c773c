"""Evaluates defences under attack: `python evaluate.py` runs the packaged ones in a few minutes.

Every option: `python evaluate.py --help`; what it costs: `python evaluate.py --plan`; other
evaluations: `configs/evaluate/`.
"""

import sys

from lightning_modules.cli import run
from lightning_modules.evaluation_cli import evaluation_cli, print_plan


def main(arguments: list[str]) -> None:
    """Parses the arguments, builds the program and runs it, or says what it would cost."""
    cli = evaluation_cli(arguments)
    cli.prepare()
    if cli.config.plan:
        if cli.trainer.is_global_zero:  # the others chose nothing
            print_plan(cli)
    else:
        cli.evaluate()


if __name__ == "__main__":
    run(main, sys.argv[1:])
