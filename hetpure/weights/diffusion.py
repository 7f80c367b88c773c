"""A diffusion's folder, as diffusers' `DDPMPipeline` writes and reads it.

Both layouts are read: `unet/` and `scheduler/` inside, or everything at the root. The network is a
`UNet2DModel` or a `SongUNet`; its weights are safetensors, or a `.bin` that holds tensors only.
"""

import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DDPMPipeline, DDPMScheduler, EDMEulerScheduler, UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.networks import SongUNet
from hetpure.networks.song_unet import Block
from hetpure.weights.folders import (
    check_numbers,
    in_one_line,
    read_json,
    resolve,
    weights_file,
)
from hetpure.weights.schedulers import Scheduler, VPScheduler, load_scheduler, schedule_of

SAFE, PICKLED = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"
Network: TypeAlias = UNet2DModel | SongUNet
NETWORKS: dict[str, Any] = {"UNet2DModel": UNet2DModel, "SongUNet": SongUNet}


def load_denoiser(name: str | Path) -> Denoiser:
    """The denoiser of a packaged name, folder or `hf://owner/name`, frozen and in eval mode."""
    folder = resolve(name)
    scheduler = load_scheduler(folder)
    return denoiser_of(load_unet(folder), scheduler).eval().requires_grad_(False)


def denoiser_of(network: nn.Module, scheduler: Scheduler) -> Denoiser:
    """The network behind the contract in its scheduler's config."""
    schedule, config = schedule_of(scheduler), scheduler.config
    if isinstance(scheduler, EDMEulerScheduler):
        return Denoiser(network, schedule, "edm", config["sigma_data"])
    schedule = replace(schedule, pairing=pairing_of(network, scheduler))
    return Denoiser(network, schedule, config["prediction_type"])


def pairing_of(network: nn.Module, scheduler: Scheduler) -> str:
    """How a network that was trained in continuous time is called at an index of the schedule, in
    words; nothing where there is one way only."""
    if isinstance(scheduler, VPScheduler):
        if scheduler.config["pairing"] == "diffpure":
            return "index n is the time t = (n + 1) / T with its own noise level, as in DiffPure"
        return "index n is the time t = n / (T - 1) with its own noise level, as it was trained"
    if isinstance(network, SongUNet) and isinstance(scheduler, DDPMScheduler):
        return "the network sees index n at the noise level of DDPM's betas, as in HetPure's code"
    return ""


def set_dropout(network: nn.Module, share: float) -> None:
    """Of the residual blocks, as the network's own `dropout` is; its config says so too."""
    if not 0 <= share < 1:
        raise InputError(f"dropout must be in [0, 1), got {share}")
    for module in network.modules():
        if isinstance(module, (ResnetBlock2D, Block)):
            module.dropout.p = share
    network.register_to_config(dropout=share)  # type: ignore[operator]


def another(network: Network) -> Network:
    """A network of the same settings with fresh weights, whole also where this one is sharded."""
    kind = SongUNet if isinstance(network, SongUNet) else UNet2DModel
    fresh: Network = kind.from_config(network.config)
    return fresh


def blocks_of(network: Network) -> list[nn.Module]:
    """The large parts that a network is made of, in the order in which they are called."""
    if isinstance(network, SongUNet):
        return [*network.enc.values(), *network.dec.values()]
    parts = (*network.down_blocks, network.mid_block, *network.up_blocks)
    return [part for part in parts if part is not None]


def fresh_unet(config: dict[str, Any]) -> UNet2DModel:
    """diffusers' network, to be trained from scratch."""
    try:
        return UNet2DModel(**config)
    except (TypeError, ValueError, ImportError, IndexError) as error:
        raise InputError(f"no UNet2DModel has such settings: {in_one_line(error)}") from None


def load_unet(folder: Path) -> Network:
    """The folder's network. Weights that are missing or do not fit are an error, never random; so
    is a config with a class or a key that is not known."""
    if (folder / "unet").is_dir():
        folder = folder / "unet"
    config = folder / "config.json"
    kind = _checked_class(read_json(config), config)
    path = weights_file(folder, SAFE, PICKLED)
    try:
        # With weights_only, as diffusers calls torch for a .bin: nothing is executed.
        unet, info = kind.from_pretrained(
            str(folder),
            use_safetensors=path.name == SAFE,
            local_files_only=True,
            low_cpu_mem_usage=False,
            output_loading_info=True,
        )
    except Exception as error:  # diffusers raises a dozen kinds; all mean that the file is bad
        raise InputError(f"{path} cannot be loaded: {in_one_line(error)}") from None
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[problem]:
            raise InputError(f"{path} does not fit its config.json: {problem} {info[problem][:3]}")
    check_numbers(path, unet)
    network: Network = unet
    return network


def _checked_class(config: dict[str, Any], path: Path) -> Any:
    name = config.get("_class_name")
    if name not in NETWORKS:
        raise InputError(f"{path}: networks of {name} are not read, only {', '.join(NETWORKS)}")
    known = inspect.signature(NETWORKS[name].__init__).parameters
    if unknown := [key for key in config if not key.startswith("_") and key not in known]:
        raise InputError(f"{path}: {name} has no {unknown[0]}: another release's, or misspelt")
    return NETWORKS[name]


def meta_network(name: str, config: dict[str, Any]) -> Network:
    """The network of a class and config without memory, to compare names and shapes with."""
    with torch.device("meta"):
        network: Network = NETWORKS[name](**config)
    return network


def save_diffusion(folder: Path, network: nn.Module, scheduler: Scheduler) -> None:
    """Writes the folder that `load_denoiser` reads, and `DDPMPipeline.from_pretrained` where the
    network is diffusers' own."""
    if isinstance(network, UNet2DModel):
        DDPMPipeline(unet=network, scheduler=scheduler).save_pretrained(
            str(folder), safe_serialization=True
        )
    else:
        network.save_pretrained(str(folder / "unet"))  # type: ignore[operator]
        scheduler.save_pretrained(str(folder / "scheduler"))
    # diffusers writes down where a network was loaded from: a path of this machine, and a hash that
    # would differ between machines.
    path = folder / "unet" / "config.json"
    config = read_json(path)
    config.pop("_name_or_path", None)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
