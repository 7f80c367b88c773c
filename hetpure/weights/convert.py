"""A published file of weights to a folder that evaluations and trainings read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import __version__ as diffusers_version
from safetensors.torch import save_file
from torch import Tensor

from hetpure.classifiers import Classifier
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.noise import Purpose, noise_for
from hetpure.samplers import add_noise
from hetpure.weights.checkpoint import parts_of, read_checkpoint
from hetpure.weights.classifier import (
    ARCHITECTURES,
    CONFIG,
    WEIGHTS,
    build_classifier,
    load_classifier,
)
from hetpure.weights.classifier_formats import ClassifierWeights, recognise_classifier
from hetpure.weights.diffusion import SAFE, load_denoiser, meta_network, pairing_of
from hetpure.weights.formats import DiffusionWeights, State, Told
from hetpure.weights.schedulers import build_scheduler
from hetpure.weights.song_formats import read_edm, read_score_sde
from hetpure.weights.unet_formats import read_ho, read_openai

CHECKED = (0.05, 0.2, 0.6)  # strengths at which a converted diffusion is asked once
KNOWN = (
    "score_sde's DDPM++, EDM's VP networks, Ho's DDPM, OpenAI's improved and guided diffusion, and"
    " classifiers of RobustBench, DeepMind, DiffPure, szagoruyko, meliketoy, kuangliu, torchvision"
    " and timm"
)


@dataclass(frozen=True)
class OwnNetwork:
    """A classifier that is recognised by nothing, because it is the user's own.

    Args:
        architecture: import path of its class, which is imported, or another library's, as
            timm:NAME.
        num_classes: its number of logits.
        network: arguments of its class.
        attention_blocks: its modules that the attention mask reads.
    """

    architecture: str
    num_classes: int
    network: Mapping[str, Any] = field(default_factory=dict)
    attention_blocks: Sequence[str] | None = None


@dataclass(frozen=True)
class Converted:
    """What was written: `kind` is diffusion or classifier, `said` what a person should know."""

    folder: Path
    kind: str
    format: str
    said: tuple[str, ...]


def convert(
    source: Path,
    folder: Path,
    told: Told = Told(),  # noqa: B008 (frozen)
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    part: str | None = None,
    own: OwnNetwork | None = None,
) -> Converted:
    """Recognises the file by its names and writes the folder. No pickle is executed.

    `mean` and `std` (pixel [0, 1], a number a channel) are a classifier's normalisation in place of
    its format's; `part` names the entry of the file to take, where it holds several; `own` says
    whose weights they are in place of their names.
    """
    if source.is_dir():
        raise InputError(
            f"{source} is a folder: one of diffusers or of a classifier is read as it is"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already: give another folder")
    parts = parts_of(read_checkpoint(source))
    if part is not None and part not in parts:
        known = ", ".join(repr(name) for name in parts)
        raise InputError(f"{source} has no part {part!r} of tensors, it has {known or 'none'}")
    for name, tensors in parts.items():
        if part not in (None, name):
            continue
        try:
            found = _recognise(tensors, told) if own is None else _own(tensors, own, mean)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
        if found is not None:
            return _write(source, folder, name, found, mean, std)
    raise InputError(f"{source} is of no known format ({_first_names(parts)}); known are {KNOWN}")


def _recognise(
    part: State | list[Tensor], told: Told
) -> DiffusionWeights | ClassifierWeights | None:
    if isinstance(part, list):
        return read_score_sde(part, told)
    if {"time_embedding.linear_1.weight", "conv_norm_out.weight"} <= part.keys():
        raise InputError(
            "these are diffusers' names: give the folder that they come from, with its config.json"
        )
    for read in (read_score_sde, read_edm, read_ho, read_openai):
        if found := read(part, told):
            return found
    return recognise_classifier(part)


def _own(
    part: State | list[Tensor], own: OwnNetwork, mean: Sequence[float] | None
) -> ClassifierWeights | None:
    if isinstance(part, list):
        return None
    config = {
        "architecture": own.architecture,
        "network": dict(own.network),
        "mean": None,
        "std": None,
        "num_classes": own.num_classes,
        "in_channels": len(mean or ()),
        "attention_blocks": None if own.attention_blocks is None else list(own.attention_blocks),
    }
    return ClassifierWeights(own.architecture, config, dict(part), (), "your own")


def _first_names(parts: dict[str, Any]) -> str:
    names = [name for part in parts.values() if isinstance(part, dict) for name in part]
    return f"its first tensors are {', '.join(names[:3])}" if names else "it holds no named tensors"


def _write(
    source: Path,
    folder: Path,
    part: str,
    found: DiffusionWeights | ClassifierWeights,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> Converted:
    said = [f"taken from {part!r} in the file"] if part else []
    if isinstance(found, DiffusionWeights):
        if mean is not None or std is not None:
            raise InputError("--mean and --std are a classifier's: a diffusion has none")
        said += found.remarks
        pairing = _write_diffusion(folder, found)
        said += [f"time and noise level: {pairing}"] if pairing else []
        kind, option = "diffusion", "--model.denoisers.ddpm"
    else:
        config = found.config | {
            key: list(value) for key, value in (("mean", mean), ("std", std)) if value is not None
        }
        said += [f"normalised by mean {config['mean']} and std {config['std']}"]
        said += (
            [found.normalisation] if mean is None and std is None else ["these are the given ones"]
        )
        said += found.remarks
        _write_classifier(folder, found, config)
        kind, option = "classifier", "--model.classifier"
    origin = {
        "file": source.name,
        "bytes": source.stat().st_size,
        "sha256": _sha256(source),
        "format": found.format,
        "part": part,
        "licence": found.licence,
        "remarks": said,
    }
    (folder / "source.json").write_text(json.dumps(origin, indent=2) + "\n")
    (folder / "README.md").write_text(_card(origin, option))
    return Converted(folder, kind, found.format, (*said, f"licence of the source: {found.licence}"))


def _write_diffusion(folder: Path, found: DiffusionWeights) -> str | None:
    network = meta_network(found.network, found.config)
    _check_fits(found.state, network, found.format)
    scheduler = build_scheduler(found.scheduler)
    (folder / "unet").mkdir(parents=True)
    network.save_config(folder / "unet")
    _save(found.state, folder / "unet" / SAFE)
    scheduler.save_pretrained(folder / "scheduler")
    if found.network == "UNet2DModel":  # diffusers reads it as a whole too
        index = {
            "_class_name": "DDPMPipeline",
            "_diffusers_version": diffusers_version,
            "scheduler": ["diffusers", type(scheduler).__name__],
            "unet": ["diffusers", found.network],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return pairing_of(network, scheduler)


def _write_classifier(folder: Path, found: ClassifierWeights, config: dict[str, Any]) -> None:
    if config["mean"] is None or config["std"] is None:
        raise InputError(
            f"{found.format}: {found.normalisation}; give --mean and --std, a number a channel for"
            " pixels in [0, 1] (0 and 1 for none)"
        )
    ours = config["architecture"] in ARCHITECTURES  # another's constructor may look at numbers
    with torch.device("meta") if ours else nullcontext():
        classifier = build_classifier(config, where=folder / CONFIG)
    _check_fits(found.state, classifier.network, found.format)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    _save(found.state, folder / WEIGHTS)


def _check_fits(state: State, network: torch.nn.Module, format: str) -> None:
    """InputError unless the state is exactly the network's, by names and shapes."""
    wanted = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in state.items()}
    if wrong := sorted(
        name for name in wanted.keys() | given.keys() if wanted.get(name) != given.get(name)
    ):
        name = wrong[0]
        raise InputError(
            f"it looks like {format}, but {len(wrong)} tensors do not fit; {name} is"
            f" {given.get(name, 'missing')}, expected {wanted.get(name, 'nothing')}"
        )


def _save(state: State, path: Path) -> None:
    """In float32 where they are floats."""
    plain = {
        name: (value.float() if value.is_floating_point() else value).detach().contiguous()
        for name, value in state.items()
    }
    save_file(plain, path, metadata={"format": "pt"})


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 22):
            digest.update(piece)
    return digest.hexdigest()


def _card(origin: dict[str, Any], option: str) -> str:
    lines = "\n".join(f"- {line}" for line in origin["remarks"])
    return f"""# {origin["format"]}

Converted by `python -m hetpure convert` from `{origin["file"]}` ({origin["bytes"]:,} bytes, SHA-256
`{origin["sha256"]}`).

{lines}

Licence of the source: {origin["licence"]}.

```
python evaluate.py --config YOURS.yaml {option} THIS_FOLDER
```
"""


@torch.no_grad()
def check(converted: Converted) -> list[str]:
    """Runs what was written once. Of a diffusion, at three levels: mean and std of the predicted
    noise, and how far it is the noise that was put in; a wrong map shows in them."""
    if converted.kind == "classifier":
        return [_check_classifier(load_classifier(converted.folder))]
    return _check_denoiser(load_denoiser(converted.folder))


def _check_denoiser(denoiser: Denoiser) -> list[str]:
    config: Any = denoiser.network.config
    grey = torch.zeros(2, config["in_channels"], config["sample_size"], config["sample_size"])
    noise = noise_for(grey).normal(Purpose.FORWARD, grey)
    lines = []
    for strength in CHECKED:
        index = denoiser.schedule.index(strength)
        x = add_noise(grey, denoiser.schedule.alpha_cumprod(index), noise)
        _, found = denoiser.predict(x, index)
        alike = float(torch.corrcoef(torch.stack([found.flatten(), noise.flatten()]))[0, 1])
        lines.append(
            f"index {index}, sigma {denoiser.schedule.sigma(index):.3f}: predicted noise of mean"
            f" {float(found.mean()):+.3f} and std {float(found.std()):.3f}, correlation with the"
            f" true noise {alike:.3f}"
        )
    return [*lines, "a trained network's are near 0, 1 and 1: else a name is mapped wrong"]


def _check_classifier(classifier: Classifier) -> str:
    size = getattr(classifier.network, "image_size", 224 if classifier.num_classes > 200 else 32)
    pixels = torch.full((2, classifier.channels, size, size), 0.5)
    logits = classifier(pixels + 0.1 * noise_for(pixels).normal(Purpose.FORWARD, pixels))
    return (
        f"{tuple(logits.shape)} logits of two grey, noisy images of {size} x {size} pixels, from"
        f" {float(logits.min()):.3f} to {float(logits.max()):.3f}"
    )
