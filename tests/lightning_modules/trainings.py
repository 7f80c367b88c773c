"""Small trainings of several test files: networks, data, and a trainer that shows nothing."""

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from datamodules.fashion_mnist import FashionMNIST
from hetpure.addt import RankGaussian
from lightning_modules.classifier import ClassifierTraining
from lightning_modules.diffusion import DiffusionTraining
from lightning_modules.training import Training

UNET: dict[str, Any] = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [4],
    "norm_num_groups": 2,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "add_attention": False,
}
# In which no image of a batch matters to another.
VIT = {"image_size": 28, "patch_size": 14, "num_classes": 10, "width": 8, "depth": 1, "heads": 2}
LABEL_FREE = RankGaussian(steps=1, objective="denoising")  # needs no guide


class FewImages(FashionMNIST):
    """Epochs of a few packaged images."""

    def __init__(self, images: int, batch_size: int, **settings: Any) -> None:
        super().__init__(source="packaged", batch_size=batch_size, **settings)
        self.kept = slice(images)

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._splits["train"] = self._splits["train"].take(self.kept)


class Seen(Callback):
    """Of a training the sample ids and the loss of every batch."""

    def __init__(self) -> None:
        self.samples: list[list[int]] = []
        self.losses: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: dict[str, Tensor], index: int
    ) -> None:
        self.samples.append(batch["sample"].tolist())
        self.losses.append(float(outputs["loss"]))


def diffusion(**settings: Any) -> DiffusionTraining:
    """Of the same weights each time."""
    torch.manual_seed(0)
    return DiffusionTraining(**{"unet": UNET, "learning_rate": 1e-3} | settings)


def classifier(**settings: Any) -> ClassifierTraining:
    """A vision transformer, of the same weights each time."""
    torch.manual_seed(0)
    network = {"architecture": "VisionTransformer", "network": VIT, "learning_rate": 0.01}
    return ClassifierTraining(**network | settings)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = {"accelerator": "cpu", "default_root_dir": folder, **quiet, **options}
    return Trainer(callbacks=list(callbacks), **given)


def saving(folder: Path) -> ModelCheckpoint:
    """A checkpoint of every update."""
    return ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)


def same_weights(one: Training, other: Training) -> bool:
    """Bit for bit."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(ours, theirs) for ours, theirs in pairs)
