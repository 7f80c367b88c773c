"""Diffusion networks on disk: ours and diffusers' read one another."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler
from torch import nn

from hetpure.acceleration import Acceleration, accelerate
from hetpure.errors import InputError
from hetpure.schedule import linear_schedule
from hetpure.weights import folder_hash, load_denoiser, save_diffusion
from hetpure.weights.diffusion import set_dropout
from tests.hetpure.networks import tiny_unet
from tests.hetpure.weights.files import Bomb
from tests.hetpure.weights.folders import diffusion_folder, pixels


def to_root_layout(folder: Path) -> Path:
    """Everything at the root, as google/ddpm-cifar10-32 lies on the hub."""
    for sub in ("unet", "scheduler"):
        for path in (folder / sub).iterdir():
            path.rename(folder / path.name)
        (folder / sub).rmdir()
    return folder


def same_as(loaded: nn.Module, unet: nn.Module) -> bool:
    x, timesteps = 2 * pixels() - 1, torch.tensor([3, 900])
    with torch.no_grad():
        return torch.equal(loaded(x, timesteps).sample, unet(x, timesteps).sample)


@pytest.mark.parametrize("layout", ["folders", "root"])
def test_diffusion_round_trip(tmp_path: Path, layout: str) -> None:
    folder, unet = diffusion_folder(tmp_path)
    if layout == "root":
        folder = to_root_layout(folder)
    denoiser = load_denoiser(folder)
    assert same_as(denoiser.network, unet)
    assert denoiser.schedule == linear_schedule()
    assert denoiser.prediction_type == "epsilon"
    assert not any(module.training for module in denoiser.modules())
    assert not any(parameter.requires_grad for parameter in denoiser.parameters())


def test_edms_preconditioning_comes_from_the_folder(tmp_path: Path) -> None:
    """Also into the accelerated call, which is built anew."""
    unet = tiny_unet()
    save_diffusion(tmp_path / "edm", unet, EDMEulerScheduler(sigma_data=0.7))
    denoiser = load_denoiser(tmp_path / "edm")
    assert same_as(denoiser.network, unet)
    assert (denoiser.prediction_type, denoiser.sigma_data) == ("edm", 0.7)
    assert denoiser.schedule == linear_schedule()
    fast = accelerate(denoiser, Acceleration(channels_last=True))
    x = 2 * pixels() - 1
    torch.testing.assert_close(fast.predict(x, 300)[0], denoiser.predict(x, 300)[0])
    pipeline = DDPMPipeline.from_pretrained(str(tmp_path / "edm"), local_files_only=True)
    assert isinstance(pipeline.scheduler, EDMEulerScheduler)
    config = tmp_path / "edm" / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("0.7", "0"))
    with pytest.raises(InputError, match="sigma_data > 0"):
        load_denoiser(tmp_path / "edm")


def test_dropout_of_a_loaded_network() -> None:
    """That of its residual blocks, as a fresh network's is; its config tells."""
    fresh, loaded = tiny_unet(dropout=0.3), tiny_unet()
    set_dropout(loaded, 0.3)
    for one, other in zip(fresh.modules(), loaded.modules(), strict=True):
        if isinstance(one, nn.Dropout):
            assert one.p == other.p
    assert loaded.config["dropout"] == 0.3
    with pytest.raises(InputError, match="dropout must be in"):
        set_dropout(loaded, 1.0)


def test_diffusers_reads_what_we_write(tmp_path: Path) -> None:
    folder, unet = diffusion_folder(tmp_path, prediction_type="sample", beta_end=0.01)
    pipeline = DDPMPipeline.from_pretrained(str(folder), local_files_only=True)
    assert same_as(pipeline.unet, unet)
    assert pipeline.scheduler.config["prediction_type"] == "sample"
    levels = tuple(pipeline.scheduler.alphas_cumprod.double().tolist())
    assert load_denoiser(folder).schedule.alphas_cumprod == levels


def test_we_read_what_diffusers_writes_and_nothing_is_a_pickle(tmp_path: Path) -> None:
    unet = tiny_unet()
    DDPMPipeline(unet=unet, scheduler=DDPMScheduler()).save_pretrained(str(tmp_path / "theirs"))
    assert same_as(load_denoiser(tmp_path / "theirs").network, unet)
    folder, _ = diffusion_folder(tmp_path)
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


@pytest.mark.parametrize("layout", ["folders", "root"])
def test_a_bin_is_read_with_tensors_only(tmp_path: Path, layout: str) -> None:
    """As repositories of diffusers' first releases hold them; a program in it is not run."""
    folder, unet = diffusion_folder(tmp_path)
    place = folder / "unet"
    if layout == "root":
        place = folder = to_root_layout(folder)
    (place / "diffusion_pytorch_model.safetensors").unlink()
    path = place / "diffusion_pytorch_model.bin"
    torch.save(unet.state_dict(), path)
    assert same_as(load_denoiser(folder).network, unet)
    before = folder_hash(folder)
    bomb = Bomb(tmp_path / "exploded")
    torch.save(unet.state_dict() | {"bomb": bomb}, path)
    assert folder_hash(folder) != before
    with pytest.raises(InputError, match="cannot be loaded"):
        load_denoiser(folder)
    assert not bomb.path.exists()


def test_a_published_file_in_a_folders_place_says_how_to_convert_it(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_8.pth"
    torch.save({}, path)
    with pytest.raises(InputError, match=f"hetpure convert {path} FOLDER"):
        load_denoiser(path)
