"""Seconds of one call on this machine."""

import statistics
import time
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from hetpure.defense import Defense
from hetpure.noise import noise_for

REPEATS = 3
# An image's time hardly falls in batches larger than these (measured on a CPU, assumed of
# accelerators): larger ones are not timed, but taken for as fast an image.
TIMED, TIMED_ACCELERATOR = 64, 512


class Stopwatch:
    """Times the pieces of one defence on this machine, each once for a batch size. Seconds are
    medians of `repeats` calls after a first one."""

    def __init__(self, defense: Defense, images: Tensor, repeats: int = REPEATS) -> None:
        self.defense = defense
        self.repeats = repeats
        self.images = images.detach()
        self.cap = TIMED if images.device.type == "cpu" else TIMED_ACCELERATOR
        self._steps: dict[int, tuple[float, float]] = {}

    def step(self, size: int) -> tuple[float, float]:
        """Seconds of one network call within its step, noise and sampler included, for a batch of
        `size`: forward, and forward with the backward pass to its input."""
        timed = min(size, self.cap)
        if timed not in self._steps:
            self._steps[timed] = self._time_step(timed)
        forward, both = self._steps[timed]
        return forward * size / timed, both * size / timed

    @cached_property
    def forward(self) -> float:
        """Seconds an image of one forward pass: a network call within its step, or the classifier
        where nothing is purified."""
        size = min(len(self.images), self.cap)
        return self.step(size)[0] / size or self.classifier[0]

    @cached_property
    def classifier(self) -> tuple[float, float]:
        """Seconds an image of the classifier, forward, and forward with backward."""
        images = self._batch(min(len(self.images), self.cap))
        forward, both = self._both(lambda x: self.defense.classifier(x), images)
        return forward / len(images), both / len(images)

    @cached_property
    def mask(self) -> float:
        """Seconds an image of the attention mask."""
        images = self._batch(min(len(self.images), self.cap))
        samples = torch.arange(len(images), device=images.device)
        return self._median(lambda: self.defense.mask(images, samples)) / len(images)

    @torch.no_grad()
    def latency(self) -> float:
        """Seconds in which the first image is purified and classified."""
        image = self._batch(1)
        noise = noise_for(image)
        return self._median(lambda: self.defense(image, noise))

    def _batch(self, count: int) -> Tensor:
        return self.images[torch.arange(count, device=self.images.device) % len(self.images)]

    def _time_step(self, size: int) -> tuple[float, float]:
        purifier, denoiser = self.defense.purifier, self.defense.denoiser
        if purifier is None or denoiser is None:
            return 0.0, 0.0
        images = self._batch(size)
        noise = noise_for(images)
        with torch.no_grad():
            known, mask = self.defense.resized(images), self.defense.mask(images, noise.samples)
            state = purifier.start(denoiser, known, noise)
        step = max(self.defense.plan, key=lambda step: step.network_calls)
        forward, both = self._both(
            lambda x: purifier.advance(denoiser, step, x, known, mask, noise), state
        )
        return forward / step.network_calls, both / step.network_calls

    def _both(self, run: Callable[[Tensor], Tensor], point: Tensor) -> tuple[float, float]:
        def forward() -> None:
            with torch.no_grad():
                run(point)

        @torch.enable_grad()
        def both() -> None:
            x = point.clone().requires_grad_()
            torch.autograd.grad(run(x).sum(), x)

        return self._median(forward), self._median(both)

    def _median(self, run: Callable[[], object]) -> float:
        seconds = []
        for _ in range(1 + self.repeats):
            start = time.perf_counter()
            run()
            if self.images.device.type == "cuda":
                torch.cuda.synchronize(self.images.device)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds[1:])
