"""A comparison of defences for people and papers: terminal tables, CSV, LaTeX, and what to heed."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from hetpure.evaluation.compare import ROBUST, Column, Comparison, Counting, Run
from hetpure.evaluation.protocol import CLEAN
from hetpure.report.table import difference, interval

MEANING = {
    "single": "single: mean over fresh noise draws; differences by a paired bootstrap over samples"
    " and draws",
    "vote": "vote: majority of the draws, a tie is wrong",
    "worst": "worst: right in all draws",
    "dw_box": "dw_box: mean over draws with the noise that the attacker knew; clean images with"
    " fresh noise; differences by a paired bootstrap over samples and draws",
}
TESTED = (
    "; differences with Newcombe's paired interval; alone: samples that only this defence / only"
    " the baseline has right; p: exact McNemar test of these, two-sided"
)
# Of a run's own description: what makes its numbers others. The rest says how it was shown.
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


def tables(found: Sequence[Comparison]) -> list[Table]:
    """One for the terminal for each kind of image; runs are headings where there are several."""
    tested, several = _tested(found), _several(found)
    made = []
    for kind, rows in _by_kind(found):
        table = Table(
            title=Text(_title(kind, rows), style="bold"),
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        table.add_column("defence", overflow="fold", min_width=12)
        for head in _heads(tested):
            table.add_column(head, justify="right", no_wrap=True)
        run = None
        for row in rows:
            if several and row.column.run != run:
                run = row.column.run
                table.add_row(Text(run, style="italic"))
            style = "red" if row.worse(0) else ""
            name = Text("  " * several + row.column.defense)
            table.add_row(name, *(Text(cell) for cell in _cells(row, tested)), style=style)
        made.append(table)
    return made


def notes(found: Sequence[Comparison], baseline: Column, counting: Counting) -> list[str]:
    """What the numbers are, how many there are, and what they are not over."""
    draws = " or ".join(str(count) for count in sorted({row.accuracy.draws for row in found}))
    differences = sum(row.difference is not None for row in found)
    reference = _name(baseline, found)
    lines = [
        f"Difference: from {reference}, over the samples that both have. With 95% intervals."
        f" {MEANING[counting]}{TESTED if _tested(found) else ''}. Draws a sample: {draws}.",
        f"{differences} difference{'s' * (differences != 1)}, with intervals that are not corrected"
        " for their number.",
    ]
    for row in found:
        if row.left_out:
            lines.append(
                f"{_name(row.column, found)}, {row.kind}: {row.left_out} samples left out that it"
                f" or {reference} lacks; {row.accuracy.n} compared."
            )
    limited = {_name(row.column, found): row.column.limited for row in found if row.column.limited}
    for attacks in dict.fromkeys(limited.values()):
        names = ", ".join(name for name, its in limited.items() if its == attacks)
        lines.append(f"{names}: robust leaves out {', '.join(attacks)}, made on some samples only.")
    return lines


def cautions(
    runs: Sequence[Run],
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
        if run.results is None:
            yield (
                f"{run.name} is not finished: its data and attacks cannot be"
                " checked, and robust is over the samples that all its attacks have"
            )
        elif reference.results is not None:
            ours, theirs = _facts(run.results), _facts(reference.results)
            for key in (key for key in theirs if key in ours):
                for name, here, there in _differing(key, ours[key], theirs[key]):
                    yield f"{name} differs: {here} in {run.name}, {there} in {reference.name}"
            ours, theirs = _hashes(run.results), _hashes(reference.results)
            files = [name for name in {**theirs, **ours} if ours.get(name) != theirs.get(name)]
            if ours and theirs and files:
                yield f"data differs between {run.name} and {reference.name}: {', '.join(files)}"
    for column in columns:
        own, its = sorted(column.attacks), sorted(baseline.attacks)
        if own != its:
            yield (
                f"attacks differ: {', '.join(own)} on {column.name}, {', '.join(its)} on"
                f" {baseline.name}"
            )
        ball, reference_ball = _threat(column), _threat(baseline)
        if ball != reference_ball:
            yield f"threat differs: {ball} on {column.name}, {reference_ball} on {baseline.name}"
        own_draws, its_draws = _draws(column), _draws(baseline)
        if counting == "worst" and own_draws != its_draws and 1 not in (own_draws, its_draws):
            yield (
                f"worst is over {own_draws} draws of {column.name} and {its_draws} of"
                f" {baseline.name}: more draws are more chances to be wrong"
            )


def verdict(
    found: Sequence[Comparison], baseline: Column, kind: str, tolerance: float
) -> tuple[bool, str]:
    """Whether no defence is significantly worse on this kind of image than a drop of `tolerance`
    points allows, and the line that says so."""
    worse = [row.column for row in found if row.kind == kind and row.worse(tolerance / 100)]
    names = ", ".join(_name(column, found) for column in worse) or "no defence is"
    allowed = f" by more than {tolerance:g} points" if tolerance else ""
    said = f"significantly worse than {_name(baseline, found)}{allowed}"
    return not worse, f"{kind}: {said}: {names}" if worse else f"{kind}: {names} {said}"


def write_csv(
    found: Sequence[Comparison], baseline: Column, counting: Counting, path: Path
) -> None:
    """Every number in full, as shares; the baseline's own lines have no difference."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_HEAD)
        for row in found:
            apart, test, own = row.difference, row.test, row.accuracy
            writer.writerow(
                (
                    row.column.run, row.column.defense, baseline.run, baseline.defense, row.kind,
                    "" if row.kind == CLEAN else " ".join(row.column.attacks), counting,
                    own.n, row.left_out, own.draws, own.accuracy, own.low, own.high,
                    row.reference.accuracy,
                    *((apart.difference, apart.low, apart.high) if apart else ("",) * 3),
                    *((test.only_first, test.only_second, test.p_value) if test else ("",) * 3),
                )
            )  # fmt: skip


def latex(found: Sequence[Comparison], remarks: Sequence[str]) -> str:
    """A tabular that needs the package booktabs and nothing else; the remarks are comments."""
    tested, several = _tested(found), _several(found)
    heads = [*(["run"] if several else []), "defence", *map(_escaped, _heads(tested))]
    names = 1 + several
    lines = ["% " + " ".join(remark.split()) for remark in remarks]
    lines.append(rf"\begin{{tabular}}{{{'l' * names}{'r' * (len(heads) - names)}}}")
    lines += [r"\toprule", " & ".join(heads) + r" \\"]
    for kind, rows in _by_kind(found):
        title = _escaped(_title(kind, rows))
        lines += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{l}}{{{title}}} \\"]
        for row in rows:
            name = [*([row.column.run] if several else []), row.column.defense]
            cells = [*map(_escaped, name), *map(_mathematics, _cells(row, tested))]
            lines.append(" & ".join(cells) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _heads(tested: bool) -> list[str]:
    return ["n", "accuracy (%)", "difference (points)", *(["alone", "p"] if tested else [])]


def _cells(row: Comparison, tested: bool) -> list[str]:
    """The cells of a line, but for its name."""
    apart = "baseline" if row.difference is None else difference(row.difference.as_dict())
    cells = [str(row.accuracy.n), interval(row.accuracy.as_dict()), apart]
    if tested:
        test = row.test
        cells += ["", ""] if test is None else [
            f"{test.only_first} / {test.only_second}",
            "<0.001" if test.p_value < 0.001 else f"{test.p_value:.3f}",
        ]  # fmt: skip
    return cells


def _title(kind: str, rows: Sequence[Comparison]) -> str:
    if kind != ROBUST:
        return kind
    attacks = dict.fromkeys(attack for row in rows for attack in row.column.attacks)
    if len(attacks) == 1:
        return f"robust: {', '.join(attacks)}"
    return f"robust: per sample the worst of {', '.join(attacks)}"


def _by_kind(found: Sequence[Comparison]) -> Iterator[tuple[str, list[Comparison]]]:
    for kind in dict.fromkeys(row.kind for row in found):
        yield kind, [row for row in found if row.kind == kind]


def _tested(found: Sequence[Comparison]) -> bool:
    return any(row.test is not None for row in found)


def _several(found: Sequence[Comparison]) -> bool:
    return len({row.column.run for row in found}) > 1


def _name(column: Column, found: Sequence[Comparison]) -> str:
    return column.name if _several(found) else column.defense


def _threat(column: Column) -> str | None:
    return next(iter(column.attacked.values())).threat


def _draws(column: Column) -> int:
    return len(next(iter(column.attacked.values())).predictions)


def _facts(results: Mapping[str, Any]) -> dict[str, Any]:
    run = results.get("run", {})
    return {key: run[key] for key in FACTS if key in run}


def _hashes(results: Mapping[str, Any]) -> dict[str, str]:
    return results.get("provenance", {}).get("data") or {}


def _differing(key: str, own: Any, its: Any) -> Iterator[tuple[str, Any, Any]]:
    """The names and both values of what is not the same."""
    if not isinstance(own, dict) or not isinstance(its, dict):
        own, its, prefix = {"": own}, {"": its}, key
    else:
        prefix = f"{key} "
    for name in dict.fromkeys((*its, *own)):
        ours, theirs = own.get(name, "nothing"), its.get(name, "nothing")
        if ours != theirs:
            yield f"{prefix}{name}", ours, theirs


def _escaped(text: str) -> str:
    """For LaTeX. A cell that starts with [ or * would be taken for an option of the line's end."""
    found = "".join(LATEX.get(character, character) for character in " ".join(text.split()))
    return "{}" + found if found[:1] in ("[", "*") else found


def _mathematics(cell: str) -> str:
    """A number with its interval as a formula, for the minus signs; words as they are."""
    numeric = cell[:1] in tuple("+-<0123456789")
    return "$" + cell.replace(" ", r"\ ") + "$" if numeric else cell
