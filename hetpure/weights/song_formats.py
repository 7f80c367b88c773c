"""Published networks that `SongUNet` computes: score_sde's DDPM++ (averages and state dicts) and
EDM's VP networks. Their settings are inferred from names and shapes."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hetpure.errors import InputError
from hetpure.weights.formats import (
    EDM,
    LINEAR,
    VP,
    DiffusionWeights,
    Hints,
    PublishedPairing,
    State,
)

# Layers of score_sde's modules, then SongUNet's names of them. Their order is that of the
# parameters, in which an average is kept.
RESIDUAL = {
    "GroupNorm_0": "norm0",
    "Conv_0": "conv0",
    "Dense_0": "affine",
    "GroupNorm_1": "norm1",
    "Conv_1": "conv1",
    "Conv_2": "skip",
}
RESIDUAL_ORDER = [f"{layer}.{kind}" for layer in RESIDUAL for kind in ("weight", "bias")]
ATTENTION_ORDER = [
    *("GroupNorm_0.weight", "GroupNorm_0.bias"),
    *(f"NIN_{number}.{kind}" for number in range(4) for kind in "Wb"),
]
NOT_DDPMPP = (
    "it looks like a network of score_sde, but not like DDPM++ (blocks that resample, no FIR"
    " filters, times as sines): only that one is read"
)
UNUSED = ("sigmas", "label_embed.weight")  # of score_sde's file, and of ADBM's

Module = dict[str, Tensor]


def read_score_sde(part: State | Sequence[Tensor], hints: Hints) -> DiffusionWeights | None:
    """DDPM++ of yang-song/score_sde_pytorch, by its names, or from the list of its parameters that
    an average of weights is kept as."""
    if isinstance(part, Sequence):
        modules = _by_shape(part)
        remarks = [f"a moving average: {len(part)} tensors, known by the order of the parameters"]
        if len(part) % 2:
            remarks.append("dropped, not used: the last one, an embedding of classes")
    else:
        modules = _by_name(part)
        remarks = [f"dropped, not used: {name}" for name in UNUSED if name in part]
    if not modules:
        return None
    hints.only("sample_size", "pairing")
    pairing: PublishedPairing = hints.pairing or "network"
    size = hints.sample_size or 32
    config, state = _song(modules, size)
    return DiffusionWeights(
        format="score_sde's DDPM++, continuous VP",
        network="SongUNet",
        config=config,
        state=state,
        scheduler=LINEAR if pairing == "table" else VP | {"pairing": pairing},
        remarks=(
            *remarks,
            f"not in the file: images of {size} x {size} pixels",
            "not in the file, as published: the noise is predicted; a VP-SDE of betas 0.1 to 20",
        ),
        licence="Apache-2.0 (yang-song/score_sde_pytorch)",
    )


def _by_name(state: State) -> list[Module]:
    modules: dict[int, Module] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"all_modules\.(\d+)\.(.+)", name):
            modules.setdefault(int(match[1]), {})[match[2]] = value
        elif name not in UNUSED and modules:
            raise InputError(f"{NOT_DDPMPP}; it has {name}")
    if sorted(modules) != list(range(len(modules))):
        raise InputError(f"{NOT_DDPMPP}; modules are missing")
    return [modules[number] for number in range(len(modules))]


def _by_shape(tensors: Sequence[Tensor]) -> list[Module] | None:
    """Parameters in their order, parted into modules: attention begins with a vector and a matrix,
    a residual block with a vector and a 3x3 convolution."""
    shapes = [tuple(tensor.shape) for tensor in tensors]
    if [len(shape) for shape in shapes[:6]] != [2, 1, 2, 1, 4, 1]:
        return None
    modules = [dict(zip(("weight", "bias"), tensors[k : k + 2], strict=True)) for k in (0, 2, 4)]
    at, end = 6, len(tensors) - 4
    if len(shapes[-1]) == 2:  # an embedding of classes stands behind
        end -= 1
    while at < end:
        names = ATTENTION_ORDER if len(shapes[at + 2]) == 2 else RESIDUAL_ORDER
        shortcut = [shape[2:] for shape in shapes[at + 10 : at + 11]]
        if names is RESIDUAL_ORDER and shortcut != [(1, 1)]:
            names = RESIDUAL_ORDER[:-2]
        if at + len(names) > end:
            return None
        modules.append(dict(zip(names, tensors[at : at + len(names)], strict=True)))
        at += len(names)
    return modules + [
        dict(zip(("weight", "bias"), tensors[k : k + 2], strict=True)) for k in (end, end + 2)
    ]


def _song(modules: list[Module], size: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """SongUNet's config and state dict of score_sde's modules."""
    ends = [*modules[:3], *modules[-2:]]
    if len(modules) < 9 or any(module.keys() != {"weight", "bias"} for module in ends):
        raise InputError(NOT_DDPMPP)
    blocks: list[tuple[Module, Module]] = []  # each with the attention behind it, or nothing
    for module in modules[3:-2]:
        if module.keys() == set(ATTENTION_ORDER) and blocks and not blocks[-1][1]:
            blocks[-1] = (blocks[-1][0], module)
        elif module.keys() in (set(RESIDUAL_ORDER), set(RESIDUAL_ORDER[:-2])):
            blocks.append((module, {}))
        else:
            raise InputError(NOT_DDPMPP)
    levels, per_level = _levels([block for block, _ in blocks])
    names = song_blocks(size, levels, per_level)
    placed = dict(zip(names, blocks, strict=True))
    state: dict[str, Tensor] = {}
    first, last = names[0].partition("_")[0], names[-1].partition("_")[0]
    places = ("map_layer0", "map_layer1", f"{first}_conv", f"{last}_aux_norm", f"{last}_aux_conv")
    for place, module in zip(places, ends, strict=True):
        state |= {f"{place}.{kind}": value for kind, value in module.items()}
    for place, (block, attention) in placed.items():
        for name, value in block.items():
            layer, _, kind = name.partition(".")
            state[f"{place}.{RESIDUAL[layer]}.{kind}"] = value
        if attention:
            state |= {f"{place}.{name}": value for name, value in _attention(attention).items()}
    width = len(modules[2]["bias"])
    tops = [f"enc.{size >> level}x{size >> level}_block{per_level - 1}" for level in range(levels)]
    return {
        "sample_size": size,
        "in_channels": modules[2]["weight"].shape[1],
        "out_channels": len(modules[-1]["bias"]),
        "model_channels": width,
        "channel_mult": [len(placed[top][0]["Conv_1.bias"]) // width for top in tops],
        "num_blocks": per_level,
        "attention_levels": [level for level, top in enumerate(tops) if placed[top][1]],
        "label_dim": 0,
    }, state


def _levels(blocks: list[Module]) -> tuple[int, int]:
    """Levels, and blocks of each on the way down. On the way up a block is given more channels than
    the one before it put out: those kept on the way down. Two blocks stand between."""
    out = [len(block["Conv_1.bias"]) for block in blocks]
    into = [len(block["GroupNorm_0.weight"]) for block in blocks]
    first_up = next((k for k in range(1, len(blocks)) if into[k] > out[k - 1]), 0)
    down = first_up - 2  # blocks on the way down, the resampling ones between the levels included
    levels = len(blocks) - 2 - 2 * down
    per_level, rest = divmod(down + 1, levels) if levels > 0 else (0, 1)
    if rest or per_level < 2:
        raise InputError(NOT_DDPMPP)
    return levels, per_level - 1


def song_blocks(size: int, levels: int, per_level: int) -> list[str]:
    """SongUNet's names of its blocks, in the order in which they are called."""
    sizes = [f"{size >> level}x{size >> level}" for level in range(levels)]
    names = []
    for level, side in enumerate(sizes):
        names += [f"enc.{side}_down"] if level else []
        names += [f"enc.{side}_block{number}" for number in range(per_level)]
    names += [f"dec.{sizes[-1]}_in0", f"dec.{sizes[-1]}_in1"]
    for level, side in reversed(list(enumerate(sizes))):
        names += [f"dec.{side}_up"] if level < levels - 1 else []
        names += [f"dec.{side}_block{number}" for number in range(per_level + 1)]
    return names


def _attention(module: Module) -> dict[str, Tensor]:
    """score_sde multiplies from the right, and keeps query, key and value apart; SongUNet's one
    convolution puts them out channel by channel."""
    weights = torch.stack([module[f"NIN_{part}.W"].T for part in range(3)], 1)
    biases = torch.stack([module[f"NIN_{part}.b"] for part in range(3)], 1)
    return {
        "norm2.weight": module["GroupNorm_0.weight"],
        "norm2.bias": module["GroupNorm_0.bias"],
        "qkv.weight": weights.flatten(0, 1)[:, :, None, None],
        "qkv.bias": biases.flatten(),
        "proj.weight": module["NIN_3.W"].T[:, :, None, None],
        "proj.bias": module["NIN_3.b"],
    }


def read_edm(state: State, hints: Hints) -> DiffusionWeights | None:
    """EDM's networks of DDPM++ (VP): an `EDMPrecond`'s state dict."""
    firsts = [
        match for name in state if (match := re.fullmatch(r"enc\.(\d+)x\1_conv\.weight", name))
    ]
    if "map_layer0.weight" not in state or len(firsts) != 1:
        return None
    hints.only()
    size, first = int(firsts[0][1]), state[firsts[0][0]]
    filters = [value for name, value in state.items() if name.endswith(".resample_filter")]
    if any(value.numel() != 4 or not bool((value == 0.25).all()) for value in filters):
        raise InputError("its resampling is not by 2x2 means: only EDM's VP networks are read")
    dropped = ("map_augment.weight", ".resample_filter")
    weights = {name: value for name, value in state.items() if not name.endswith(dropped)}
    width = len(first)
    sizes = sorted(
        {int(m[1]) for name in weights if (m := re.match(r"enc\.(\d+)x", name))}, reverse=True
    )
    numbers = [
        int(m[1]) for name in weights if (m := re.match(rf"enc\.{size}x{size}_block(\d+)\.", name))
    ]
    tops = [f"enc.{side}x{side}_block{max(numbers, default=0)}" for side in sizes]
    needed = [*(f"{top}.conv1.bias" for top in tops), f"dec.{size}x{size}_aux_conv.bias"]
    if missing := [name for name in needed if name not in weights]:
        raise InputError(f"it looks like EDM's SongUNet, but has no {missing[0]}")
    labels = weights.get("map_label.weight")
    return DiffusionWeights(
        format="EDM's DDPM++ (VP)",
        network="SongUNet",
        config={
            "sample_size": size,
            "in_channels": first.shape[1],
            "out_channels": len(weights[needed[-1]]),
            "model_channels": width,
            "channel_mult": [len(weights[f"{top}.conv1.bias"]) // width for top in tops],
            "num_blocks": max(numbers) + 1,
            "attention_levels": [k for k, top in enumerate(tops) if f"{top}.qkv.bias" in weights],
            "label_dim": 0 if labels is None else labels.shape[1],
        },
        state=weights,
        scheduler=EDM,
        remarks=(
            "dropped: map_augment (used in training only) and constant filters",
            "taken for an EDMPrecond of sigma_data 0.5, whose names others of EDM's share",
            *([] if labels is None else ["it is given an image's class: without a class, zeros"]),
        ),
        licence="CC BY-NC-SA 4.0 (NVlabs/edm): no commercial use, changes under the same licence",
    )
