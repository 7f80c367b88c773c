"""Gradients against their floor: T network calls forward and backward, and nothing else."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hetpure.acceleration import Acceleration, Precision, accelerate
from hetpure.benchmark.clock import Clock, peak_bytes
from hetpure.benchmark.networks import Free, defense_of, denoiser_of, images_of
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.gradient_check import cosines
from hetpure.gradients import Execution, input_gradient
from hetpure.noise import noise_for
from hetpure.samplers import Sampler

Row = dict[str, Any]
CHECKED_CALLS = 4  # of the purification whose gradients are compared


def accelerations_of(low: Precision) -> dict[str, Acceleration]:
    """What is compared, by what tables call it; `low` is the precision beside float32."""
    return {
        "float32": Acceleration(),
        "channels last": Acceleration(channels_last=True),
        low: Acceleration(low),
        f"{low}, channels last": Acceleration(low, channels_last=True),
        "float32, compiled": Acceleration(compile="default"),
        f"{low}, channels last, compiled": Acceleration(low, True, "default"),
        f"{low}, channels last, CUDA graphs": Acceleration(low, True, "reduce-overhead"),
    }


def gradient_of(defense: Defense, images: Tensor, execution: Execution) -> Tensor:
    """Of the sum of the purified image's pixels."""
    point = images.clone().requires_grad_()
    return input_gradient(defense.purify(point, noise_for(images), None, execution).sum(), point)


def bare(denoiser: Denoiser, images: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """One bare call of the network: forward, and forward with backward to its input."""
    cotangent = torch.ones_like(images)

    def forward() -> None:
        with torch.no_grad():
            denoiser(images, 50)

    def both() -> None:
        x = images.clone().requires_grad_()
        torch.autograd.grad(denoiser(x, 50), x, cotangent)

    return forward, both


def executions(calls: int) -> dict[str, Execution]:
    """The exact policies, by what tables call them for a plan of so many calls."""
    half = calls // 2
    return {
        "tape": Execution("tape"),
        f"hybrid, {half} of {calls} taped": Execution("hybrid", half),
        "checkpoint": Execution("checkpoint"),
    }


def policy_times(
    defense: Defense, images: Tensor, execution: Execution, clock: Clock, repeats: int
) -> Row:
    """Network calls of a gradient, milliseconds, those of its floor, and the median ratio."""
    assert defense.denoiser is not None
    calls = defense.network_calls
    forward, both = bare(defense.denoiser, images)

    def floor() -> None:
        for _ in range(execution.recomputed(calls)):
            forward()
        for _ in range(calls):
            both()

    def run() -> None:
        gradient_of(defense, images, execution)

    with count_network_calls(defense) as network_calls:
        run()  # warms up too
    pairs = [(clock(run), clock(floor)) for _ in range(repeats)]
    return {
        "network_calls": len(network_calls),
        "milliseconds": statistics.median(ours for ours, _ in pairs),
        "floor": statistics.median(bound for _, bound in pairs),
        "ratio": statistics.median(ours / bound for ours, bound in pairs),
    }


def rest_milliseconds(
    defense: Defense, images: Tensor, clock: Clock, repeats: int, sampler: Sampler | None = None
) -> float:
    """Of a taped gradient of as many calls of a network that costs nothing: noise, sampler and
    bookkeeping."""
    assert defense.denoiser is not None
    free = Denoiser(Free(), defense.denoiser.schedule).to(images.device)
    around = defense_of(free, defense.network_calls, images, sampler)
    return clock.median(lambda: gradient_of(around, images, Execution("tape")), repeats)


def checked_gradient(denoiser: Denoiser, images: Tensor, policy: Execution) -> Tensor:
    """Of a purification of four calls: what an accelerated network's is compared by."""
    return gradient_of(defense_of(denoiser, CHECKED_CALLS, images), images, policy)


def acceleration_times(
    plain: Denoiser,
    images: Tensor,
    acceleration: Acceleration,
    exact: Tensor,
    clock: Clock,
    repeats: int,
) -> Row:
    """Milliseconds of one bare call, gain over float32, cosine to the `exact` gradient of
    `checked_gradient`, and the seconds of the first gradient, in which a compiled call compiles."""
    reference = bare(plain, images)
    denoiser = accelerate(plain, acceleration)
    runs = bare(denoiser, images)
    start = time.perf_counter()
    ours = checked_gradient(denoiser, images, Execution("tape"))
    first = time.perf_counter() - start
    for run in (*runs, *reference):
        run()
    samples = [[clock(run) for run in (*runs, *reference)] for _ in range(repeats)]
    return {
        "forward": statistics.median(sample[0] for sample in samples),
        "both": statistics.median(sample[1] for sample in samples),
        "gain": statistics.median(sample[3] / sample[1] for sample in samples),
        "cosine": float(cosines(ours, exact).mean()),
        "first_seconds": first,
    }


def measure_peak(
    network: str, batch: int, calls: int, device: str, policy: str, budget: int
) -> tuple[int | None, int]:
    """Peak bytes of one gradient above those of the network and of a first small gradient, and
    what `Footprint` predicts; what would take more than the budget is not run."""
    denoiser = denoiser_of(network, device)
    images = images_of(network, batch, device)
    small = defense_of(denoiser, 2, images)
    gradient_of(small, images[:1], Execution("checkpoint"))
    defense = defense_of(denoiser, calls, images)
    taped = calls if policy == "tape" else 0
    predicted = defense.footprint(images).need(batch, calls, taped)
    execution = Execution("hybrid", taped)
    if predicted > budget:
        return None, predicted
    return peak_bytes(lambda: gradient_of(defense, images, execution), device), predicted
