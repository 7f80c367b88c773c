"""Networks and data that do not belong together."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hetpure.compatibility import check_denoiser
from hetpure.errors import InputError
from hetpure.weights.diffusion import denoiser_of, fresh_unet
from hetpure.weights.schedulers import fresh_scheduler
from tests.lightning_modules.trainings import UNET

FOUR_LEVELS = {
    "sample_size": None,
    "block_out_channels": [4] * 4,
    "down_block_types": ["DownBlock2D"] * 4,
    "up_block_types": ["UpBlock2D"] * 4,
}


@pytest.mark.parametrize(
    ("unet", "data", "purified_size", "message"),
    [
        ({}, {"image_size": 32}, None, r"sample_size: \(28, 28\), and the images' .*: \(32, 32\)"),
        ({}, {}, 32, r"purified_size .*: \(32, 32\)"),
        ({}, {"channels": 3}, None, "in_channels: 1, and the data's channels: 3"),
        ({"out_channels": 2}, {}, None, "out_channels: 2, and the data's channels: 1"),
        (FOUR_LEVELS, {}, None, "divisible by 8, and they are 28 x 28: .*--model.unet.*purified"),
        (FOUR_LEVELS, {}, 36, "halves its images 3 times, .* divisible by 8, and they are 36 x 36"),
        (FOUR_LEVELS, {"image_size": (32, 20)}, None, "divisible by 8, and they are 32 x 20"),
        ({"num_class_embeds": 10}, {}, None, r"an image's class \(num_class_embeds\)"),
    ],
)
def test_a_diffusion_of_another_kind_than_the_data(
    unet: dict[str, Any], data: dict[str, Any], purified_size: int | None, message: str
) -> None:
    denoiser = denoiser_of(fresh_unet(UNET | unet), fresh_scheduler("none", {}))
    images = SimpleNamespace(**{"channels": 1, "image_size": 28} | data)
    with pytest.raises(InputError, match=message):
        check_denoiser(denoiser, images, purified_size)


def test_what_data_do_not_say_is_not_compared() -> None:
    denoiser = denoiser_of(fresh_unet(UNET), fresh_scheduler("none", {}))
    check_denoiser(denoiser, SimpleNamespace())
    check_denoiser(denoiser, SimpleNamespace(channels=1, image_size=32), purified_size=28)


def test_images_that_can_be_halved_are_taken() -> None:
    square = denoiser_of(fresh_unet(UNET | {"sample_size": [28, 28]}), fresh_scheduler("none", {}))
    check_denoiser(square, SimpleNamespace(channels=1, image_size=28))
    four = denoiser_of(fresh_unet(UNET | FOUR_LEVELS), fresh_scheduler("none", {}))
    check_denoiser(four, SimpleNamespace(channels=1, image_size=(32, 24)))
    check_denoiser(four, SimpleNamespace(channels=1, image_size=28), purified_size=32)
    with torch.no_grad():  # as it is said: that size works, the refused one does not
        assert four(torch.zeros(1, 1, 32, 24), 5).shape == (1, 1, 32, 24)
        with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
            four(torch.zeros(1, 1, 28, 28), 5)
