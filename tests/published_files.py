"""The files that recipes want, with random weights: small networks or those of the published
size, in layouts in which such files are published."""

import shlex
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hetpure.__main__ import main
from hetpure.weights.published import FILES
from tests.hetpure.weights.test_diffusion_formats import on_disk
from tests.published import Reference, published_shapes, reference

# By the end of a recipe's name for it: the reduced network's reference and the published names.
DIFFUSIONS = {
    "ddpmpp": ("score_sde_ddpmpp_vp", "score_sde_cifar10_ddpmpp_deep_continuous"),
    "guided": ("guided_diffusion_uncond", "guided_diffusion_256x256_uncond"),
    "ddpm": ("ddpm_ho", "ddpm_ho_cifar10_svhn"),
    "addt": ("ddpm_ho", "ddpm_ho_cifar10_svhn"),
}
CLASSIFIERS: dict[str, tuple[str | None, str]] = {
    "wrn_28_10_standard": (
        "classifier_diffpure_wrn_dropout",
        "clf_robustbench_standard_wrn_28_10",
    ),
    "wrn_70_16_dropout": ("classifier_diffpure_wrn_dropout", "clf_diffpure_wrn_70_16_dropout"),
    "wrn_28_10_gowal": ("classifier_deepmind_wrn_swish", "clf_deepmind_wrn_28_10"),
    "wrn_70_16_rebuffi": ("classifier_deepmind_wrn_swish", "clf_deepmind_wrn_70_16"),
    "wrn_70_16_diffpure": ("classifier_deepmind_wrn_swish", "clf_deepmind_wrn_70_16"),
    "wrn_28_10_addt": ("classifier_meliketoy_wrn", "clf_meliketoy_wrn_28_10"),
    "svhn_wrn_28_10": (None, "clf_svhn_szagoruyko_wrn_28_10"),
    "wide_resnet50_2": (None, "clf_torchvision_wide_resnet50_2"),
    "imagenet_resnet50": (None, "clf_torchvision_resnet50"),
}


def random_state(name: str) -> dict[str, Tensor]:
    """Numbers under the published names and in the published shapes that keep activations in
    range."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in published_shapes(name).items():
        if not shape:
            state[key] = torch.tensor(0)
        elif key.endswith(("running_mean", "bias")):
            state[key] = torch.zeros(shape)
        elif len(shape) == 1:
            state[key] = torch.ones(shape)
        else:
            scale = (2 / prod(shape[1:])) ** 0.5
            state[key] = torch.randn(shape, generator=generator) * scale
    return state


def write_and_convert(name: str, file: Path, folder: Path, *, full: bool = False) -> None:
    """Writes the file of a recipe's network, and makes its folder of it as `doctor` says."""
    told = shlex.split(FILES[name].options) + write_published(name, file, full=full)
    main(["convert", str(file), str(folder), *told])


def write_published(name: str, path: Path, *, full: bool) -> list[str]:
    """Writes it; gives what `convert` has to be told besides, of a small network."""
    for part, (small, names) in DIFFUSIONS.items():
        if part in name and "wrn" not in name:
            weights = random_state(names) if full else reference(small).weights
            on_disk(small, Reference(weights, {}, {}), path)
            if full:
                return []
            if part == "guided":
                return shlex.split(
                    "--sample_size 256 --head_channels 16 --beta_schedule linear --steps 1000"
                )
            return ["--sample_size=32"]
    torch.save(_classifier(name, full=full), path)
    return []


def _classifier(name: str, *, full: bool) -> Any:
    (small, names) = next(pair for part, pair in CLASSIFIERS.items() if name.endswith(part))
    weights = random_state(names) if full or small is None else reference(small).weights
    if name.startswith("cifar100"):
        for key in ("linear.weight", "linear.bias"):
            weights[key] = weights[key].repeat(10, *[1] * (weights[key].ndim - 1))
    if name == "svhn_wrn_28_10":
        return {"params": weights}
    if name.endswith("_addt"):
        return {"net": weights}
    if name.endswith("_diffpure"):
        return {"model_state_dict": {f"module.0.{key}": v for key, v in weights.items()}}
    return weights
