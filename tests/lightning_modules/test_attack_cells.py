"""Further attacks, DW-box, null attack and audit through `evaluate.py`, and runs that go on."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import evaluate
from hetpure.attacks import Threat
from hetpure.numbers import Number
from hetpure.saved_images import saved_images
from lightning_modules import blocks as module
from lightning_modules.cli import run

CONFIG = """
model:
  run: one
  classifier: fashion_mnist_wrn
  denoisers: {ddpm: fashion_mnist_ddpm}
  defenses:
    plain: {}
    uniform:
      denoiser: ddpm
      purifier:
        class_path: hetpure.purifiers.UniformPurifier
        init_args: {strength: 0.1, steps: 20, sampler: {class_path: hetpure.samplers.DDPM}}
    masked:
      denoiser: ddpm
      mask: {threshold: 0.5}
      purifier:
        class_path: hetpure.purifiers.HeterogeneousPurifier
        init_args: {t_large: 0.1, t_small: 0.05, steps: 20, resampling: none}
  attack:
    class_path: hetpure.attacks.PGD
    init_args: {epsilon: 16/255, steps: 2, step_size: 4/255, eot_samples: 2}
  attacks:
    square:
      attack:
        class_path: hetpure.attacks.Square
        init_args: {epsilon: 16/255, steps: 2, eot_samples: 1}
      limit: 3
    warped:
      attack:
        class_path: hetpure.attacks.StAdv
        init_args: {steps: 1, eot_samples: 1, mask: recomputed}
      defenses: [plain]
    dw both: &dw
      attack:
        class_path: hetpure.attacks.PGD
        init_args: {epsilon: 16/255, steps: 1, mask: recomputed}
      known: [forward, reverse]
      defenses: [plain, uniform]
    dw forward:
      <<: *dw
      known: [forward]
  protocol: {report_draws: 3, selection_draws: 2}
  audit: {images: 2, queries: 2}
  folder: runs
data:
  class_path: datamodules.fashion_mnist.FashionMNIST
  init_args: {source: packaged, test_split: test, limit: 4, batch_size: 2}
trainer:
  accelerator: cpu
  devices: 1
  inference_mode: false
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""
EVALUATE = ["--config=config.yaml"]


class Finished:
    """A whole run: its folder and what it left there."""

    def __init__(self, place: Path) -> None:
        (place / "config.yaml").write_text(CONFIG)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(place)
            evaluate.main(EVALUATE)
        self.folder = place / "runs" / "one"
        self.records = (self.folder / "records.jsonl").read_text()
        self.results: dict[str, Any] = json.loads((self.folder / "results.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return Finished(tmp_path_factory.mktemp("finished"))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run's folder, copied, in a folder where the same command goes on with it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return Path(shutil.copytree(finished.folder, tmp_path / "runs" / "one"))


def attacks(finished: Finished, row: str) -> dict[str, Any]:
    found: dict[str, Any] = finished.results["defenses"][row]["attacks"]
    return found


def test_every_attack_is_where_it_makes_sense(finished: Finished) -> None:
    masks = [f"pgd_linf, {kind} mask" for kind in ("frozen", "recomputed", "soft")]
    assert list(attacks(finished, "masked")) == [*masks, "square"]
    assert list(attacks(finished, "plain")) == ["pgd_linf", "square", "warped"]
    assert list(attacks(finished, "uniform")) == ["pgd_linf", "square", "dw both", "dw forward"]


def test_protocols_of_each_attack(finished: Finished) -> None:
    uniform = attacks(finished, "uniform")
    for name, found in uniform.items():
        counted = set(found) & {"single", "vote", "worst", "locked"}
        assert counted == ({"locked"} if "dw" in name else {"single", "vote", "worst"})
        if "dw" in name:
            assert found["success"] is None
        else:
            assert 0 <= found["success"]["accuracy"] <= 1
    assert uniform["dw both"]["locked"]["draws"] == 1
    assert uniform["dw forward"]["locked"]["draws"] == 3
    assert uniform["square"]["single"]["n"] == 3
    assert uniform["pgd_linf"]["eot_agreement"] is not None
    assert uniform["square"]["eot_agreement"] is None


def test_robust_is_the_worst_in_the_ball(finished: Finished) -> None:
    plain = finished.results["defenses"]["plain"]
    assert list(plain["robust"]["attacks"]) == ["pgd_linf"]
    assert list(plain["robust_by_all"]["attacks"]) == ["pgd_linf", "square"]
    masked = finished.results["defenses"]["masked"]
    assert sum(masked["robust"]["attacks"].values()) == 4
    for row in (plain, masked):
        assert (
            row["null_attack"]["difference"]["low"] <= 0 <= row["null_attack"]["difference"]["high"]
        )


def test_the_audit_is_in_results_report_and_terminal(finished: Finished) -> None:
    for name, checks in (("plain", 8), ("uniform", 13), ("masked", 13)):
        audit = finished.results["defenses"][name]["audit"]
        assert len(audit) == checks, [check["name"] for check in audit]
        assert {check["verdict"] for check in audit} <= {"PASS", "WARN", "FAIL"}
    report = (finished.folder / "report.md").read_text()
    for part in (
        "**Audit**",
        "null attack",
        "saved images",
        "8-bit images",
        "dw both (forward+reverse",
    ):
        assert part in report


def test_images_of_every_attack_are_saved(finished: Finished) -> None:
    clean, samples = saved_images(finished.folder, "masked", "clean")
    assert clean.shape == (4, 1, 28, 28)
    found, ids = saved_images(finished.folder, "masked", "square")
    assert ids.tolist() == samples.tolist()[:3]
    assert 0 < (found - clean[:3]).abs().max() <= 16 / 255 + 1e-6


def test_records_hold_every_sample_once(finished: Finished) -> None:
    lines = [json.loads(line) for line in finished.records.splitlines()]
    keys = [(line["defense"], line["attack"], line["sample"]) for line in lines]
    assert len(set(keys)) == len(keys)
    assert {line["attack"] for line in lines if line["attack"].startswith("audit")} >= {
        "audit: more steps", "audit: locked noise", "audit: 8-bit images", "audit: transfer",
    }  # fmt: skip


@pytest.mark.parametrize("kept", [40, 77], ids="{} lines left".format)
def test_a_stopped_run_goes_on_to_the_same_records(
    kept: int, finished: Finished, copied: Path
) -> None:
    """Stopped in the middle of a line: what was whole is not computed again."""
    lines = finished.records.splitlines(keepends=True)
    (copied / "records.jsonl").write_text("".join(lines[:kept]) + lines[kept][:30])
    (copied / "results.json").unlink()
    before = len((copied / "timing.jsonl").read_text().splitlines())
    evaluate.main(EVALUATE)

    def by_key(text: str) -> dict[tuple[str, str, int], str]:
        entries = [(json.loads(line), line) for line in text.splitlines()]
        return {(e["defense"], e["attack"], e["sample"]): line for e, line in entries}

    assert by_key((copied / "records.jsonl").read_text()) == by_key(finished.records)
    results = json.loads((copied / "results.json").read_text())
    for name, row in results["defenses"].items():
        expected = finished.results["defenses"][name]
        for key in ("clean", "attacks", "robust", "null_attack", "audit"):
            assert row[key] == expected[key]
    computed = len((copied / "timing.jsonl").read_text().splitlines()) - before
    blocks = len((finished.folder / "timing.jsonl").read_text().splitlines()) - 1
    assert computed <= blocks - kept // 2
    assert len(results["provenance"]["continued"]) == 1


def test_a_finished_run_computes_nothing_more(
    finished: Finished, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: object, **settings: object) -> None:
        raise AssertionError("computed again")

    for name in ("evaluate_attack", "evaluate_clean"):
        monkeypatch.setattr(module, name, never)
    evaluate.main(EVALUATE)
    assert (copied / "records.jsonl").read_text() == finished.records


def test_another_config_does_not_go_on(
    finished: Finished, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(evaluate.main, [*EVALUATE, "--model.attack.steps=3", "--model.seed=5"])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "model.attack.init_args.steps: 2, now 3" in error
    assert "model.seed: 0, now 5" in error and "--model.run" in error
    assert (copied / "records.jsonl").read_text() == finished.records


def test_other_weights_do_not_go_on(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A classifier that was trained anew in its folder has the same name."""
    path = copied / "sessions.jsonl"
    session = json.loads(path.read_text().splitlines()[0])
    session["weights"]["classifier"] = "0" * 64
    path.write_text(json.dumps(session) + "\n")
    with pytest.raises(SystemExit):
        run(evaluate.main, EVALUATE)
    assert "began with other weights (classifier)" in capsys.readouterr().err.splitlines()[-1]


def test_an_execution_that_is_asked_for_is_not_overruled(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(evaluate.main, [*EVALUATE, '--model.execution={"uniform": {"policy": "checkpoint"}}'])
    assert "another config (model.execution.uniform" in capsys.readouterr().err.splitlines()[-1]


def test_a_ball_is_one_ball_however_its_radius_is_written() -> None:
    found = {Threat("linf", Number(text)).ball for text in ("16/255", str(16 / 255))}
    assert found == {"Linf 0.062745098"}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "--model.attacks.square.defenses=[uniform,gone]",
            "names gone: the rows are plain, uniform",
        ),
        ("--model.attacks.square.limit=0", "square.limit must be >= 1, got 0"),
        ("--model.attacks.square.known=[forward,forward]", "names a group twice"),
        ("--model.audit.images=0", "audit.images must be >= 1"),
    ],
)
def test_unusable_attacks_are_refused(
    option: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(SystemExit):
        run(evaluate.main, [*EVALUATE, option])
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("name", ["clean", "null", "pgd_linf", "audit: mine", "robust"])
def test_taken_names_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG.replace("    square:", f"    '{name}':"))
    with pytest.raises(SystemExit):
        run(evaluate.main, EVALUATE)
    assert f"the name {name!r} is taken" in capsys.readouterr().err.splitlines()[-1]
