"""The learning rate of a diffusion training."""

from math import isfinite

from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hetpure.errors import InputError


def learning_rate_schedule(
    name: str, optimiser: Optimizer, warmup_steps: int, updates: float
) -> LambdaLR:
    """diffusers' schedule of that name over so many updates, after a linear warm-up. InputError
    where it hangs on their number and a training has none (`--trainer.max_time` alone)."""
    if name == "constant" and warmup_steps:
        name = "constant_with_warmup"  # diffusers' "constant" has none
    if not name.startswith("constant") and not isfinite(updates):
        raise InputError(
            f"--model.learning_rate_schedule {name} needs the number of updates: set"
            " --trainer.max_steps or --trainer.max_epochs"
        )
    schedule: LambdaLR = get_scheduler(
        name,
        optimiser,
        num_warmup_steps=warmup_steps,
        num_training_steps=int(updates) if isfinite(updates) else None,
    )
    return schedule
