"""A defence as a model for a library that knows no sample ids, pyautoattack, and what that library
must leave as it was."""

import io
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

import torch
from torch import Tensor

from hetpure.attacks.attack import NAMES, ROUNDING, Addresses, Monitor, Threat
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.geometry import Norm
from hetpure.gradients import NOT_FINITE, GradientError
from hetpure.noise import BatchNoise, attack_draw


class RowModel:
    """What the library takes for its model: rows (R, C, H, W) in, logits (R, classes) out.

    The library hands on rows without saying whose they are, in batches that shrink. All but FAB's
    lie in the ball around their own image, and no two of these balls meet, so the nearest image is
    the row's. FAB leaves the ball: it is given one image at a time. Where nothing hangs on the
    sample id none of this is needed, nor done.
    """

    def __init__(
        self,
        defense: Defense,
        images: Tensor,
        addresses: Addresses,
        threat: Threat,
        monitor: Monitor,
    ) -> None:
        self.defense = defense
        self.images = images.detach()
        self.addresses = addresses
        self.threat = threat
        self.monitor = monitor
        self.by_sample = bool(defense.groups) or defense.masked
        self.alone: int | None = None
        self.calls = 0
        self.error: Exception | None = None  # what the defence said, not the library
        if self.by_sample:
            check_apart(self.images, addresses.samples, threat)

    def __call__(self, rows: Tensor) -> Tensor:
        if not len(rows):  # Square asks this where all that is left lies on the border
            return rows.new_zeros(0, self.defense.classifier.num_classes)
        try:
            return self._answer(rows)
        except Exception as error:
            self.error = error
            raise

    def _answer(self, rows: Tensor) -> Tensor:
        samples = self.addresses.samples[self.whose(rows)]
        differentiated = rows.requires_grad and torch.is_grad_enabled()
        images = rows.to(self.images.dtype).view_as(rows)
        if differentiated:
            images.register_hook(self._check_finite)  # type: ignore[no-untyped-call]
        mask = self.defense.mask(images.detach(), samples)
        logits: Tensor = self.defense(images, self._noise(samples), mask)
        if not logits.isfinite().all():
            raise GradientError(f"what the defence answers {NOT_FINITE}")
        (self.monitor.rows if differentiated else self.monitor.answered)(len(rows))
        return logits.to(rows.dtype)

    def whose(self, rows: Tensor) -> Tensor:
        """(R,) index of the image that each row belongs to."""
        if not self.by_sample or self.alone is not None:
            return torch.full((len(rows),), self.alone or 0, device=rows.device)
        distance, index = distances_between(
            rows.to(self.images), self.images, self.threat.norm
        ).min(1)
        farthest = int(distance.argmax())
        assert distance[farthest] <= reach(self.images, self.threat), (
            f"AutoAttack asks about an image {float(distance[farthest]):g} from the nearest, sample"
            f" {int(self.addresses.samples[index[farthest]])}: outside the ball {self.threat}"
        )
        return index

    def one_by_one(self, perturb: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        """The same for images that are given one by one, so that all rows are that image's."""
        if not self.by_sample:
            return perturb

        def each(images: Tensor, labels: Tensor) -> Tensor:
            found = []
            for image, label in zip(torch.split(images, 1), torch.split(labels, 1), strict=True):
                self.alone = int(self.whose(image))
                try:
                    found.append(perturb(image, label))
                finally:
                    self.alone = None
            return torch.cat(found)

        return each

    def _noise(self, samples: Tensor) -> BatchNoise:
        """Fresh noise for each call: its number is the draw's."""
        draw = attack_draw(self.addresses.member, 0, self.calls >> 16, self.calls & 0xFFFF)
        self.calls += 1
        return self.addresses.noise.redraw(draw, keep=self.addresses.known).on(samples)

    def _check_finite(self, gradient: Tensor) -> None:
        if not gradient.isfinite().all():
            self.error = GradientError(f"the gradient {NOT_FINITE}")
            raise self.error


class Listener(logging.Logger):
    """What the library logs; no handler of the program hears it. Its warnings that say that the
    attack is worth nothing here are errors, the others are warnings."""

    def __init__(self, verbose: bool) -> None:
        super().__init__("pyautoattack", logging.DEBUG)
        self.verbose = verbose

    def handle(self, record: logging.LogRecord) -> None:
        said = record.getMessage().split(" See ")[0].strip()
        if self.verbose:
            print(said)
        if record.levelno < logging.WARNING:
            return
        if "randomized defense" in said:
            raise InputError(
                "AutoAttack: asked twice about the same images the defence answers differently:"
                " what does it draw outside its noise (dropout, a generator)?"
            )
        if "probability distribution" in said:
            raise InputError(
                "AutoAttack: the classifier answers probabilities: its losses need logits"
            )
        warnings.warn(f"AutoAttack: {said}", stacklevel=2)


@contextmanager
def undisturbed(verbose: bool) -> Iterator[None]:
    """The library seeds the global generators, prints, and its check for dynamic defences ends
    tracing (debuggers, coverage): what it finds is put back, whatever happens."""
    tracer = sys.gettrace()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    quiet = nullcontext() if verbose else redirect_stdout(io.StringIO())
    with torch.random.fork_rng(devices), quiet:
        try:
            yield
        finally:
            sys.settrace(tracer)


@contextmanager
def in_one_line(model: RowModel) -> Iterator[None]:
    """What the library raises, as an InputError; what the defence raises stays as it is."""
    try:
        yield
    except Exception as error:
        memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if isinstance(error, InputError) or error is model.error or memory:
            raise
        said = (str(error).splitlines() or [""])[0]
        raise InputError(f"AutoAttack stopped with {type(error).__name__}: {said}") from error


def distances_between(rows: Tensor, images: Tensor, norm: Norm) -> Tensor:
    """(R, B) distances of rows (R, C, H, W) from images (B, C, H, W)."""
    found: Tensor = torch.cdist(
        rows.flatten(1),
        images.flatten(1),
        p=torch.inf if norm == "linf" else 2.0,
        compute_mode="donot_use_mm_for_euclid_dist",  # a product loses what is small
    )
    return found


def reach(images: Tensor, threat: Threat) -> float:
    """How far a row may be from its image: epsilon, and what rounding adds in each pixel."""
    pixels = images[0].numel()
    return threat.epsilon + ROUNDING * (1 if threat.norm == "linf" else pixels**0.5)


def check_apart(images: Tensor, samples: Tensor, threat: Threat) -> None:
    """InputError where the balls of two images meet: rows there could be either's."""
    distances = distances_between(images, images, threat.norm)
    distances.fill_diagonal_(torch.inf)
    first, second = divmod(int(distances.argmin()), len(images))
    apart = float(distances[first, second])
    if apart <= 2 * reach(images, threat):
        what = (
            "are the same image"
            if apart == 0
            else f"are {NAMES[threat.norm]} {apart:g} apart, and their balls {threat} meet"
        )
        raise InputError(
            f"samples {int(samples[first])} and {int(samples[second])} {what}: AutoAttack does not"
            " say which of them it asks about, and the noise hangs on it: put them into different"
            " batches (--data.batch_size), or take AutoEOT"
        )
