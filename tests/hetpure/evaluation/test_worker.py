"""An evaluation as a function: what is there is not computed again, in whatever order and by
whomever the tasks are done, and a row that hides its gradient leaves the others alone."""

import itertools
import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hetpure.acceleration import Acceleration, FastNetwork
from hetpure.attacks import PGD, Attack, Replay, Square
from hetpure.attacks.attack import Target
from hetpure.classifiers import Classifier
from hetpure.errors import InputError
from hetpure.evaluation import audit
from hetpure.evaluation.audit import Audit
from hetpure.evaluation.cells import AttackConfig
from hetpure.evaluation.description import Images, Networks
from hetpure.evaluation.identity import differences
from hetpure.evaluation.protocol import Record
from hetpure.evaluation.rows import DefenseConfig
from hetpure.evaluation.run_results import Contents, write_results
from hetpure.evaluation.store import Job, Store
from hetpure.evaluation.worker import (
    Task,
    Watch,
    evaluate,
    in_order,
    jobs_of,
    task_work,
    tasks_of,
    work,
)
from hetpure.gradients import Execution, GradientError
from hetpure.numbers import Number
from tests.hetpure.evaluation.runs import begin, small, without_clocks

Built = tuple[Networks, Images]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The store of a run that was not disturbed."""
    return whole(tmp_path_factory.mktemp("expected"), small())


@pytest.fixture
def built() -> Built:
    return small()


class Listening(Watch):
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.work = 0
        self.begun: list[tuple[str, str]] = []
        self.struck: dict[str, str] = {}

    def begin(self, row: str, attack: str) -> None:
        self.begun.append((row, attack))

    def advance(self, work: int) -> None:
        self.work += work

    def strike(self, row: str, reason: str) -> None:
        self.struck[row] = reason


def records(store: Store) -> list[Record]:
    return Contents.read(store).records()


def whole(place: Path, built: Built, **changes: Any) -> Store:
    run, store = begin(place, *built, **changes)
    evaluate(run, store)
    return store


def test_a_run_computes_every_job_once(built: Built, tmp_path: Path) -> None:
    run, store = begin(tmp_path, *built)
    watch = Listening()
    evaluate(run, store, watch=watch)
    contents = Contents.read(store)
    assert contents.missing == 0 and not contents.struck
    assert set(contents.finished) == set(contents.jobs)
    assert {job.block for job in contents.jobs} == {0, 1}
    keys = [(r.defense, r.attack, r.sample) for r in contents.records()]
    assert len(set(keys)) == len(keys)
    assert [r.sample for r in contents.records() if r.attack == "square"] == [3, 3, 11, 11, 40, 40]
    assert watch.work == sum(task_work(run, task) for task in tasks_of(run)) > 0
    again = Listening()
    evaluate(run, store, watch=again)
    assert again.begun == [] and again.work == watch.work, "what is there is told, not computed"
    results = write_results(store)
    assert results["missing"] == 0 and list(results["defenses"]) == ["plain", "purified"]
    assert results["defenses"]["purified"]["difference"]["robust"]["n"] == 4
    assert "no audit" not in results["weaker_than_full"]
    assert (tmp_path / "records.jsonl").read_text().count("\n") == len(keys)


def test_the_order_of_tasks_changes_nothing(built: Built, expected: Store, tmp_path: Path) -> None:
    """As of several processes, which share one counter and do tasks in any order."""
    torch.manual_seed(99)  # noise is by address: what a generator draws does not matter
    run, store = begin(tmp_path, *built)
    order = list(range(len(tasks_of(run))))
    random.Random(0).shuffle(order)
    halves = [iter([*order[::2], None]), iter([*order[1::2], None])]
    for half in halves:
        evaluate(run, store, half.__next__)
    assert records(store) == records(expected)
    ours, theirs = (without_clocks(write_results(place)) for place in (store, expected))
    assert ours == theirs


def test_a_stopped_run_goes_on_to_the_same_records(
    built: Built, expected: Store, tmp_path: Path
) -> None:
    """Stopped after so many tasks, within a task, and where a file was only half written."""
    run, store = begin(tmp_path, *built)
    count = itertools.count()
    evaluate(run, store, lambda: n if (n := next(count)) < 3 else None)
    partial = records(store)
    assert partial and all(record in records(expected) for record in partial)
    unfinished = write_results(store)
    assert unfinished["missing"] > 0
    assert unfinished["samples"] == 2 and list(unfinished["defenses"]) == ["plain"]
    (store.path / "blocks" / ".00001-plain.safetensors.77.part").write_bytes(b"half")
    with store.locked():  # as evaluate.py begins
        pass
    run, store = begin(tmp_path, *built)
    evaluate(run, store)
    assert records(store) == records(expected)
    assert not list(store.path.rglob("*.part"))
    ours, theirs = (without_clocks(write_results(place)) for place in (store, expected))
    assert ours == theirs


def test_a_run_that_goes_on_keeps_its_blocks(built: Built, tmp_path: Path) -> None:
    run, _ = begin(tmp_path, *built, largest=3)
    assert (run.block, run.blocks, run.positions(1)) == (3, 2, range(3, 4))
    again, _ = begin(tmp_path, *built, largest=1)
    assert again.block == 3 and again.identity() == run.identity()


def test_the_check_of_a_row_comes_before_its_first_block(built: Built, tmp_path: Path) -> None:
    run, _ = begin(tmp_path, *built)
    tasks = tasks_of(run, processes=2)
    audits = [Task(row, audit=True) for row in run.rows]
    blocks = [Task(row, block) for row in ("plain", "purified") for block in (None, 0, 1)]
    assert sorted(tasks, key=str) == sorted(blocks + audits, key=str)
    for row in run.rows:
        assert next(task for task in tasks if task.row == row) == Task(row)
    jobs = list(jobs_of(run, "plain", 1))
    assert [(job.attack, positions) for job, _, positions in jobs] == [
        ("clean", range(2, 4)), ("pgd_linf", range(2, 4)), ("null", range(2, 4)),
        ("square", range(2, 3)),
    ]  # fmt: skip


def test_audits_come_after_all_blocks() -> None:
    ordered = in_order(["a", "b"], ["a"], 2, lambda task: 0.0, 0)
    assert ordered == [
        Task("a"), Task("a", 0), Task("b"), Task("b", 0), Task("a", 1), Task("b", 1),
        Task("a", audit=True),
    ]  # fmt: skip


class Rounded(nn.Module):
    """Answers in whole numbers: right as often, and flat."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = (10 * self.network(images)).round()
        return answer


@pytest.fixture
def hiding(built: Built) -> Built:
    """The plain row hides its gradient; the purified one has a classifier of its own."""
    loaded, images = built
    plain = loaded.rows["plain"].defense
    classifier = plain.classifier
    plain.classifier = Classifier(Rounded(classifier.network), num_classes=4, mean=[0.4], std=[0.3])
    return loaded, images


def test_a_row_without_a_gradient_is_struck_out_and_the_others_go_on(
    hiding: Built, tmp_path: Path
) -> None:
    run, store = begin(tmp_path, *hiding)
    watch = Listening()
    evaluate(run, store, watch=watch)
    assert list(watch.struck) == ["plain"] and "zero" in watch.struck["plain"]
    assert store.struck("plain") == watch.struck["plain"] and store.struck("purified") is None
    assert {record.defense for record in records(store)} == {"purified"}
    results = write_results(store)
    assert results["struck"] == watch.struck and results["missing"] == 0
    assert list(results["defenses"]) == ["purified"]
    again = Listening()
    evaluate(run, store, watch=again)
    assert again.begun == [], "a row that is struck out stays so"


def test_an_attack_without_gradients_goes_on_and_the_audit_says_so(
    hiding: Built, tmp_path: Path
) -> None:
    square = Square(steps=2, eot_samples=1)
    further = {"pgd": AttackConfig(PGD(steps=1), defenses=("purified",))}
    results = write_results(whole(tmp_path, hiding, attack=square, attacks=further))
    hidden = results["defenses"]["plain"]
    assert {check["name"]: check["verdict"] for check in hidden["audit"]}["gradient"] == "FAIL"
    assert "plain: its gradient has no check" in results["weaker_than_full"]


class Quantised(nn.Module):
    """Sees 32 levels, and hands the gradient straight through."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        rounded = (32 * images).round() / 32
        answer: Tensor = self.network(images + (rounded - images).detach())
        return answer


@pytest.mark.parametrize(("attack", "struck"), [(PGD(steps=1), True), (Square(steps=1), False)])
def test_a_gradient_that_is_none_strikes_a_row_whose_attack_follows_it(
    attack: Attack, struck: bool, built: Built, tmp_path: Path
) -> None:
    """As the advice says, the row can be attacked otherwise; the audit has what is wrong."""
    plain = built[0].rows["plain"].defense
    network = Quantised(plain.classifier.network)
    plain.classifier = Classifier(network, num_classes=4, mean=[0.4], std=[0.3])
    results = write_results(whole(tmp_path, built, attack=attack, attacks={}))
    assert ("plain" in results["struck"]) == struck and "purified" in results["defenses"]
    if struck:
        assert "straight through" in results["struck"]["plain"]
    else:
        (check,) = (
            c for c in results["defenses"]["plain"]["audit"] if c["name"] == "gradient check"
        )
        assert check["verdict"] == "FAIL" and check["said"].endswith("straight through")


def test_a_gradient_that_is_wrong_strikes_its_row_out(built: Built, tmp_path: Path) -> None:
    """Bounds that nothing keeps."""
    store = whole(tmp_path, built, gradient_bound=1e-30)
    results = write_results(store)
    assert set(results["struck"]) == {"plain", "purified"}
    assert "finite differences" in results["struck"]["purified"]
    assert results["defenses"] == {} and results["samples"] == 0


def test_a_row_that_is_struck_out_late_is_left_out_whole(
    built: Built, expected: Store, tmp_path: Path
) -> None:
    """Another process may have finished blocks of the row by then."""
    store = Store(Path(shutil.copytree(expected.path, tmp_path / "copy")))
    run, _ = begin(store.path, *built)
    store.strike("plain", "its gradient is zero for sample 7")
    for path in (store.path / "gradient_checks").iterdir():
        path.unlink()  # a check that another process was at the while changes nothing
    watch = Listening()
    for task in tasks_of(run):
        work(run, store, task, watch)
    assert watch.work == sum(task_work(run, task) for task in tasks_of(run)), "the bar is full"
    assert {record.defense for record in records(store)} == {"purified"}
    assert store.has(Job("plain", "clean", 0)) and store.struck("plain") is not None


@pytest.mark.parametrize("tasks", [(1, 3), (0, 2), (0, 1, 2)], ids=str)
def test_a_run_is_reported_whatever_is_missing(
    tasks: tuple[int, ...], built: Built, tmp_path: Path
) -> None:
    """Also blocks without the first one, and an audit without its blocks."""
    run, store = begin(tmp_path, *built)
    order = sorted(tasks_of(run), key=lambda task: (task.row, task.block or -1))
    for number in tasks:
        work(run, store, order[number], Watch())
    results = write_results(store)
    assert results["missing"] > 0 and len(results["config"] or "") == 0
    for row in results["defenses"].values():
        assert row["audit"][-1]["name"] == "saved images"


def test_an_audit_grows_until_it_is_settled(
    built: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Look by look; a run that goes on takes the next look, and ends with the same records. What
    is settled has no further job, and the bar is full all the same."""
    monkeypatch.setattr(audit, "FIRST_LOOK", 1)
    run, store = begin(tmp_path / "whole", *built, audit=Audit(images=4, queries=1))
    watch = Listening()
    evaluate(run, store, watch=watch)
    assert watch.work == sum(task_work(run, task) for task in tasks_of(run))
    jobs = [job for job in Contents.read(store).jobs if job.attack == "audit: more steps"]
    assert [job.block for job in jobs] == [0, 1, 2, 0, 1, 2], "1, 1 and 2 images of two rows"
    expected = records(store)

    stopped, place = begin(tmp_path / "stopped", *built, audit=Audit(images=4, queries=1))
    evaluate(stopped, place)
    for path in (place.path / "blocks").glob("0000[12]-plain-audit*"):
        path.unlink()
    assert write_results(place)["missing"] == 1, "the next look"
    evaluate(*begin(tmp_path / "stopped", *built, audit=Audit(images=4, queries=1)))
    assert records(place) == expected

    monkeypatch.setattr(audit, "PASS_ERROR", 1.0)  # every check is settled by its first look
    run, store = begin(tmp_path / "settled", *built, audit=Audit(images=4, queries=1))
    watch = Listening()
    evaluate(run, store, watch=watch)
    contents = Contents.read(store)
    blocks = {job.block for job in contents.jobs if job.attack == "audit: 8-bit images"}
    assert blocks == {0} and contents.missing == 0
    assert watch.work == sum(task_work(run, task) for task in tasks_of(run))


def test_what_an_audit_has_no_room_for_is_named(built: Built, tmp_path: Path) -> None:
    settings = Audit(images=4, queries=1, purifications=60)
    results = write_results(whole(tmp_path, built, audit=settings))
    checks = {check["name"]: check for check in results["defenses"]["purified"]["audit"]}
    assert checks["budget"]["verdict"] == "undecided"
    assert "reference attack" in checks["budget"]["said"] and "reference attack" not in checks


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_reason_of_a_strike_does_not_hang_on_the_order(
    order: tuple[int, int], hiding: Built, tmp_path: Path
) -> None:
    """Of the check of the gradients, also where a block found that there are none."""
    run, store = begin(tmp_path, *hiding)
    tasks = [Task("plain"), Task("plain", 0)]
    for number in order:
        work(run, store, tasks[number], Watch())
    assert str(store.struck("plain")).startswith("the gradient is zero for")


def test_a_cascade_finds_what_all_attacks_find(built: Built, tmp_path: Path) -> None:
    """The same images are robust, with fewer network calls; the table says which were skipped."""
    further = {
        "square": AttackConfig(Square(steps=2, eot_samples=1)),
        "few": AttackConfig(PGD(steps=1, eot_samples=1), limit=3),
        "larger": AttackConfig(PGD(epsilon=Number(0.1), steps=1, eot_samples=1)),
    }
    whole_run = whole(tmp_path / "all", built, attacks=further, audit=None)
    cascade = whole(tmp_path / "cascade", built, attacks=further, audit=None, cascade=True)
    both = [write_results(store)["defenses"] for store in (whole_run, cascade)]
    skipped = {}
    for row in both[0]:
        ours, theirs = both[1][row], both[0][row]
        for counting in ("single", "vote", "worst"):
            assert ours["robust"][counting] == theirs["robust"][counting]
        skipped[row] = {name: about["skipped"] for name, about in ours["attacks"].items()}
        assert skipped[row]["larger"] == skipped[row]["pgd_linf"] == 0
        assert all(about["skipped"] == 0 for about in theirs["attacks"].values())
    assert skipped["plain"]["square"] > 0 and skipped["plain"]["few"] > 0
    by_cell = {(r.defense, r.attack, r.sample): r for r in records(cascade)}
    for record in by_cell.values():
        if record.skipped:
            main = by_cell[record.defense, "pgd_linf", record.sample]
            assert record.network_calls == 0 and record.kept == 0
            assert record.predictions == main.predictions
    assert (
        both[1]["purified"]["cost"]["network_calls"] < both[0]["purified"]["cost"]["network_calls"]
    )


def test_a_failed_check_strikes_its_row_out_by_itself(built: Built, tmp_path: Path) -> None:
    """A kill right after the check's file was written loses nothing: no second file says it."""
    store = whole(tmp_path, built, gradient_bound=1e-30)
    assert not (store.path / "struck").exists()
    run, _ = begin(store.path, *built, gradient_bound=1e-30)
    evaluate(run, store)
    assert records(store) == [] and set(write_results(store)["struck"]) == {"plain", "purified"}


def test_a_clean_block_that_was_deleted_is_missing(
    built: Built, expected: Store, tmp_path: Path
) -> None:
    """As the error of a damaged file advises: it is reported without, and computed anew."""
    store = Store(Path(shutil.copytree(expected.path, tmp_path / "copy")))
    before = write_results(store)
    (path,) = (store.path / "blocks").glob("00001-plain-clean-*")
    path.unlink()
    assert write_results(store)["missing"] == 1
    run, _ = begin(store.path, *built)
    evaluate(run, store)
    assert without_clocks(write_results(store)) == without_clocks(before)


class Raising(PGD):
    """Finds no gradient."""

    def __call__(self, target: Target) -> Tensor:
        raise GradientError("the gradient is zero for sample 3")


def test_a_further_attack_without_a_gradient_is_named(built: Built, tmp_path: Path) -> None:
    further = {"mine": AttackConfig(Raising(steps=1), defenses=("plain",))}
    run, store = begin(tmp_path, *built, attack=Square(steps=1), attacks=further, audit=None)
    evaluate(run, store)
    assert store.struck("plain") == "under mine, the gradient is zero for sample 3"
    assert store.struck("purified") is None


def test_what_auto_chose_is_not_chosen_again(built: Built, tmp_path: Path) -> None:
    """A clock may say otherwise the next time."""
    auto = Acceleration(precision="auto")
    run, store = begin(tmp_path, *built, acceleration=auto)
    chosen = run.config.acceleration.precision
    other = {"float32": "bfloat16", "bfloat16": "float32"}[chosen]
    path = store.path / "run.json"
    path.write_text(path.read_text().replace(f'"precision": "{chosen}"', f'"precision": "{other}"'))
    again, _ = begin(tmp_path, *built, acceleration=auto)
    assert again.config.acceleration.precision == other
    denoiser = again.rows["purified"].defense.denoiser
    assert denoiser is not None
    assert isinstance(denoiser.network, FastNetwork) == (other == "bfloat16")


def test_two_descriptions_of_the_same_networks_are_two(built: Built, tmp_path: Path) -> None:
    run, _ = begin(tmp_path / "a", *built)
    before = run.identity()
    execution = {"purified": Execution("tape", micro_batch=1)}
    other, _ = begin(tmp_path / "b", *built, execution=execution)
    assert run.identity() == before != other.identity()


def test_what_a_run_is_made_of_is_in_its_identity(built: Built, tmp_path: Path) -> None:
    """Labels, the block, and what an attack reads; a row's classifier by its weights alone."""
    run, _ = begin(tmp_path / "a", *built)
    images, ids, classes = torch.zeros(2, 1, 8, 8), torch.tensor([11, 3]), ("a", "b")
    labelled = [Images.of(images, torch.tensor(labels), classes) for labels in ([0, 1], [1, 0])]
    assert labelled[0].identity() != labelled[1].identity()
    assert list(differences(run.identity(), replace(run, block=1).identity())) == [
        "block: 2, now 1"
    ]
    found = []
    for value in (0.25, 0.5):
        np.savez(tmp_path / "r.npz", images=(images + value).numpy(), samples=ids.numpy())
        replay = {"replay": AttackConfig(Replay(str(tmp_path / "r.npz")))}
        found.append(replace(run, config=replace(run.config, attacks=replay)).identity())
    assert len(differences(*found)) == 1 and "replayed.replay" in differences(*found)[0]
    rows = [{"plain": DefenseConfig(classifier=path)} for path in ("old/place", "new/place")]
    moved = [
        replace(run, config=replace(run.config, defenses=row, baseline=None, attacks={}),
                weights={f"classifier {row['plain'].classifier}": "c0ffee"}).identity()
        for row in rows
    ]  # fmt: skip
    assert moved[0] == moved[1] and "c0ffee" in str(moved[0])


def test_fewer_images_are_another_run(built: Built, tmp_path: Path) -> None:
    loaded, images = built
    begin(tmp_path, loaded, images, largest=4)
    few = replace(images, samples=images.samples[:2])
    with pytest.raises(InputError, match="data.count: 4, now 2"):
        begin(tmp_path, loaded, few)
