"""What loggers are told: images and histograms in their own ways; an evaluation while it runs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.worker import Watches, evaluate
from lightning_modules.evaluation_log import EvaluationLog, gallery
from lightning_modules.loggers import log_histogram, log_image, log_numbers
from lightning_modules.progress import EvaluationProgress
from tests.hetpure.evaluation.runs import begin, small
from tests.lightning_modules.runs import ALONE, PLAIN, command

IMAGE = np.zeros((2, 3, 3), dtype=np.uint8)


class Told(Logger):
    """Keeps what it is told, with the experiment of the logger that it stands for."""

    def __init__(self, experiment: Any = None) -> None:
        super().__init__()
        self.experiment = experiment
        self.numbers: list[tuple[dict[str, Any], int | None]] = []

    name = version = None  # type: ignore[assignment]

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.numbers.append((metrics, step))

    def log_hyperparams(self, *args: Any, **settings: Any) -> None: ...


def test_images_go_the_loggers_own_way(tmp_path: Path) -> None:
    calls: list[Any] = []

    def keep(*given: Any, **named: Any) -> None:
        calls.append((*given, *named.values()))

    wandb = Told()
    wandb.log_image = keep  # type: ignore[attr-defined]
    log_image(wandb, "a", IMAGE, 5)
    log_image(Told(SimpleNamespace(add_image=keep)), "b", IMAGE, 6)
    log_image(Told(SimpleNamespace(log_image=keep)), "c", IMAGE, 7)
    log_image(CSVLogger(tmp_path), "d", IMAGE, 8)
    assert [call[0] for call in calls[:2]] == ["a", "b"] and calls[2][1:] == ("c", 7)
    assert len(calls) == 3 and calls[0][2] == 5


class MLflow(MLFlowLogger):
    """Lightning's, without the package: what MLflow's client and `log_metrics` are told."""

    run_id = "run"  # type: ignore[assignment]
    experiment: Any = None

    def __init__(self) -> None:
        self.told: list[Any] = []
        self.experiment = SimpleNamespace(log_image=lambda *given, **named: self.told.append(named))

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.told.append(metrics)


def test_mlflow_gets_the_names_that_it_allows() -> None:
    """It refuses a picture named `t=200`; found with mlflow-skinny 3.17."""
    logger = MLflow()
    log_image(logger, "uniform t=200/null", IMAGE, 1)
    log_numbers(logger, {"heterogeneous + ADDT/loss": 2.0}, 1)
    log_histogram(logger, "100%", torch.zeros(2), 1)
    assert logger.told[0] == {"key": "uniform t_200/null", "step": 1}
    assert logger.told[1] == {"heterogeneous _ ADDT/loss": 2.0}
    assert next(iter(logger.told[2])) == "100_/quantile 0.05"


def test_a_logger_without_histograms_gets_quantiles() -> None:
    plain = Told()
    log_histogram(plain, "x", torch.arange(101.0), 3)
    assert plain.numbers == [
        ({"x/quantile 0.05": 5.0, "x/quantile 0.5": 50.0, "x/quantile 0.95": 95.0}, 3)
    ]


def test_a_gallery_is_clean_adversarial_and_ten_times_the_difference() -> None:
    clean = torch.full((2, 1, 4, 4), 0.5)
    picture = gallery(clean, clean + 0.02)
    assert picture.shape == (12, 8, 3) and picture.dtype == np.uint8
    assert [int(picture[row, 0, 0]) for row in (0, 4, 8)] == [128, 133, 178]
    color = gallery(clean.expand(-1, 3, -1, -1), clean.expand(-1, 3, -1, -1))
    assert color.shape == (12, 8, 3)


def test_an_evaluation_is_logged_while_it_runs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Scalars, histograms and pictures in TensorBoard; and a logger that fails costs no result."""
    run, store = begin(tmp_path / "run", *small(), audit=None)
    board, plain, broken = TensorBoardLogger(tmp_path, name="", version=""), Told(), Told()
    broken.log_metrics = None  # type: ignore[assignment]
    log = EvaluationLog([board, plain, broken], run, store)
    evaluate(run, store, watch=Watches(log, EvaluationProgress(run)))
    board.finalize("success")

    assert Contents.read(store).missing == 0
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0, "scalars": 0})
    events.Reload()
    tags = events.Tags()
    attack = run.rows["purified"].cells[1].name
    assert f"purified/{attack}" in tags["images"] and f"plain/{attack}" in tags["images"]
    assert not any(tag.endswith("/clean") for tag in tags["images"])
    losses = events.Scalars(f"purified/{attack}/loss")
    assert len(losses) == 2 * 2  # iterations of two blocks
    steps = [event.step for event in losses]
    assert steps == sorted(set(steps))
    assert -1 <= events.Scalars(f"purified/{attack}/agreement")[0].value <= 1
    assert len(events.Scalars("plain/clean/accuracy")) == 2
    assert f"plain/{attack}/right_draws" in tags["histograms"]
    median = f"plain/{attack}/right_draws/quantile 0.5"
    assert any(median in numbers for numbers, _ in plain.numbers)
    told = capfd.readouterr().err
    assert "warning: " in told and "100% of the run" in told and "left" in told


def test_logger_true_writes_beside_the_results(place: Path) -> None:
    (logger,) = command("--trainer.logger=true", *ALONE, PLAIN).trainer.loggers
    assert isinstance(logger, TensorBoardLogger)
    assert Path(logger.log_dir) == Path("runs/one")
    assert command(*ALONE, PLAIN).trainer.loggers == []
