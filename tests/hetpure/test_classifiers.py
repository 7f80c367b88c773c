"""The WRN against the published architecture, and the classifier's own normalisation."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.classifiers import Classifier, WideResNet
from hetpure.errors import InputError
from hetpure.noise import Noise, Purpose, Stream


def pixels(*shape: int) -> Tensor:
    noise = Noise.of(0, Stream.PROBE).on(torch.arange(shape[0]))
    return noise.uniform(Purpose.FORWARD, torch.empty(shape))


def seeded(*arguments: int, **settings: Any) -> WideResNet:
    """A WRN in eval mode whose batch norms are not the identity, as after training."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = WideResNet(*arguments, **settings)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                for name, tensor in module.state_dict().items():
                    if name in ("weight", "running_var"):
                        nn.init.uniform_(tensor, 0.5, 1.5)
                    elif name in ("bias", "running_mean"):
                        nn.init.normal_(tensor, std=0.3)
    return network.eval()


def batch_norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    vectors = ("weight", "bias", "running_mean", "running_var")
    return {
        **{f"{name}.{vector}": (width,) for vector in vectors},
        f"{name}.num_batches_tracked": (),
    }


def published_shapes(units: int, widen_factor: int, classes: int) -> dict[str, tuple[int, ...]]:
    """State dict of RobustBench's `WideResNet`, written from its definition: a 3x3 stem of 16
    channels, three blocks of pre-activation units, a 1x1 shortcut in each block's first unit."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3)}
    width_in = 16
    for block in (1, 2, 3):
        width = 16 * 2 ** (block - 1) * widen_factor
        for unit in range(units):
            prefix = f"block{block}.layer.{unit}"
            shapes |= batch_norm_shapes(f"{prefix}.bn1", width_in)
            shapes[f"{prefix}.conv1.weight"] = (width, width_in, 3, 3)
            shapes |= batch_norm_shapes(f"{prefix}.bn2", width)
            shapes[f"{prefix}.conv2.weight"] = (width, width, 3, 3)
            if unit == 0:
                shapes[f"{prefix}.convShortcut.weight"] = (width, width_in, 1, 1)
            width_in = width
    shapes |= batch_norm_shapes("bn1", width_in)
    return shapes | {"fc.weight": (classes, width_in), "fc.bias": (classes,)}


@pytest.mark.parametrize(
    ("depth", "widen_factor", "units", "millions"),
    [(28, 10, 4, 36.48), (34, 10, 5, 46.16), (70, 16, 11, 266.80)],
    ids=["WRN-28-10", "WRN-34-10", "WRN-70-16"],
)
def test_state_dict_is_that_of_robustbench(
    depth: int, widen_factor: int, units: int, millions: float
) -> None:
    """Order included, so a checkpoint loads by name; sizes on the meta device cost nothing."""
    with torch.device("meta"):
        network = WideResNet(depth, widen_factor)
    shapes = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    assert shapes == published_shapes(units, widen_factor, 10)
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=5e-3)


def published_forward(network: WideResNet, x: Tensor) -> Tensor:
    """The published forward pass from the state dict alone, for 32-pixel images."""
    weights = network.state_dict()

    def norm_relu(name: str, x: Tensor) -> Tensor:
        mean, var, weight, bias = (
            weights[f"{name}.{key}"] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return F.relu(F.batch_norm(x, mean, var, weight, bias))

    def conv(name: str, x: Tensor, stride: int = 1, padding: int = 1) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], None, stride, padding)

    x = conv("conv1", x)
    for block in (1, 2, 3):
        unit = 0
        while f"block{block}.layer.{unit}.conv1.weight" in weights:
            name = f"block{block}.layer.{unit}"
            stride = 2 if block > 1 and unit == 0 else 1
            activated = norm_relu(f"{name}.bn1", x)
            out = conv(f"{name}.conv1", activated, stride)
            out = conv(f"{name}.conv2", norm_relu(f"{name}.bn2", out))
            shortcut = f"{name}.convShortcut"
            projected = f"{shortcut}.weight" in weights
            x = out + (conv(shortcut, activated, stride, 0) if projected else x)
            unit += 1
    pooled = F.avg_pool2d(norm_relu("bn1", x), 8).flatten(1)
    return F.linear(pooled, weights["fc.weight"], weights["fc.bias"])


@pytest.mark.parametrize("shape", [(10, 2), (16, 1)], ids=["10-2", "16-1"])
def test_logits_are_those_of_the_published_forward(shape: tuple[int, int]) -> None:
    """Keys that fit do not show where a ReLU or a stride stands."""
    network = seeded(*shape)
    images = pixels(2, 3, 32, 32)
    torch.testing.assert_close(
        network(images), published_forward(network, images), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("size", [28, 32, 48])
def test_any_image_size_and_number_of_channels(size: int) -> None:
    """28-pixel maps end in 7x7: the published 8x8 pooling window would not fit."""
    assert seeded(10, 1, num_classes=7, in_channels=1)(pixels(2, 1, size, size)).shape == (2, 7)


@pytest.mark.parametrize("depth", [0, 4, 9, 11, 27, 30, -2])
def test_impossible_depth_is_refused_with_the_possible_ones(depth: int) -> None:
    with pytest.raises(InputError, match=rf"6n \+ 4 with n >= 1 \(10, 16, 28\), got {depth}$"):
        WideResNet(depth, 1)


def test_dropout_acts_in_training_and_never_in_evaluation() -> None:
    """SPEC section 6, defect 7: dropout left on in a 'deterministic' evaluation."""
    network, images = seeded(10, 1, dropout=0.5), pixels(2, 3, 16, 16)
    assert torch.equal(network(images), network(images))
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        assert not torch.equal(network(images), network(images))


@pytest.mark.parametrize("depth", [10, 16])
def test_attention_blocks_are_the_last_inner_relus_and_the_final_one(depth: int) -> None:
    """SPEC section 2: inner relu2 of the last unit of block1..3 and the final relu."""
    network = seeded(depth, 2)
    last = (depth - 4) // 6 - 1
    assert network.attention_blocks == (
        *(f"block{i}.layer.{last}.relu2" for i in (1, 2, 3)),
        "relu",
    )
    modules = dict(network.named_modules())
    captured: dict[str, Tensor] = {}
    copies: dict[str, Tensor] = {}

    def capture(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
            captured[name], copies[name] = output, output.clone()

        return hook

    for name in network.attention_blocks:
        assert isinstance(modules[name], nn.ReLU)
        modules[name].register_forward_hook(capture(name))
    logits = network(pixels(2, 3, 32, 32))

    shapes = [tuple(captured[name].shape) for name in network.attention_blocks]
    assert shapes == [(2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8), (2, 128, 8, 8)]
    for name, activation in captured.items():
        assert activation.min() == 0 < activation.max(), name
        assert torch.equal(activation, copies[name]), f"{name} was overwritten in place"
    pooled = captured["relu"].mean((2, 3))
    torch.testing.assert_close(network.fc(pooled), logits, rtol=1e-5, atol=1e-5)


def test_every_relu_runs_once_a_forward() -> None:
    """A module used twice would let a hook see the other activation."""
    network = seeded(16, 1)
    calls: list[nn.Module] = []
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda module, inputs, output: calls.append(module))
    network(pixels(1, 3, 16, 16))
    assert len(calls) == len(set(calls)) == 2 * 6 + 1


# --- the wrapper ---


def test_normalisation_is_inside_the_classifier() -> None:
    """Pixels in: each channel is normalised once, with its own mean and std."""
    classifier = Classifier(
        nn.Flatten(), num_classes=48, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0)
    )
    images = torch.tensor([1.0, 0.5, 0.5]).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    expected = torch.tensor([1.0, 1.0, 0.5]).reshape(1, 3, 1, 1).expand(2, 3, 4, 4)
    assert torch.equal(classifier(images), expected.flatten(1))
    assert classifier.channels == 3


def test_classifier_is_its_network_on_normalised_images() -> None:
    network = seeded(10, 1)
    classifier = Classifier(network, num_classes=10, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    images = pixels(2, 3, 16, 16)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4)))
    assert torch.equal(classifier(images), network((images - mean) / std))
    assert not torch.allclose(classifier(images), network(images))


def test_gradient_is_that_of_pixels() -> None:
    """1/std belongs to the gradient: an attack's step is measured in pixels."""
    classifier = Classifier(nn.Flatten(), num_classes=2, mean=(0.0, 0.0), std=(0.5, 0.25))
    images = torch.zeros(1, 2, 1, 1, requires_grad=True)
    (gradient,) = torch.autograd.grad(classifier(images).sum(), images)
    assert gradient.flatten().tolist() == [2.0, 4.0]


def test_normalisation_moves_with_the_module_but_is_not_in_its_weights() -> None:
    """Mean and std come from config.json; a checkpoint of the bare network must load."""
    network = seeded(10, 1)
    classifier = Classifier(network, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert set(classifier.state_dict()) == {f"network.{key}" for key in network.state_dict()}
    assert classifier.double().mean.dtype == classifier.std.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ((0.5, 0.5), (0.5,)),
        ((0.5,), (0.5, 0.5, 0.5)),
        ((0.5,), (0.0,)),
        ((0.5, 0.5), (0.5, -1.0)),
        ((), ()),
    ],
    ids=["short-std", "short-mean", "zero-std", "negative-std", "none"],
)
def test_impossible_normalisation_is_refused(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    with pytest.raises(InputError, match="one positive std a channel"):
        Classifier(nn.Identity(), num_classes=2, mean=mean, std=std)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.5", None], ids=str)
def test_a_mean_or_a_std_that_is_no_number_is_refused(value: Any) -> None:
    for mean, std in (([0.5, value], [0.5, 0.5]), ([0.5, 0.5], [value, 0.5])):
        with pytest.raises(InputError, match="is no finite number"):
            Classifier(nn.Identity(), num_classes=2, mean=mean, std=std)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([125.3, 123.0, 113.9], [63.0, 62.1, 66.7]),
        ([0.49, 0.48, 0.45], [63.0, 62.1, 66.7]),
        ([125.3, 123.0, 113.9], [0.25, 0.24, 0.26]),
        ([0.0, 0.0, 0.0], [255.0, 255.0, 255.0]),
        ([-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]),
    ],
    ids=["0..255", "std 0..255", "mean 0..255", "divisor", "negative"],
)
def test_a_normalisation_of_other_units_is_refused(mean: list[float], std: list[float]) -> None:
    """Left alone it gives 0% where the right one gives 100%, with exit code 0."""
    with pytest.raises(InputError, match=r"not of pixels in \[0, 1\]: .*0\.\.255 by 255$"):
        Classifier(nn.Identity(), num_classes=2, mean=mean, std=std)


def test_known_normalisations_are_accepted() -> None:
    for mean, std in ((0, 1), (0.5, 0.5), (0.485, 0.229), (0.0, 1 / 255), (1.0, 1.0)):
        classifier = Classifier(nn.Flatten(), num_classes=1, mean=[mean], std=[std])
        assert classifier.mean.dtype == classifier.std.dtype == torch.float32  # 0 and 1 too
        assert classifier(torch.full((1, 1, 1, 1), 0.5)).item() == pytest.approx((0.5 - mean) / std)


def test_attention_blocks_come_from_the_network_or_from_the_user() -> None:
    network = seeded(10, 1)
    settings: dict[str, Any] = {"num_classes": 10, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert Classifier(network, **settings).attention_blocks == network.attention_blocks
    own = Classifier(network, attention_blocks=["block1", "relu"], **settings)
    assert own.attention_blocks == ("block1", "relu")

    assert Classifier(network, attention_blocks=[], **settings).attention_blocks == ()
    foreign = nn.Sequential(OrderedDict(stem=nn.Conv2d(3, 4, 3), act=nn.ReLU()))
    assert Classifier(foreign, **settings).attention_blocks == ()
    assert Classifier(foreign, attention_blocks=["act"], **settings).attention_blocks == ("act",)


def test_an_attention_block_that_does_not_exist_is_named() -> None:
    with pytest.raises(InputError, match=r"^attention block 'block9\.relu2' "):
        Classifier(
            seeded(10, 1),
            num_classes=10,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            attention_blocks=["relu", "block9.relu2"],
        )
