"""The filter attack of DiffBreak (Kassis, Hengartner & Yu 2024, arXiv 2411.16598, LF): learned
filters, one for each pixel, under a bound on a perceptual distance."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib import import_module
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.attacks.attack import Attack
from hetpure.attacks.gradient import Ascent, GradientAttack
from hetpure.attacks.stadv import adam_step
from hetpure.attention import as_maps, captured
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.errors import FieldError, InputError, check_at_least, check_positive
from hetpure.noise import Group
from hetpure.numbers import Number
from hetpure.trust import check_download, import_named

FEATURES = "features"  # the distance in the features of the attacked classifier
LPIPS = "hetpure.attacks.filters.lpips"
TINY = 1e-12
HALVINGS = 6  # of the way back to the image, where a step leaves the bound
FAR = 0.8  # share of the way that is left, below which the step was too long
Distance = Callable[[Tensor, Tensor], Tensor]
Parameters = tuple[Tensor, ...]  # the offset (B, C, H, W), then (B, K^2 - 1, H, W) for each size K


def windows(images: Tensor, size: int) -> Tensor:
    """(B, C, K^2 - 1, H, W): for each pixel of images (B, C, H, W) the others of the K x K window
    around it, row by row; beyond the border lies the border's value."""
    reach = size // 2
    padded = F.pad(images, (reach, reach, reach, reach), mode="replicate")
    count, channels, height, width = images.shape
    around = F.unfold(padded, size).reshape(count, channels, size * size, height, width)
    others = [place for place in range(size * size) if place != size * size // 2]
    return around[:, :, others]


def likeness(images: Tensor, size: int, sigma: float) -> Tensor:
    """(B, K^2 - 1, H, W): exp(-|x_p - x_q|^2 / (2 sigma^2)) of each pixel p and the others q of its
    window, the colour kernel of a bilateral filter (Tomasi & Manduchi 1998)."""
    distance = (windows(images, size) - images[:, :, None]).square().sum(1)
    return (-distance / (2 * sigma**2)).exp()


def filtered(images: Tensor, weights: Tensor, guide: Tensor) -> Tensor:
    """Images (B, C, H, W) under a filter of non-negative weights that sum to 1 for each pixel.

    With a_pq = `weights` and c_pq = `guide`, both (B, K^2 - 1, H, W), pixel q of the window gets
    the weight w_pq = a_pq c_pq / (1 - sum_q a_pq + sum_q a_pq c_pq), and p itself the rest. It is
    the guided filter of the weights a_pq and 1 - sum_q a_pq, in a form whose value is exactly the
    image where all a_pq are 0, with a derivative there: x_p + sum_q w_pq (x_q - x_p).
    """
    strength = weights * guide
    whole = 1 - weights.sum(1, keepdim=True) + strength.sum(1, keepdim=True)
    share = strength / whole.clamp(min=TINY)
    size = round((weights.shape[1] + 1) ** 0.5)
    moved: Tensor = images + (share[:, None] * (windows(images, size) - images[:, :, None])).sum(2)
    return moved.clamp(0, 1)  # against rounding


def feature_distance(classifier: Classifier, images: Tensor, originals: Tensor) -> Tensor:
    """(B,): how far images (B, C, H, W) are from their originals in the classifier's features.

    It is LPIPS (Zhang et al. 2018, eq. 1) with this classifier and without learned weights of the
    channels: at each place of a map |f / |f| - g / |g||^2, the mean over places, and the mean over
    the classifier's attention blocks. It lies in [0, 4].
    """
    return apart(features(classifier, images), features(classifier, originals))


def features(classifier: Classifier, images: Tensor) -> list[Tensor]:
    """The maps (B, D, h, w) of the classifier's attention blocks, with L2 norm 1 at every place."""
    names = classifier.attention_blocks
    with captured(classifier.network, names) as outputs:
        classifier(images)
    return [unit(as_maps(name, outputs.get(name), images)) for name in names]


def apart(first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
    """The mean (B,) over pairs of maps and over their places of the squared difference."""
    pairs = zip(first, second, strict=True)
    return torch.stack([(f - g).square().sum(1).mean((1, 2)) for f, g in pairs]).mean(0)


def unit(maps: Tensor) -> Tensor:
    """Maps (B, D, h, w) with L2 norm 1 at every place; zero stays zero, with a derivative."""
    return maps * (maps.square().sum(1, keepdim=True) + TINY).rsqrt()


def lpips(images: Tensor, originals: Tensor) -> Tensor:
    """LPIPS with AlexNet (Zhang et al. 2018), (B,), where the package and its weights are there.

    Images are (B, C, H, W) in pixel [0, 1], C 1 or 3.
    """
    network = lpips_network().to(images.device)
    first, second = (
        2 * x.float().expand(-1, 3, -1, -1) - 1 for x in (images, originals)
    )  # model [-1, 1]
    distances: Tensor = network(first, second)
    return distances.flatten().to(images.dtype)


@cache
def lpips_network() -> Any:
    """The network of the package lpips; InputError where it or its weights are missing."""
    check_download("LPIPS with its weights")
    try:
        network = import_module("lpips").LPIPS(net="alex", verbose=False)
    except Exception as error:  # of whatever kind: it imports and downloads
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"LPIPS cannot be loaded ({reason}): install lpips with its AlexNet weights, or take"
            f" the distance {FEATURES}"
        ) from None
    return network.eval().requires_grad_(False)


@dataclass(frozen=True, kw_only=True)
class FilterAttack(GradientAttack):
    """Filters an image with learned, image-guided kernels, one for each pixel and size, and moves
    it only as far as a perceptual distance allows. There is no ball.

    As in the published code an offset is learned too, which is added before the filters. Filters
    and offset begin where they change nothing. Adam ascends the expected loss less `penalty` times
    the distance in both. A step that leaves the bound is taken back towards the image, by halving,
    until the distance is within it: so every candidate is, and the last resort is the image itself.
    Where little of the way is left, the image's next steps are half as long. Candidates are the
    last image of each run and the best.

    Args:
        sizes: edges of the filters in pixels, odd; they are applied one after another.
        colour: sigma of the guide, pixel units: how alike a neighbour must be to be mixed in.
        step_size: of Adam in the filters' weights, which are between 0 and 1, at first.
        offset_step_size: of Adam in the offset, pixel units; 0 leaves filters alone.
        distance: `features`, see `feature_distance`, or the import path of a differentiable
            function of images and originals (B, C, H, W), pixel [0, 1], that gives distances (B,),
            as hetpure.attacks.filters.lpips.
        bound: largest distance of a candidate; the paper: 0.05 of LPIPS.
        penalty: of the distance in what is ascended.
    """

    sizes: tuple[int, ...] = (3, 5)
    colour: Number = Number("0.1")  # noqa: RUF009 (immutable)
    step_size: Number = Number("0.05")  # noqa: RUF009 (immutable)
    offset_step_size: Number = Number("0.01")  # noqa: RUF009 (immutable)
    distance: str = FEATURES
    bound: Number = Number("0.05")  # noqa: RUF009 (immutable)
    penalty: Number = Number(1)  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "colour", "step_size")
        check_at_least(self, 0, "offset_step_size", "bound", "penalty")
        if not self.sizes or any(size < 3 or size % 2 == 0 for size in self.sizes):
            raise FieldError(self, "sizes", f"must be odd and >= 3, got {list(self.sizes)}")
        self._function()

    @property
    def name(self) -> str:
        return "filter"

    @property
    def threat(self) -> None:
        """No ball."""

    def describe(self) -> str:
        usual = replace(self, distance=FEATURES, bound=type(self).bound)
        return f"{Attack.describe(usual)}, distance {self.distance}, bound {self.bound}"

    def notes(self, classes: int) -> list[str]:
        where = "the classifier's features" if self.distance == FEATURES else self.distance
        bound = f"{self.name}: no ball, but a distance of at most {self.bound} in {where}"
        return [*super().notes(classes), bound]

    def check(self, defense: Defense, samples: Tensor, known: tuple[Group, ...] = ()) -> None:
        if self.distance == FEATURES and not defense.classifier.attention_blocks:
            unnamed = "is in the features of a classifier that names no modules"
            advice = "convert it with --attention_blocks, or give the path of a function"
            raise FieldError(self, "distance", f"{unnamed}: {advice}")
        if self.distance == LPIPS:
            lpips_network()

    def _function(self) -> Distance | None:
        """What `distance` names; None for the classifier's features."""
        if self.distance == FEATURES:
            return None
        try:
            function = import_named(self.distance)
        except InputError as error:
            raise FieldError(self, "distance", str(error)) from None
        except (ImportError, AttributeError, ValueError) as error:
            problem = f"is {self.distance!r}, which cannot be imported ({error})"
            allowed = f"give {FEATURES} or module.function"
            raise FieldError(self, "distance", f"{problem}: {allowed}") from None
        if not callable(function):
            raise FieldError(self, "distance", f"is {self.distance!r}, which is no function")
        called: Distance = function
        return called

    def distance_to(self, classifier: Classifier, originals: Tensor) -> Callable[[Tensor], Tensor]:
        """The distances (B,) of images from originals (B, C, H, W), pixel [0, 1], checked."""
        function = self._function()
        known = None if function else features(classifier, originals)

        def distances(images: Tensor) -> Tensor:
            if function is not None:
                values = function(images, originals)
            else:
                values = apart(features(classifier, images), known or [])
            if not isinstance(values, Tensor) or values.shape != (len(images),):
                got = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
                said = f"{self.distance!r} gives {got} for {len(images)} images"
                raise FieldError(self, "distance", f"{said}: give one number each")
            if not values.isfinite().all():
                nothing = f"{self.distance!r} gives NaN or infinite numbers"
                raise FieldError(self, "distance", nothing)
            return values

        return distances

    def ascend(self, run: Ascent) -> list[Tensor]:
        self.check(run.target.defense, run.target.samples)
        images, classifier = run.target.images, run.target.defense.classifier
        guides = [likeness(images, size, self.colour) for size in self.sizes]
        steps = [self.offset_step_size, *(self.step_size for _ in self.sizes)]
        images_of = partial(rendered, images, guides)
        distances = self.distance_to(classifier, images)

        def allowed(parameters: Parameters) -> Tensor:
            with torch.no_grad():
                return distances(images_of(parameters)) <= self.bound

        def slopes(parameters: Parameters, gradient: Tensor) -> Parameters:
            """d (loss - penalty distance) / d parameters, by the loss's gradient in the images."""
            points = tuple(parameter.detach().requires_grad_() for parameter in parameters)
            with torch.enable_grad():
                moved = images_of(points)
                objective = (gradient * moved).sum()
                if self.penalty:
                    away = distances(moved).sum()
                    if not away.requires_grad:
                        flat = f"{self.distance!r} has no gradient: make penalty 0"
                        raise FieldError(self, "distance", flat)
                    objective = objective - self.penalty * away
            return torch.autograd.grad(objective, points)

        def step(state: FilterState, gradient: Tensor) -> FilterState:
            moved: list[Tensor] = []
            moments: list[tuple[Tensor, Tensor]] = []
            pace = state.pace.to(images)[:, None, None, None]
            every = zip(state.parameters, slopes(state.parameters, gradient), strict=True)
            for (parameter, slope), moment, size in zip(every, state.moments, steps, strict=True):
                along, mean, square = adam_step(slope, *moment, state.count + 1)
                moved.append(parameter + size * pace * along.to(parameter))
                moments.append((mean, square))
            offset, *weights = moved
            parameters = (offset.clamp(-1, 1), *map(simplex, weights))
            left = fitting(parameters, allowed)
            pace_after = torch.where(left < FAR, state.pace / 2, state.pace)
            return FilterState(scaled(parameters, left), moments, state.count + 1, pace_after)

        return self.climb(run, self._start(images), step, lambda state: images_of(state.parameters))

    def _start(self, images: Tensor) -> "FilterState":
        """Filters and offset that change nothing."""
        count, _, height, width = images.shape
        parameters = (
            torch.zeros_like(images),
            *(images.new_zeros(count, size * size - 1, height, width) for size in self.sizes),
        )
        zeros = [torch.zeros_like(part, dtype=torch.float64) for part in parameters]
        pace = images.new_ones(count, dtype=torch.float64)
        return FilterState(parameters, list(zip(zeros, zeros, strict=True)), 0, pace)


@dataclass(frozen=True)
class FilterState:
    """Where an ascent is: offset and filters, Adam's moments and steps so far, and how long each
    image's steps are (B,), as a share of the first."""

    parameters: Parameters
    moments: list[tuple[Tensor, Tensor]]
    count: int
    pace: Tensor


def rendered(images: Tensor, guides: Sequence[Tensor], parameters: Parameters) -> Tensor:
    """Images (B, C, H, W) plus the offset, in [0, 1], under one filter after another."""
    offset, *weights = parameters
    moved = (images + offset).clamp(0, 1)
    for kernel, guide in zip(weights, guides, strict=True):
        moved = filtered(moved, kernel, guide)
    return moved


def simplex(weights: Tensor) -> Tensor:
    """Weights (B, K^2 - 1, H, W) made non-negative, and scaled down where they sum to more than
    1 at a pixel."""
    weights = weights.clamp(min=0)
    return weights / weights.sum(1, keepdim=True).clamp(min=1)


def scaled(parameters: Parameters, shares: Tensor) -> Parameters:
    """Shares (B,) of the way from the image, where parameters change nothing; 1 changes no bit."""
    return tuple(shares.to(part)[:, None, None, None] * part for part in parameters)


def fitting(parameters: Parameters, allowed: Callable[[Parameters], Tensor]) -> Tensor:
    """How much of the way from the image, (B,) in [0, 1], makes the parameters `allowed` (B,): all
    of it where it does, else what halving finds, and 0 where that finds nothing."""
    inside = allowed(parameters)
    low, high = inside.double(), torch.ones_like(inside, dtype=torch.float64)
    if inside.all():
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = allowed(scaled(parameters, middle))
        low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
    return low
