"""A machine, and what of the measurements it has room and time for."""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hetpure.acceleration import Acceleration
from hetpure.benchmark.clock import Clock
from hetpure.benchmark.gradients import bare, checked_gradient
from hetpure.benchmark.networks import (
    CIFAR10,
    IMAGENET,
    NETWORKS,
    PACKAGED,
    defense_of,
    denoiser_of,
    images_of,
)
from hetpure.denoiser import Denoiser
from hetpure.errors import FieldError, InputError, check_at_least, check_choice
from hetpure.gradients import Execution
from hetpure.memory import Footprint, budget_bytes, free_bytes, gigabytes

Device = Literal["cpu", "cuda"]
Low = Literal["bfloat16", "float16"]
SLOW_CALL = 5.0  # seconds: such a call is not repeated to say how long others will take


@dataclass(frozen=True)
class Machine:
    """What is measured on, and at which size.

    Args:
        device: cpu or cuda.
        batch: images at once, of the small network; of the larger ones at most so many.
        low: the precision beside float32.
        quick: the smallest sizes, once each: to see that everything runs.
    """

    device: Device = "cpu"
    batch: int = 64
    low: Low = "bfloat16"
    quick: bool = False

    def __post_init__(self) -> None:
        check_choice(self, "device", Device)
        check_choice(self, "low", Low)
        check_at_least(self, 1, "batch")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise FieldError(self, "device", "is cuda, which torch does not see here: give cpu")
        if self.device == "cuda" and self.low == "bfloat16" and not _has_bfloat16():
            raise FieldError(self, "low", "is bfloat16, which this device has not: give float16")
        self._check_memory()

    def _check_memory(self) -> None:
        """InputError where not even one gradient of a single call fits at this batch."""
        footprint, budget, batch = self.footprint(PACKAGED), self.budget, self.batch_of(PACKAGED)
        if footprint.need(batch, 1, 0) <= budget:
            return
        need = gigabytes(footprint.need(batch, 1, 0))
        fits = next((n for n in range(batch, 0, -1) if footprint.need(n, 1, 0) <= budget), 0)
        advice = f"a batch of {fits} fits" if fits else "not even one image fits: free memory"
        raise InputError(
            f"--batch {self.batch}: one gradient of one call needs {need}, {gigabytes(budget)} can"
            f" be used: {advice}"
        )

    @property
    def budget(self) -> int:
        """Bytes that a measurement may take."""
        return budget_bytes(torch.device(self.device))

    @property
    def repeats(self) -> int:
        """Of each measurement, whose median counts."""
        return 1 if self.quick else 7

    @property
    def patience(self) -> int:
        """How often the seconds of a section, which are an accelerator's, a CPU is given."""
        return 1 if self.device == "cuda" else 8

    @property
    def calls(self) -> int:
        """T of the timed purifications."""
        return 4 if self.quick else 10

    @property
    def clock(self) -> Clock:
        """Of the device."""
        return Clock(self.device)

    def batch_of(self, network: str) -> int:
        """Images at once."""
        if network == PACKAGED:
            return min(self.batch, 2) if self.quick else self.batch
        most = {CIFAR10: 64 if self.device == "cuda" else 4, IMAGENET: 1}[network]
        return min(self.batch, most)

    def refusal(self, network: str) -> str | None:
        """Why nothing of a network is measured here, if so."""
        if self.quick and network != PACKAGED:
            return "--quick measures the packaged network alone"
        least, free = NETWORKS[network].least_bytes, free_bytes(torch.device(self.device))
        if least > free:
            return f"it needs {gigabytes(least)} of memory, {gigabytes(free)} are free"
        return None

    def denoiser(self, network: str) -> Denoiser:
        """The network on the device, built once."""
        return _denoiser(network, self.device)

    def images(self, network: str) -> Tensor:
        """A batch of it."""
        return images_of(network, self.batch_of(network), self.device)

    def footprint(self, network: str) -> Footprint:
        """Of its gradients, per image."""
        return _footprint(network, self.device)

    def image_seconds(self, network: str) -> tuple[float, float]:
        """Of one call, an image: forward, and forward with backward to its input."""
        return _image_seconds(network, self.device, self.batch_of(network))

    def exact_gradient(self, network: str) -> Tensor:
        """What accelerated networks are compared by, computed once."""
        return _exact_gradient(network, self.device, self.batch_of(network))

    def unsupported(self, acceleration: Acceleration) -> str | None:
        """Why a kind of call is not measured here, if so."""
        if acceleration.compile != "off" and self.device == "cpu":
            return "torch's compiled backward pass is wrong on CPUs: see experiments/gradients.md"
        return None

    def fastest(self, network: str, entries: int, steps: int) -> Execution:
        """A tape where it fits, else as many taped steps as do."""
        taped = self.footprint(network).fitting(entries, steps, self.budget) or 0
        return Execution("hybrid", taped)


def _has_bfloat16() -> bool:
    """In the device itself: torch emulates it on others."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


@functools.cache
def _denoiser(network: str, device: str) -> Denoiser:
    return denoiser_of(network, device)


@functools.cache
def _footprint(network: str, device: str) -> Footprint:
    images = images_of(network, 1, device)
    return defense_of(_denoiser(network, device), 2, images).footprint(images)


@functools.cache
def _image_seconds(network: str, device: str, batch: int) -> tuple[float, float]:
    clock = Clock(device)
    forward, both = bare(_denoiser(network, device), images_of(network, batch, device))
    first = clock(forward) / 1000
    if first > SLOW_CALL:
        return first / batch, 3 * first / batch
    return clock.median(forward, 1) / 1000 / batch, clock.median(both, 1) / 1000 / batch


@functools.cache
def _exact_gradient(network: str, device: str, batch: int) -> Tensor:
    images = images_of(network, batch, device)
    return checked_gradient(_denoiser(network, device), images, Execution("checkpoint"))
