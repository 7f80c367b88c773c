"""configs/train/addt_cifar10.yaml starts from files of the published formats."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler, UNet2DModel

import train
from datamodules.cifar import CIFAR10
from hetpure.weights import load_denoiser
from hetpure.weights.classifier import build_classifier, save_classifier

ROOT = Path(__file__).parent.parent.parent
GUIDE = {
    "architecture": "WideResNet",
    "network": {"depth": 10, "widen_factor": 1, "num_classes": 10, "in_channels": 3},
    "mean": [0.5] * 3,
    "std": [0.5] * 3,
}


def write_parts(folder: Path) -> None:
    """CIFAR-10's files with fewer images, a diffusers folder and a classifier's folder, tiny."""
    random = np.random.default_rng(0)
    data = folder / "data" / CIFAR10.binary.folder
    data.mkdir(parents=True)
    for name in CIFAR10.binary.names:
        records = random.integers(0, 256, (20, 3073), np.uint8)
        records[:, 0] = np.arange(20) % 10
        (data / name).write_bytes(records.tobytes())
    network = UNet2DModel(
        sample_size=32,
        layers_per_block=1,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    )
    network.save_pretrained(folder / "ddpm" / "unet")
    DDPMScheduler().save_pretrained(folder / "ddpm" / "scheduler")
    save_classifier(folder / "wrn", build_classifier(GUIDE, where=folder), GUIDE)


def test_it_starts_from_data_diffusion_and_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command that the config names, with all its parts, made small by numbers alone."""
    monkeypatch.setattr(CIFAR10, "counts", {"train": 100, "test": 20})
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        write_parts(tmp_path)
        config = yaml.safe_load((ROOT / "configs" / "train" / "addt_cifar10.yaml").read_text())
        assert config["data"]["init_args"] == {"batch_size": 256}
        config["trainer"] |= {"max_steps": 2, "enable_progress_bar": False, "accelerator": "cpu"}
        config["trainer"]["log_every_n_steps"] = 1
        options = {
            callback["class_path"].rpartition(".")[2]: callback.setdefault("init_args", {})
            for callback in config["trainer"]["callbacks"]
        }
        options["SampleGrid"] |= {"rows": 1, "network_calls": 2}
        options["RobustProbe"]["images"] = 2
        options["RobustProbe"]["attack"]["init_args"]["steps"] = 1
        options["RobustProbe"]["purifier"]["init_args"]["steps"] = 20
        (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
        train.main(
            [
                "--config=small.yaml",
                "--data.data_dir=data",
                "--data.batch_size=8",
                "--data.validation=20",
                "--model.diffusion=ddpm",
                "--model.guide=wrn",
            ]
        )
    (exported,) = (tmp_path / "runs").glob("**/unet")
    trained = load_denoiser(str(exported.parent)).network.state_dict()
    before = UNet2DModel.from_pretrained(tmp_path / "ddpm" / "unet").state_dict()
    assert trained.keys() == before.keys()
    assert any(not torch.equal(trained[key], before[key]) for key in before)
