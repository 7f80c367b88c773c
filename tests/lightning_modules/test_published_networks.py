"""ADDT fine-tunes every published diffusion network, and what it exports is read again."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.dataset import ImageDataset
from hetpure.addt import RankGaussian
from hetpure.compatibility import check_denoiser
from hetpure.errors import InputError
from hetpure.levels import ContinuousLevels, DiscreteLevels, Levels, LogNormalLevels
from hetpure.weights import load_denoiser, save_classifier
from hetpure.weights.classifier import build_classifier
from hetpure.weights.convert import convert
from lightning_modules.callbacks import ExportWeights
from lightning_modules.diffusion import DiffusionTraining
from tests.hetpure.weights.test_diffusion_formats import REFERENCES, on_disk
from tests.published import reference

LEVELS: dict[str, Levels] = {
    "ddpm_ho": DiscreteLevels(),
    "guided_diffusion_uncond": DiscreteLevels(),
    "improved_diffusion_uncond": DiscreteLevels(),
    "score_sde_ddpmpp_vp": ContinuousLevels(),
    "edm_ddpmpp_uncond": LogNormalLevels(),
}
CLASSIFIER: dict[str, Any] = {
    "architecture": "WideResNet",
    "network": {"depth": 10, "widen_factor": 1, "num_classes": 10, "in_channels": 3},
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}


class Colours(LightningDataModule):
    """Six images of 16 x 16 pixels."""

    num_classes, channels, image_size = 10, 3, 16

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        torch.manual_seed(0)
        images = torch.rand(6, 3, 16, 16)
        return DataLoader(ImageDataset(images, torch.arange(6), torch.arange(6)), batch_size=2)


@pytest.mark.parametrize("name", LEVELS)
def test_it_is_trained_exported_and_read(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    source = on_disk(name, reference(name), tmp_path / "published")
    convert(source, tmp_path / "start", REFERENCES[name][0])
    guide = build_classifier(CLASSIFIER, where=tmp_path)
    save_classifier(tmp_path / "guide", guide, CLASSIFIER)
    module = DiffusionTraining(
        diffusion=str(tmp_path / "start"),
        guide=str(tmp_path / "guide"),
        perturbation=RankGaussian(steps=1),
        levels=LEVELS[name],
        dropout=0.1,
        ema_decay=0.5,
    )
    trainer = Trainer(
        max_steps=2,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path / "run",
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[ExportWeights()],
    )
    trainer.fit(module, datamodule=Colours())
    before, after = load_denoiser(tmp_path / "start"), load_denoiser(tmp_path / "run" / "diffusion")
    assert after.schedule == before.schedule
    assert after.prediction_type == before.prediction_type
    averages = zip(after.network.parameters(), module.ema.shadow_params, strict=True)
    assert all(torch.equal(weight, average) for weight, average in averages)
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        predicted, trained = before.predict(x, 50)[0], after.predict(x, 50)[0]
    assert predicted.isfinite().all()
    assert not torch.equal(predicted, trained)


def test_a_conditional_network_is_no_purifiers(tmp_path: Path) -> None:
    """It would be told zeros in the place of a class, which it has never seen."""
    source = on_disk("edm_ddpmpp_cond", reference("edm_ddpmpp_cond"), tmp_path / "published")
    convert(source, tmp_path / "out")
    with pytest.raises(InputError, match=r"image's class \(label_dim\)"):
        check_denoiser(load_denoiser(tmp_path / "out"), Colours())
