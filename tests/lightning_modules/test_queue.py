"""How processes share the tasks of a run, and what the bar shows of it; in one process."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed import HashStore

from hetpure.errors import InputError
from lightning_modules.progress import EvaluationProgress
from lightning_modules.queue import Queue
from tests.hetpure.evaluation.runs import CONFIG, begin, small

NAMES = ("[/x]", " :a: ", "[red]é", "a|b")


@pytest.mark.parametrize("name", NAMES)
def test_a_terminals_bar_shows_a_name_as_it_is(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    rows = {name: CONFIG.defenses["plain"]}
    config = replace(CONFIG, defenses=rows, baseline=None)
    run, _ = begin(tmp_path, *small(config), defenses=rows, baseline=None)
    progress = EvaluationProgress(run, queue())
    with progress.bar:
        progress.begin(name, "clean")
        progress.bar.refresh()
    assert f"{name}, clean: 0/4 images" in capsys.readouterr().err


def queue(process: int = 0, processes: int = 1) -> Queue:
    return Queue(HashStore(), process, processes)


def test_each_number_is_given_once() -> None:
    """To however many ask at once: the counter is atomic."""
    shared = queue()
    numbers: list[int] = []

    def ask() -> None:
        for _ in range(100):
            numbers.append(shared.claim())

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == list(range(500))


def test_queues_do_not_mix() -> None:
    first, second = queue(), queue()
    assert [first.claim(), first.claim(), second.claim()] == [0, 1, 0]
    first.advance(5)
    first.advance(2)
    assert (first.work(), second.work()) == ([7], [0])


def test_a_failure_stops_everybody_at_the_next_question() -> None:
    shared = queue(process=1, processes=2)
    assert shared.claim() == 0
    shared.fail("no memory")
    shared.fail("what came of it")
    for ask in (shared.claim, shared.check, lambda: shared.wait(shared.check)):
        with pytest.raises(InputError, match="process 1 failed: no memory"):
            ask()


def test_the_silent_are_not_waited_for() -> None:
    """One of two has left, the other one works now and then, and then no more."""
    shared = queue(process=1, processes=2)
    shared.leave()
    looks: list[int] = []

    def look() -> None:
        looks.append(len(looks))
        if len(looks) < 5:
            shared.advance(1)

    assert not shared.wait(look, silence=0.6)
    assert len(looks) > 6, "each sign of life begins the silence anew"
    shared.leave()
    assert shared.wait(look, silence=0.6)
