"""Vision transformer (Dosovitskiy et al. 2021), DeiT and DeiT III (Touvron et al. 2021, 2022).

Any size. Module names and state-dict keys are those of timm's `vit_*_patch*`, `deit_*` and
`deit3_*` models, so their checkpoints load with `load_state_dict`. Position embeddings are not
resampled: images have the size the network was built for. There is no dropout.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.errors import InputError

EPS = 1e-6


class SelfAttention(nn.Module):
    """Softmax attention among the tokens (B, N, width), split over the heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, N, 3, heads, width / heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        out: Tensor = self.proj(mixed.transpose(1, 2).flatten(2))
        return out


class LayerScale(nn.Module):
    """A learned factor for each channel of the tokens (B, N, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    """Pre-norm block: tokens + attention, then + perceptron, (B, N, width) to the same."""

    def __init__(self, width: int, heads: int, hidden: int, layer_scale: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = SelfAttention(width, heads)
        self.ls1 = LayerScale(width) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, EPS)
        fc1, fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.mlp = nn.Sequential(OrderedDict(fc1=fc1, act=nn.GELU(), fc2=fc2))
        self.ls2 = LayerScale(width) if layer_scale else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        out: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return out


class VisionTransformer(nn.Module):
    """ViT for normalised images (B, in_channels, image_size, image_size) to logits.

    Args:
        image_size: height and width, pixels.
        patch_size: edge of a patch, pixels.
        in_channels: of the image.
        num_classes: number of logits.
        width: of a token.
        depth: number of blocks.
        heads: of each attention; they share the width equally.
        mlp_ratio: hidden width of a block's perceptron / width.
        distilled: DeiT's second token and head; the logits are the mean of both heads, as published
            for evaluation.
        layer_scale: a learned factor a channel after each attention and perceptron (DeiT III).
        class_position: the class token has a position embedding, as a patch has; DeiT III's has
            none.

    `attention_blocks` names the outputs of four evenly spaced blocks, the last one among them
    (depth 12: 2, 5, 8, 11); fewer blocks are all named. Their tokens are (B, N, width), the class
    token (and the distillation token) before the patches.
    """

    def __init__(
        self,
        image_size: int = 224,
        patch_size: int = 16,
        in_channels: int = 3,
        num_classes: int = 1000,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        mlp_ratio: float = 4.0,
        distilled: bool = False,
        layer_scale: bool = False,
        class_position: bool = True,
    ) -> None:
        super().__init__()
        if min(image_size, patch_size, width, depth, heads, mlp_ratio) <= 0:
            raise InputError("a ViT's sizes, depth, heads and mlp_ratio must all be positive")
        if image_size % patch_size:
            raise InputError(f"image_size {image_size} is no multiple of patch_size {patch_size}")
        if width % heads:
            raise InputError(f"width {width} of a ViT cannot be shared equally by {heads} heads")
        self.image_size = image_size
        self.class_position = class_position
        prefix = (2 if distilled else 1) if class_position else 0
        patches = (image_size // patch_size) ** 2
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if distilled else None
        self.pos_embed = nn.Parameter(torch.zeros(1, prefix + patches, width))
        project = nn.Conv2d(in_channels, width, patch_size, patch_size)
        self.patch_embed = nn.Sequential(OrderedDict(proj=project))
        self.blocks = nn.Sequential(
            *(Block(width, heads, int(width * mlp_ratio), layer_scale) for _ in range(depth))
        )
        self.norm = nn.LayerNorm(width, EPS)
        self.head = nn.Linear(width, num_classes)
        self.head_dist = nn.Linear(width, num_classes) if distilled else None
        places = sorted({max(depth * quarter // 4, 1) - 1 for quarter in (1, 2, 3, 4)})
        self.attention_blocks = tuple(f"blocks.{place}" for place in places)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for parameter in (self.cls_token, self.dist_token, self.pos_embed):
            if parameter is not None:
                nn.init.trunc_normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.image_size, self.image_size):
            height, width = x.shape[-2:]
            size = f"{self.image_size}x{self.image_size}"
            raise InputError(f"this ViT takes images of {size} pixels, got {height}x{width}")
        prefix = [token for token in (self.cls_token, self.dist_token) if token is not None]
        tokens = [token.expand(len(x), -1, -1) for token in prefix]
        patches = self.patch_embed(x).flatten(2).mT  # (B, N, width), row by row
        if self.class_position:
            out = torch.cat([*tokens, patches], 1) + self.pos_embed
        else:
            out = torch.cat([*tokens, patches + self.pos_embed], 1)
        out = self.norm(self.blocks(out))
        logits: Tensor = self.head(out[:, 0])
        return logits if self.head_dist is None else (logits + self.head_dist(out[:, 1])) / 2
