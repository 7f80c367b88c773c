"""What a training tells while it runs: scalars, histograms, probe, FID, pictures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics.image.fid import FrechetInceptionDistance

from datamodules.fashion_mnist import FashionMNIST
from hetpure.addt import Ball, Found, Perturbation, RandomOrder, RankGaussian
from hetpure.attacks import PGD
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.evaluation.protocol import Block, Cell, Protocol, evaluate_attack
from hetpure.noise import Noise, Stream
from hetpure.numbers import Number
from hetpure.purifiers import UniformPurifier
from hetpure.sampling import draw_images
from hetpure.schedule import Level
from hetpure.weights import load_classifier, load_denoiser
from lightning_modules.callbacks import SampleGrid
from lightning_modules.diffusion import DiffusionTraining, Update
from lightning_modules.monitor import (
    FeatureFID,
    LastFeatures,
    RobustProbe,
    TrainingMonitor,
    described,
)

ATTACK = PGD(epsilon=Number("16/255"), steps=2, step_size=Number("8/255"), eot_samples=1)
PURIFIER = UniformPurifier(strength=0.1, steps=10)


def train(folder: Path, callbacks: list[Callback], updates: int = 4, **settings: Any) -> Trainer:
    given = {"perturbation": RankGaussian(steps=2), "guide": "fashion_mnist_wrn"} | settings
    module = DiffusionTraining(diffusion="fashion_mnist_ddpm", ema_decay=0.5, **given)
    trainer = Trainer(
        max_steps=updates,
        accelerator="cpu",
        logger=TensorBoardLogger(folder, name="", version=""),
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        log_every_n_steps=2,
        gradient_clip_val=1.0,
        callbacks=callbacks,
    )
    trainer.fit(module, FashionMNIST(source="packaged", batch_size=8))
    return trainer


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, EventAccumulator]:
    folder = tmp_path_factory.mktemp("watched")
    best = ModelCheckpoint(
        folder, "{step}", monitor="probe/robust", mode="max", every_n_train_steps=2
    )
    trainer = train(
        folder,
        [
            TrainingMonitor(),
            RobustProbe("fashion_mnist_wrn", PURIFIER, ATTACK, images=6, every_n_steps=2),
            FeatureFID("fashion_mnist_wrn", images=8, network_calls=2, every_n_steps=4),
            SampleGrid(every_n_steps=4, rows=2, network_calls=2),
            LearningRateMonitor(),
            best,
        ],
    )
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0, "scalars": 0})
    events.Reload()
    return trainer, events


def test_scalars_are_logged_every_n_updates(watched: tuple[Trainer, EventAccumulator]) -> None:
    events = watched[1]
    names = set(events.Tags()["scalars"])
    wanted = {"train/loss", "train/objective_before", "train/objective_after", "train/lambda"}
    wanted |= {"train/gradient_norm", "train/ema_decay", "train/images_per_second"}
    wanted |= {"probe/robust", "probe/clean", "fid", "lr-AdamW"}
    assert wanted <= names
    assert any(name.startswith("train/loss_") for name in names)
    steps = {"train/lambda": [2, 4], "train/gradient_norm": [2, 4], "fid": [4]}
    steps |= {"probe/robust": [0, 2, 4], "probe/clean": [0, 2, 4]}
    for name, at in steps.items():
        assert [event.step for event in events.Scalars(name)] == at, name
    assert events.Tags()["histograms"] == ["perturbation"]
    assert events.Tags()["images"] == ["samples"]
    assert 0 < events.Scalars("train/gradient_norm")[0].value < 100
    assert events.Scalars("train/ema_decay")[-1].value == pytest.approx(0.5)


def test_the_best_checkpoint_is_kept_by_the_probe(
    watched: tuple[Trainer, EventAccumulator],
) -> None:
    trainer = watched[0]
    best = trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    values = {event.step: event.value for event in watched[1].Scalars("probe/robust")}
    assert best.best_model_score is not None
    assert float(best.best_model_score) == pytest.approx(max(values[2], values[4]))
    kept = int(Path(best.best_model_path).stem.removeprefix("step="))
    assert values[kept] == pytest.approx(float(best.best_model_score))


def test_the_probe_is_the_evaluations_own_locked_accuracy(tmp_path: Path) -> None:
    """Of the averaged weights, which an update of size zero leaves as they were packaged."""
    probe = RobustProbe("fashion_mnist_wrn", PURIFIER, ATTACK, images=12, every_n_steps=1)
    still = {"learning_rate": 0.0, "weight_decay": 0.0}
    trainer = train(tmp_path, [probe], updates=1, **still)
    data = FashionMNIST(source="packaged", batch_size=12)
    data.setup("validate")
    batch = next(iter(data.val_dataloader()))
    block = Block(batch["image"], batch["label"], batch["sample"])
    classifier = load_classifier("fashion_mnist_wrn")
    defense = Defense(classifier, PURIFIER, load_denoiser("fashion_mnist_ddpm"))
    cell = Cell("x", ATTACK, ("forward", "reverse"))
    records = evaluate_attack("x", defense, cell, block, Protocol(1, 1), 0).records
    right = [record.predictions == [record.label] for record in records]
    assert trainer.callback_metrics["probe/robust"] == pytest.approx(sum(right) / 12)
    assert trainer.callback_metrics["probe/clean"] >= trainer.callback_metrics["probe/robust"]
    module = trainer.lightning_module
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert isinstance(module, DiffusionTraining) and module.unet.training


def test_watching_changes_no_weight(tmp_path: Path) -> None:
    watching = [
        TrainingMonitor(),
        RobustProbe("fashion_mnist_wrn", PURIFIER, ATTACK, images=4, every_n_steps=1),
        FeatureFID("fashion_mnist_wrn", images=4, network_calls=2, every_n_steps=1),
        SampleGrid(every_n_steps=1, rows=1, network_calls=2),
    ]
    first = train(tmp_path / "watched", list(watching), updates=2).lightning_module
    second = train(tmp_path / "alone", [], updates=2).lightning_module
    for name, value in first.state_dict().items():
        assert torch.equal(second.state_dict()[name], value), name


def update(signal: list[float], losses: list[float], found: Found | None) -> Update:
    level = torch.tensor(signal).reshape(-1, 1, 1, 1)
    spread = (1 - level**2).sqrt()
    return Update(torch.tensor(losses), Level(level, spread, level.flatten()), found)


def test_losses_are_told_by_the_level_they_were_computed_at() -> None:
    module = DiffusionTraining(diffusion="fashion_mnist_ddpm")
    alphas = torch.tensor(module.denoiser.schedule.alphas_cumprod)
    signal = alphas[torch.tensor([0, 249, 250, 600, 999])].sqrt().tolist()
    told = described(module, update(signal, [1.0, 3.0, 5.0, 7.0, 9.0], None))
    assert {name: float(value) for name, value in told.items()} == {
        "train/loss_0_249": 2.0,
        "train/loss_250_499": 5.0,
        "train/loss_500_749": 7.0,
        "train/loss_750_999": 9.0,
    }


@pytest.mark.parametrize(
    ("perturbation", "names"),
    [
        (RankGaussian(), {"lambda", "objective_before", "objective_after"}),
        (RandomOrder(), {"lambda"}),
        (Ball(), {"objective_before", "objective_after"}),
    ],
    ids=["rank", "random", "ball"],
)
def test_what_a_perturbation_does_not_know_is_not_told(
    perturbation: Perturbation, names: set[str]
) -> None:
    module = DiffusionTraining(
        diffusion="fashion_mnist_ddpm", perturbation=perturbation, guide="fashion_mnist_wrn"
    )
    asked = not isinstance(perturbation, RandomOrder)
    value = torch.tensor([1.0, torch.nan]) if asked else torch.full((2,), torch.nan)
    found = Found(torch.zeros(2, 1, 2, 2), value, value + 1)
    told = described(module, update([0.9, 0.5], [1.0, 1.0], found))
    assert {name.removeprefix("train/") for name in told if "loss" not in name} == names
    if asked:
        assert float(told["train/objective_after"]) == 2.0  # the mean of those that were asked


def test_fid_is_that_of_the_classifiers_last_features(tmp_path: Path) -> None:
    classifier = load_classifier("fashion_mnist_wrn")
    features = LastFeatures(classifier)
    images = torch.rand(5, 1, 28, 28)
    last = [module for module in classifier.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.testing.assert_close(last(features(images)), classifier(images))
    assert features(images).shape == (5, features.num_features)

    fid = FeatureFID("fashion_mnist_wrn", images=20, network_calls=2)
    trainer = train(tmp_path, [], updates=1)
    module = trainer.lightning_module
    assert isinstance(module, DiffusionTraining)
    data = trainer.datamodule.val_dataloader().dataset  # type: ignore[attr-defined]
    samples = data.samples[:20]
    drawn = draw_images(
        module.averaged_denoiser(),
        Noise.of(0, Stream.PROBE).on(samples),
        torch.empty(20, 1, 28, 28),
        network_calls=2,
    )
    expected = FrechetInceptionDistance(features, normalize=True)
    expected.update(data.images[:20].float() / 255, real=True)
    expected.update(drawn, real=False)
    assert fid.distance(trainer, module) == pytest.approx(float(expected.compute()), rel=1e-3)


def test_a_classifier_without_a_linear_layer_has_no_fid() -> None:
    flat = Classifier(torch.nn.Flatten(), num_classes=784, mean=[0.0], std=[1.0])
    with pytest.raises(ValueError, match="last linear layer"):
        LastFeatures(flat)
