"""`--plan` says what the recommended budget would save, where the attack costs more."""

from pathlib import Path

import pytest

from hetpure.report.recommended import Recommended
from tests.lightning_modules.runs import command, main


@pytest.mark.parametrize("gradients", [1, 10_000])
def test_a_plan_says_what_could_be_saved(
    gradients: int, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    enough = Recommended("apgd", 1, 1, gradients, tried=20_000)
    monkeypatch.setattr("hetpure.report.recommended.RECOMMENDED", enough)
    main("--plan")
    printed = " ".join(capsys.readouterr().out.split())
    described = command().model.described
    assert described is not None
    line = f"of the calls of {described.config.attack.name};"
    assert (line in printed) == (gradients == 1)
