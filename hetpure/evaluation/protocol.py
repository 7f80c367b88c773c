"""From a block of images to records: attack, choose on selection draws, report on fresh draws."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hetpure.attacks import Addresses, Attack, Monitor
from hetpure.attacks.attack import (
    SILENT,
    Target,
    check_candidates,
    check_labels,
    unknown_groups,
)
from hetpure.attacks.null import NullAttack
from hetpure.defense import Defense, count_network_calls
from hetpure.errors import InputError, check_at_least, check_at_most
from hetpure.expectation import Query, answers
from hetpure.noise import MOST_DRAWS, Draw, Group, Noise, Stream, attack_draw
from hetpure.numbers import counted

CLEAN, NULL, AUDIT = "clean", "null", "audit"  # names that records give what is no attack
FULL_REPORT_DRAWS, FULL_SELECTION_DRAWS = 20, 10


@dataclass(frozen=True)
class Protocol:
    """How many noise draws choose an adversarial example and how many report on it.

    Args:
        report_draws: R of `single`, K of `vote`, `mean_logit` and `mean_probability`, N of `worst`.
        selection_draws: draws of the selection stream that choose among candidates.
    """

    report_draws: int = FULL_REPORT_DRAWS
    selection_draws: int = FULL_SELECTION_DRAWS

    def __post_init__(self) -> None:
        check_at_least(self, 1, "report_draws", "selection_draws")
        check_at_most(self, MOST_DRAWS, "report_draws", "selection_draws")

    def reports(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        """Report draws: one where nothing unknown is drawn, since the answer is always the same."""
        return self.report_draws if unknown_groups(defense, known) else 1

    def selections(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        """Selection draws, by the same rule."""
        return self.selection_draws if unknown_groups(defense, known) else 1

    def weaker_than_full(self) -> list[str]:
        """What of the counting is below the full protocol."""
        return [
            f"{counted(count, f'{name} draw')} (full: {full})"
            for name, count, full in (
                ("report", self.report_draws, FULL_REPORT_DRAWS),
                ("selection", self.selection_draws, FULL_SELECTION_DRAWS),
            )
            if count < full
        ]


@dataclass(frozen=True)
class Cell:
    """What is run against one defence on every block: an attack, or nothing for the clean images.

    Args:
        name: of the attack in records and tables.
        attack: the attack; the null attack for the clean images.
        known: groups of noise that the attacker knows and the defence then runs with, the
            deterministic white box (DW-box); none is the white box.
        limit: only the first so many samples.
        member: number of the attack in the addresses of its noise: no two attacks share draws,
            but for variants of one, which are compared.
        report_from: the first report draw. The clean images and all attacks are reported on the
            same draws, the null attack on draws of its own: it would else equal the clean images.
        by_attacker: report on draws of the main attack, one of each iteration, for the audit: a
            defence must not know who asks.
        exchanged: report on the noise of other images of the block, for the audit: a defence must
            not know whose image it gets.
        itself: the defence is attacked, also where a surrogate stands in for it.
    """

    name: str
    attack: Attack
    known: tuple[Group, ...] = ()
    limit: int | None = None
    member: int = 0
    report_from: int = 0
    by_attacker: bool = False
    exchanged: bool = False
    itself: bool = False

    def report(self, index: int) -> Draw:
        """One of its report draws."""
        if self.by_attacker:  # an iteration each, as long as there are some
            return attack_draw(0, 0, index % 2**16, index >> 16)
        return Draw(Stream.REPORT, index)

    def images(self, count: int) -> int:
        """How many of the first `count` images it is run on."""
        return count if self.limit is None else min(self.limit, count)


CLEAN_CELL = Cell(CLEAN, NullAttack())


@dataclass(frozen=True)
class Record:
    """One sample under one attack: a line of `records.jsonl`.

    `predictions` holds the predicted class for each report draw, `selection` how many selection
    draws were right for each candidate (the attack's, then the clean image; of a clean record, that
    alone), `chosen` the candidate reported. `linf` and `l2` are its distance from the image in
    pixel units. `threat` is the ball it was looked for in, `known` the groups of noise that the
    attacker knew: where there are any, the predictions are those of the protocol `dw_box`.
    `network_calls` are the forward calls of the diffusion network spent on this sample.
    `mean_logit` and `mean_probability` are the classes predicted from all report draws at once,
    see `mean_predictions`; records of earlier versions have none. `skipped` is what the attack did
    not look for, since an attack before it had found it: the record is that attack's.
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
    threat: str | None
    known: list[Group]
    mean_logit: int | None = None
    mean_probability: int | None = None
    skipped: bool = False

    @property
    def kept(self) -> int:
        """Selection draws on which the chosen candidate was still right."""
        return self.selection[self.chosen]


def parsed(line: Mapping[str, Any]) -> Record:
    """A record that was read. TypeError or ValueError where a field is missing, unknown, or of
    another kind."""
    record = Record(**line)
    means = [m for m in (record.mean_logit, record.mean_probability) if m is not None]
    lists = (record.predictions, record.selection, record.known)
    if not all(isinstance(each, list) for each in lists) or not record.predictions:
        raise ValueError("predictions, selection or known is no list")
    whole = [record.sample, record.label, record.chosen, record.network_calls, *means]
    if not all(type(n) is int for n in [*whole, *record.predictions, *record.selection]):
        raise ValueError("a class, a count or a sample is no whole number")
    if not 0 <= record.chosen < len(record.selection):
        raise ValueError("it lacks its selection draws")
    real = [record.linf, record.l2, *([] if record.coverage is None else [record.coverage])]
    if not all(type(n) in (int, float) for n in real):
        raise ValueError("a distance or the coverage is no number")
    names = [record.defense, record.attack, *([] if record.threat is None else [record.threat])]
    if not all(isinstance(name, str) for name in [*names, *record.known]):
        raise ValueError("a name is no text")
    return record


@dataclass(frozen=True)
class Block:
    """A block of images, pixel [0, 1], with their labels and sample ids."""

    images: Tensor
    labels: Tensor
    samples: Tensor

    def first(self, count: int) -> "Block":
        """Its first images."""
        return Block(self.images[:count], self.labels[:count], self.samples[:count])

    def take(self, index: Tensor) -> "Block":
        """Some of its images, by their positions (R,), int64."""
        return Block(self.images[index], self.labels[index], self.samples[index])


def mean_predictions(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The classes (B,) with the largest mean logit and with the largest mean probability, given the
    logits (N, B, classes) of N draws; the first of equals, as of a single draw.

    The mean logit is the prediction of Hill, Mitchell & Zhu (Stochastic Security, ICLR 2021) and of
    MEFA. The means are taken in float64, so that their rounding decides nothing.
    """
    logits = logits.double()
    return logits.mean(0).argmax(1), logits.softmax(2).mean(0).argmax(1)


@dataclass(frozen=True)
class Outcome:
    """Records of a block and the adversarial images they report on, (B, C, H, W)."""

    records: list[Record]
    adversarial: Tensor


def evaluate_cell(
    row: str,
    defense: Defense,
    cell: Cell,
    block: Block,
    protocol: Protocol,
    seed: int,
    *,
    clean: Tensor | None = None,
    attacked: Defense | None = None,
    monitor: Monitor = SILENT,
) -> Outcome:
    """Predictions of one defence for one block under one attack, or on the clean images.

    The attack differentiates `attacked`, a surrogate, where one is given, and else the defence
    itself; choosing and reporting are always on the defence. For each sample the reported example
    is the candidate on which the defence is right least often over the selection draws; ties go to
    the attack. The clean image is a candidate of every attack, and the only one of `CLEAN_CELL`.
    The report draws are used for nothing else. `clean` are the selection draws (B,) on which the
    defence is right on the clean images, where they are known.
    """
    check_labels(block.labels, block.samples, defense.classifier.num_classes)
    noise, samples, known = Noise.of(seed, Stream.DW_BOX), block.samples, cell.known
    ids = samples.roll(1) if cell.exchanged else samples

    @torch.no_grad()
    def masks(candidates: Tensor) -> Tensor | None:
        """Of candidates (C, B, ...), where there are any: a control mask may know ids."""
        found = [defense.mask(candidate, samples) for candidate in candidates]
        return torch.stack([mask for mask in found if mask is not None]) if defense.masked else None

    @torch.no_grad()
    def ask(candidates: Tensor, mask: Tensor | None, noises: list[Noise]) -> Tensor:
        """Logits (N, C, B, classes): all candidates (C, B, ...) in one question, so that pieces are
        full whatever a candidate's own share."""
        count = len(candidates)
        flat = None if mask is None else mask.flatten(0, 1)
        query = Query(candidates.flatten(0, 1), ids.repeat(count), flat, noises)
        logits = answers(defense, query, monitor.answered)
        return logits.reshape(len(noises), count, len(ids), -1)

    def kept(candidates: Tensor, mask: Tensor | None) -> Tensor:
        """On how many selection draws the defence is right (C, B)."""
        draws = range(protocol.selections(defense, known))
        noises = [noise.redraw(Draw(Stream.SELECTION, draw), keep=known) for draw in draws]
        return (ask(candidates, mask, noises).argmax(3) == block.labels).sum(0)

    with count_network_calls(defense) as calls:
        candidates = block.images[None]
        if cell is not CLEAN_CELL:
            addresses = Addresses(samples, noise, known, cell.member)
            target = Target(attacked or defense, block.images, block.labels, addresses, monitor)
            if known:
                _check_deterministic(defense, block, noise, monitor)
            adversarial = cell.attack(target).detach()
            check_candidates(adversarial, block.images, samples, cell.attack.threat)
            candidates = torch.cat([adversarial, candidates])
        mask = masks(candidates)
        if clean is None or known:
            selection = kept(candidates, mask)
        else:
            others = kept(candidates[:-1], None if mask is None else mask[:-1])
            selection = torch.cat([others, clean[None]])
        chosen = selection.argmin(0)
        place = chosen, torch.arange(len(chosen), device=chosen.device)
        reported, mask = candidates[place], None if mask is None else mask[place]
        draws = range(cell.report_from, cell.report_from + protocol.reports(defense, known))
        report = [noise.redraw(cell.report(draw), keep=known) for draw in draws]
        logits = ask(reported[None], None if mask is None else mask[None], report)[:, 0]
    predictions = logits.argmax(2).T
    mean_logit, mean_probability = mean_predictions(logits)
    offset = (reported - block.images).flatten(1)
    linf, l2 = offset.abs().amax(1), offset.norm(dim=1)
    coverage = None if mask is None else mask.flatten(1).mean(1)
    threat = cell.attack.threat
    records = [
        Record(
            defense=row,
            attack=cell.name,
            sample=int(samples[i]),
            label=int(block.labels[i]),
            predictions=predictions[i].tolist(),
            selection=selection[:, i].tolist(),
            chosen=int(chosen[i]),
            linf=float(linf[i]),
            l2=float(l2[i]),
            coverage=None if coverage is None else float(coverage[i]),
            network_calls=sum(calls) // len(block.images),
            threat=None if threat is None else threat.ball,
            known=list(known),
            mean_logit=int(mean_logit[i]),
            mean_probability=int(mean_probability[i]),
        )
        for i in range(len(block.images))
    ]
    return Outcome(records, reported)


def evaluate_block(
    row: str,
    defense: Defense,
    attack: Attack,
    block: Block,
    protocol: Protocol,
    seed: int,
    *,
    attacked: Defense | None = None,
) -> Outcome:
    """Clean and robust predictions of one defence for one block, under one attack."""
    clean = evaluate_cell(row, defense, CLEAN_CELL, block, protocol, seed)
    kept = torch.tensor([record.kept for record in clean.records]).to(block.labels)
    cell = Cell(attack.name, attack)
    robust = evaluate_cell(row, defense, cell, block, protocol, seed, clean=kept, attacked=attacked)
    return Outcome([*clean.records, *robust.records], robust.adversarial)


@torch.no_grad()
def _check_deterministic(defense: Defense, block: Block, noise: Noise, monitor: Monitor) -> None:
    """The deterministic white box asks for a defence that the same noise makes deterministic: two
    runs must agree bit for bit before anything is attacked."""
    query = Query(block.images, block.samples, defense.mask(block.images, block.samples), [noise])
    first, second = (answers(defense, query, monitor.answered) for _ in range(2))
    if not torch.equal(first, second):
        raise InputError(
            "the defence answers differently when the same images and noise are given again:"
            " what is drawn outside its noise (dropout, a generator?) no attacker can know"
        )
