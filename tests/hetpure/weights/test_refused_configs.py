"""Configs beside weights: one that cannot be read or does not fit is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hetpure.weights import load_classifier, load_denoiser
from tests.hetpure.weights.folders import CONFIG, classifier_folder, diffusion_folder, edit, refusal


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
        (b'{"network": {"depth": 10, "depth": 16}}', "'depth' is there twice"),
    ],
    ids=["missing", "torn", "binary", "list", "twice"],
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
