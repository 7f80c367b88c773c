"""The training modules: what is trained, on what noise, and what a checkpoint holds."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from datamodules.fashion_mnist import FashionMNIST
from hetpure.addt import RankGaussian, denoising_loss
from hetpure.adversarial_training import AdversarialTraining, perturb
from hetpure.augmentation import flip, shift
from hetpure.classifiers import Classifier
from hetpure.denoiser import to_model
from hetpure.errors import InputError
from hetpure.levels import LogNormalLevels
from hetpure.noise import Noise, Purpose, Stream
from hetpure.numbers import Number
from hetpure.weights import load_classifier, load_denoiser
from lightning_modules.callbacks import ExportWeights, tile
from lightning_modules.classifier import ClassifierTraining
from lightning_modules.compatibility import check_denoiser, check_size
from lightning_modules.diffusion import DiffusionTraining

UNET: dict[str, Any] = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "dropout": 0.5,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
}


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


def fit(module: Any, folder: Path, steps: int, **options: Any) -> Trainer:
    trainer = Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ExportWeights()],
        **options,
    )
    loader = DataLoader(Images(), batch_size=4)
    trainer.fit(module, loader, loader if isinstance(module, ClassifierTraining) else None)
    return trainer


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def addt(**changes: Any) -> DiffusionTraining:
    return DiffusionTraining(
        **{"unet": UNET, "guide": "fashion_mnist_wrn", "perturbation": RankGaussian(steps=2)}
        | changes
    )


def test_without_perturbation_it_is_plain_diffusion_training() -> None:
    module = DiffusionTraining(unet=UNET).eval()
    x0 = to_model(batch()["image"])
    noise = Noise.of(0, Stream.TRAIN, 7).on(batch()["sample"])
    level = module.denoiser.schedule.level(noise.integers(Purpose.TIMESTEP, 1000), x0)
    expected = denoising_loss(module.denoiser, x0, level, noise.normal(Purpose.TRAINING, x0))
    assert torch.equal(module.losses(x0, batch()["label"], noise).losses, expected)
    assert not torch.equal(addt().eval().losses(x0, batch()["label"], noise).losses, expected)


def test_the_inner_loop_leaves_no_gradient_behind() -> None:
    """Weights' gradients after a step are those of the outer loss alone."""
    module = addt(unet=UNET | {"dropout": 0.0}).train()
    x0 = to_model(batch()["image"])
    noise = Noise.of(0, Stream.TRAIN).on(batch()["sample"])
    losses = module.losses(x0, batch()["label"], noise).losses
    assert all(parameter.grad is None for parameter in module.parameters())
    losses.mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert module.guide is not None
    assert all(parameter.grad is None for parameter in module.guide.parameters())


@pytest.mark.parametrize(("mode", "inner"), [("efficient", [False] * 2), ("reference", [True] * 2)])
def test_dropout_of_the_inner_loop(mode: str, inner: list[bool]) -> None:
    """Two inner calls in eval or train mode, then the training step itself in train mode."""
    module = addt(mode=mode).train()
    seen: list[bool] = []
    module.unet.register_forward_pre_hook(lambda network, _: seen.append(network.training))
    noise = Noise.of(0, Stream.TRAIN).on(batch()["sample"])
    module.losses(to_model(batch()["image"]), batch()["label"], noise)
    assert seen == [*inner, True]


def test_a_loaded_network_trains_in_train_mode() -> None:
    module = DiffusionTraining(diffusion="fashion_mnist_ddpm")
    assert all(part.training for part in module.denoiser.modules())


def test_noise_changes_with_the_update(tmp_path: Path) -> None:
    """With a learning rate of 0 only the noise can change the loss between two passes."""
    module = DiffusionTraining(unet=UNET | {"dropout": 0.0}, learning_rate=0.0, weight_decay=0.0)
    losses: list[float] = []
    step = module.training_step

    def recorded(data: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = step(data, batch_idx)
        losses.append(float(loss))
        return loss

    module.training_step = recorded  # type: ignore[method-assign]
    fit(module, tmp_path, 16)
    assert len(set(losses)) == 16


def test_the_guide_stays_out_of_checkpoints_and_the_average_is_in(tmp_path: Path) -> None:
    module = addt(ema_decay=0.5)
    trainer = fit(module, tmp_path, 3)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    content = torch.load(path, weights_only=True)
    assert all(key.startswith("denoiser.") for key in content["state_dict"])
    restored = addt(ema_decay=0.5)
    restored.on_load_checkpoint(content)
    for kept, found in zip(module.ema.shadow_params, restored.ema.shadow_params, strict=True):
        assert torch.equal(kept, found)


def test_the_export_holds_the_averaged_weights(tmp_path: Path) -> None:
    module = addt(ema_decay=0.9, learning_rate=1e-2)
    fit(module, tmp_path, 4)
    loaded = load_denoiser(tmp_path / "diffusion")
    raw = list(module.unet.parameters())
    average = module.ema.shadow_params
    for found, mean in zip(loaded.network.parameters(), average, strict=True):
        assert torch.equal(found, mean)
    assert not all(torch.equal(a, b) for a, b in zip(raw, average, strict=True))


def test_the_export_names_no_path_of_this_machine(tmp_path: Path) -> None:
    module = DiffusionTraining(diffusion="fashion_mnist_ddpm")
    fit(module, tmp_path, 1)
    for path in (tmp_path / "diffusion").rglob("*.json"):
        assert "/" not in path.read_text(), path


def test_the_average_moves_once_an_update_under_accumulation(tmp_path: Path) -> None:
    module = DiffusionTraining(unet=UNET)
    fit(module, tmp_path, 3, accumulate_grad_batches=2)
    assert module.ema.optimization_step == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"unet": None}, "--model.diffusion"),
        ({"diffusion": "fashion_mnist_ddpm"}, "--model.unet"),
        ({"guide": None}, "--model.guide"),
        ({"levels": LogNormalLevels()}, "LogNormalLevels"),
        ({"preconditioning": "edm", "scheduler": {"sigma_data": 0}}, "sigma_data"),
        ({"unet": UNET | {"blocks": 2}}, "--model.unet: .*blocks"),
        ({"unet": UNET | {"block_out_channels": [8]}}, "--model.unet: .*block_out_channels"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_impossible_settings(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        addt(**arguments)


WRN = {"depth": 10, "widen_factor": 1, "num_classes": 2, "in_channels": 1}
PGD = AdversarialTraining("pgd", Number(0.2), Number(0.1), steps=3)
TRADES = AdversarialTraining("trades", Number(0.2), Number(0.1), steps=3, beta=6.0)
DEEPER = AdversarialTraining("pgd", Number(0.2), Number(0.04), steps=10)


def classifier_training(
    adversarial: AdversarialTraining | None = None, **changes: Any
) -> ClassifierTraining:
    torch.manual_seed(0)  # the same weights to start from
    settings = {"network": WRN, "shift_pixels": 0, "learning_rate": 0.05, **changes}
    return ClassifierTraining(adversarial=adversarial, **settings)


def right(module: ClassifierTraining, against: AdversarialTraining | None = None) -> float:
    """Accuracy on all images, clean or under an attack."""
    data, network = batch(32), module.classifier.eval()
    images = data["image"]
    if against is not None:
        noise = Noise.of(9, Stream.REPORT).on(data["sample"])
        images = perturb(network, images, data["label"], noise, against)
    return float((network(images).argmax(1) == data["label"]).float().mean())


def test_a_classifier_learns_and_is_exported(tmp_path: Path) -> None:
    module = classifier_training()
    fit(module, tmp_path, 40)
    classifier = load_classifier(tmp_path / "classifier")
    data = batch(32)
    assert (classifier(data["image"]).argmax(1) == data["label"]).float().mean() > 0.9
    assert torch.equal(classifier(data["image"]), module.classifier.eval()(data["image"]))


def test_clean_training_is_cross_entropy_of_augmented_images(tmp_path: Path) -> None:
    module = classifier_training(shift_pixels=2, label_smoothing=0.1)
    losses: list[Tensor] = []
    step = module.training_step

    def checked(data: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss = step(data, batch_idx)
        noise = Noise.of(0, Stream.TRAIN, module.global_step).on(data["sample"])
        images = shift(flip(data["image"], noise), noise, 2)
        logits = module.classifier(images)
        losses.append(loss - F.cross_entropy(logits, data["label"], label_smoothing=0.1))
        return loss

    module.training_step = checked  # type: ignore[method-assign]
    trainer = fit(module, tmp_path, 8)  # one pass: then it validates
    assert torch.equal(torch.stack(losses), torch.zeros(8))
    assert "validation/accuracy" in trainer.callback_metrics
    assert "validation/robust_accuracy" not in trainer.callback_metrics


def test_a_ball_of_radius_zero_trains_the_clean_network(tmp_path: Path) -> None:
    clean = classifier_training()
    adversarial = classifier_training(AdversarialTraining("pgd", Number(0), Number(0.1), steps=1))
    for name, module in (("clean", clean), ("adversarial", adversarial)):
        fit(module, tmp_path / name, 4)
    for name, value in clean.state_dict().items():
        assert torch.equal(adversarial.state_dict()[name], value), name


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("against", [PGD, TRADES], ids=["pgd", "trades"])
def test_adversarial_training_makes_robust(
    against: AdversarialTraining, precision: str, tmp_path: Path
) -> None:
    """A longer attack breaks a network trained clean; both methods' networks withstand it."""
    clean, robust = classifier_training(), classifier_training(against)
    fit(clean, tmp_path / "clean", 40)
    trainer = fit(robust, tmp_path / "robust", 40, precision=precision)
    assert right(clean) > 0.9 and right(clean, DEEPER) < 0.1
    assert right(robust, DEEPER) > 0.9
    assert trainer.callback_metrics["validation/robust_accuracy"] > 0.9


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_attacks_under_the_probes_noise(
    inference_mode: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The training attack, the same images each time it validates, whether Lightning does so in
    inference mode or without gradients."""
    module, found = classifier_training(PGD), []

    def recorded(*arguments: Any) -> Tensor:
        found.append(perturb(*arguments))
        return found[-1]

    fit(module, tmp_path, 16)
    monkeypatch.setattr("lightning_modules.classifier.perturb", recorded)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", inference_mode=inference_mode, **options)
    for _ in range(2):
        trainer.validate(module, DataLoader(Images(), batch_size=8), verbose=False)
    data, network = batch(32), module.classifier.eval()
    noise = Noise.of(0, Stream.PROBE).on(data["sample"])
    expected = perturb(network, data["image"], data["label"], noise, PGD)
    # Not to the last bit: a gradient near 0 may change its sign with the size of the batch.
    differ = (torch.cat(found[:4]) - expected).abs() > 1e-6
    assert differ.float().mean() < 0.02
    assert torch.equal(torch.cat(found[:4]), torch.cat(found[4:]))
    robust = (network(torch.cat(found[:4])).argmax(1) == data["label"]).float().mean()
    assert trainer.callback_metrics["validation/robust_accuracy"] == robust
    assert trainer.callback_metrics["validation/accuracy"] == right(module)


def test_the_perturbation_changes_with_the_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update's start is that of its own address."""
    module = classifier_training(PGD, learning_rate=1e-9, weight_decay=0.0)
    starts: list[Any] = []

    def seen(
        network: Any, images: Tensor, labels: Tensor, noise: Any, *_: Any, **__: Any
    ) -> Tensor:
        starts.append((int(noise.reverse_stream[0]), int(noise.reverse_draw[0])))
        return network(images).sum()

    monkeypatch.setattr("lightning_modules.classifier.adversarial_loss", seen)
    fit(module, tmp_path, 3)
    assert starts == [(Stream.TRAIN, update) for update in range(3)]


def test_tile_keeps_rows_together() -> None:
    images = torch.arange(6).reshape(6, 1, 1, 1).expand(6, 2, 2, 1)
    picture = tile(images, 3)
    assert picture.shape == (4, 6)
    assert picture[0].tolist() == [0, 0, 1, 1, 2, 2]
    assert picture[3].tolist() == [3, 3, 4, 4, 5, 5]


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_perturbations_are_not_ranked_in_half_precision(precision: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{precision} is not one of .* lose small gradients"):
        fit(addt(), tmp_path, 1, precision=precision)


def test_float16_is_refused_where_there_is_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU Lightning itself takes bf16-mixed in its place."""
    module = addt()
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(precision="16-mixed"))
    with pytest.raises(InputError, match="16-mixed is not one of .* lose small gradients"):
        module.on_fit_start()


def test_a_scheduler_beside_weights_is_refused() -> None:
    with pytest.raises(InputError, match=r"--model\.scheduler is that of --model\.diffusion"):
        DiffusionTraining(diffusion="fashion_mnist_ddpm", scheduler={"clip_sample": True})


def test_a_guide_of_another_size_is_refused() -> None:
    fixed = Classifier(
        nn.Sequential(nn.Flatten(), nn.Linear(32 * 32, 2)), num_classes=2, mean=[0.0], std=[1.0]
    )
    with pytest.raises(InputError, match="cannot be used on the diffusion's 28 x 28 images"):
        check_size(fixed, UNET, torch.device("cpu"))
    check_size(fixed, UNET | {"sample_size": 32}, torch.device("cpu"))


def test_data_of_another_size_is_refused() -> None:
    data = SimpleNamespace(channels=1, image_size=32)
    with pytest.raises(InputError, match="has images of 28 x 28 and the data images of 32 x 32"):
        check_denoiser(load_denoiser("fashion_mnist_ddpm"), data)


@pytest.mark.parametrize(
    ("unet", "said"),
    [
        ({"out_channels": 2}, "the diffusion has 2 channels of output and the data 1"),
        ({"num_class_embeds": 10}, "is told an image's class"),
    ],
    ids=["learned variance", "class"],
)
def test_other_kinds_of_networks_are_refused(unet: dict[str, Any], said: str) -> None:
    denoiser = DiffusionTraining(unet=UNET | unet).denoiser
    with pytest.raises(InputError, match=said):
        check_denoiser(denoiser, SimpleNamespace(channels=1, image_size=28))


def test_a_few_batches_can_be_fitted_again_and_again(tmp_path: Path) -> None:
    """Lightning then reads them in order, by a sampler of its own."""
    module = DiffusionTraining(unet=UNET)
    trainer = Trainer(
        max_steps=3,
        overfit_batches=1,
        limit_val_batches=0,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, FashionMNIST(source="packaged", batch_size=4))
    assert trainer.global_step == 3
