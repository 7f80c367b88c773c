"""DDPM++ of Song et al. (2021, arXiv 2011.13456), which EDM's VP networks are too (Karras et al.
2022, table 7): blocks whose sums are divided by sqrt(2), and resampling inside blocks.

Names of modules are those of EDM's published `SongUNet`. diffusers' `UNet2DModel` has no settings
for these sums, nor for the shortcuts of the resampling blocks.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

EPS = 1e-6  # of every normalisation


def group_norm(channels: int) -> nn.GroupNorm:
    """Up to 32 groups of at least four channels."""
    return nn.GroupNorm(min(32, channels // 4), channels, EPS)


def embed(times: Tensor, channels: int) -> Tensor:
    """Sines, then cosines, of times (B,) at geometric frequencies from 1 to 1/10,000: (B, C)."""
    half = channels // 2
    steps = torch.arange(half, dtype=times.dtype, device=times.device)
    angles = times[:, None] * (-math.log(10_000) / (half - 1) * steps).exp()
    return torch.cat([angles.sin(), angles.cos()], 1)


class Block(nn.Module):
    """Residual block (B, C, H, W), with attention among all pixels where `attention` says so; with
    `scale` 1/2 or 2 it halves or doubles height and width first."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        dropout: float,
        *,
        attention: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.norm0 = group_norm(channels_in)
        self.conv0 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.affine = nn.Linear(embedding, channels_out)
        self.norm1 = group_norm(channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        reshaped = channels_in != channels_out or scale != 1
        self.skip = nn.Conv2d(channels_in, channels_out, 1) if reshaped else None
        self.norm2 = group_norm(channels_out) if attention else None
        self.qkv = nn.Conv2d(channels_out, 3 * channels_out, 1) if attention else None
        self.proj = nn.Conv2d(channels_out, channels_out, 1) if attention else None

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        out = self.conv0(self._resampled(F.silu(self.norm0(x))))
        out = F.silu(self.norm1(out + self.affine(embedding)[:, :, None, None]))
        out = self.conv1(self.dropout(out))
        x = self._resampled(x)
        x = (out + (x if self.skip is None else self.skip(x))) / math.sqrt(2)
        if self.norm2 is None or self.qkv is None or self.proj is None:
            return x
        projected = self.qkv(self.norm2(x)).flatten(2).unflatten(1, (-1, 3))  # (B, C, 3, H W)
        query, key, value = projected.permute(2, 0, 3, 1)[:, :, None]  # one head: (B, 1, H W, C)
        mixed = F.scaled_dot_product_attention(query, key, value)[:, 0]
        x = x + self.proj(mixed.transpose(1, 2).reshape(x.shape))
        return x / math.sqrt(2)

    def _resampled(self, x: Tensor) -> Tensor:
        if self.scale == 1:
            return x
        return F.avg_pool2d(x, 2) if self.scale < 1 else F.interpolate(x, scale_factor=self.scale)


class SongUNet(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """Noisy images (B, in_channels, H, W) in model units, or scaled by EDM, and times (B,), to what
    the network predicts, (B, out_channels, H, W). A time is any float.

    Args:
        sample_size: height and width of the images, pixels.
        in_channels: of the images.
        out_channels: of what is predicted.
        model_channels: width of the first convolution.
        channel_mult: width of each level in multiples of that; each has half the size before it.
        num_blocks: blocks of a level on the way down; one more on the way up.
        attention_levels: levels, counted from 0, with attention after every block down and after
            the last one up.
        label_dim: classes of a conditional network; without labels it is given zeros.
        dropout: in every block, while training.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        sample_size: int = 32,
        in_channels: int = 3,
        out_channels: int = 3,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_blocks: int = 8,
        attention_levels: Sequence[int] = (1,),
        label_dim: int = 0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width, wide = model_channels, 4 * model_channels
        self.map_label = nn.Linear(label_dim, width) if label_dim else None
        self.map_layer0 = nn.Linear(width, wide)
        self.map_layer1 = nn.Linear(wide, wide)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        names = [
            f"{sample_size >> level}x{sample_size >> level}" for level in range(len(channel_mult))
        ]
        channels, skips = width, [width]
        for level, (name, multiple) in enumerate(zip(names, channel_mult, strict=True)):
            if level == 0:
                self.enc[f"{name}_conv"] = nn.Conv2d(in_channels, width, 3, padding=1)
            else:
                self.enc[f"{name}_down"] = Block(channels, channels, wide, dropout, scale=0.5)
                skips.append(channels)
            for number in range(num_blocks):
                self.enc[f"{name}_block{number}"] = Block(
                    channels, multiple * width, wide, dropout, attention=level in attention_levels
                )
                channels = multiple * width
                skips.append(channels)
        self.dec[f"{names[-1]}_in0"] = Block(channels, channels, wide, dropout, attention=True)
        self.dec[f"{names[-1]}_in1"] = Block(channels, channels, wide, dropout)
        for level, (name, multiple) in reversed(
            list(enumerate(zip(names, channel_mult, strict=True)))
        ):
            if name != names[-1]:
                self.dec[f"{name}_up"] = Block(channels, channels, wide, dropout, scale=2.0)
            for number in range(num_blocks + 1):
                attention = level in attention_levels and number == num_blocks
                self.dec[f"{name}_block{number}"] = Block(
                    channels + skips.pop(), multiple * width, wide, dropout, attention=attention
                )
                channels = multiple * width
        self.dec[f"{names[0]}_aux_norm"] = group_norm(channels)
        self.dec[f"{names[0]}_aux_conv"] = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, times: Tensor, labels: Tensor | None = None) -> Tensor:
        """`labels` are one-hot (B, label_dim), of a conditional network only."""
        exact = torch.float64 if x.dtype == torch.float64 else torch.float32
        embedding = embed(times.to(exact), self.map_layer0.in_features).to(x.dtype)
        if self.map_label is not None:
            count = self.map_label.in_features
            labels = x.new_zeros(len(x), count) if labels is None else labels
            embedding = embedding + self.map_label(labels * math.sqrt(count))
        embedding = F.silu(self.map_layer1(F.silu(self.map_layer0(embedding))))
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        *blocks, norm, conv = self.dec.items()
        for name, block in blocks:
            x = block(torch.cat([x, skips.pop()], 1) if "_block" in name else x, embedding)
        out: Tensor = conv[1](F.silu(norm[1](x)))
        return out
