"""One contract for every diffusion network: a noisy image and its level to (x0, noise)."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from hetpure.errors import check_choice
from hetpure.schedule import Level, Schedule

PredictionType = Literal["epsilon", "sample", "v_prediction", "edm"]
At = int | Level
Scale = float | Tensor


def to_model(pixels: Tensor) -> Tensor:
    """Pixel [0, 1] to model [-1, 1]."""
    return 2 * pixels - 1


def to_pixels(model: Tensor) -> Tensor:
    """Model [-1, 1] to pixel [0, 1], not clamped."""
    return (model + 1) / 2


class Denoiser(nn.Module):
    """A diffusers UNet (or any `network(x, timesteps)` giving a tensor or an object with `.sample`)
    behind one call, whatever it was trained to predict. Works in model units [-1, 1].

    The noise level of a call is an index of the schedule, or a `Level` with one for each image,
    which may lie between indices.

    `prediction_type` is `epsilon`, `sample`, `v_prediction`, or `edm`: the network inside the
    preconditioning of Karras et al. 2022 (table 1), which sees x / signal, whose noise has the
    standard deviation sigma = spread / signal, scaled to unit variance, and is given ln(sigma) / 4.
    `sigma_data` is the standard deviation of EDM's data, model units.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        prediction_type: PredictionType = "epsilon",
        sigma_data: float = 0.5,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type
        check_choice(self, "prediction_type", PredictionType)
        self.sigma_data = sigma_data

    def forward(self, x: Tensor, at: At) -> Tensor:
        """The network's raw output for x (B, C, H, W)."""
        if self.prediction_type == "edm":
            signal, spread = self._level(at)
            scale = (spread**2 + (self.sigma_data * signal) ** 2) ** 0.5
            x, sigma = x / scale, spread / signal
            if isinstance(sigma, float):
                times = torch.full((len(x),), math.log(sigma) / 4, dtype=x.dtype, device=x.device)
            else:
                times = sigma.flatten().to(x).log() / 4
        elif isinstance(at, int):
            times = torch.full((len(x),), self.schedule.time(at), device=x.device)
        else:
            times = at.time
        output = self.network(x, times)
        result: Tensor = output if isinstance(output, Tensor) else output.sample
        return result

    def predict(self, x: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """(x0, noise), each (B, C, H, W) and consistent: x = signal x0 + spread noise."""
        return self.explain(x, self(x, at), at)

    def explain(self, x: Tensor, output: Tensor, at: At) -> tuple[Tensor, Tensor]:
        """(x0, noise) that the network's raw output for x means."""
        signal, spread = self._level(at)
        if self.prediction_type == "epsilon":
            return (x - spread * output) / signal, output
        if self.prediction_type == "sample":
            return output, (x - signal * output) / spread
        if self.prediction_type == "v_prediction":
            return signal * x - spread * output, signal * output + spread * x
        skip, out = self._skip_and_out(signal, spread)
        # Of the noise the same two terms: x - signal x0 would cancel near the clean image.
        variance = spread**2 + (self.sigma_data * signal) ** 2
        noise = spread / variance * x - self.sigma_data * signal / variance**0.5 * output
        return skip * x + out * output, noise

    def target(self, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        """What the network should output for q(x0, level, noise); v as in Salimans & Ho (2022).
        With EDM's its plain squared error is the paper's weighted one (eq. 8)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        signal, spread = level.signal, level.spread
        if self.prediction_type == "v_prediction":
            return signal * noise - spread * x0
        skip, out = self._skip_and_out(signal, spread)
        return (x0 - skip * (signal * x0 + spread * noise)) / out

    def _skip_and_out(self, signal: Scale, spread: Scale) -> tuple[Scale, Scale]:
        """EDM's c_skip, here of x and not of x / signal, and c_out."""
        variance = spread**2 + (self.sigma_data * signal) ** 2
        return self.sigma_data**2 * signal / variance, self.sigma_data * spread / variance**0.5

    def _level(self, at: At) -> tuple[Scale, Scale]:
        """Signal and spread."""
        if isinstance(at, Level):
            return at.signal, at.spread
        alpha = self.schedule.alpha_cumprod(at)
        return alpha**0.5, (1 - alpha) ** 0.5
