"""Weights on disk: what was saved is loaded, and whatever else lies there is refused by name."""

import json
import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hetpure.acceleration import Acceleration, accelerate
from hetpure.classifiers import Classifier, WideResNet
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.levels import LogNormalLevels
from hetpure.noise import Noise, Purpose, Stream, noise_for
from hetpure.schedule import linear_schedule
from hetpure.weights import (
    ASSETS,
    folder_hash,
    load_classifier,
    load_denoiser,
    resolve,
    save_classifier,
    save_diffusion,
)
from hetpure.weights.diffusion import set_dropout
from hetpure.weights.folders import weights_file

CONFIG: dict[str, Any] = {
    "architecture": "WideResNet",
    "network": {"depth": 10, "widen_factor": 1, "num_classes": 4, "in_channels": 3},
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.3, 0.4],
}
UNET_WEIGHTS = "diffusion_pytorch_model.safetensors"
Loader = Callable[[Path], nn.Module]


def pixels(count: int = 2) -> Tensor:
    like = torch.empty(count, 3, 8, 8)
    return Noise.of(0, Stream.PROBE).on(torch.arange(count)).uniform(Purpose.FORWARD, like)


def classifier_folder(tmp_path: Path) -> tuple[Path, Classifier]:
    """A folder and what was saved there, with batch norms as after training."""
    classifier = Classifier(
        WideResNet(**CONFIG["network"]), num_classes=4, mean=CONFIG["mean"], std=CONFIG["std"]
    )
    classifier(pixels(8))  # in training mode: moves the running means
    folder = tmp_path / "classifier"
    save_classifier(folder, classifier, CONFIG)
    return folder, classifier.eval()


def tiny_unet(**changes: Any) -> UNet2DModel:
    return UNet2DModel(
        **changes,
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        add_attention=False,
    ).eval()


def diffusion_folder(tmp_path: Path, **scheduler: Any) -> tuple[Path, UNet2DModel]:
    folder, unet = tmp_path / "diffusion", tiny_unet()
    save_diffusion(folder, unet, DDPMScheduler(**scheduler))
    return folder, unet


def to_root_layout(folder: Path) -> Path:
    """Everything at the root, as google/ddpm-cifar10-32 lies on the hub."""
    for sub in ("unet", "scheduler"):
        for path in (folder / sub).iterdir():
            path.rename(folder / path.name)
        (folder / sub).rmdir()
    return folder


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_weights(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    weights = load_file(path)
    change(weights)
    save_file(weights, path)


def refusal(load: Callable[[Path], object], folder: Path) -> str:
    """The message of the InputError, which must be one readable line."""
    with pytest.raises(InputError) as caught:
        load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert 10 < len(message) < 600
    return message


# --- round trips ---


def test_classifier_round_trip(tmp_path: Path) -> None:
    folder, saved = classifier_folder(tmp_path)
    loaded = load_classifier(folder)
    assert torch.equal(loaded(pixels()), saved(pixels()))
    assert loaded.attention_blocks == saved.attention_blocks
    assert (loaded.num_classes, loaded.channels) == (4, 3)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert load_classifier(str(folder)).num_classes == 4


def test_classifier_saved_in_another_memory_format_loads(tmp_path: Path) -> None:
    """safetensors refuses tensors that are not contiguous; channels_last training makes them."""
    folder, saved = classifier_folder(tmp_path)
    for parameter in saved.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    save_classifier(tmp_path / "last", saved, CONFIG)
    assert folder_hash(tmp_path / "last") == folder_hash(folder)


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


def test_schedule_and_prediction_type_come_from_the_folder(tmp_path: Path) -> None:
    settings = {
        "num_train_timesteps": 40,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
    }
    folder, _ = diffusion_folder(tmp_path, **settings)
    denoiser = load_denoiser(folder)
    levels = tuple(DDPMScheduler(**settings).alphas_cumprod.double().tolist())
    assert denoiser.schedule.alphas_cumprod == levels
    assert denoiser.prediction_type == "v_prediction"


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


def test_diffusers_and_we_precondition_alike() -> None:
    """The x0 that diffusers' own EDM scheduler makes of an output, sigma and noisy image."""
    scheduler = EDMEulerScheduler(sigma_data=0.5)
    network = tiny_unet()
    denoiser = Denoiser(network, linear_schedule(), "edm")
    x0 = 2 * pixels() - 1
    level = LogNormalLevels().draw(linear_schedule(), noise_for(x0), x0)
    for row in range(len(x0)):
        sigma = level.time[row]
        noisy = x0[row : row + 1] + sigma * torch.ones_like(x0[:1])
        scaled = scheduler.precondition_inputs(noisy, sigma)
        with torch.no_grad():
            output = network(scaled, scheduler.precondition_noise(sigma).reshape(1)).sample
            theirs = scheduler.precondition_outputs(noisy, output, sigma)
            only = level.rows(torch.tensor([row]))
            ours, _ = denoiser.predict(only.signal * noisy, only)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_dropout_of_a_loaded_network() -> None:
    """That of its residual blocks, as a fresh network's is; its config tells."""
    fresh, loaded = tiny_unet(dropout=0.3), tiny_unet()
    set_dropout(loaded, 0.3)
    for one, other in zip(fresh.modules(), loaded.modules(), strict=True):
        if isinstance(one, nn.Dropout):
            assert one.p == other.p
    assert loaded.config["dropout"] == 0.3
    with pytest.raises(InputError, match="--model.dropout"):
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


# --- what is refused ---

LOADERS: dict[str, tuple[Callable[[Path], tuple[Path, nn.Module]], Loader, str, str]] = {
    "classifier": (classifier_folder, load_classifier, ".", "model.safetensors"),
    "diffusion": (diffusion_folder, load_denoiser, "unet", UNET_WEIGHTS),
}


@pytest.fixture(params=LOADERS)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Loader, Path]:
    """(folder, its loader, its weights file), for both kinds of folder."""
    make, load, sub, name = LOADERS[request.param]
    folder, _ = make(tmp_path)
    return folder, load, folder / sub / name


Stored = tuple[Path, Loader, Path]


def test_missing_folder_is_named_with_the_packaged_weights(tmp_path: Path) -> None:
    for load in (load_classifier, load_denoiser, resolve):
        message = refusal(load, tmp_path / "nowhere")
        assert str(tmp_path / "nowhere") in message
        assert "packaged" in message
    (tmp_path / "file").write_text("no folder")
    assert str(tmp_path / "file") in refusal(load_classifier, tmp_path / "file")


def test_missing_weights_are_named(stored: Stored) -> None:
    folder, load, weights = stored
    weights.unlink()
    assert f"{weights.parent} holds no {weights.name}" in refusal(load, folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-4],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"\0" * 8,
        lambda data: b"\xff" * 8 + data[8:],
        lambda data: data[:9] + b"?" + data[10:],
        lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    ],
    ids=["empty", "torn", "half", "longer", "length", "header", "lfs-pointer"],
)
def test_corrupt_weights_are_named(stored: Stored, damage: Callable[[bytes], bytes]) -> None:
    folder, load, weights = stored
    weights.write_bytes(damage(weights.read_bytes()))
    assert f"{weights} cannot be loaded: " in refusal(load, folder)


class Bomb:
    """Its pickle writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["pickle-2", "pickle-5", "torch.save", "torch.save-legacy"])
def test_a_renamed_pickle_is_refused_unopened(stored: Stored, tmp_path: Path, kind: str) -> None:
    folder, load, weights = stored
    bomb = Bomb(tmp_path / "exploded")
    if kind.startswith("pickle"):
        weights.write_bytes(pickle.dumps(bomb, protocol=int(kind[-1])))
    else:
        torch.save(bomb, weights, _use_new_zipfile_serialization=kind == "torch.save")
    assert f"{weights} is a pickle, not safetensors" in refusal(load, folder)
    assert not bomb.path.exists()


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580, 0x4B50], ids=hex)
def test_a_header_whose_length_looks_like_a_pickle_is_not_one(tmp_path: Path, length: int) -> None:
    """A safetensors file begins with its header's length: 640 is 80 02, as a pickle begins."""
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.ones(1)}, path)
    data = path.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    path.write_bytes(length.to_bytes(8, "little") + data[8:end].ljust(length) + data[end:])
    assert torch.equal(load_file(path)["weight"], torch.ones(1))  # spaces at the end are allowed
    assert weights_file(tmp_path, path.name) == path


@pytest.mark.parametrize("name", ["pytorch_model.bin", "net.pt", "net.pth", "last.ckpt", "w.pkl"])
def test_a_folder_of_pickles_says_what_it_holds(stored: Stored, name: str) -> None:
    folder, load, weights = stored
    weights.unlink()
    bomb = Bomb(folder / "exploded")
    (weights.parent / name).write_bytes(pickle.dumps(bomb))
    message = refusal(load, folder)
    assert f"{weights.parent} holds {name}, a pickle" in message
    assert weights.name in message
    assert not bomb.path.exists()


def test_missing_keys_are_never_left_random(stored: Stored) -> None:
    """diffusers warns and initialises them; the purifier would then be a random network."""
    folder, load, weights = stored
    key = next(key for key in load_file(weights) if key.endswith("conv1.weight"))
    edit_weights(weights, lambda content: content.pop(key))
    message = refusal(load, folder)
    assert str(weights) in message
    assert key in message


def test_unexpected_keys_are_refused(stored: Stored) -> None:
    folder, load, weights = stored
    edit_weights(weights, lambda content: content.update({"extra.weight": torch.zeros(1)}))
    message = refusal(load, folder)
    assert str(weights) in message
    assert "extra.weight" in message


def test_weights_of_another_size_are_refused(stored: Stored) -> None:
    folder, load, weights = stored
    key = next(key for key in load_file(weights) if key.endswith("conv1.weight"))
    edit_weights(weights, lambda content: content.update({key: torch.zeros(1, 1, 1, 1)}))
    assert str(weights) in refusal(load, folder)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"network": {**CONFIG["network"], "widen_factor": 2}}),
        ("config.json", {"network": {**CONFIG["network"], "depth": 16}}),
        ("config.json", {"network": {**CONFIG["network"], "num_classes": 10}}),
    ],
    ids=["width", "depth", "classes"],
)
def test_classifier_config_that_does_not_fit_its_weights(
    tmp_path: Path, file: str, change: dict[str, Any]
) -> None:
    folder, _ = classifier_folder(tmp_path)
    edit(folder / file, lambda content: content.update(change))
    assert str(folder / "model.safetensors") in refusal(load_classifier, folder)


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "ResNet"},
        {"architecture": ["WideResNet"]},
        {"network": {"depth": 10}},
        {"network": [10, 1]},
        {"network": {**CONFIG["network"], "colour": 1}},
        {"network": {**CONFIG["network"], "depth": 11}},
        {"network": {**CONFIG["network"], "depth": "10"}},
        {"network": {**CONFIG["network"], "num_classes": -4}},
        {"network": {**CONFIG["network"], "dropout": 5}},
        {"network": {**CONFIG["network"], "in_channels": 1}},
        {"mean": [0.5], "std": [0.5]},
        {"mean": []},
        {"mean": [], "std": []},
        {"mean": ["a", "b", "c"]},
        {"mean": 0.5},
        {"std": [0.5, 0.5, 0]},
        {"std": None},
    ],
    ids=json.dumps,
)
def test_a_config_that_describes_no_classifier_is_named(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """Whatever is wrong inside, the user has to learn which file to open. A mean of another number
    of channels than the network's must not broadcast."""
    folder, _ = classifier_folder(tmp_path)
    edit(folder / "config.json", lambda content: content.update(change))
    assert str(folder / "config.json") in refusal(load_classifier, folder)


@pytest.mark.parametrize("key", CONFIG)
def test_a_classifier_config_without_a_key_names_both(tmp_path: Path, key: str) -> None:
    folder, _ = classifier_folder(tmp_path)
    edit(folder / "config.json", lambda content: content.pop(key))
    message = refusal(load_classifier, folder)
    assert str(folder / "config.json") in message
    assert key in message


@pytest.mark.parametrize(
    ("file", "loader"),
    [
        ("classifier/config.json", load_classifier),
        ("diffusion/unet/config.json", load_denoiser),
        ("diffusion/scheduler/scheduler_config.json", load_denoiser),
    ],
)
@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "holds no "),
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b"[1]", "no JSON object"),
    ],
    ids=["missing", "torn", "binary", "list"],
)
def test_an_unreadable_json_file_is_named(
    tmp_path: Path, file: str, loader: Callable[[Path], object], content: bytes | None, says: str
) -> None:
    classifier_folder(tmp_path)
    diffusion_folder(tmp_path)
    path = tmp_path / file
    path.unlink() if content is None else path.write_bytes(content)
    message = refusal(loader, tmp_path / file.split("/")[0])
    assert says in message
    assert path.name in message
    assert str(path.parent) in message


@pytest.mark.parametrize(
    "change",
    [
        {"block_out_channels": [8, 24]},
        {"block_out_channels": [8, 32]},
        {"layers_per_block": 2},
        {"norm_num_groups": 7},
        {"down_block_types": ["NoBlock2D", "DownBlock2D"]},
        {"block_out_channels": "wide"},
    ],
    ids=json.dumps,
)
def test_unet_config_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    folder, _ = diffusion_folder(tmp_path)
    edit(folder / "unet" / "config.json", lambda content: content.update(change))
    message = refusal(load_denoiser, folder)
    assert str(folder / "unet") in message


@pytest.mark.parametrize(
    "change",
    [
        {"beta_schedule": "quadratic"},
        {"num_train_timesteps": "many"},
        {"num_train_timesteps": -5},
        {"num_train_timesteps": 0},
        {"beta_end": None},
        {"beta_end": 2.0},
        {"beta_start": -0.1},
        {"trained_betas": "betas"},
        {"prediction_type": "flow"},
        {"prediction_type": None},
    ],
    ids=json.dumps,
)
def test_a_scheduler_config_that_is_no_schedule_is_named(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    """Betas outside (0, 1) load without a word, and then every image is NaN."""
    folder, _ = diffusion_folder(tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, lambda content: content.update(change))
    assert str(path) in refusal(load_denoiser, folder)


# --- names and hashes ---


def test_a_packaged_name_is_its_folder() -> None:
    names = [path.name for path in ASSETS.iterdir() if path.is_dir()]
    assert names
    for name in names:
        assert resolve(name) == ASSETS / name


def test_packaged_classifiers_load() -> None:
    for config in ASSETS.glob("*/config.json"):
        if "architecture" in json.loads(config.read_text()):
            classifier = load_classifier(config.parent.name)
            shape = (1, classifier.channels, 28, 28)
            assert classifier(torch.zeros(shape)).shape == (1, classifier.num_classes)


def test_hash_is_of_names_and_contents_and_nothing_else(tmp_path: Path) -> None:
    folder, _ = classifier_folder(tmp_path)
    original = folder_hash(folder)
    assert re.fullmatch("[0-9a-f]{64}", original)
    copied = shutil.copytree(folder, tmp_path / "elsewhere" / "copy")
    assert folder_hash(copied) == original
    (copied / "README.md").write_text("notes are no weights")
    assert folder_hash(copied) == original

    changed = {"original": original}
    data = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    changed["one bit of a weight"] = folder_hash(copied)
    (copied / "model.safetensors").write_bytes(data)
    assert folder_hash(copied) == original
    edit(copied / "config.json", lambda content: content.update(mean=[0.4, 0.5, 0.61]))
    changed["the mean"] = folder_hash(copied)
    shutil.copy(folder / "config.json", copied / "config.json")
    (copied / "sub").mkdir()
    (copied / "model.safetensors").rename(copied / "sub" / "model.safetensors")
    changed["a file's place"] = folder_hash(copied)
    (copied / "extra.json").write_text("{}")
    changed["one more file"] = folder_hash(copied)
    assert len(set(changed.values())) == len(changed)
