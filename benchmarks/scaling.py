"""How evenly an evaluation keeps many workers busy: a recorded run, simulated on 1 to 256 of them.

    python benchmarks/scaling.py                    # the run of docs/results.md
    python benchmarks/scaling.py RUN --images 10000

Each row's blocks take as long as they took in the run (`timing.jsonl`). The queue gives tasks in
the order of `lightning_modules/tasks.py`; fixed shards give worker w the blocks w, w + W, ... of
all rows, as a distributed sampler would. Efficiency is the work over workers times the time until
the last one ends. Workers that start at different times, or differ in speed, are not simulated.
"""

import argparse
import heapq
import json
import lzma
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

from hetpure.errors import InputError
from hetpure.evaluation.records import CONFIG, RESULTS, TIMING, RunFolder
from lightning_modules.cli import run
from lightning_modules.tasks import Task, in_order

WORKERS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
Seconds = dict[Task, float]


def recorded(folder: RunFolder) -> Seconds:
    """Seconds of each task that the run finished: all attacks on a row's block together, or its
    gradient checks."""
    parts: dict[tuple[Task, str], float] = {}  # one that was computed anew after a stop counts once
    for entry in folder.read_timing():
        if "defense" in entry:
            task = Task(entry["defense"], entry["block"])
            parts[task, entry["attack"]] = entry["seconds"]
        elif "row" in entry:
            parts[Task(entry["row"], None), ""] = entry["gradient_checks"]
    if not parts:
        raise InputError(f"{folder.path} has no timing: give the folder of an evaluation")
    found: Seconds = defaultdict(float)
    for (task, _), took in parts.items():
        found[task] += took
    rows = {task.row for task in found}
    blocks = {task.block for task in found} - {None}
    missing = len(rows) * len(blocks) - sum(task.block is not None for task in found)
    if missing or not blocks:
        raise InputError(f"{folder.path} is not finished ({missing} of its tasks have no time)")
    return dict(found)


def extended(seconds: Seconds, limited: int, blocks: int) -> Seconds:
    """So many blocks: the recorded ones, and after them those again that have no attacks on the
    first images only, which are the ones from `limited` on."""
    rows = list(dict.fromkeys(task.row for task in seconds))
    gradient_checks = {task: took for task, took in seconds.items() if task.block is None}
    known = 1 + max(task.block or 0 for task in seconds)
    if limited >= known:
        raise InputError(
            "every recorded block has attacks on the first images only: too short a run"
        )
    chosen = [
        block if block < known else limited + (block - known) % (known - limited)
        for block in range(blocks)
    ]
    return gradient_checks | {
        Task(row, number): seconds.get(Task(row, block), 0.0)
        for number, block in enumerate(chosen)
        for row in rows
    }


def queue(seconds: Seconds, workers: int) -> float:
    """Time until the last worker ends, each taking the next task when it is free."""
    rows = list(dict.fromkeys(task.row for task in seconds))
    blocks = len({task.block for task in seconds} - {None})
    # The program foresees a task by its network calls, no better than by its row's mean here.
    means = {
        row: statistics.mean(seconds[t] for t in seconds if t.row == row and t.block is not None)
        for row in rows
    }
    free = [0.0] * workers
    for task in in_order(rows, blocks, lambda task: means[task.row], workers):
        heapq.heapreplace(free, free[0] + seconds.get(task, 0.0))
    return max(free)


def shards(seconds: Seconds, workers: int) -> float:
    """Time until the last worker ends, each with its own blocks, the first with the gradient checks
    too."""
    own = [0.0] * workers
    for task, took in seconds.items():
        own[(task.block or 0) % workers] += took
    return max(own)


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


def unpacked(into: Path) -> Path:
    """The folder of the run of docs/results.md, as far as its times need it."""
    kept = Path(__file__).parent.parent / "docs" / "results"
    timing, results = (
        lzma.decompress((kept / f"full_fashion_mnist.{name}.xz").read_bytes())
        for name in (TIMING, RESULTS)
    )
    (into / TIMING).write_bytes(timing)
    (into / RESULTS).write_bytes(results)
    (into / CONFIG).write_text(json.loads(results)["config"])
    return into


def read(run: Path, images: int) -> tuple[Seconds, int]:
    """Seconds of a finished run's tasks, extended to so many images, and the size of its blocks."""
    if not (run / RESULTS).exists():
        raise InputError(f"{run} has no {RESULTS}: give the folder of a finished evaluation")
    config = yaml.safe_load((run / CONFIG).read_text())
    size = config["data"]["init_args"]["batch_size"]
    limits = [attack["limit"] or 0 for attack in (config["model"]["attacks"] or {}).values()]
    limits.append((config["model"]["audit"] or {}).get("images", 0))
    return extended(recorded(RunFolder(run)), -(-max(limits) // size), -(-images // size)), size


def main(arguments: list[str]) -> None:
    """Reads the run, extends it and prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="folder of an evaluation")
    parser.add_argument("--images", type=int, default=10_000)
    parsed = parser.parse_args(arguments)
    with TemporaryDirectory() as folder:
        seconds, size = read(parsed.run or unpacked(Path(folder)), parsed.images)
    sizes = sorted(seconds.values())
    print(
        f"{len(seconds)} tasks of {size} images: {sizes[len(sizes) // 2]:.0f} s in the middle,"
        f" {sizes[-1]:.0f} s at most, {sum(sizes) / 3600:.1f} h together\n"
    )
    print(table(seconds))


if __name__ == "__main__":
    import sys

    run(main, sys.argv[1:])
