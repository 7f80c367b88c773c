"""Files of images that a run saves: one safetensors file for each row, attack and block. It holds
the images, their sample ids, and in its header whatever else belongs to them."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from hetpure.disk import write_whole
from hetpure.errors import InputError

BLOCKS = "blocks"  # the folder inside a run's own


def file_stem(*names: str) -> str:
    """A readable name for a file; a hash tells names apart that look alike."""
    slugs = (re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40] for name in names)
    return "-".join((*slugs, hashlib.sha256(json.dumps(names).encode()).hexdigest()[:8]))


def block_path(folder: Path, row: str, attack: str, block: int) -> Path:
    """Where a block lies."""
    return folder / BLOCKS / f"{block:05d}-{file_stem(row, attack)}.safetensors"


def save_images(
    folder: Path,
    row: str,
    attack: str,
    block: int,
    images: Tensor,
    samples: Tensor,
    header: Mapping[str, str] | None = None,
) -> Path:
    """Writes images (N, C, H, W), pixel [0, 1], and their sample ids (N,) of one block into a run's
    `folder`, as float32 and int64. The file is there whole or not at all."""
    assert len(images) == len(samples), f"{len(images)} images have {len(samples)} sample ids"
    tensors = {
        "images": images.detach().to("cpu", torch.float32).contiguous(),
        "samples": samples.to("cpu", torch.int64).contiguous(),
    }
    path = block_path(folder, row, attack, block)
    write_whole(path, save(tensors, {"row": row, "attack": attack} | dict(header or {})))
    return path


def read_block(path: Path) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) float32 and sample ids (N,) of one block. InputError where the file
    cannot be read, or lacks them."""
    try:
        tensors = load_file(path)
        images, samples = tensors["images"], tensors["samples"]
    except (SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path} holds no block ({error}): restore it or delete it") from None
    if images.ndim != 4 or samples.shape != images.shape[:1]:
        raise InputError(f"{path} holds no block: its images or ids have another shape: delete it")
    return images, samples


def read_header(path: Path) -> dict[str, str]:
    """What a file says beside its images. InputError where it cannot be read."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it or delete it") from None


def saved_images(
    folder: Path, row: str | None = None, attack: str | None = None
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) float32 and sample ids (N,) int64 of one row under one attack, in the
    order of their blocks. A name that is None is the only one that the run has."""
    names = {}
    if row is not None and attack is not None:  # whose files say so by name
        names = _names(folder, f"*-{file_stem(row, attack)}.safetensors")
    names = names or _names(folder, "*.safetensors")
    if not names:
        raise InputError(
            f"{folder} holds no saved images: give the folder of a run that saved its own"
        )
    wanted = {
        pair for pair in names.values() if row in (None, pair[0]) and attack in (None, pair[1])
    }
    if len(wanted) != 1:
        held = ", ".join(
            f"row {row!r} under {attack!r}" for row, attack in sorted({*names.values()})
        )
        raise InputError(f"{folder}: name the row and the attack of one of these: {held}")
    blocks = [read_block(path) for path, pair in names.items() if pair in wanted]
    return torch.cat([images for images, _ in blocks]), torch.cat([ids for _, ids in blocks])


def _names(folder: Path, pattern: str) -> dict[Path, tuple[str, str]]:
    """Row and attack of each file of that name, in the order of the blocks. A file that says
    neither is another program's."""
    headers = {path: read_header(path) for path in sorted((folder / BLOCKS).glob(pattern))}
    return {
        path: (header["row"], header["attack"])
        for path, header in headers.items()
        if {"row", "attack"} <= header.keys()
    }
