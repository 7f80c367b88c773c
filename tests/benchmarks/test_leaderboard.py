"""The committed leaderboard is what the committed records say."""

from collections.abc import Callable
from types import ModuleType

import pytest


@pytest.fixture
def board(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("leaderboard")


def test_the_committed_page_is_made_from_the_committed_records(board: ModuleType) -> None:
    """Where this fails, `python benchmarks/leaderboard.py` writes it again."""
    assert board.PAGE.read_text("utf-8") == board.page()


def test_every_recipe_is_there(board: ModuleType) -> None:
    for name in board.RUNS:
        recipe = f"../../configs/evaluate/{name}.yaml"
        assert (board.PAGE.parent / recipe).is_file()
        assert f'href="{recipe}"' in board.page()
