"""Do an attack's paths agree, with themselves and with each other?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from hetpure.analysis.analysis import Analysis, Record, Summary, entries, remarks
from hetpure.analysis.lines import Place, in_words, mean_line
from hetpure.analysis.paths import AttackPath, attack_path
from hetpure.analysis.subject import Subject, Work
from hetpure.errors import InputError, check_at_least, check_at_most
from hetpure.evaluation.protocol import Block
from hetpure.noise import MOST_RUNS, Group
from hetpure.numbers import counted

KNOWN, EOT, SINGLE = "DW-both", "with EOT", "without EOT"
WITHIN, BETWEEN, TO_KNOWN, ENDS = "within a path", "between paths", "to DW-both", "between ends"
OFF = f"{TO_KNOWN}, less {WITHIN} of {KNOWN}"
Matrix = list[list[float | None]]
BOTH_GROUPS: tuple[Group, ...] = ("forward", "reverse")


@dataclass(frozen=True)
class Trajectories(Analysis):
    """One path of an attacker who knows all noise, several with EOT and several without, from each
    image. All take the attack's steps.

    What they have in common is told by cosines between the directions of steps i and j != i:
    `within a path`, `between paths` of one kind, and `to DW-both`, to the path that knows the
    noise. The same steps are compared in all three, so they can be held against each other:
    `to DW-both, less within a path of DW-both`, paired by image, is below 0 where steps find
    another way than DW-both's.
    `between ends` is the cosine of what two paths add to the image in all. A step, or an end, that
    is zero has no direction and no cosine: means are over the others.

    Args:
        paths: with EOT, and as many without.
        height_draws: fresh draws of the expected loss, which is the height in the picture of the
            first image.
    """

    name: ClassVar[str] = "trajectories"

    paths: int = 10
    height_draws: int = 4

    def __post_init__(self) -> None:
        check_at_least(self, 2, "paths")
        check_at_least(self, 1, "height_draws")
        check_at_most(self, MOST_RUNS, "paths")

    def count(self, subject: Subject) -> int:
        """Paths of a kind; two where they coincide."""
        return self.paths if subject.defense.stochastic else 2

    def check(self, subject: Subject) -> None:
        if subject.attack.steps < 2:
            raise InputError("trajectories compare steps of paths: give --model.attack.steps >= 2")
        if subject.defense.stochastic and subject.attack.eot_samples < 2:
            raise InputError(
                f"trajectories compare paths with and without EOT, and {subject.name} takes one"
                " draw: give --model.attack.eot_samples >= 2"
            )

    def work(self, subject: Subject) -> Work:
        eot = subject.attack.eot_samples if subject.defense.stochastic else 1
        paths = 1 + self.count(subject) * (eot + 1)
        return subject.work_of(gradients=subject.attack.steps * paths)

    def first_work(self, subject: Subject) -> Work:
        """Of the heights of all its iterates."""
        iterates = (1 + 2 * self.count(subject)) * (subject.attack.steps + 1)
        return subject.work_of(answers=iterates * len(subject.probes(self.height_draws)))

    def walked(self, subject: Subject, block: Block) -> dict[str, list[AttackPath]]:
        """The paths of each kind."""
        attack, numbers = subject.attack, range(self.count(subject))
        single = replace(attack, eot_samples=1, antithetic=False)
        return {
            KNOWN: [attack_path(subject, attack, block, known=BOTH_GROUPS)],
            EOT: [attack_path(subject, attack, block, number=k) for k in numbers],
            SINGLE: [attack_path(subject, single, block, number=k, member=1) for k in numbers],
        }

    def examine(self, subject: Subject, block: Block) -> list[Record]:
        """`cosines`: by kind the four means; `within` and `between`: by kind the matrix (S, S) of
        mean cosines of steps, to four digits; and of the run's first image `picture`, where its
        paths lie. None where nothing has a direction."""
        walked = self.walked(subject, block)
        known = walked[KNOWN][0].directions
        found = entries(subject, block)
        for i, record in enumerate(found):
            record |= {"cosines": {}, "within": {}, "between": {}}
            for kind, paths in walked.items():
                directions = torch.stack([path.directions[:, i].flatten(1) for path in paths])
                ends = torch.stack([path.iterates[-1, i] - path.iterates[0, i] for path in paths])
                within, between = step_cosines(directions)
                record["within"][kind] = _rounded(within)
                record["cosines"][kind] = {WITHIN: _mean(within)}
                if between is not None:
                    record["between"][kind] = _rounded(between)
                    record["cosines"][kind][BETWEEN] = _mean(between)
                    record["cosines"][kind][ENDS] = _between_ends(ends.flatten(1))
                if kind != KNOWN:
                    to_known = _cosines(directions, known[:, i].flatten(1)[None]).nanmean((0, 1))
                    record["cosines"][kind][TO_KNOWN] = _mean(to_known)
            if record["sample"] == subject.first:
                record["picture"] = self._picture(subject, block.take(torch.tensor([i])), walked, i)
        return found

    def _picture(
        self, subject: Subject, image: Block, walked: Mapping[str, list[AttackPath]], place: int
    ) -> dict[str, Any]:
        """By kind and path, each iterate's place in the plane and its expected loss; and the share
        of the iterates' variance that the plane holds."""
        paths = {
            kind: torch.stack([path.iterates[:, place] for path in of_kind])
            for kind, of_kind in walked.items()
        }
        points = torch.cat([of_kind.flatten(0, 1) for of_kind in paths.values()])
        plane, explained = principal_plane((points - image.images).flatten(1).double())
        many = Block(
            points,
            image.labels.expand(len(points)),
            image.samples.expand(len(points)),
        )
        losses = subject.expected_loss(points, many, self.height_draws)
        shown: dict[str, Any] = {"explained": explained, "paths": {}}
        start = 0
        for kind, of_kind in paths.items():
            count, length = of_kind.shape[:2]
            part = slice(start, start + count * length)
            places = torch.cat([plane[part], losses[part, None].double()], 1)
            shown["paths"][kind] = places.reshape(count, length, 3).tolist()
            start += count * length
        return shown

    def summarise(self, records: Mapping[str, Sequence[Record]]) -> Summary:
        summary = Summary([], [], remarks(records))
        for row, of_row in records.items():
            words = []
            for kind in (KNOWN, EOT, SINGLE):
                for quantity in of_row[0]["cosines"][kind]:
                    found = [record["cosines"][kind][quantity] for record in of_row]
                    values = [value for value in found if value is not None]
                    if still := len(found) - len(values):
                        summary.notes.append(
                            f"{row}, {kind}, {quantity}: {counted(still, 'image')} without a"
                            " direction left out"
                        )
                    if not values:
                        continue
                    line = mean_line(Place(row, quantity, kind), values, -1, 1)
                    summary.lines.append(line)
                    if quantity in (WITHIN, BETWEEN):
                        words.append(f"{kind}, {quantity}: {in_words(line)}")
            for kind in (EOT, SINGLE):
                both = (
                    (record["cosines"][kind][TO_KNOWN], record["cosines"][KNOWN][WITHIN])
                    for record in of_row
                )
                off = [to - within for to, within in both if to is not None and within is not None]
                if off:
                    summary.lines.append(mean_line(Place(row, OFF, kind), off, -2, 2))
            summary.finding.append(
                f"{row}, mean cosine of steps: {'; '.join(words)} (n = {len(of_row)})"
            )
            summary.drawn[row] = {
                matrices: {
                    kind: _mean_matrix([record[matrices][kind] for record in of_row])
                    for kind in of_row[0][matrices]
                }
                for matrices in ("within", "between")
            } | {"picture": of_row[0].get("picture")}
        return summary


def step_cosines(directions: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean cosines (S, S) between steps of one path, and between steps of two different paths,
    given the steps' directions (P, S, D) of P paths; of a single path there is no second."""
    count = len(directions)
    cosines = _cosines(directions, directions)
    same = torch.eye(count, dtype=torch.bool, device=directions.device)
    within = cosines[same].nanmean(0)
    return within, cosines[~same].nanmean(0) if count > 1 else None


def principal_plane(points: Tensor) -> tuple[Tensor, float]:
    """Places (N, 2) of points (N, D) in the plane of their first two principal components, and the
    share of their variance that lies in it. The origin of the points is that of the plane."""
    mean = points.mean(0)
    _, scales, components = torch.linalg.svd(points - mean, full_matrices=False)
    plane = components[:2]
    if len(plane) < 2:  # of a single pixel
        plane = torch.cat([plane, torch.zeros_like(plane)])
    # The components' signs are free: the largest entry of each is made positive.
    largest = plane.gather(1, plane.abs().argmax(1, keepdim=True))
    plane = plane * torch.where(largest < 0, -1.0, 1.0)
    total = scales.square().sum()
    explained = float(scales[:2].square().sum() / total) if total > 0 else 1.0
    return points @ plane.T, explained


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """(P, Q, S, S) between the steps (P, S, D) and (Q, S, D); NaN where one has no direction."""
    a, b = (part.double() / part.double().norm(dim=-1, keepdim=True) for part in (first, second))
    return torch.einsum("psd,qtd->pqst", a, b)


def _mean(matrix: Tensor) -> float | None:
    """Mean of a square matrix off its diagonal, of the entries that are not NaN; None without."""
    different = ~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)
    mean = float(matrix[different].nanmean())
    return None if isnan(mean) else mean


def _between_ends(ends: Tensor) -> float | None:
    """Mean cosine of different offsets (P, D) that are not zero."""
    return _mean(_cosines(ends[None], ends[None])[0, 0])


def _rounded(matrix: Tensor) -> Matrix:
    """As JSON holds it: None for NaN."""
    return [[None if isnan(entry) else round(entry, 4) for entry in row] for row in matrix.tolist()]


def _mean_matrix(matrices: Sequence[Matrix]) -> Matrix:
    """Entry by entry the mean of those that there are."""
    entries = np.array(matrices, dtype=np.float64)  # NaN for None
    count = (~np.isnan(entries)).sum(0)
    mean = np.nansum(entries, 0) / np.where(count, count, np.nan)
    return _rounded(torch.from_numpy(mean))
