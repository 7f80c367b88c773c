"""The learning rate of a diffusion training."""

from math import inf

import pytest
import torch

from hetpure.errors import InputError
from lightning_modules.learning_rate import learning_rate_schedule


def rates(name: str, warmup: int, updates: float, count: int) -> list[float]:
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = learning_rate_schedule(name, optimiser, warmup, updates)
    found = []
    for _ in range(count):
        found.append(schedule.get_last_lr()[0])
        optimiser.step()
        schedule.step()
    return found


@pytest.mark.parametrize("updates", [4, inf])
def test_constant_with_and_without_a_warm_up(updates: float) -> None:
    """diffusers' own "constant" ignores the warm-up."""
    assert rates("constant", 0, updates, 4) == [1, 1, 1, 1]
    assert rates("constant", 2, updates, 4) == [0, 0.5, 1, 1]


def test_others_end_with_the_training() -> None:
    assert rates("linear", 0, 4, 5) == [1, 0.75, 0.5, 0.25, 0]
    assert rates("cosine", 0, 2, 3) == pytest.approx([1, 0.5, 0])
    for name in ("linear", "cosine"):
        with pytest.raises(InputError, match=f"{name} needs the number of updates"):
            rates(name, 0, inf, 1)
