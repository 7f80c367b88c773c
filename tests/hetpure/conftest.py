"""Small real models in float64, fixed by seed: equality to the last bit means something there."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hetpure.classifiers import Classifier, WideResNet
from hetpure.denoiser import Denoiser
from hetpure.noise import BatchNoise, Noise, Stream
from hetpure.schedule import linear_schedule
from tests.hetpure.networks import tiny_unet

Rows = Callable[..., BatchNoise]


@pytest.fixture
def denoiser() -> Denoiser:
    """An untrained UNet for 8x8 images of one channel. Smooth: SiLU and GroupNorm only."""
    torch.manual_seed(0)
    network = tiny_unet(in_channels=1, out_channels=1)
    return Denoiser(network, linear_schedule()).double().eval().requires_grad_(False)


@pytest.fixture
def classifier() -> Classifier:
    """An untrained WRN-10-1 with four classes: ReLUs, and the attention blocks of the real one."""
    torch.manual_seed(1)
    network = WideResNet(depth=10, widen_factor=1, num_classes=4, in_channels=1)
    whole = Classifier(network, num_classes=4, mean=[0.4], std=[0.3])
    return whole.double().eval().requires_grad_(False)


@pytest.fixture
def smooth_classifier() -> Classifier:
    """The twin for finite differences: no kink anywhere."""
    torch.manual_seed(2)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(144, 4))
    whole = Classifier(network, num_classes=4, mean=[0.4], std=[0.3], attention_blocks=["1"])
    return whole.double().eval().requires_grad_(False)


@pytest.fixture
def linear_classifier() -> Classifier:
    """Two classes; an attack on it is known in closed form."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    whole = Classifier(network, num_classes=2, mean=[0.5], std=[0.5])
    return whole.double().eval().requires_grad_(False)


@pytest.fixture
def images() -> Tensor:
    """Four interior images, pixel [0.2, 0.8]."""
    generator = torch.Generator().manual_seed(4)
    return 0.2 + 0.6 * torch.rand(4, 1, 8, 8, generator=generator, dtype=torch.float64)


@pytest.fixture
def half_mask() -> Tensor:
    """Left half attended, (4, 1, 8, 8)."""
    mask = torch.zeros(4, 1, 8, 8, dtype=torch.float64)
    mask[..., :4] = 1
    return mask


@pytest.fixture
def rows() -> Rows:
    """`rows(0, 1)`: the noise of one draw for samples 0 and 1; `draw=` takes another draw."""

    def make(*samples: int, draw: int = 0) -> BatchNoise:
        return Noise.of(7, Stream.PROBE, draw).on(torch.tensor(samples))

    return make
