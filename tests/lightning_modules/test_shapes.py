"""Images that are no squares, end to end."""

from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.npz import NPZ
from hetpure.attacks import PGD
from hetpure.classifiers import Classifier, WideResNet
from hetpure.compatibility import check_defense
from hetpure.defense import Defense
from hetpure.evaluation.protocol import Block, Protocol, evaluate_block
from hetpure.purifiers import UniformPurifier
from hetpure.weights import load_denoiser
from lightning_modules.callbacks import ExportWeights, SampleGrid
from lightning_modules.diffusion import DiffusionTraining
from tests.lightning_modules.trainings import UNET, trainer


def classifier() -> Classifier:
    network = WideResNet(depth=10, widen_factor=1, num_classes=2, in_channels=1)
    return Classifier(network, num_classes=2, mean=[0.5], std=[0.5]).eval()


@pytest.mark.parametrize("sample_size", [(12, 8), None], ids=["sample_size", "none"])
def test_images_that_are_no_squares_are_trained_on_exported_and_evaluated(
    sample_size: tuple[int, int] | None, tmp_path: Path
) -> None:
    """A grid that cannot be drawn is a warning, and the training goes on."""
    images = np.random.default_rng(0).random((8, 12, 8, 1))
    files = [str(tmp_path / name) for name in ("test.npz", "train.npz")]
    for file in files:
        np.savez(file, images=images, labels=np.arange(8) % 2)
    data = NPZ(2, *files, validation=2, batch_size=2)
    levels = {"block_out_channels": [4, 4], "down_block_types": ["DownBlock2D"] * 2,
              "up_block_types": ["UpBlock2D"] * 2}  # fmt: skip
    (tmp_path / "samples.png").mkdir()
    grid = SampleGrid(every_n_steps=1, rows=2, network_calls=2)
    module = DiffusionTraining(unet=UNET | levels | {"sample_size": sample_size})
    fitting = trainer(tmp_path, grid, ExportWeights(), max_steps=1, limit_val_batches=1)
    with redirect_stderr(StringIO()) as warnings:
        fitting.fit(module, data)
    assert warnings.getvalue().count("warning: samples.png could not be drawn") == 1
    (tmp_path / "samples.png").rmdir()
    grid.look(fitting, module)
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.size == (2 * 2 * 8, 2 * 2 * 12)
    denoiser = load_denoiser(tmp_path / "diffusion")
    defense = Defense(classifier(), UniformPurifier(strength=0.01, steps=100), denoiser)
    data.setup("test")
    first = next(iter(data.test_dataloader()))
    block = Block(first["image"], first["label"], first["sample"])
    outcome = evaluate_block("row", defense, PGD(steps=1, eot_samples=1), block, Protocol(1, 1), 0)
    assert outcome.adversarial.shape == (2, 1, 12, 8) and len(outcome.records) == 4
    if sample_size is not None:
        check_defense(defense, data)
        assert defense.image_shape == (1, 12, 8)
