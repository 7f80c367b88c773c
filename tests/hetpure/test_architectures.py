"""The published architectures: sizes, logits, attention places. That their keys and shapes are the
published ones is held in `weights/test_classifier_formats.py`.
"""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from hetpure.attention import AttentionMask, captured
from hetpure.classifiers import (
    Classifier,
    DeepMindWideResNet,
    MeliketoyWideResNet,
    ResNet,
    VisionTransformer,
    WideResNet,
)
from hetpure.classifiers.deepmind_wide_resnet import pad_same
from hetpure.classifiers.resnet import Stem


def tiny_vit(image_size: int = 32, **options: bool) -> VisionTransformer:
    return VisionTransformer(image_size, image_size // 8, 3, 5, width=24, heads=3, **options)


FAMILIES: dict[str, Callable[[int], nn.Module]] = {
    "WRN": lambda size: WideResNet(10, 1, num_classes=5),
    "ResNet, basic": lambda size: ResNet(18, num_classes=5),
    "ResNet, bottleneck": lambda size: ResNet(50, num_classes=5),
    "ResNet, CIFAR": lambda size: ResNet(18, num_classes=5, stem="cifar"),
    "WRN, meliketoy": lambda size: MeliketoyWideResNet(10, 1, num_classes=5),
    "DeepMind WRN, ReLU": lambda size: DeepMindWideResNet(10, 1, num_classes=5),
    "DeepMind WRN, SiLU": lambda size: DeepMindWideResNet(10, 1, 5, activation="silu"),
    "ViT": tiny_vit,
    "DeiT, distilled": lambda size: tiny_vit(size, distilled=True),
    "DeiT III": lambda size: tiny_vit(size, layer_scale=True, class_position=False),
}


def seeded(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval().requires_grad_(False)


@cache
def family(name: str, size: int) -> nn.Module:
    return seeded(lambda: FAMILIES[name](size))


def images(size: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def wrapped(network: nn.Module, *blocks: str) -> Classifier:
    return Classifier(
        network,
        num_classes=5,
        mean=[0.5] * 3,
        std=[0.25] * 3,
        attention_blocks=blocks or None,
    )


@pytest.mark.parametrize(
    ("depth", "inner_width", "parameters"),
    [
        (34, 64, 21_797_672),
        (101, 64, 44_549_160),
        (152, 64, 60_192_808),
        (50, 128, 68_883_240),
        (101, 128, 126_886_696),
    ],
)
def test_other_resnets_have_the_published_size(
    depth: int, inner_width: int, parameters: int
) -> None:
    with torch.device("meta"):
        network = ResNet(depth, inner_width=inner_width)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


# --- forward passes ---


def scrambled(shape: torch.Size, salt: int, low: float, high: float) -> Tensor:
    """Numbers that look random and are the same on every machine, float64."""
    angles = torch.arange(shape.numel(), dtype=torch.float64) * 12.9898 + salt
    return (low + (high - low) * (angles.sin() * 43758.5453).frac().abs()).reshape(shape)


def fill(network: nn.Module) -> nn.Module:
    """Weights and statistics of such numbers, as if trained: no norm is the identity."""
    state = network.double().eval().state_dict()
    for key, value in state.items():
        if key.endswith("running_var") or (value.dim() == 1 and key.endswith("weight")):
            value.copy_(scrambled(value.shape, len(key), 0.5, 1.5))
        elif value.dim() > 1:
            edge = (3 / value[0].numel()) ** 0.5
            value.copy_(scrambled(value.shape, len(key), -edge, edge))
        elif value.is_floating_point():
            value.copy_(scrambled(value.shape, len(key), -0.5, 0.5))
    return network


# Logits of the packages' own models, filled alike: torchvision 0.29.2, timm 1.0.31, RobustBench
# 1.1.1.
LOGITS: dict[str, tuple[Callable[[], nn.Module], list[float]]] = {
    "torchvision resnet18": (lambda: ResNet(18, 3), [-2.66609124, 1.83676286, -0.169564466]),
    "torchvision resnet50": (lambda: ResNet(50, 3), [-3.85413869, 3.11862844, -3.9170941]),
    "robustbench DMWideResNet": (
        lambda: DeepMindWideResNet(10, 2, 3),
        [-0.0773984347, -0.563984837, 0.0157898298],
    ),
    "robustbench DMWideResNet, Swish": (
        lambda: DeepMindWideResNet(10, 2, 3, activation="silu"),
        [-0.352260584, 0.0441870319, 0.0123176944],
    ),
    "timm VisionTransformer": (
        lambda: VisionTransformer(32, 8, 3, 3, 24, 3, 3),
        [1.12426873, -0.756231279, -2.20523369],
    ),
    "timm VisionTransformerDistilled": (
        lambda: VisionTransformer(32, 8, 3, 3, 24, 3, 3, distilled=True),
        [0.729244523, -0.555304879, -1.45091502],
    ),
}


@pytest.mark.parametrize("name", LOGITS)
def test_logits_are_those_of_the_published_model(name: str) -> None:
    """Keys that fit do not show a stride, a padding, an epsilon or an activation."""
    build, expected = LOGITS[name]
    with torch.device("meta"):
        network = build()
    logits = fill(network.to_empty(device="cpu"))(scrambled(torch.Size((1, 3, 32, 32)), 0, -1, 1))
    torch.testing.assert_close(
        logits, torch.tensor([expected], dtype=torch.float64), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "size"),
    # A CIFAR stem keeps 224 pixels as they are: seconds, and no network has it.
    [
        (name, size)
        for name in FAMILIES
        for size in (32, 224)
        if (name, size) != ("ResNet, CIFAR", 224)
    ],
)
def test_logits_and_masks_of_every_family(name: str, size: int) -> None:
    classifier = wrapped(family(name, size))
    pixels = images(size, 1).requires_grad_()
    assert len(classifier.attention_blocks) == 4
    modules = dict(classifier.network.named_modules())
    assert set(classifier.attention_blocks) <= set(modules)
    scores = AttentionMask().scores(classifier, pixels.detach())
    assert scores.shape == (1, size, size)
    assert scores.isfinite().all()
    with captured(classifier, ["network"]) as outputs:
        mask = AttentionMask(selection="area", threshold=0.15)(classifier, pixels)
    assert outputs["network"].shape == (1, 5)
    assert outputs["network"].isfinite().all()
    assert mask.shape == (1, 1, size, size)
    assert not mask.requires_grad
    assert mask.sum() == round(0.15 * size**2)
    assert not any(module._forward_hooks for module in classifier.modules())


@pytest.mark.parametrize(("size", "zeros"), [(4, (0, 1)), (5, (1, 1))])
def test_same_padding_at_stride_two(size: int, zeros: tuple[int, int]) -> None:
    """TensorFlow's rule: ceil(n / 2) windows, the odd zero of the border last."""
    padded = pad_same(torch.ones(1, 1, size, 6), stride=2)
    assert padded[0, 0, :, 2].tolist() == [0.0] * zeros[0] + [1.0] * size + [0.0] * zeros[1]
    assert padded[0, 0, 2].tolist() == [1.0] * 6 + [0.0]


@pytest.mark.parametrize(
    ("depth", "places"),
    [(12, (2, 5, 8, 11)), (24, (5, 11, 17, 23)), (5, (0, 1, 2, 4)), (3, (0, 1, 2)), (1, (0,))],
)
def test_attention_blocks_of_a_vit(depth: int, places: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = VisionTransformer(depth=depth, width=12)
    assert network.attention_blocks == tuple(f"blocks.{place}" for place in places)


def test_a_vit_mask_is_where_the_patches_are() -> None:
    """A token of great norm lights the pixels of its own patch, row and column not swapped."""
    network = seeded(lambda: tiny_vit(distilled=True))
    pixels = images(32)

    def loud(module: nn.Module, inputs: object, tokens: Tensor) -> Tensor:
        tokens = tokens.clone()
        tokens[:, :2] *= 1e4  # prefix tokens are no place of the image
        tokens[:, 2 + 8 * 1 + 6] *= 100
        return tokens

    handle = network.get_submodule("blocks.5").register_forward_hook(loud)
    mask = AttentionMask(blocks=("blocks.5",), threshold=0.9)(wrapped(network), pixels)
    handle.remove()
    places = mask[0, 0].nonzero()
    assert len(places) > 0
    assert (places // 4 == torch.tensor([1, 6])).all()


@pytest.mark.parametrize(
    ("stem", "sizes"), [("imagenet", (16, 8, 4, 2)), ("cifar", (64, 32, 16, 8))]
)
def test_the_stem_decides_the_size_of_the_maps(stem: Stem, sizes: tuple[int, ...]) -> None:
    network = seeded(lambda: ResNet(18, num_classes=5, stem=stem))
    with captured(network, ResNet.attention_blocks) as outputs:
        network(images(64, 1))
    assert tuple(outputs[name].shape[-1] for name in ResNet.attention_blocks) == sizes
