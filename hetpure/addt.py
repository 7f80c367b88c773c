"""ADDT (Liu et al., ICLR 2025, arXiv 2404.14309): adversarial denoising diffusion training.

Perturbations that a classifier dislikes are turned into exact Gaussian noise by rank (RBGM) and
mixed into the training noise, so the network learns to remove them. Model units, [-1, 1].
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from hetpure.denoiser import Denoiser, to_pixels
from hetpure.noise import Purpose, RowNoise
from hetpure.samplers import add_noise
from hetpure.schedule import snr_root

Guide = Callable[[Tensor], Tensor]


def perturbation_ratio(alphas_cumprod: Tensor, scale: float = 0.03, cap: float = 0.3) -> Tensor:
    """lambda_t = clip(scale * gamma_t, 0, cap). Off the cap the perturbation has the constant
    standard deviation `scale` in model units, at every t."""
    return (scale * snr_root(alphas_cumprod)).clamp(0, cap)


def mix_noise(noise: Tensor, perturbation: Tensor, ratio: Tensor) -> Tensor:
    """eps_mix = sqrt(1 - lambda^2) eps + lambda eps_delta: variance is preserved."""
    return (1 - ratio**2).sqrt() * noise + ratio * perturbation


def rank_gaussian(
    values: Tensor, draw: Tensor, tie_breaker: Tensor, per: Literal["channel", "image"] = "channel"
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


def optimise_perturbation(
    denoiser: Denoiser,
    guide: Guide,
    x0: Tensor,
    labels: Tensor,
    timesteps: Tensor,
    ratio: Tensor,
    noise: RowNoise,
    *,
    steps: int = 5,
    per: Literal["channel", "image"] = "channel",
) -> Tensor:
    """CGPO: a Gaussian perturbation (B, C, H, W) that leads the one-step prediction astray.

    x0 in model units, labels and timesteps (B,), ratio (B, 1, 1, 1). The guide takes pixels and
    gives logits. Gradients are taken with respect to the perturbation only, so nothing leaks into
    the weights' gradients and no collective is triggered under data parallelism.
    """
    alpha = denoiser.schedule.alphas_at(timesteps, x0)
    perturbation = noise.normal(Purpose.PERTURBATION, x0)
    gradient_sum = torch.zeros_like(x0, dtype=torch.float32)
    for k in range(1, steps + 1):
        perturbation.requires_grad_()
        mixed = mix_noise(noise.normal(Purpose.TRAINING, x0, repeat=k), perturbation, ratio)
        prediction, _ = denoiser.predict(add_noise(x0, alpha, mixed), timesteps)
        # Summed, not averaged: a sample's gradient must not depend on the batch it is in.
        loss = F.cross_entropy(guide(to_pixels(prediction)), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, perturbation)
        gradient_sum += gradient.float()
        perturbation = rank_gaussian(
            gradient_sum,
            noise.normal(Purpose.RANK, x0, repeat=k),
            noise.uniform(Purpose.TIES, x0, repeat=k),
            per,
        )
    return perturbation


def denoising_loss(
    denoiser: Denoiser, x0: Tensor, timesteps: Tensor, training_noise: Tensor
) -> Tensor:
    """(B,) mean squared error of the network's output at q(x0, t, training_noise)."""
    alpha = denoiser.schedule.alphas_at(timesteps, x0)
    output = denoiser(add_noise(x0, alpha, training_noise), timesteps)
    target = denoiser.target(x0, training_noise, timesteps)
    return F.mse_loss(output.float(), target.float(), reduction="none").flatten(1).mean(1)
