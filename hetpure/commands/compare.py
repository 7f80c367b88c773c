"""`hetpure compare`: the defences of several runs, paired by image."""

import sys
from pathlib import Path

from hetpure.commands.parsing import call, parser_of
from hetpure.disk import write_whole
from hetpure.errors import InputError
from hetpure.evaluation import compare as comparing
from hetpure.evaluation.protocol import CLEAN
from hetpure.evaluation.reading import read_results
from hetpure.evaluation.results import Counting
from hetpure.evaluation.store import CONFIG, PAGE
from hetpure.program import FAILED
from hetpure.report import comparison
from hetpure.report.leaderboard import Contribution, address, compare_page
from hetpure.report.sheet import wide_console


def compare(
    runs: list[str],
    baseline: str | None = None,
    attack: str = comparing.ROBUST,
    protocol: Counting = "single",
    tolerance: float = 0.0,
    csv: str | None = None,
    latex: str | None = None,
    html: str | None = None,
) -> None:
    """Compares every defence of these runs with one of them, on the samples that both have.

    Exit code 0: under attack no defence is significantly worse than the baseline; 1: one is, its
    whole 95% interval is below zero, or below the tolerated drop; 2: the input cannot be compared.
    Intervals are not corrected for their number.

    Args:
        runs: folders of runs, as hetpure evaluate writes them.
        baseline: defence that all others are compared with, as DEFENCE or RUN:DEFENCE, RUN being
            the folder's name; by default the first defence of the first run.
        attack: robust, for each sample the worst over the attacks of its run, or an attack's name.
        protocol: what counts as right: single, the mean over draws; vote, their majority; worst,
            all of them, with the null attack beside it; mean_logit and mean_probability, the class
            of the mean over the draws; dw_box, the mean under an attack that knew noise.
        tolerance: drop in points that is allowed.
        csv: file to write every number to.
        latex: file to write a tabular to; it needs the package booktabs.
        html: file to write a page to: a leaderboard of all defences, whole in one file.
    """
    if not 0 <= tolerance <= 100:
        raise InputError(f"--tolerance must be in [0, 100] points, got {tolerance:g}")
    for name, target in (("csv", csv), ("latex", latex), ("html", html)):
        if target is not None and (Path(target).is_dir() or not Path(target).parent.is_dir()):
            raise InputError(f"--{name} {target}: a file in a folder that exists is needed")
    read = comparing.read_runs(runs)
    columns, absent = comparing.read_columns(read, attack, protocol)
    reference = comparing.find_baseline(columns, baseline)
    compared = comparing.compare(columns, reference, attack, protocol)
    cautions = list(comparison.cautions(read, columns, absent, reference, protocol))
    for line in cautions:
        print(f"warning: {line}", file=sys.stderr)
    remarks = comparison.notes(compared, reference, protocol)
    _, clean = comparison.verdict(compared, reference, CLEAN, tolerance)
    passed, attacked = comparison.verdict(compared, reference, attack, tolerance)
    console = wide_console()
    sheets = comparison.sheets(compared)
    console.print(*(sheet.terminal(wrap=False) for sheet in sheets))
    for line in (*remarks, clean, attacked):
        console.print(line)
    if csv is not None:
        comparison.write_csv(compared, reference, protocol, Path(csv))
    if latex is not None:
        Path(latex).write_text(comparison.latex(sheets, remarks), "utf-8")
    if html is not None:
        folders = {run.name: Path(path) for run, path in zip(read, runs, strict=True)}
        results = {name: read_results(folder) for name, folder in folders.items()}
        listed = [
            Contribution.of(
                name,
                results[name],
                config=address(folder / CONFIG, Path(html)),
                page=address(folder / PAGE, Path(html)),
            )
            for name, folder in folders.items()
        ]
        notes = (*remarks, clean, attacked)
        page = compare_page(compared, protocol, results, listed, cautions, notes)
        write_whole(Path(html), page.encode())
    if not passed:
        sys.exit(FAILED)


def main(arguments: list[str]) -> None:
    """Parses the arguments and compares."""
    parser = parser_of(compare, "runs")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders of runs")
    call(compare, arguments, parser)
