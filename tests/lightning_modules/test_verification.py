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
from safetensors.torch import save_file

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.store import Job, Store
from hetpure.saved_images import block_path, read_header
from lightning_modules.verification import main
from tests.lightning_modules.runs import ALONE, refused
from tests.lightning_modules.runs import main as run

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


def changed(
    folder: Path, change: Callable[[list[Record], torch.Tensor], Any], row: str = "masked"
) -> None:
    """Another content of all blocks of a row under its main attack."""
    store = Store(folder)
    run = json.loads((folder / "run.json").read_text())
    attack = run["facts"]["rows"][row]["base"]
    for block in range(2):
        job = Job(row, attack, block)
        finished, images = store.get(job), store.block_images(job)
        records, images = change(finished.records, images)
        store.put(job, replace(finished, records=records), images)


def flat(printed: str) -> str:
    """Without line breaks."""
    return " ".join(printed.split())


def each(**fields: Callable[[Record], Any]) -> Callable[[list[Record], torch.Tensor], Any]:
    """The same images with other fields of their records."""
    return lambda records, images: (
        [replace(r, **{name: new(r) for name, new in fields.items()}) for r in records],
        images,
    )


def test_an_honest_run_is_verified(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also a part of one, and on other draws: what is right anew is a function of the seed."""
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert verified() and verified("--seed=1")
    printed = capsys.readouterr().out
    assert "verified: all" in printed and "within chance" in printed
    assert "OUTSIDE" not in printed and "UNFINISHED" not in printed
    assert "robust" in printed and "0 of 4 images answer otherwise" in printed
    assert "audit:" not in printed and "dw both" in printed
    assert "claims of accuracy within chance" in printed and "not measured again" in flat(printed)
    after = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    assert before == after
    for path in (copied / "blocks").glob("00001-*"):
        path.unlink()
    assert "older than the records" in refused(capsys, RUN, program=main)
    (copied / "results.json").unlink()  # which is of the whole run
    assert verified()
    printed = capsys.readouterr().out
    assert "UNFINISHED: " in printed and "all" not in printed.rpartition("UNFINISHED")[2]


def test_answers_that_nobody_gave_are_found(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every answer is claimed to be right, on draws enough to see that it is not so; the per-sample
    worst is then a lie too."""
    run("--model.protocol.report_draws=40", *ALONE)
    (place / "runs/one/results.json").unlink()
    changed(place / "runs/one", each(predictions=lambda r: [r.label] * 40))
    assert not verified()
    printed = capsys.readouterr().out
    assert printed.count("OUTSIDE") >= 2 and "not within chance" in printed
    assert [line for line in printed.splitlines() if "robust" in line and "OUTSIDE" in line]


@pytest.mark.parametrize(
    ("change", "row", "said"),
    [
        (lambda records, images: (records, 1 - images), "masked", "lies outside the ball"),
        (each(label=lambda r: (r.label + 1) % 4), "masked", "labels are not those of the data"),
        (lambda records, images: (records[:1], images[:1]), "masked", "records of 1 images"),
        (each(predictions=lambda r: [0] * (1 + r.sample % 2)), "masked", "not 2 draws each"),
        (each(selection=lambda r: [2 - r.kept], chosen=lambda r: 0), "masked", "selection draws"),
        (each(threat=lambda r: "linf 0.5"), "masked", "its ball or its known noise"),
        (each(known=lambda r: ["forward"]), "masked", "its ball or its known noise"),
        (
            each(predictions=lambda r: [(r.predictions[0] + 1) % 4]),
            "plain",
            "4 of 4 images answer otherwise",
        ),
    ],
    ids=["images", "labels", "cut", "draws", "kept", "threat", "known", "fixed answers"],
)
def test_other_images_and_records_are_found(
    copied: Path, capsys: pytest.CaptureFixture[str], change: Any, row: str, said: str
) -> None:
    changed(copied, change, row)
    assert not verified()
    assert said in capsys.readouterr().out


def test_other_ids_of_a_file_are_found(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(copied)
    base = json.loads((copied / "run.json").read_text())["facts"]["rows"]["masked"]["base"]
    path = block_path(copied, "masked", base, 0)
    header, (images, ids) = read_header(path), store.saved_block(Job("masked", base, 0))
    save_file({"images": images, "samples": ids + 7}, path, header)
    assert not verified()
    assert "its samples are not those of the data" in capsys.readouterr().out
    save_file({"samples": ids}, path, header)
    assert "holds no block" in refused(capsys, RUN, program=main)


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no rows": (lambda run: run["facts"].pop("rows"), "run.json is damaged"),
    "no identity": (lambda run: run.update(identity=[]), "run.json is damaged"),
    "other facts": (lambda run: run["facts"].update(weaker_than_full=[]), "facts.weaker_than_full"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_description_is_one_line(
    copied: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = copied / "run.json"
    change, said = DAMAGE[name]
    run = json.loads(path.read_text())
    change(run)
    path.write_text(json.dumps(run))
    assert said in refused(capsys, RUN, program=main)


def test_a_record_of_other_types_is_one_line(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed(copied, each(predictions=lambda r: "ab"))
    assert "is no block of this version" in refused(capsys, RUN, program=main)


def test_a_page_that_says_more_than_its_records_is_found(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / "results.json"
    results = json.loads(path.read_text())
    results["defenses"]["masked"]["robust"]["single"]["accuracy"] = 0.987
    results["defenses"]["masked"]["clean"]["single"]["n"] = 9999
    results["defenses"]["copied"] = results["defenses"]["plain"]
    path.write_text(json.dumps(results))
    assert not verified()
    printed = capsys.readouterr().out
    assert "within chance" in printed and printed.count("it says") == 3
    assert "masked.robust.single.accuracy: it says 0.987, the records" in printed
    assert "masked.clean.single.n: it says 9999, the records 4" in printed
    assert "copied: it says" in printed


FOREIGN = {
    "a class": {"data": {"class_path": "foreign_code.Data"}},
    "a bare name": {"data": "foreign_code.Data"},
    "an attack": {"model": {"attack": "foreign_code.Attack"}},
    "another file": {"model": {"attack": "attack.yaml"}},
    "a distance": {
        "model": {
            "attack": {
                "class_path": "hetpure.attacks.FilterAttack",
                "init_args": {"distance": "foreign_code.distance"},
            }
        }
    },
    "another's module": {"data": "hetpure.program.os.system"},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_classes_are_refused_before_they_are_imported(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    place = copied.parent.parent
    (place / "foreign_code.py").write_text(
        "open('it_ran', 'w')\nclass Data: ...\ndef distance(): ...\n"
    )
    (place / "attack.yaml").write_text("class_path: foreign_code.Attack\n")
    monkeypatch.syspath_prepend(place)
    config = yaml.safe_load((copied / "config.yaml").read_text())
    for part, settings in FOREIGN[name].items():
        config[part] = config[part] | settings if part == "model" else settings
    (copied / "config.yaml").write_text(yaml.safe_dump(config))

    line = refused(capsys, RUN, program=main)

    assert "--trust" in line
    assert any(name in line for name in ("foreign_code", "'attack.yaml'", "system"))
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


def test_nothing_is_downloaded_without_trust(
    copied: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def snapshot(*_: Any, download: bool) -> Path:
        assert not download
        raise FileNotFoundError

    monkeypatch.setattr("hetpure.weights.hub._snapshot", snapshot)
    config = yaml.safe_load((copied / "config.yaml").read_text())
    config["model"]["classifier"] = "hf://nobody/nothing"
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    assert "would be downloaded" in refused(capsys, RUN, program=main)
