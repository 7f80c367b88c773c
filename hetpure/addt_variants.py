"""Perturbations that ADDT's experiments are compared with: without RBGM, and in random order.

The label-free variant is `RankGaussian` with `objective: denoising`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from hetpure.addt import Batch, Guide, Objective, Perturbation, Ranked, check_search
from hetpure.denoiser import Denoiser
from hetpure.errors import check_choice, check_positive
from hetpure.numbers import Number
from hetpure.schedule import Level


@dataclass(frozen=True, kw_only=True)
class RandomOrder(Ranked):
    """The control: RBGM of noise in place of gradients. In law it is noise, so this is clean
    fine-tuning on other draws."""

    def find(self, denoiser: Denoiser, guide: Guide | None, batch: Batch) -> Tensor:
        return self.ranked(self.start(batch), batch.noise, 0)


@dataclass(frozen=True, kw_only=True)
class Ball(Perturbation):
    """Without RBGM: the image moves in an Linf ball, by sign steps from no perturbation, and the
    network is to predict eps + gamma delta, which no longer is Gaussian.

    Args:
        epsilon: radius in pixel units [0, 1]; 8/255 may be written.
        step_size: of the sign, pixel units.
        snr_cap: upper bound of gamma: near the clean image it grows without bound.
        steps: sign steps.
        eot_samples: noise draws of each gradient.
        objective: as of `RankGaussian`.
    """

    epsilon: Number = Number("8/255")  # noqa: RUF009 (immutable)
    step_size: Number = Number("4/255")  # noqa: RUF009 (immutable)
    snr_cap: float = 10.0
    steps: int = 5
    eot_samples: int = 1
    objective: Objective = "classification"

    def __post_init__(self) -> None:
        check_choice(self, "objective", Objective)
        check_search(self, self.steps, self.eot_samples)
        check_positive(self, "epsilon", "step_size", "snr_cap")

    def start(self, batch: Batch) -> Tensor:
        return torch.zeros_like(batch.x0)

    def mix(self, noise: Tensor, perturbation: Tensor, level: Level) -> Tensor:
        return noise + level.snr_root.clamp(max=self.snr_cap) * perturbation

    def find(self, denoiser: Denoiser, guide: Guide | None, batch: Batch) -> Tensor:
        radius, length = 2 * self.epsilon, 2 * self.step_size  # model units
        loss = self.loss(denoiser, guide, batch)
        delta = self.start(batch)
        for k in range(1, self.steps + 1):
            gradient = self.gradient(loss, batch, delta, k)
            sign = gradient.sign().masked_fill(gradient.isnan(), torch.nan)  # else 0
            delta = (delta + length * sign.to(delta.dtype)).clamp(-radius, radius)
        return delta
