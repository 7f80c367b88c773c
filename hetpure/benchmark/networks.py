"""What is measured: networks of three sizes, most with random weights, and defences around them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.noise import Purpose, noise_for
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.samplers import DDPM, Sampler
from hetpure.schedule import linear_schedule
from hetpure.weights import load_classifier, load_denoiser
from hetpure.weights.classifier import build_classifier

PACKAGED, CIFAR10, IMAGENET = "packaged", "cifar10", "imagenet"
PACKAGED_WEIGHTS = "fashion_mnist_ddpm"


@dataclass(frozen=True)
class Network:
    """A diffusion network.

    Args:
        title: what tables call it.
        shape: (C, H, W) of its images.
        least_bytes: memory that must be free before it is built: its weights twice, as an
            accelerated copy lies beside them, and one taped call of two images, rounded up.
        config: of diffusers' class; None: the packaged weights.
    """

    title: str
    shape: tuple[int, int, int]
    least_bytes: int
    config: Mapping[str, Any] | None = None


NETWORKS = {
    PACKAGED: Network("packaged UNet", (1, 28, 28), 0),
    CIFAR10: Network(
        "architecture of google/ddpm-cifar10-32",
        (3, 32, 32),
        10**9,
        {
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": (128, 256, 256, 256),
            "layers_per_block": 2,
            "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
            "downsample_padding": 0,
            "flip_sin_to_cos": False,
            "freq_shift": 1,
            "norm_eps": 1e-6,
            "attention_head_dim": None,
        },
    ),
    IMAGENET: Network(
        "architecture of guided-diffusion's unconditional ImageNet network",
        (3, 256, 256),
        20 * 10**9,
        {
            "sample_size": 256,
            "in_channels": 3,
            "out_channels": 3,
            "layers_per_block": 2,
            "block_out_channels": (256, 256, 512, 512, 1024, 1024),
            "down_block_types": (*3 * ("ResnetDownsampleBlock2D",), *3 * ("AttnDownBlock2D",)),
            "up_block_types": (*3 * ("AttnUpBlock2D",), *3 * ("ResnetUpsampleBlock2D",)),
            "resnet_time_scale_shift": "scale_shift",
            "downsample_type": "resnet",
            "upsample_type": "resnet",
            "norm_eps": 1e-5,
            "attn_norm_num_groups": 32,
            "attention_head_dim": 64,
        },
    ),
}


def denoiser_of(network: str, device: str = "cpu") -> Denoiser:
    """One of `NETWORKS` by name; always the same weights on a device of a kind."""
    config = NETWORKS[network].config
    if config is None:
        return load_denoiser(PACKAGED_WEIGHTS).to(device)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        unet = UNet2DModel(**config)
    return Denoiser(unet, linear_schedule()).eval().requires_grad_(False)


def classifier_of(network: str, device: str = "cpu") -> Classifier:
    """What papers put behind the network: the packaged classifier, or WRN-28-10 or ResNet-50 with
    random weights."""
    if network == PACKAGED:
        return load_classifier("fashion_mnist_wrn").to(device)
    wide = {"depth": 28, "widen_factor": 10, "num_classes": 10, "in_channels": 3}
    kind, arguments = ("WideResNet", wide) if network == CIFAR10 else ("ResNet", {"depth": 50})
    if network == IMAGENET:
        arguments |= {"num_classes": 1000, "in_channels": 3}
    config = {"architecture": kind, "network": arguments, "mean": [0.5] * 3, "std": [0.5] * 3}
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(0)
        classifier = build_classifier(config, where=Path(network))
    return classifier.to(device).eval().requires_grad_(False)


class Free(nn.Module):
    """A network that costs nothing: what is left is noise, sampler and bookkeeping."""

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return x * 0.1


class FirstPixel(nn.Module):
    """A classifier that costs nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :1]


def defense_of(
    denoiser: Denoiser, calls: int, images: Tensor, sampler: Sampler | None = None
) -> Defense:
    """A uniform purifier of exactly `calls` network calls, by DDPM where no sampler is given, with
    noise in every step; nothing is classified. It is for such images, and on their device."""
    channels = images.shape[1]
    nothing = Classifier(FirstPixel(), num_classes=1, mean=[0.5] * channels, std=[0.5] * channels)
    strength = max(0.2, calls / 1000)
    points = tuple(round(k * 1000 * strength / calls) for k in range(calls + 1))
    purifier = UniformPurifier(strength=strength, timesteps=points, sampler=sampler or DDPM())
    defense = Defense(nothing, purifier, denoiser).to(images.device)
    assert defense.network_calls == calls
    return defense


def published_defense(network: str, denoiser: Denoiser, device: str, steps: int = 500) -> Defense:
    """HetPure as its code was published (configs/evaluate/reference_hetpure.yaml), with the noise
    levels of its paper: of 500 steps 100 network calls on CIFAR-10, 200 on ImageNet."""
    strong, weak, size = (0.4, 0.2, 256) if network == IMAGENET else (0.2, 0.1, None)
    purifier = HeterogeneousPurifier(
        t_large=strong,
        t_small=weak,
        steps=steps,
        resampling="fused",
        resample_jump=3,
        known="departure",
        output="state",
    )
    return Defense(
        classifier_of(network, device),
        purifier,
        denoiser,
        AttentionMask(normalisation="minmax", threshold=0.9),
        purified_size=size,
    )


def images_of(network: str, batch: int, device: str) -> Tensor:
    """(batch, C, H, W) in pixel [0, 1], every pixel uniform."""
    blank = torch.zeros(batch, *NETWORKS[network].shape, device=device)
    return noise_for(blank, seed=1).uniform(Purpose.START, blank)
