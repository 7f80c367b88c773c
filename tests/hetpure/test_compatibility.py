"""Networks and data that do not belong together."""

from types import SimpleNamespace
from typing import Any

import pytest

from hetpure.compatibility import check_denoiser
from hetpure.errors import InputError
from hetpure.weights.diffusion import denoiser_of, fresh_unet
from hetpure.weights.schedulers import fresh_scheduler
from tests.lightning_modules.trainings import UNET


@pytest.mark.parametrize(
    ("unet", "data", "purified_size", "message"),
    [
        ({}, {"image_size": 32}, None, r"sample_size: \(28, 28\), and the images' .*: \(32, 32\)"),
        ({}, {}, 32, r"purified_size .*: \(32, 32\)"),
        ({}, {"channels": 3}, None, "in_channels: 1, and the data's channels: 3"),
        ({"out_channels": 2}, {}, None, "out_channels: 2, and the data's channels: 1"),
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
