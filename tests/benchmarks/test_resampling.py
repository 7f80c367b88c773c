"""The resampling benchmark: what it counts, measures and writes. Timings themselves are no test."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hetpure.defense import count_network_calls


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("resampling")


@pytest.mark.parametrize(
    ("kind", "per_step"), [("purification", 1), ("gradient, tape", 1), ("gradient, checkpoint", 2)]
)
def test_work_is_one_purification_or_one_gradient(
    kind: str, per_step: int, benchmark: ModuleType
) -> None:
    """By S = 20 the plan with single-step resampling has 6 calls; a recomputation repeats them."""
    run, defense = benchmark.work(benchmark.SINGLE, kind, 20, 2, "cpu")
    with count_network_calls(defense) as counter:
        run()
    assert counter == [2] * 6 * per_step


def test_published_plans_have_the_published_calls(benchmark: ModuleType) -> None:
    calls = [benchmark.defense_of(name, 500, "cpu").network_calls for name in benchmark.VARIANTS]
    assert calls == [100, 150, 100, 1100]


@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="peak memory is read from /proc, which Linux alone has",
)
def test_peak_sees_memory_that_is_gone_again(benchmark: ModuleType) -> None:
    def run(megabytes: int) -> None:
        torch.ones(megabytes, 1024, 256)  # 1 MiB a row, freed at once

    assert benchmark.peak_bytes(lambda: run(200), "cpu") > 180 * 2**20
    assert benchmark.peak_bytes(lambda: run(1), "cpu") < 50 * 2**20


@pytest.fixture
def results(benchmark: ModuleType) -> dict[str, Any]:
    """Results as a run writes them, with numbers whose shares are known."""
    calls = dict(zip(benchmark.VARIANTS, (100, 150, 100, 1100), strict=True))
    cost = {
        variant: {
            kind: {"network_calls": n, "seconds": n / 10, "peak_bytes": n * 10**6}
            for kind in benchmark.KINDS
        }
        for variant, n in calls.items()
    }
    accuracy = {"accuracy": 0.5, "low": 0.4, "high": 0.6, "n": 64, "draws": 5}
    quality = {
        variant: {
            "network_calls": 4,
            "border": 1.2,
            "border_more": 0.1,
            "border_more_error": 0.02,
            "border_images": 64,
            "standard": accuracy,
            "robust": accuracy,
            "difference": None
            if variant == benchmark.SINGLE
            else {"difference": -0.05, "low": -0.1, "high": 0.0, "n": 64},
        }
        for variant in (benchmark.CONTROL, *benchmark.VARIANTS)
    }
    return {
        "steps": 500, "batch": 1, "quality_steps": 20, "images": 64, "attack": "PGD",
        "weaker_than_full": ["10 iterations"], "machine": "cpu, 2 threads", "commit": "abc",
        "weights": {"fashion_mnist_wrn": "0123456789abcdef"}, "cost": cost, "quality": quality,
    }  # fmt: skip


def test_tables_say_what_single_step_saves(benchmark: ModuleType, results: dict[str, Any]) -> None:
    text = benchmark.tables(results)
    saved = [line for line in text.splitlines() if line.startswith("- ")]
    assert saved == [
        "- purification: 86% of network calls, 86% of seconds",
        "- gradient, tape: 86% of network calls, 86% of seconds, 86% of peak memory",
        "- gradient, checkpoint: 86% of network calls, 86% of seconds, 86% of peak memory",
    ]
    row = "| none | 4 | 1.20 | +0.10 ± 0.02 | 50.0 [40, 60] | 50.0 [40, 60] |"
    assert f"{row} -5.0 [-10.0, +0.0] |" in text
    assert "`fashion_mnist_wrn@0123456789ab`" in text


def test_the_figure_is_drawn(
    benchmark: ModuleType, results: dict[str, Any], tmp_path: Path
) -> None:
    benchmark.draw(results, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_step_at_the_border_is_a_seam_and_edges_of_the_image_are_none(
    benchmark: ModuleType,
) -> None:
    seam = benchmark.border_inconsistency
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(8, 3, 16, 16, generator=generator, dtype=torch.float64)
    noise = 0.01 * torch.randn(images.shape, generator=generator, dtype=torch.float64)
    mask = torch.zeros(8, 1, 16, 16, dtype=torch.float64)
    mask[..., 4:12, 4:12] = 1
    step = seam(images, images + noise + 0.1 * mask, mask)
    assert step.min() > 10
    assert (seam(images, images + noise + 0.1 * mask.roll(3, -1), mask) < step / 4).all()
    edged, plain = images + 5 * mask, seam(images, images + noise, mask)
    torch.testing.assert_close(seam(edged, edged + noise, mask), plain)


def test_a_seam_by_hand(benchmark: ModuleType) -> None:
    """A 1x3 image, changes 0, 1, 3 with the border between the first two: 1 over 4."""
    seam, still = benchmark.border_inconsistency, torch.zeros(1, 1, 1, 3)
    mask, change = torch.tensor([[[[0.0, 1.0, 1.0]]]]), torch.tensor([[[[0.0, 1.0, 3.0]]]])
    assert seam(still, change, mask).item() == 0.25
    assert seam(change, change, mask).isnan()
    assert seam(still, change, mask * 0).isnan()
