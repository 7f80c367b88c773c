"""What tests share that run evaluations or start processes."""

import contextlib
import io
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.lightning_modules.runs import CONFIG, main, write_world
from tests.ports import next_port


@pytest.fixture(autouse=True)
def _port_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes the environment's, and leaves there what it chose itself."""
    monkeypatch.setenv("MASTER_PORT", str(next_port()))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks and images of the small evaluations."""
    folder = tmp_path_factory.mktemp("world")
    write_world(folder)
    return folder


@pytest.fixture
def place(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the config of the small evaluation."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG.format(world=world))
    return tmp_path


@dataclass(frozen=True)
class Finished:
    """A whole run: the folder that it was started in, its own folder, and what it printed."""

    place: Path
    folder: Path
    printed: str


@pytest.fixture(scope="session")
def finished(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One process with one thread computed it without a stop. Not to be written to."""
    place, printed, threads = (
        tmp_path_factory.mktemp("finished"),
        io.StringIO(),
        torch.get_num_threads(),
    )
    (place / "config.yaml").write_text(CONFIG.format(world=world))
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.chdir(place)
        main()
    torch.set_num_threads(threads)
    return Finished(place, place / "runs/one", printed.getvalue())


@pytest.fixture
def copied(finished: Finished, place: Path) -> Path:
    """A copy of the run's folder, where the same command goes on with it."""
    return Path(shutil.copytree(finished.folder, place / "runs/one"))
