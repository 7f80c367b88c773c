"""Published networks that diffusers' `UNet2DModel` computes exactly: Ho's DDPM in PyTorch, and
OpenAI's improved and guided diffusion. Their settings are inferred from names and shapes."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from hetpure.errors import InputError
from hetpure.weights.formats import LINEAR, Betas, DiffusionWeights, Hints, State

# Parts of Ho's network, then diffusers' names of them.
HO_PARTS = {
    "temb.dense.0": "time_embedding.linear_1",
    "temb.dense.1": "time_embedding.linear_2",
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
HO_MIDDLE = {
    "mid.block_1": "mid_block.resnets.0",
    "mid.attn_1": "mid_block.attentions.0",
    "mid.block_2": "mid_block.resnets.1",
}
HO_LAYERS = {
    "temb_proj": "time_emb_proj",
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
} | {name: name for name in ("norm1", "conv1", "norm2", "conv2", "conv")}
OPENAI_PARTS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.0": "mid_block.resnets.0",
    "middle_block.1": "mid_block.attentions.0",
    "middle_block.2": "mid_block.resnets.1",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
OPENAI_LAYERS = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
    "norm": "group_norm",
    "proj_out": "to_out.0",
    "conv": "conv",  # of what doubles the size without a block
    "op": "conv",  # and of what halves it
}
OPENAI_TIMES = 1000  # times run to here, however many steps there are (rescale_timesteps)


class Assumed(NamedTuple):
    """What a file of OpenAI's does not say: see `Hints`."""

    sample_size: int
    head_channels: int
    beta_schedule: Betas
    steps: int


@dataclass(frozen=True)
class Published:
    """What a published network's file shows (widths of levels, which of them have attention, blocks
    of a level), and what it does not."""

    widths: tuple[int, ...]
    attended: tuple[bool, ...]
    blocks: int
    assumed: Assumed


GUIDED = Published(
    (256, 256, 512, 512, 1024, 1024),
    (False, False, False, True, True, True),
    2,
    Assumed(256, 64, "linear", 1000),
)
IMPROVED = Published(
    (128, 256, 256, 256),
    (False, True, True, False),
    3,
    Assumed(32, 64, "squaredcos_cap_v2", 4000),
)


def read_ho(state: State, hints: Hints) -> DiffusionWeights | None:
    """Ho et al.'s (2020) network as ermongroup/ddim and pesser/pytorch_diffusion name it."""
    if not {"temb.dense.0.weight", "mid.block_1.conv1.weight"} <= state.keys():
        return None
    hints.only("sample_size")
    levels = 1 + max(_number(name, 1) for name in state if name.startswith("down."))
    blocks = 1 + max(_number(name, 3) for name in state if name.startswith("down.0.block."))
    weights = {}
    for name, value in state.items():
        new = _ho_name(name, levels)
        attention = re.search(r"\.(to_[qkv]|to_out\.0)\.weight$", new)
        weights[new] = value[:, :, 0, 0] if attention else value
    size = hints.sample_size or 32
    attended = [f"down.{level}.attn.0.norm.weight" in state for level in range(levels)]
    config = _unet_config(
        weights,
        size=size,
        blocks=blocks,
        down=["AttnDownBlock2D" if on else "DownBlock2D" for on in attended],
        up=["AttnUpBlock2D" if on else "UpBlock2D" for on in attended[::-1]],
    )
    config |= {
        "norm_eps": 1e-6,
        "attention_head_dim": None,
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    }
    return DiffusionWeights(
        format="Ho's DDPM in PyTorch",
        network="UNet2DModel",
        config=config,
        state=weights,
        scheduler=LINEAR,
        remarks=(
            f"not in the file: images of {size} x {size} pixels",
            "not in the file, as published: 1,000 linear betas from 0.0001 to 0.02, the noise is"
            " predicted",
        ),
    )


def _ho_name(name: str, levels: int) -> str:
    """diffusers' name of a tensor of Ho's network."""
    whole, _, kind = name.rpartition(".")
    if whole in HO_PARTS:
        return f"{HO_PARTS[whole]}.{kind}"
    block, _, layer = whole.rpartition(".")
    place = HO_MIDDLE.get(block)
    if match := re.fullmatch(r"(down|up)\.(\d+)\.(block|attn)\.(\d+)", block):
        way, level, part, number = match.groups()
        inner = "resnets" if part == "block" else "attentions"
        place = f"{_ho_level(way, int(level), levels)}.{inner}.{number}"
    elif match := re.fullmatch(r"(down|up)\.(\d+)\.(?:down|up)sample", block):
        way, level = match.groups()
        place = f"{_ho_level(way, int(level), levels)}.{way}samplers.0"
    if place is None or layer not in HO_LAYERS:
        raise InputError(f"it looks like Ho's DDPM, which has no {name}")
    return f"{place}.{HO_LAYERS[layer]}.{kind}"


def _ho_level(way: str, level: int, levels: int) -> str:
    """Ho counts the levels on the way up from the largest images, diffusers from the smallest."""
    return f"{way}_blocks.{level if way == 'down' else levels - 1 - level}"


def read_openai(state: State, hints: Hints) -> DiffusionWeights | None:
    """Improved and guided diffusion (Nichol & Dhariwal 2021; Dhariwal & Nichol 2021)."""
    if not {"time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight"} <= state.keys():
        return None
    hints.only("sample_size", "head_channels", "beta_schedule", "steps")
    if "label_emb.weight" in state:
        raise InputError("this diffusion is given an image's class: give an unconditional one")
    places, levels, blocks = _openai_places(state)
    improved = any(name.endswith(".op.weight") for name in state)
    tops = [f"input_blocks.{1 + level * (blocks + 1) + blocks - 1}" for level in range(levels)]
    attended = tuple(f"{top}.1.norm.weight" in state for top in tops)
    widths = tuple(len(state[f"{top}.0.out_layers.3.bias"]) for top in tops)
    channels = state["input_blocks.0.0.weight"].shape[1]
    learned = len(state["out.2.bias"]) == 2 * channels
    scaled = len(state["middle_block.0.emb_layers.1.bias"]) == 2 * widths[-1]
    known = IMPROVED if improved else GUIDED
    seen = (known.widths, known.attended, known.blocks, True, True)
    assumed = _assumed(
        hints, known if (widths, attended, blocks, learned, scaled) == seen else None
    )
    weights: dict[str, Tensor] = {}
    for name, value in state.items():
        whole, _, kind = name.rpartition(".")
        new, layer = places.get(whole), ""
        if new is None:
            part = next((part for part in places if whole.startswith(f"{part}.")), None)
            layer = whole.removeprefix(f"{part}.")
            if part is None or layer not in (*OPENAI_LAYERS, "qkv"):
                raise InputError(f"it looks like OpenAI's diffusion, which has no {name} there")
            new = places[part]
        if layer == "qkv":
            for key, split in zip("qkv", _split_heads(value, assumed.head_channels), strict=True):
                weights[f"{new}.to_{key}.{kind}"] = split
        else:
            name_here = f"{new}.{OPENAI_LAYERS[layer]}" if layer else new
            weights[f"{name_here}.{kind}"] = value[:, :, 0] if value.ndim == 3 else value
    remarks = [
        f"not in the file: images of {assumed.sample_size} x {assumed.sample_size} pixels;"
        f" {assumed.steps:,} steps of {assumed.beta_schedule} betas; the noise is predicted",
        f"not in the file: attention heads of {assumed.head_channels} channels, whose queries, keys"
        " and values lie head by head",
    ]
    if learned:
        remarks.append("the learned variance's channels of the output were dropped")
        for kind in ("weight", "bias"):
            weights[f"conv_out.{kind}"] = weights[f"conv_out.{kind}"][:channels]
    plain_down, plain_up = ("DownBlock2D", "UpBlock2D")
    if not improved:
        plain_down, plain_up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D")
    config = _unet_config(
        weights,
        size=assumed.sample_size,
        blocks=blocks,
        down=["AttnDownBlock2D" if on else plain_down for on in attended],
        up=["AttnUpBlock2D" if on else plain_up for on in attended[::-1]],
    )
    config |= {
        "norm_eps": 1e-5,
        "attn_norm_num_groups": 32,
        "attention_head_dim": assumed.head_channels,
        "resnet_time_scale_shift": "scale_shift" if scaled else "default",
        "downsample_type": "conv" if improved else "resnet",
        "upsample_type": "conv" if improved else "resnet",
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
    }
    return DiffusionWeights(
        format=f"OpenAI's {'improved' if improved else 'guided'} diffusion",
        network="UNet2DModel",
        config=config,
        state=weights,
        scheduler=_openai_scheduler(assumed),
        remarks=tuple(remarks),
        licence="MIT (openai/improved-diffusion, openai/guided-diffusion)",
    )


def _openai_places(state: State) -> tuple[dict[str, str], int, int]:
    """Parts of the network to diffusers' names of them; levels; and blocks of each, going down."""
    outputs = 1 + max(_number(name, 1) for name in state if name.startswith("output_blocks."))
    growing = {
        _number(name, 1)
        for name in state
        if re.fullmatch(r"output_blocks\.\d+\.[12]\.(conv|in_layers\.0)\.weight", name)
    }
    levels = len(growing) + 1
    blocks = outputs // levels - 1
    if blocks < 1 or outputs % levels:
        raise InputError(f"OpenAI's diffusion has no {outputs} blocks in {levels} levels going up")
    places = dict(OPENAI_PARTS)
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"
        first = 1 + level * (blocks + 1)
        for number in range(blocks):
            places[f"input_blocks.{first + number}.0"] = f"{down}.resnets.{number}"
            places[f"input_blocks.{first + number}.1"] = f"{down}.attentions.{number}"
        if level < levels - 1:
            places[f"input_blocks.{first + blocks}.0"] = f"{down}.downsamplers.0"
        for number in range(blocks + 1):
            source = f"output_blocks.{level * (blocks + 1) + number}"
            attended = f"{source}.1.norm.weight" in state
            places[f"{source}.0"] = f"{up}.resnets.{number}"
            if attended:
                places[f"{source}.1"] = f"{up}.attentions.{number}"
            if number == blocks and level < levels - 1:
                places[f"{source}.{2 if attended else 1}"] = f"{up}.upsamplers.0"
    return places, levels, blocks


def _assumed(hints: Hints, published: Published | None) -> Assumed:
    """What no shape tells: as given, else that of the published network."""
    given = [getattr(hints, name) for name in Assumed._fields]
    if published is None and None in given:
        missing = ", ".join(f for f, v in zip(Assumed._fields, given, strict=True) if v is None)
        raise InputError(
            "it is not OpenAI's published network of this kind, and the file does not say how it"
            f" was trained and built: give its {missing} (--help says as what)"
        )
    known = given if published is None else published.assumed
    return Assumed(*(k if g is None else g for g, k in zip(given, known, strict=True)))


def _openai_scheduler(assumed: Assumed) -> dict[str, Any]:
    """DDPM's, or one of ours where the network is not given the index itself."""
    levels = {"num_train_timesteps": assumed.steps, "beta_schedule": assumed.beta_schedule}
    if assumed.steps == OPENAI_TIMES:
        return LINEAR | levels
    return LINEAR | levels | {"_class_name": "RescaledScheduler", "told_timesteps": OPENAI_TIMES}


def _split_heads(stacked: Tensor, channels_of_head: int) -> list[Tensor]:
    """Rows (3 C, ...) that hold each head's queries, keys and values, as three of (C, ...)."""
    if len(stacked) % (3 * channels_of_head):
        raise InputError(
            f"attention of {len(stacked) // 3} channels has no heads of {channels_of_head}"
        )
    heads = stacked.reshape(-1, 3, channels_of_head, *stacked.shape[1:2])
    return [heads[:, part].reshape(len(stacked) // 3, *stacked.shape[1:2]) for part in range(3)]


def _unet_config(
    weights: State, *, size: int, blocks: int, down: list[str], up: list[str]
) -> dict[str, Any]:
    """What both families share, from a state dict under diffusers' names."""
    last = [f"down_blocks.{level}.resnets.{blocks - 1}.conv2.bias" for level in range(len(down))]
    if missing := [
        name for name in (*last, "conv_in.weight", "conv_out.bias") if name not in weights
    ]:
        raise InputError(f"the file lacks what diffusers calls {missing[0]}")
    return {
        "sample_size": size,
        "in_channels": weights["conv_in.weight"].shape[1],
        "out_channels": len(weights["conv_out.bias"]),
        "layers_per_block": blocks,
        "block_out_channels": [len(weights[name]) for name in last],
        "down_block_types": down,
        "up_block_types": up,
        "norm_num_groups": 32,
        "act_fn": "silu",
        "time_embedding_type": "positional",
        "mid_block_scale_factor": 1,
        "center_input_sample": False,
        "resnet_time_scale_shift": "default",
        "downsample_type": "conv",
        "upsample_type": "conv",
    }


def _number(name: str, place: int) -> int:
    """The number between a name's dots, 0 where there is none."""
    part = name.split(".")[place]
    return int(part) if part.isdigit() else 0
