"""Folded batch norm must be the same classifier: what follows directly behind a convolution is
folded, everything else stays, and an attention mask sees what it saw."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hetpure.acceleration import Acceleration, accelerate, accelerated_classifier, unaccelerated
from hetpure.attention import AttentionMask, Mask
from hetpure.classifiers import Classifier, FoldedClassifier, LastFeatures, ResNet, WideResNet
from hetpure.classifiers.folding import folded, pairs
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.defense_check import check_defense_gradient
from hetpure.evaluation.extent import extents
from hetpure.evaluation.facts import run_record
from hetpure.evaluation.rows import DefenseConfig, build_rows
from hetpure.purifiers import HeterogeneousPurifier
from hetpure.weights import load_classifier
from tests.hetpure.evaluation.runs import CONFIG, begin, small

FOLD = Acceleration(fold_batch_norm=True)


class Norms(TorchDispatchMode):
    """Counts batch norm's operations, forward and back."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.back = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if "batch_norm" in name:
            self.back += "backward" in name
            self.forward += "backward" not in name
        return func(*args, **(kwargs or {}))


def norms(classifier: Classifier, images: Tensor) -> tuple[int, int]:
    """Batch norm's operations of one answer and of one gradient."""
    point = images.clone().requires_grad_()
    with Norms() as counted:
        torch.autograd.grad(classifier(point).square().sum(), point)
    return counted.forward, counted.back


def trained(network: nn.Module) -> nn.Module:
    """With statistics and weights of batch norm that are not those of a fresh one."""
    generator = torch.Generator().manual_seed(5)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -0.5), (module.running_var, 0.5),
                                (module.weight, 0.5), (module.bias, -0.5)):  # fmt: skip
                assert tensor is not None
                tensor.data = low + torch.rand(len(tensor), generator=generator)
    return network.double().eval()


def resnet() -> Classifier:
    torch.manual_seed(0)
    network = trained(ResNet(depth=18, num_classes=4, in_channels=1, stem="cifar"))
    return Classifier(network, num_classes=4, mean=[0.4], std=[0.3]).double().eval()


def test_the_packaged_classifier_to_rounding() -> None:
    """The batch norm between the convolutions of each unit is folded, and that of the first unit,
    behind the stem: 4 of 7. What is left has an addition or a pooling before it."""
    plain = load_classifier("fashion_mnist_wrn")
    ours = FoldedClassifier(plain)
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    assert norms(plain, images) == (7, 7) and norms(ours, images) == (3, 3)
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-4, atol=1e-4)
    mask = AttentionMask()
    torch.testing.assert_close(
        mask.scores(ours, images), mask.scores(plain, images), rtol=0, atol=1e-5
    )
    names = [[name for name, _ in each.network.named_modules()] for each in (plain, ours)]
    assert names[0] == names[1] and ours.attention_blocks == plain.attention_blocks
    assert ours.plain is plain and not any(w.requires_grad for w in ours.parameters())
    ours.check_rounding((28, 28))


@pytest.mark.parametrize("block", ["layer2", "layer2.0.downsample", "bn1", "conv1"])
def test_a_resnet_in_float64(block: str) -> None:
    """All of its batch norm is folded, but for one whose convolution the mask looks at."""
    plain = resnet()
    ours = FoldedClassifier(plain, kept=[block])
    images = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    assert norms(plain, images) == (20, 20)
    assert norms(ours, images) == ((1, 1) if block == "conv1" else (0, 0))
    torch.testing.assert_close(ours(images), plain(images), rtol=1e-10, atol=1e-10)
    mask = AttentionMask(blocks=(block,), threshold=0.5)
    expected = mask.scores(plain, images)
    assert expected.std() > 0.05
    torch.testing.assert_close(mask.scores(ours, images), expected, rtol=0, atol=1e-9)
    assert torch.equal(mask(ours, images), mask(plain, images))
    torch.testing.assert_close(
        LastFeatures(ours)(images), LastFeatures(plain)(images), rtol=1e-10, atol=1e-10
    )
    ours.check_rounding((8, 8))


class Net(nn.Module):
    """A convolution, a batch norm, and what a forward pass makes of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **changes: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2)
        for name, module in changes.items():
            setattr(self, name, module)
        self.compute = forward
        trained(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.compute(self, x)


class Standardised(nn.Conv2d):
    """Its weight is made anew in each call."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.normalize(self.weight.flatten(1)).reshape(self.weight.shape)
        return F.conv2d(x, weight, self.bias, padding=1)


def hooked(net: Net) -> Net:
    net.conv.register_forward_hook(lambda module, inputs, output: 2 * output)
    return net


def direct(net: Any, x: Tensor) -> Tensor:
    out: Tensor = net.norm(net.conv(x))
    return out


def beside(net: Any, x: Tensor) -> Tensor:
    out = net.conv(x)
    return net.norm(out) + out  # type: ignore[no-any-return]


LEFT: dict[str, Net] = {
    "a ReLU between": Net(lambda net, x: net.norm(net.conv(x).relu())),
    "the convolution's output is used twice": Net(beside),
    "the convolution is called twice": Net(lambda net, x: net.norm(net.conv(net.conv(x)))),
    "the batch norm is called twice": Net(lambda net, x: net.norm(net.norm(net.conv(x)))),
    "its weight is read": Net(lambda net, x: net.norm(net.conv(x)) + net.conv.weight.sum()),
    "another kind of convolution": Net(direct, conv=Standardised(2, 2, 3, padding=1)),
    "statistics of the batch": Net(direct, norm=nn.InstanceNorm2d(2)),
    "a hook": hooked(Net(direct)),
}


@pytest.mark.parametrize("net", LEFT.values(), ids=LEFT.keys())
def test_what_does_not_follow_directly_stays(net: Net) -> None:
    assert pairs(Net(direct)) == [("conv", "norm")]
    assert pairs(net) == []
    with pytest.raises(InputError, match="no batch norm .* leave .*fold_batch_norm at false"):
        folded(net)


def test_a_weight_that_is_shared_is_folded_once() -> None:
    """The other convolution keeps it."""
    net = Net(lambda net, x: net.other(net.norm(net.conv(x))), other=nn.Conv2d(2, 2, 3, padding=1))
    net.other.weight = net.conv.weight  # type: ignore[union-attr]
    x = torch.rand(2, 2, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(folded(net)(x), net(x), rtol=1e-12, atol=1e-12)


def test_a_forward_pass_that_depends_on_values_is_refused() -> None:
    net = Net(lambda net, x: direct(net, x if x.sum() > 0 else -x))
    with pytest.raises(InputError, match="torch.fx cannot trace the classifier"):
        folded(net)


def test_a_wrong_fold_is_refused() -> None:
    """One channel's weights off by a hundredth."""
    ours = FoldedClassifier(resnet())
    ours.network.conv1.weight.data[3] *= 1.01  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="no rounding: leave acceleration.fold_batch_norm"):
        ours.check_rounding((8, 8))


def test_it_is_off_by_default_and_told(denoiser: Denoiser, classifier: Classifier) -> None:
    """The diffusion network is left alone, and the plain classifier is found again."""
    assert accelerated_classifier(classifier, Acceleration()) is classifier
    assert accelerate(denoiser, FOLD) is denoiser
    assert FOLD.active and FOLD.describe() == "float32, the classifier's batch norm folded"
    fast = accelerated_classifier(classifier, FOLD)
    assert isinstance(fast, FoldedClassifier)
    defense = Defense(fast)
    assert unaccelerated(defense).classifier is classifier and defense.classifier is fast
    double = copy.deepcopy(defense).double()
    assert unaccelerated(double).classifier is double.classifier.plain


def test_a_run_folds_and_says_so(tmp_path: Path) -> None:
    """One folded classifier for all rows, checked before anything else, in the run's identity and
    among what is not as in a full evaluation. The gradient check holds it against the plain one."""
    built, images = small(replace(CONFIG, acceleration=FOLD))
    run, _ = begin(tmp_path / "right", built, images, acceleration=FOLD)
    (ours,) = {row.defense.classifier for row in run.rows.values()}
    assert isinstance(ours, FoldedClassifier)
    facts = run_record(run)["facts"]
    assert facts["run"]["network_call"] == FOLD.describe()
    assert f"the diffusion network's calls: {FOLD.describe()}" in facts["weaker_than_full"]
    assert run.identity()["config"]["acceleration"]["fold_batch_norm"] is True

    block, defense = run.read(0), run.rows["plain"].attacked
    settings: Any = {"bound": 1e-3, "extent": extents(defense.plan, len(block.images))[-1]}
    check = check_defense_gradient(defense, block.images, block.samples, 0, **settings)
    assert check.cosine_to_float32 is not None and 1 - 1e-5 < check.cosine_to_float32 <= 1 + 1e-9
    weight = ours.network.block3.layer[0].conv1.weight  # type: ignore[union-attr, index]
    weight.data.neg_()  # type: ignore[union-attr, operator]
    wrong = check_defense_gradient(defense, block.images, block.samples, 0, **settings)
    assert not wrong.passed and "cosine to float32" in str(wrong.failure)
    with pytest.raises(InputError, match="which is no rounding"):
        begin(tmp_path / "wrong", built, images, acceleration=FOLD)


def test_a_mask_that_may_look_anywhere_is_refused(
    denoiser: Denoiser, classifier: Classifier
) -> None:
    class Elsewhere(Mask):
        def __call__(self, *arguments: Any, **settings: Any) -> Tensor:
            raise AssertionError("it is not asked")

    purifier = HeterogeneousPurifier(steps=4)
    for mask, refused in ((Elsewhere(), True), (AttentionMask(blocks=("conv1",)), False)):
        rows = {"row": DefenseConfig(purifier, "ddpm", mask)}
        with pytest.raises(InputError, match="Elsewhere") if refused else nullcontext():
            build_rows(rows, classifier, {}, {"ddpm": denoiser}, FOLD)
        build_rows(rows, classifier, {}, {"ddpm": denoiser}, Acceleration())


def test_wide_resnets_keep_what_follows_an_addition() -> None:
    """WRN-16-1: the first unit has no shortcut of its own, so its input is looked at twice."""
    wide = WideResNet(depth=16, widen_factor=1, num_classes=4, in_channels=1).eval()
    units = [f"block{block}.layer.{unit}" for block in (1, 2, 3) for unit in (0, 1)]
    assert pairs(wide) == [(f"{unit}.conv1", f"{unit}.bn2") for unit in units]
