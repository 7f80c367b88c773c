"""What an evaluation costs, known before it starts: network calls are counted on the plan, one call
is timed here, and memory is measured on one."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.attacks import Attack
from hetpure.defense import Defense
from hetpure.evaluation.certificate import (
    DIRECTIONS,
    IMAGES,
    REFERENCE,
    draws,
    plain_execution,
    policies,
    substitutes,
)
from hetpure.evaluation.protocol import CLEAN, Cell, Protocol
from hetpure.gradients import Execution
from hetpure.memory import budget_bytes, choose
from hetpure.noise import Group, noise_for

REPEATS = 3
# A row's time hardly falls beyond these rows (measured on a CPU, assumed of accelerators): larger
# batches are not timed, but taken for as fast a row.
TIMED_ROWS, TIMED_ROWS_ACCELERATOR = 64, 512


@dataclass(frozen=True)
class Phase:
    """A part of an evaluation: forward network calls of all its images together, recomputed ones
    included, how many of them are differentiated, and predicted seconds."""

    name: str
    network_calls: int
    differentiated: int
    seconds: float


class Stopwatch:
    """Times the pieces of one defence on this machine, each once for a batch size. Seconds are
    medians after a first call."""

    def __init__(self, defense: Defense, images: Tensor) -> None:
        self.defense = defense
        self.images = images.detach()
        cap = TIMED_ROWS if images.device.type == "cpu" else TIMED_ROWS_ACCELERATOR
        self.cap = cap
        self._steps: dict[int, tuple[float, float]] = {}

    def step(self, rows: int) -> tuple[float, float]:
        """Seconds of one network call within its step, noise and sampler included, for `rows`:
        forward, and forward with the backward pass to its input."""
        timed = min(rows, self.cap)
        if timed not in self._steps:
            self._steps[timed] = self._time_step(timed)
        forward, both = self._steps[timed]
        return forward * rows / timed, both * rows / timed

    def classifier(self) -> tuple[float, float]:
        """Seconds a row of the classifier, forward, and forward with backward."""
        images = self._rows(min(len(self.images), self.cap))
        both = self._both(lambda x: self.defense.classifier(x), images)
        return both[0] / len(images), both[1] / len(images)

    def mask(self) -> float:
        """Seconds an image of the attention mask."""
        images = self._rows(min(len(self.images), self.cap))
        samples = torch.arange(len(images), device=images.device)
        return self._median(lambda: self.defense.mask(images, samples)) / len(images)

    def _rows(self, count: int) -> Tensor:
        return self.images[torch.arange(count, device=self.images.device) % len(self.images)]

    def _time_step(self, rows: int) -> tuple[float, float]:
        purifier, denoiser = self.defense.purifier, self.defense.denoiser
        if purifier is None or denoiser is None:
            return 0.0, 0.0
        images = self._rows(rows)
        noise = noise_for(images)
        with torch.no_grad():
            state = purifier.start(denoiser, images, noise)
            mask = self.defense.mask(images, noise.samples)
        step = max(self.defense.plan, key=lambda step: step.network_calls)
        forward, both = self._both(
            lambda x: purifier.advance(denoiser, step, x, images, mask, noise), state
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
        found = []
        for _ in range(1 + REPEATS):
            start = time.perf_counter()
            run()
            if self.images.device.type == "cuda":
                torch.cuda.synchronize(self.images.device)
            found.append(time.perf_counter() - start)
        return statistics.median(found[1:])


def resolve(
    stopwatch: Stopwatch, wish: Execution, attack: Attack, images: int, budget: int
) -> Execution:
    """What a defence's execution leaves open, for blocks of `images` under an attack."""
    defense = stopwatch.defense
    rows = images * attack.draws(defense)
    footprint = defense.footprint(stopwatch.images)
    return choose(wish, len(defense.plan), rows, footprint, budget, stopwatch.step)


def phases(
    answering: Stopwatch,
    attacked: Stopwatch,
    cells: Sequence[Cell],
    protocol: Protocol,
    images: int,
) -> list[Phase]:
    """The parts of an evaluation of one defence in order, certificates left out: the clean images,
    then each attack with its selection and report."""
    defense, target = answering.defense, attacked.defense
    size = defense.execution.micro_batch or len(answering.images)
    call = answering.step(size)[0] / size
    answer = defense.network_calls * call + answering.classifier()[0]
    masks = answering.mask()
    query = target.network_calls * attacked.step(size)[0] / size + attacked.classifier()[0]
    asked = images * protocol.purifications(defense)
    seconds = asked * answer + 2 * images * masks
    found = [Phase(CLEAN, asked * defense.network_calls, 0, seconds)]
    for cell in cells:
        count = images if cell.limit is None else min(cell.limit, images)
        attack = cell.attack
        gradients = count * attack.purifications(target, cell.known)
        asked = count * protocol.purifications(defense, cell)
        queries = count * attack.queries(target, cell.known)
        calls, differentiated = target.gradient_calls(attack.execution(target))
        looks = attack.candidates(target) + 1 + 2 * bool(cell.known)
        found.append(
            Phase(
                cell.name,
                gradients * calls + queries * target.network_calls + asked * defense.network_calls,
                gradients * differentiated,
                gradients * _gradient(attacked, attack, cell.known)
                + queries * query
                + asked * answer
                + count * looks * masks,
            )
        )
    return found


def _gradient(stopwatch: Stopwatch, attack: Attack, known: tuple[Group, ...]) -> float:
    """Seconds of one differentiated purification of one image, its share of the mask included."""
    defense = stopwatch.defense
    draws = attack.draws(defense, known)
    size = defense.execution.micro_batch or len(stopwatch.images) * draws
    forward, both = (seconds / size for seconds in stopwatch.step(size))
    calls, differentiated = defense.gradient_calls(attack.execution(defense))
    purification = (calls - differentiated) * forward + differentiated * both
    return purification + stopwatch.classifier()[1] + stopwatch.mask() / draws


def certificate_phase(
    answering: Stopwatch,
    attacked: Stopwatch,
    plain: Defense,
    accelerated: bool,
    attacks: Sequence[Attack] = (),
) -> Phase:
    """What certifying `attacked` costs; `plain` is the same with the network not accelerated, and
    the exact gradient is that of the defence of `answering`. In float64 on the CPU: the policies
    compared, finite differences of which each is settled by its first step size, and the exact
    gradient of the attack's draws. On the run's device: the attack's gradient of a block, and what
    `attacks` follow in its place.
    """
    count, images = len(answering.images), answering.images[:IMAGES]
    number = draws(attacked.defense, plain if accelerated else attacked.defense, count)
    double = Stopwatch(copy.deepcopy(plain).cpu().double(), images.cpu().double())
    exact = copy.deepcopy(answering.defense).cpu().double()
    truth = double if answering is attacked else Stopwatch(exact, images.cpu().double())
    calls = [0, 0]
    seconds = 0.0

    def spend(clock: Stopwatch, rows: int, forward: int, differentiated: int) -> None:
        calls[0] += rows * forward
        calls[1] += rows * differentiated
        once, both = (taken / rows for taken in clock.step(rows))
        nonlocal seconds
        seconds += rows * ((forward - differentiated) * once + differentiated * both)

    for execution in policies(plain, images, budget_bytes(torch.device("cpu"))):
        spend(double, len(images), *plain.gradient_calls(execution))
    spend(double, len(images), DIRECTIONS * 2 * plain.network_calls, 0)
    for _ in range(number):
        spend(truth, len(images), *answering.defense.gradient_calls(REFERENCE))
    rows = number * count
    used = attacked.defense
    spend(attacked, rows, *used.gradient_calls())
    for attack in substitutes(attacks, used).values():
        spend(attacked, rows, *used.gradient_calls(attack.execution(used)))
    if accelerated:
        how = plain_execution(used.execution)
        spend(attacked, rows, *plain.gradient_calls(how))
    return Phase("certificate", calls[0], calls[1], seconds)


@torch.no_grad()
def latency(defense: Defense, image: Tensor) -> float:
    """Seconds for one image (1, C, H, W) to be purified and classified, the second call of two."""
    noise = noise_for(image)
    for _ in range(2):
        start = time.perf_counter()
        defense(image, noise).argmax(1).tolist()  # waits for the device
        seconds = time.perf_counter() - start
    return seconds
