"""Small networks of published layouts, with a forward pass each that knows their names only.

Written apart from `hetpure.classifiers`: functions on a state dict, explicit softmax attention,
torch's own multi-head attention for torchvision's ViT. All numbers are float64.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
CLASSES = 5


def numbers(*shape: int, low: float = -1.0, high: float = 1.0) -> Tensor:
    """Seeded by the shape: the same in every call."""
    generator = torch.Generator().manual_seed(sum(shape) + 31 * len(shape))
    return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)


def matrix(*shape: int) -> Tensor:
    """Weights that keep a signal's size."""
    return numbers(*shape) * (3 / numbers(*shape)[0].numel()) ** 0.5


def batch_norm(name: str, width: int, counter: bool = True) -> State:
    statistics = {
        f"{name}.weight": numbers(width, low=0.5, high=1.5),
        f"{name}.bias": numbers(width) / 2,
        f"{name}.running_mean": numbers(width) / 3,
        f"{name}.running_var": numbers(width, low=0.6, high=1.4),
    }
    return statistics | ({f"{name}.num_batches_tracked": torch.tensor(7)} if counter else {})


def normalise(state: State, name: str, x: Tensor) -> Tensor:
    mean, variance, weight, bias = (
        state[f"{name}.{part}"].reshape(-1, 1, 1)
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (variance + 1e-5).sqrt() * weight + bias


# --- szagoruyko's functional WRN ---


def szagoruyko_weights(units: int, width: int) -> State:
    state = {"conv0": matrix(16, 3, 3, 3)}
    channels = 16
    for group in range(3):
        out = 16 * width * 2**group
        for unit in range(units):
            name = f"group{group}.block{unit}"
            state |= batch_norm(f"{name}.bn0", channels, counter=False)
            state |= batch_norm(f"{name}.bn1", out, counter=False)
            state[f"{name}.conv0"] = matrix(out, channels, 3, 3)
            state[f"{name}.conv1"] = matrix(out, out, 3, 3)
            if channels != out:
                state[f"{name}.convdim"] = matrix(out, channels, 1, 1)
            channels = out
    state |= batch_norm("bn", channels, counter=False)
    return state | {"fc.weight": matrix(CLASSES, channels), "fc.bias": numbers(CLASSES)}


def szagoruyko(state: State, x: Tensor) -> Tensor:
    x = F.conv2d(x, state["conv0"], padding=1)
    for group in range(3):
        unit = 0
        while f"group{group}.block{unit}.conv0" in state:
            name = f"group{group}.block{unit}"
            stride = 2 if group > 0 and unit == 0 else 1
            first = F.relu(normalise(state, f"{name}.bn0", x))
            out = F.conv2d(first, state[f"{name}.conv0"], stride=stride, padding=1)
            out = F.relu(normalise(state, f"{name}.bn1", out))
            out = F.conv2d(out, state[f"{name}.conv1"], padding=1)
            shortcut = state.get(f"{name}.convdim")
            x = out + (x if shortcut is None else F.conv2d(first, shortcut, stride=stride))
            unit += 1
    x = F.avg_pool2d(F.relu(normalise(state, "bn", x)), 8).flatten(1)
    return x @ state["fc.weight"].T + state["fc.bias"]


# --- ResNets: kuangliu's for CIFAR, torchvision's for ImageNet ---

NAMES = {"kuangliu": ("shortcut", "linear", 3), "torchvision": ("downsample", "fc", 7)}


def resnet_weights(depth: int, style: str) -> State:
    """Bottlenecks of 8 channels inside, where the wide ResNets have 128: nothing else is free."""
    shortcut, head, stem = NAMES[style]
    bottleneck = depth >= 50
    state = {"conv1.weight": matrix(64, 3, stem, stem)} | batch_norm("bn1", 64)
    channels = 64
    counts = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}[depth]
    for layer, count in enumerate(counts):
        width = (8 if bottleneck else 64) * 2**layer
        out = (256 if bottleneck else 64) * 2**layer
        for unit in range(count):
            name = f"layer{layer + 1}.{unit}"
            sizes = [(width, channels, 3), (out, width, 3)]
            if bottleneck:
                sizes = [(width, channels, 1), (width, width, 3), (out, width, 1)]
            for place, (wide, narrow, kernel) in enumerate(sizes, 1):
                state[f"{name}.conv{place}.weight"] = matrix(wide, narrow, kernel, kernel)
                state |= batch_norm(f"{name}.bn{place}", wide)
            if channels != out or (unit == 0 and layer > 0):
                state[f"{name}.{shortcut}.0.weight"] = matrix(out, channels, 1, 1)
                state |= batch_norm(f"{name}.{shortcut}.1", out)
            channels = out
    return state | {f"{head}.weight": matrix(CLASSES, channels), f"{head}.bias": numbers(CLASSES)}


def resnet(state: State, x: Tensor, style: str, start: Callable[[Tensor], Tensor]) -> Tensor:
    shortcut, head, _ = NAMES[style]
    x = start(x)
    for layer in (1, 2, 3, 4):
        unit = 0
        while f"layer{layer}.{unit}.conv1.weight" in state:
            name = f"layer{layer}.{unit}"
            stride = 2 if layer > 1 and unit == 0 else 1
            places = [p for p in (1, 2, 3) if f"{name}.conv{p}.weight" in state]
            out = x
            for place in places:
                weight = state[f"{name}.conv{place}.weight"]
                # The first 3x3 convolution of a unit strides.
                strides = place == (2 if len(places) == 3 else 1)
                step, padding = stride if strides else 1, weight.shape[-1] // 2
                out = F.conv2d(out, weight, stride=step, padding=padding)
                out = normalise(state, f"{name}.bn{place}", out)
                out = out if place == places[-1] else F.relu(out)
            if f"{name}.{shortcut}.0.weight" in state:
                x = F.conv2d(x, state[f"{name}.{shortcut}.0.weight"], stride=stride)
                x = normalise(state, f"{name}.{shortcut}.1", x)
            x = F.relu(out + x)
            unit += 1
    return x.mean((2, 3)) @ state[f"{head}.weight"].T + state[f"{head}.bias"]


def kuangliu(state: State, x: Tensor) -> Tensor:
    def start(x: Tensor) -> Tensor:
        return F.relu(normalise(state, "bn1", F.conv2d(x, state["conv1.weight"], padding=1)))

    return resnet(state, x, "kuangliu", start)


def torchvision(state: State, x: Tensor) -> Tensor:
    def start(x: Tensor) -> Tensor:
        x = F.conv2d(x, state["conv1.weight"], stride=2, padding=3)
        return F.max_pool2d(F.relu(normalise(state, "bn1", x)), 3, stride=2, padding=1)

    return resnet(state, x, "torchvision", start)


# --- vision transformers: width 128, 2 heads, 2 blocks, 4 x 4 patches of 8 x 8 pixels ---

WIDTH, HEADS, HIDDEN, PATCH, PATCHES = 128, 2, 192, 8, 16


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def layer_norm(state: State, name: str, x: Tensor) -> Tensor:
    deviation = x - x.mean(-1, keepdim=True)
    unit = deviation / (deviation.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return unit * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / 2**0.5)) / 2


def patches(state: State, name: str, x: Tensor) -> Tensor:
    """One token a patch, row by row, without a convolution."""
    tokens = [
        x[:, :, top : top + PATCH, left : left + PATCH].flatten(1)
        for top in range(0, x.shape[2], PATCH)
        for left in range(0, x.shape[3], PATCH)
    ]
    weight = state[f"{name}.weight"].flatten(1)
    return torch.stack([token @ weight.T for token in tokens], 1) + state[f"{name}.bias"]


def dense(name: str, out: int, into: int) -> State:
    return {f"{name}.weight": matrix(out, into), f"{name}.bias": numbers(out) / 3}


def scale(name: str) -> State:
    return {f"{name}.weight": numbers(WIDTH, low=0.5, high=1.5), f"{name}.bias": numbers(WIDTH) / 3}


def deit3_weights(first: str, second: str) -> State:
    state: dict[str, Any] = {
        "cls_token": numbers(1, 1, WIDTH),
        "pos_embed": numbers(1, PATCHES, WIDTH),
        "patch_embed.proj.weight": matrix(WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": numbers(WIDTH),
    }
    for block in ("blocks.0", "blocks.1"):
        state |= scale(f"{block}.norm1") | dense(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        state |= dense(f"{block}.attn.proj", WIDTH, WIDTH) | scale(f"{block}.norm2")
        state |= dense(f"{block}.mlp.fc1", HIDDEN, WIDTH) | dense(f"{block}.mlp.fc2", WIDTH, HIDDEN)
        state[f"{block}.{first}"] = numbers(WIDTH, low=0.2, high=0.6)
        state[f"{block}.{second}"] = numbers(WIDTH, low=-0.9, high=-0.3)
    return state | scale("norm") | dense("head", CLASSES, WIDTH)


def deit3(state: State, x: Tensor) -> Tensor:
    tokens = patches(state, "patch_embed.proj", x) + state["pos_embed"]
    tokens = torch.cat([state["cls_token"].expand(len(x), 1, WIDTH), tokens], 1)
    for block in ("blocks.0", "blocks.1"):
        first, second = (
            next(state[n] for n in names if n in state)
            for names in (
                (f"{block}.ls1.gamma", f"{block}.gamma_1"),
                (f"{block}.ls2.gamma", f"{block}.gamma_2"),
            )
        )
        three = linear(state, f"{block}.attn.qkv", layer_norm(state, f"{block}.norm1", tokens))
        heads = []
        for head in range(HEADS):
            size = WIDTH // HEADS
            query, key, value = (
                three[..., part * WIDTH + head * size : part * WIDTH + (head + 1) * size]
                for part in range(3)
            )
            weights = torch.softmax(query @ key.transpose(1, 2) / size**0.5, -1)
            heads.append(weights @ value)
        tokens = tokens + first * linear(state, f"{block}.attn.proj", torch.cat(heads, -1))
        hidden = gelu(
            linear(state, f"{block}.mlp.fc1", layer_norm(state, f"{block}.norm2", tokens))
        )
        tokens = tokens + second * linear(state, f"{block}.mlp.fc2", hidden)
    return linear(state, "head", layer_norm(state, "norm", tokens)[:, 0])


def torchvision_vit_weights(first: str, second: str) -> State:
    state: dict[str, Any] = {
        "class_token": numbers(1, 1, WIDTH),
        "conv_proj.weight": matrix(WIDTH, 3, PATCH, PATCH),
        "conv_proj.bias": numbers(WIDTH),
        "encoder.pos_embedding": numbers(1, 1 + PATCHES, WIDTH),
    }
    for index in (0, 1):
        name = f"encoder.layers.encoder_layer_{index}"
        state |= scale(f"{name}.ln_1") | scale(f"{name}.ln_2")
        state[f"{name}.self_attention.in_proj_weight"] = matrix(3 * WIDTH, WIDTH)
        state[f"{name}.self_attention.in_proj_bias"] = numbers(3 * WIDTH)
        state |= dense(f"{name}.self_attention.out_proj", WIDTH, WIDTH)
        state |= dense(f"{name}.mlp.{first}", HIDDEN, WIDTH)
        state |= dense(f"{name}.mlp.{second}", WIDTH, HIDDEN)
    return state | scale("encoder.ln") | dense("heads.head", CLASSES, WIDTH)


def torchvision_vit(state: State, x: Tensor) -> Tensor:
    """With `nn.MultiheadAttention`, which torchvision's blocks are made of."""
    tokens = patches(state, "conv_proj", x)
    tokens = torch.cat([state["class_token"].expand(len(x), 1, WIDTH), tokens], 1)
    tokens = tokens + state["encoder.pos_embedding"]
    for index in (0, 1):
        name = f"encoder.layers.encoder_layer_{index}"
        attention = torch.nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double().eval()
        own = f"{name}.self_attention."
        attention.load_state_dict(
            {key.removeprefix(own): value for key, value in state.items() if key.startswith(own)}
        )
        queries = layer_norm(state, f"{name}.ln_1", tokens)
        tokens = tokens + attention(queries, queries, queries, need_weights=False)[0]
        first, second = ("linear_1", "linear_2") if f"{name}.mlp.linear_1.bias" in state else "03"
        hidden = gelu(
            linear(state, f"{name}.mlp.{first}", layer_norm(state, f"{name}.ln_2", tokens))
        )
        tokens = tokens + linear(state, f"{name}.mlp.{second}", hidden)
    return linear(state, "heads.head", layer_norm(state, "encoder.ln", tokens)[:, 0])
