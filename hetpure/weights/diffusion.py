"""A diffusion's folder, as diffusers' `DDPMPipeline` writes and reads it.

Both layouts are read: `unet/` and `scheduler/` inside, or everything at the root.
"""

import json
from pathlib import Path
from typing import Any, Literal, TypeAlias

from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.schedule import Schedule, linear_schedule
from hetpure.weights.folders import in_one_line, read_json, resolve, weights_file

WEIGHTS = "diffusion_pytorch_model.safetensors"
DISCRETE = ("epsilon", "sample", "v_prediction")  # what a DDPM's network may predict
Scheduler: TypeAlias = DDPMScheduler | EDMEulerScheduler


def load_denoiser(name: str | Path) -> Denoiser:
    """The denoiser of a packaged name or folder, frozen and in eval mode."""
    folder = resolve(name)
    scheduler = load_scheduler(folder)
    return denoiser_of(load_unet(folder), scheduler).eval().requires_grad_(False)


def denoiser_of(network: nn.Module, scheduler: Scheduler) -> Denoiser:
    """The network behind the contract that its scheduler's config tells of. An `EDMEulerScheduler`
    has no indices: those of DDPM's linear schedule then name the noise levels."""
    config = scheduler.config
    if isinstance(scheduler, EDMEulerScheduler):
        schedule = linear_schedule(config["num_train_timesteps"])
        return Denoiser(network, schedule, "edm", config["sigma_data"])
    return Denoiser(network, schedule_of(scheduler), config["prediction_type"])


def set_dropout(network: nn.Module, share: float) -> None:
    """Of the residual blocks, as a UNet2DModel's own `dropout` is; its config says so too."""
    if not 0 <= share < 1:
        raise InputError(f"--model.dropout must be in [0, 1), got {share}")
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            module.dropout.p = share
    network.register_to_config(dropout=share)  # type: ignore[operator]


def fresh_scheduler(preconditioning: Literal["none", "edm"], config: dict[str, Any]) -> Scheduler:
    """diffusers' scheduler for a network that is trained from scratch."""
    kind = EDMEulerScheduler if preconditioning == "edm" else DDPMScheduler
    try:
        return _checked(kind(**config), Path("--model.scheduler"))
    except (TypeError, ValueError, NotImplementedError) as error:
        raise InputError(f"--model.scheduler: {in_one_line(error)}") from None


def fresh_unet(config: dict[str, Any]) -> UNet2DModel:
    """diffusers' network, to be trained from scratch."""
    try:
        return UNet2DModel(**config)
    except (TypeError, ValueError, ImportError, IndexError) as error:
        raise InputError(f"--model.unet: {in_one_line(error)}") from None


def load_unet(folder: Path) -> UNet2DModel:
    """The folder's UNet. Weights that are missing or do not fit are an error, never random."""
    if (folder / "unet").is_dir():
        folder = folder / "unet"
    read_json(folder / "config.json")
    path = weights_file(folder, WEIGHTS)
    try:
        unet, info = UNet2DModel.from_pretrained(
            str(folder),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises a dozen kinds; all mean that the file is bad
        raise InputError(f"{path} cannot be loaded: {in_one_line(error)}") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise InputError(f"{path} does not fit its config.json: {problem} {info[problem][:3]}")
    return unet


def load_scheduler(folder: Path) -> Scheduler:
    """The folder's noise schedule as a diffusers scheduler."""
    if (folder / "scheduler").is_dir():
        folder = folder / "scheduler"
    path = folder / "scheduler_config.json"
    config = read_json(path)
    edm = config.get("_class_name") == EDMEulerScheduler.__name__
    try:
        scheduler = (EDMEulerScheduler if edm else DDPMScheduler).from_config(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: {in_one_line(error)}") from None
    return _checked(scheduler, path)


def _checked(scheduler: Scheduler, path: Path) -> Scheduler:
    """The scheduler, where its numbers are a noise schedule that we know what to do with."""
    prediction_type = scheduler.config["prediction_type"]
    if isinstance(scheduler, EDMEulerScheduler):
        if prediction_type != "epsilon" or not scheduler.config["sigma_data"] > 0:
            raise InputError(f"{path}: of EDM only prediction_type epsilon and sigma_data > 0")
        return scheduler
    levels = scheduler.alphas_cumprod
    if not len(levels) or not ((levels > 0) & (levels < 1)).all():
        raise InputError(f"{path}: these betas leave (0, 1), no noise schedule")
    if prediction_type not in DISCRETE:
        allowed = ", ".join(DISCRETE)
        raise InputError(f"{path}: prediction_type {prediction_type!r} is not one of {allowed}")
    return scheduler


def schedule_of(scheduler: DDPMScheduler) -> Schedule:
    """A diffusers scheduler's noise levels."""
    return Schedule(tuple(scheduler.alphas_cumprod.double().tolist()))


def save_diffusion(folder: Path, unet: nn.Module, scheduler: Scheduler) -> None:
    """Writes the folder that `load_denoiser` and `DDPMPipeline.from_pretrained` read."""
    DDPMPipeline(unet=unet, scheduler=scheduler).save_pretrained(
        str(folder), safe_serialization=True
    )
    # diffusers writes down where a network was loaded from: a path of this machine, and a hash that
    # would differ between machines.
    path = folder / "unet" / "config.json"
    config = read_json(path)
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
