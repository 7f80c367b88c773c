"""The ADDT benchmark times the same work everywhere, in as many network calls as it says."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from lightning_modules import diffusion


@pytest.fixture
def benchmark(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("addt")


def work(benchmark: ModuleType) -> object:
    module = benchmark.training_of("packaged", benchmark.RankGaussian(steps=2))
    return benchmark.Work(module, benchmark.images_of("packaged", 3, "cpu"), torch.float32)


@pytest.mark.parametrize(
    ("piece", "network", "guide"),
    [("plain", 1, 0), ("floor", 3, 2), ("addt", 3, 2), ("weights_too", 3, 2)],
)
def test_calls_of_each_piece(piece: str, network: int, guide: int, benchmark: ModuleType) -> None:
    timed, calls = work(benchmark), {"network": 0, "guide": 0}

    def counted(name: str, module: nn.Module) -> None:
        def hook(*_: object) -> None:
            calls[name] += 1

        module.register_forward_pre_hook(hook)

    counted("network", timed.denoiser.network)  # type: ignore[attr-defined]
    counted("guide", timed.guide)  # type: ignore[attr-defined]
    getattr(timed, piece)()
    assert calls == {"network": network, "guide": guide}
    parameters = timed.denoiser.parameters()  # type: ignore[attr-defined]
    assert all(parameter.grad is None for parameter in parameters)


def test_the_other_implementation_finds_the_same_update(
    benchmark: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It differs in what it costs alone."""
    learnt: list[torch.Tensor] = []
    timed = work(benchmark)
    monkeypatch.setattr(timed, "learn", lambda noise: learnt.append(noise))
    loss = diffusion.denoising_loss

    def seen(denoiser: object, x0: torch.Tensor, level: object, noise: torch.Tensor) -> object:
        learnt.append(noise)
        return loss(denoiser, x0, level, noise)  # type: ignore[arg-type]

    monkeypatch.setattr(diffusion, "denoising_loss", seen)
    timed.addt()  # type: ignore[attr-defined]
    timed.weights_too()  # type: ignore[attr-defined]
    torch.testing.assert_close(learnt[0], learnt[1], rtol=0, atol=0)


def test_the_table(
    benchmark: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "addt.json"
    benchmark.main(["--batch=2", "--repeats=2", "--steps=1", f"--out={out}"])
    printed = capsys.readouterr().out
    times = json.loads(out.read_text())["times"]
    assert times["floor"]["floors"] == times["plain update"]["plain"] == 1.0
    assert times["ADDT update"]["addt"] == 1.0
    assert all(row["lower"] <= row["floors"] <= row["upper"] for row in times.values())
    for name in times:
        assert f"| {name} |" in printed
    reached = times["ADDT update"]["floors"] <= 1.08
    assert ("reached" if reached else "missed") in printed.splitlines()[-1]
