"""The training modules: what is trained, on what noise, and what they leave."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.fashion_mnist import FashionMNIST
from hetpure.addt import RankGaussian, denoising_loss
from hetpure.adversarial_training import AdversarialTraining, perturb
from hetpure.augmentation import flip, shift
from hetpure.denoiser import to_model
from hetpure.errors import InputError
from hetpure.levels import LogNormalLevels
from hetpure.noise import Noise, Purpose, Stream
from hetpure.numbers import Number
from hetpure.weights import load_classifier, load_denoiser
from lightning_modules.callbacks import ExportWeights
from lightning_modules.classifier import ClassifierTraining
from lightning_modules.diffusion import DiffusionTraining
from tests.lightning_modules.trainings import LABEL_FREE, UNET, Seen, diffusion, trainer

WRN = {"depth": 10, "widen_factor": 1, "num_classes": 2, "in_channels": 1}
TRADES = AdversarialTraining("trades", Number(0.2), Number(0.1), steps=3, beta=6.0)
PGD = AdversarialTraining("pgd", Number(0.2), Number(0.1), steps=3)
DEEPER = AdversarialTraining("pgd", Number(0.2), Number(0.04), steps=10)


class Images(Dataset[dict[str, Tensor]]):
    """Squares in the top half are class 0, in the bottom half class 1."""

    def __len__(self) -> int:
        return 32

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        image = torch.zeros(1, 28, 28)
        top = 4 if index % 2 == 0 else 18
        image[:, top : top + 6, 4 + index // 2 : 10 + index // 2] = 1
        return {"image": image, "label": torch.tensor(index % 2), "sample": torch.tensor(index)}


def batch(count: int = 4) -> dict[str, Tensor]:
    return next(iter(DataLoader(Images(), batch_size=count)))


def fit(module: Any, folder: Path, steps: int, *callbacks: Callback, **options: Any) -> Trainer:
    fitting = trainer(folder, ExportWeights(), *callbacks, max_steps=steps, **options)
    loader = DataLoader(Images(), batch_size=4)
    fitting.fit(module, loader, loader if isinstance(module, ClassifierTraining) else None)
    return fitting


def addt(**settings: Any) -> DiffusionTraining:
    guided = {"guide": "fashion_mnist_wrn", "perturbation": RankGaussian(steps=2)}
    return diffusion(**guided | settings)


def test_without_perturbation_it_is_plain_diffusion_training() -> None:
    module, x0 = diffusion().eval(), to_model(batch()["image"])
    noise = Noise.of(0, Stream.TRAIN, 7).on(batch()["sample"])
    level = module.denoiser.schedule.level(noise.integers(Purpose.TIMESTEP, 1000), x0)
    expected = denoising_loss(module.denoiser, x0, level, noise.normal(Purpose.TRAINING, x0))
    assert torch.equal(module.losses(x0, batch()["label"], noise).losses, expected)
    assert not torch.equal(addt().eval().losses(x0, batch()["label"], noise).losses, expected)


@pytest.mark.parametrize(("mode", "inner"), [("efficient", [False] * 2), ("reference", [True] * 2)])
def test_the_search_has_its_mode_and_leaves_no_gradient_behind(
    mode: str, inner: list[bool]
) -> None:
    """Two calls of the search in eval or train mode, then the training step itself in train mode;
    the weights' gradients are those of the outer loss alone."""
    module, modes = addt(mode=mode).train(), []
    module.unet.register_forward_pre_hook(lambda network, _: modes.append(network.training))
    noise = Noise.of(0, Stream.TRAIN).on(batch()["sample"])
    losses = module.losses(to_model(batch()["image"]), batch()["label"], noise).losses
    assert modes == [*inner, True]
    assert all(parameter.grad is None for parameter in module.parameters())
    losses.mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.guide is not None
    assert all(parameter.grad is None for parameter in module.guide.parameters())


def test_a_loaded_network_trains_in_train_mode() -> None:
    module = DiffusionTraining(diffusion="fashion_mnist_ddpm")
    assert all(part.training for part in module.denoiser.modules())


@pytest.mark.parametrize("kind", ["diffusion", "adversarial"])
def test_noise_changes_with_the_update(kind: str, tmp_path: Path) -> None:
    """Of weights that do not move only the noise can change a batch's loss from epoch to epoch."""
    seen, still = Seen(), {"learning_rate": 1e-30, "weight_decay": 0.0}
    pgd = AdversarialTraining("pgd", Number(0.2), Number(1e-30), steps=1)
    module = diffusion(**still) if kind == "diffusion" else wrn_training(pgd, **still)
    fit(module, tmp_path, 4, seen, limit_train_batches=2)
    assert seen.samples[:2] == seen.samples[2:]
    assert len(set(seen.losses)) == 4


def test_the_average_is_in_checkpoints_and_exported_and_the_guide_is_not(tmp_path: Path) -> None:
    module = addt(ema_decay=0.5, learning_rate=1e-2)
    fit(module, tmp_path, 3, accumulate_grad_batches=2)
    content = torch.load(tmp_path / "checkpoints" / "end.ckpt", weights_only=True)
    assert all(key.startswith("denoiser.") for key in content["state_dict"])
    average = module.ema.shadow_params
    assert module.ema.optimization_step == 3, "once an update"
    restored = addt(ema_decay=0.5, learning_rate=1e-2)
    restored.on_load_checkpoint(content)
    exported = load_denoiser(tmp_path / "diffusion").network.parameters()
    for ours, theirs in zip(average, restored.ema.shadow_params, strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(average, exported, strict=True):
        assert torch.equal(ours, theirs)
    raw = zip(average, module.unet.parameters(), strict=True)
    assert not all(torch.equal(ours, theirs) for ours, theirs in raw)
    for path in (tmp_path / "diffusion").rglob("*.json"):
        assert "/" not in path.read_text(), "a path of this machine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unet": None}, "--model.diffusion"),
        ({"diffusion": "fashion_mnist_ddpm"}, "--model.unet"),
        (
            {"diffusion": "fashion_mnist_ddpm", "unet": None, "scheduler": {"clip_sample": True}},
            "--model.scheduler and --model.preconditioning are those of --model.diffusion",
        ),
        ({"guide": None}, "--model.guide is needed"),
        ({"levels": LogNormalLevels()}, "LogNormalLevels"),
        ({"preconditioning": "edm", "scheduler": {"sigma_data": 0}}, "sigma_data"),
        ({"unet": UNET | {"blocks": 2}}, "blocks"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_impossible_settings(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        addt(**arguments)


def wrn_training(
    adversarial: AdversarialTraining | None = None, **settings: Any
) -> ClassifierTraining:
    torch.manual_seed(0)  # the same weights to start from
    given = {"network": WRN, "shift_pixels": 0, "learning_rate": 0.05, **settings}
    return ClassifierTraining(adversarial=adversarial, **given)


def accuracy(module: ClassifierTraining, against: AdversarialTraining | None = None) -> float:
    """On all images, clean or under an attack."""
    data, network = batch(32), module.classifier.eval()
    images = data["image"]
    if against is not None:
        noise = Noise.of(9, Stream.REPORT).on(data["sample"])
        images = perturb(network, images, data["label"], noise, against)
    return float((network(images).argmax(1) == data["label"]).float().mean())


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ClassifierTraining]:
    folder, module = tmp_path_factory.mktemp("clean"), wrn_training()
    fit(module, folder, 40)
    return folder, module


def test_a_classifier_learns_and_is_exported(clean: tuple[Path, ClassifierTraining]) -> None:
    folder, module = clean
    exported, images = load_classifier(folder / "classifier"), batch(32)["image"]
    assert accuracy(module) > 0.9
    assert torch.equal(exported(images), module.classifier.eval()(images))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("against", "precision"), [(TRADES, "bf16-mixed"), (PGD, "32-true")], ids=["trades", "pgd"]
)
def test_adversarial_training_makes_robust(
    against: AdversarialTraining,
    precision: str,
    clean: tuple[Path, ClassifierTraining],
    tmp_path: Path,
) -> None:
    """A longer attack breaks a network trained clean; both methods' networks withstand it."""
    robust = wrn_training(against)
    fitting = fit(robust, tmp_path, 32, precision=precision)
    assert accuracy(clean[1], DEEPER) < 0.1
    assert accuracy(robust, DEEPER) > 0.9
    assert fitting.callback_metrics["validation/robust_accuracy"] > 0.9


class Expected(Callback):
    """The cross-entropy of each batch's augmented images, computed before its update."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        noise = Noise.of(0, Stream.TRAIN, trainer.global_step).on(batch["sample"])
        logits = module.classifier(shift(flip(batch["image"], noise), noise, 2))
        loss = F.cross_entropy(logits, batch["label"], label_smoothing=0.1)
        self.losses.append(float(loss.detach()))


def test_clean_training_is_cross_entropy_of_augmented_images(tmp_path: Path) -> None:
    expected, seen = Expected(), Seen()
    module = wrn_training(shift_pixels=2, label_smoothing=0.1)
    fitting = fit(module, tmp_path, 8, expected, seen)  # one pass: then it validates
    assert seen.losses == expected.losses
    assert "validation/accuracy" in fitting.callback_metrics
    assert "validation/robust_accuracy" not in fitting.callback_metrics


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_attacks_under_the_probes_noise(
    inference_mode: bool, clean: tuple[Path, ClassifierTraining], tmp_path: Path
) -> None:
    """The same images each time it validates, whether Lightning does so in inference mode or
    without gradients."""
    module = wrn_training(weak := AdversarialTraining("pgd", Number(0.18), Number(0.09), steps=2))
    module.load_state_dict(deepcopy(clean[1].state_dict()))
    network, right = module.classifier.eval(), 0.0
    loader = DataLoader(Images(), batch_size=8)
    for data in loader:
        noise = Noise.of(0, Stream.PROBE).on(data["sample"])
        images = perturb(network, data["image"], data["label"], noise, weak)
        right += float((network(images).argmax(1) == data["label"]).sum())
    assert 0 < right < 32, "the attack is one that not all images withstand"
    validating = trainer(tmp_path, inference_mode=inference_mode)
    for _ in range(2):
        validating.validate(module, loader, verbose=False)
        metrics = validating.callback_metrics
        assert metrics["validation/robust_accuracy"] == pytest.approx(right / 32)
        assert metrics["validation/accuracy"] == accuracy(module)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_perturbations_are_not_ranked_in_half_precision(precision: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{precision} is not one of .* lose small gradients"):
        fit(diffusion(), tmp_path, 1, precision=precision)


def test_a_few_batches_can_be_fitted_again_and_again(tmp_path: Path) -> None:
    """Lightning then reads them in order, by a sampler of its own."""
    fitting = trainer(tmp_path, max_steps=3, overfit_batches=1, limit_val_batches=0)
    fitting.fit(diffusion(perturbation=LABEL_FREE), FashionMNIST(source="packaged", batch_size=4))
    assert fitting.global_step == 3
