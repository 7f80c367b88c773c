"""ADDT (Liu et al., ICLR 2025, arXiv 2404.14309): adversarial denoising diffusion training.

CGPO looks for perturbations that a classifier dislikes, RBGM makes exact Gaussian noise of them by
rank. Mixed into the training noise they teach the network to remove them.

Images, noise and perturbations are (B, C, H, W) in model units [-1, 1], losses (B,). In the paper's
letters x_t = q(x0, t, eps) = signal x0 + spread eps, gamma = signal / spread, lambda is the `ratio`
and eps_delta the perturbation, `delta` for short.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.denoiser import Denoiser, to_pixels
from hetpure.errors import FieldError, check_at_least, check_choice
from hetpure.noise import MOST_REPEATS, BatchNoise, Purpose
from hetpure.schedule import Level

Guide = Callable[[Tensor], Tensor]
Loss = Callable[[Tensor], Tensor]
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


def classification_loss(denoiser: Denoiser, guide: Guide, batch: "Batch", noise: Tensor) -> Tensor:
    """(B,) the guide's cross-entropy of the one-step prediction, which is not clamped, from
    q(x0, t, noise). The guide takes pixels [0, 1] and gives logits (B, K)."""
    x0_hat, _ = denoiser.predict(batch.level.diffuse(batch.x0, noise), batch.level)
    # In float64, where 1 - p of a sure classifier is not yet 0: zeros have no order.
    logits = guide(to_pixels(x0_hat)).double()
    return F.cross_entropy(logits, batch.labels, reduction="none")


def denoising_loss(denoiser: Denoiser, x0: Tensor, level: Level, noise: Tensor) -> Tensor:
    """(B,) mean squared error of the network's output at q(x0, t, noise): what is trained."""
    output = denoiser(level.diffuse(x0, noise), level).float()
    target = denoiser.target(x0, noise, level).float()
    return F.mse_loss(output, target, reduction="none").flatten(1).mean(1)


@dataclass(frozen=True)
class Batch:
    """Images `x0` (B, C, H, W) in model units, `labels` (B,), their level and addressed noise."""

    x0: Tensor
    labels: Tensor
    level: Level
    noise: BatchNoise

    def take(self, index: Tensor) -> "Batch":
        """Some images, by their places (R,) int64."""
        return Batch(
            self.x0[index], self.labels[index], self.level.take(index), self.noise.take(index)
        )


def check_search(owner: object, steps: int, eot_samples: int) -> None:
    """FieldError unless the draws of the owner's search have an address each."""
    check_at_least(owner, 1, "steps", "eot_samples")
    if steps * eot_samples >= MOST_REPEATS:
        draws = f"x eot_samples must be < {MOST_REPEATS}, got {steps} x {eot_samples}"
        raise FieldError(owner, "steps", draws)


class Perturbation(ABC):
    """How an update's training noise is perturbed: frozen dataclasses of hyper-parameters.

    `objective` is what the search raises: the guide's loss, the network's own, or None where
    nothing is searched for.
    """

    objective: Objective | None = None
    eot_samples: int = 1

    @abstractmethod
    def start(self, batch: Batch) -> Tensor:
        """The perturbation that the search begins with."""

    @abstractmethod
    def find(self, denoiser: Denoiser, guide: Guide | None, batch: Batch) -> Tensor:
        """The perturbation for a batch; NaN for an image without a gradient."""

    @abstractmethod
    def mix(self, noise: Tensor, perturbation: Tensor, level: Level) -> Tensor:
        """The noise of q(x0, t, noise) with the perturbation in it."""

    def ratio(self, level: Level) -> Tensor | None:
        """lambda (B, 1, 1, 1), where there is one."""
        return None

    def loss(self, denoiser: Denoiser, guide: Guide | None, batch: Batch) -> Loss:
        """The objective (B,) of a batch, as a function of its mixed noise."""
        if self.objective == "denoising":
            return partial(denoising_loss, denoiser, batch.x0, batch.level)
        assert self.objective is not None and guide is not None, "nothing is searched for"
        return partial(classification_loss, denoiser, guide, batch)

    def draws(self, batch: Batch, k: int) -> Iterator[Tensor]:
        """The draws of eps of step k = 1, 2, ... of a search; draw 0 is the update's own."""
        for draw in range(1 + (k - 1) * self.eot_samples, 1 + k * self.eot_samples):
            yield batch.noise.normal(Purpose.TRAINING, batch.x0, repeat=draw)

    def gradient(self, loss: Loss, batch: Batch, delta: Tensor, k: int) -> Tensor:
        """d loss(mix(eps, delta)) / d delta, summed over the draws of step k, in float32; all NaN
        for an image whose loss (B,) or gradient is no number.

        Gradients are of the perturbation only: nothing leaks into the weights' gradients, and no
        collective is triggered under data parallelism.
        """
        total = torch.zeros_like(delta, dtype=torch.float32)
        for eps in self.draws(batch, k):
            point = delta.detach().requires_grad_()
            value = loss(self.mix(eps, point, batch.level))
            # Summed, not averaged: an image's gradient must not depend on the batch it is in.
            gradient = torch.autograd.grad(value.sum(), point)[0].float()
            numbers = value.isfinite() & gradient.flatten(1).isfinite().all(1)
            total += gradient.masked_fill(~numbers.reshape(-1, 1, 1, 1), torch.nan)
        return total

    def score(
        self, denoiser: Denoiser, guide: Guide | None, batch: Batch, perturbation: Tensor
    ) -> Tensor:
        """The objective (B,) under a perturbation, on the noise of the search's first step, in
        float32 and without gradients."""
        loss = self.loss(denoiser, guide, batch)
        with torch.no_grad():
            mixed = (self.mix(eps, perturbation, batch.level) for eps in self.draws(batch, 1))
            return torch.stack([loss(noise) for noise in mixed]).mean(0).float()


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
        check_choice(self, "ranks", Ranks)
        check_at_least(self, 0, "scale")
        if not 0 <= self.cap <= 1:
            raise FieldError(self, "cap", f"must be in [0, 1], got {self.cap}")

    def start(self, batch: Batch) -> Tensor:
        return batch.noise.normal(Purpose.PERTURBATION, batch.x0)

    def mix(self, noise: Tensor, perturbation: Tensor, level: Level) -> Tensor:
        return mix_noise(noise, perturbation, self.ratio(level))

    def ratio(self, level: Level) -> Tensor:
        return perturbation_ratio(level.snr_root, self.scale, self.cap)

    def ranked(self, values: Tensor, noise: BatchNoise, k: int) -> Tensor:
        """RBGM of the values with the noise's own draw of step k."""
        draw = noise.normal(Purpose.RANK, values, repeat=k)
        ties = noise.uniform(Purpose.TIES, values, repeat=k)
        return rank_gaussian(values, draw, ties, self.ranks)


@dataclass(frozen=True, kw_only=True)
class RankGaussian(Ranked):
    """CGPO with RBGM, the paper's: the rank of the summed gradients orders Gaussian noise,

        eps fresh;  G += d loss(eps_mix) / d delta;  delta = RBGM(G),    `steps` times.

    Args:
        steps: gradients that are summed.
        eot_samples: noise draws of each gradient.
        objective: what is raised: `classification`, the guide's loss on the one-step prediction,
            or `denoising`, the network's own loss, which needs neither guide nor labels.
        skip_below: images with a smaller lambda get a random perturbation and cost no gradients.
            It then hardly changes x_t: by less than this share of the noise.
    """

    steps: int = 5
    eot_samples: int = 1
    objective: Objective = "classification"
    skip_below: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice(self, "objective", Objective)
        check_search(self, self.steps, self.eot_samples)
        if not 0 <= self.skip_below <= self.cap:
            allowed = f"must be in [0, cap = {self.cap}]"
            raise FieldError(self, "skip_below", f"{allowed}, got {self.skip_below}")

    def find(self, denoiser: Denoiser, guide: Guide | None, batch: Batch) -> Tensor:
        delta = self.start(batch)
        (index,) = (self.ratio(batch.level).flatten() >= self.skip_below).nonzero(as_tuple=True)
        if len(index):
            searched = batch.take(index)
            loss = self.loss(denoiser, guide, searched)
            delta[index] = self.cgpo(loss, searched, delta[index])
        return delta

    def cgpo(self, loss: Loss, batch: Batch, delta: Tensor) -> Tensor:
        """Classifier-guided perturbation optimisation from delta (B, C, H, W), noise units; NaN for
        an image without a gradient."""
        total = torch.zeros_like(delta, dtype=torch.float32)  # G
        for k in range(1, self.steps + 1):
            total += self.gradient(loss, batch, delta, k)
            delta = self.ranked(total.to(delta.dtype), batch.noise, k)
        # RBGM makes noise of NaN that looks like any other.
        return delta.masked_fill(total.isnan(), torch.nan)
