"""What a step costs beside its network call: a few operations on tensors of the image's size."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hetpure.noise
from hetpure.benchmark.gradients import gradient_of
from hetpure.benchmark.networks import PACKAGED, Free, denoiser_of, images_of, published_defense
from hetpure.denoiser import Denoiser
from hetpure.gradients import Execution


class Operations(TorchDispatchMode):
    """Counts those that compute something; views do not."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not any(value.alias_info for value in func._schema.returns)
        return func(*args, **(kwargs or {}))


def operations_a_step(denoiser: Denoiser) -> float:
    """Of a taped gradient through the heterogeneous purifier, forward and backward."""
    counts = []
    for steps in (100, 200):
        defense = published_defense(PACKAGED, denoiser, "cpu", steps)
        with Operations() as operations:
            gradient_of(defense, images_of(PACKAGED, 1, "cpu"), Execution("tape"))
        counts.append((defense.network_calls, operations.count))
    (few, first), (many, second) = counts
    return (second - first) / (many - few)


def test_a_step_is_27_operations_beside_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise is one kernel more, on accelerators. docs/reference/gradients.md has these numbers."""

    def zeros(seed: int, samples: torch.Tensor, *place: Any) -> torch.Tensor:
        return torch.zeros(len(samples), place[-1], dtype=torch.float64)

    monkeypatch.setattr(hetpure.noise, "normals_at", zeros)
    network = denoiser_of(PACKAGED, "cpu")
    beside = operations_a_step(Denoiser(Free(), network.schedule))
    assert beside == 27
    # Another torch may count a few others of the network.
    assert operations_a_step(network) - beside == pytest.approx(271, abs=20)
