"""Published classifiers under their published names: which network they are, and what is refused.

Official outputs hold the WRNs of DeepMind, DiffPure and meliketoy. There are none for the others.
szagoruyko's WRN and the ResNets, whose functions are checked elsewhere, are held against names
written down here; LayerScale and torchvision's ViT against plain forward passes, written in
`plain_transformers.py` from the published names alone.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hetpure.classifiers import Classifier, VisionTransformer
from hetpure.errors import InputError
from hetpure.weights import load_classifier, save_classifier
from hetpure.weights.classifier import ARCHITECTURES, build_classifier
from hetpure.weights.classifier_formats import ClassifierWeights, recognise_classifier
from tests.hetpure.weights import plain_transformers as plain
from tests.published import published_state, reference

State = dict[str, Tensor]
CIFAR = [0.4914, 0.4822, 0.4465], [0.2471, 0.2435, 0.2616]
IMAGENET = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
# Of a full-size file: the network, some of its arguments, and the normalisation where it is known.
FULL_SIZE: dict[str, tuple[str, dict[str, Any], tuple[list[float], list[float]] | None]] = {
    "robustbench_standard_wrn_28_10": ("WideResNet", {"depth": 28, "widen_factor": 10}, None),
    "diffpure_wrn_70_16_dropout": ("WideResNet", {"depth": 70, "widen_factor": 16}, None),
    "svhn_szagoruyko_wrn_28_10": ("WideResNet", {"depth": 28, "widen_factor": 10}, None),
    "deepmind_wrn_28_10": ("DeepMindWideResNet", {"depth": 28, "activation": "silu"}, CIFAR),
    "deepmind_wrn_70_16": ("DeepMindWideResNet", {"depth": 70, "widen_factor": 16}, CIFAR),
    "meliketoy_wrn_28_10": (
        "MeliketoyWideResNet",
        {"depth": 28, "widen_factor": 10},
        (CIFAR[0], [0.2023, 0.1994, 0.2010]),
    ),
    "diffpure_resnet50_cifar10": ("ResNet", {"depth": 50, "stem": "cifar"}, None),
    "torchvision_resnet18": ("ResNet", {"depth": 18, "stem": "imagenet"}, IMAGENET),
    "torchvision_resnet50": ("ResNet", {"depth": 50, "inner_width": 64}, IMAGENET),
    "torchvision_resnet101": ("ResNet", {"depth": 101, "num_classes": 1000}, IMAGENET),
    "torchvision_wide_resnet50_2": ("ResNet", {"depth": 50, "inner_width": 128}, IMAGENET),
    "timm_deit_small_patch16_224": ("VisionTransformer", {"width": 384, "heads": 6}, None),
    "timm_deit_small_distilled_patch16_224": (
        "VisionTransformer",
        {"heads": 6, "distilled": True, "image_size": 224, "patch_size": 16, "depth": 12},
        IMAGENET,
    ),
    "timm_vit_base_patch16_224": ("VisionTransformer", {"heads": 12, "mlp_ratio": 4.0}, None),
    "timm_vit_small_patch16_224": ("VisionTransformer", {"heads": 6, "distilled": False}, None),
}


def recognised(state: State) -> ClassifierWeights:
    weights = recognise_classifier(state)
    assert weights is not None
    return weights


def classifier(weights: ClassifierWeights, **change: Any) -> Classifier:
    """Of the weights' own precision."""
    built = build_classifier({**weights.config, **change}, where=Path("config.json"))
    built.to(next(value.dtype for value in weights.state.values() if value.is_floating_point()))
    built.network.load_state_dict(weights.state)
    return built.eval().requires_grad_(False)


# --- full size ---


@pytest.mark.parametrize("name", FULL_SIZE)
def test_a_full_size_file_maps_without_a_rest(name: str) -> None:
    architecture, arguments, normalisation = FULL_SIZE[name]
    state = published_state(f"clf_{name}")
    weights = recognised(state)
    assert weights.config["architecture"] == architecture
    assert arguments.items() <= weights.config["network"].items()
    with torch.device("meta"):
        network = ARCHITECTURES[architecture](**weights.config["network"])
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    assert {key: value.shape for key, value in weights.state.items()} == shapes
    assert list(weights.state) == list(shapes)
    # Renamed only: each weight is the file's own memory, and none of it is lost or used twice.
    places = sorted(v.data_ptr() for v in weights.state.values() if v.is_floating_point())
    assert places == sorted(v.data_ptr() for v in state.values() if v.is_floating_point())
    known = (weights.config["mean"], weights.config["std"])
    assert known == ((None, None) if normalisation is None else normalisation)
    assert weights.normalisation
    assert weights.licence


@pytest.mark.parametrize(
    "name",
    [
        "ddpm_ho_cifar10_svhn",
        "edm_cifar10_uncond_vp",
        "google_ddpm_cifar10_32",
        "guided_diffusion_256x256_uncond",
        "improved_diffusion_cifar10_uncond",
        "score_sde_cifar10_ddpmpp_deep_continuous",
    ],
)
def test_a_diffusion_network_is_no_classifier(name: str) -> None:
    assert recognise_classifier(published_state(name)) is None
    assert recognise_classifier({}) is None


# --- outputs ---


@pytest.mark.parametrize("name", ["deepmind_wrn_swish", "diffpure_wrn_dropout", "meliketoy_wrn"])
def test_logits_are_the_official_ones(name: str, tmp_path: Path) -> None:
    official = reference(f"classifier_{name}")
    weights = recognised(official.weights)
    normalisation = {key: official.config[key] for key in ("mean", "std")}
    if weights.config["mean"] is not None:
        assert {key: weights.config[key] for key in ("mean", "std")} == normalisation
    config = {**weights.config, **normalisation}
    save_classifier(tmp_path, classifier(weights, **normalisation), config)
    loaded = load_classifier(tmp_path)
    pixels, logits = official.values["pixels"], official.values["logits"]
    torch.testing.assert_close(loaded(pixels), logits, rtol=0, atol=1e-5)
    assert loaded.num_classes == official.config["num_classes"]
    assert set(loaded.attention_blocks) <= dict(loaded.network.named_modules()).keys()
    assert len(loaded.attention_blocks) == 4


# Of a small network: ours, its arguments, and patterns of our names with the published names.
Rename = tuple[str, str | Callable[[re.Match[str]], str]]
RENAMES: dict[str, tuple[str, dict[str, Any], tuple[Rename, ...]]] = {
    "szagoruyko WRN-16-1": (
        "WideResNet",
        {"depth": 16, "widen_factor": 1},
        (
            (r"^conv1\.weight$", "conv0"),
            (r"^bn1\.", "bn."),
            (r"^block(\d)\.layer\.", lambda match: f"group{int(match[1]) - 1}.block"),
            (r"\.bn1\.", ".bn0."),
            (r"\.bn2\.", ".bn1."),
            (r"\.conv1\.weight$", ".conv0"),
            (r"\.conv2\.weight$", ".conv1"),
            (r"\.convShortcut\.weight$", ".convdim"),
        ),
    ),
    "kuangliu ResNet-18": (
        "ResNet",
        {"depth": 18, "stem": "cifar"},
        ((r"\.downsample\.", ".shortcut."), (r"^fc\.", "linear.")),
    ),
    "torchvision ResNet-50": ("ResNet", {"depth": 50, "inner_width": 8}, ()),
}


def numbered(architecture: str, network: dict[str, Any]) -> State:
    """Each weight holds a number of its own, expanded to the shape: it takes no memory."""
    with torch.device("meta"):
        state = ARCHITECTURES[architecture](**network, num_classes=5).state_dict()
    return {
        key: torch.tensor(number, dtype=value.dtype).expand(value.shape)
        for number, (key, value) in enumerate(state.items())
    }


def renamed(name: str) -> State:
    """Such a network under its published names."""
    architecture, network, renames = RENAMES[name]
    published = {}
    for key, value in numbered(architecture, network).items():
        for pattern, replacement in renames:
            key = re.sub(pattern, replacement, key)
        published[key] = value
    return published


@pytest.mark.parametrize("name", RENAMES)
def test_every_published_name_is_the_one_of_ours(name: str) -> None:
    architecture, network, _ = RENAMES[name]
    weights, expected = recognised(renamed(name)), numbered(architecture, network)
    assert weights.config["architecture"] == architecture
    assert network.items() <= weights.config["network"].items()
    assert weights.state.keys() == expected.keys()
    assert all(torch.equal(weights.state[key], value) for key, value in expected.items())


PLAIN: dict[str, tuple[Callable[[], State], Callable[[State, Tensor], Tensor]]] = {
    "DeiT III in timm": (lambda: plain.deit3_weights("ls1.gamma", "ls2.gamma"), plain.deit3),
    "DeiT III in DeiT": (lambda: plain.deit3_weights("gamma_1", "gamma_2"), plain.deit3),
    "torchvision ViT": (lambda: plain.torchvision_vit_weights("0", "3"), plain.torchvision_vit),
    "torchvision ViT, old names": (
        lambda: plain.torchvision_vit_weights("linear_1", "linear_2"),
        plain.torchvision_vit,
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_logits_are_those_of_a_plain_forward_pass(name: str) -> None:
    weights, forward = PLAIN[name]
    state = weights()
    network = classifier(recognised(state), mean=[0.0] * 3, std=[1.0] * 3)
    pixels = plain.numbers(2, 3, 32, 32, low=0.0)
    expected = forward(state, pixels)
    assert expected.std() > 1e-2
    torch.testing.assert_close(network(pixels), expected, rtol=1e-10, atol=1e-10)


# --- what is dropped, added, and read beside the weights ---


def small(name: str) -> State:
    """Of the reduced official networks, and of those above."""
    if name in RENAMES:
        return renamed(name)
    return PLAIN[name][0]() if name in PLAIN else dict(reference(f"classifier_{name}").weights)


def test_a_block_that_is_never_called_is_dropped_and_said() -> None:
    state = small("diffpure_wrn_dropout")
    block = {f"sub_{key}": value for key, value in state.items() if key.startswith("block1.")}
    weights = recognised({**state, **block})
    assert weights.state.keys() == state.keys()
    assert f"dropped sub_block1.* ({len(block)} tensors)" in weights.remarks[0]


def test_absent_counters_of_batches_are_added_and_said() -> None:
    state = small("diffpure_wrn_dropout")
    bare = {key: value for key, value in state.items() if "num_batches_tracked" not in key}
    weights = recognised(bare)
    assert weights.state.keys() == state.keys()
    counters = [weights.state[key] for key in weights.state.keys() - bare.keys()]
    assert counters
    assert all(counter.dtype == torch.int64 and counter == 0 for counter in counters)
    assert any("counters of batches" in remark for remark in weights.remarks)
    assert not any("counters of batches" in remark for remark in recognised(state).remarks)


@pytest.mark.parametrize("names", [("mean", "std"), ("mu", "sigma")])
def test_a_normalisation_in_the_file_is_the_one(names: tuple[str, str]) -> None:
    held = {
        names[0]: torch.tensor([0.25, 0.5, 0.75]).reshape(1, 3, 1, 1),
        names[1]: torch.tensor([0.125, 0.25, 0.5]).reshape(3, 1, 1),
    }
    for name in ("diffpure_wrn_dropout", "deepmind_wrn_swish"):
        weights = recognised({**small(name), **held})
        assert weights.config["mean"] == [0.25, 0.5, 0.75]
        assert weights.config["std"] == [0.125, 0.25, 0.5]
        assert "mean and std are of the file" in weights.normalisation


def test_a_normalisation_that_differs_among_the_published_is_left_out() -> None:
    """Standard takes pixels, DiffPure's WRN normalises, and the names of the two are the same."""
    weights = recognised(small("diffpure_wrn_dropout"))
    assert weights.config["mean"] is None
    assert weights.config["std"] is None
    said = weights.normalisation
    assert said.startswith("mean and std must be given")
    assert "RobustBench's Standard: mean [0.0, 0.0, 0.0], std [1.0, 1.0, 1.0]" in said
    assert "WRN-70-16-dropout: mean [0.4914, 0.4822, 0.4465], std [0.2471, 0.2435, 0.2616]" in said
    with pytest.raises(InputError, match="config.json describes no classifier"):
        build_classifier(weights.config, where=Path("config.json"))


def test_another_number_of_classes_or_channels_is_no_published_network() -> None:
    """Somebody's own training with published names: its normalisation is nobody's."""
    state = small("deepmind_wrn_swish")
    assert recognised(state).config["mean"] == CIFAR[0]
    fewer = {**state, "logits.weight": state["logits.weight"][:7], "logits.bias": torch.zeros(7)}
    grey = {**state, "init_conv.weight": state["init_conv.weight"][:, :1]}
    for other in (fewer, grey):
        weights = recognised(other)
        assert weights.config["mean"] is None
        assert "Published are none" in weights.normalisation
    assert recognised(fewer).config["network"]["num_classes"] == 7
    assert recognised(grey).config["network"]["in_channels"] == 1
    assert recognised(small("torchvision ResNet-50")).config["mean"] is None  # 5 classes


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("deepmind_wrn_swish", "the activation is SiLU"),
        ("DeiT III in timm", "2 attention heads of 64 channels"),
        ("torchvision ViT", "2 attention heads"),
    ],
)
def test_what_names_do_not_tell_is_said(name: str, says: str) -> None:
    assert any(says in remark for remark in recognised(small(name)).remarks)


def on_meta(**arguments: Any) -> State:
    with torch.device("meta"):
        return VisionTransformer(image_size=28, patch_size=14, depth=1, **arguments).state_dict()


@pytest.mark.parametrize(
    ("width", "heads"),
    [(192, 3), (384, 6), (512, 8), (768, 12), (1024, 16), (1280, 16), (1408, 16), (1664, 16)],
)
def test_heads_are_those_of_the_published_width(width: int, heads: int) -> None:
    assert recognised(on_meta(width=width, heads=heads)).config["network"]["heads"] == heads


@pytest.mark.parametrize(
    ("arguments", "mean"),
    [
        ({}, None),  # DeiT and timm's ViT
        ({"distilled": True}, IMAGENET[0]),
        ({"layer_scale": True, "class_position": False}, IMAGENET[0]),  # DeiT III
        ({"layer_scale": True}, None),
        ({"class_position": False}, None),
        ({"distilled": True, "num_classes": 10}, None),
    ],
    ids=str,
)
def test_a_vits_normalisation_where_its_names_tell_it(
    arguments: dict[str, Any], mean: list[float] | None
) -> None:
    weights = recognised(on_meta(width=64, heads=1, **arguments))
    assert weights.config["mean"] == mean
    assert arguments.items() <= weights.config["network"].items()


# --- what is refused ---


def without(state: State, *names: str) -> State:
    return {key: value for key, value in state.items() if key not in names}


Spoil = Callable[[State], State]
SPOILED: dict[str, tuple[str, Spoil, str]] = {
    "no weight": (
        "diffpure_wrn_dropout",
        lambda s: without(s, "block2.layer.0.conv2.weight"),
        "block2.layer.0.conv2.weight is missing",
    ),
    "no bias of the last layer": (
        "diffpure_wrn_dropout",
        lambda s: without(s, "fc.bias"),
        "no fc.bias: .*normalise their features",
    ),
    "another width": (
        "deepmind_wrn_swish",
        lambda s: {**s, "batchnorm.weight": s["batchnorm.weight"][:-1]},
        "batchnorm.weight is floats",
    ),
    "flat": (
        "diffpure_wrn_dropout",
        lambda s: {**s, "conv1.weight": s["conv1.weight"].flatten()},
        r"conv1.weight has the shape \(432,\)",
    ),
    "integers": (
        "deepmind_wrn_swish",
        lambda s: {**s, "logits.bias": torch.zeros(10, dtype=torch.int8)},
        "logits.bias is torch.int8",
    ),
    "groups of different depth": (
        "deepmind_wrn_swish",
        lambda s: {k: v for k, v in s.items() if not k.startswith("layer.2.block.1.")},
        r"\d+ tensors do not fit; layer.2.block.1.* is missing",
    ),
    "a stem that names do not tell": (
        "torchvision ResNet-50",
        lambda s: {**s, "conv1.weight": torch.zeros(64, 3, 3, 3)},
        'conv1 is 3x3 and not 7x7: .*stem "cifar"',
    ),
    "units as nowhere": (
        "kuangliu ResNet-18",
        lambda s: {k: v for k, v in s.items() if not k.startswith("layer2.1.")},
        r"\(2, 1, 2, 2\) units",
    ),
    "groups of channels": (
        "torchvision ResNet-50",
        lambda s: {**s, "layer1.0.conv2.weight": s["layer1.0.conv2.weight"][:, :2]},
        "layer1.0.conv2.weight is floats",
    ),
    "heads that nobody knows": (
        "DeiT III in timm",
        lambda s: {**s, "patch_embed.proj.weight": torch.zeros(100, 3, 8, 8)},
        "the number of attention heads of width 100 is not known",
    ),
    "no square": (
        "DeiT III in timm",
        lambda s: {**s, "pos_embed": torch.zeros(1, 15, 128)},
        "15 position embeddings are of no square image",
    ),
    "no head": (
        "DeiT III in timm",
        lambda s: without(s, "head.weight", "head.bias"),
        "it has no head.weight",
    ),
    "one thing under two names": (
        "torchvision ViT",
        lambda s: {
            **s,
            "encoder.layers.encoder_layer_0.mlp.linear_1.bias": s[
                "encoder.layers.encoder_layer_0.mlp.0.bias"
            ],
        },
        "it holds blocks.0.mlp.fc1.bias twice",
    ),
}


@pytest.mark.parametrize("case", SPOILED)
def test_a_file_that_contradicts_itself_is_refused_by_name(case: str) -> None:
    name, spoil, says = SPOILED[case]
    with pytest.raises(InputError) as caught:
        recognise_classifier(spoil(small(name)))
    message = str(caught.value)
    assert message.startswith("it looks like ")
    assert "\n" not in message
    assert re.search(says, message), message
