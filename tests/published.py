"""Published formats, to hold readers against: official outputs of reduced networks with random
weights, and the names and shapes of the published sizes."""

import json
import lzma
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor

FOLDER = Path(__file__).parent / "formats"


@dataclass(frozen=True)
class Reference:
    """`weights` by the official names in their official order, float32 where they are floats;
    `values` are inputs and the official code's outputs; `config` is the official one."""

    weights: dict[str, Tensor]
    values: dict[str, Tensor]
    config: dict[str, Any]


def reference(name: str) -> Reference:
    """A reduced network and what the official code computes with it."""
    content = lzma.decompress((FOLDER / f"{name}.safetensors.xz").read_bytes())
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    tensors = load(content)
    weights = {key: tensors.pop(f"weights/{key}") for key in json.loads(metadata["order"])}
    return Reference(
        {key: _plain(value) for key, value in weights.items()},
        tensors,
        json.loads(metadata["config"]),
    )


def _plain(values: Tensor) -> Tensor:
    narrow = values.dtype in (torch.float16, torch.float8_e4m3fn)
    return values.float() if narrow else values


@cache
def _names() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lzma.decompress((FOLDER / "names.json.xz").read_bytes()))
    return found


def published_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file's state dict, in its order."""
    return {entry[0]: tuple(entry[1]) for entry in _names()["keys"][name]["entries"]}


def published_state(name: str) -> dict[str, Tensor]:
    """A state dict of that size without memory: every tensor is one number, expanded."""
    kinds = {entry[0]: getattr(torch, entry[2]) for entry in _names()["keys"][name]["entries"]}
    shapes = published_shapes(name)
    return {key: torch.zeros((), dtype=kinds[key]).expand(shape) for key, shape in shapes.items()}


def published_map(name: str) -> dict[str, Any]:
    """`target`, its `config` and `entries`: [name there, shape, name on disk, operation]."""
    found: dict[str, Any] = _names()["maps"][name]
    return found
