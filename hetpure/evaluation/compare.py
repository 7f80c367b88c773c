"""Defences of one or several runs against a baseline, paired by sample, from the records alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hetpure.errors import InputError
from hetpure.evaluation.protocol import AUDIT, CLEAN, NULL, Record
from hetpure.evaluation.reading import RecordedRun, read_run
from hetpure.evaluation.results import (
    Counting,
    by_attack,
    estimate,
    of_threat,
    outcomes,
    recorded,
    worst,
)
from hetpure.evaluation.statistics import (
    CONFIDENCE,
    Difference,
    Estimate,
    McNemar,
    mcnemar,
    paired_difference,
    paired_proportions,
)

BySample = dict[int, Record]
ROBUST = "robust"


@dataclass(frozen=True)
class Column:
    """One defence of one run: its records by sample, of clean and of attacked images.

    `null` is under the null attack, empty where that was not run; `attacked` under the named attack
    or, for `robust`, the per-sample worst over `attacks`. `limited` are attacks that a run made on
    its first samples only: `robust` leaves them out, as the run's results do.
    """

    run: str
    defense: str
    clean: BySample
    null: BySample
    attacked: BySample
    attacks: tuple[str, ...]
    limited: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.run}:{self.defense}"

    def records(self, kind: str) -> BySample:
        """Those of one kind of image."""
        return {CLEAN: self.clean, NULL: self.null}.get(kind, self.attacked)


@dataclass(frozen=True)
class Comparison:
    """One column against the baseline for one kind of image: `clean`, `robust` or an attack's name,
    `null` among them.

    `accuracy` and `reference`, the baseline's, are over the samples that both have; `left_out`
    counts those that one of them lacks. The line of the baseline itself has no difference. The test
    is for outcomes that are right or wrong a sample, not for means over draws.
    """

    kind: str
    column: Column
    accuracy: Estimate
    reference: Estimate
    difference: Difference | None = None
    test: McNemar | None = None
    left_out: int = 0

    def worse(self, tolerance: float) -> bool:
        """Whether the whole 95% interval is below a drop of `tolerance`, a share; for outcomes that
        are right or wrong the exact test must say so too, for it is the surer at small counts."""
        if self.difference is None or self.difference.high >= -tolerance:
            return False
        return self.test is None or self.test.p_value < 1 - CONFIDENCE


def read_runs(paths: Sequence[str]) -> list[RecordedRun]:
    """The runs, each named by its folder, or by its path where two folders are named alike."""
    folders = [Path(path).resolve() for path in paths]
    names = [folder.name for folder in folders]
    runs = []
    for path, folder in zip(paths, folders, strict=True):
        if folders.count(folder) > 1:
            raise InputError(f"RUN {path} is given twice: give each run once")
        run = read_run(folder)
        alone = names.count(folder.name) == 1
        runs.append(run if alone else replace(run, name=path.rstrip("/")))
    return runs


def read_columns(
    runs: Sequence[RecordedRun], attack: str, counting: Counting
) -> tuple[list[Column], list[str]]:
    """The defences under the named attack or the worst of all (`robust`), and the names of those
    that were not attacked so: one without noise has no `dw_box`."""
    columns, absent = [], []
    for run in runs:
        for defense in dict.fromkeys(record.defense for record in run.records):
            column = _column(run, defense, attack, counting)
            if column is None:
                absent.append(f"{run.name}:{defense}")
            else:
                columns.append(column)
    if not columns:
        attacks = dict.fromkeys(record.attack for run in runs for record in run.records)
        allowed = ", ".join((ROBUST, *(name for name in attacks if name != CLEAN)))
        raise InputError(
            f"--attack {attack} with --protocol {counting}: no defence was attacked so; the runs"
            f" have {allowed}"
        )
    return columns, absent


def find_baseline(columns: Sequence[Column], wanted: str | None) -> Column:
    """The column that RUN:DEFENCE or DEFENCE names; by default the first."""
    if wanted is None:
        return columns[0]
    matches = [column for column in columns if wanted in (column.name, column.defense)]
    if len(matches) != 1:
        count = f"{len(matches)} defences" if matches else "no defence"
        allowed = ", ".join(column.name for column in matches or columns)
        raise InputError(f"--baseline {wanted!r} names {count}; allowed are {allowed}")
    return matches[0]


def compare(
    columns: Sequence[Column], baseline: Column, attack: str, counting: Counting
) -> list[Comparison]:
    """Every column against the baseline, on clean and then on attacked images. What `worst` says of
    an attack is not shown without the null attack, wherever that was run."""
    if len(columns) < 2:
        raise InputError(f"{baseline.name} is the only defence: give another RUN to compare with")
    beside = counting == "worst" and attack != NULL and baseline.null
    without_attack = [column for column in columns if beside and column.null]
    kinds = ((CLEAN, columns), (NULL, without_attack), (attack, columns))
    return [_paired(column, baseline, kind, counting) for kind, shown in kinds for column in shown]


def _paired(column: Column, baseline: Column, kind: str, counting: Counting) -> Comparison:
    mine, base = column.records(kind), baseline.records(kind)
    common = sorted(mine.keys() & base.keys())
    if not common:
        raise InputError(
            f"{column.name} and {baseline.name} have no {kind} sample in common: give runs on the"
            " same images"
        )
    for sample in common:
        if mine[sample].label != base[sample].label:
            raise InputError(
                f"sample {sample} has label {mine[sample].label} in {column.name} and"
                f" {base[sample].label} in {baseline.name}: give runs on the same images"
            )
    ours, theirs = ([records[sample] for sample in common] for records in (mine, base))
    for owner, records in ((column, ours), (baseline, theirs)):
        if len({len(record.predictions) for record in records}) > 1:
            where = f"{owner.name} ({kind})"
            raise InputError(f"{where}: some samples have more predictions than others")
        if not recorded(records, counting):
            raise InputError(
                f"--protocol {counting}: records of {owner.name} are of an earlier version, which"
                " kept no means over the draws: take single, vote or worst"
            )
    first, second = outcomes(ours, counting), outcomes(theirs, counting)
    accuracy = estimate(first, len(ours[0].predictions))
    reference = estimate(second, len(theirs[0].predictions))
    if column is baseline:
        return Comparison(kind, column, accuracy, reference)
    binary = first.ndim == 1
    return Comparison(
        kind,
        column,
        accuracy,
        reference,
        paired_proportions(first, second) if binary else paired_difference(first, second),
        mcnemar(first, second) if binary else None,
        len(mine.keys() | base.keys()) - len(common),
    )


def _column(run: RecordedRun, defense: str, attack: str, counting: Counting) -> Column | None:
    where = f"{run.name}:{defense}"
    attacks = by_attack([record for record in run.records if record.defense == defense])
    if CLEAN not in attacks:
        raise InputError(f"{where} has no records of clean images")
    clean = attacks.pop(CLEAN)
    chosen: dict[str, Sequence[Record]] = {k: v for k, v in attacks.items() if k == attack}
    if attack == ROBUST:
        chosen = _candidates(attacks, where, counting)
    if not chosen:
        return None
    for name, records in chosen.items():
        known = records[0].known
        if bool(known) != (counting == "dw_box"):
            knowledge = f"knows noise ({', '.join(known)})" if known else "knows no noise"
            need = "is counted by --protocol dw_box" if known else "is not --protocol dw_box"
            raise InputError(f"--attack {name} {knowledge} of {where}: it {need}")
    limited: list[str] = []
    if attack == ROBUST and run.finished:  # of an unfinished run the rest may still come
        limited = [name for name, records in chosen.items() if len(records) < len(clean)]
    whole = {name: records for name, records in chosen.items() if name not in limited}
    if not whole:
        raise InputError(f"{where}: no attack has all samples: name one with --attack")
    before, null, after = (
        {record.sample: record for record in records}
        for records in (clean, attacks.get(NULL, []), worst(whole))
    )
    return Column(run.name, defense, before, null, after, tuple(whole), tuple(limited))


def _candidates(
    attacks: Mapping[str, Sequence[Record]], where: str, counting: Counting
) -> dict[str, Sequence[Record]]:
    """What `robust` chooses among. For `dw_box` the one attack that knows noise: those that know
    other noise are other attackers, and count their selection draws differently."""
    white_box = {
        name: records
        for name, records in attacks.items()
        if name != NULL and not name.startswith(AUDIT)
    }
    if counting != "dw_box":
        return of_threat(white_box)
    known = {name: records for name, records in white_box.items() if records[0].known}
    if len(known) > 1:
        raise InputError(
            f"--protocol dw_box: {where} has {len(known)} attacks that know noise; name one with"
            f" --attack: {', '.join(known)}"
        )
    return known
