"""The benchmarks of gradients and of plans: what they count and write. Timings are no test."""

from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType

import pytest
import torch


def test_policies_are_held_against_their_own_floor(script: Callable[[str], ModuleType]) -> None:
    """Of as many calls as the floor has: a tape of T, a checkpoint of 2 T."""
    results = script("gradients").times("packaged", 1, 4, "cpu", 1)
    calls = {name: row["network_calls"] for name, row in results["policies"].items()}
    assert calls == {"tape": 4, "hybrid, 2 of 4 taped": 6, "checkpoint": 8}
    for row in results["policies"].values():
        assert row["ratio"] == pytest.approx(row["milliseconds"] / row["floor"])
    assert 0 < results["rest_share"] < 1


def test_the_larger_network_is_the_published_architecture(
    script: Callable[[str], ModuleType],
) -> None:
    denoiser = script("gradients").denoiser_of("cifar10")
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == 35_746_307
    assert denoiser(torch.zeros(1, 3, 32, 32), 10).shape == (1, 3, 32, 32)


@pytest.mark.slow
@pytest.mark.skipif(
    not Path("/proc/self/clear_refs").exists(),
    reason="peak memory is read from /proc, which Linux alone has",
)
def test_a_tape_takes_what_is_predicted(script: Callable[[str], ModuleType]) -> None:
    """In a process of its own: memory that this one has freed would be taken again unseen."""
    module = script("gradients")
    with get_context("spawn").Pool(1) as pool:
        arguments = ("packaged", 4, 10, "cpu", "tape", 10**9)
        peak, predicted = pool.apply(module.measure_peak, arguments)
    assert predicted / 1.5 < peak < 1.5 * predicted
    assert module.measure_peak("packaged", 4, 10, "cpu", "tape", predicted - 1)[0] is None


def test_tables_say_what_was_measured(script: Callable[[str], ModuleType]) -> None:
    row = {"network_calls": 4, "milliseconds": 30.0, "floor": 20.0, "ratio": 1.5}
    fast = {"forward": 1, "both": 2, "gain": 3.25, "cosine": 0.98765, "first_seconds": 4}
    times = {"call_milliseconds": {"forward": 5, "both": 9}, "rest_share": 0.0123}
    memory = {
        "peak_bytes": {"4": 7e6, "8": None},
        "predicted_bytes": {"4": 8e6, "8": 16e6},
        "image_batches_a_step": None,
    }
    results = {
        "network": "toy", "batch": 2, "calls": 4, "machine": "cpu", "plans": [4, 8],
        "memory_batch": 2, "times": times | {"policies": {"tape": row}}, "weights": {},
        "accelerations": {"bfloat16": fast}, "memory": {"tape": memory}, "commit": "abc",
    }  # fmt: skip
    text = script("gradients").tables(results)
    assert "| tape | 4 | 30 | 20 | 1.500 |" in text
    assert "| bfloat16 | 1 | 2 | 3.25 | 0.98765 | 4 |" in text
    assert "| tape | 7 / 8 | - / 16 | - |" in text
    assert "1.2% of a taped gradient" in text


def test_a_plan_is_compared_with_the_run(
    script: Callable[[str], ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny = [
        "--data.limit=1",
        "--data.batch_size=1",
        "--model.attack.steps=1",
        "--model.audit=null",
    ]
    tiny += ["--model.defenses={plain: {}}", "--model.baseline=null"]
    script("plan").main([*tiny, "--model.protocol.report_draws=1"])
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    names = [row.split(" | ")[0] for row in rows[2:]]
    assert names == ["| plain", "| all rows", "| gradient checks"]
    cells = [[float(cell) for cell in row.strip("| ").split(" | ")[1:]] for row in rows[2:]]
    plain, together, checks = cells
    assert plain == together and plain[1] >= 0
    assert 0 < checks[0] < 60 and checks[1] > 0, "what checks are expected to take, and took"
