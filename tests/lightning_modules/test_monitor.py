"""What a training tells while it runs: scalars, histograms, probe, FID, pictures."""

from dataclasses import replace
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
from hetpure.addt import Batch, RankGaussian
from hetpure.addt_variants import RandomOrder
from hetpure.attacks import PGD
from hetpure.attacks.gradient import MaskPolicy
from hetpure.classifiers import Classifier, LastFeatures
from hetpure.defense import Defense
from hetpure.evaluation.protocol import Block, Cell, Protocol, evaluate_cell
from hetpure.noise import Noise, Stream, noise_for
from hetpure.numbers import Number
from hetpure.purifiers import HeterogeneousPurifier, Purifier, UniformPurifier
from hetpure.sampling import draw_images
from hetpure.weights import load_classifier, load_denoiser
from lightning_modules.callbacks import SampleGrid
from lightning_modules.diffusion import DiffusionTraining, Update
from lightning_modules.monitor import (
    FeatureFID,
    RobustProbe,
    TrainingMonitor,
    described,
    objective,
)
from tests.lightning_modules.trainings import diffusion, same_weights, trainer

ATTACK = PGD(epsilon=Number("16/255"), steps=2, step_size=Number("8/255"), eot_samples=1)
PURIFIER = UniformPurifier(strength=0.1, steps=5)
MASKED = HeterogeneousPurifier(t_large=0.2, t_small=0.1, steps=3, resampling="none")


def train(folder: Path, callbacks: list[Callback], updates: int = 4, **settings: Any) -> Trainer:
    given = {"perturbation": RankGaussian(steps=2), "guide": "fashion_mnist_wrn"} | settings
    module = diffusion(ema_decay=0.5, **given)
    fitting = trainer(
        folder,
        *callbacks,
        max_steps=updates,
        logger=TensorBoardLogger(folder, name="", version=""),
        limit_val_batches=0,
        log_every_n_steps=2,
        gradient_clip_val=1.0,
    )
    fitting.fit(module, FashionMNIST(source="packaged", batch_size=8))
    return fitting


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, EventAccumulator]:
    folder = tmp_path_factory.mktemp("watched")
    best = ModelCheckpoint(
        folder, "{step}", monitor="probe/robust", mode="max", every_n_train_steps=2
    )
    fitting = train(
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
    return fitting, events


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


def test_watching_changes_no_weight(
    watched: tuple[Trainer, EventAccumulator], tmp_path: Path
) -> None:
    alone = train(tmp_path, []).lightning_module
    assert same_weights(watched[0].lightning_module, alone)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("purifier", "masks"),
    [(PURIFIER, ("recomputed",)), (MASKED, ("frozen", "recomputed", "soft"))],
    ids=["uniform", "masked"],
)
def test_the_probe_is_the_evaluations_own_accuracy_in_the_deterministic_white_box(
    purifier: Purifier, masks: tuple[MaskPolicy, ...], tmp_path: Path
) -> None:
    """Of the averaged weights, which an update of size zero leaves as they were packaged; under
    every mask policy, where there is a mask."""
    probe = RobustProbe("fashion_mnist_wrn", purifier, ATTACK, images=4, every_n_steps=1)
    packaged = {"diffusion": "fashion_mnist_ddpm", "unet": None, "learning_rate": 0.0}
    still = packaged | {"weight_decay": 0.0, "perturbation": None, "guide": None}
    module = train(tmp_path, [], updates=1, **still).lightning_module
    assert isinstance(module, DiffusionTraining)
    values = probe.measure(module.trainer, module)
    data = module.trainer.datamodule.val_dataloader().dataset  # type: ignore[attr-defined]
    block = Block(data.images[:4].float() / 255, data.labels[:4], data.samples[:4])
    classifier, denoiser = load_classifier("fashion_mnist_wrn"), load_denoiser("fashion_mnist_ddpm")
    defense = Defense(classifier, purifier, denoiser)
    robust = torch.ones(4, dtype=torch.bool)
    for policy in masks:
        cell = Cell("x", replace(ATTACK, mask=policy), ("forward", "reverse"))
        records = evaluate_cell("x", defense, cell, block, Protocol(1, 1), 0).records
        robust &= torch.tensor([record.predictions == [record.label] for record in records])
    noise, mask = Noise.of(0, Stream.DW_BOX), defense.mask(block.images, block.samples)
    logits = defense(block.images, noise.on(block.samples), mask)
    clean = (logits.argmax(1) == block.labels).float().mean()
    assert values["probe/robust"] == pytest.approx(float(robust.float().mean()))
    assert values["probe/clean"] == pytest.approx(float(clean))
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert module.unet.training


def update(module: DiffusionTraining, indices: list[int], losses: list[float]) -> Update:
    images, index = torch.zeros(len(indices), 1, 2, 2), torch.tensor(indices)
    level = module.denoiser.schedule.level(index, images)
    return Update(Batch(images, index, level, noise_for(images)), torch.tensor(losses), None)


def test_losses_are_logged_by_the_level_they_were_computed_at() -> None:
    module = diffusion()
    values = described(module, update(module, [0, 249, 250, 600, 999], [1.0, 3.0, 5.0, 7.0, 9.0]))
    assert values == {
        "train/loss_0_249": 2.0,
        "train/loss_250_499": 5.0,
        "train/loss_500_749": 7.0,
        "train/loss_750_999": 9.0,
    }
    module = diffusion(perturbation=RandomOrder())
    assert {"train/loss_0_249", "train/lambda"} == set(
        described(module, update(module, [1], [1.0]))
    )
    assert objective(module) == {}, "nothing is searched for"


def test_fid_is_that_of_the_classifiers_last_features(tmp_path: Path) -> None:
    classifier = load_classifier("fashion_mnist_wrn")
    features = LastFeatures(classifier)
    images = torch.rand(5, 1, 28, 28)
    last = [module for module in classifier.modules() if isinstance(module, torch.nn.Linear)][-1]
    torch.testing.assert_close(last(features(images)), classifier(images))
    assert features(images).shape == (5, features.num_features)

    fid = FeatureFID("fashion_mnist_wrn", images=20, network_calls=2)
    fitting = train(tmp_path, [], updates=1)
    module = fitting.lightning_module
    assert isinstance(module, DiffusionTraining)
    data = fitting.datamodule.val_dataloader().dataset  # type: ignore[attr-defined]
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
    assert fid.measure(fitting, module) == pytest.approx(float(expected.compute()), rel=1e-3)


def test_a_classifier_without_a_linear_layer_has_no_fid() -> None:
    flat = Classifier(torch.nn.Flatten(), num_classes=784, mean=[0.0], std=[1.0])
    with pytest.raises(ValueError, match="last linear layer"):
        LastFeatures(flat)
