"""A finished run of `evaluate.py`: what it leaves, and what may go on with it."""

import json
import shutil
from pathlib import Path

import pytest
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.trainer.states import TrainerFn

from hetpure.evaluation.store import Store
from hetpure.numbers import Number
from lightning_modules.evaluation import RobustnessEvaluation
from tests.lightning_modules import foreign
from tests.lightning_modules.conftest import Finished
from tests.lightning_modules.runs import (
    ALONE,
    PLAIN,
    command,
    main,
    records,
    refused,
    results,
    two_programs,
    write_world,
)

ATTACKS = {"plain": ["pgd_linf", "square"], "masked": ["pgd_linf", "square", "dw both"]}
WRITTEN = {
    *("run.json", "config.yaml", "lock", "measured.json", "blocks", "gradient_checks"),
    *("records.jsonl", "results.json", "report.html", "report.md", "figure.png", "gallery"),
}


def times(folder: Path) -> dict[str, int]:
    """When each block and gradient check was written."""
    paths = [*folder.glob("blocks/*"), *folder.glob("gradient_checks/*")]
    return {path.name: path.stat().st_mtime_ns for path in paths}


def test_the_folder_holds_a_file_for_every_job(finished: Finished) -> None:
    """Noise that a defence does not draw cannot be known: the plain classifier has no DW-box."""
    assert {path.name for path in finished.folder.iterdir()} == WRITTEN
    lines = [json.loads(line) for line in records(finished.place)]
    keys = [(line["defense"], line["attack"], line["sample"]) for line in lines]
    expected = {
        (row, attack, sample)
        for row, attacks in ATTACKS.items()
        for attack in ("clean", "null", *attacks)
        for sample in range(3 if attack == "square" else 4)
    }
    assert len(set(keys)) == len(keys)
    assert {key for key in keys if not key[1].startswith("audit")} == expected
    audited = {key[1:] for key in keys if key[1].startswith("audit")}
    assert "audit: DW-box" in {name for name, _ in audited}
    assert len({sample for _, sample in audited}) == 1, "one image, in the audit's order"


def test_adversarial_images_are_kept(finished: Finished) -> None:
    store = Store(finished.folder)
    clean, samples = store.images("masked", "clean")
    adversarial, attacked = store.images("masked", "square")
    assert clean.shape == (4, 1, 8, 8) and samples.tolist() == [0, 1, 2, 3]
    assert attacked.tolist() == [0, 1, 2]
    assert 0 < (adversarial - clean[:3]).abs().max() <= Number("16/255") + 1e-6


def test_results_say_what_every_row_and_attack_gave(finished: Finished) -> None:
    content = json.loads((finished.folder / "results.json").read_text())
    assert (content["samples"], content["missing"], content["struck"]) == (4, 0, {})
    assert content["config"] == (finished.folder / "config.yaml").read_text()
    lines = [json.loads(line) for line in records(finished.place)]
    for name, row in content["defenses"].items():
        assert list(row["attacks"]) == ATTACKS[name]
        assert row["clean"]["single"]["accuracy"] >= row["robust"]["single"]["accuracy"]
        assert (
            row["gradient_check"]["passed"] and row["purification_calls"] == (name == "masked") * 2
        )
        assert {check["verdict"] for check in row["audit"]} <= {"PASS", "undecided", "WARN", "FAIL"}
        spent = [line["network_calls"] for line in lines if line["defense"] == name]
        assert row["cost"]["network_calls"] == sum(spent)
    masked = content["defenses"]["masked"]["attacks"]
    assert masked["square"]["single"]["n"] == 3
    assert masked["dw both"]["dw_box"]["draws"] == 1 and "single" not in masked["dw both"]
    assert masked["pgd_linf"]["eot_agreement"] is not None
    assert masked["square"]["eot_agreement"] is None


def test_people_are_shown_the_same(finished: Finished) -> None:
    report = (finished.folder / "report.md").read_text()
    for words in ("masked", "robust", "DW-box", "attended", "Weaker than the full protocol"):
        assert words in report and words in finished.printed
    for words in ("**Audit**", "dw both (forward+reverse", "null attack", "8-bit images"):
        assert words in report
    assert finished.printed.startswith("run: runs/one\n")


def test_a_finished_run_computes_nothing_more(
    finished: Finished, copied: Path, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever memory, blocks and paths the next command names: the same weights are the same run.
    Results and report are written anew."""
    before = times(copied)
    for name in ("records.jsonl", "results.json", "report.html", "report.md", "figure.png"):
        (copied / name).unlink()
    (copied / "figure.png").mkdir()  # as where a picture cannot be drawn: it takes nothing with it
    weights = shutil.copytree(world / "classifier", copied.parent / "elsewhere")
    main(f"--model.classifier={weights}", "--model.memory_budget=1MB", "--data.batch_size=4")
    assert times(copied) == before
    assert records(copied.parent.parent) == records(finished.place)
    assert results(copied.parent.parent) == results(finished.place)
    assert "warning: figure.png could not be drawn: " in capsys.readouterr().err
    page = (copied / "report.md").read_text()
    assert "masked" in page and "](figure.png)" not in page
    assert "purified, first draw" in (copied / "report.html").read_text()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("--model.attack.steps=3", "--model.seed=5"), "config.attack.steps: 2, now 3"),
        (("--model.attack.steps=3", "--model.seed=5"), "config.seed: 0, now 5"),
        (("--model.classifier={}/classifier",), "weights.classifier: "),
        (("--data.file={}/images.npz",), "data.files"),
        (
            ('--model.execution={{"masked": {{"policy": "checkpoint"}}}}',),
            "config.execution.masked",
        ),
        (("--model.audit=null",), "config.audit"),
        (("--data.limit=3",), "data.count: 4, now 3"),
    ],
)
def test_another_run_does_not_go_on(
    change: tuple[str, ...], message: str, copied: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Other settings, weights or images: refused with the difference, nothing is touched."""
    other, before = tmp_path / "other", times(copied)
    write_world(other, seed=7)
    options = [option.format(other) for option in change]
    line = refused(capsys, "--config=config.yaml", *options)
    assert message in line and "give another run a folder of its own" in line
    assert times(copied) == before


def test_another_run_can_be_forced_beside_it(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And goes on there, when the same is asked once more."""
    before = times(copied)
    main("--resume=force", *ALONE, PLAIN)
    new = copied.with_name("one-2")
    assert f"this one is in {Path('runs/one-2')}" in capsys.readouterr().out
    assert times(copied) == before and len(times(new)) == 2 * 3 + 1
    computed = times(new)
    main("--resume=force", *ALONE, PLAIN)
    main("--model.run=one-2", *ALONE, PLAIN)
    assert times(new) == computed
    assert not new.with_name("one-3").exists()


def hiding(place: Path) -> list[str]:
    """A second row, whose classifier answers in whole numbers: no gradient, and right as often as
    chance has it."""
    folder = foreign.classifier(place / "hiding", gives="whole numbers", size=8, num_classes=4)
    return [*ALONE, f"--model.defenses={{plain: {{}}, hiding: {{classifier: {folder}}}}}"]


def test_a_row_that_hides_its_gradient_is_struck_out(place: Path) -> None:
    """The others go on, exit code 1 says it, and two processes do the same."""
    options = hiding(place)
    with pytest.raises(SystemExit) as stop:
        main(*options)
    assert stop.value.code == 1
    alone = records(place), results(place)
    assert list(alone[1]["defenses"]) == ["plain"] and list(alone[1]["struck"]) == ["hiding"]
    assert "zero" in alone[1]["struck"]["hiding"] and "BPDA" in alone[1]["struck"]["hiding"]
    assert "struck out: " in (place / "runs/one/report.md").read_text()
    shutil.move("runs", "alone")
    both = [program.ended() for program in two_programs(place, *options)]
    assert both[0][0] == 1 and "hiding is struck out: " in both[0][1] + both[1][1]
    assert both[1][0] == 0, both[1][1]
    assert (records(place), results(place)) == alone


def test_an_attack_without_gradients_goes_on_and_the_audit_fails(place: Path) -> None:
    main(*hiding(place), "--model.audit={images: 1, queries: 2}",
         "--model.attack=hetpure.attacks.Square", "--model.attack.steps=2")  # fmt: skip
    row = results(place)["defenses"]["hiding"]
    verdicts = {check["name"]: check["verdict"] for check in row["audit"]}
    assert verdicts["gradient"] == "FAIL"
    assert row["attacks"]["square_linf"]["single"]["n"] == 4
    assert "hiding: its gradient has no check" in results(place)["weaker_than_full"]
    assert "| gradient | FAIL |" in (place / "runs/one/report.md").read_text()


def test_an_evaluation_is_a_test_of_lightnings_trainer(place: Path) -> None:
    cli = command(*ALONE, PLAIN, "--data.limit=2")
    cli.evaluate()
    assert isinstance(cli, LightningCLI) and isinstance(cli.model, RobustnessEvaluation)
    assert cli.trainer.state.fn == TrainerFn.TESTING and cli.trainer.state.finished
    assert results(place)["samples"] == 2
