"""What an evaluation costs, known before it starts: attacks say how often they ask, network calls
are counted on the plan, and one call is timed here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hetpure.evaluation.protocol import CLEAN, Cell, Protocol
from hetpure.evaluation.rows import Row
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.gradients import Execution
from hetpure.memory import Footprint

BACKWARD = 2  # forward passes that a backward pass costs, about


@dataclass(frozen=True)
class CellCost:
    """What a cell costs for one image, at most.

    Args:
        gradients: purifications that the attack differentiates.
        queries: purifications that it asks for without a gradient.
        answers: purifications that choose and report.
        masks: attention masks beside those of gradients.
        draws: noise draws that share the mask of a gradient.
        calls_of_gradient: network calls of one gradient, forward (recomputed ones included) and
            differentiated.
        calls_of_query: of the defence that is attacked.
        calls_of_answer: of the defence that is evaluated.
    """

    gradients: int
    queries: int
    answers: int
    masks: int
    draws: int
    calls_of_gradient: tuple[int, int]
    calls_of_query: int
    calls_of_answer: int

    @property
    def network_calls(self) -> int:
        """Forward ones."""
        return (
            self.gradients * self.calls_of_gradient[0]
            + self.queries * self.calls_of_query
            + self.answers * self.calls_of_answer
        )

    @property
    def differentiated(self) -> int:
        """How many network calls are differentiated."""
        return self.gradients * self.calls_of_gradient[1]

    @property
    def gradient_work(self) -> int:
        """Of one gradient, in forward passes of the network; the classifier alone counts for
        one."""
        forward, differentiated = self.calls_of_gradient
        return max(forward + BACKWARD * differentiated, 1 + BACKWARD)

    @property
    def answer_work(self) -> int:
        """Of one purification without a gradient, in the same unit."""
        return max(1, self.calls_of_answer)

    @property
    def work(self) -> int:
        """Of the cell, in the same unit."""
        asked = self.queries + self.answers
        return self.gradients * self.gradient_work + asked * self.answer_work

    def seconds(self, evaluated: Stopwatch, attacked: Stopwatch) -> float:
        """Of the cell, by stopwatches of the two defences."""
        seconds = self.masks * evaluated.mask()
        seconds += self.answers * answer_seconds(evaluated)
        if self.queries:
            seconds += self.queries * answer_seconds(attacked)
        if self.gradients:
            seconds += self.gradients * gradient_seconds(attacked, self)
        return seconds


def cell_cost(row: Row, cell: Cell, protocol: Protocol) -> CellCost:
    """What a cell of a row costs. An attacker who knows noise has the clean image asked on it too,
    and the noise checked."""
    defense, attacked = row.defense, row.attacked
    attack = cell.attack.cost(attacked, cell.known)
    known = bool(cell.known)
    candidates = 1 if cell.name == CLEAN else attack.candidates + known
    selections = candidates * protocol.selections(defense, cell.known)
    return CellCost(
        gradients=attack.gradients,
        queries=attack.queries,
        answers=protocol.reports(defense, cell.known) + selections + 2 * known,
        masks=attack.candidates + 1 + 2 * known,
        draws=attack.draws,
        calls_of_gradient=attacked.gradient_calls(cell.attack.execution(attacked)),
        calls_of_query=attacked.network_calls,
        calls_of_answer=defense.network_calls,
    )


def block_work(row: Row, protocol: Protocol, first: int, count: int) -> int:
    """Forward passes that a row costs for `count` images from position `first` on."""
    return sum(
        (cell.images(first + count) - cell.images(first)) * cell_cost(row, cell, protocol).work
        for cell in row.cells
    )


def slowest_cell(row: Row, protocol: Protocol, evaluated: Stopwatch, attacked: Stopwatch) -> float:
    """Seconds of one image in the row's dearest cell."""
    costs = (cell_cost(row, cell, protocol) for cell in row.cells)
    return max(cost.seconds(evaluated, attacked) for cost in costs)


def answer_seconds(clock: Stopwatch) -> float:
    """Seconds of one purification and classification of one image, in its micro-batch."""
    size = clock.defense.execution.micro_batch or len(clock.images)
    return clock.defense.network_calls * clock.step(size)[0] / size + clock.classifier()[0]


def gradient_seconds(clock: Stopwatch, cost: CellCost) -> float:
    """Seconds of one differentiated purification of one image, its share of the mask included."""
    size = clock.defense.execution.micro_batch or len(clock.images) * cost.draws
    purified = purification_seconds(clock, size, *cost.calls_of_gradient)
    return purified + clock.mask() / cost.draws


def purification_seconds(clock: Stopwatch, size: int, forward: int, differentiated: int) -> float:
    """Seconds of the gradient of one image in a batch of `size`: so many forward network calls, so
    many of them differentiated, and the classifier."""
    once, both = (seconds / size for seconds in clock.step(size))
    purified = (forward - differentiated) * once + differentiated * both
    return purified + clock.classifier()[1]


@dataclass(frozen=True)
class Phase:
    """A part of an evaluation: forward network calls of all its images together, recomputed ones
    included, how many of them are differentiated, and predicted seconds."""

    name: str
    network_calls: int
    differentiated: int
    seconds: float


@dataclass(frozen=True)
class RowPlan:
    """One defence's part of a plan: its phases, how it is computed, seconds of one network call for
    one image (forward, forward with backward), what it takes in memory, and the steps of the
    purifier that is attacked; the most that its gradient checks may take, in seconds and in bytes
    of float64."""

    phases: Sequence[Phase]
    execution: Execution
    call_seconds: tuple[float, float]
    footprint: Footprint
    steps: int
    check_seconds: float
    check_bytes: int

    @property
    def seconds(self) -> float:
        """Of the whole defence, its gradient checks included."""
        return self.check_seconds + sum(phase.seconds for phase in self.phases)

    @property
    def gradient_bytes(self) -> int:
        """What one gradient takes in memory as it is computed."""
        taped = self.steps - self.execution.recomputed(self.steps)
        return self.footprint.need(self.execution.micro_batch or 1, self.steps, taped)


def total_seconds(rows: Mapping[str, RowPlan]) -> float:
    """Of the whole evaluation."""
    return sum(row.seconds for row in rows.values())


def total_bytes(rows: Mapping[str, RowPlan]) -> int:
    """The most that is taken at once beside the networks."""
    return max(max(row.gradient_bytes, row.check_bytes) for row in rows.values())


def phases(
    row: Row, protocol: Protocol, count: int, evaluated: Stopwatch, attacked: Stopwatch
) -> list[Phase]:
    """The parts of a row's evaluation on `count` images in order, gradient checks left out."""
    parts = []
    for cell in row.cells:
        cost, images = cell_cost(row, cell, protocol), cell.images(count)
        parts.append(
            Phase(
                cell.name,
                images * cost.network_calls,
                images * cost.differentiated,
                images * cost.seconds(evaluated, attacked),
            )
        )
    return parts
