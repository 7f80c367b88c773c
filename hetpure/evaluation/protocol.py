"""From a block of images to records: attack, choose on selection draws, report on fresh draws."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hetpure.attacks import Attack
from hetpure.defense import Defense, count_network_calls
from hetpure.errors import InputError
from hetpure.expectation import Query, answers
from hetpure.noise import Noise, Stream

CLEAN = "clean"
Progress = Callable[[int, bool], None]  # rows answered, and whether with a gradient
FULL_REPORT_DRAWS, FULL_SELECTION_DRAWS = 20, 10


@dataclass(frozen=True)
class Protocol:
    """How many noise draws choose an adversarial example and how many report on it.

    Args:
        report_draws: R of `single` and K of `vote`.
        selection_draws: draws of the selection stream that choose among candidates.
    """

    report_draws: int = FULL_REPORT_DRAWS
    selection_draws: int = FULL_SELECTION_DRAWS

    def __post_init__(self) -> None:
        for name in ("report_draws", "selection_draws"):
            if getattr(self, name) < 1:
                raise InputError(f"--model.protocol.{name} must be >= 1, got {getattr(self, name)}")

    def draws(self, defense: Defense, wanted: int) -> int:
        """A deterministic defence answers alike on every draw: one is enough."""
        return wanted if defense.stochastic else 1

    def purifications(self, defense: Defense, candidates: int) -> int:
        """Purifications without a gradient for one image: both reports, and the selection among
        the attack's candidates and the clean image."""
        reports = 2 * self.draws(defense, self.report_draws)
        return reports + (candidates + 1) * self.draws(defense, self.selection_draws)

    def weaker_than_full(self) -> list[str]:
        """What of the counting is below the full protocol."""
        found = []
        if self.report_draws < FULL_REPORT_DRAWS:
            found.append(f"{self.report_draws} report draws (full: {FULL_REPORT_DRAWS})")
        if self.selection_draws < FULL_SELECTION_DRAWS:
            found.append(f"{self.selection_draws} selection draws (full: {FULL_SELECTION_DRAWS})")
        return found


@dataclass(frozen=True)
class Record:
    """One sample under one attack: a line of `records.jsonl`.

    `predictions` holds the predicted class for each report draw, `selection` how many selection
    draws were right for each candidate (the attack's, then the clean image), `chosen` the
    candidate reported. `linf` and `l2` are its distance from the image in pixel units.
    `network_calls` are the forward calls of the diffusion network spent on this sample.
    """

    defense: str
    attack: str
    sample: int
    label: int
    predictions: list[int]
    selection: list[int]
    chosen: int
    linf: float
    l2: float
    coverage: float | None
    network_calls: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Block:
    """A block of images, pixel [0, 1], with their labels and sample ids."""

    images: Tensor
    labels: Tensor
    samples: Tensor


@dataclass(frozen=True)
class Outcome:
    """Records of a block and the adversarial images they report on, (B, C, H, W)."""

    records: list[Record]
    adversarial: Tensor


def evaluate_block(
    name: str,
    defense: Defense,
    attack: Attack,
    block: Block,
    protocol: Protocol,
    seed: int,
    *,
    attacked: Defense | None = None,
    progress: Progress = lambda rows, gradient: None,
) -> Outcome:
    """Standard and robust predictions of one defence for one block.

    The attack differentiates `attacked`, a surrogate, where one is given, and else the defence
    itself; choosing and reporting are always on the defence. For each sample the reported example
    is the candidate on which the defence is right least often over the selection draws; ties go to
    the attack. The report draws are used for nothing else.
    """
    report = [Noise.of(seed, Stream.REPORT, k) for k in range(protocol.report_draws)]
    select = [Noise.of(seed, Stream.SELECTION, k) for k in range(protocol.selection_draws)]
    report = report[: protocol.draws(defense, len(report))]
    select = select[: protocol.draws(defense, len(select))]

    with count_network_calls(defense) as standard_calls:
        clean_predictions, clean_coverage = predict(
            defense, block.images, block.samples, report, progress
        )
    with count_network_calls(defense) as robust_calls:
        candidates = attack(
            attacked or defense,
            block.images,
            block.labels,
            block.samples,
            report[0],
            progress=lambda rows: progress(rows, True),
        )
        candidates = torch.cat([candidates.detach(), block.images[None]])
        right = torch.stack(
            [
                (
                    predict(defense, candidate, block.samples, select, progress)[0]
                    == block.labels[:, None]
                ).sum(1)
                for candidate in candidates
            ]
        )
        chosen = right.argmin(0)
        adversarial = candidates[chosen, torch.arange(len(chosen), device=chosen.device)]
        predictions, coverage = predict(defense, adversarial, block.samples, report, progress)

    records = [
        *_records(name, CLEAN, block, block.images, clean_predictions, clean_coverage,
                  standard_calls.rows),
        *_records(name, attack.name, block, adversarial, predictions, coverage,
                  robust_calls.rows, right, chosen),
    ]  # fmt: skip
    return Outcome(records, adversarial)


@torch.no_grad()
def predict(
    defense: Defense,
    images: Tensor,
    samples: Tensor,
    noises: list[Noise],
    progress: Progress = lambda rows, gradient: None,
) -> tuple[Tensor, Tensor | None]:
    """(B, draws) predicted classes, and the (B,) fraction of attended pixels where there is one."""
    mask = defense.mask(images, samples)
    query = Query(images, samples, mask, noises)
    logits = answers(defense, query, lambda rows: progress(rows, False))
    return logits.argmax(2).T, None if mask is None else mask.flatten(1).mean(1)


def _records(
    name: str,
    attack: str,
    block: Block,
    images: Tensor,
    predictions: Tensor,
    coverage: Tensor | None,
    rows: int,
    right: Tensor | None = None,
    chosen: Tensor | None = None,
) -> list[Record]:
    offset = (images - block.images).flatten(1)
    linf, l2 = offset.abs().amax(1), offset.norm(dim=1)
    return [
        Record(
            defense=name,
            attack=attack,
            sample=int(block.samples[i]),
            label=int(block.labels[i]),
            predictions=predictions[i].tolist(),
            selection=[] if right is None else right[:, i].tolist(),
            chosen=0 if chosen is None else int(chosen[i]),
            linf=float(linf[i]),
            l2=float(l2[i]),
            coverage=None if coverage is None else float(coverage[i]),
            network_calls=rows // len(block.images),
        )
        for i in range(len(block.images))
    ]
