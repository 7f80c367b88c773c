"""The mask: hand-made maps, guards against constant ones, and hooks that never outlive a call."""

import threading
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.attention import (
    AttentionMask,
    attention_map,
    captured,
    normalise,
    tokens_to_grid,
)
from hetpure.classifiers import Classifier, DeepMindWideResNet
from hetpure.errors import InputError

VALUE, AREA = AttentionMask(threshold=0.9), AttentionMask(selection="area", threshold=0.15)


class Says(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output.to(x) if isinstance(self.output, Tensor) else self.output


class Planted(nn.Module):
    """A network whose blocks put out what they are given, whatever the images."""

    def __init__(self, outputs: Sequence[object]) -> None:
        super().__init__()
        self.blocks, self.idle = nn.ModuleList(map(Says, outputs)), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            block(x)
        return x.flatten(1)[:, :2]


def planted(*outputs: object) -> Classifier:
    names = [f"blocks.{number}" for number in range(len(outputs))]
    network = Planted(outputs)
    return Classifier(network, num_classes=2, mean=[0.0], std=[1.0], attention_blocks=names)


def count_hooks(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


@pytest.mark.parametrize(
    ("power", "root", "expected"),
    [(2.0, False, (25.0, 1.0)), (2.0, True, (5.0, 1.0)), (1.0, False, (7.0, 1.0))],
    ids=["p=2", "p=2 with root", "p=1"],
)
def test_map_sums_powers_over_channels(
    power: float, root: bool, expected: tuple[float, float]
) -> None:
    activation = torch.tensor([[[[3.0, 0.0]], [[-4.0, -1.0]]]])  # (1, 2, 1, 2)
    assert attention_map(activation, power, root).tolist() == [[list(expected)]]


def test_normalisations_of_hand_made_maps() -> None:
    maps = torch.tensor([[[1.0, 3.0], [2.0, 5.0]], [[10.0, 10.0], [10.0, 14.0]]])
    expected = [[[0.0, 0.5], [0.25, 1.0]], [[0.0, 0.0], [0.0, 1.0]]]  # each map by itself
    assert normalise(maps, "minmax").tolist() == expected
    weights = torch.exp(maps - 5)
    by_hand = weights / weights.sum((1, 2), keepdim=True)
    torch.testing.assert_close(normalise(maps, "softmax"), by_hand)


@pytest.mark.parametrize(
    "mask",
    [
        VALUE,
        AREA,
        AttentionMask(normalisation="softmax", threshold=1 / 128),
        AttentionMask(normalisation="softmax", selection="area", threshold=0.15),
    ],
    ids=["minmax value", "minmax area", "softmax value", "softmax area"],
)
@pytest.mark.parametrize("level", [0.0, 0.1, 0.7, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_constant_map_selects_nothing(
    mask: AttentionMask, level: float, dtype: torch.dtype
) -> None:
    """Upsampling 3x3 to 8x8 leaves rounding errors on a constant: they are not attention."""
    classifier = planted(torch.full((2, 1, 3, 3), level, dtype=dtype)).to(dtype)
    scores = mask.scores(classifier, torch.rand(2, 1, 8, 8, dtype=dtype))
    assert scores.isfinite().all()
    assert not mask.select(scores).any()


def test_constant_block_leaves_the_others_alone() -> None:
    peak = torch.zeros(1, 1, 8, 8)
    peak[..., 2, 3] = 1.0
    both = planted(torch.full((1, 1, 2, 2), 0.3), peak)
    mask = VALUE(both, torch.rand(1, 1, 8, 8))
    assert mask.nonzero().tolist() == [[0, 0, 2, 3]]


def test_threshold_of_maximum_is_union_of_thresholds(
    classifier: Classifier, images: Tensor
) -> None:
    blocks = classifier.attention_blocks
    singles = torch.stack(
        [AttentionMask(blocks=(name,), threshold=0.7)(classifier, images) for name in blocks]
    )
    together = AttentionMask(threshold=0.7)(classifier, images)
    assert torch.equal(together, singles.amax(0))
    assert (together.sum() > singles.sum((1, 2, 3, 4))).all()  # no block is the union by itself


@pytest.mark.parametrize("fraction", [0.15, 0.5, 1.0])
def test_area_selects_the_top_fraction_exactly(fraction: float) -> None:
    """Also where the lowest pixel has score 0, as minmax always leaves one."""
    order = torch.stack([torch.randperm(64), torch.randperm(64)])
    scores = (order / 63).reshape(2, 8, 8)
    count = round(fraction * 64)
    selected = AttentionMask(selection="area", threshold=fraction).select(scores)
    assert torch.equal(selected, (order >= 64 - count).reshape(2, 8, 8))


def test_value_keeps_scores_at_the_threshold() -> None:
    scores = torch.tensor([[[0.9, 0.8999]]], dtype=torch.float64)
    assert VALUE.select(scores).tolist() == [[[True, False]]]


def test_mask_reads_the_normalised_image() -> None:
    """The classifier's own mean and std are applied, once: by hand, with a conv and a ReLU."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten())
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.25]
    classifier = Classifier(network, num_classes=64, mean=mean, std=std, attention_blocks=["1"])
    pixels = torch.rand(4, 3, 8, 8)

    def by_hand(x: Tensor) -> Tensor:
        energy = F.relu(network[0](x)).square().sum(1, keepdim=True)
        large = F.interpolate(energy, (8, 8), mode="bilinear", align_corners=False)
        low, high = large.amin((1, 2, 3), keepdim=True), large.amax((1, 2, 3), keepdim=True)
        return ((large - low) / (high - low) >= 0.6).float()

    channel = (1, 3, 1, 1)
    right = (pixels - torch.tensor(mean).reshape(channel)) / torch.tensor(std).reshape(channel)
    mask = AttentionMask(threshold=0.6)(classifier, pixels)
    assert mask.shape == (4, 1, 8, 8)
    assert torch.equal(mask, by_hand(right))
    assert not torch.equal(mask, by_hand(pixels))


@pytest.mark.parametrize("mask", [VALUE, AREA], ids=["value", "area"])
def test_mask_does_not_depend_on_the_batch(
    mask: AttentionMask, classifier: Classifier, images: Tensor
) -> None:
    whole = mask(classifier, images)
    assert whole.any()
    for order in ([0], [3, 1], [2, 3, 0, 1]):
        assert torch.equal(mask(classifier, images[order]), whole[order])


@pytest.mark.parametrize("mask", [VALUE, AREA], ids=["value", "area"])
def test_mask_carries_no_gradient(
    mask: AttentionMask, classifier: Classifier, images: Tensor
) -> None:
    classifier.requires_grad_()
    images.requires_grad_()
    result = mask(classifier, images)
    assert not result.requires_grad
    assert result.dtype == images.dtype
    assert set(result.unique().tolist()) == {0.0, 1.0}


def test_hooks_are_gone_after_a_call_and_never_grow(classifier: Classifier, images: Tensor) -> None:
    """The published code added hooks in every forward pass and removed none."""
    outer = classifier.network.relu.register_forward_hook(lambda *_: None)  # someone else's
    for _ in range(200):
        VALUE(classifier, images[:1])
        assert count_hooks(classifier) == 1
    outer.remove()


def test_hooks_are_gone_after_an_exception(classifier: Classifier, images: Tensor) -> None:
    with pytest.raises(RuntimeError):
        VALUE(classifier, images.expand(-1, 2, -1, -1))  # two channels, where one is expected
    with pytest.raises(KeyError), captured(classifier.network, ["relu", "absent"]):
        pass
    assert count_hooks(classifier) == 0


@pytest.mark.parametrize(
    ("image", "grid"),
    [
        ((224, 224), (14, 14)),
        ((32, 32), (8, 8)),
        ((28, 28), (7, 7)),
        ((224, 160), (14, 10)),
        ((160, 224), (10, 14)),
        ((384, 128), (12, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("prefix", [0, 1, 2, 5])
def test_tokens_become_the_patch_grid(
    image: tuple[int, int], grid: tuple[int, int], prefix: int
) -> None:
    """Row by row, the prefix dropped; there and back."""
    height, width = grid
    maps = torch.rand(2, 3, height, width)
    tokens = torch.cat([torch.full((2, prefix, 3), torch.inf), maps.flatten(2).mT], 1)
    assert torch.equal(tokens_to_grid(tokens, *image), maps)


@pytest.mark.parametrize(
    ("count", "image"),
    [(0, (8, 8)), (14 * 14 + 17, (224, 224)), (34, (7, 5)), (10, (31, 32))],
    ids=str,
)
def test_tokens_that_make_no_grid_are_refused(count: int, image: tuple[int, int]) -> None:
    """17 tokens before the grid are no prefix; 34 tokens hold no grid of 7 to 5."""
    with pytest.raises(InputError, match=rf"^{count} tokens .* {image[0]}x{image[1]} image"):
        tokens_to_grid(torch.zeros(1, count, 4), *image)


def test_tokens_and_maps_give_the_same_mask() -> None:
    maps = torch.rand(2, 3, 4, 4)
    tokens = torch.cat([torch.full((2, 1, 3), 9.0), maps.flatten(2).mT], 1)
    pixels = torch.rand(2, 1, 16, 16)
    mask = AttentionMask(threshold=0.5)
    from_tokens = mask(planted(tokens), pixels)
    assert from_tokens.any()
    assert torch.equal(from_tokens, mask(planted(maps), pixels))


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (torch.zeros(2, 7), r"\(2, 7\) for 2 images"),
        (torch.zeros(2, 3, 2, 4, 4), r"\(2, 3, 2, 4, 4\)"),
        (torch.zeros(17, 2, 3), r"\(17, 2, 3\) for 2 images"),  # tokens first, not the batch
        (torch.zeros(2, 98, 3), "98 tokens"),
        ((torch.zeros(2, 3, 4, 4), None), "a tuple"),
        ({"maps": torch.zeros(2, 3, 4, 4)}, "a dict"),
    ],
    ids=["two dims", "five dims", "batch second", "no grid", "tuple", "dict"],
)
def test_an_output_that_is_no_map_is_refused(output: object, says: str) -> None:
    classifier = planted(output)
    with pytest.raises(InputError, match=says) as caught:
        VALUE(classifier, torch.rand(2, 1, 8, 8))
    assert "\n" not in str(caught.value)
    assert count_hooks(classifier) == 0


def test_a_block_that_never_ran_is_refused() -> None:
    with pytest.raises(InputError, match=r"'idle' put out nothing"):
        AttentionMask(blocks=("idle",))(planted(None), torch.rand(2, 1, 8, 8))


def test_unknown_or_missing_blocks_are_refused(images: Tensor) -> None:
    nameless = Classifier(nn.Flatten(), num_classes=2, mean=[0.0], std=[1.0])
    with pytest.raises(InputError, match=r"mask\.blocks"):
        VALUE(nameless, images)
    with pytest.raises(InputError, match="layer9"):
        AttentionMask(blocks=("layer9",))(nameless, images)


def test_another_threads_call_is_not_captured() -> None:
    network = DeepMindWideResNet(10, 1).eval()
    with captured(network, ["relu"]) as outputs:
        mine = network(torch.rand(2, 3, 32, 32)), outputs["relu"]
        thread = threading.Thread(target=network, args=(torch.rand(2, 3, 16, 16),))
        thread.start()
        thread.join()
        assert outputs["relu"] is mine[1]


def test_an_activation_in_place_leaves_the_captured_map_alone() -> None:
    network = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    with captured(network, ["0"]) as outputs:
        network(-torch.ones(1, 1, 2, 2))
    assert (outputs["0"] == -1).all()
