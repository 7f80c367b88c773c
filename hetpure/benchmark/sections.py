"""What is measured, section by section: pieces that are run, or refused with the reason, one by
one."""

import copy
import statistics
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor

from hetpure.addt import Batch, RankGaussian, denoising_loss
from hetpure.attacks import PGD
from hetpure.attacks.attack import Addresses, Target
from hetpure.attacks.losses import criterion
from hetpure.benchmark.clock import peak_bytes
from hetpure.benchmark.gradients import (
    CHECKED_CALLS,
    Row,
    acceleration_times,
    accelerations_of,
    executions,
    gradient_of,
    measure_peak,
    policy_times,
    rest_milliseconds,
)
from hetpure.benchmark.loops import looped_gradient, purify_checkpointed, purify_taped
from hetpure.benchmark.machine import Machine
from hetpure.benchmark.networks import (
    CIFAR10,
    IMAGENET,
    NETWORKS,
    PACKAGED,
    classifier_of,
    defense_of,
    images_of,
    published_defense,
)
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import to_model
from hetpure.expectation import Query, expected_gradient
from hetpure.gradient_check import cosines
from hetpure.gradients import Execution
from hetpure.levels import DiscreteLevels
from hetpure.memory import weight_bytes
from hetpure.noise import Noise, Purpose, Stream, noise_for
from hetpure.presets import load_defense
from hetpure.samplers import DDIM, DDPM, VPSDE

CARD = 24 * 10**9  # bytes of the card that a step of the published attack has to fit
COMPILING = {PACKAGED: 30.0, CIFAR10: 60.0, IMAGENET: 120.0}  # seconds, a guess
SAMPLERS = {"DDPM": DDPM(), "DDIM": DDIM(), "VP-SDE": VPSDE()}
Cost = tuple[float, float]
TIMED = (PACKAGED, CIFAR10)


@dataclass(frozen=True)
class Piece:
    """One measurement.

    Args:
        name: of its row.
        measure: gives the row.
        network: whose calls take the time; it is not built before the piece may run.
        calls: images times calls, forward alone, and with backward.
        need: bytes that it takes.
        seconds: that it takes besides.
        refused: why it is not run on this machine, where that is known.
    """

    name: str
    measure: Callable[[], Row]
    network: str
    calls: Cost = (0.0, 0.0)
    need: Callable[[], int] = lambda: 0
    seconds: float = 0.0
    refused: str | None = None


@dataclass(frozen=True)
class Section:
    """Pieces with one title, and the seconds that they may take together on an accelerator."""

    title: str
    seconds: float
    pieces: Callable[[Machine], Iterator[Piece]]


def calls(machine: Machine) -> Iterator[Piece]:
    """Bare calls of every network, as they are and accelerated."""
    kinds = accelerations_of(machine.low)
    eager = [name for name, kind in kinds.items() if kind.compile == "off"]
    compiled = [name for name in kinds if name not in eager]
    for names in (eager, compiled):
        for network in NETWORKS:
            for name in names:
                kind, batch = kinds[name], machine.batch_of(network)

                def measure(network: str = network, name: str = name) -> Row:
                    return acceleration_times(
                        machine.denoiser(network),
                        machine.images(network),
                        kinds[name],
                        machine.exact_gradient(network),
                        machine.clock,
                        machine.repeats,
                    )

                turns = 2 * (machine.repeats + 1)
                yield Piece(
                    f"{network}, batch {batch}, {name}",
                    measure,
                    network,
                    (batch * (turns + CHECKED_CALLS), batch * (turns + 2 * CHECKED_CALLS)),
                    partial(_need, machine, network, batch, CHECKED_CALLS, CHECKED_CALLS),
                    COMPILING[network] if kind.compile != "off" else 0,
                    machine.unsupported(kind),
                )


def policies(machine: Machine) -> Iterator[Piece]:
    """Gradients by policy, over the bare calls of their floor."""
    for network in TIMED:
        for name, execution in executions(machine.calls).items():
            batch, again = machine.batch_of(network), execution.recomputed(machine.calls)

            def measure(network: str = network, execution: Execution = execution) -> Row:
                images = machine.images(network)
                defense = defense_of(machine.denoiser(network), machine.calls, images)
                return policy_times(defense, images, execution, machine.clock, machine.repeats)

            turns = 2 * machine.repeats + 1
            yield Piece(
                f"{network}, batch {batch}, {name}",
                measure,
                network,
                (batch * turns * again, batch * turns * machine.calls),
                partial(_need, machine, network, batch, machine.calls, machine.calls - again),
            )


def memory(machine: Machine) -> Iterator[Piece]:
    """Peak memory against T; on a CPU each in a process of its own, unless quick."""
    for network in TIMED:
        for policy in ("tape", "checkpoint"):
            for count in (2, 4) if machine.quick else (10, 20, 40, 80):
                batch, taped = machine.batch_of(network), count if policy == "tape" else 0

                def measure(
                    network: str = network, policy: str = policy, count: int = count
                ) -> Row:
                    batch = machine.batch_of(network)
                    arguments = (network, batch, count, machine.device, policy, machine.budget)
                    if machine.device == "cuda" or machine.quick:
                        peak, predicted = measure_peak(*arguments)
                    else:
                        # Unlike a Pool, it says so where the system kills its process.
                        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
                            peak, predicted = pool.submit(measure_peak, *arguments).result()
                    return {"peak_bytes": peak, "predicted_bytes": predicted}

                again = count - taped
                yield Piece(
                    f"{network}, batch {batch}, {policy}, T = {count}",
                    measure,
                    network,
                    (batch * again, batch * count),
                    partial(_need, machine, network, batch, count, taped),
                )


def share(machine: Machine) -> Iterator[Piece]:
    """Noise, sampler and bookkeeping, of a gradient that recomputes nothing it need not."""
    for network in TIMED:
        for name, sampler in SAMPLERS.items():
            batch = machine.batch_of(network)

            def measure(network: str = network, name: str = name) -> Row:
                images = machine.images(network)
                sampler = SAMPLERS[name]
                defense = defense_of(machine.denoiser(network), machine.calls, images, sampler)
                execution = machine.fastest(network, len(images), machine.calls)
                with count_network_calls(defense) as counted:
                    gradient_of(defense, images, execution)
                whole = statistics.median(
                    machine.clock(lambda: gradient_of(defense, images, execution))
                    for _ in range(machine.repeats)
                )
                rest = rest_milliseconds(defense, images, machine.clock, machine.repeats, sampler)
                return {
                    "network_calls": len(counted),
                    "milliseconds": whole,
                    "rest": rest,
                    "share": rest / whole,
                }

            count = batch * machine.calls * (machine.repeats + 1)
            yield Piece(f"{network}, batch {batch}, {name}", measure, network, (count, count))


def cuts(machine: Machine) -> Iterator[Piece]:
    """As many purifications, of many images with few noise draws or of few images with many."""
    batch = machine.batch_of(PACKAGED)
    for images in dict.fromkeys(max(batch // 4**k, 1) for k in range(4)):
        draws = batch // images

        def measure(images: int = images, draws: int = draws) -> Row:
            denoiser = machine.denoiser(PACKAGED)
            defense = published_defense(PACKAGED, denoiser, machine.device, 5 * machine.calls)
            query = _query(defense, images_of(PACKAGED, images, machine.device), draws)
            return _gradient_row(machine, defense, query)

        # Of S steps the strongest fifth are taken: T of them.
        count = batch * machine.calls * (machine.repeats + 1)
        yield Piece(
            f"{images} images x {draws} draws",
            measure,
            PACKAGED,
            (count, count),
            partial(_need, machine, PACKAGED, batch, machine.calls, 0),
        )


def published(machine: Machine) -> Iterator[Piece]:
    """One PGD step on the published heterogeneous schedule, its draw differentiated as on a card of
    24 GB."""
    cases = ((PACKAGED, 2, 50),) if machine.quick else ((CIFAR10, 32, 500), (IMAGENET, 1, 500))
    for network, batch, steps in cases:
        count = steps * (2 if network == IMAGENET else 1) // 5

        def measure(network: str = network, batch: int = batch, steps: int = steps) -> Row:
            defense = published_defense(network, machine.denoiser(network), machine.device, steps)
            return pgd_step(machine, defense, images_of(network, batch, machine.device))

        yield Piece(
            f"{network}, {count} network calls, batch {batch}",
            measure,
            network,
            (batch * count, batch * count),
            partial(_need, machine, network, batch, count, 0),
        )


def pgd_step(machine: Machine, defense: Defense, images: Tensor) -> Row:
    """Milliseconds and peak memory of one step of PGD with one noise draw."""
    steps = len(defense.plan)
    held = weight_bytes([module for module in (defense.denoiser, defense.classifier) if module])
    footprint = defense.footprint(images)
    budget = min(CARD - held, machine.budget)
    defense.execution = Execution("hybrid", footprint.fitting(len(images), steps, budget) or 0)
    samples = torch.arange(len(images), device=images.device)
    addresses = Addresses(samples, Noise.of(0, Stream.REPORT))
    labels = defense.classifier(images).argmax(1)
    target = Target(defense, images, labels, addresses)
    attack = PGD(steps=1, eot_samples=1, mask="recomputed")
    milliseconds: list[float] = []
    with count_network_calls(defense) as counted:
        peak = peak_bytes(
            lambda: milliseconds.append(machine.clock(lambda: attack(target))), machine.device
        )
    # A process that has measured before has freed memory, which a CPU's counter does not see again.
    known = peak is not None and machine.device == "cuda"
    return {
        "network_calls": len(counted),
        "taped_steps": defense.execution.taped_steps,
        "milliseconds": milliseconds[0],
        "peak_bytes": peak if known else None,
        "below_24_gb": peak + held < CARD if known and peak is not None else None,
    }


def addt(machine: Machine) -> Iterator[Piece]:
    """One ADDT update, without the optimiser's step, over its network and guide calls alone."""
    for network in TIMED:
        batch, steps = machine.batch_of(network), 2 if machine.quick else 5

        def measure(network: str = network, steps: int = steps) -> Row:
            return addt_update(machine, network, steps)

        count = 2 * (machine.repeats + 1) * batch * (steps + 2)
        yield Piece(
            f"{network}, batch {batch}, {steps} steps of CGPO",
            measure,
            network,
            (0, count),
            partial(_need, machine, network, batch, 1, 1),
        )


def addt_update(machine: Machine, network: str, steps: int) -> Row:
    """Network calls, milliseconds, those of the floor, and the median ratio."""
    # A copy: weights that are trained must not be those that other sections differentiate through.
    denoiser = copy.deepcopy(machine.denoiser(network))
    guide, images = classifier_of(network, machine.device), machine.images(network)
    x0, samples = to_model(images), torch.arange(len(images), device=images.device)
    noise = Noise.of(0, Stream.TRAIN).on(samples)
    level = DiscreteLevels().draw(denoiser.schedule, noise, x0)
    labels = noise.integers(Purpose.START, guide.num_classes)
    batch, perturbation = Batch(x0, labels, level, noise), RankGaussian(steps=steps)

    def learn(training_noise: Tensor) -> None:
        denoiser.requires_grad_(True)
        denoising_loss(denoiser, x0, level, training_noise).mean().backward()  # type: ignore[no-untyped-call]
        denoiser.zero_grad()
        denoiser.requires_grad_(False)

    def update() -> None:
        delta = perturbation.find(denoiser, guide, batch)
        fresh = noise.normal(Purpose.TRAINING, x0)
        learn(perturbation.mix(fresh, delta, level))

    def floor() -> None:
        for _ in range(steps):
            x = x0.clone().requires_grad_()
            logits = guide(denoiser(x, level))
            torch.autograd.grad(logits, x, torch.ones_like(logits))
        learn(x0)

    counted: list[int] = []
    with denoiser.register_forward_pre_hook(lambda *_: counted.append(1)):
        update()
    floor()
    pairs = [(machine.clock(update), machine.clock(floor)) for _ in range(machine.repeats)]
    return {
        "network_calls": len(counted),
        "milliseconds": statistics.median(ours for ours, _ in pairs),
        "floor": statistics.median(bound for _, bound in pairs),
        "ratio": statistics.median(ours / bound for ours, bound in pairs),
    }


def latency(machine: Machine) -> Iterator[Piece]:
    """A purification without a gradient, by the packaged defence that is in memory already."""
    for count in (1, 2) if machine.quick else (1, 64):

        def measure(count: int = count) -> Row:
            defense = load_defense().to(machine.device)
            images = images_of(PACKAGED, count, machine.device)
            with torch.no_grad():
                with count_network_calls(defense) as counted:
                    defense.purify(images, noise_for(images))
                milliseconds = machine.clock.median(
                    lambda: defense.purify(images, noise_for(images)), machine.repeats
                )
            return {
                "network_calls": len(counted),
                "milliseconds": milliseconds,
                "an_image": milliseconds / count,
            }

        called = count * load_defense().network_calls * (machine.repeats + 2)
        yield Piece(f"{count} at once", measure, PACKAGED, (called, 0))


def loops(machine: Machine) -> Iterator[Piece]:
    """The same gradient all at once, and one image and draw after another."""
    for network in TIMED:
        images, draws = (2, 2) if machine.quick or network == CIFAR10 else (8, 4)

        def measure(network: str = network, images: int = images, draws: int = draws) -> Row:
            denoiser = machine.denoiser(network)
            defense = published_defense(network, denoiser, machine.device, 5 * machine.calls)
            query = _query(defense, images_of(network, images, machine.device), draws)
            return loop_times(machine, network, defense, query)

        count = images * draws * machine.calls * 3 * (machine.repeats + 2)
        yield Piece(
            f"{network}, {images} images x {draws} draws",
            measure,
            network,
            (count, count),
            partial(_need, machine, network, images * draws, machine.calls, 0),
        )


def loop_times(machine: Machine, network: str, defense: Defense, query: Query) -> Row:
    """Milliseconds of both loops and of ours, ratios, and the least cosine to ours of an image."""
    execution = machine.fastest(network, len(query.images) * len(query.noises), len(defense.plan))
    objective = criterion("cross_entropy", defense.classifier(query.images).argmax(1))

    def ours() -> Tensor:
        return expected_gradient(defense, query, objective, execution=execution).gradient

    kinds = {"checkpointed": purify_checkpointed, "taped": purify_taped}
    with count_network_calls(defense) as counted:
        exact = ours()
    row: Row = {"network_calls": sum(counted)}
    for name, purify in kinds.items():

        def loop(purify: Callable[..., Tensor] = purify) -> Tensor:
            return looped_gradient(defense, query, objective, purify)

        with count_network_calls(defense) as counted:
            theirs = loop()
        pairs = [(machine.clock(loop), machine.clock(ours)) for _ in range(machine.repeats)]
        row |= {
            f"{name}_calls": sum(counted),
            f"{name}_milliseconds": statistics.median(loop for loop, _ in pairs),
            f"{name}_ratio": statistics.median(loop / ours for loop, ours in pairs),
            f"{name}_cosine": float(cosines(theirs, exact).min()),
            "milliseconds": statistics.median(ours for _, ours in pairs),
        }
    return row


def _need(machine: Machine, network: str, entries: int, steps: int, taped: int) -> int:
    return machine.footprint(network).need(entries, steps, taped)


def _query(defense: Defense, images: Tensor, draws: int) -> Query:
    """Images on so many noises, with their masks."""
    samples = torch.arange(len(images), device=images.device)
    addresses = Addresses(samples, Noise.of(0, Stream.REPORT))
    mask = defense.mask(images, samples)
    return Query(images, samples, mask, addresses.draws(0, 0, draws))


def _gradient_row(machine: Machine, defense: Defense, query: Query) -> Row:
    """Calls and milliseconds of an expected gradient that keeps states only."""
    objective = criterion("cross_entropy", defense.classifier(query.images).argmax(1))

    def run() -> None:
        expected_gradient(defense, query, objective, execution=Execution("checkpoint"))

    with count_network_calls(defense) as counted:
        run()
    milliseconds = statistics.median(machine.clock(run) for _ in range(machine.repeats))
    purifications = len(query.images) * len(query.noises)
    return {
        "network_calls": len(counted),
        "milliseconds": milliseconds,
        "a_purification": milliseconds / purifications,
    }


SECTIONS = {
    "calls": Section("Bare network calls", 140, calls),
    "policies": Section("Gradients over their floors", 70, policies),
    "memory": Section("Peak memory against T", 40, memory),
    "share": Section("Noise, sampler and bookkeeping", 40, share),
    "cuts": Section("Images x noise draws", 30, cuts),
    "published": Section("One PGD step of the published schedule", 80, published),
    "addt": Section("One ADDT update over its floor", 30, addt),
    "latency": Section("A purification in memory", 10, latency),
    "loops": Section("All at once, and one image after another", 40, loops),
}
