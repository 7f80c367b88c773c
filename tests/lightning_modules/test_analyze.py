"""`hetpure analyze`: in the folder of a run, resumable, and what it refuses."""

import csv
import json
from pathlib import Path

import pytest
import yaml

from hetpure.__main__ import main as hetpure_main
from hetpure.analysis import ANALYSES
from hetpure.analysis.store import FOLDER, NUMBERS, PICTURE, TABLE
from hetpure.evaluation.store import Store
from hetpure.program import FAILED
from tests.lightning_modules.conftest import Finished
from tests.lightning_modules.runs import refused

CONFIG = ("analyze", "--config=config.yaml")
SMALL = ("--what", "randomness", "gap", "--images=2", "--randomness.more_eot=2", "--gap.draws=2")


def test_it_goes_on_in_the_folder_of_a_finished_run(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the evaluation's files stay as they are; the same command computes nothing again."""
    before = {path.name: path.read_bytes() for path in copied.glob("blocks/*")}
    config = (copied / "config.yaml").read_text()
    hetpure_main([*CONFIG, *SMALL])
    printed = " ".join(capsys.readouterr().out.split())
    assert "was not checked" not in printed
    assert "masked: of" in printed and "are gradient noise" in printed
    assert "plain: it draws no noise" in printed
    assert {path.name: path.read_bytes() for path in copied.glob("blocks/*")} == before
    assert yaml.safe_load((copied / "config.yaml").read_text()) == yaml.safe_load(config)
    folder = copied / FOLDER / "randomness"
    numbers = json.loads((folder / NUMBERS).read_text())
    with (folder / TABLE).open() as file:
        assert len(list(csv.DictReader(file))) == len(numbers["lines"]) == 2 * 6
    assert numbers["network_calls"] > 0
    assert (folder / PICTURE).exists() and (copied / FOLDER / "gap" / PICTURE).exists()
    parts = {path: path.stat().st_mtime_ns for path in copied.glob(f"{FOLDER}/*/blocks/*")}
    assert len(parts) == 2 * 2
    (folder / NUMBERS).unlink()
    hetpure_main([*CONFIG, *SMALL])
    assert {path: path.stat().st_mtime_ns for path in copied.glob(f"{FOLDER}/*/blocks/*")} == parts
    assert json.loads((folder / NUMBERS).read_text()) == numbers


def test_a_row_that_was_struck_out_is_left_out_and_said(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the numbers too; and where all rows are, no earlier numbers stay."""
    only = (*CONFIG, "--what", "randomness", "--images=2", "--randomness.more_eot=2")
    store = Store(copied)
    store.strike("masked", "its answers are random")
    with pytest.raises(SystemExit) as ended:
        hetpure_main([*only])
    assert ended.value.code == FAILED
    folder = copied / FOLDER / "randomness"
    numbers = json.loads((folder / NUMBERS).read_text())
    assert {line["row"] for line in numbers["lines"]} == {"plain"}
    assert "masked is left out: its answers are random" in numbers["notes"]
    assert numbers["notes"][1].startswith("attack: ")
    assert "masked is left out of randomness" in capsys.readouterr().err
    store.strike("plain", "so are its")
    with pytest.raises(SystemExit):
        hetpure_main([*only])
    assert [path.name for path in folder.iterdir()] == ["blocks"]


def test_a_plan_says_the_calls_and_computes_nothing(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hetpure_main([*CONFIG, "--plan", "--rows", "masked", "--images=4"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in ANALYSES)
    assert "4 images of each defence" in " ".join(printed.split())
    assert not Path("runs").exists()


def test_what_it_refuses(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, said in (
        (("--what", "colours"), "--what 'colours' is none of: randomness, "),
        (("--rows", "nobody"), "--rows 'nobody' is none of: plain, masked"),
        (("--images=0",), "--images must be >= 1"),
        (("--images=5",), "--images 5: the data have 4; give a larger --data.limit"),
        (("--randomness.more_eot=1",), "--randomness.more_eot must be >= 2, got 1"),
        (("--model.attack=hetpure.attacks.Square",), "attack is a Square"),
        (("--model.attack.steps=1", "--what", "trajectories"), "steps >= 2"),
        (("--gap.scales=[20]", "--what", "gap"), "is above 1: give smaller --gap.scales"),
        (("--knowledge.steps=[5000]",), "--knowledge.steps must be in [1, "),
        (("--randomness.more_eot=100000",), "--randomness.more_eot times eot_samples"),
        (("--convergence.eot=[100000]",), "--convergence.eot is too large: eot_samples must be <="),
        (("--convergence.restarts=[1000]",), "--convergence.restarts is too large: restarts"),
    ):
        assert said in refused(capsys, *CONFIG, *options, program=hetpure_main)
    assert not Path("runs").exists()


def test_an_evaluation_goes_on_where_an_analysis_began(place: Path, finished: Finished) -> None:
    """The folder is that of the same run: one identity."""
    hetpure_main([*CONFIG, "--what", "gap", "--images=1", "--rows", "plain"])
    ours = json.loads(Path("runs/one/run.json").read_text())
    theirs = json.loads((finished.folder / "run.json").read_text())
    notes = json.loads(Path(f"runs/one/{FOLDER}/gap/{NUMBERS}").read_text())["notes"]
    assert "plain: its gradient was not checked; `hetpure evaluate` does that" in notes
    assert ours["identity"] == theirs["identity"]
