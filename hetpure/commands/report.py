"""`hetpure report`: results and pages of a run, from what its folder holds."""

from pathlib import Path

from hetpure.commands.parsing import call
from hetpure.errors import InputError
from hetpure.report.report import report as write_and_print


def report(run: str) -> None:
    """Writes and prints results and report of a run, finished or not, from what its folder holds.

    Args:
        run: the folder, as hetpure evaluate writes it.
    """
    if not Path(run).is_dir():
        raise InputError(f"{run}: there is no such folder; give its path, as runs/evaluate/NAME")
    write_and_print(Path(run))


def main(arguments: list[str]) -> None:
    """Parses the arguments and reports."""
    call(report, arguments)
