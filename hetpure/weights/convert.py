"""A published file of weights to a folder that evaluations and trainings read."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import DDPMScheduler
from diffusers import __version__ as diffusers_version
from safetensors.torch import save_file

from hetpure.disk import file_hash
from hetpure.errors import InputError
from hetpure.weights.checkpoint import Part, read_parts, without_wrappers
from hetpure.weights.classifier import ARCHITECTURES, CONFIG, WEIGHTS, build_classifier
from hetpure.weights.classifier_formats import ClassifierWeights, recognise_classifier
from hetpure.weights.diffusion import SAFE, meta_network, pairing_of
from hetpure.weights.folders import SOURCE, in_one_line
from hetpure.weights.formats import DiffusionWeights, Hints, State, misfit
from hetpure.weights.schedulers import build_scheduler
from hetpure.weights.song_formats import read_edm, read_score_sde
from hetpure.weights.unet_formats import read_ho, read_openai

KNOWN = (
    "score_sde's DDPM++, EDM's VP networks, Ho's DDPM, OpenAI's improved and guided diffusion, and"
    " classifiers of RobustBench, DeepMind, DiffPure, szagoruyko, meliketoy, kuangliu, torchvision"
    " and timm"
)


@dataclass(frozen=True)
class CustomNetwork:
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
    """What was written: `kind` is diffusion or classifier, `remarks` are for people."""

    folder: Path
    kind: str
    format: str
    remarks: tuple[str, ...]


Weights: TypeAlias = DiffusionWeights | ClassifierWeights


def convert(
    source: Path,
    folder: Path,
    hints: Hints = Hints(),  # noqa: B008 (frozen)
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    part: str | None = None,
    custom: CustomNetwork | None = None,
) -> Converted:
    """Recognises the file by its names and writes the folder. No pickle is executed.

    `mean` and `std` (pixel [0, 1], a number a channel) are a classifier's normalisation in place of
    its format's; `part` names the entry of the file to take, where it holds several; `custom`
    describes the user's network, where the names are of no known format.
    """
    if source.is_dir():
        raise InputError(
            f"{source} is a folder: one of diffusers or of a classifier is read as it is"
        )
    try:
        taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    if taken:
        raise InputError(f"{folder} exists already: give another folder")
    parts = read_parts(source)
    if part is not None and part not in parts:
        raise InputError(f"{source} has no part {part!r} of tensors, it has {_names(parts)}")
    asked = parts if part is None else {part: parts[part]}
    try:
        name, weights = (
            _recognise(asked, hints) if custom is None else _custom(asked, custom, hints, mean)
        )
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    large = [k for k, v in parts.items() if k != name and 2 * len(v) > len(parts[name])]
    remarks = [f"taken from {name!r} in the file"] if name else []
    remarks += [f"not taken: {_names(large)}; --part takes another"] if large and not part else []
    return _write(source, folder, name, weights, mean, std, remarks)


def _recognise(parts: Mapping[str, Part], hints: Hints) -> tuple[str, Weights]:
    """The first part that is of a known format. An average that is not is an error: the weights
    that it is of would be taken in its place."""
    for name, part in parts.items():
        try:
            weights = _read(part, hints)
        except InputError:
            raise
        except Exception as error:  # a reader looks at shapes before they are compared
            raise InputError(
                f"{name or 'it'} has the names of a known format, but not its shapes"
                f" ({in_one_line(error)[:80]})"
            ) from None
        if weights is not None:
            return name, weights
        if isinstance(part, list):
            raise InputError(
                f"{name!r} is an average of {len(part)} tensors in no order that is known: --part"
                f" takes another of {_names(parts)}"
            )
    raise InputError(
        f"it is of no known format ({_first_names(parts)}); known are {KNOWN}. For a classifier of"
        " your own give --architecture"
    )


def _read(part: Part, hints: Hints) -> Weights | None:
    if isinstance(part, list):
        return read_score_sde(part, hints)
    state = without_wrappers(part)
    if {"time_embedding.linear_1.weight", "conv_norm_out.weight"} <= state.keys():
        raise InputError(
            "these are diffusers' names: give the folder that they come from, with its config.json"
        )
    for read in (read_score_sde, read_edm, read_ho, read_openai):
        if diffusion := read(state, hints):
            return diffusion
    classifier = recognise_classifier(state)
    if classifier is not None:
        hints.only("sample_size")
    return classifier


def _custom(
    parts: Mapping[str, Part], custom: CustomNetwork, hints: Hints, mean: Sequence[float] | None
) -> tuple[str, ClassifierWeights]:
    """The first part that fits the user's own network, by its names as they are or without those of
    wrappers."""
    hints.only("sample_size")
    config = {
        "architecture": custom.architecture,
        "network": dict(custom.network),
        "mean": None,
        "std": None,
        "num_classes": custom.num_classes,
        "in_channels": len(mean or ()),
        "attention_blocks": None
        if custom.attention_blocks is None
        else list(custom.attention_blocks),
    }
    channels = {"mean": [0.0] * len(mean or ()), "std": [1.0] * len(mean or ())}
    if mean is None:
        raise InputError("a network of your own needs --mean and --std, pixel [0, 1]")
    network = build_classifier(config | channels, where=Path(custom.architecture)).network
    problem = f"it holds no named tensors for {custom.architecture}"
    for name, part in parts.items():
        for state in () if isinstance(part, list) else (part, without_wrappers(part)):
            if (difference := misfit(state, network.state_dict())) is None:
                return name, ClassifierWeights(custom.architecture, config, state, (), "your own")
            problem = f"{name or 'it'} does not fit {custom.architecture}: {difference}"
    raise InputError(problem)


def _names(parts: Iterable[str]) -> str:
    return ", ".join(repr(name) if name else "the file itself" for name in parts) or "none"


def _first_names(parts: Mapping[str, Part]) -> str:
    names = [name for part in parts.values() if isinstance(part, dict) for name in part]
    return f"its first tensors are {', '.join(names[:3])}" if names else "it holds no named tensors"


def _write(
    source: Path,
    folder: Path,
    part: str,
    weights: Weights,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    remarks: list[str],
) -> Converted:
    given = {key: list(value) for key, value in (("mean", mean), ("std", std)) if value is not None}
    if isinstance(weights, DiffusionWeights):
        if given:
            raise InputError("--mean and --std are a classifier's: a diffusion has none")
        kind, option = "diffusion", "--model.denoisers.ddpm"
        remarks += weights.remarks
    else:
        kind, option = "classifier", "--model.classifier"
        config = weights.config | given
        as_given = f"normalised by mean {config['mean']} and std {config['std']}, as given"
        remarks += [as_given if given else weights.normalisation]
        remarks += weights.remarks
    with written_whole(folder) as place:
        if isinstance(weights, DiffusionWeights):
            pairing = _write_diffusion(place, weights)
            remarks += [f"time and noise level: {pairing}"] if pairing else []
        else:
            _write_classifier(place, weights, config)
        origin = {
            "file": source.name,
            "bytes": source.stat().st_size,
            "sha256": file_hash(source),
            "md5": file_hash(source, "md5"),
            "format": weights.format,
            "part": part,
            "licence": weights.licence,
            "remarks": remarks,
        }
        (place / SOURCE).write_text(json.dumps(origin, indent=2) + "\n")
        (place / "README.md").write_text(_card(origin, option))
    return Converted(
        folder, kind, weights.format, (*remarks, f"licence of the source: {weights.licence}")
    )


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A folder beside the one to write, which takes its place when all of it is written."""
    place = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        place.mkdir(parents=True)
        yield place
        os.replace(place, folder)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _write_diffusion(folder: Path, weights: DiffusionWeights) -> str:
    config = weights.config
    halvings = len(config.get("channel_mult") or config["block_out_channels"]) - 1
    if config["sample_size"] % 2**halvings:
        raise InputError(
            f"images of {config['sample_size']} pixels cannot be halved {halvings} times, as this"
            " network does: give another --sample_size"
        )
    network = meta_network(weights.network, config)
    if problem := misfit(weights.state, network.state_dict()):
        raise InputError(f"it looks like {weights.format}, but {problem}")
    scheduler = build_scheduler(weights.scheduler)
    (folder / "unet").mkdir()
    network.save_config(folder / "unet")
    _save(weights.state, folder / "unet" / SAFE)
    scheduler.save_pretrained(folder / "scheduler")
    if weights.network == "UNet2DModel" and isinstance(scheduler, DDPMScheduler):
        index = {  # diffusers reads it as a whole too
            "_class_name": "DDPMPipeline",
            "_diffusers_version": diffusers_version,
            "scheduler": ["diffusers", "DDPMScheduler"],
            "unet": ["diffusers", "UNet2DModel"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    return pairing_of(network, scheduler)


def _write_classifier(folder: Path, weights: ClassifierWeights, config: dict[str, Any]) -> None:
    if config["mean"] is None or config["std"] is None:
        raise InputError(
            f"{weights.format}: {weights.normalisation}; give --mean and --std, a number a channel"
            " for pixels in [0, 1] (0 and 1 for none)"
        )
    ours = config["architecture"] in ARCHITECTURES  # another's constructor may look at numbers
    with torch.device("meta") if ours else nullcontext():
        build_classifier(config, where=Path(CONFIG))
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    _save(weights.state, folder / WEIGHTS)


def _save(state: State, path: Path) -> None:
    """In float32 where they are floats. InputError where one is no number."""
    plain = {}
    for name, value in state.items():
        plain[name] = (value.float() if value.is_floating_point() else value).detach().contiguous()
        if value.is_meta or not plain[name].isfinite().all():
            raise InputError(f"its {name} holds no numbers, or NaN or infinite ones: no weights")
    save_file(plain, path, metadata={"format": "pt"})


def _card(origin: dict[str, Any], option: str) -> str:
    lines = "\n".join(f"- {line}" for line in origin["remarks"])
    return f"""# {origin["format"]}

Converted by `hetpure convert` from `{origin["file"]}` ({origin["bytes"]:,} bytes, SHA-256
`{origin["sha256"]}`).

{lines}

Licence of the source: {origin["licence"]}.

```
hetpure evaluate --config YOURS.yaml {option} THIS_FOLDER
```
"""
