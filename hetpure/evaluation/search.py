"""A search for a defence's settings: each combination of them is a row of one evaluation, whose
store keeps what is finished; and which of them nothing else beats, clean against robust."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from hetpure.evaluation.description import Run
from hetpure.evaluation.identity import plain
from hetpure.evaluation.protocol import NULL
from hetpure.evaluation.results import summarise
from hetpure.evaluation.rows import DefenseConfig, Row
from hetpure.evaluation.statistics import Estimate
from hetpure.evaluation.store import Finished, Store
from hetpure.evaluation.worker import Task, Watch, jobs_of, work

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Trial:
    """One combination of settings that was evaluated: dotted names and values, and what it
    reached. `seconds` is what its evaluation took."""

    settings: Settings
    clean: Estimate
    robust: Estimate
    coverage: float | None
    network_calls: int
    seconds: float


def search(
    run: Run, store: Store, base: DefenseConfig, settings: Mapping[str, Settings]
) -> Iterator[tuple[str, Trial | None]]:
    """The rows of the run in order, each as a trial; None for a row that was struck out.

    A trial has the clean images and the main attack alone: no null attack, and no gradient check,
    which would take longer than the trial. The chosen settings get both when they are evaluated.

    Args:
        run: the base with each combination of settings, by the name of the combination.
        store: what an earlier start of the same search finished is read there.
        base: the defence whose settings vary.
        settings: of each row.
    """
    rows = {
        name: replace(row, cells=tuple(cell for cell in row.cells if cell.name != NULL))
        for name, row in run.rows.items()
    }
    run = replace(run, rows=rows)
    with store.locked():
        _begin(run, store, base)
        for name, row in rows.items():
            for block in range(run.blocks):
                work(run, store, Task(name, block), Watch())
            if store.struck(name) is not None:
                yield name, None
                continue
            finished = [
                store.get(job)
                for block in range(run.blocks)
                for job, _, _ in jobs_of(run, name, block)
            ]
            yield name, _trial(settings[name], row, finished)


def _begin(run: Run, store: Store, base: DefenseConfig) -> None:
    """Takes the folder. Which settings are tried may change from one start to the next. All else
    may not: the name of a row says its settings, and what it is beside them is the base."""
    identity = run.identity()
    for of_rows in ("defenses", "execution"):
        del identity["config"][of_rows]
    before: dict[str, Any] = store.read_run() or {}
    chosen = {name: asdict(execution) for name, execution in run.execution.items()}
    execution = before.get("execution", {}) | chosen
    store.begin(
        {"identity": identity | {"base": plain(base)}, "block": run.block, "execution": execution}
    )


def _trial(settings: Settings, row: Row, finished: list[Finished]) -> Trial:
    (summary,) = summarise([record for job in finished for record in job.records]).values()
    return Trial(
        settings,
        Estimate(**summary["clean"]["single"]),
        Estimate(**summary["robust"]["single"]),
        summary["mask_coverage"]["clean"],
        row.defense.network_calls,
        sum(job.seconds for job in finished),
    )


def frontier(trials: Sequence[Trial]) -> list[Trial]:
    """The trials that no other one equals or exceeds in both accuracies and exceeds in one, from
    the highest clean accuracy to the lowest. Of equals, the one with the fewest network calls."""
    best: list[Trial] = []
    for trial in sorted(
        trials, key=lambda t: (-t.clean.accuracy, -t.robust.accuracy, t.network_calls)
    ):
        if not best or trial.robust.accuracy > best[-1].robust.accuracy:
            best.append(trial)
    return best


def choose(trials: Sequence[Trial], clean_weight: float) -> Trial:
    """The trial with the highest weighted mean of clean and robust accuracy; always on the frontier
    for a weight between 0 and 1."""
    return max(
        frontier(trials),
        key=lambda t: clean_weight * t.clean.accuracy + (1 - clean_weight) * t.robust.accuracy,
    )
