"""Does the attack get any further? Accuracy and loss against its budget, and against its radius."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from hetpure.analysis.analysis import Analysis, Record, Summary, entries, remarks
from hetpure.analysis.lines import Place, accuracy_line, difference_line, in_words, mean_line
from hetpure.analysis.paths import attack_path
from hetpure.analysis.subject import Subject, Work, right
from hetpure.attacks import PGD
from hetpure.errors import FieldError
from hetpure.evaluation.protocol import Block, Cell

STEPS, EOT, RESTARTS, RADIUS = "steps", "EOT draws", "restarts", "radius"
ACCURACY, LOSS, CLASS, MASK = "accuracy", "loss", "accuracy by class", "IoU of the mask"
LOST = "accuracy, first less last"


@dataclass(frozen=True)
class Convergence(Analysis):
    """The white box with one thing of its budget changed at a time, and in other balls.

    Accuracies use report draws. Losses, and the accuracy by `steps`, use fresh draws. None are the
    attack's. Those by `steps` are of one path's iterates, the others of the image that an
    evaluation would report. `accuracy, first less last` pairs both ends of a curve by image.
    `accuracy by class` is that of the attack as it is. `IoU of the mask` says how much of an
    iterate's attention mask is in the clean image's: intersection over union, 1 where it has not
    moved.

    Args:
        eot: multiples of the attack's draws of a gradient; 0 is a single draw.
        restarts: runs, each with a random start.
        radii: multiples of the radius; step sizes are scaled with it.
        draws: fresh draws of losses and of the accuracy by steps.
    """

    name: ClassVar[str] = "convergence"

    eot: tuple[int, ...] = (0, 1, 4)
    restarts: tuple[int, ...] = (1, 2, 4)
    radii: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    draws: int = 4

    def __post_init__(self) -> None:
        for name, least in (("eot", 0), ("restarts", 1), ("draws", 1)):
            value = getattr(self, name)
            if min(value if isinstance(value, tuple) else (value,), default=least) < least:
                raise FieldError(self, name, f"must be >= {least}, got {value}")
        if not all(radius > 0 for radius in self.radii):
            raise FieldError(self, "radii", f"must be > 0, got {self.radii}")

    def attacks(self, subject: Subject) -> dict[str, dict[float, PGD]]:
        """By what is varied and its value. A deterministic row has nothing to average."""
        attack = subject.attack
        draws = sorted({max(1, attack.eot_samples * factor) for factor in self.eot})
        if not subject.defense.stochastic:
            draws = []
        radii = {scale: float(attack.epsilon) * scale for scale in self.radii}
        largest = 1.0 if attack.norm == "linf" else float("inf")
        return {
            EOT: {
                count: replace(
                    attack, eot_samples=count, antithetic=attack.antithetic and count % 2 == 0
                )
                for count in draws
            },
            RESTARTS: {
                count: replace(attack, restarts=count, random_start=True) for count in self.restarts
            },
            RADIUS: {
                radius: attack if scale == 1 else attack.at_radius(radius)
                for scale, radius in radii.items()
                if radius <= largest
            },
        }

    def check(self, subject: Subject) -> None:
        try:
            self.attacks(subject)
        except FieldError as error:  # of an attack that nobody wrote
            name = "eot" if error.field == "eot_samples" else "restarts"
            raise FieldError(self, name, f"is too large: {error.field} {error.problem}") from None

    def different(self, subject: Subject) -> list[PGD]:
        """The attacks that are run, the row's own first, each once."""
        varied = (a for of_kind in self.attacks(subject).values() for a in of_kind.values())
        return list(dict.fromkeys((subject.attack, *varied)))

    def work(self, subject: Subject) -> Work:
        attacks = self.different(subject)
        cells = [Cell(f"attack {k}", attack) for k, attack in enumerate(attacks)]
        eot = subject.attack.eot_samples if subject.defense.stochastic else 1
        asked = len(attacks) + len(marks(subject.attack.steps))
        return subject.work(cells) + subject.work_of(
            gradients=subject.attack.steps * eot, answers=asked * len(subject.probes(self.draws))
        )

    def examine(self, subject: Subject, block: Block) -> list[Record]:
        """`curves`: by what is varied, points with `at`, `right` and `loss`; `own`: on which report
        draws an image is right under the attack as it is; `iou`, by iteration, of a masked row."""
        attacks = self.different(subject)
        cells = {str(k): Cell(f"attack {k}", attack) for k, attack in enumerate(attacks)}
        outcomes = subject.outcomes(block, cells)
        found = entries(subject, block)
        for i, record in enumerate(found):
            record |= {"curves": {STEPS: []}, "own": right(outcomes["0"])[i]}
        losses = {
            name: subject.expected_loss(outcomes[name].adversarial, block, self.draws).tolist()
            for name in cells
        }
        for varied, of_kind in self.attacks(subject).items():
            for at, attack in of_kind.items():
                name = str(attacks.index(attack))
                self._keep(found, varied, at, right(outcomes[name]), losses[name])
        path = attack_path(subject, subject.attack, block)
        for step in marks(subject.attack.steps):
            logits = subject.answers(path.iterates[step], block, self.draws)
            answered = (logits.argmax(2) == block.labels).T.tolist()
            losses_of_step = subject.loss_of(logits, block).tolist()
            self._keep(found, STEPS, step, answered, losses_of_step)
        masks = [subject.defense.mask(images, block.samples) for images in path.iterates]
        moved = [
            overlap(masks[0], mask) for mask in masks if mask is not None and masks[0] is not None
        ]
        for i, record in enumerate(found):
            if moved:
                record["iou"] = [float(of_block[i]) for of_block in moved]
        return found

    @staticmethod
    def _keep(
        found: Sequence[Record],
        varied: str,
        at: float,
        answered: Sequence[Sequence[bool]],
        losses: Sequence[float],
    ) -> None:
        for record, of_image, loss in zip(found, answered, losses, strict=True):
            point = {"at": at, "right": of_image, "loss": loss}
            record["curves"].setdefault(varied, []).append(point)

    def summarise(self, records: Mapping[str, Sequence[Record]]) -> Summary:
        summary = Summary([], [], remarks(records))
        for row, of_row in records.items():
            for varied, points in of_row[0]["curves"].items():
                for number, point in enumerate(points):
                    of_all = [record["curves"][varied][number] for record in of_row]
                    accuracy = Place(row, ACCURACY, varied, point["at"])
                    summary.lines.append(accuracy_line(accuracy, [p["right"] for p in of_all]))
                    loss = Place(row, LOSS, varied, point["at"])
                    summary.lines.append(mean_line(loss, [p["loss"] for p in of_all]))
                if len(points) > 1:
                    first, last = (
                        [record["curves"][varied][end]["right"] for record in of_row]
                        for end in (0, -1)
                    )
                    summary.lines.append(difference_line(Place(row, LOST, varied), first, last))
            if len(of_row[0]["curves"].get(RADIUS, ())) < len(set(self.radii)):
                summary.notes.append(f"{row}: radii above 1 are left out")
            for label in sorted({record["label"] for record in of_row}):
                of_class = [record["own"] for record in of_row if record["label"] == label]
                summary.lines.append(accuracy_line(Place(row, CLASS, at=label), of_class))
            for step in range(len(of_row[0].get("iou", ()))):
                values = [record["iou"][step] for record in of_row]
                summary.lines.append(mean_line(Place(row, MASK, STEPS, step), values, 0, 1))
            words = []
            for varied in of_row[0]["curves"]:
                lines = summary.of(row, ACCURACY, varied)
                told = (
                    f"{varied} {lines[0].at:g} to {lines[-1].at:g}:"
                    f" {in_words(lines[0], 100, 1)}% to {in_words(lines[-1], 100, 1)}%"
                )
                for lost in summary.of(row, LOST, varied):
                    told += f", {in_words(lost, 100, 1)} points lost"
                words.append(told)
            summary.finding.append(f"{row}, accuracy, {'; '.join(words)} (n = {len(of_row)})")
        return summary


def marks(steps: int) -> list[int]:
    """Which iterates are asked: the image itself, 1, 2, 4 and so on, and the last."""
    powers = (2**k for k in range(steps.bit_length()))
    return sorted({0, steps, *(power for power in powers if power <= steps)})


def overlap(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union (B,) of two masks (B, 1, H, W) of 0 and 1; of two empty ones 1."""
    a, b = (mask.flatten(1) > 0.5 for mask in (first, second))
    union = (a | b).sum(1)
    return torch.where(union > 0, (a & b).sum(1) / union.clamp(min=1), 1.0)
