"""What an evaluation costs, known before it starts: attacks say how often they ask, network calls
are counted on the plan, and one call is timed here."""

from dataclasses import dataclass

from hetpure.attacks.attack import Cost
from hetpure.evaluation.protocol import CLEAN, Cell, Protocol
from hetpure.evaluation.rows import Row
from hetpure.evaluation.stopwatch import Stopwatch

BACKWARD = 2  # forward passes that a backward pass costs, about


@dataclass(frozen=True)
class CellCost:
    """What a cell costs for one image, at most.

    Args:
        attack: what the attack asks for.
        answers: purifications that choose and report.
        masks: attention masks beside those of gradients.
        calls_of_gradient: network calls of one gradient, forward (recomputed ones included) and
            differentiated.
        calls_of_query: of the defence that is attacked.
        calls_of_answer: of the defence that is evaluated.
    """

    attack: Cost
    answers: int
    masks: int
    calls_of_gradient: tuple[int, int]
    calls_of_query: int
    calls_of_answer: int

    @property
    def network_calls(self) -> int:
        """Forward ones."""
        return (
            self.attack.gradients * self.calls_of_gradient[0]
            + self.attack.queries * self.calls_of_query
            + self.answers * self.calls_of_answer
        )

    @property
    def purifications(self) -> int:
        """Differentiated or not; the classifier's own gradient is of none."""
        gradients = self.attack.gradients
        if self.calls_of_answer and not self.calls_of_gradient[0]:
            gradients = 0
        return gradients + self.attack.queries + self.answers

    @property
    def differentiated(self) -> int:
        """How many network calls are differentiated."""
        return self.attack.gradients * self.calls_of_gradient[1]

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
        asked = self.attack.queries + self.answers
        return self.attack.gradients * self.gradient_work + asked * self.answer_work

    def seconds(self, evaluated: Stopwatch, attacked: Stopwatch) -> float:
        """Of the cell, by stopwatches of the two defences."""
        seconds = self.masks * evaluated.mask + self.answers * answer_seconds(evaluated)
        asked = attacked if self.attack.gradients else evaluated
        seconds += self.attack.queries * answer_seconds(asked)
        if self.attack.gradients:
            seconds += self.attack.gradients * gradient_seconds(attacked, self)
        return seconds


def cell_cost(row: Row, cell: Cell, protocol: Protocol) -> CellCost:
    """What a cell of a row costs. An attacker who knows noise has the clean image asked on it too,
    and the noise checked."""
    defense, attacked = row.defense, row.asked_by(cell)
    attack = cell.attack.cost(attacked, cell.known)
    known = bool(cell.known)
    candidates = 1 if cell.name == CLEAN else attack.candidates + known
    selections = candidates * protocol.selections(defense, cell.known)
    return CellCost(
        attack=attack,
        answers=protocol.reports(defense, cell.known) + selections + 2 * known,
        masks=attack.candidates + 1 + 2 * known,
        calls_of_gradient=attacked.gradient_calls(cell.attack.execution(attacked)),
        calls_of_query=attacked.network_calls,
        calls_of_answer=defense.network_calls,
    )


def audit_costs(row: Row, protocol: Protocol) -> dict[str, int]:
    """Purifications an image of each cell of a row's audit."""
    return {cell.name: cell_cost(row, cell, protocol).purifications for cell in row.audit}


def answer_seconds(clock: Stopwatch) -> float:
    """Seconds of one purification and classification of one image, in its micro-batch."""
    size = clock.defense.execution.micro_batch or len(clock.images)
    return clock.defense.network_calls * clock.step(size)[0] / size + clock.classifier[0]


def gradient_seconds(clock: Stopwatch, cost: CellCost) -> float:
    """Seconds of one differentiated purification of one image, its share of the mask included."""
    size = clock.defense.execution.micro_batch or len(clock.images) * cost.attack.draws
    once, both = (seconds / size for seconds in clock.step(size))
    forward, differentiated = cost.calls_of_gradient
    purified = (forward - differentiated) * once + differentiated * both
    return purified + clock.classifier[1] + clock.mask / cost.attack.draws
