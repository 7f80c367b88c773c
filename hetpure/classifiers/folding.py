"""Batch norm folded into the convolution before it.

In eval mode batch norm is y -> a (y - m) + b, with numbers a, m and b of each channel. Behind a
convolution y = w * x + c it gives the convolution (a w) * x + a (c - m) + b: the same function but
for rounding, with one pass over the activations less, forward and back.
"""

import copy
from collections import Counter
from collections.abc import Collection

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from hetpure.classifiers.classifier import Classifier
from hetpure.errors import InputError
from hetpure.noise import Noise, Purpose, Stream

LEAVE_OUT = "leave acceleration.fold_batch_norm at false"
CHECKED = 4  # images


class FoldedClassifier(Classifier):
    """A classifier with batch norm folded into its convolutions; `plain` is the classifier itself,
    with whose gradients its own are compared.

    Modules keep their names; a batch norm that is folded becomes `nn.Identity`. The activations of
    the attention blocks, and of the modules `kept`, stay what they were: a convolution whose own
    output is among them keeps its batch norm. InputError where nothing can be folded.
    """

    def __init__(self, plain: Classifier, kept: Collection[str] = ()) -> None:
        super().__init__(
            folded(plain.network, {*plain.attention_blocks, *kept}),
            num_classes=plain.num_classes,
            mean=plain.mean.flatten().tolist(),
            std=plain.std.flatten().tolist(),
            attention_blocks=plain.attention_blocks,
        )
        self.mean, self.std = plain.mean, plain.std
        self.plain = plain
        self.eval().requires_grad_(False)

    def check_rounding(self, size: tuple[int, int]) -> None:
        """InputError unless logits agree with the plain classifier's, to rounding, for a fixed
        random batch of images of this height and width.

        Rounding adds up over layers, to some 1e-6 of the logits in float32. A batch norm folded
        wrongly moves them by its own size. The root of the format's precision lies between.
        """
        noise = Noise.of(0, Stream.PROBE).on(torch.arange(CHECKED, device=self.mean.device))
        pixels = noise.uniform(Purpose.START, self.mean.expand(CHECKED, -1, *size))
        with torch.no_grad():
            ours, exact = self(pixels), self.plain(pixels)
        apart = float((ours - exact).norm() / exact.norm())
        if not apart <= torch.finfo(exact.dtype).eps ** 0.5:
            raise InputError(
                f"with its batch norm folded the classifier's logits are {apart:.1e} away from its"
                f" own, which is no rounding: {LEAVE_OUT}"
            )


def folded(network: nn.Module, kept: Collection[str] = ()) -> nn.Module:
    """A frozen copy of a network in which every batch norm that `pairs` finds is folded."""
    other = copy.deepcopy(network).eval().requires_grad_(False)
    found = pairs(other, kept)
    if not found:
        raise InputError(
            "no batch norm of the classifier follows directly behind a convolution, so none can be"
            f" folded: {LEAVE_OUT}"
        )
    for first, second in found:
        convolution, norm = other.get_submodule(first), other.get_submodule(second)
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        dtype = convolution.weight.dtype
        # In float64, so that a weight is rounded once. Copies: weights may be shared.
        fused = fuse_conv_bn_eval(
            copy.deepcopy(convolution).double(), copy.deepcopy(norm).double()
        ).to(dtype)
        for name, module in ((first, fused), (second, nn.Identity())):
            parent, _, own = name.rpartition(".")
            setattr(other.get_submodule(parent), own, module)
    return other.requires_grad_(False)


def pairs(network: nn.Module, kept: Collection[str] = ()) -> list[tuple[str, str]]:
    """The names of every convolution and batch norm of a network in eval mode where one feeds the
    other and nothing else looks at either.

    They are plain `nn.Conv2d` and `nn.BatchNorm2d` without hooks, each called once. The
    convolution's output goes to the batch norm alone, and no module of `kept` puts it out. Whose
    weights the forward pass reads itself is left as it is. InputError where the forward pass cannot
    be traced.
    """
    try:
        graph = fx.Tracer().trace(network)
    except Exception as error:  # whatever a foreign forward pass does with what is no tensor
        raise InputError(
            f"torch.fx cannot trace the classifier ({type(error).__name__}): its forward pass"
            f" depends on values, so no batch norm is known to be foldable: {LEAVE_OUT}"
        ) from None
    modules = dict(network.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    attributes = [str(node.target) for node in graph.nodes if node.op == "get_attr"]
    times = Counter(id(modules[str(node.target)]) for node in calls)
    read = {id(modules[name.rpartition(".")[0]]) for name in attributes}

    def alone(module: nn.Module) -> bool:
        hooked = module._forward_hooks or module._forward_pre_hooks
        return times[id(module)] == 1 and id(module) not in read and not hooked

    def looked_at(first: str, second: str) -> bool:
        """Whether a module that is looked at puts out what the convolution does."""
        return any(
            f"{first}.".startswith(f"{name}.") and not second.startswith(f"{name}.")
            for name in kept
        )

    found = []
    for node in calls:
        before = node.args[0] if len(node.args) == 1 and not node.kwargs else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        first, second = str(before.target), str(node.target)
        convolution, norm = modules[first], modules[second]
        if (
            type(convolution) is nn.Conv2d
            and type(norm) is nn.BatchNorm2d
            and norm.running_mean is not None
            and list(before.users) == [node]
            and alone(convolution)
            and alone(norm)
            and not looked_at(first, second)
        ):
            found.append((first, second))
    return found
