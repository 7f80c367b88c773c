"""Where a classifier looks, as a mask: HetPure (CVPR 2025, arXiv 2503.01407), attention maps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.classifiers import Classifier
from hetpure.errors import InputError, check_choice

Normalisation = Literal["minmax", "softmax"]
Selection = Literal["value", "area"]


@contextmanager
def captured(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of the named modules in calls made inside the block; hooks end with it."""
    outputs: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    handles = []

    def keep(name: str) -> None:
        def hook(module: nn.Module, arguments: object, output: Tensor) -> None:
            outputs[name] = output

        handles.append(modules[name].register_forward_hook(hook))

    try:
        for name in names:
            keep(name)
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def attention_map(activation: Tensor, power: float = 2.0, root: bool = False) -> Tensor:
    """A = sum_c |a_c|^p of an activation (B, C, h, w), as (B, h, w); optionally its p-th root."""
    summed = activation.abs().pow(power).sum(1)
    return summed.pow(1 / power) if root else summed


def normalise(maps: Tensor, how: Normalisation) -> Tensor:
    """Each (H, W) map of (B, H, W) to [0, 1]; a constant map becomes zeros and selects nothing.

    `minmax` spans [0, 1]. `softmax` sums to 1 over space, so its values are of the order
    1 / (H W) and at most one pixel can exceed one half: choose the threshold accordingly.
    """
    flat = maps.flatten(1)
    low, high = flat.amin(1, keepdim=True), flat.amax(1, keepdim=True)
    # Interpolation of a constant map leaves it constant up to rounding only.
    constant = high - low <= 8 * torch.finfo(maps.dtype).eps * high.abs()
    if how == "minmax":
        scaled = (flat - low) / torch.where(constant, torch.ones_like(high), high - low)
    else:
        scaled = flat.softmax(1)
    return torch.where(constant, torch.zeros_like(flat), scaled).reshape(maps.shape)


@dataclass(frozen=True)
class AttentionMask:
    """Which pixels a classifier attends to.

    Args:
        blocks: module names inside the classifier's network; None takes the classifier's own.
        power: exponent p of the activations.
        root: take the p-th root of the channel sum.
        normalisation: of each map over its pixels.
        selection: `value` keeps scores >= threshold (0.9 for CIFAR-like images); `area` keeps
            that fraction of the pixels (0.15 for ImageNet).
        threshold: tau, or the fraction.
    """

    blocks: tuple[str, ...] | None = None
    power: float = 2.0
    root: bool = False
    normalisation: Normalisation = "minmax"
    selection: Selection = "value"
    threshold: float = 0.9

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"mask threshold must be in (0, 1], got {self.threshold}")
        check_choice("mask normalisation", self.normalisation, Normalisation)
        check_choice("mask selection", self.selection, Selection)
        if self.power <= 0:
            raise InputError(f"mask power must be > 0, got {self.power}")

    def scores(self, classifier: Classifier, pixels: Tensor) -> Tensor:
        """(B, H, W) elementwise maximum over the blocks' normalised maps at image size."""
        blocks = self.blocks or classifier.attention_blocks
        if not blocks:
            raise InputError("this classifier names no attention blocks: set mask.blocks")
        unknown = set(blocks) - {name for name, _ in classifier.network.named_modules()}
        if unknown:
            raise InputError(f"mask.blocks {sorted(unknown)} are no modules of the classifier")
        with captured(classifier.network, blocks) as activations:
            classifier(pixels)
        maps = []
        for name in blocks:
            small = attention_map(activations[name], self.power, self.root)
            large = F.interpolate(
                small[:, None], pixels.shape[-2:], mode="bilinear", align_corners=False
            )
            maps.append(normalise(large[:, 0], self.normalisation))
        return torch.stack(maps).amax(0)

    def select(self, scores: Tensor) -> Tensor:
        """Scores (B, H, W) to a boolean mask of the same shape.

        Thresholding the maximum over blocks equals the union of the blocks' thresholded maps.
        """
        if self.selection == "value":
            return scores >= self.threshold
        flat = scores.flatten(1)
        count = round(self.threshold * flat.shape[1])
        top = torch.zeros_like(flat, dtype=torch.bool).scatter(
            1, flat.topk(count, dim=1).indices, True
        )
        return (top & (flat.amax(1, keepdim=True) > 0)).reshape(scores.shape)

    def __call__(self, classifier: Classifier, pixels: Tensor) -> Tensor:
        """(B, 1, H, W) mask of 0 and 1 in the dtype of the images, pixel [0, 1]; no gradient."""
        mask = self.select(self.scores(classifier, pixels.detach()))
        return mask[:, None].to(pixels.dtype)
