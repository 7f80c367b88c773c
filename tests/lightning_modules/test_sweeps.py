"""Sweeps, baselines and surrogates through `evaluate.py`, and the ablations that are shipped."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningDataModule, Trainer
from torch import Tensor

import evaluate
import lightning_modules.rows as rows_module
from datamodules.fashion_mnist import FashionMNIST
from hetpure.attacks import PGD
from hetpure.defense import Defense
from hetpure.evaluation.defense_check import Subject, check_defense_gradient
from hetpure.evaluation.protocol import Block, Cell, Protocol, evaluate_attack, evaluate_clean
from hetpure.evaluation.records import RunFolder
from hetpure.evaluation.results import summarise
from hetpure.purifiers import UniformPurifier
from lightning_modules.cli import run
from lightning_modules.evaluation import RobustnessEvaluation
from lightning_modules.progress import AttackProgress, answering, differentiating
from lightning_modules.rows import Row
from lightning_modules.tasks import Queue

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
model:
  classifier: fashion_mnist_wrn
  denoisers: {ddpm: fashion_mnist_ddpm}
  defenses:
    plain: {}
    base: &base
      denoiser: ddpm
      gradient: checkpoint
      mask: {threshold: 0.5}
      purifier: &purifier
        class_path: hetpure.purifiers.HeterogeneousPurifier
        init_args: {t_large: 0.1, t_small: 0.05, steps: 20, resampling: none}
    with surrogate:
      denoiser: ddpm
      purifier: *purifier
      surrogate:
        class_path: hetpure.purifiers.UniformPurifier
        init_args: {strength: 0.05, steps: 20}
  attack:
    class_path: hetpure.attacks.PGD
    init_args: {epsilon: 16/255, steps: 1, step_size: 4/255, eot_samples: 2, mask: recomputed}
  audit: {images: 1, queries: 2}
  protocol: {report_draws: 3, selection_draws: 2}
  folder: runs
data:
  class_path: datamodules.fashion_mnist.FashionMNIST
  init_args: {source: packaged, test_split: test, limit: 2, batch_size: 1}
trainer:
  accelerator: cpu
  devices: 1
  inference_mode: false
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""
SWEEP = ["--model.sweep.base=base", '--model.sweep.vary={"mask.threshold": [0.3, 0.5]}']


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    return "--config=config.yaml"


class Run:
    """What a sweep printed, wrote and built, and what its gradient checks looked at."""

    def __init__(self, folder: Path) -> None:
        (folder / "config.yaml").write_text(CONFIG)
        self.modules: list[RobustnessEvaluation] = []
        self.checked: list[Defense] = []
        printed = io.StringIO()
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
            patch.chdir(folder)
            patch.setattr(Trainer, "test", self._test(Trainer.test))
            patch.setattr(
                rows_module, "check_defense_gradient", self._check_policies(check_defense_gradient)
            )
            evaluate.main(["--config=config.yaml", *SWEEP])
        self.printed = printed.getvalue()
        (self.folder,) = (folder / "runs").iterdir()
        self.results = json.loads((self.folder / "results.json").read_text())
        (self.module,) = self.modules

    def _test(self, original: Any) -> Any:
        def test(trainer: Trainer, module: RobustnessEvaluation, *rest: Any, **more: Any) -> Any:
            self.modules.append(module)
            return original(trainer, module, *rest, **more)

        return test

    def _check_policies(self, original: Any) -> Any:
        def check_gradient(subject: Subject, *rest: Any, **more: Any) -> Any:
            self.checked.append(subject.attacked)
            return original(subject, *rest, **more)

        return check_gradient


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("swept"))


def test_a_sweep_adds_rows_and_its_base_is_the_baseline(swept: Run) -> None:
    rows = swept.results["defenses"]
    assert list(rows) == ["plain", "base", "with surrogate", "mask.threshold=0.3"]
    assert swept.results["run"]["baseline"] == "base"
    assert [name for name, row in rows.items() if "difference" not in row] == ["base"]
    coverage = [rows[name]["mask_coverage"]["clean"] for name in ("base", "mask.threshold=0.3")]
    assert coverage[0] < coverage[1], "a lower threshold attends to more"


def test_results_hold_the_differences_of_the_records(swept: Run) -> None:
    expected = summarise(RunFolder(swept.folder).read_records(), "base")
    for name, row in swept.results["defenses"].items():
        assert row.get("difference") == expected[name].get("difference")
        if name != "base":
            assert row["difference"].keys() == {"clean", "robust"}
            for difference in row["difference"].values():
                assert difference.keys() == {"difference", "low", "high", "n"}
                assert difference["n"] == 2


@pytest.mark.parametrize("where", ["terminal", "report.md"])
def test_tables_have_the_difference(where: str, swept: Run) -> None:
    text = swept.printed if where == "terminal" else (swept.folder / "report.md").read_text()
    bar = "│" if where == "terminal" else "|"
    lines = [[cell.strip() for cell in line.split(bar)] for line in text.splitlines()]
    last = {cells[1]: cells[-2] for cells in lines if len(cells) == 12}  # of the first table
    assert last["base"] == "-"
    # A terminal breaks long names and cells in two.
    for name in ("plain",) if where == "terminal" else ("plain", "mask.threshold=0.3"):
        assert last[name][0] in "+-" and ("[" in last[name] or where == "terminal")
    assert "difference" in text


def test_the_surrogate_is_attacked_checked_and_named(swept: Run) -> None:
    """The defence: two steps of 100 and one network call each; its surrogate: one."""
    module = swept.module
    rows = module.rows.values()
    assert swept.checked == [
        defense for row in rows for defense in (row.defense, row.surrogate) if defense is not None
    ]
    row = swept.results["defenses"]["with surrogate"]
    named = [line for line in swept.results["weaker_than_full"] if "surrogate" in line]
    assert named == [
        "with surrogate: the attack differentiates a surrogate of 1 network calls,"
        " not the defence's 2 (UniformPurifier, not HeterogeneousPurifier); its gradient has cosine"
        f" {row['surrogate_gradient_check']['cosine_to_exact']:.3f} to the exact one"
    ]
    assert named[0] in (swept.folder / "report.md").read_text()
    assert row["surrogate_gradient_check"]["passed"] and row["gradient_check"]["passed"]
    assert -1 <= row["surrogate_gradient_check"]["cosine_to_exact"] < 0.999
    assert row["gradient_check"]["cosine_to_exact"] > 0.999
    assert "surrogate_gradient_check" not in swept.results["defenses"]["base"]
    assert "| with surrogate (surrogate) | " in (swept.folder / "report.md").read_text()
    assert row["purification_calls"] == 2
    attack = 1 * 2 * 1  # steps, EOT draws, network calls
    # Report and selection of the clean images, the null attack and two candidates; network calls.
    answers = ((3 + 2) + (3 + 2) + (3 + 2 * 2)) * 2
    spent = row["cost"]["network_calls"] - row["cost"]["audit_calls"]
    assert spent == 2 * (attack + answers)


def test_the_bar_ends_at_the_end(swept: Run) -> None:
    (task,) = swept.module.progress.bar.tasks
    assert task.total == task.completed > 0
    assert task.percentage == 100


def test_a_purification_weighs_what_is_run(swept: Run) -> None:
    """Without a gradient the defence's calls, with one the attacked purifier's: a taped step costs
    three passes, a recomputed one four, and the plain classifier counts as one call."""
    assert {
        name: (answering(row.defense), differentiating(row.attacked, None))
        for name, row in swept.module.rows.items()
    } == {
        "plain": (1, 3),
        "base": (2, 8),
        "with surrogate": (2, 3),
        "mask.threshold=0.3": (2, 8),
    }


@pytest.mark.parametrize("restarts", [1, 2])
def test_every_advance_of_the_bar_is_foreseen(restarts: int, swept: Run) -> None:
    """A deterministic surrogate of a stochastic defence asks for one EOT draw only."""
    protocol = Protocol(2, 1)
    plain, defense = (swept.module.rows[name].defense for name in ("plain", "base"))
    cell = Cell("pgd", PGD(steps=1, eot_samples=2, restarts=restarts, mask="recomputed"))
    row = Row("row", defense, plain, (defense, plain), [cell])
    bar = AttackProgress([row], protocol, 2, Queue(1, process=0, processes=1, silence=60))
    block = Block(torch.full((2, 1, 28, 28), 0.5), torch.tensor([0, 1]), torch.tensor([0, 1]))
    clean = evaluate_clean("row", defense, block, protocol, 0, monitor=bar.begun(row, "clean"))
    evaluate_attack(
        "row",
        defense,
        cell,
        block,
        protocol,
        0,
        clean=torch.tensor([record.kept for record in clean.records]),
        attacked=plain,
        monitor=bar.begun(row, "pgd", cell),
    )
    bar.look()
    (task,) = bar.bar.tasks
    assert task.completed == task.total == 2 * (restarts * 3 + 2 * (3 + 2 + 2 * restarts))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model.sweep.base=nobody", SWEEP[1]], "'nobody' is not among the defences: plain"),
        ([SWEEP[0], '--model.sweep.vary={"mask.nothing": [1]}'], "'nothing'"),
        ([SWEEP[0], '--model.sweep.vary={"mask.threshold": ["8/255"]}'], "'8/255'"),
        ([SWEEP[0], '--model.sweep.vary={"mask.threshold": 0.3}'], "sweep"),
        (["--model.sweep.base=plain", '--model.sweep.vary={"purifier.t_large": [1]}'], "t_large"),
        ([SWEEP[0], '--model.sweep.vary={"denoiser": ["addt"]}'], "--model.denoisers (ddpm)"),
        ([SWEEP[0], '--model.sweep.vary={"purifier": [null]}'], "a denoiser a purifier"),
        ([SWEEP[0], '--model.sweep.vary={"purifier.steps": [0]}'], "purifier steps"),
        (["--model.baseline=nobody"], "--model.baseline 'nobody' is not among the defences"),
    ],
)
def test_bad_sweeps(
    options: list[str], said: str, config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(evaluate.main, [config, *options])
    assert stop.value.code == 2
    printed = capsys.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and said in errors[0]
    assert printed.rstrip().endswith(errors[0])
    assert "Traceback" not in printed


def built(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[RobustnessEvaluation, LightningDataModule]:
    """What a command line builds, before anything runs."""
    found = []

    def keep(trainer: Trainer, model: Any, data: Any, verbose: bool) -> None:
        found.append((model, data))

    monkeypatch.setattr(Trainer, "test", keep)
    evaluate.main(options)
    ((model, data),) = found
    return model, data


def test_a_row_that_cannot_run_stops_the_run_before_it_starts(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks are looked up when the mask is made: hours later, were the row's turn waited for."""
    blocks = '--model.sweep.vary={"mask.blocks": [["nowhere"]]}'
    with pytest.raises(SystemExit):
        run(evaluate.main, [config, SWEEP[0], blocks])
    assert "nowhere" in capsys.readouterr().err
    assert not list(Path("runs").glob("*/records.jsonl"))


def test_samplers_by_class_path_and_another_baseline(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers = (
        '{"purifier.sampler": [{"class_path": "hetpure.samplers.DDIM", "init_args": {"eta": 1}},'
        ' {"class_path": "hetpure.samplers.DDPM"}]}'
    )
    options = [config, SWEEP[0], f"--model.sweep.vary={samplers}", "--model.baseline=plain"]
    module, _ = built(options, monkeypatch)
    names = ["purifier.sampler=DDIM(eta=1.0)", "purifier.sampler=DDPM"]
    assert list(module.rows)[3:] == names
    for name, kind in zip(names, ("DDIM", "DDPM"), strict=True):
        purifier = module.rows[name].defense.purifier
        assert type(purifier.sampler).__name__ == kind  # type: ignore[union-attr]
    assert module.baseline == "plain"


def test_no_baseline_unless_asked(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert built([config], monkeypatch)[0].baseline is None


ABLATIONS = sorted((ROOT / "configs" / "evaluate").glob("ablation_*.yaml"))


def ablation_rows(path: Path) -> int:
    """As many as a config asks for."""
    model = yaml.safe_load(path.read_text())["model"]
    vary = model.get("sweep", {}).get("vary", {})
    return len(model["defenses"]) + sum(map(len, vary.values()))


@pytest.fixture
def ablation(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> RobustnessEvaluation:
    monkeypatch.chdir(tmp_path)
    return built(
        ["--config", str(ROOT / "configs" / "evaluate" / f"{request.param}.yaml")], monkeypatch
    )[0]


@pytest.mark.parametrize("ablation", [path.stem for path in ABLATIONS], indirect=True)
def test_every_row_of_an_ablation_builds(
    ablation: RobustnessEvaluation, request: pytest.FixtureRequest
) -> None:
    rows, name = ablation.rows, request.node.callspec.params["ablation"]
    (path,) = (path for path in ABLATIONS if path.stem == name)
    assert len(rows) == ablation_rows(path), "no value is the base's or another row's"
    assert ablation.baseline in rows
    defenses = [row.defense for row in rows.values()]
    assert all(defense.plan for defense in defenses)
    different = {repr((defense.purifier, defense.attention_mask)) for defense in defenses}
    assert len(different) == len(rows), "no two rows are the same defence"


def validation_images() -> tuple[Tensor, Tensor]:
    data = FashionMNIST(source="packaged", test_split="validation", limit=128, batch_size=128)
    data.setup("test")
    (batch,) = data.test_dataloader()
    return batch["image"], batch["sample"]


def counts(rows: dict[str, Row]) -> dict[str, Tensor]:
    """By row: attended pixels of each validation image."""
    images, samples = validation_images()
    masks = {name: row.defense.mask(images, samples) for name, row in rows.items()}
    return {name: mask.flatten(1).sum(1) for name, mask in masks.items() if mask is not None}


@pytest.mark.parametrize("ablation", ["ablation_mask"], indirect=True)
def test_controls_of_the_mask_have_as_many_pixels(ablation: RobustnessEvaluation) -> None:
    found = counts(ablation.rows)
    base = found.pop("heterogeneous 200/100")
    assert (found.pop("every pixel") == 784).all()
    assert list(found) == ["least attended", "random pixels", "mask moved elsewhere"]
    assert all(torch.equal(count, base) for count in found.values())
    assert (base > 0).all() and (base < 784).all()
    images, samples = validation_images()
    masks = [
        ablation.rows[name].defense.mask(images, samples)
        for name in ("heterogeneous 200/100", *found)
    ]
    for i, first in enumerate(masks):
        for second in masks[:i]:
            assert not torch.equal(first, second)  # type: ignore[arg-type]


@pytest.mark.parametrize("ablation", ["ablation_mask"], indirect=True)
def test_rows_of_the_mask_ablation_share_everything_else(ablation: RobustnessEvaluation) -> None:
    base = ablation.rows["heterogeneous 200/100"].defense
    levels = {index for step in base.plan for index in (step.at, step.to)}
    for row in (row.defense for row in ablation.rows.values()):
        assert (row.classifier, row.denoiser) == (base.classifier, base.denoiser)
        if row.purifier != base.purifier:
            assert isinstance(row.purifier, UniformPurifier)
            own = {index for step in row.plan for index in (step.at, step.to)}
            assert own == {index for index in levels if index <= row.plan[0].at}, "same grid"
        else:
            attended = replace(row.attention_mask, placement="attended")
            everything = replace(attended, selection="area", threshold=1.0)
            assert attended in (base.attention_mask, everything)


@pytest.mark.parametrize("ablation", ["ablation_attention"], indirect=True)
def test_every_mask_of_the_attention_ablation_has_its_area(ablation: RobustnessEvaluation) -> None:
    found = counts(ablation.rows)
    assert found.keys() == ablation.rows.keys()
    for name, count in found.items():
        assert (count - 0.4 * 784).abs().max() <= 1, name
