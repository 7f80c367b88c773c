"""What an analysis looks at, what it costs, and how it asks a defence on a block of images."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hetpure.attacks import PGD, Attack
from hetpure.attacks.losses import criterion
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.evaluation.cost import cell_cost
from hetpure.evaluation.protocol import (
    CLEAN,
    CLEAN_CELL,
    Block,
    Cell,
    Outcome,
    Protocol,
    evaluate_cell,
)
from hetpure.evaluation.rows import Row
from hetpure.evaluation.stopwatch import Stopwatch
from hetpure.expectation import Query, answers, expected_loss
from hetpure.gradients import EXACT, Execution
from hetpure.noise import Draw, Noise, Stream
from hetpure.purifiers import Purifier


@dataclass(frozen=True)
class Work:
    """Network calls for one image: forward ones, and those of them that are differentiated."""

    calls: int = 0
    differentiated: int = 0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.calls + other.calls, self.differentiated + other.differentiated)

    def seconds(self, clock: Stopwatch) -> float:
        """Of these calls, in micro-batches of the defence that the clock times."""
        size = clock.defense.execution.micro_batch or len(clock.images)
        once, both = (seconds / size for seconds in clock.step(size))
        return (self.calls - self.differentiated) * once + self.differentiated * both


@dataclass(frozen=True)
class Subject:
    """A row as an analysis looks at it.

    Args:
        name: of the row.
        defense: the row's own, never its surrogate.
        attack: what analyses vary.
        protocol: how draws are counted.
        seed: of all noise.
        first: id of the run's first image, which pictures of one image show.
    """

    name: str
    defense: Defense
    attack: PGD
    protocol: Protocol
    seed: int
    first: int

    def outcomes(self, block: Block, cells: Mapping[str, Cell]) -> dict[str, Outcome]:
        """What is found on the clean images, as `clean`, and under each attack."""

        def evaluated(cell: Cell, kept: Tensor | None = None) -> Outcome:
            return evaluate_cell(
                self.name, self.defense, cell, block, self.protocol, self.seed, clean=kept
            )

        clean = evaluated(CLEAN_CELL)
        kept = torch.tensor([record.kept for record in clean.records]).to(block.labels)
        return {CLEAN: clean} | {name: evaluated(cell, kept) for name, cell in cells.items()}

    def work(self, cells: Iterable[Cell]) -> Work:
        """What `outcomes` costs for one image, at most."""
        row = Row(self.name, self.defense, None)
        costs = [cell_cost(row, cell, self.protocol) for cell in (CLEAN_CELL, *cells)]
        return sum((Work(cost.network_calls, cost.differentiated) for cost in costs), Work())

    def work_of(self, *, gradients: int = 0, answers: int = 0) -> Work:
        """Of so many differentiated purifications of one image, and of so many others."""
        forward, differentiated = self.defense.gradient_calls(self.attack.execution(self.defense))
        calls = gradients * forward + answers * self.defense.network_calls
        return Work(calls, gradients * differentiated)

    def purified_by(self, purifier: Purifier) -> "Subject":
        """The same networks with another purifier, differentiated by the same policy. An exact one
        tapes no more steps than the row does: as many fit."""
        old = self.defense
        defense = Defense(
            old.classifier,
            purifier,
            old.denoiser,
            old.attention_mask,
            old.execution,
            old.purified_size,
        )
        if old.execution.policy in EXACT and old.execution.resolved:
            taped = len(old.plan) - old.execution.recomputed(len(old.plan))
            defense.execution = Execution(
                "hybrid", min(taped, len(defense.plan)), old.execution.micro_batch
            )
        return replace(self, defense=defense)

    def probes(self, count: int) -> list[Noise]:
        """Fresh draws that nothing was chosen on; one where nothing is drawn."""
        noise = Noise.of(self.seed, Stream.PROBE)
        drawn = range(count if self.defense.stochastic else 1)
        return [noise.redraw(Draw(Stream.PROBE, index)) for index in drawn]

    def expected_loss(self, images: Tensor, block: Block, draws: int) -> Tensor:
        """The attack's expected loss (B,) over fresh draws, of images (B, C, H, W) that take the
        place of the block's."""
        return self.loss_of(self.answers(images, block, draws), block)

    def loss_of(self, logits: Tensor, block: Block) -> Tensor:
        """The attack's expected loss (B,) of answers (N, B, classes) for a block's images."""
        return expected_loss(logits, criterion(self.attack.loss, block.labels), self.attack.average)

    @torch.no_grad()
    def answers(self, images: Tensor, block: Block, draws: int) -> Tensor:
        """Logits (N, B, classes) on fresh draws, of images (B, C, H, W) in the place of the
        block's, each with its own mask."""
        mask = self.defense.mask(images, block.samples)
        return answers(self.defense, Query(images, block.samples, mask, self.probes(draws)))


def right(outcome: Outcome) -> list[list[bool]]:
    """For each image, on which report draws its answer is right."""
    return [
        [predicted == record.label for predicted in record.predictions]
        for record in outcome.records
    ]


def subject_of(row: Row, attack: Attack, protocol: Protocol, seed: int, first: int) -> Subject:
    """The row as analyses look at it. InputError where its attack is not one that they can vary."""
    if type(attack) is not PGD:
        raise InputError(
            f"analyze varies steps, draws and restarts of a PGD, and the attack is a"
            f" {type(attack).__name__}: give --model.attack=PGD"
        )
    for name in ("momentum", "neighbours"):
        if getattr(attack, name):
            raise InputError(f"analyze walks PGD's plain steps: give --model.attack.{name}=0")
    if attack.targets:
        raise InputError("analyze looks at untargeted attacks: give --model.attack.targets=0")
    if attack.epsilon <= 0:
        raise InputError("analyze needs a radius above 0: give --model.attack.epsilon")
    if attack.mask == "all":
        attack = replace(attack, mask="recomputed")
    return Subject(row.name, row.defense, attack, protocol, seed, first)
