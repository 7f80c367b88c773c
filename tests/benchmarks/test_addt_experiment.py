"""ADDT's experiment: contrasts by hand, trainings that are not mixed up."""

from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

import evaluate
from hetpure.evaluation.protocol import Record
from tests.hetpure.run_records import line, write

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def experiment(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("addt_experiment")


def records(defense: str, attack: str, right: list[bool]) -> list[Record]:
    return [
        Record(defense, attack, k, 1, [int(good)], [1], 0, 0.0, 0.0, None, 1, None, [])
        for k, good in reversed(list(enumerate(right)))  # as blocks may end in any order
    ]


def outcomes(addt: tuple[int, ...] = (20, 18)) -> list[Record]:
    """40 images: clean fine-tuning has the first 10 (seed 0) or 12 right, ADDT 20 or 18; the
    controls have one seed."""
    counts = {"clean": (10, 12), "addt": addt, "no_rbgm": (10,), "random_order": (10,)}
    return [
        record
        for name, of_seeds in counts.items()
        for seed, count in enumerate(of_seeds)
        for record in records(f"{name}-{seed}", "dw-both", [k < count for k in range(40)])
    ]


def test_contrasts_by_hand(experiment: ModuleType) -> None:
    """Images that only the first has right are 10 of 40 by seed 0, and 6 by seed 1."""
    text = experiment.contrasts(outcomes())
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in text.splitlines()}
    for name, points, p_value in (
        ("addt - clean, both seeds", "+20.0", "-"),
        ("addt - clean, seed 0", "+25.0", "0.002"),  # 2 x 2^-10
        ("addt - clean, seed 1", "+15.0", "0.031"),  # 2 x 2^-6
        ("no_rbgm - clean, seed 0", "+0.0", "1"),
    ):
        assert f"| {points} [" in rows[name] and rows[name].endswith(f"| {p_value} |")
    assert "no_rbgm - clean, both seeds" not in rows
    with pytest.raises(SystemExit, match="addt-0 39"):
        experiment.contrasts([r for r in outcomes() if (r.defense, r.sample) != ("addt-0", 3)])


@pytest.mark.parametrize(
    ("addt", "verdict"),
    [((20, 18), "won"), ((20, 12), "not won"), ((11, 13), "not won")],
    ids=["both seeds ahead", "one seed not ahead", "the interval holds 0"],
)
def test_the_primary_contrast_is_judged_as_planned(
    experiment: ModuleType, addt: tuple[int, ...], verdict: str
) -> None:
    answer = experiment.contrasts(outcomes(addt)).splitlines()[-1]
    assert answer == f"The primary contrast, addt - clean, is {verdict}."


def test_every_cell_has_its_accuracy(experiment: ModuleType) -> None:
    answers = [*records("a", "clean", [True] * 4), *records("a", "x", [True, False] * 2)]
    answers += records("b", "clean", [False] * 4)
    answers += records("c", "clean", [True] * 4) + records("c", "x", [True] * 2)
    head, _, first, second, third = experiment.cells(answers).splitlines()
    assert head == "| n = 4 | clean | x |"
    assert first.startswith("| a | 100.0 [") and "| 50.0 [" in first and "n =" not in first
    assert second.startswith("| b | 0.0 [") and second.endswith("| - |")
    assert third.count("], n = 2 |") == 1


def test_a_training_is_run_once_goes_on_and_is_never_taken_for_another(
    experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> SimpleNamespace | None:
        """Leaves what a training leaves."""
        if command[-1] == "--print_config":
            return SimpleNamespace(stdout="seed: 1\n")
        commands.append(command)
        (root,) = (part for part in command if part.startswith("--trainer.default_root_dir="))
        folder = Path(root.partition("=")[2]) / "lightning_logs" / "version_0" / "diffusion"
        folder.mkdir(parents=True)
        (folder / "model_index.json").write_text("{}")
        return None

    monkeypatch.setattr(experiment.subprocess, "run", run)
    monkeypatch.setattr(experiment, "RUNS", tmp_path)
    folder = tmp_path / "train" / "no_rbgm-1"
    checkpoint = folder / "lightning_logs" / "version_3" / "checkpoints" / "last.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    with pytest.raises(SystemExit, match="made by other settings"):  # nobody knows which
        experiment.train("no_rbgm", 1)
    (folder / "settings.yaml").write_text("seed: 1\n")
    for _ in range(2):
        experiment.train("no_rbgm", 1)
    (command,) = commands
    assert {
        "--config=configs/train/fashion_mnist_addt.yaml",
        "--config=configs/train/variants/no_rbgm.yaml",
        "--model.init_args.seed=1", "--data.init_args.seed=1", f"--ckpt_path={checkpoint}",
    } <= set(command)  # fmt: skip
    (tmp_path / "weights" / "no_rbgm-1" / "model_index.json").write_text("[]")
    with pytest.raises(SystemExit, match="of another training"):
        experiment.train("no_rbgm", 1)


def logged(folder: Path, **scalars: dict[int, float]) -> None:
    with SummaryWriter(folder) as logger:
        for name, values in scalars.items():
            for step, value in values.items():
                logger.add_scalar(name.replace("_", "/"), value, step)


def test_tables_of_trainings_that_went_on_or_stopped(
    experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "RUNS", tmp_path)
    folder = tmp_path / "train"
    first, second = (folder / "addt-0" / "lightning_logs" / f"version_{k}" for k in (0, 1))
    logged(first, probe_robust={0: 0.25, 175: 0.5}, probe_clean={0: 0.5, 175: 0.75})
    logged(second, probe_robust={200: 0.5}, probe_clean={200: 1.0}, train_loss={0: 0.75})
    losses = {174: 0.5, 349: 0.25, 524: 0.125}
    logged(folder / "clean-0", validation_loss=losses, fid={350: 1.5}, probe_clean={175: 0.5})
    logged(folder / "reference-0", validation_loss={1049: 0.75})  # without pictures and probes
    assert experiment.probes().splitlines() == [
        "| updates | 0 | 175 | 200 |",
        "| --- | --- | --- | --- |",
        "| addt-0 | 25.0 / 50.0 | 50.0 / 75.0 | 50.0 / 100.0 |",
    ]
    assert experiment.prices().splitlines()[2:] == [
        "| clean-0 | 350 | 0.2500 | 1.50 |",
        "| reference-0 | 1050 | 0.7500 | - |",
    ]


COUNTS = {"A, clean": 10, "A, ADDT": 20, "clean-0": 4, "addt-0": 0, "clean-1": 40, "vanilla": 3}


def test_differences_within_each_purifier(experiment: ModuleType) -> None:
    """And within each training seed; a cell that one of the two lacks has none."""
    answers = [
        record
        for name, count in COUNTS.items()
        for record in records(name, "clean", [k < count for k in range(40)])
    ] + records("A, ADDT", "x", [True] * 40)
    _, _, a, b = experiment.differences_from_clean(answers, ["clean", "x"]).splitlines()
    assert a.startswith("| A, ADDT - A, clean | +25.0 [") and a.endswith("| - |")
    assert b.startswith("| addt-0 - clean-0 | -10.0 [") and b.endswith("| - |")
    fewer = [r for r in answers if (r.defense, r.sample) != ("A, ADDT", 3)]
    with pytest.raises(SystemExit, match="A, ADDT and A, clean were asked other images by clean"):
        experiment.differences_from_clean(fewer, ["clean"])


def test_a_report_of_what_is_there(
    experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(experiment, "ROOT", tmp_path)
    monkeypatch.setattr(experiment, "RUNS", tmp_path / "runs" / "addt")
    assert experiment.report().splitlines()[0] == "addt_probe: not finished"
    folder = tmp_path / "runs" / "evaluate" / "addt_variants"
    row = "DDPM, label-free"
    write(folder, [line(row, "clean", 0, 4), line(row, "clean", 1, 0)])
    assert "DDPM" not in experiment.report(), "rows may lack images by now"
    attacks = {"x": {"eot_agreement": 0.5}, "dw-both": {"eot_agreement": None}}
    others = {"attacks": {"x": {"eot_agreement": None}}}
    weights = {"classifier": "ab" * 32, "denoiser label_free": "cd" * 32}
    ended = {
        "run": {},
        "provenance": {"weights": weights},
        "defenses": {row: {"attacks": attacks}, "b": others},
    }
    write(folder, [line(row, "clean", 0, 4), line(row, "clean", 1, 0)], results=ended)
    tables = experiment.report()
    assert "| EOT cosine | x |\n| --- | --- |\n| DDPM, label-free | 0.50 |\n\n" in tables
    assert "| DDPM, label-free | 50.0 [" in tables
    made_with = "addt_variants: `classifier@abababababab`, `denoiser label_free@cdcdcdcdcdcd`"
    assert made_with in tables and "addt_primary: not finished" in tables


def test_the_plan_covers_the_configs(experiment: ModuleType) -> None:
    """Every weights' folder that the evaluations name is trained."""
    made = {f"{name}-{seed}" for name, seeds in experiment.TRAININGS.items() for seed in seeds}
    made |= set(experiment.TUNED)
    for name in experiment.EVALUATIONS:
        text = (ROOT / "configs" / "evaluate" / f"{name}.yaml").read_text()
        named = {line.split("/")[-1] for line in text.splitlines() if "runs/addt/weights/" in line}
        assert named and named <= made


@pytest.mark.slow
def test_the_purifier_is_the_published_sampler(experiment: ModuleType) -> None:
    """DDPM clips by default, also where it takes DDIM's place, which does not."""
    for name in experiment.EVALUATIONS[1:]:
        path = ROOT / "configs" / "evaluate" / f"{name}.yaml"
        with pytest.raises(SystemExit), redirect_stdout(StringIO()) as printed:
            evaluate.main([f"--config={path}", "--print_config"])
        rows = yaml.safe_load(printed.getvalue())["model"]["defenses"]
        samplers = [row["purifier"]["init_args"]["sampler"] for row in rows.values()]
        ddpm = [s["init_args"] for s in samplers if s["class_path"].endswith("DDPM")]
        assert ddpm and all(settings["clip_x0"] for settings in ddpm)
