"""Where a classifier looks, as a mask: HetPure (CVPR 2025, arXiv 2503.01407), attention maps."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hetpure.classifiers import Classifier
from hetpure.errors import FieldError, InputError, check_choice, check_fraction, check_positive
from hetpure.noise import BatchNoise, Noise, Purpose, Stream, check_seed

Normalisation = Literal["minmax", "softmax"]
Selection = Literal["value", "area"]
Size = tuple[int, int]  # height and width, pixels
# Class, distillation and register tokens; published models have at most a handful.
MOST_PREFIX_TOKENS = 16
NO_BLOCKS = (
    "the classifier names no modules for the attention mask: convert it with --attention_blocks, or"
    " give its blocks (mask.blocks)"
)
SOFTNESS = 0.1  # of a relaxed mask's edge, as a share of the scores' span
Placement = Literal["attended", "inverted", "random", "shifted"]


@contextmanager
def captured(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of the named modules in calls that this thread makes inside the block; hooks end
    with it. Copies: an in-place activation that follows cannot change what was captured."""
    outputs: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    caller = get_ident()

    def keep(name: str, module: nn.Module, arguments: object, output: Tensor) -> None:
        if get_ident() == caller:
            outputs[name] = output.clone() if isinstance(output, Tensor) else output

    with ExitStack() as hooks:
        for name in names:
            hooks.enter_context(modules[name].register_forward_hook(partial(keep, name)))
        yield outputs


def attention_map(activation: Tensor, power: float = 2.0, root: bool = False) -> Tensor:
    """A = sum_c |a_c|^p of an activation (B, C, h, w), as (B, h, w); optionally its p-th root."""
    summed = activation.abs().pow(power).sum(1)
    return summed.pow(1 / power) if root else summed


def tokens_to_grid(tokens: Tensor, height: int, width: int) -> Tensor:
    """A transformer's tokens (B, N, D) as a map (B, D, h, w) for an image of height x width.

    The map is the largest grid of the image's aspect ratio with h w <= N; the tokens before it
    (class, distillation, registers) are dropped. No patch size is needed, but a k x k grid after
    2 k + 1 or more such tokens would be taken for a larger one.
    """
    across = math.gcd(height, width)
    rows, columns = height // across, width // across
    count = tokens.shape[1]
    scale = math.isqrt(count // (rows * columns))
    rows, columns = scale * rows, scale * columns
    prefix = count - rows * columns
    if scale == 0 or prefix > MOST_PREFIX_TOKENS:
        raise InputError(
            f"{count} tokens make no patch grid of a {height}x{width} image: with at most "
            f"{MOST_PREFIX_TOKENS} tokens before it, none of that aspect ratio fits"
        )
    return tokens[:, prefix:].transpose(1, 2).reshape(len(tokens), -1, rows, columns)


def as_maps(name: str, output: object, pixels: Tensor) -> Tensor:
    """What block `name` put out for images (B, C, H, W), as maps (B, D, h, w), or an InputError."""
    if output is None:
        raise InputError(f"attention block {name!r} put out nothing when the classifier ran")
    if not isinstance(output, Tensor):
        kind = type(output).__name__
        raise InputError(f"attention block {name!r} puts out a {kind}: name one with one tensor")
    shape = (*output.shape,)
    if len(shape) not in (3, 4) or shape[0] != len(pixels):
        raise InputError(
            f"attention block {name!r} puts out {shape} for {len(pixels)} images: needed are maps "
            "(B, C, h, w) or tokens (B, N, D)"
        )
    return output if len(shape) == 4 else tokens_to_grid(output, *pixels.shape[-2:])


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


class Mask(ABC):
    """Which pixels get the strong noise. `control`: it goes by the images' sample ids too, which no
    defence may know; experiments do."""

    control = False

    def check(self, images: Tensor, samples: Tensor) -> None:
        """InputError where it is not about these images (N, C, H, W), pixel [0, 1], and ids."""
        return  # a function of pixels is about all images

    @abstractmethod
    def __call__(
        self,
        classifier: Classifier,
        pixels: Tensor,
        samples: Tensor | None = None,
        size: Size | None = None,
        *,
        soft: bool = False,
    ) -> Tensor:
        """(B, 1, H, W) mask of 0 and 1 in the dtype of the images, pixel [0, 1].

        `samples` are the images' ids (B,); only controls need them. `size` is the mask's (H, W)
        where the images are purified at another one than their own. A `soft` mask has a gradient in
        the images, where it is a function of them.
        """


@dataclass(frozen=True)
class AttentionMask(Mask):
    """Which pixels a classifier attends to.

    Args:
        blocks: module names inside the classifier's network; None takes the classifier's own.
        power: exponent p of the activations.
        root: take the p-th root of the channel sum.
        normalisation: of each map over its pixels.
        selection: `value` keeps scores >= threshold (0.9 for CIFAR-like images); `area` keeps
            that fraction of the pixels (0.15 for ImageNet).
        threshold: tau, or the fraction.
        placement: `attended` is the method. The others are controls with as many pixels for each
            image: `inverted` takes those with the lowest scores, `random` any, `shifted` moves the
            mask around the image's edges. The last two are fixed for an image by its sample id, so
            an attacker knows them.
        seed: of `random` and `shifted`.
    """

    blocks: tuple[str, ...] | None = None
    power: float = 2.0
    root: bool = False
    normalisation: Normalisation = "minmax"
    selection: Selection = "value"
    threshold: float = 0.9
    placement: Placement = "attended"
    seed: int = 0

    def __post_init__(self) -> None:
        check_fraction(self, "threshold")
        check_choice(self, "normalisation", Normalisation)
        check_choice(self, "selection", Selection)
        check_choice(self, "placement", Placement)
        check_positive(self, "power")
        check_seed(self)

    @property
    def control(self) -> bool:  # type: ignore[override]
        return self.placement in ("random", "shifted")

    def scores(self, classifier: Classifier, pixels: Tensor, size: Size | None = None) -> Tensor:
        """(B, H, W) elementwise maximum over the blocks' normalised maps, at image size or the
        (H, W) given."""
        blocks = self.blocks or classifier.attention_blocks
        if not blocks:
            raise InputError(NO_BLOCKS)
        unknown = set(blocks) - {name for name, _ in classifier.network.named_modules()}
        if unknown:
            raise FieldError(self, "blocks", f"{sorted(unknown)} are no modules of the classifier")
        with captured(classifier.network, blocks) as activations:
            classifier(pixels)
        maps = []
        for name in blocks:
            maps_of_block = as_maps(name, activations.get(name), pixels)
            small = attention_map(maps_of_block, self.power, self.root)
            large = F.interpolate(
                small[:, None], size or pixels.shape[-2:], mode="bilinear", align_corners=False
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

    def relaxed(self, scores: Tensor, mask: Tensor) -> Tensor:
        """A smooth stand-in (B, H, W) for the selection of `mask` (B, H, W) from scores: a sigmoid
        around the score where each image's mask begins, a tenth of the scores' span wide. The
        scores' span and that limit are held fixed. A mask placed at random has none."""
        signed = scores
        if self.placement == "random":
            return scores * 0
        if self.placement == "inverted":
            signed = -scores
        held = signed.detach().flatten(1)
        span = held.amax(1) - held.amin(1)
        if self.selection == "value" and self.placement != "inverted":
            limit = torch.full_like(span, self.threshold)
        else:  # the lowest score among those selected
            inside = torch.where(mask.flatten(1), held, torch.full_like(held, math.inf))
            limit = torch.minimum(inside.amin(1), held.amax(1))
        width = SOFTNESS * torch.where(span > 0, span, torch.ones_like(span))
        return torch.sigmoid((signed - limit[:, None, None]) / width[:, None, None])

    def place(self, mask: Tensor, scores: Tensor, samples: Tensor | None) -> Tensor:
        """A selected mask (B, H, W) where `placement` wants it, with as many pixels an image."""
        if self.placement == "attended":
            return mask
        if self.placement == "inverted":
            return _lowest(scores, mask)
        noise = self._noise(samples, mask)
        if self.placement == "random":
            return _lowest(noise.uniform(Purpose.MASK, scores.double()), mask)
        return self._shifted(mask, noise)

    @staticmethod
    def _shifted(mask: Tensor, noise: BatchNoise) -> Tensor:
        """The mask (B, H, W) moved around the image's edges."""
        height, width = mask.shape[1:]
        down = noise.integers(Purpose.MASK, height, step=0)[:, None, None]
        right = noise.integers(Purpose.MASK, width, step=1)[:, None, None]
        row = (torch.arange(height, device=mask.device)[:, None] + down) % height
        column = (torch.arange(width, device=mask.device)[None, :] + right) % width
        image = torch.arange(len(mask), device=mask.device)[:, None, None]
        return mask[image, row, column]

    def _noise(self, samples: Tensor | None, mask: Tensor) -> BatchNoise:
        """The noise of the placements that are fixed for an image."""
        if samples is None:
            raise InputError(f"a mask placed {self.placement} needs the images' sample ids")
        if len(samples) != len(mask):
            raise ValueError(f"{len(samples)} sample ids given for a batch of {len(mask)}")
        return Noise.of(self.seed, Stream.DW_BOX).on(samples.to(mask.device))

    def __call__(
        self,
        classifier: Classifier,
        pixels: Tensor,
        samples: Tensor | None = None,
        size: Size | None = None,
        *,
        soft: bool = False,
    ) -> Tensor:
        """A soft mask's gradient is straight through: its value is the hard mask, its derivative
        that of `relaxed`, through all of the classifier's activations."""
        scores = self.scores(classifier, pixels if soft else pixels.detach(), size)
        selected = self.select(scores.detach())
        placed = self.place(selected, scores.detach(), samples)
        mask = placed.to(pixels.dtype)
        if soft:
            relaxed = self.relaxed(scores, placed if self.placement == "inverted" else selected)
            if self.placement == "shifted":
                relaxed = self._shifted(relaxed, self._noise(samples, placed))
            mask = mask + (relaxed - relaxed.detach())
        return mask[:, None]


def _lowest(values: Tensor, like: Tensor) -> Tensor:
    """For each image as many pixels as `like` (B, H, W) has, those with the lowest values."""
    rank = values.flatten(1).argsort(dim=1, stable=True).argsort(dim=1)
    count = like.flatten(1).sum(1, keepdim=True)
    return (rank < count).reshape(like.shape)
