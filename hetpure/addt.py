"""ADDT (Liu et al., ICLR 2025, arXiv 2404.14309): adversarial denoising diffusion training.

Perturbations that a classifier dislikes are turned into exact Gaussian noise by rank (RBGM) and
mixed into the training noise, so the network learns to remove them. Model units, [-1, 1].
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.denoiser import Denoiser, to_pixels
from hetpure.errors import InputError, check_choice
from hetpure.noise import BatchNoise, Purpose
from hetpure.numbers import Number
from hetpure.schedule import Level

Guide = Callable[[Tensor], Tensor]
Ranks = Literal["channel", "image"]
Objective = Literal["classification", "denoising"]


def perturbation_ratio(snr_root: Tensor, scale: float = 0.03, cap: float = 0.3) -> Tensor:
    """lambda = clip(scale * gamma, 0, cap), gamma = signal / spread. Off the cap the perturbation
    has the constant standard deviation `scale` in model units, at every level."""
    return (scale * snr_root).clamp(0, cap)


def mix_noise(noise: Tensor, perturbation: Tensor, ratio: Tensor) -> Tensor:
    """eps_mix = sqrt(1 - lambda^2) eps + lambda eps_delta: variance is preserved."""
    return (1 - ratio**2).sqrt() * noise + ratio * perturbation


def rank_gaussian(
    values: Tensor, draw: Tensor, tie_breaker: Tensor, per: Ranks = "channel"
) -> Tensor:
    """RBGM: the k-th smallest of `draw` goes where `values` has rank k, per channel or per image.

    All arguments are (B, C, H, W): `draw` is standard normal; `tie_breaker` is uniform and orders
    equal values at random. The result is exactly the multiset of `draw` in the order of `values`,
    unchanged under any increasing transform of `values`. Nothing is differentiated.
    """
    start_dim = 2 if per == "channel" else 1
    flat_values, flat_draw, flat_ties = (
        tensor.detach().flatten(start_dim) for tensor in (values, draw, tie_breaker)
    )
    shuffled = flat_ties.argsort(-1)
    order = flat_values.gather(-1, shuffled).argsort(dim=-1, stable=True)
    positions = shuffled.gather(-1, order)  # positions[k]: where the k-th smallest value stands
    ranked = torch.empty_like(flat_draw).scatter(-1, positions, flat_draw.sort(-1).values)
    return ranked.reshape(values.shape)


@dataclass(frozen=True)
class Batch:
    """Images `x0` (B, C, H, W) in model units, `labels` (B,), their level and addressed noise."""

    x0: Tensor
    labels: Tensor
    level: Level
    noise: BatchNoise

    def rows(self, index: Tensor) -> "Batch":
        """Some rows, (R,) int64."""
        return Batch(
            self.x0[index], self.labels[index], self.level.rows(index), self.noise.rows(index)
        )


@dataclass(frozen=True)
class Found:
    """A perturbation (B, C, H, W), and the objective (B,) `before`: under the perturbation that the
    search began with; NaN where it was not asked. `after` is `Perturbation.score` of the found one,
    where somebody asked for it."""

    perturbation: Tensor
    before: Tensor
    after: Tensor | None = None


class Perturbation(ABC):
    """How an update's training noise is perturbed: frozen dataclasses of hyper-parameters."""

    objective: Objective | None = None
    eot_samples: int = 1

    @abstractmethod
    def find(self, denoiser: Denoiser, guide: Guide | None, batch: Batch) -> Found:
        """The perturbation for a batch. The guide takes pixels and gives logits."""

    @abstractmethod
    def mix(self, noise: Tensor, perturbation: Tensor, level: Level) -> Tensor:
        """The noise of q(x0, level, noise) with the perturbation in it."""

    def ratio(self, level: Level) -> Tensor | None:
        """lambda of each row (B, 1, 1, 1), where there is one."""
        return None

    def score(
        self, denoiser: Denoiser, guide: Guide | None, batch: Batch, perturbation: Tensor
    ) -> Tensor:
        """The objective (B,) under a perturbation, on the noise of the search's first step: what
        `Found.before` is of the perturbation that it began with. Without gradients."""
        assert self.objective is not None, "nothing was searched for"
        ask = partial(_objective, denoiser, guide, batch, self.objective, self.mix)
        with torch.no_grad():
            values = [ask(perturbation, draw) for draw in range(1, 1 + self.eot_samples)]
        return torch.stack(values).mean(0).float()


@dataclass(frozen=True, kw_only=True)
class Ranked(Perturbation):
    """A Gaussian perturbation that is mixed into the noise by lambda.

    Args:
        scale: standard deviation of the perturbation in model units; .03 belongs to attacks of
            radius 8/255.
        cap: upper bound of lambda.
        ranks: within each `channel`, or within the whole `image`.
    """

    scale: float = 0.03
    cap: float = 0.3
    ranks: Ranks = "channel"

    def __post_init__(self) -> None:
        check_choice("--model.perturbation.ranks", self.ranks, Ranks)
        if not (isfinite(self.scale) and self.scale >= 0):
            raise InputError(f"--model.perturbation.scale must be >= 0, got {self.scale}")
        if not 0 <= self.cap <= 1:
            raise InputError(f"--model.perturbation.cap must be in [0, 1], got {self.cap}")

    def ratio(self, level: Level) -> Tensor:
        return perturbation_ratio(level.snr_root, self.scale, self.cap)

    def mix(self, noise: Tensor, perturbation: Tensor, level: Level) -> Tensor:
        return mix_noise(noise, perturbation, self.ratio(level))

    def order(self, values: Tensor, noise: BatchNoise, step: int) -> Tensor:
        """RBGM of the values (B, C, H, W), with the Gaussian draw of a step."""
        draw = noise.normal(Purpose.RANK, values, repeat=step)
        ties = noise.uniform(Purpose.TIES, values, repeat=step)
        return rank_gaussian(values, draw, ties, self.ranks)


@dataclass(frozen=True, kw_only=True)
class RandomOrder(Ranked):
    """The control: RBGM of noise in place of gradients. In law it is noise, so this is clean
    fine-tuning on other draws.

    Args:
        scale: as of `Ranked`.
        cap: as of `Ranked`.
        ranks: as of `Ranked`.
    """

    def find(self, denoiser: Denoiser, guide: Guide | None, batch: Batch) -> Found:
        values = batch.noise.normal(Purpose.PERTURBATION, batch.x0)
        unknown = values.new_full((len(values),), torch.nan, dtype=torch.float32)
        return Found(self.order(values, batch.noise, 0), unknown)


@dataclass(frozen=True, kw_only=True)
class RankGaussian(Ranked):
    """CGPO with RBGM, the paper's: the rank of the summed gradients orders Gaussian noise.

    Args:
        scale: as of `Ranked`.
        cap: as of `Ranked`.
        ranks: as of `Ranked`.
        steps: gradients that are summed.
        eot_samples: noise draws of each gradient.
        objective: what is raised: `classification`, the guide's loss on the one-step prediction,
            or `denoising`, the network's own loss, which needs neither guide nor labels.
        skip_below: rows with a smaller lambda get a random perturbation and cost no gradients. It
            then hardly changes x_t: by less than this share of the noise.
    """

    steps: int = 5
    eot_samples: int = 1
    objective: Objective = "classification"
    skip_below: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_ascent(self.steps, self.eot_samples, self.objective)
        if not 0 <= self.skip_below <= self.cap:
            raise InputError(
                f"--model.perturbation.skip_below must be in [0, cap = {self.cap}], got"
                f" {self.skip_below}"
            )

    def find(self, denoiser: Denoiser, guide: Guide | None, batch: Batch) -> Found:
        start = batch.noise.normal(Purpose.PERTURBATION, batch.x0)
        asked = (self.ratio(batch.level).flatten() >= self.skip_below).nonzero().flatten()
        if len(asked) == len(start):
            return self._find(denoiser, guide, batch, start)
        unknown = start.new_full((len(start),), torch.nan, dtype=torch.float32)
        if not len(asked):
            return Found(start, unknown)
        found = self._find(denoiser, guide, batch.rows(asked), start[asked])
        return Found(
            start.index_copy(0, asked, found.perturbation),
            unknown.index_copy(0, asked, found.before),
        )

    def _find(self, denoiser: Denoiser, guide: Guide | None, batch: Batch, start: Tensor) -> Found:
        total = torch.zeros_like(start, dtype=torch.float32)

        def move(perturbation: Tensor, gradient: Tensor, step: int) -> Tensor:
            total.add_(gradient)
            return self.order(total.to(start.dtype), batch.noise, step)

        ask = partial(_objective, denoiser, guide, batch, self.objective, self.mix)
        return _ascend(ask, move, start, self.steps, self.eot_samples)


@dataclass(frozen=True, kw_only=True)
class Ball(Perturbation):
    """Without RBGM: the image moves in an Linf ball, by sign steps from no perturbation, and the
    network is to predict eps + gamma delta, which no longer is Gaussian.

    Args:
        epsilon: radius in pixel units [0, 1]; 8/255 may be written.
        step_size: of the sign, pixel units.
        snr_cap: upper bound of gamma: near the clean image it grows without bound.
        steps: as of `RankGaussian`.
        eot_samples: as of `RankGaussian`.
        objective: as of `RankGaussian`.
    """

    epsilon: Number = Number("8/255")  # noqa: RUF009 (immutable)
    step_size: Number = Number("4/255")  # noqa: RUF009 (immutable)
    snr_cap: float = 10.0
    steps: int = 5
    eot_samples: int = 1
    objective: Objective = "classification"

    def __post_init__(self) -> None:
        _check_ascent(self.steps, self.eot_samples, self.objective)
        for name in ("epsilon", "step_size", "snr_cap"):
            if not (isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(
                    f"--model.perturbation.{name} must be > 0, got {getattr(self, name)}"
                )

    def mix(self, noise: Tensor, perturbation: Tensor, level: Level) -> Tensor:
        return noise + level.snr_root.clamp(max=self.snr_cap) * perturbation

    def find(self, denoiser: Denoiser, guide: Guide | None, batch: Batch) -> Found:
        radius, length = 2 * self.epsilon, 2 * self.step_size  # model units

        def move(perturbation: Tensor, gradient: Tensor, step: int) -> Tensor:
            moved = perturbation + length * gradient.sign().to(perturbation.dtype)
            return moved.clamp(-radius, radius)

        ask = partial(_objective, denoiser, guide, batch, self.objective, self.mix)
        return _ascend(ask, move, torch.zeros_like(batch.x0), self.steps, self.eot_samples)


def _ascend(
    ask: Callable[[Tensor, int], Tensor],
    move: Callable[[Tensor, Tensor, int], Tensor],
    start: Tensor,
    steps: int,
    eot_samples: int,
) -> Found:
    """`ask(perturbation, draw)` is the objective (B,); `move(perturbation, gradient, step)` the
    next perturbation. Draws and steps count from 1: 0 is the update's.

    Gradients are of the perturbation only: nothing leaks into the weights' gradients, and no
    collective is triggered under data parallelism. They are float32 where the networks run in
    less. A row's perturbation is NaN if a value or a gradient of it was no number: ranks would make
    noise of it that looks like any other.
    """
    perturbation, before = start, None
    broken = torch.zeros(len(start), dtype=torch.bool, device=start.device)
    for step in range(1, steps + 1):
        first = 1 + (step - 1) * eot_samples
        values, gradient = [], torch.zeros_like(start, dtype=torch.float32)
        for draw in range(first, first + eot_samples):
            point = perturbation.detach().requires_grad_()
            value = ask(point, draw)
            # Summed, not averaged: a sample's gradient must not depend on the batch it is in.
            gradient += torch.autograd.grad(value.sum(), point)[0].float()
            values.append(value.detach().float())
        mean = torch.stack(values).mean(0)
        before = mean if before is None else before
        broken |= ~(mean.isfinite() & gradient.flatten(1).isfinite().all(1))
        perturbation = move(perturbation, gradient, step)
    assert before is not None, "no step"
    return Found(perturbation.masked_fill(broken.reshape(-1, 1, 1, 1), torch.nan), before)


def _objective(
    denoiser: Denoiser,
    guide: Guide | None,
    batch: Batch,
    objective: Objective,
    mix: Callable[[Tensor, Tensor, Level], Tensor],
    perturbation: Tensor,
    draw: int,
) -> Tensor:
    """(B,) under a draw of noise, differentiable in the perturbation."""
    mixed = mix(
        batch.noise.normal(Purpose.TRAINING, batch.x0, repeat=draw), perturbation, batch.level
    )
    x = batch.level.diffuse(batch.x0, mixed)
    output = denoiser(x, batch.level)
    if objective == "denoising":
        return _errors(output, denoiser.target(batch.x0, mixed, batch.level))
    assert guide is not None, "the guide's loss needs a guide"
    prediction, _ = denoiser.explain(x, output, batch.level)
    # In float64, where 1 - p of a sure classifier is not yet 0: zeros have no order.
    logits = guide(to_pixels(prediction)).double()
    return F.cross_entropy(logits, batch.labels, reduction="none")


def denoising_loss(denoiser: Denoiser, x0: Tensor, level: Level, training_noise: Tensor) -> Tensor:
    """(B,) mean squared error of the network's output at q(x0, level, training_noise)."""
    output = denoiser(level.diffuse(x0, training_noise), level)
    return _errors(output, denoiser.target(x0, training_noise, level))


def _errors(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output.float(), target.float(), reduction="none").flatten(1).mean(1)


def _check_ascent(steps: int, eot_samples: int, objective: Objective) -> None:
    check_choice("--model.perturbation.objective", objective, Objective)
    for name, value in (("steps", steps), ("eot_samples", eot_samples)):
        if value < 1:
            raise InputError(f"--model.perturbation.{name} must be >= 1, got {value}")
