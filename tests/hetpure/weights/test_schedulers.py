"""Noise schedules on disk: classes by a list, every key understood or refused."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler

from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.schedule import Schedule, linear_schedule, vp_schedule
from hetpure.weights import load_denoiser, save_diffusion
from hetpure.weights.diffusion import denoiser_of, pairing_of
from hetpure.weights.schedulers import VPScheduler, build_scheduler, schedule_of
from tests.hetpure.networks import tiny_unet
from tests.hetpure.weights.folders import diffusion_folder, edit, pixels, refusal

OTHER_PROCESSES = [
    "ScoreSdeVeScheduler",
    "ScoreSdeVpScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "CMStochasticIterativeScheduler",
    "KarrasVeScheduler",
    "EDMDPMSolverMultistepScheduler",
    "LCMScheduler",
    "VQDiffusionScheduler",
]


def levels(**config: Any) -> tuple[float, ...]:
    return schedule_of(build_scheduler(config)).alphas_cumprod


@pytest.mark.parametrize("name", [*OTHER_PROCESSES, None, "ddpm"])
def test_a_network_of_another_process_is_refused(tmp_path: Path, name: str | None) -> None:
    """Each of these was taken for DDPM's linear betas."""
    folder, _ = diffusion_folder(tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    edit(path, lambda content: content.update({"_class_name": name}))
    message = refusal(load_denoiser, folder)
    assert str(path) in message
    assert str(name) in message
    assert "DDPMScheduler" in message


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "UniPCMultistepScheduler",
    ],
)
def test_samplers_of_a_table_of_betas_give_that_table(tmp_path: Path, name: str) -> None:
    """As diffusers saves them, with all that says how they would sample."""
    scheduler = getattr(diffusers, name)(num_train_timesteps=50, beta_end=0.1)
    scheduler.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "scheduler_config.json").read_text())
    read = build_scheduler(config)
    assert isinstance(read, DDPMScheduler)
    expected = DDPMScheduler(num_train_timesteps=50, beta_end=0.1).alphas_cumprod.double()
    assert schedule_of(read).alphas_cumprod == tuple(expected.tolist())


def test_keys_of_the_first_releases_mean_what_they_meant() -> None:
    old = {"_class_name": "DDPMScheduler", "tensor_format": "pt", "timestep_values": None}
    assert build_scheduler(old | {"predict_epsilon": False}).config["prediction_type"] == "sample"
    assert build_scheduler(old | {"predict_epsilon": True}).config["prediction_type"] == "epsilon"
    assert len(levels(**old, timesteps=500)) == 500
    assert levels(**old, timesteps=500) == levels(**old, num_train_timesteps=500)


@pytest.mark.parametrize(
    "change",
    [
        {"predict_epsilon": False, "prediction_type": "epsilon"},
        {"timesteps": 500, "num_train_timesteps": 1000},
        {"timestep_values": [1, 2]},
        {"beta_stop": 0.01},
        {"rescale_betas_zero_snr": True},
        {"predict_epsilon": "false"},
        {"predict_epsilon": None},
        {"trained_betas": [0.1] * 10},
        {"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True},
        {"_class_name": "RescaledScheduler", "told_timesteps": 0},
    ],
    ids=json.dumps,
)
def test_what_is_not_understood_or_contradicts_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):  # which whoever reads the file names
        build_scheduler({"_class_name": "DDPMScheduler"} | change)


def test_a_networks_class_and_keys_are_known(tmp_path: Path) -> None:
    """diffusers only warns of a key that it does not know."""
    folder, _ = diffusion_folder(tmp_path)
    path = folder / "unet" / "config.json"
    edit(path, lambda content: content.update({"resnet_scale": 2}))
    assert "resnet_scale" in refusal(load_denoiser, folder)
    edit(path, lambda content: content.pop("resnet_scale"))
    load_denoiser(folder)
    edit(path, lambda content: content.update({"_class_name": "UNet2DConditionModel"}))
    assert "UNet2DConditionModel" in refusal(load_denoiser, folder)


@pytest.mark.parametrize(
    ("schedule", "sigma", "told"),
    [
        (vp_schedule(), 0.3405, 100.0),
        (linear_schedule(), 0.3423, 100),
        (vp_schedule(pairing="diffpure"), 0.3436, 100.899),
    ],
    ids=["network", "table", "diffpure"],
)
def test_three_published_pairings_of_time_and_level(
    schedule: Schedule, sigma: float, told: float
) -> None:
    """At index 100, as the published wrappers pair them."""
    assert schedule.sigma(100) == pytest.approx(sigma, abs=5e-5)
    assert schedule.time(100) == pytest.approx(told)
    level = schedule.level(torch.tensor([100]), torch.zeros(1, 1, 1, 1))
    assert level.time.item() == pytest.approx(told, rel=1e-6)
    assert float(level.spread / level.signal) == pytest.approx(sigma, abs=5e-5)


def test_the_network_is_told_the_schedules_time() -> None:
    """By an index and by a level alike."""
    seen: list[torch.Tensor] = []

    def network(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        seen.append(times)
        return x

    module = torch.nn.Module()
    module.forward = network  # type: ignore[method-assign]
    schedule = vp_schedule(pairing="diffpure")
    denoiser = Denoiser(module, schedule)
    x = torch.zeros(2, 1, 2, 2)
    denoiser(x, 100)
    denoiser(x, schedule.level(torch.tensor([100, 100]), x))
    assert all(torch.equal(times, torch.full((2,), 100.899)) for times in seen)


def test_a_continuous_schedule_round_trips(tmp_path: Path) -> None:
    unet = tiny_unet()
    for pairing in ("network", "diffpure"):
        scheduler = VPScheduler(pairing=pairing)
        save_diffusion(tmp_path / pairing, unet, scheduler)
        loaded = load_denoiser(tmp_path / pairing)
        assert loaded.schedule == vp_schedule(pairing=pairing)  # type: ignore[arg-type]
        x = 2 * pixels() - 1
        direct, _ = denoiser_of(unet, scheduler).predict(x, 300)
        assert torch.equal(loaded.predict(x, 300)[0], direct)
        assert ("DiffPure" in loaded.schedule.pairing) == (pairing == "diffpure")
    assert pairing_of(unet, DDPMScheduler()) == ""
    with pytest.raises(InputError, match="pairing"):
        build_scheduler({"_class_name": "VPScheduler", "pairing": "mine"})
    with pytest.raises(InputError):
        build_scheduler({"_class_name": "VPScheduler", "beta": 1})
    with pytest.raises(ValueError, match="beta"):
        build_scheduler({"_class_name": "VPScheduler", "beta_min": 2, "beta_max": 1})


def test_the_continuous_first_index_is_the_earliest_time_of_training() -> None:
    """At time 0 no noise is left, and a network's answer there would be divided by none."""
    assert vp_schedule().time(0) == pytest.approx(999e-5)
    assert 0 < vp_schedule().sigma(0) < vp_schedule().sigma(1)
