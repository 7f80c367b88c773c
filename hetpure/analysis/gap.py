"""How far adversarial images are from clean ones: before noise, at the start, and purified."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hetpure.analysis.analysis import Analysis, Record, Summary, entries, remarks
from hetpure.analysis.lines import Place, in_words, mean_line
from hetpure.analysis.subject import Subject, Work
from hetpure.classifiers import LastFeatures
from hetpure.defense import Defense, resized
from hetpure.denoiser import to_pixels
from hetpure.errors import FieldError, InputError, check_at_least
from hetpure.evaluation.protocol import Block, Cell
from hetpure.noise import BatchNoise, Noise, unsigned
from hetpure.purifiers import Purifier

BEFORE, START, PURIFIED = "before noise", "start of purification", "after purification"
STAGES = (BEFORE, START, PURIFIED)
NEARER = f"{PURIFIED}, less {BEFORE}"
PIXELS, FEATURES, SHIFT = "pixels", "features", "standard deviations"
ADVERSARIAL, DRAWS = "adversarial", "two draws"
LEVELS = ("strength", "t_large", "t_small", "through")  # fields of purifiers, fractions of T


@dataclass(frozen=True)
class Gap(Analysis):
    """The distribution gap between clean and adversarial images, which a purifier is to close.

    A distance is L2, in pixel units or in what the classifier's last linear layer reads. It is
    taken between an image and its adversarial one on the same draw (`adversarial`), and between
    two draws of the clean image (`two draws`): what noise alone does. On a shared draw the noise
    falls out of the first, and in many pixels the second is large whatever the attack is: neither
    says whether noise hides the attack. That is said by the shift in standard deviations of the
    noise, at the start and at the size that is purified: at 5 a best observer tells both images
    apart nearly always. `after purification, less before noise` pairs both distances by image. The
    attack is the one on the row as it is.

    The start is the first state of the purification. A heterogeneous one starts with its stronger
    noise in all pixels: its stage is no x(t_l, t_s), which is never a state.

    Args:
        scales: noise levels, as multiples of the row's own.
        draws: fresh draws of each distance, an even number.
    """

    name: ClassVar[str] = "gap"

    scales: tuple[float, ...] = (0.5, 1.0, 1.5)
    draws: int = 4

    def __post_init__(self) -> None:
        check_at_least(self, 2, "draws")
        if self.draws % 2:
            raise FieldError(self, "draws", f"must be even, for pairs of draws, got {self.draws}")
        if not self.scales or not all(scale > 0 for scale in self.scales):
            raise FieldError(self, "scales", f"must be some numbers > 0, got {self.scales}")

    def variants(self, subject: Subject) -> list[tuple[float, Subject]]:
        """The row with its noise scaled, by the strength where that begins; a purifier whose level
        is none of `LEVELS` is taken as it is. Empty without a purifier."""
        purifier = subject.defense.purifier
        if purifier is None:
            return []
        varied = [subject]
        if levels_of(purifier):
            varied = [
                subject.purified_by(scaled(purifier, scale, subject.name)) for scale in self.scales
            ]
        return [(strength(other.defense), other) for other in varied]

    def check(self, subject: Subject) -> None:
        self.variants(subject)
        LastFeatures(subject.defense.classifier)

    @staticmethod
    def cell(subject: Subject) -> Cell:
        """What makes the adversarial images."""
        return Cell(subject.attack.name, subject.attack)

    def work(self, subject: Subject) -> Work:
        asked = (
            other.work_of(answers=2 * len(other.probes(self.draws)))
            for _, other in self.variants(subject)
        )
        return sum(asked, subject.work([self.cell(subject)]))

    @torch.no_grad()
    def examine(self, subject: Subject, block: Block) -> list[Record]:
        """`gaps`: each with its `space`, `pair`, `stage`, `level` and `distance`."""
        with torch.enable_grad():
            outcomes = subject.outcomes(block, {ADVERSARIAL: self.cell(subject)})
        adversarial = outcomes[ADVERSARIAL].adversarial
        features = LastFeatures(subject.defense.classifier)
        found = entries(subject, block)
        for record in found:
            record["gaps"] = []

        def add(values: Tensor, **place: Any) -> None:
            for record, value in zip(found, values.tolist(), strict=True):
                record["gaps"].append(place | {"distance": value})

        def keep(stage: str, level: float | None, clean: Tensor, attacked: Tensor) -> None:
            for space, pair, values in distances(clean, attacked, features):
                add(values, space=space, pair=pair, stage=stage, level=level)

        keep(BEFORE, None, block.images[None], adversarial[None])
        for level, other in self.variants(subject):
            noises = other.probes(self.draws)
            both = (block.images, adversarial)
            if level > 0:  # else it begins with the image itself
                clean, attacked = (
                    torch.stack([start(other.defense, images, block.samples, n) for n in noises])
                    for images in both
                )
                keep(START, level, _seen(clean, block.images), _seen(attacked, block.images))
                shift = (attacked - clean).flatten(2).norm(dim=2).mean(0) / spread(other.defense)
                add(shift, space=SHIFT, pair=ADVERSARIAL, stage=START, level=level)
            clean, attacked = (
                torch.stack([purified(other.defense, images, block.samples, n) for n in noises])
                for images in both
            )
            keep(PURIFIED, level, clean, attacked)
        return found

    def summarise(self, records: Mapping[str, Sequence[Record]]) -> Summary:
        summary = Summary([], [], remarks(records))
        for row, of_row in records.items():
            before: dict[str, NDArray[np.float64]] = {}
            for number, gap in enumerate(of_row[0]["gaps"]):
                place = Place(row, f"{gap['stage']}, {gap['pair']}", gap["space"], gap["level"])
                values = np.array([record["gaps"][number]["distance"] for record in of_row])
                summary.lines.append(mean_line(place, values, 0))
                if gap["stage"] == BEFORE:
                    before[gap["space"]] = values
                elif (gap["stage"], gap["pair"]) == (PURIFIED, ADVERSARIAL):
                    nearer = Place(row, NEARER, gap["space"], gap["level"])
                    summary.lines.append(mean_line(nearer, values - before[gap["space"]]))
            words = []
            for space in (PIXELS, FEATURES):
                told = [
                    f"{stage} {in_words(line)}"
                    + ("" if line.at is None else f" at strength {line.at:g}")
                    for stage in STAGES
                    for line in summary.of(row, f"{stage}, {ADVERSARIAL}", space)
                ]
                words.append(f"{space}: {', '.join(told)}")
            words += [
                f"at a start of strength {line.at:g} they are {in_words(line)} standard deviations"
                " of its noise away"
                for line in summary.of(row, f"{START}, {ADVERSARIAL}", SHIFT)
            ]
            summary.finding.append(
                f"{row}, distance of adversarial images, {'; '.join(words)} (n = {len(of_row)})"
            )
            if of_row[0]["gaps"][-1]["stage"] == BEFORE:
                summary.notes.append(f"{row}: it has no purifier, so there is one stage")
        return summary


def distances(
    clean: Tensor, adversarial: Tensor, features: LastFeatures
) -> Iterator[tuple[str, str, Tensor]]:
    """Mean L2 distances (B,) over draws, by space and pair, of images (N, B, C, H, W) on the same N
    draws. Pairs of draws are the first with the second, the third with the fourth."""
    draws, count = clean.shape[:2]
    for space in (PIXELS, FEATURES):
        ours, theirs = (
            (
                images.flatten(2)
                if space == PIXELS
                else features(images.flatten(0, 1)).reshape(draws, count, -1)
            ).double()
            for images in (clean, adversarial)
        )
        yield space, ADVERSARIAL, (ours - theirs).norm(dim=2).mean(0)
        if draws > 1:
            yield space, DRAWS, (ours[::2] - ours[1::2]).norm(dim=2).mean(0)


def start(defense: Defense, images: Tensor, samples: Tensor, noise: Noise) -> Tensor:
    """The first state (B, C, h, w) of a purification of images (B, C, H, W), in pixel units and not
    cut to [0, 1], at the size that is purified."""
    purifier, denoiser = defense.purifier, defense.denoiser
    assert purifier is not None and denoiser is not None
    numbers: BatchNoise = noise.on(samples)
    return to_pixels(purifier.start(denoiser, defense.resized(images), unsigned(numbers)))


def purified(defense: Defense, images: Tensor, samples: Tensor, noise: Noise) -> Tensor:
    """Images (B, C, H, W) purified, each with its own mask."""
    return defense.purify(images, noise.on(samples), defense.mask(images, samples))


def _seen(states: Tensor, images: Tensor) -> Tensor:
    """States (N, B, C, h, w) at the size of images (B, C, H, W), which the classifier sees."""
    sized = resized(states.flatten(0, 1), images.shape[-2:])
    return sized.reshape(*states.shape[:2], *sized.shape[1:])


def strength(defense: Defense) -> float:
    """The noise level that a purification starts from, as a fraction of T; 0 where it starts from
    the image itself."""
    assert defense.denoiser is not None
    return max(defense.plan[0].at, 0) / len(defense.denoiser.schedule)


def spread(defense: Defense) -> float:
    """Standard deviation of the noise that a purification starts with, in pixel units, at the size
    that is purified."""
    assert defense.denoiser is not None
    return float((1 - defense.denoiser.schedule.alpha_cumprod(defense.plan[0].at)) ** 0.5) / 2


def levels_of(purifier: Purifier) -> dict[str, float]:
    """The purifier's fields that are noise levels, and what they are."""
    names = [f.name for f in fields(purifier) if f.name in LEVELS]
    return {name: value for name in names if (value := getattr(purifier, name)) is not None}


def scaled(purifier: Purifier, scale: float, row: str) -> Purifier:
    """The purifier with its noise levels so many times as high. InputError where one is above 1."""
    levels = {name: scale * value for name, value in levels_of(purifier).items()}
    if max(levels.values()) > 1:
        raise InputError(
            f"{row}: its noise level times {scale:g} is above 1: give smaller --gap.scales"
        )
    return replace(purifier, **levels)
