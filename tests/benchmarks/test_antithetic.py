"""The antithetic benchmark asks both kinds of draws for as many network calls."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch

from hetpure.defense import count_network_calls


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("antithetic")


def test_both_kinds_are_compared_at_equal_calls(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "REFERENCE", 2)
    defense = benchmark.defenses()["uniform t=200"]
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    labels, samples = torch.tensor([0, 1]), torch.tensor([4, 9])
    truth = benchmark.reference(defense, images, labels, samples)
    with count_network_calls(defense) as counter:
        pairs = benchmark.compare(defense, images, labels, samples, 4, truth)
    assert sum(counter) == 2 * (4 + 4) * defense.network_calls
    for independent, antithetic in pairs.values():
        assert independent.shape == antithetic.shape == (2,)
        assert not torch.equal(independent, antithetic)
        assert (torch.stack([independent, antithetic]).abs() <= 1 + 1e-6).all()


def test_cells_by_hand(benchmark: ModuleType) -> None:
    pair = torch.tensor([0.1, 0.3]), torch.tensor([0.2, 0.6])
    assert benchmark.cells(pair) == ["0.200", "0.400", "+0.200 [+0.004, +0.396]"]


def test_a_table_for_each_kind_of_cosine(benchmark: ModuleType) -> None:
    row = ["d", "clean", "4", "0.200", "0.400", "+0.200 [+0.004, +0.396]"]
    text = benchmark.tables({"images": 2, "commit": "abc", "rows": {"halves": [row]}})
    assert text.splitlines()[0] == "**Cosine: halves (n = 2; reference: 32 other draws)**"
    assert text.splitlines()[4:] == ["| " + " | ".join(row) + " |", "", "Commit abc."]
