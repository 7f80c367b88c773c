"""A diffusion network that costs next to nothing: attacks ask it thousands of times."""

import pytest
import torch
from torch import Tensor, nn

from hetpure.denoiser import Denoiser
from hetpure.schedule import linear_schedule


class Convolutions(nn.Module):
    """Two convolutions, smooth, that know the time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = (nn.Conv2d(*sides, 3, padding=1) for sides in ((1, 4), (4, 1)))

    def forward(self, x: Tensor, times: Tensor) -> Tensor:
        hidden = nn.functional.silu(self.first(x) + times[:, None, None, None].to(x) / 1000)
        return self.last(hidden)


@pytest.fixture
def denoiser() -> Denoiser:
    """Untrained, for images of one channel, in float64."""
    torch.manual_seed(0)
    return Denoiser(Convolutions(), linear_schedule()).double().eval().requires_grad_(False)
