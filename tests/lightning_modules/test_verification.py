"""`hetpure verify`: honest runs are verified; every lie, and all foreign code, is found."""

import importlib
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.store import Job, Store
from lightning_modules.verification import main
from tests.lightning_modules.runs import refused

RUN = "runs/one"


@pytest.fixture(autouse=True)
def _parser_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the command forbids the parser holds for its process, which here runs other tests."""
    settings = importlib.import_module("jsonargparse._common").parsing_settings
    for name in ("import_path_verdicts", "import_paths_enforced"):
        monkeypatch.setitem(settings, name, settings[name])


def verified(*options: str) -> bool:
    """Whether the command ends well, and not with 1, for a claim that does not hold."""
    code: Any = 0
    try:
        main([RUN, *options])
    except SystemExit as stop:
        code = stop.code
    assert code in (0, 1)
    return code == 0


def changed(folder: Path, change: Callable[[list[Record], torch.Tensor], Any]) -> None:
    """Another content of all blocks of the masked row under attack."""
    store = Store(folder)
    run = json.loads((folder / "run.json").read_text())
    attack = run["facts"]["rows"]["masked"]["base"]
    for block in range(2):
        job = Job("masked", attack, block)
        finished, images = store.get(job), store.block_images(job)
        records, images = change(finished.records, images)
        store.put(job, replace(finished, records=records), images)


def test_an_honest_run_is_verified(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also a part of one, and on other draws: what is right anew is a function of the seed."""
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert verified() and verified("--seed=1")
    printed = capsys.readouterr().out
    assert "verified: all" in printed and "OUTSIDE" not in printed
    assert "audit" not in printed and "dw both" in printed
    after = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert before == after
    for path in (copied / "blocks").glob("00001-*"):
        path.unlink()
    (copied / "results.json").unlink()  # which is of the whole run
    assert verified()


def test_answers_that_nobody_gave_are_found(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every answer is claimed to be right, on draws enough to see that it is not so."""

    def turned(records: list[Record], images: torch.Tensor) -> tuple[list[Record], torch.Tensor]:
        return [replace(record, predictions=[record.label] * 40) for record in records], images

    (copied / "results.json").unlink()
    changed(copied, turned)
    assert not verified()
    printed = capsys.readouterr().out
    assert printed.count("OUTSIDE") == 1 and "NOT verified: 1 of 9 claims" in printed


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda records, images: (records, 1 - images), "lies outside the ball"),
        (
            lambda records, images: (
                [replace(r, label=(r.label + 1) % 4) for r in records],
                images,
            ),
            "labels are not those of the data",
        ),
    ],
    ids=["images", "labels"],
)
def test_other_images_and_labels_are_found(
    copied: Path, capsys: pytest.CaptureFixture[str], change: Any, said: str
) -> None:
    changed(copied, change)
    assert not verified()
    assert said in capsys.readouterr().out


def test_a_page_that_says_more_than_its_records_is_found(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "results.json"
    results = json.loads(path.read_text())
    results["defenses"]["masked"]["robust"]["single"]["accuracy"] = 0.987
    path.write_text(json.dumps(results))
    assert not verified()
    printed = capsys.readouterr().out
    assert "all 9 claims agree" in printed
    assert "masked, robust, single: it says 98.7%, the records" in printed


FOREIGN = {
    "a class": {"data": {"class_path": "foreign_code.Data"}},
    "a bare name": {"data": "foreign_code.Data"},
    "an attack": {"model": {"attack": "foreign_code.Attack"}},
    "another file": {"model": {"attack": "attack.yaml"}},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_classes_are_refused_before_they_are_imported(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = copied.parent.parent
    (place / "foreign_code.py").write_text("open('it_ran', 'w')\nclass Data: ...\n")
    (place / "attack.yaml").write_text("class_path: foreign_code.Attack\n")
    monkeypatch.syspath_prepend(place)
    config = yaml.safe_load((copied / "config.yaml").read_text())
    for part, settings in FOREIGN[name].items():
        config[part] = config[part] | settings if part == "model" else settings
    (copied / "config.yaml").write_text(yaml.safe_dump(config))

    line = refused(capsys, RUN, program=main)

    assert "--trust" in line and ("foreign_code" in line or "'attack.yaml'" in line)
    assert not (place / "it_ran").exists() and "foreign_code" not in sys.modules


def test_networks_with_code_of_their_own_are_refused(
    copied: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((copied / "config.yaml").read_text())
    folder = copied.parent / "weights"
    folder.mkdir()
    content = json.loads((world / "classifier" / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"architecture": "this.Network"}))
    config["model"]["classifier"] = str(folder)
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    assert "'this.Network' is not hetpure's" in refused(capsys, RUN, program=main)


def test_other_weights_and_settings_are_another_run(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config of a strong attack beside the images of a weak one."""
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["model"]["attack"]["init_args"]["steps"] = 50
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    assert "config.attack.steps: 2, now 50" in refused(capsys, RUN, program=main)


def test_no_run_and_no_config_are_one_line(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no run" in refused(capsys, "runs", program=main)
    (copied / "config.yaml").write_text("- 1\n")
    assert "no config of an evaluation" in refused(capsys, RUN, program=main)
