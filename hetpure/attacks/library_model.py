"""A defence as a model for pyautoattack, a library that knows no sample ids, and what that library
must leave as it was."""

import io
import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial

import torch
from torch import Tensor

from hetpure.attacks.attack import Target
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.gradients import check_finite
from hetpure.noise import Group, attack_draw

SAMPLES = 2**32  # ids that an address has room for


def check_needs_no_ids(defense: Defense, known: tuple[Group, ...]) -> None:
    """InputError where an answer depends on which image it is about."""
    by_image = ""
    if known:
        by_image = "noise that the attacker knows (DW-box)"
    elif defense.masked and defense.attention_mask.control:
        by_image = "a mask that goes by sample ids"
    if by_image:
        raise InputError(
            "AutoAttack does not say which image it asks about, and each image has its own"
            f" where there is {by_image}: take AutoEOT"
        )


class LibraryModel:
    """What the library takes for its model: images (R, C, H, W) in, logits (R, classes) out.

    The library does not say which images it asks about, in batches that shrink. So noise is
    addressed by place, not by image: the sample id is that of the target's first image plus the
    place in the batch, and the draw is the number of calls so far. What needs the image itself is
    refused: noise that the attacker knows, and masks that are placed by sample id.
    """

    def __init__(self, target: Target) -> None:
        check_needs_no_ids(target.defense, target.addresses.known)
        self.target = target
        self.calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        if not len(images):  # Square asks this where all that is left lies on the border
            return images.new_zeros(0, self.target.defense.classifier.num_classes)
        target = self.target
        defense, addresses, monitor = target.defense, target.addresses, target.monitor
        differentiated = images.requires_grad and torch.is_grad_enabled()
        pixels = images.to(target.images.dtype).view_as(images)
        if differentiated:
            pixels.register_hook(partial(check_finite, what="the gradient"))  # type: ignore[no-untyped-call]
        places = torch.arange(len(images), device=images.device)
        samples = (addresses.samples[0] + places) % SAMPLES
        draw = attack_draw(addresses.member, 0, self.calls >> 16, self.calls & 0xFFFF)
        self.calls += 1
        noise = addresses.noise.redraw(draw).on(samples)
        logits = defense(pixels, noise, defense.mask(pixels.detach(), samples))
        logits = check_finite(logits, "what the defence answers")
        (monitor.differentiated if differentiated else monitor.answered)(len(images))
        return logits.to(images.dtype)


class Listener(logging.Logger):
    """What the library logs; no handler of the program hears it. A warning that means that the
    attack is worth nothing here is an error: noise from outside its address, no logits."""

    def __init__(self) -> None:
        super().__init__("pyautoattack", logging.WARNING)

    def handle(self, record: logging.LogRecord) -> None:
        message = f"AutoAttack: {record.getMessage().split(' See ')[0].strip()}"
        if "randomized defense" in message or "probability distribution" in message:
            raise InputError(message)
        warnings.warn(message, stacklevel=2)


@contextmanager
def undisturbed() -> Iterator[None]:
    """The library seeds the global generators, prints, and its check for dynamic defences ends
    tracing (debuggers, coverage): what it finds is put back, whatever happens."""
    tracer = sys.gettrace()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with torch.random.fork_rng(devices), redirect_stdout(io.StringIO()):
        try:
            yield
        finally:
            sys.settrace(tracer)
