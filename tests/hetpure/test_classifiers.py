"""The WRN against the published architecture, and the classifier's own normalisation."""

from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hetpure.attention import captured
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
    assert all(isinstance(modules[name], nn.ReLU) for name in network.attention_blocks)
    with captured(network, network.attention_blocks) as outputs:
        logits = network(pixels(2, 3, 32, 32))
    shapes = [tuple(outputs[name].shape) for name in network.attention_blocks]
    assert shapes == [(2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8), (2, 128, 8, 8)]
    assert all(outputs[name].min() == 0 < outputs[name].max() for name in outputs)
    pooled = outputs["relu"].mean((2, 3))
    torch.testing.assert_close(network.fc(pooled), logits, rtol=1e-5, atol=1e-5)


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


def test_normalisation_moves_with_the_module_but_is_not_in_its_weights() -> None:
    """Mean and std come from config.json; a checkpoint of the bare network must load."""
    network = seeded(10, 1)
    classifier = Classifier(network, num_classes=10, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert set(classifier.state_dict()) == {f"network.{key}" for key in network.state_dict()}
    assert classifier.double().mean.dtype == classifier.std.dtype == torch.float64


SHORT, NUMBER = "one positive std a channel", "is no finite number"
UNITS = r"not of pixels in \[0, 1\]: .*0\.\.255 by 255$"


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.5, 0.5], [0.5], SHORT),
        ([0.5], [0.5, 0.5, 0.5], SHORT),
        ([0.5], [0.0], SHORT),
        ([0.5, 0.5], [0.5, -1.0], SHORT),
        ([], [], SHORT),
        *(([0.5, value], [0.5, 0.5], NUMBER) for value in (float("nan"), True, "0.5", None)),
        ([0.5, 0.5], [float("inf"), 0.5], NUMBER),
        ([0.49, 0.48, 0.45], [63.0, 62.1, 66.7], UNITS),
        ([125.3, 123.0, 113.9], [0.25, 0.24, 0.26], UNITS),
        ([0.0, 0.0, 0.0], [255.0, 255.0, 255.0], UNITS),
        ([-1.0, -1.0, -1.0], [1.0, 1.0, 1.0], UNITS),
    ],
)
def test_an_impossible_normalisation_is_refused(
    mean: list[Any], std: list[Any], message: str
) -> None:
    """Of other units it would give 0% where the right one gives 100%, with exit code 0."""
    with pytest.raises(InputError, match=message):
        Classifier(nn.Identity(), num_classes=2, mean=mean, std=std)


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
