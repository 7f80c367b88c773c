"""What a run that can be killed at any moment costs: seconds in the journal and the queue, and from
the start to the first block. Every option is evaluate.py's.

    python benchmarks/journal.py
    python benchmarks/journal.py --config configs/evaluate/quick.yaml --data.limit 64
"""

import time

BEGAN = time.perf_counter()

import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from contextlib import ExitStack  # noqa: E402
from typing import Any  # noqa: E402
from unittest.mock import patch  # noqa: E402

from hetpure.evaluation.records import RunFolder  # noqa: E402
from lightning_modules import blocks  # noqa: E402
from lightning_modules.cli import run  # noqa: E402
from lightning_modules.evaluation_cli import evaluation_cli  # noqa: E402
from lightning_modules.tasks import Queue  # noqa: E402

PARTS = {
    "journal": [(RunFolder, "_append")],
    "images": [(blocks, "save_images")],
    "queue": [(Queue, "claim"), (Queue, "check"), (Queue, "advance"), (Queue, "work")],
    "clean images": [(blocks, "evaluate_clean")],
}


class Clock:
    """Seconds and calls of what it is laid around."""

    def __init__(self) -> None:
        self.seconds, self.calls, self.first = 0.0, 0, 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*arguments: Any, **settings: Any) -> Any:
            start = time.perf_counter()
            self.first = self.first or start
            try:
                return function(*arguments, **settings)
            finally:
                self.seconds += time.perf_counter() - start
                self.calls += 1

        return timed


def main(arguments: list[str]) -> None:
    """Runs the evaluation with a clock around every write and question, and prints them."""
    clocks = {name: Clock() for name in PARTS}
    with ExitStack() as stack:
        for name, places in PARTS.items():
            for owner, attribute in places:
                timed = clocks[name].around(getattr(owner, attribute))
                stack.enter_context(patch.object(owner, attribute, timed))
        cli = evaluation_cli(arguments)
        cli.prepare()
        cli.evaluate()
    total = time.perf_counter() - BEGAN
    for what, name in (("task, a gradient check", "queue"), ("block", "clean images")):
        print(f"start to the first {what}: {clocks[name].first - BEGAN:.1f} s of {total:.1f} s")
    print()
    print("| part | calls | seconds | % of the run |\n| --- | --- | --- | --- |")
    for name, clock in clocks.items():
        share = 100 * clock.seconds / total
        print(f"| {name} | {clock.calls} | {clock.seconds:.3f} | {share:.3f} |")


if __name__ == "__main__":
    run(main, sys.argv[1:])
