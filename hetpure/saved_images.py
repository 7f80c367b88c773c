"""Adversarial images that a run saves: one safetensors file for each block, row and attack."""

import hashlib
import json
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from hetpure.disk import write_whole
from hetpure.errors import InputError

IMAGES = "images"  # the folder inside a run's own


def save_images(
    folder: Path, row: str, attack: str, block: int, images: Tensor, samples: Tensor
) -> Path:
    """Writes images (N, C, H, W), pixel [0, 1], and their sample ids (N,) of one block of a run's
    `folder`, as float32 and int64. What was there under the same names is replaced; a run that is
    killed leaves a whole file or none."""
    assert len(images) == len(samples), f"{len(images)} images have {len(samples)} sample ids"
    tensors = {
        "images": images.detach().to("cpu", torch.float32).contiguous(),
        "samples": samples.to("cpu", torch.int64).contiguous(),
    }
    path = folder / IMAGES / _file_name(row, attack, block)
    write_whole(path, save(tensors, {"row": row, "attack": attack}))
    return path


def saved_block(folder: Path, row: str, attack: str, sample: int) -> set[int]:
    """The sample ids of the saved block that a sample is in; none where there is no such block."""
    for path in (folder / IMAGES).glob(_pattern(row, attack)):
        try:
            with safe_open(path, "pt") as file:
                samples = set(file.get_tensor("samples").tolist())
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read ({error}): restore it") from None
        if sample in samples:
            return samples
    return set()


def saved_images(
    folder: Path, row: str | None = None, attack: str | None = None
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) float32 and sample ids (N,) int64 of one row under one attack, in the
    order of their blocks. A name that is None is the only one that the run has."""
    names = _found(folder, _pattern(row, attack)) or _found(folder, _pattern(None, None))
    if not names:
        raise InputError(
            f"{folder} holds no saved images: give the folder of a run that saved its own"
        )
    row = _chosen(folder, "row", row, {row for row, _ in names.values()})
    own = {path: attack for path, (other, attack) in names.items() if other == row}
    attack = _chosen(folder, "attack", attack, set(own.values()), f" on row {row!r}")
    images, samples = [], []
    for path in (path for path, other in own.items() if other == attack):
        with safe_open(path, "pt") as file:
            images.append(file.get_tensor("images"))
            samples.append(file.get_tensor("samples"))
    return torch.cat(images), torch.cat(samples)


def _found(folder: Path, pattern: str) -> dict[Path, tuple[str, str]]:
    """Files of that name in the order of their blocks, with row and attack."""
    return {
        path: found
        for path in sorted((folder / IMAGES).glob(pattern))
        if (found := _names(path)) is not None
    }


def _pattern(row: str | None, attack: str | None) -> str:
    """Of the names of files that may hold them: a run has many."""
    if row is None or attack is None:
        return "*.safetensors"
    return f"*-{_exact(row, attack)}.safetensors"


def _exact(row: str, attack: str) -> str:
    """Tells names apart that have one slug."""
    return hashlib.sha256(json.dumps([row, attack]).encode()).hexdigest()[:8]


def _file_name(row: str, attack: str, block: int) -> str:
    """Readable, and told apart by a hash."""
    exact = _exact(row, attack)
    slugs = (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40] for name in (row, attack))
    return "-".join((f"{block:05d}", *slugs, exact)) + ".safetensors"


def _names(path: Path) -> tuple[str, str] | None:
    """The row and the attack of a file; None of one that says neither."""
    try:
        with safe_open(path, "pt") as file:
            said = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it or delete it") from None
    return (said["row"], said["attack"]) if {"row", "attack"} <= set(said) else None


def _chosen(folder: Path, what: str, name: str | None, known: set[str], where: str = "") -> str:
    """The name itself, or the only one there is."""
    if name is None and len(known) == 1:
        (name,) = known
    if name is None or name not in known:
        wrong = f"several {what}s" if name is None else f"no {what} {name!r}"
        names = ", ".join(map(repr, sorted(known)))
        raise InputError(f"{folder} has {wrong}{where}: name one of {names}")
    return name
