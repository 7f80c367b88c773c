"""What loggers can show. Numbers: all of them. Images and histograms: each in its own way."""

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from numpy.typing import NDArray
from torch import Tensor

QUANTILES = (0.05, 0.5, 0.95)


def log_numbers(logger: Logger, values: Mapping[str, float], step: int) -> None:
    """Tells the logger numbers by name."""
    logger.log_metrics({_name(logger, name): value for name, value in values.items()}, step=step)


def log_image(logger: Logger, name: str, image: NDArray[np.uint8], step: int) -> None:
    """Shows an image (H, W, 3) where the logger has a way: Lightning's `log_image` (Wandb),
    `add_image` (TensorBoard), or `log_image` of MLflow's client and of Comet's experiment. Others,
    as CSV's, show none."""
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(logger, "log_image"):
        logger.log_image(name, [image], step=step)
    elif hasattr(experiment, "add_image"):
        experiment.add_image(name, image, step, dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        experiment.log_image(logger.run_id, image, key=_name(logger, name), step=step)
    elif hasattr(experiment, "log_image"):
        experiment.log_image(image, name=name, step=step)


def log_histogram(logger: Logger, name: str, values: Tensor, step: int) -> None:
    """Shows how values of any shape are distributed: as a histogram where the logger has any, else
    by their 5%, 50% and 95% quantiles as numbers."""
    experiment: Any = getattr(logger, "experiment", None)
    flat = values.detach().float().flatten().cpu()
    if hasattr(experiment, "add_histogram"):
        experiment.add_histogram(name, flat, step)
    elif isinstance(logger, WandbLogger):
        histogram: Any = import_module("wandb").Histogram(flat.numpy())
        logger.log_metrics({name: histogram}, step=step)
    else:
        at = np.quantile(flat.numpy(), QUANTILES)
        shares = dict(zip(QUANTILES, at, strict=True))
        log_numbers(logger, {f"{name}/quantile {q}": float(v) for q, v in shares.items()}, step)


def _name(logger: Logger, name: str) -> str:
    """The name as the logger allows it: MLflow refuses pictures, and Lightning warns of numbers,
    where one holds other signs, as that of a row `t=200` does."""
    return re.sub("[^a-zA-Z0-9_/. -]", "_", name) if isinstance(logger, MLFlowLogger) else name
