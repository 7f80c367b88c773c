"""From a block of images to records: attack, choose on selection draws, report on fresh draws."""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from hetpure.attacks import Addresses, Attack, Monitor
from hetpure.attacks.attack import SILENT, check_candidates, check_labels, unknown_groups
from hetpure.attacks.null import NullAttack
from hetpure.defense import Defense, count_network_calls
from hetpure.errors import InputError
from hetpure.expectation import Query, answers
from hetpure.noise import Draw, Group, Noise, Stream

CLEAN, NULL, AUDIT = "clean", "null", "audit"  # names that records give what is no attack
FULL_REPORT_DRAWS, FULL_SELECTION_DRAWS = 20, 10


@dataclass(frozen=True)
class Protocol:
    """How many noise draws choose an adversarial example and how many report on it.

    Args:
        report_draws: R of `single`, K of `vote` and N of `worst`.
        selection_draws: draws of the selection stream that choose among candidates.
    """

    report_draws: int = FULL_REPORT_DRAWS
    selection_draws: int = FULL_SELECTION_DRAWS

    def __post_init__(self) -> None:
        for name in ("report_draws", "selection_draws"):
            if getattr(self, name) < 1:
                raise InputError(f"--model.protocol.{name} must be >= 1, got {getattr(self, name)}")

    def draws(self, defense: Defense, wanted: int, known: tuple[Group, ...] = ()) -> int:
        """Where nothing unknown is drawn the defence answers alike every time: one is enough."""
        return wanted if unknown_groups(defense, known) else 1

    def purifications(self, defense: Defense, cell: "Cell | None" = None) -> int:
        """Purifications without a gradient for one image: of its clean evaluation, report and
        selection draws; of a cell, the report and the selection among the attack's candidates. An
        attacker who knows noise has the clean image asked on it too, and the noise checked."""
        if cell is None:
            return self.reported(defense) + self.draws(defense, self.selection_draws)
        locked = bool(cell.known)
        asked = cell.attack.candidates(defense) + locked
        selection = self.draws(defense, self.selection_draws, cell.known)
        return self.reported(defense, cell.known) + asked * selection + 2 * locked

    def reported(self, defense: Defense, known: tuple[Group, ...] = ()) -> int:
        """Purifications of one report on one image."""
        return self.draws(defense, self.report_draws, known)

    def weaker_than_full(self) -> list[str]:
        """What of the counting is below the full protocol."""
        found = []
        if self.report_draws < FULL_REPORT_DRAWS:
            found.append(f"{self.report_draws} report draws (full: {FULL_REPORT_DRAWS})")
        if self.selection_draws < FULL_SELECTION_DRAWS:
            found.append(f"{self.selection_draws} selection draws (full: {FULL_SELECTION_DRAWS})")
        return found


@dataclass(frozen=True)
class Cell:
    """One attack on one defence: what is run on every block.

    Args:
        name: of the attack in records and tables.
        attack: the attack.
        known: groups of noise that the attacker knows and the defence then runs with, the
            deterministic white box (DW-box); none is the white box.
        limit: only the first so many samples.
        member: number of the attack in the addresses of its noise: no two attacks share draws,
            but for variants of one, which are compared.
        report_from: the first report draw. The clean images and all attacks are reported on the
            same draws, the null attack on draws of its own: it would else equal the clean images.
    """

    name: str
    attack: Attack
    known: tuple[Group, ...] = ()
    limit: int | None = None
    member: int = 0
    report_from: int = 0


@dataclass(frozen=True)
class Record:
    """One sample under one attack: a line of `records.jsonl`.

    `predictions` holds the predicted class for each report draw, `selection` how many selection
    draws were right for each candidate (the attack's, then the clean image; of a clean record, that
    alone), `chosen` the candidate reported. `linf` and `l2` are its distance from the image in
    pixel units. `threat` is the ball it was looked for in, `known` the groups of noise that the
    attacker knew: where there are any, the predictions are those of the protocol `locked`.
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
    threat: str | None
    known: list[Group]

    @property
    def kept(self) -> int:
        """Selection draws on which the chosen candidate was still right."""
        return self.selection[self.chosen]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Block:
    """A block of images, pixel [0, 1], with their labels and sample ids."""

    images: Tensor
    labels: Tensor
    samples: Tensor

    def first(self, count: int) -> "Block":
        """Its first images."""
        return Block(self.images[:count], self.labels[:count], self.samples[:count])


@dataclass(frozen=True)
class Outcome:
    """Records of a block and the adversarial images they report on, (B, C, H, W)."""

    records: list[Record]
    adversarial: Tensor


def evaluate_clean(
    name: str,
    defense: Defense,
    block: Block,
    protocol: Protocol,
    seed: int,
    *,
    monitor: Monitor = SILENT,
) -> Outcome:
    """Standard predictions of one defence for one block, and on how many selection draws it is
    right: the clean image is a candidate of every attack."""
    check_labels(block.labels, block.samples, defense.classifier.num_classes)
    cell = Cell(CLEAN, NullAttack())
    with count_network_calls(defense) as calls:
        kept = _selection(defense, block.images, block, protocol, seed, (), monitor)[None]
        found = _report(defense, block.images, block, protocol, seed, cell, monitor)
    chosen = torch.zeros_like(block.labels)
    records = _records(name, cell, block, block.images, *found, calls.rows, kept, chosen)
    return Outcome(records, block.images)


def evaluate_attack(
    name: str,
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
    """Predictions of one defence for one block under one attack.

    The attack differentiates `attacked`, a surrogate, where one is given, and else the defence
    itself; choosing and reporting are always on the defence. For each sample the reported example
    is the candidate on which the defence is right least often over the selection draws; ties go to
    the attack. The report draws are used for nothing else. `clean` are the selection draws (B,) on
    which the defence is right on the clean images, where they are known.
    """
    check_labels(block.labels, block.samples, defense.classifier.num_classes)
    noise = Noise.of(seed, Stream.DW_BOX)
    addresses = Addresses(block.samples, noise, cell.known, cell.member)
    with count_network_calls(defense) as calls:
        if cell.known:
            _check_locked(defense, block, noise, monitor)
        found = cell.attack(
            attacked or defense, block.images, block.labels, addresses, monitor=monitor
        ).detach()
        check_candidates(found, block.images, block.samples, cell.attack.threat)
        right = [
            _selection(defense, candidate, block, protocol, seed, cell.known, monitor)
            for candidate in found
        ]
        if clean is None or cell.known:
            clean = _selection(defense, block.images, block, protocol, seed, cell.known, monitor)
        kept = torch.stack([*right, clean])
        chosen = kept.argmin(0)
        candidates = torch.cat([found, block.images[None]])
        adversarial = candidates[chosen, torch.arange(len(chosen), device=chosen.device)]
        reported = _report(defense, adversarial, block, protocol, seed, cell, monitor)
    records = _records(name, cell, block, adversarial, *reported, calls.rows, kept, chosen)
    return Outcome(records, adversarial)


def evaluate_block(
    name: str,
    defense: Defense,
    attack: Attack,
    block: Block,
    protocol: Protocol,
    seed: int,
    *,
    attacked: Defense | None = None,
    monitor: Monitor = SILENT,
) -> Outcome:
    """Standard and robust predictions of one defence for one block, under one attack."""
    clean = evaluate_clean(name, defense, block, protocol, seed, monitor=monitor)
    robust = evaluate_attack(
        name,
        defense,
        Cell(attack.name, attack),
        block,
        protocol,
        seed,
        clean=torch.tensor([record.kept for record in clean.records]).to(block.labels),
        attacked=attacked,
        monitor=monitor,
    )
    return Outcome([*clean.records, *robust.records], robust.adversarial)


def _selection(
    defense: Defense,
    images: Tensor,
    block: Block,
    protocol: Protocol,
    seed: int,
    known: tuple[Group, ...],
    monitor: Monitor,
) -> Tensor:
    """On how many selection draws the defence is right (B,)."""
    noise = Noise.of(seed, Stream.DW_BOX)
    count = protocol.draws(defense, protocol.selection_draws, known)
    select = [noise.redraw(Draw(Stream.SELECTION, k), keep=known) for k in range(count)]
    predictions, _ = predict(defense, images, block.samples, select, monitor)
    return (predictions == block.labels[:, None]).sum(1)


def _report(
    defense: Defense,
    images: Tensor,
    block: Block,
    protocol: Protocol,
    seed: int,
    cell: Cell,
    monitor: Monitor,
) -> tuple[Tensor, Tensor | None]:
    """Predictions on fresh report draws, but for what the attacker knew."""
    noise = Noise.of(seed, Stream.DW_BOX)
    draws = range(cell.report_from, cell.report_from + protocol.reported(defense, cell.known))
    report = [noise.redraw(Draw(Stream.REPORT, k), keep=cell.known) for k in draws]
    return predict(defense, images, block.samples, report, monitor)


@torch.no_grad()
def _check_locked(defense: Defense, block: Block, noise: Noise, monitor: Monitor) -> None:
    """The deterministic white box asks for a defence that the same noise makes deterministic: two
    runs must agree bit for bit before anything is attacked."""
    mask = defense.mask(block.images, block.samples)
    query = Query(block.images, block.samples, mask, [noise])
    first, second = (answers(defense, query, monitor.answered) for _ in range(2))
    if not torch.equal(first, second):
        raise InputError(
            "the defence answers differently when the same images and noise are given again: what"
            " is drawn outside its noise (dropout, a generator?) cannot be locked"
        )


@torch.no_grad()
def predict(
    defense: Defense,
    images: Tensor,
    samples: Tensor,
    noises: list[Noise],
    monitor: Monitor = SILENT,
) -> tuple[Tensor, Tensor | None]:
    """(B, draws) predicted classes, and the (B,) fraction of attended pixels where there is one."""
    mask = defense.mask(images, samples)
    query = Query(images, samples, mask, noises)
    logits = answers(defense, query, monitor.answered)
    return logits.argmax(2).T, None if mask is None else mask.flatten(1).mean(1)


def _records(
    name: str,
    cell: Cell,
    block: Block,
    images: Tensor,
    predictions: Tensor,
    coverage: Tensor | None,
    rows: int,
    kept: Tensor,
    chosen: Tensor,
) -> list[Record]:
    threat = cell.attack.threat
    offset = (images - block.images).flatten(1)
    linf, l2 = offset.abs().amax(1), offset.norm(dim=1)
    return [
        Record(
            defense=name,
            attack=cell.name,
            sample=int(block.samples[i]),
            label=int(block.labels[i]),
            predictions=predictions[i].tolist(),
            selection=kept[:, i].tolist(),
            chosen=int(chosen[i]),
            linf=float(linf[i]),
            l2=float(l2[i]),
            coverage=None if coverage is None else float(coverage[i]),
            network_calls=rows // len(block.images),
            threat=None if threat is None else threat.ball,
            known=list(cell.known),
        )
        for i in range(len(block.images))
    ]
