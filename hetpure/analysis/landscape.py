"""The loss around an image: along what an attacker finds who knows the noise, and along the rest of
what one finds who does not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetpure.analysis.analysis import Analysis, Record, Summary, entries, remarks
from hetpure.analysis.lines import Place, in_words, mean_line
from hetpure.analysis.paths import attack_path
from hetpure.analysis.subject import Subject, Work
from hetpure.errors import FieldError, check_at_least, check_positive
from hetpure.evaluation.protocol import Block
from hetpure.numbers import Number

CURVATURE, OTHER, RISE = "curvature along DW", "curvature along the rest", "rise along DW"
BEND = "bend along DW"
VANISHING = 1e-6  # of the white box's offset: a smaller rest is rounding


@dataclass(frozen=True)
class Landscape(Analysis):
    """The expected loss of x + r (a u + b v), for a and b from -extent to extent. u is the unit
    vector of what DW-both's path adds to the image x, v that of what the white box's path adds,
    less its part along u. r is the L2 norm of a corner of the ball (the radius, where the ball is
    L2). So all images and all rows share axes and unit. Points are not cut to [0, 1].

    `curvature` is the mean second difference of the loss along a line through x, in loss by unit
    squared: 0 where the loss is linear. The inner differences fall out of it: it says by how much
    the slopes at both ends differ. `bend` is the mean size of the second differences: bends to both
    sides add up in it. `rise` is loss(a) - loss(0), at the point a that is nearest to 1. Losses use
    fresh draws.

    Args:
        points: of each axis, an odd number.
        draws: fresh draws of the expected loss, the same at all points.
        extent: how far out, in units.
    """

    name: ClassVar[str] = "landscape"

    points: int = 9
    draws: int = 4
    extent: Number = Number(1)  # noqa: RUF009 (immutable)

    def __post_init__(self) -> None:
        check_at_least(self, 3, "points")
        if self.points % 2 == 0:
            raise FieldError(self, "points", f"must be odd, so that 0 is one, got {self.points}")
        check_at_least(self, 1, "draws")
        check_positive(self, "extent")

    @property
    def axis(self) -> Tensor:
        """(points,) float64."""
        return torch.linspace(-self.extent, self.extent, self.points, dtype=torch.float64)

    @property
    def step(self) -> float:
        """Between points of an axis, in units."""
        return float(self.axis[1] - self.axis[0])

    @property
    def one(self) -> int:
        """The point that is nearest to 1."""
        return int((self.axis - 1).abs().argmin())

    def work(self, subject: Subject) -> Work:
        attack = subject.attack
        eot = attack.eot_samples if subject.defense.stochastic else 1
        return subject.work_of(
            gradients=attack.steps * (1 + eot),
            answers=self.points**2 * len(subject.probes(self.draws)),
        )

    def examine(self, subject: Subject, block: Block) -> list[Record]:
        """`losses` (points, points), by a and then by b; the curvatures and the `rise`."""
        known = attack_path(subject, subject.attack, block, known=("forward", "reverse"))
        unknown = attack_path(subject, subject.attack, block)
        along, rest = axes_of(*(path.iterates[-1] - block.images for path in (known, unknown)))
        radius = float(subject.attack.epsilon)
        if subject.attack.norm == "linf":
            radius *= block.images[0].numel() ** 0.5
        axis = self.axis.tolist()
        losses = torch.stack(
            [
                subject.expected_loss(
                    block.images + radius * (a * along + b * rest), block, self.draws
                )
                for a in axis
                for b in axis
            ]
        ).reshape(self.points, self.points, -1)
        middle, step, one = self.points // 2, self.step, self.one
        found = entries(subject, block)
        for i, record in enumerate(found):
            of_image = losses[..., i]
            record |= {
                "losses": of_image.tolist(),
                CURVATURE: curvature(of_image[:, middle], step),
                OTHER: curvature(of_image[middle], step),
                RISE: float(of_image[one, middle] - of_image[middle, middle]),
            }
        return found

    def summarise(self, records: Mapping[str, Sequence[Record]]) -> Summary:
        """With several rows, also each row's curvature and bend less those of the first one, paired
        by image."""
        summary = Summary([], [], remarks(records), {"axis": self.axis.tolist(), "losses": {}})
        first, *_ = records
        values = {row: self._values(of_row) for row, of_row in records.items()}
        reached = float(self.axis[self.one])
        for row, of_row in records.items():
            lines = {
                name: mean_line(
                    Place(row, name, at=reached if name == RISE else None),
                    of_all,
                    0 if name == BEND else -inf,  # a mean size
                )
                for name, of_all in values[row].items()
            }
            summary.lines.extend(lines.values())
            told = [
                f"{name} {in_words(lines[name], digits=None)}" for name in (CURVATURE, BEND, RISE)
            ]
            if row != first:
                for name in (CURVATURE, BEND):
                    place = Place(row, f"{name}, less that of {first}")
                    line = mean_line(place, values[row][name] - values[first][name])
                    summary.lines.append(line)
                    told.append(f"{line.quantity} {in_words(line, digits=None)}")
            summary.finding.append(f"{row}: {', '.join(told)} (n = {len(of_row)})")
            mean = np.mean([record["losses"] for record in of_row], 0)
            summary.drawn["losses"][row] = mean.tolist()
        if reached != 1:
            summary.notes.append(f"{RISE} is at {reached:g}: no point is at 1")
        return summary

    def _values(self, records: Sequence[Record]) -> dict[str, NDArray[np.float64]]:
        """One value (n,) an image, by what it is."""
        values = {
            name: np.array([record[name] for record in records])
            for name in (CURVATURE, OTHER, RISE)
        }
        middle = self.points // 2
        along = [
            torch.tensor(record["losses"], dtype=torch.float64)[:, middle] for record in records
        ]
        return values | {BEND: np.array([bend(losses, self.step) for losses in along])}


def axes_of(known: Tensor, unknown: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors (B, C, H, W) along the first offset, and along the second less its part along
    the first. Where nothing is left of the second, as of a deterministic defence, it is zero."""
    first, second = (offset.flatten(1).double() for offset in (known, unknown))
    u = torch.nn.functional.normalize(first, dim=1)
    rest = second - (second * u).sum(1, keepdim=True) * u
    length = rest.norm(dim=1, keepdim=True)
    vanishing = length <= VANISHING * second.norm(dim=1, keepdim=True)
    v = torch.where(vanishing, torch.zeros_like(rest), rest / length.clamp(min=1e-300))
    return u.reshape(known.shape).to(known), v.reshape(known.shape).to(known)


def curvature(losses: Tensor, step: float) -> float:
    """Mean second difference of losses (N,) at points a step apart."""
    return float(_second_differences(losses).mean() / step**2)


def bend(losses: Tensor, step: float) -> float:
    """Mean size of the second differences of losses (N,) at points a step apart: 0 only where they
    lie on a line."""
    return float(_second_differences(losses).abs().mean() / step**2)


def _second_differences(losses: Tensor) -> Tensor:
    """(N - 2,) of losses (N,)."""
    return losses[2:] - 2 * losses[1:-1] + losses[:-2]
