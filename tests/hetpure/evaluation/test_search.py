"""A search keeps its trials in a store: they are computed once, and another search is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hetpure.acceleration import Acceleration
from hetpure.attacks import PGD
from hetpure.attention import AttentionMask
from hetpure.classifiers import Classifier
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError
from hetpure.evaluation.description import Evaluation, Images, Networks, Run, describe
from hetpure.evaluation.protocol import Protocol
from hetpure.evaluation.results import summarise
from hetpure.evaluation.rows import DefenseConfig, build_rows
from hetpure.evaluation.run_results import Contents
from hetpure.evaluation.search import Trial, choose, frontier, search
from hetpure.evaluation.statistics import Estimate
from hetpure.evaluation.store import Job, Store
from hetpure.numbers import Number
from hetpure.purifiers import HeterogeneousPurifier

BASE = DefenseConfig(
    HeterogeneousPurifier(steps=10, t_large=0.2, t_small=0.1), "ddpm", AttentionMask()
)
ATTACK = PGD(epsilon=Number("8/255"), steps=1, eot_samples=1, mask="recomputed")
Search = Callable[..., dict[str, Trial | None]]


def with_threshold(threshold: float) -> DefenseConfig:
    return replace(BASE, mask=AttentionMask(threshold=threshold))


@pytest.fixture
def searched(classifier: Classifier, denoiser: Denoiser, images: Tensor, tmp_path: Path) -> Search:
    """Searches among thresholds of the mask on two images, in one folder."""

    def described(store: Store, thresholds: tuple[float, ...], **settings: Any) -> Run:
        config = Evaluation(
            classifier="", denoisers={"ddpm": ""}, audit=None,
            defenses={f"threshold={value}": with_threshold(value) for value in thresholds},
            **{"attack": ATTACK, "protocol": Protocol(2, 1)} | settings,
        )  # fmt: skip
        rows = build_rows(config.defenses, classifier, {}, {"ddpm": denoiser}, Acceleration())
        data = Images.of(images[:2], torch.tensor([0, 1]), tuple("0123"))
        networks = Networks(rows, {})
        return describe(config, networks, data, store, device=torch.device("cpu"), largest=1)

    def run(*thresholds: float, base: DefenseConfig = BASE, **settings: Any) -> Any:
        store = Store(tmp_path)
        names = {f"threshold={value}": {"threshold": value} for value in thresholds}
        return dict(search(described(store, thresholds, **settings), store, base, names))

    return run


def files(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "blocks").iterdir()}


def test_a_trial_is_what_the_records_of_its_row_say(searched: Search, tmp_path: Path) -> None:
    """Robust is the worst over the cells of all mask policies."""
    (trial,) = searched(0.5, attack=replace(ATTACK, mask="all")).values()
    store = Store(tmp_path)
    names = ("clean", "pgd_linf, frozen mask", "pgd_linf, recomputed mask", "pgd_linf, soft mask")
    jobs = [Job("threshold=0.5", name, block) for name in names for block in range(2)]
    assert len(files(tmp_path)) == len(jobs), "no null attack, no audit"
    finished = [store.get(job) for job in jobs]
    summary = summarise([r for job in finished for r in job.records])["threshold=0.5"]
    assert trial is not None
    assert trial.clean.as_dict() == summary["clean"]["single"]
    assert trial.robust.as_dict() == summary["robust"]["single"]
    assert (trial.clean.n, trial.clean.draws) == (2, 2)
    assert trial.settings == {"threshold": 0.5}
    assert trial.seconds == pytest.approx(sum(job.seconds for job in finished))


def test_other_values_go_on_in_the_folder_and_nothing_is_computed_twice(
    searched: Search, tmp_path: Path
) -> None:
    first = searched(0.5)
    kept = files(tmp_path)
    both = searched(0.9, 0.5)
    assert list(both) == ["threshold=0.9", "threshold=0.5"]
    assert both["threshold=0.5"] == first["threshold=0.5"]
    assert {name: files(tmp_path)[name] for name in kept} == kept
    assert len(files(tmp_path)) == 2 * len(kept)
    killed = next(iter(kept))  # as if the process had been killed before it
    (tmp_path / "blocks" / killed).unlink()
    again = searched(0.5)["threshold=0.5"]
    assert again is not None and first["threshold=0.5"] is not None
    assert replace(again, seconds=0.0) == replace(first["threshold=0.5"], seconds=0.0)


def test_another_search_is_refused(searched: Search, tmp_path: Path) -> None:
    searched(0.5)
    for difference, settings in (
        ("config.attack.steps: 1, now 2", {"attack": replace(ATTACK, steps=2)}),
        ("config.protocol.report_draws: 2, now 3", {"protocol": Protocol(3, 1)}),
        ("base.gradient: auto, now tape", {"base": replace(BASE, gradient="tape")}),
    ):
        with pytest.raises(InputError, match=f"holds a run with another {difference}"):
            searched(0.5, **settings)
    (tmp_path / "run.json").rename(tmp_path / "trials.jsonl")  # as earlier versions kept theirs
    with pytest.raises(InputError, match="a run of an earlier version"):
        searched(0.5)


def test_a_row_without_gradients_is_struck_out_and_the_others_go_on(
    searched: Search, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    store.strike("threshold=0.5", "it is NaN")
    trials = searched(0.5, 0.9)
    assert trials["threshold=0.5"] is None
    assert trials["threshold=0.9"] is not None
    with pytest.raises(InputError, match="holds no evaluation"):  # which could be reported
        Contents.read(store)


# The frontier


def reached(clean: float, robust: float, calls: int = 1) -> Trial:
    def estimate(value: float) -> Estimate:
        return Estimate(value, value - 0.05, value + 0.05, n=64, draws=5)

    name = f"{clean} {robust} {calls}"
    return Trial({"mask.threshold": name}, estimate(clean), estimate(robust), 0.4, calls, 1.0)


TRIALS = [
    reached(0.9, 0.3),
    reached(0.8, 0.6),
    reached(0.8, 0.5),  # beaten by the one above
    reached(0.7, 0.7, calls=6),
    reached(0.7, 0.7, calls=4),
    reached(0.6, 0.7),  # as robust as the ones above, less accurate
    reached(0.5, 0.2),
]


def test_frontier_is_what_no_other_trial_beats() -> None:
    assert frontier(TRIALS) == [TRIALS[0], TRIALS[1], TRIALS[4]]
    assert frontier(TRIALS[::-1]) == frontier(TRIALS)


@pytest.mark.parametrize(("weight", "expected"), [(1.0, 0), (0.8, 0), (0.5, 1), (0.4, 4), (0.0, 4)])
def test_choice_follows_the_weight_of_clean_accuracy(weight: float, expected: int) -> None:
    assert choose(TRIALS, weight) == TRIALS[expected]
