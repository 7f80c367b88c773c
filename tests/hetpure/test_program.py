"""How a program ends, on any terminal and whatever is in its run's folder."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hetpure.__main__ import main
from hetpure.program import UNREAD, run
from tests.hetpure.run_records import DRAWS, defended, lines, stored


@pytest.mark.parametrize("name", ["é", r"$\bm{t}^*$", "[/x]", "a|b", "名"])
def test_a_terminal_without_the_letters_of_a_name_shows_their_codes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored(tmp_path, [*defended(name, [1, 2]), *lines(name, "null", [DRAWS] * 2)], images=2)
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, encoding="ascii"))
    run(main, ["report", str(tmp_path)])
    sys.stdout.flush()
    assert name.encode("ascii", "backslashreplace") in shown.getvalue()
    assert name.replace("|", r"\|") in (tmp_path / "report.md").read_text("utf-8")


@pytest.mark.parametrize("content", [b"", "é".encode("latin-1"), b"\x00\xff"])
def test_a_saved_config_that_is_damaged_costs_no_results(content: bytes, tmp_path: Path) -> None:
    """It is for people: results hold it as far as it can be read."""
    stored(tmp_path, [*defended("a", [1, 2]), *lines("a", "null", [DRAWS] * 2)], images=2)
    (tmp_path / "config.yaml").write_bytes(content)
    run(main, ["report", str(tmp_path)])
    assert (tmp_path / "results.json").is_file() and (tmp_path / "report.md").is_file()


def test_a_reader_that_has_enough_ends_a_command_quietly() -> None:
    """As `hetpure configs | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "hetpure", "configs"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert (done.returncode, done.stderr) == (UNREAD, "")


@pytest.mark.parametrize(
    ("module", "without"),
    [
        ("hetpure.__main__", ("torch", "lightning", "matplotlib", "scipy")),
        ("hetpure.commands.compare", ("lightning", "matplotlib", "scipy.stats")),
        ("hetpure.commands.report", ("lightning", "scipy.stats")),
    ],
)
def test_a_command_imports_what_it_needs_alone(module: str, without: tuple[str, ...]) -> None:
    """So that it starts at once."""
    look = f"import sys, {module}; print({without!r} & sys.modules.keys())"
    look = look.replace(repr(without), repr(set(without)))
    done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
