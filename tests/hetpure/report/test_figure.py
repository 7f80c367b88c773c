"""Pictures show names as they are, and one that fails takes no result with it."""

from pathlib import Path

import pytest
import torch

from hetpure.errors import only_warned
from hetpure.report.figure import Panel, draw

NAMES = [r"$\bm{t}^*$", "a|b", "[/x]", "é", "100$"]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_mathematics(name: str, tmp_path: Path) -> None:
    draw([Panel(f"{name}\npurified", torch.zeros(1, 1, 4, 4), [name])], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_a_picture_that_fails_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for reason in (OSError("No space left\non device"), RuntimeError("no such font"), KeyError()):
        with only_warned("figure.png"):
            raise reason
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"warning: figure.png could not be drawn: {reason}"
        for reason in ("No space left", "no such font", "KeyError")
    ]
    with pytest.raises(KeyboardInterrupt), only_warned("figure.png"):
        raise KeyboardInterrupt
