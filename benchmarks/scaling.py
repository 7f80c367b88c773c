"""How evenly an evaluation keeps many workers busy: a finished run, simulated on 1 to 256 of them.

    python benchmarks/scaling.py                    # the run of docs/experiments/fashion_mnist.md
    python benchmarks/scaling.py RUN --images 10000

Each row's blocks take as long as they took in the run. The queue gives tasks in the order of
`hetpure/evaluation/worker.py`; fixed shards give worker w the blocks w, w + W, ... of all rows, as
a distributed sampler would. Efficiency is the work over workers times the time until the last one
ends. Workers that start at different times, or differ in speed, are not simulated.
"""

import argparse
import heapq
import json
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from committed import saved_results, unpacked

from hetpure.errors import InputError
from hetpure.evaluation.protocol import AUDIT
from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.store import Store
from hetpure.evaluation.worker import Task, in_order
from hetpure.numbers import counted
from hetpure.program import run

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
COMMITTED = "full_fashion_mnist"
Seconds = dict[Task, float]


@dataclass(frozen=True)
class Timing:
    """Seconds of a finished run's tasks, images of a block, and of how many first images some
    attacks are alone."""

    seconds: Seconds
    block: int
    limit: int

    def extended(self, images: int) -> Seconds:
        """For so many images: the recorded blocks, and after them those again that have no attacks
        on the first images only."""
        limited, blocks = -(-self.limit // self.block), -(-images // self.block)
        rows = list(dict.fromkeys(task.row for task in self.seconds))
        known = 1 + max(task.block or 0 for task in self.seconds)
        if limited >= known:
            raise InputError(
                "every recorded block has attacks on the first images only: too short a run"
            )
        chosen = [
            block if block < known else limited + (block - known) % (known - limited)
            for block in range(blocks)
        ]
        checks = {task: took for task, took in self.seconds.items() if task.block is None}
        return checks | {
            Task(row, number): self.seconds.get(Task(row, block), 0.0)
            for number, block in enumerate(chosen)
            for row in rows
        }


def timing_of(folder: Path) -> Timing:
    """Of a run of this version, from its store."""
    contents = Contents.read(Store(folder))
    if contents.missing:
        raise InputError(f"{folder} is not finished: {counted(contents.missing, 'part')} missing")
    seconds: Seconds = defaultdict(float)
    for job, finished in contents.finished.items():
        audit = job.attack.startswith(AUDIT)
        seconds[Task(job.row, None if audit else job.block, audit)] += finished.seconds
    checks = {Task(row, None): check["seconds"] for row, check in contents.checks.items()}
    images = contents.facts["images"]
    cells = [cell for row in contents.facts["rows"].values() for cell in row["cells"].values()]
    limits = [cell["images"] for cell in cells if cell["images"] < images]
    return Timing(dict(seconds) | checks, contents.run["block"], max(limits, default=0))


def committed() -> Timing:
    """Of the run of docs/experiments/fashion_mnist.md, which an earlier version made."""
    parts = {  # what was computed anew after a stop counts once
        (entry["defense"], entry["attack"], entry["block"]): entry["seconds"]
        for entry in map(json.loads, unpacked(f"{COMMITTED}.timing.jsonl").splitlines())
        if "defense" in entry
    }
    seconds: Seconds = defaultdict(float)
    for (row, _, block), took in parts.items():
        seconds[Task(row, block)] += took
    config = yaml.safe_load(saved_results(COMMITTED)["config"])
    limits = [attack["limit"] or 0 for attack in config["model"]["attacks"].values()]
    limit = max(*limits, config["model"]["audit"]["images"])
    return Timing(dict(seconds), config["data"]["init_args"]["batch_size"], limit)


def queue(seconds: Seconds, workers: int) -> float:
    """Time until the last worker ends, each taking the next task when it is free."""
    rows = list(dict.fromkeys(task.row for task in seconds))
    audited = [task.row for task in seconds if task.audit]
    blocks = len({task.block for task in seconds} - {None})
    # The program foresees a task by its network calls, no better than by its row's mean here.
    means = {
        row: statistics.mean(seconds[t] for t in seconds if t.row == row and t.block is not None)
        for row in rows
    }
    free = [0.0] * workers
    for task in in_order(rows, audited, blocks, lambda task: means[task.row], workers):
        heapq.heapreplace(free, free[0] + seconds.get(task, 0.0))
    return max(free)


def shards(seconds: Seconds, workers: int) -> float:
    """Time until the last worker ends, each with its own blocks, the first with the gradient checks
    too."""
    busy = [0.0] * workers
    for task, took in seconds.items():
        busy[(task.block or 0) % workers] += took
    return max(busy)


def table(seconds: Seconds, workers: Sequence[int] = WORKERS) -> str:
    """Efficiency by number of workers, in percent."""
    total = sum(seconds.values())
    lines = ["| workers | hours with the queue | efficiency | fixed shards |", "|" + " --- |" * 4]
    for count in workers:
        queued, fixed = queue(seconds, count), shards(seconds, count)
        lines.append(
            f"| {count} | {queued / 3600:.2f} | {100 * total / count / queued:.1f} |"
            f" {100 * total / count / fixed:.1f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    """Reads the run, extends it and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of an evaluation")
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args(arguments)
    timing = committed() if options.run is None else timing_of(options.run)
    seconds = timing.extended(options.images)
    sizes = sorted(seconds.values())
    print(
        f"{len(seconds)} tasks of {timing.block} images: {sizes[len(sizes) // 2]:.0f} s in the"
        f" middle, {sizes[-1]:.0f} s at most, {sum(sizes) / 3600:.1f} h together\n"
    )
    print(table(seconds))


if __name__ == "__main__":
    run(main, sys.argv[1:])
