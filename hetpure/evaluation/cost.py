"""What an evaluation costs, known before it starts: network calls are counted on the plan, one call
is timed here, and memory is measured on one."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.attacks import Attack
from hetpure.defense import Defense
from hetpure.evaluation.defense_check import (
    REFERENCE,
    Subject,
    float64_footprint,
    plain_execution,
    policies,
)
from hetpure.evaluation.extent import IMAGES, Extent, extents, said, thinned, widest
from hetpure.evaluation.protocol import CLEAN, Cell, Protocol
from hetpure.gradient_check import float64_device, in_float64
from hetpure.gradients import Execution
from hetpure.memory import Footprint, choose
from hetpure.noise import Group, noise_for

REPEATS = 3
# A gradient check may cost as much as so many steps of the main attack on one block, or a minute.
ATTACK_STEPS, MINUTE = 5, 60.0
TRIES = 2  # step sizes of a finite difference, on average: at the first one a kink may be crossed
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
    medians of `repeats` calls after a first one."""

    def __init__(self, defense: Defense, images: Tensor, repeats: int = REPEATS) -> None:
        self.defense = defense
        self.repeats = repeats
        self.images = images.detach()
        cap = TIMED_ROWS if images.device.type == "cpu" else TIMED_ROWS_ACCELERATOR
        self.cap = cap
        self._steps: dict[int, tuple[float, float]] = {}
        self._classifier: tuple[float, float] | None = None

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
        if self._classifier is None:
            images = self._rows(min(len(self.images), self.cap))
            forward, both = self._both(lambda x: self.defense.classifier(x), images)
            self._classifier = forward / len(images), both / len(images)
        return self._classifier

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
        found = []
        for _ in range(1 + self.repeats):
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
    """The parts of an evaluation of one defence in order, gradient checks left out: the clean images,
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
    calls = defense.gradient_calls(attack.execution(defense))
    return _purification(stopwatch, size, *calls) + stopwatch.mask() / draws


def _purification(clock: Stopwatch, size: int, forward: int, differentiated: int) -> float:
    """Seconds of the gradient of one of `size` rows: so many forward network calls, so many of them
    differentiated, and the classifier."""
    once, both = (seconds / size for seconds in clock.step(size))
    purified = (forward - differentiated) * once + differentiated * both
    return purified + clock.classifier()[1]


@dataclass(frozen=True)
class GradientCheckPlan:
    """What a gradient check will look at, what that costs, and the bytes that float64 takes for it."""

    extent: Extent
    phase: Phase
    memory: int


def plan_gradient_check(
    subject: Subject, attacked: Stopwatch, budget: int, seconds: float
) -> GradientCheckPlan:
    """The widest gradient check that fits into `budget` bytes and so many seconds. The stopwatch is of
    what the subject's attack differentiates, with a block of the run's images."""
    images, plain = attacked.images[:IMAGES], subject.unaccelerated
    footprint = float64_footprint(plain, images)
    point = images.to(float64_device(images.device)).double()
    double = Stopwatch(in_float64(plain), point, attacked.repeats)
    found: dict[Extent, GradientCheckPlan] = {}

    def fits(extent: Extent) -> bool:
        short = thinned(plain, extent.plan)
        compared = policies(short, extent.images, footprint, budget)
        memory = _memory(compared, extent, footprint)
        phase = gradient_check_phase(subject, attacked, double, extent, compared)
        found[extent] = GradientCheckPlan(extent, phase, memory)
        return memory <= budget and phase.seconds <= seconds

    return found[widest(extents(subject.attacked.plan, len(attacked.images)), fits)]


def allowance(attacked: Stopwatch, attack: Attack) -> float:
    """Seconds that a row's gradient checks may take: with `gradient_phase`, those of five steps of the
    attack on a block like the stopwatch's, or a minute, whichever is longer."""
    rows = len(attacked.images) * attack.draws(attacked.defense)
    five = ATTACK_STEPS * rows * _gradient(attacked, attack, ())
    return max(MINUTE, five) - gradient_phase(attacked, attack).seconds


def gradient_phase(attacked: Stopwatch, attack: Attack) -> Phase:
    """The look at whether every image of a block has a gradient, on one draw."""
    images, defense = len(attacked.images), attacked.defense
    forward, differentiated = defense.gradient_calls(attack.execution(defense))
    seconds = images * _gradient(attacked, attack, ())
    return Phase("first gradients", images * forward, images * differentiated, seconds)


def gradient_check_phase(
    subject: Subject,
    attacked: Stopwatch,
    double: Stopwatch,
    extent: Extent,
    compared: Sequence[Execution],
) -> Phase:
    """A gradient check as far as `extent` goes. In float64, by the stopwatch `double`: the policies
    `compared`, finite differences, and mostly the exact gradient of the attack's draws. On the
    run's device: the attack's gradient, and what attacks follow in its place."""
    used, plain, count = subject.attacked, subject.unaccelerated, extent.images
    short = thinned(plain, extent.plan)
    calls = [0, 0]
    seconds = 0.0

    def spend(clock: Stopwatch, rows: int, defense: Defense, how: Execution | None) -> None:
        """Gradients of so many rows."""
        nonlocal seconds
        forward, differentiated = defense.gradient_calls(how)
        calls[0] += rows * forward
        calls[1] += rows * differentiated
        most = count if clock is double else used.execution.micro_batch or rows
        seconds += rows * _purification(clock, min(rows, most), forward, differentiated)

    for execution in compared:
        spend(double, count, short, execution)
    answers = 2 * TRIES * extent.directions * count
    calls[0] += answers * short.network_calls
    each = short.network_calls * double.step(count)[0] / count + double.classifier()[0]
    seconds += answers * each

    asked, exact, in_double = subject.compared(extent)
    draws = subject.draws(extent, asked)
    spend(attacked, draws * extent.block, asked, None)
    spend(double if in_double else attacked, draws * count, exact, REFERENCE)

    substitutes = subject.substitutes.values()
    rows = subject.draws(extent, used) * extent.block
    if asked is not used and (substitutes or plain is not used):
        spend(attacked, rows, used, None)
    for attack in substitutes:
        spend(attacked, rows, used, attack.execution(used))
    if plain is not used:
        spend(attacked, rows, plain, plain_execution(used.execution))
    words = said(count, extent.directions, len(extent.plan), len(used.plan))
    return Phase(words, calls[0], calls[1], seconds)


def _memory(compared: Sequence[Execution], extent: Extent, footprint: Footprint) -> int:
    """Bytes of the policy that takes most of them, in float64."""
    steps = len(extent.plan)
    taped = steps - min(execution.recomputed(steps) for execution in compared)
    return footprint.need(extent.images, steps, taped)


@torch.no_grad()
def latency(defense: Defense, image: Tensor) -> float:
    """Seconds for one image (1, C, H, W) to be purified and classified, the second call of two."""
    noise = noise_for(image)
    for _ in range(2):
        start = time.perf_counter()
        defense(image, noise).argmax(1).tolist()  # waits for the device
        seconds = time.perf_counter() - start
    return seconds
