"""One contract for every diffusion network: a noisy image and its index to (x0, noise)."""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from hetpure.errors import InputError
from hetpure.schedule import Schedule

PredictionType = Literal["epsilon", "sample", "v_prediction"]


def to_model(pixels: Tensor) -> Tensor:
    """Pixel [0, 1] to model [-1, 1]."""
    return 2 * pixels - 1


def to_pixels(model: Tensor) -> Tensor:
    """Model [-1, 1] to pixel [0, 1], not clamped."""
    return (model + 1) / 2


class Denoiser(nn.Module):
    """A diffusers UNet (or any `network(x, timesteps)` giving a tensor or an object with `.sample`)
    behind one call, whatever it was trained to predict. Works in model units [-1, 1]."""

    def __init__(
        self, network: nn.Module, schedule: Schedule, prediction_type: PredictionType = "epsilon"
    ) -> None:
        super().__init__()
        if prediction_type not in get_args(PredictionType):
            allowed = ", ".join(get_args(PredictionType))
            raise InputError(f"prediction_type {prediction_type!r} is not one of {allowed}")
        self.network = network
        self.schedule = schedule
        self.prediction_type = prediction_type

    def forward(self, x: Tensor, timesteps: int | Tensor) -> Tensor:
        """The network's raw output for x (B, C, H, W) at one index or at (B,) indices."""
        if isinstance(timesteps, int):
            timesteps = torch.full((len(x),), timesteps, device=x.device)
        output = self.network(x, timesteps)
        result: Tensor = output if isinstance(output, Tensor) else output.sample
        return result

    def predict(self, x: Tensor, timesteps: int | Tensor) -> tuple[Tensor, Tensor]:
        """(x0, noise), each (B, C, H, W) and consistent: x = sqrt(abar) x0 + sqrt(1-abar) noise."""
        output = self(x, timesteps)
        alpha = self._alpha(timesteps, x)
        signal, spread = alpha**0.5, (1 - alpha) ** 0.5
        if self.prediction_type == "epsilon":
            return (x - spread * output) / signal, output
        if self.prediction_type == "sample":
            return output, (x - signal * output) / spread
        return signal * x - spread * output, signal * output + spread * x

    def target(self, x0: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What the network should output for q(x0, t, noise); v as in Salimans & Ho (2022)."""
        if self.prediction_type == "epsilon":
            return noise
        if self.prediction_type == "sample":
            return x0
        alpha = self.schedule.alphas_at(timesteps, x0)
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * x0

    def _alpha(self, timesteps: int | Tensor, like: Tensor) -> float | Tensor:
        if isinstance(timesteps, int):
            return self.schedule.alpha_cumprod(timesteps)
        return self.schedule.alphas_at(timesteps, like)
