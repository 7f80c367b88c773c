"""Families of published classifiers: its marks among the names, its sizes, its normalisation.

Names and shapes do not show an activation or a number of attention heads: the published value is
taken, and a remark says so.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

from torch import Tensor

from hetpure.classifiers.resnet import UNITS, Stem
from hetpure.errors import InputError

State = Mapping[str, Tensor]
Network = dict[str, Any]


@dataclass(frozen=True)
class Normalisation:
    """Of pixels in [0, 1], and where it is published."""

    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        return f"{self.source}: mean {list(self.mean)}, std {list(self.std)}"


Normalisations = Callable[[Network], Sequence[Normalisation]]


@dataclass(frozen=True)
class Layout:
    """A published family of networks.

    Args:
        format: its name, for people.
        marks: names that only this family has together.
        architecture: our network of the same function.
        read: arguments of that network from a state under our names, and remarks.
        normalisations: of the published networks with these arguments; a single one is taken.
        licence: of the published source.
        renames: patterns of published names and our names for them, applied in order.
        dead: beginning of names that are no part of the function.
    """

    format: str
    marks: tuple[str, ...]
    architecture: str
    read: Callable[[State], tuple[Network, list[str]]]
    normalisations: Normalisations
    licence: str
    renames: tuple[tuple[str, str], ...] = ()
    dead: str | None = None


# --- sizes, from names and shapes ---


def _shape(state: State, name: str, dimensions: int) -> tuple[int, ...]:
    if name not in state:
        raise InputError(f"it has no {name}")
    shape = tuple(state[name].shape)
    if len(shape) != dimensions or 0 in shape:
        raise InputError(f"{name} has the shape {shape}, not {dimensions} dimensions")
    return shape


def _count(state: State, modules: str) -> int:
    """How many modules `modules`.0, .1, ... there are."""
    places = (re.match(rf"{re.escape(modules)}\.(\d+)\.", name) for name in state)
    return len({place[1] for place in places if place})


def _wide_resnet(
    state: State, stem: str, units: str, convolution: str, head: str
) -> tuple[Network, list[str]]:
    """Of any WRN, by the names of its first convolution, first block, a unit's first convolution,
    and last layer."""
    width = _shape(state, f"{units}.0.{convolution}.weight", 4)[0]
    if width % 16:
        raise InputError(f"its first block has {width} channels: a WRN has a multiple of 16")
    return {
        "depth": 6 * _count(state, units) + 4,
        "widen_factor": width // 16,
        "num_classes": _shape(state, f"{head}.weight", 2)[0],
        "in_channels": _shape(state, f"{stem}.weight", 4)[1],
    }, []


def _trades_wrn(state: State) -> tuple[Network, list[str]]:
    if "fc.weight" in state and "fc.bias" not in state:
        raise InputError(
            "it has no fc.bias: published networks without one normalise their features too, which "
            "is another function"
        )
    return _wide_resnet(state, "conv1", "block1.layer", "conv1", "fc")


def _robustbench_wrn(state: State) -> tuple[Network, list[str]]:
    network, _ = _trades_wrn(state)
    return network, [
        "some networks of RobustBench with these names normalise otherwise: Ding2020MMA divides "
        "each image by its own deviation, which no mean and std express"
    ]


def _deepmind_wrn(state: State) -> tuple[Network, list[str]]:
    network, _ = _wide_resnet(state, "init_conv", "layer.0.block", "conv_0", "logits")
    assumed = (
        "the activation is SiLU (Swish), as in the networks of Gowal 2020 and Rebuffi 2021; names "
        "do not tell it: of a network with ReLU, set network.activation to relu in config.json"
    )
    return {**network, "activation": "silu"}, [assumed]


def _meliketoy_wrn(state: State) -> tuple[Network, list[str]]:
    return _wide_resnet(state, "conv1", "layer1", "conv1", "linear")


def _resnet(state: State, stem: Stem) -> tuple[Network, list[str]]:
    _, channels, *kernel = _shape(state, "conv1.weight", 4)
    size = 7 if stem == "imagenet" else 3
    if kernel != [size, size]:
        raise InputError(
            f"conv1 is {kernel[0]}x{kernel[1]} and not {size}x{size}: its stride, and whether a "
            "max pool follows, is not told by names. Where it is of stride 1 without a max pool, "
            'write config.json with architecture ResNet and stem "cifar"'
        )
    units = tuple(_count(state, f"layer{index}") for index in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    depths = [depth for depth in UNITS if UNITS[depth] == units and (depth >= 50) == bottleneck]
    if not depths:
        raise InputError(f"its layers have {units} units, as no published ResNet has")
    return {
        "depth": depths[0],
        "num_classes": _shape(state, "fc.weight", 2)[0],
        "in_channels": channels,
        "stem": stem,
        "inner_width": _shape(state, "layer1.0.conv1.weight", 4)[0],
    }, []


# Published widths with another number of heads than one for each 64 channels.
HEADS = {1152: 16, 1280: 16, 1408: 16, 1664: 16}


def _vision_transformer(state: State) -> tuple[Network, list[str]]:
    width, channels, patch, _ = _shape(state, "patch_embed.proj.weight", 4)
    positions = _shape(state, "pos_embed", 3)[1]
    distilled = "dist_token" in state
    tokens = 2 if distilled else 1
    # The number of patches is a square, with these tokens or without; never both ways.
    class_position = isqrt(max(positions - tokens, 0)) ** 2 == positions - tokens
    side = isqrt(positions - tokens if class_position else positions)
    if not class_position and side**2 != positions:
        raise InputError(f"its {positions} position embeddings are of no square image")
    if width % 64 and width not in HEADS:
        raise InputError(
            f"the number of attention heads of width {width} is not known and not told by names: "
            "write config.json with architecture VisionTransformer"
        )
    heads = HEADS.get(width, width // 64)
    network = {
        "image_size": side * patch,
        "patch_size": patch,
        "in_channels": channels,
        "num_classes": _shape(state, "head.weight", 2)[0],
        "width": width,
        "depth": _count(state, "blocks"),
        "heads": heads,
        "mlp_ratio": _shape(state, "blocks.0.mlp.fc1.weight", 2)[0] / width,
        "distilled": distilled,
        "layer_scale": "blocks.0.ls1.gamma" in state,
        "class_position": class_position,
    }
    return network, [
        f"{heads} attention heads of {width // heads} channels, as in published networks: names do "
        "not tell them"
    ]


# --- published families ---

AS_THEY_ARE = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
OLD_CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
CIFAR100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
OLD_CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)
# Given as 125.3, 123.0, 113.9 and 63.0, 62.1, 66.7 of 255.
SZAGORUYKO = (0.491373, 0.482353, 0.446667), (0.247059, 0.243529, 0.261569)
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
DEIT = Normalisation("DeiT", *IMAGENET)


def _by_classes(known: dict[int, tuple[Normalisation, ...]]) -> Normalisations:
    return lambda network: known.get(network["num_classes"], ())


def _timm_normalisations(network: Network) -> Sequence[Normalisation]:
    if network["num_classes"] != 1000:
        return ()
    if network["distilled"] or (network["layer_scale"] and not network["class_position"]):
        return (DEIT,)
    return DEIT, Normalisation("timm's augreg ViTs", *HALF)


TORCHVISION = _by_classes({1000: (Normalisation("torchvision's networks", *IMAGENET),)})

LAYOUTS = (
    Layout(
        "RobustBench's WideResNet",
        ("block1.layer.0.conv1.weight",),
        "WideResNet",
        _robustbench_wrn,
        _by_classes(
            {
                10: (
                    Normalisation("RobustBench's Standard", *AS_THEY_ARE),
                    Normalisation("DiffPure's WRN-70-16-dropout", *CIFAR10),
                )
            }
        ),
        "RobustBench: MIT, but for the networks that its LICENSE names; DiffPure: NVIDIA Source "
        "Code License for DiffPure (non-commercial)",
        dead="sub_block1.",
    ),
    Layout(
        "DeepMind's WideResNet (RobustBench's DMWideResNet)",
        ("layer.0.block.0.conv_0.weight",),
        "DeepMindWideResNet",
        _deepmind_wrn,
        _by_classes(
            {
                10: (Normalisation("RobustBench's CIFAR-10 networks", *CIFAR10),),
                100: (Normalisation("RobustBench's CIFAR-100 networks", *CIFAR100),),
            }
        ),
        "RobustBench: Apache-2.0 for Gowal 2020 and Rebuffi 2021, MIT for others that its LICENSE "
        "does not name",
    ),
    Layout(
        "szagoruyko's functional WideResNet",
        ("group0.block0.conv0",),
        "WideResNet",
        _trades_wrn,
        _by_classes(
            {
                10: (
                    Normalisation("Lee and Kim's SVHN network", *AS_THEY_ARE),
                    Normalisation("szagoruyko's CIFAR-10 training", *SZAGORUYKO),
                ),
                100: (Normalisation("szagoruyko's CIFAR-100 training", *SZAGORUYKO),),
            }
        ),
        "szagoruyko's code: BSD-2-Clause; weights: not stated",
        renames=(
            (r"^conv0$", "conv1.weight"),
            (r"^bn\.", "bn1."),
            (r"^group0\.block", "block1.layer."),
            (r"^group1\.block", "block2.layer."),
            (r"^group2\.block", "block3.layer."),
            (r"\.convdim$", ".convShortcut.weight"),
            (r"\.conv1$", ".conv2.weight"),
            (r"\.conv0$", ".conv1.weight"),
            (r"\.bn1\.", ".bn2."),
            (r"\.bn0\.", ".bn1."),
        ),
    ),
    Layout(
        "meliketoy's Wide_ResNet",
        ("conv1.bias", "layer1.0.conv1.bias", "linear.weight"),
        "MeliketoyWideResNet",
        _meliketoy_wrn,
        _by_classes(
            {
                10: (Normalisation("meliketoy's CIFAR-10 training, and ADDT", *OLD_CIFAR10),),
                100: (Normalisation("meliketoy's CIFAR-100 training, and ADDT", *OLD_CIFAR100),),
            }
        ),
        "not stated",
    ),
    Layout(
        "kuangliu's CIFAR ResNet",
        ("layer1.0.conv1.weight", "linear.weight"),
        "ResNet",
        lambda state: _resnet(state, "cifar"),
        _by_classes(
            {
                10: (
                    Normalisation("DiffPure's ResNet-50", *CIFAR10),
                    Normalisation("kuangliu's CIFAR-10 training", *OLD_CIFAR10),
                )
            }
        ),
        "kuangliu's code: MIT; DiffPure's ResNet-50: NVIDIA Source Code License for DiffPure "
        "(non-commercial)",
        renames=((r"\.shortcut\.", ".downsample."), (r"^linear\.", "fc.")),
    ),
    Layout(
        "torchvision's ResNet",
        ("layer1.0.conv1.weight", "fc.weight"),
        "ResNet",
        lambda state: _resnet(state, "imagenet"),
        TORCHVISION,
        "torchvision's code: BSD-3-Clause; weights: not stated",
    ),
    Layout(
        "torchvision's VisionTransformer",
        ("encoder.layers.encoder_layer_0.self_attention.in_proj_weight",),
        "VisionTransformer",
        _vision_transformer,
        TORCHVISION,
        "torchvision's code: BSD-3-Clause; weights: not stated",
        renames=(
            (r"^class_token$", "cls_token"),
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.ln\.", "norm."),
            (r"^heads\.head\.", "head."),
            (r"^encoder\.layers\.encoder_layer_", "blocks."),
            (r"\.ln_(\d)\.", r".norm\1."),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
        ),
    ),
    Layout(
        "timm's VisionTransformer (ViT, DeiT, DeiT III)",
        ("blocks.0.attn.qkv.weight", "patch_embed.proj.weight"),
        "VisionTransformer",
        _vision_transformer,
        _timm_normalisations,
        "timm's and DeiT's code and weights: Apache-2.0",
        renames=((r"\.gamma_(\d)$", r".ls\1.gamma"),),  # DeiT's own files of DeiT III
    ),
)
