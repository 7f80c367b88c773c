"""Noise schedules on disk: a scheduler_config.json of diffusers, or of a network that was trained
in continuous time. Classes by a list, and every key understood or refused."""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import diffusers
import torch
from diffusers import DDPMScheduler, EDMEulerScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from hetpure.errors import InputError
from hetpure.schedule import Pairing, Schedule, linear_schedule, vp_schedule
from hetpure.weights.folders import in_one_line, read_json

DISCRETE = ("epsilon", "sample", "v_prediction")  # what a network of DDPM's may predict
# Samplers of networks that were trained on a table of betas; how they sample is not ours to follow.
TABLES = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "UniPCMultistepScheduler",
)
# Keys that say which noise a network was trained on; the others of these classes say how to sample.
LEVELS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "rescale_betas_zero_snr",
)


class VPScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is untyped
    """The VP-SDE in T times (Song et al. 2021), as a config: it samples nothing.

    Args:
        num_train_timesteps: T, of the indices that name its noise levels.
        beta_min: rate of the noise at time 0.
        beta_max: rate of the noise at time 1.
        prediction_type: what the network predicts.
        pairing: which time and level an index is, see `hetpure.schedule.vp_schedule`.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_min: float = 0.1,
        beta_max: float = 20.0,
        prediction_type: str = "epsilon",
        pairing: Pairing = "network",
    ) -> None:
        if not 0 < beta_min <= beta_max < float("inf") or num_train_timesteps < 2:
            raise ValueError(f"no VP-SDE has betas {beta_min} to {beta_max}")
        if pairing not in get_args(Pairing):
            raise InputError(f"pairing is {pairing!r}, allowed are {', '.join(get_args(Pairing))}")


class RescaledScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # as above
    """DDPM's levels for a network that is given times as if there were `told_timesteps` indices, as
    improved diffusion's are (rescale_timesteps): a config, which samples nothing.

    Args:
        num_train_timesteps: T, of the indices that name its noise levels.
        beta_start: as DDPMScheduler's, like all that follow.
        beta_end: of the betas.
        beta_schedule: of the betas.
        prediction_type: what the network predicts.
        told_timesteps: at index n the network is given n times this over T.
    """

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 1e-4,
        beta_end: float = 2e-2,
        beta_schedule: str = "linear",
        prediction_type: str = "epsilon",
        told_timesteps: int = 1000,
    ) -> None:
        if told_timesteps < 1:
            raise ValueError(f"told_timesteps must be 1 or more, got {told_timesteps}")
        table = DDPMScheduler(num_train_timesteps, beta_start, beta_end, beta_schedule)
        self.alphas_cumprod = table.alphas_cumprod


Scheduler: TypeAlias = DDPMScheduler | EDMEulerScheduler | VPScheduler | RescaledScheduler
CLASSES: dict[str, Any] = {
    **{name: getattr(diffusers, name) for name in TABLES},
    "EDMEulerScheduler": EDMEulerScheduler,
    "VPScheduler": VPScheduler,
    "RescaledScheduler": RescaledScheduler,
}


def load_scheduler(folder: Path) -> Scheduler:
    """The noise schedule of a diffusion's folder."""
    if (folder / "scheduler").is_dir():
        folder = folder / "scheduler"
    path = folder / "scheduler_config.json"
    try:
        return build_scheduler(read_json(path))
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"{path}: {in_one_line(error)}") from None


def fresh_scheduler(preconditioning: Literal["none", "edm"], config: dict[str, Any]) -> Scheduler:
    """diffusers' scheduler for a network that is trained from scratch."""
    name = "EDMEulerScheduler" if preconditioning == "edm" else "DDPMScheduler"
    try:
        return build_scheduler({"_class_name": name} | config)
    except (TypeError, ValueError, RuntimeError, NotImplementedError) as error:
        raise InputError(f"no noise schedule has such settings: {in_one_line(error)}") from None


def build_scheduler(config: Mapping[str, Any]) -> Scheduler:
    """The scheduler of a config's content. One of a table of betas becomes a `DDPMScheduler` with
    the same levels. ValueError where anything in it is not understood."""
    name = config.get("_class_name")
    if name not in CLASSES:
        raise InputError(
            f"noise schedules of {name} are not read, only those of {', '.join(CLASSES)}: a network"
            " of another process would be asked at wrong noise levels"
        )
    settings = _translated({key: value for key, value in config.items() if not key.startswith("_")})
    kind = CLASSES[name]
    known = inspect.signature(kind.__init__).parameters
    if unknown := sorted(settings.keys() - known.keys()):
        raise InputError(
            f"{name} has no {unknown[0]}: take the key out, or name it as diffusers does"
        )
    if settings.get("use_flow_sigmas"):
        raise InputError("use_flow_sigmas is of networks that predict a flow, which are not read")
    scheduler = kind(**settings)
    if name in TABLES:
        scheduler = _as_ddpm(scheduler)
    return _checked(scheduler)


def _translated(config: dict[str, Any]) -> dict[str, Any]:
    """Keys of diffusers' first releases, under their present names."""
    settings = dict(config)
    if "predict_epsilon" in settings:
        flag = settings.pop("predict_epsilon")
        if not isinstance(flag, bool):
            raise InputError(f"predict_epsilon must be true or false, got {flag!r}")
        prediction = "epsilon" if flag else "sample"
        if settings.setdefault("prediction_type", prediction) != prediction:
            raise InputError(
                f"predict_epsilon contradicts prediction_type {settings['prediction_type']}"
            )
    if "timesteps" in settings:
        steps = settings.pop("timesteps")
        if settings.setdefault("num_train_timesteps", steps) != steps:
            raise InputError("timesteps contradicts num_train_timesteps")
    if settings.pop("timestep_values", None) is not None:
        raise InputError("timestep_values are not understood: a table of betas has all its indices")
    settings.pop("tensor_format", None)  # of the arrays that its sampler put out
    return settings


def _as_ddpm(scheduler: Any) -> DDPMScheduler:
    levels = {key: scheduler.config[key] for key in LEVELS if key in scheduler.config}
    table = DDPMScheduler(**levels)
    if not torch.equal(table.alphas_cumprod, scheduler.alphas_cumprod):
        raise InputError(f"{type(scheduler).__name__} has other noise levels than DDPM's here")
    return scheduler if isinstance(scheduler, DDPMScheduler) else table


def _checked(scheduler: Scheduler) -> Scheduler:
    """The scheduler, where its numbers are a noise schedule that we know what to do with."""
    predicted = scheduler.config["prediction_type"]
    if isinstance(scheduler, EDMEulerScheduler):
        if predicted != "epsilon" or not scheduler.config["sigma_data"] > 0:
            raise InputError("of EDM only prediction_type epsilon and sigma_data > 0")
        return scheduler
    if predicted not in DISCRETE:
        raise InputError(f"prediction_type {predicted!r} is not one of {', '.join(DISCRETE)}")
    levels = schedule_of(scheduler).alphas_cumprod
    if len(levels) != scheduler.config["num_train_timesteps"]:
        steps = scheduler.config["num_train_timesteps"]
        raise InputError(f"{len(levels)} trained_betas for {steps} num_train_timesteps")
    if not levels or not all(0 < level < 1 for level in levels):
        raise InputError("these betas leave (0, 1), no noise schedule")
    return scheduler


def schedule_of(scheduler: Scheduler) -> Schedule:
    """A scheduler's noise levels. EDM's has no indices: those of DDPM's linear schedule then name
    its levels."""
    config = scheduler.config
    if isinstance(scheduler, EDMEulerScheduler):
        return linear_schedule(config["num_train_timesteps"])
    if isinstance(scheduler, VPScheduler):
        return vp_schedule(
            config["num_train_timesteps"],
            config["beta_min"],
            config["beta_max"],
            config["pairing"],
        )
    levels = tuple(scheduler.alphas_cumprod.double().tolist())
    if isinstance(scheduler, RescaledScheduler):
        scale = config["told_timesteps"] / len(levels)
        return Schedule(levels, tuple(scale * index for index in range(len(levels))))
    return Schedule(levels)
