"""A comparison of defences for people and papers: terminal tables, CSV, LaTeX, and what to heed."""

import csv
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from hetpure.evaluation.compare import ROBUST, Column, Comparison
from hetpure.evaluation.identity import changes
from hetpure.evaluation.protocol import CLEAN, NULL, Record
from hetpure.evaluation.reading import RecordedRun
from hetpure.evaluation.results import Counting
from hetpure.evaluation.statistics import in_points
from hetpure.numbers import counted
from hetpure.report.sheet import Sheet
from hetpure.report.table import interval

MEANING = {
    "single": "single: mean over fresh noise draws; differences by a paired bootstrap over samples"
    " and draws",
    "vote": "vote: majority of the draws, a tie is wrong",
    "worst": "worst: right in all draws, as where the attacker submits an image again and again;"
    " null: an attack of strength zero, counted alike",
    "mean_logit": "mean_logit: the class with the largest mean logit over the draws",
    "mean_probability": "mean_probability: the class with the largest mean probability over the"
    " draws",
    "dw_box": "dw_box: mean over draws with the noise that the attacker knew; clean images with"
    " fresh noise; differences by a paired bootstrap over samples and draws",
}
TESTED = (
    "; differences with Newcombe's paired interval; alone: samples that only this defence / only"
    " the baseline has right; p: exact McNemar test of these, two-sided"
)
# What changes the numbers of a run. The rest of its description says how it was shown.
FACTS = ("data", "attack", "attacks", "report_draws", "selection_draws", "network_call")
CSV_HEAD = (
    "run", "defense", "baseline_run", "baseline_defense", "kind", "attacks", "protocol", "n",
    "left_out", "draws", "accuracy", "low", "high", "baseline_accuracy", "difference",
    "difference_low", "difference_high", "only_this", "only_baseline", "p_value",
)  # fmt: skip
LATEX = {character: "\\" + character for character in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


def sheets(comparisons: Sequence[Comparison]) -> list[Sheet]:
    """One for each kind of image; defences as RUN:DEFENCE where there are several runs."""
    several = len({c.column.run for c in comparisons}) > 1
    tested = _tested(comparisons)
    heads = ["defence", "n", "accuracy (%)", "difference (points)"]
    heads += ["alone", "p"] if tested else []
    by_kind = [(k, list(lines)) for k, lines in groupby(comparisons, lambda c: c.kind)]
    return [
        Sheet(
            _title(kind, lines),
            heads,
            [[c.column.name if several else c.column.defense, *_numbers(c, tested)] for c in lines],
        )
        for kind, lines in by_kind
    ]


def notes(comparisons: Sequence[Comparison], baseline: Column, counting: Counting) -> list[str]:
    """What the numbers are, how many there are, and what they are not over."""
    draws = " or ".join(str(count) for count in sorted({c.accuracy.draws for c in comparisons}))
    differences = sum(c.difference is not None for c in comparisons)
    lines = [
        f"Difference: from {baseline.name}, over the samples that both have. With 95% intervals."
        f" {MEANING[counting]}{TESTED if _tested(comparisons) else ''}. Draws a sample: {draws}.",
        f"{counted(differences, 'difference')}, with intervals that are not corrected for their"
        " number.",
    ]
    for c in comparisons:
        if c.left_out:
            lines.append(
                f"{c.column.name}, {c.kind}: {counted(c.left_out, 'sample')} left out that it or"
                f" {baseline.name} lacks; {c.accuracy.n} compared."
            )
        if c.kind == ROBUST and c.column.limited:
            attacks = ", ".join(c.column.limited)
            left_out = f"robust leaves out {attacks}, made on some samples only."
            lines.append(f"{c.column.name}: {left_out}")
    return lines


def cautions(
    runs: Sequence[RecordedRun],
    columns: Sequence[Column],
    absent: Sequence[str],
    baseline: Column,
    counting: Counting,
) -> Iterator[str]:
    """What differs beyond the defences, a line each: such numbers may not compare. `absent` are
    the defences that were not attacked so."""
    if absent:
        yield f"left out, not attacked so: {', '.join(absent)}"
    reference = next(run for run in runs if run.name == baseline.run)
    for run in runs:
        for row, reason in run.about.get("struck", {}).items():
            yield f"left out, {run.name}:{row} is struck out: {reason}"
        if not run.finished:
            yield (
                f"{run.name} is not finished: robust is over the samples that all its attacks have"
            )
        if not run.about:
            yield f"{run.name} does not say what its data and attacks are: they cannot be checked"
        elif reference.about:
            yield from _changed(run, reference)
    for column in columns:
        for what, here, there in (
            ("attacks differ", *(", ".join(sorted(c.attacks)) for c in (column, baseline))),
            ("threat differs", _record(column).threat, _record(baseline).threat),
        ):
            if here != there:
                yield f"{what}: {here} on {column.name}, {there} on {baseline.name}"
        draws, base_draws = (len(_record(c).predictions) for c in (column, baseline))
        if counting == "worst" and draws != base_draws and 1 not in (draws, base_draws):
            yield (
                f"worst is over {draws} draws of {column.name} and {base_draws} of {baseline.name}:"
                " more draws are more chances to be wrong"
            )


def _changed(run: RecordedRun, reference: RecordedRun) -> Iterator[str]:
    """Where data and attacks of two runs differ, as far as both tell."""
    here, there = (about["run"] for about in (run.about, reference.about))
    for key in FACTS:
        if key in here and key in there:
            for name, theirs, ours in changes(there[key], here[key], key):
                ours, theirs = ("nothing" if v is None else v for v in (ours, theirs))
                yield f"{name} differs: {ours} in {run.name}, {theirs} in {reference.name}"
    hashes = [r.about.get("provenance", {}).get("data") for r in (reference, run)]
    if all(hashes) and (files := [name for name, _, _ in changes(*hashes)]):
        yield f"data differs between {run.name} and {reference.name}: {', '.join(files)}"


def verdict(
    comparisons: Sequence[Comparison], baseline: Column, kind: str, tolerance: float
) -> tuple[bool, str]:
    """Whether no defence is significantly worse on this kind of image than a drop of `tolerance`
    points allows, and the line that says so."""
    worse = [c.column.name for c in comparisons if c.kind == kind and c.worse(tolerance / 100)]
    allowed = f" by more than {tolerance:g} points" if tolerance else ""
    finding = f"significantly worse than {baseline.name}{allowed}"
    if not worse:
        return True, f"{kind}: no defence is {finding}"
    return False, f"{kind}: {finding}: {', '.join(worse)}"


def write_csv(
    comparisons: Sequence[Comparison], baseline: Column, counting: Counting, path: Path
) -> None:
    """Every number in full, as shares; the lines of the baseline itself have no difference."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_HEAD)
        for c in comparisons:
            accuracy, apart, test = c.accuracy, c.difference, c.test
            writer.writerow(
                (
                    c.column.run, c.column.defense, baseline.run, baseline.defense, c.kind,
                    _attacks(c), counting,
                    accuracy.n, c.left_out, accuracy.draws,
                    accuracy.accuracy, accuracy.low, accuracy.high, c.reference.accuracy,
                    *((apart.difference, apart.low, apart.high) if apart else ("",) * 3),
                    *((test.only_first, test.only_second, test.p_value) if test else ("",) * 3),
                )
            )  # fmt: skip


def latex(sheets: Sequence[Sheet], remarks: Sequence[str]) -> str:
    """A tabular that needs the package booktabs and nothing else; the remarks are comments."""
    heads = sheets[0].heads
    text = ["% " + " ".join(remark.split()) for remark in remarks]
    text.append(rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}")
    text += [r"\toprule", " & ".join(map(_escaped, heads)) + r" \\"]
    for sheet in sheets:
        title = _escaped(sheet.title)
        text += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{l}}{{{title}}} \\"]
        for name, *numbers in sheet.rows:
            cells = [_escaped(name), *map(_mathematics, numbers)]
            text.append(" & ".join(cells) + r" \\")
    return "\n".join([*text, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _numbers(comparison: Comparison, tested: bool) -> list[str]:
    """The cells of a line after its name."""
    apart, test = comparison.difference, comparison.test
    cells = [
        str(comparison.accuracy.n),
        interval(comparison.accuracy.as_dict()),
        "baseline" if apart is None else in_points(apart.as_dict()),
    ]
    if not tested:
        return cells
    if test is None:
        return [*cells, "", ""]
    p_value = "<0.001" if test.p_value < 0.001 else f"{test.p_value:.3f}"
    return [*cells, f"{test.only_first} / {test.only_second}", p_value]


def _title(kind: str, comparisons: Sequence[Comparison]) -> str:
    if kind != ROBUST:
        return kind
    attacks = dict.fromkeys(attack for c in comparisons for attack in c.column.attacks)
    if len(attacks) == 1:
        return f"robust: {', '.join(attacks)}"
    return f"robust: per sample the worst of {', '.join(attacks)}"


def _attacks(comparison: Comparison) -> str:
    """Those that its images are chosen among."""
    named = {CLEAN: "", NULL: NULL}
    return named.get(comparison.kind, " ".join(comparison.column.attacks))


def _tested(comparisons: Sequence[Comparison]) -> bool:
    return any(c.test is not None for c in comparisons)


def _record(column: Column) -> Record:
    """One of the column's attacked images: the others are alike in threat and draws."""
    return next(iter(column.attacked.values()))


def _escaped(text: str) -> str:
    """For LaTeX. A cell that starts with [ or * would be taken for an option of the line's end."""
    escaped = "".join(LATEX.get(character, character) for character in " ".join(text.split()))
    return "{}" + escaped if escaped[:1] in ("[", "*") else escaped


def _mathematics(cell: str) -> str:
    """A number with its interval as a formula, for the minus signs; words as they are."""
    numeric = cell[:1] in tuple("+-<0123456789")
    return "$" + cell.replace(" ", r"\ ") + "$" if numeric else cell
