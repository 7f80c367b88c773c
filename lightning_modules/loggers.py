"""What loggers can show. Numbers: all of them. Images and histograms: each in its own way."""

from importlib import import_module
from typing import Any

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, WandbLogger
from numpy.typing import NDArray
from torch import Tensor

QUANTILES = (0.05, 0.5, 0.95)


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
        experiment.log_image(logger.run_id, image, key=name, step=step)
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
        numbers = {f"{name}/{share:.0%}": float(v) for share, v in zip(QUANTILES, at, strict=True)}
        logger.log_metrics(numbers, step=step)
