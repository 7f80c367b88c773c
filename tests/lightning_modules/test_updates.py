"""How many updates a training makes: of whole windows, and at least one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

import train
from datamodules.fashion_mnist import FashionMNIST
from hetpure.errors import InputError
from lightning_modules.callbacks import ExportWeights
from lightning_modules.classifier import ClassifierTraining
from lightning_modules.diffusion import DiffusionTraining
from lightning_modules.training import Training

IMAGES = 22  # five batches of 4, two of 8
KINDS = ("classifier", "diffusion")
VIT = {"image_size": 28, "patch_size": 14, "num_classes": 10, "width": 8, "depth": 1, "heads": 2}
UNET: dict[str, Any] = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
}


class FewImages(FashionMNIST):
    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._splits["train"] = self._splits["train"].take(slice(IMAGES))


class Kept(Callback):
    """Of every update its gradient, learning rate and images; how often it was validated."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.rates: list[float] = []
        self.samples: dict[int, list[int]] = {}
        self.validations = 0

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        weights = [w.grad.flatten() for w in module.parameters() if w.grad is not None]
        self.gradients.append(torch.cat(weights).clone())
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_start(
        self, trainer: Trainer, module: Any, batch: dict[str, Tensor], index: int
    ) -> None:
        self.samples.setdefault(trainer.global_step, []).extend(batch["sample"].tolist())

    def on_validation_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self.validations += not trainer.sanity_checking


def training(kind: str, **settings: Any) -> Training:
    """Of networks in which no image of a batch matters to another."""
    torch.manual_seed(0)
    if kind == "diffusion":
        return DiffusionTraining(**{"unet": UNET, "learning_rate": 1e-3} | settings)
    own = {"architecture": "VisionTransformer", "network": VIT, "learning_rate": 0.01}
    return ClassifierTraining(**own | settings)


def saving(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)


def fit(
    folder: Path,
    kind: str,
    *more: Callback,
    batch: int = 4,
    resume: Path | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Kept, Trainer]:
    kept = Kept()
    trainer = Trainer(
        **{"max_epochs": 2, "limit_val_batches": 1} | options,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[kept, *more],
    )
    data = FewImages(source="packaged", batch_size=batch)
    module = training(kind, **(settings or {}))
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    return kept, trainer


@pytest.mark.parametrize("kind", KINDS)
def test_every_update_is_the_mean_over_what_it_saw(kind: str, tmp_path: Path) -> None:
    """Five batches in windows of two are the training of two batches twice as large: the fifth,
    half a window, is left out as the images are that fill no batch."""
    small, trainer = fit(tmp_path, kind, accumulate_grad_batches=2)
    large, _ = fit(tmp_path, kind, batch=8)
    assert len(small.gradients) == len(large.gradients) == trainer.global_step == 4
    assert small.samples == large.samples
    for ours, theirs in zip(small.gradients, large.gradients, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert small.validations == large.validations == 2


@pytest.mark.parametrize(
    ("kind", "limit", "stopped"),
    [
        ("classifier", {"max_epochs": 2}, 1),
        ("classifier", {"max_epochs": 2}, 2),
        ("diffusion", {"max_epochs": 2}, 1),
        ("diffusion", {"max_epochs": -1, "max_steps": 4}, 1),
    ],
    ids=["classifier", "classifier, epoch's end", "diffusion", "diffusion, updates"],
)
def test_a_training_of_windows_goes_on_bit_for_bit(
    kind: str, limit: dict[str, int], stopped: int, tmp_path: Path
) -> None:
    """Also where epochs limit it: then Lightning looks at the data before at the checkpoint."""
    whole, trainer = fit(tmp_path, kind, saving(tmp_path), accumulate_grad_batches=2, **limit)
    checkpoint = tmp_path / f"step={stopped}.ckpt"
    rest, resumed = fit(tmp_path, kind, resume=checkpoint, accumulate_grad_batches=2, **limit)
    assert rest.samples == {n: seen for n, seen in whole.samples.items() if n >= stopped}
    expected = trainer.lightning_module.state_dict()
    for name, value in resumed.lightning_module.state_dict().items():
        assert torch.equal(value, expected[name]), name


def test_the_learning_rates_cycle_ends_with_the_training(tmp_path: Path) -> None:
    kept, _ = fit(tmp_path, "classifier", accumulate_grad_batches=2)
    assert kept.rates[-1] == pytest.approx(0.01 / 25 / 1e4)  # OneCycleLR's lowest


def test_half_a_curve_and_half_of_another_are_neither(tmp_path: Path) -> None:
    """A learning rate that follows the number of updates goes on with that number."""
    fit(tmp_path, "classifier", saving(tmp_path), max_epochs=1)
    with pytest.raises(InputError, match="of a training of 5 updates, this one is of 10"):
        fit(tmp_path, "classifier", resume=tmp_path / "step=2.ckpt", max_epochs=2)
    cosine, folder = {"learning_rate_schedule": "cosine"}, tmp_path / "cosine"
    fit(folder, "diffusion", saving(folder), max_steps=2, settings=cosine)
    with pytest.raises(InputError, match="of a training of 2 updates, this one is of 3"):
        fit(folder, "diffusion", resume=folder / "step=1.ckpt", max_steps=3, settings=cosine)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit_train_batches": 0}, "2 epochs .* of 0 batches"),
        ({"max_steps": 0}, "at most 0 updates"),
        ({"max_epochs": 0}, "0 epochs"),
        ({"accumulate_grad_batches": 6}, "of 5 batches .* 6 to an update"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_training_without_an_update_is_refused_at_its_start(
    kind: str, options: dict[str, int], said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=f"would make no update: .*{said}"):
        fit(tmp_path, kind, ExportWeights(), **options)
    assert not list(tmp_path.iterdir())


class Stopping(Callback):
    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        trainer.should_stop = True


def test_a_training_that_came_to_no_update_exports_nothing(tmp_path: Path) -> None:
    """As one that is out of time at once."""
    with pytest.raises(InputError, match="made no update: no weights are written"):
        fit(tmp_path, "diffusion", Stopping(), ExportWeights())
    assert not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the trained weights hold NaN or infinity"):
        fit(tmp_path, "classifier", ExportWeights(), settings={"learning_rate": 1e30})
    assert not list(tmp_path.rglob("*.safetensors"))


def test_untrained_weights_are_not_recommended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="would make no update"):
        train.main(["--trainer.limit_train_batches=0", "--trainer.enable_progress_bar=false"])
    assert "evaluate.py" not in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.safetensors")) + list(tmp_path.rglob("*.ckpt"))


def test_a_trial_of_one_batch_needs_no_window(tmp_path: Path) -> None:
    kept, trainer = fit(tmp_path, "classifier", fast_dev_run=True, accumulate_grad_batches=4)
    assert trainer.global_step == len(kept.gradients) == 1


def test_windows_that_change_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="GradientAccumulationScheduler .*one number"):
        fit(tmp_path, "diffusion", GradientAccumulationScheduler({1: 2}))


class Endless(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Any:
        while True:
            image = torch.zeros(1, 28, 28)
            yield {"image": image, "label": torch.tensor(0), "sample": torch.tensor(0)}


@pytest.mark.parametrize("window", [1, 2])
def test_data_of_unknown_length(window: int, tmp_path: Path) -> None:
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        accumulate_grad_batches=window,
    )
    loader = DataLoader(Endless(), batch_size=2)
    if window == 1:
        trainer.fit(training("diffusion"), loader)
        assert trainer.global_step == 2
    else:
        with pytest.raises(InputError, match="accumulate_grad_batches needs .* knows its length"):
            trainer.fit(training("diffusion"), loader)


def test_a_cycle_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cycle needs the number of updates"):
        fit(tmp_path, "classifier", max_epochs=-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("window", "batch"), [(4, 4), (2, 8)], ids=["window", "batch"])
def test_a_training_goes_on_in_whole_windows_only(
    kind: str, window: int, batch: int, tmp_path: Path
) -> None:
    """Saved after two of its five batches; what was seen has to be whole updates of the windows and
    batches that it goes on with. Else the next update would be divided by what it did not see."""
    fit(tmp_path, kind, saving(tmp_path), accumulate_grad_batches=2, max_steps=1)
    with pytest.raises(InputError, match=rf"updates of {window} batches"):
        fit(
            tmp_path / "rest",
            kind,
            batch=batch,
            resume=tmp_path / "step=1.ckpt",
            accumulate_grad_batches=window,
            max_steps=3,
            max_epochs=3,
        )


@pytest.mark.parametrize("kind", KINDS)
def test_options_that_leave_no_whole_window_are_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="accumulate_grad_batches must be 1 or more"):
        fit(tmp_path, kind, accumulate_grad_batches=0)
    with pytest.raises(InputError, match="val_check_interval is 5, and an epoch has 4 batches"):
        fit(tmp_path, kind, accumulate_grad_batches=2, val_check_interval=5)
