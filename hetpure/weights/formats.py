"""What a reader of a published diffusion network gives, and what a user may add to the file."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from hetpure.errors import InputError, check_choice

State = Mapping[str, Tensor]

LINEAR = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
VP = {
    "_class_name": "VPScheduler",
    "num_train_timesteps": 1000,
    "beta_min": 0.1,
    "beta_max": 20.0,
    "prediction_type": "epsilon",
}
EDM = {
    "_class_name": "EDMEulerScheduler",
    "num_train_timesteps": 1000,
    "sigma_data": 0.5,
    "prediction_type": "epsilon",
}
PublishedPairing = Literal["network", "table", "diffpure"]
Betas = Literal["linear", "squaredcos_cap_v2"]


@dataclass(frozen=True)
class Hints:
    """What files do not hold; None is the format's published value.

    Args:
        sample_size: height and width of the images, pixels.
        head_channels: channels of an attention head of OpenAI's networks.
        beta_schedule: of OpenAI's networks: linear, or squaredcos_cap_v2 (cosine).
        steps: of that schedule.
        pairing: of time and noise level, of score_sde's networks: `network` (its own training's),
            `table` (the index at the level of DDPM's betas, as in HetPure's code) or `diffpure`
            (as in DiffPure's code).
    """

    sample_size: int | None = None
    head_channels: int | None = None
    beta_schedule: Betas | None = None
    steps: int | None = None
    pairing: PublishedPairing | None = None

    def __post_init__(self) -> None:
        for name in ("sample_size", "head_channels", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise InputError(f"{name} must be >= 1, got {value}")
        if self.pairing is not None:
            check_choice(self, "pairing", PublishedPairing)

    def only(self, *names: str) -> None:
        """InputError where more is given than a format needs."""
        for field in fields(self):
            if field.name not in names and getattr(self, field.name) is not None:
                raise InputError(f"{field.name} is no choice for this format: leave it out")


def misfit(state: State, wanted: State) -> str | None:
    """Where a state dict is not exactly a network's, by names, shapes and kinds of number."""

    def kind(value: Tensor) -> str:
        plain = value.layout == torch.strided and not value.is_quantized
        number = "floats" if value.is_floating_point() else f"{value.dtype}"
        return f"{number} {tuple(value.shape)}" if plain else f"{value.layout} {value.dtype}"

    kinds, expected = ({key: kind(v) for key, v in part.items()} for part in (state, wanted))
    names = kinds.keys() | expected.keys()
    wrong = sorted(name for name in names if kinds.get(name) != expected.get(name))
    if not wrong:
        return None
    return (
        f"{len(wrong)} tensors do not fit; {wrong[0]} is {kinds.get(wrong[0], 'missing')}, expected"
        f" {expected.get(wrong[0], 'nothing')}"
    )


@dataclass(frozen=True)
class DiffusionWeights:
    """A published diffusion network under the names of one of ours.

    `network` is the class (`UNet2DModel`, `SongUNet`) and `config` its arguments; `state` is
    exactly its state dict; `scheduler` the content of scheduler_config.json; `remarks` say what was
    dropped and what the file does not say.
    """

    format: str
    network: str
    config: dict[str, Any]
    state: dict[str, Tensor]
    scheduler: dict[str, Any]
    remarks: tuple[str, ...]
    licence: str = "not stated in the file: see its source"
