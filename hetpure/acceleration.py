"""Networks' calls, faster: the diffusion network in low precision, channels last, compiled; the
classifier with batch norm folded. Off by default, and held against the plain networks by the
gradient check."""

import copy
import math
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hetpure.classifiers import Classifier, FoldedClassifier
from hetpure.defense import Defense
from hetpure.denoiser import Denoiser
from hetpure.errors import check_choice
from hetpure.gradient_check import cosines

Precision = Literal["float32", "bfloat16", "float16"]
Asked = Precision | Literal["auto"]
BATCH, REPEATS, LEAST_SIZE = 8, 3, 32  # of what is timed for `auto`
Compile = Literal["off", "default", "reduce-overhead", "max-autotune"]


@dataclass(frozen=True)
class Acceleration:
    """How networks are called.

    Args:
        precision: of the diffusion network's convolutions, products and activations, by autocast;
            the purifier's own steps stay in float32. auto is for CPUs: bfloat16 where a gradient of
            every network is faster and as good in it, else float32.
        channels_last: memory format of its weights and activations.
        compile: mode of torch.compile; `reduce-overhead` and `max-autotune` use CUDA graphs where
            they can. The first calls compile.
        fold_batch_norm: fold the classifier's batch norm into its convolutions, wherever it follows
            directly behind one; see `hetpure.classifiers.folding`.
    """

    precision: Asked = "float32"
    channels_last: bool = False
    compile: Compile = "off"
    fold_batch_norm: bool = False

    def __post_init__(self) -> None:
        if self.precision != "auto":
            check_choice(self, "precision", Precision)
        check_choice(self, "compile", Compile)

    @property
    def active(self) -> bool:
        """Whether anything differs from the plain call."""
        return self != Acceleration()

    def describe(self) -> str:
        """In a few words."""
        parts: list[str] = [self.precision] if self.precision != "float32" else []
        parts += ["channels last"] if self.channels_last else []
        parts += [f"compiled ({self.compile})"] if self.compile != "off" else []
        folded = ["the classifier's batch norm folded"] if self.fold_batch_norm else []
        return ", ".join([*(parts or ["float32"]), *folded])


def accelerate(denoiser: Denoiser, acceleration: Acceleration) -> Denoiser:
    """The denoiser with its network called so; the one given stays as it is."""
    if not replace(acceleration, fold_batch_norm=False).active:
        return denoiser
    return _with_network(denoiser, FastNetwork(denoiser.network, acceleration))


def accelerated_classifier(
    classifier: Classifier, acceleration: Acceleration, kept: Collection[str] = ()
) -> Classifier:
    """The classifier called so; the one given stays as it is. What its modules `kept` put out stays
    the same."""
    return FoldedClassifier(classifier, kept) if acceleration.fold_batch_norm else classifier


def best_precision(
    acceleration: Acceleration, denoisers: Iterable[Denoiser], device: torch.device, bound: float
) -> Precision:
    """What `auto` stands for on this machine, for networks on the device. A gradient is as good
    where its mean cosine to float32's is at least `bound`."""
    pays = device.type == "cpu" and all(
        _bfloat16_pays(denoiser, acceleration, bound) for denoiser in denoisers
    )
    return "bfloat16" if pays else "float32"


def _bfloat16_pays(denoiser: Denoiser, acceleration: Acceleration, bound: float) -> bool:
    """Whether a gradient of one call takes less than nine tenths of float32's time, and is as
    good."""
    config: Any = denoiser.network.config
    size = config.get("sample_size") or LEAST_SIZE
    shape = (BATCH, config["in_channels"], *((size, size) if isinstance(size, int) else size))
    x = torch.arange(math.prod(shape)).sin().reshape(shape)
    times, gradients = {}, {}
    precisions: tuple[Precision, ...] = ("float32", "bfloat16")
    for precision in precisions:
        fast = accelerate(denoiser, replace(acceleration, precision=precision))

        def gradient(fast: Denoiser = fast) -> Tensor:
            point = x.detach().requires_grad_()
            with torch.enable_grad():
                output = fast(point, len(denoiser.schedule) // 4).square().sum()
            return torch.autograd.grad(output, point)[0]

        gradients[precision] = gradient()  # warms up too
        began = time.perf_counter()
        for _ in range(REPEATS):
            gradient()
        times[precision] = time.perf_counter() - began
    cosine = float(cosines(gradients["bfloat16"], gradients["float32"]).mean())
    return times["bfloat16"] < 0.9 * times["float32"] and cosine >= bound


def unaccelerated(defense: Defense) -> Defense:
    """The defence with its networks as they were before they were accelerated: the defence itself
    where none is."""
    denoiser, classifier = defense.denoiser, defense.classifier
    if denoiser is not None and isinstance(denoiser.network, FastNetwork):
        defense = defense.copy(_with_network(denoiser, denoiser.network.plain))
    if isinstance(classifier, FoldedClassifier):
        defense = defense.copy(classifier=classifier.plain)
    return defense


def _with_network(denoiser: Denoiser, network: nn.Module) -> Denoiser:
    return Denoiser(network, denoiser.schedule, denoiser.prediction_type, denoiser.sigma_data)


def compiled_cosine(
    call: Callable[[Tensor], Tensor], x: Tensor, weights: Sequence[Tensor] = ()
) -> float:
    """Cosine between the gradient through compiled modules and through the same modules run as they
    are written: in x (B, ...), the mean over its images, or where `weights` are given in them, all
    together. Where it is not near 1 the compiler is wrong: torch 2.13 is on CPUs for some blocks of
    diffusers' UNets, whose answers agree all the same."""

    def gradient() -> Tensor:
        point = x.detach().requires_grad_(not weights)
        with torch.enable_grad():
            size = call(point).float().square().sum()
        if weights:
            gradients = torch.autograd.grad(size, weights)
            return torch.cat([part.flatten() for part in gradients])[None]
        return torch.autograd.grad(size, point)[0]

    ours = gradient()
    with torch.compiler.set_stance("force_eager"):
        exact = gradient()
    return float(cosines(ours, exact).mean())


class FastNetwork(nn.Module):
    """A copy of a diffusion network, called as an `Acceleration` says; float32 in and out. `plain`
    is the network itself, with whose gradients its own are compared."""

    def __init__(self, network: nn.Module, acceleration: Acceleration) -> None:
        super().__init__()
        self.plain = network
        self.config: Any = getattr(network, "config", {})
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.dtype = getattr(torch, acceleration.precision)
        self.channels_last = acceleration.channels_last
        if self.dtype != torch.float32:
            # As autocast would at every call: its cache leaves frozen weights out, and a tape
            # would keep a copy of them for each call.
            for module in self.network.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    module.to(self.dtype)
        if self.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.compiled = acceleration.compile != "off"
        if self.compiled:
            # Static: what a shape is checked with is what it is attacked with.
            self.network.compile(mode=acceleration.compile, dynamic=False)
        # float16 has no numbers for the small gradients of a sure classifier; and what CUDA graphs
        # return is written over by their next call.
        self.guards = self.dtype == torch.float16 or acceleration.compile not in ("off", "default")

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The network's output (B, C, H, W) in the dtype of x."""
        inner = x.clone() if self.guards else x
        given = inner.contiguous(memory_format=torch.channels_last) if self.channels_last else inner
        low = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype if low else None, enabled=low):
            output = self.network(given, timesteps)
        prediction: Tensor = output if isinstance(output, Tensor) else output.sample
        prediction = prediction.to(x.dtype, memory_format=torch.contiguous_format)
        if not self.guards:
            return prediction
        if prediction.requires_grad:
            _scale_inside(inner, prediction)
        return prediction.clone()


def _scale_inside(x: Tensor, prediction: Tensor) -> None:
    """Going back from prediction to x, each image's gradient is brought to a largest value near 1,
    by a power of two, which is taken back at x."""
    scale = x.new_ones(())

    def up(gradient: Tensor) -> Tensor:
        nonlocal scale
        largest = gradient.abs().amax((1, 2, 3), keepdim=True)
        scale = torch.where(largest > 0, largest, torch.ones_like(largest)).log2().round().exp2()
        return gradient / scale

    prediction.register_hook(up)  # type: ignore[no-untyped-call]
    x.register_hook(lambda gradient: gradient * scale)  # type: ignore[no-untyped-call]
