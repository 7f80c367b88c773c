"""What a reader of a published diffusion network gives, and what it may be told beside the file."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

State = Mapping[str, Tensor]

LINEAR = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 1e-4,
    "beta_end": 2e-2,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}
COSINE = LINEAR | {"num_train_timesteps": 4000, "beta_schedule": "squaredcos_cap_v2"}
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
Pairing = Literal["network", "table", "diffpure"]


@dataclass(frozen=True)
class Told:
    """What files do not hold; None is the format's published value.

    Args:
        sample_size: height and width of the images, pixels.
        head_channels: channels of an attention head.
        pairing: of time and noise level, of a network in continuous time: `network` (its own
            training's), `table` (the index at the level of DDPM's betas, as in HetPure's code) or
            `diffpure` (as in DiffPure's code).
    """

    sample_size: int | None = None
    head_channels: int | None = None
    pairing: Pairing | None = None


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
