"""Small vision transformers of published layouts, with a forward pass each that knows their names
only.

Written apart from `hetpure.classifiers`: functions on a state dict, explicit softmax attention,
torch's own multi-head attention for torchvision's ViT. All numbers are float64.
"""

from typing import Any

import torch
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


# Width 128, 2 heads, 2 blocks, 4 x 4 patches of 8 x 8 pixels.

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
        prefix = f"{name}.self_attention."
        attention.load_state_dict(
            {
                key.removeprefix(prefix): value
                for key, value in state.items()
                if key.startswith(prefix)
            }
        )
        queries = layer_norm(state, f"{name}.ln_1", tokens)
        tokens = tokens + attention(queries, queries, queries, need_weights=False)[0]
        first, second = ("linear_1", "linear_2") if f"{name}.mlp.linear_1.bias" in state else "03"
        hidden = gelu(
            linear(state, f"{name}.mlp.{first}", layer_norm(state, f"{name}.ln_2", tokens))
        )
        tokens = tokens + linear(state, f"{name}.mlp.{second}", hidden)
    return linear(state, "heads.head", layer_norm(state, "encoder.ln", tokens)[:, 0])
