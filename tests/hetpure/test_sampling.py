"""Images out of pure noise."""

import torch
from torch import Tensor, nn

from hetpure.denoiser import Denoiser
from hetpure.noise import Noise, Stream
from hetpure.sampling import draw_images
from hetpure.schedule import linear_schedule
from hetpure.weights import load_denoiser

LIKE = torch.empty(6, 1, 4, 4, dtype=torch.float64)


class Knows(nn.Module):
    """Predicts the same image from everything (prediction type sample)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[float] = []

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        self.calls.append(float(timesteps[0]))
        return torch.full_like(x, 0.5)


def test_what_the_network_predicts_is_drawn_on_a_grid_from_the_last_index() -> None:
    network = Knows()
    denoiser = Denoiser(network, linear_schedule(), "sample")
    noise = Noise.of(0, Stream.PROBE).on(torch.arange(6))
    found = draw_images(denoiser, noise, LIKE, network_calls=10)
    torch.testing.assert_close(found, torch.full_like(found, 0.75))  # pixels
    assert network.calls == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert not found.requires_grad


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    denoiser = load_denoiser("fashion_mnist_ddpm")
    noise = Noise.of(0, Stream.PROBE).on(torch.arange(3))
    like = torch.empty(3, 1, 28, 28)
    together = draw_images(denoiser, noise, like, network_calls=4)
    alone = draw_images(denoiser, noise.take(torch.tensor([2])), like[:1], network_calls=4)
    torch.testing.assert_close(alone[0], together[2], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=0.1)
    assert (together >= 0).all() and (together <= 1).all()
