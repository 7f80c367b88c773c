"""What a run says while torch compiles."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hetpure.acceleration import Acceleration
from lightning_modules.compiling import compiling
from lightning_modules.progress import EvaluationProgress
from tests.hetpure.evaluation.runs import begin, small


def compiled_call(number: int) -> float:
    """Of code that torch has not seen before; this takes no backend's time."""
    scaled = eval(f"lambda x: {number} * x")
    return float(torch.compile(scaled, backend="eager")(torch.ones(())))


def test_only_inside_and_only_where_something_is_compiled() -> None:
    told: list[str] = []
    with compiling(lambda: told.append("begin"), lambda seconds: told.append(f"{seconds > 0}")):
        torch.ones(()) * 2
        assert told == []
        assert compiled_call(3) == 3
        assert told == ["begin", "True"]
    compiled_call(4)
    assert told == ["begin", "True"]


def test_the_bar_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run, _ = begin(tmp_path, *small())
    described: list[str] = []

    class Seen(EvaluationProgress):
        def begin_compiling(self) -> None:
            super().begin_compiling()
            described.append(self.bar.tasks[0].description)

    progress = Seen(run)
    with progress.compiling(run):  # of nothing that it compiles
        compiled_call(5)
    assert described == []
    compiled = replace(
        run, config=replace(run.config, acceleration=Acceleration(compile="default"))
    )
    with progress.compiling(compiled):
        progress.begin("purified", "clean")
        before = progress.bar.tasks[0].description
        compiled_call(6)
        assert progress.bar.tasks[0].description == before
        progress.end_compiling(90.0)
        progress.begin_compiling()
    assert before.startswith("purified, clean: 0/4 images")
    assert described[0] == "purified: torch compiles"
    assert described[1].startswith("purified: torch compiles, 9")
    assert "torch compiled for 90.0 s" in capfd.readouterr().err
