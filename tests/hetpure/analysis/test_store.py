"""What analyses leave on the disk, and how they go on."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hetpure.analysis import ANALYSES, Gap, Randomness
from hetpure.analysis.lines import Place, accuracy_line, in_words, mean_line
from hetpure.analysis.store import (
    NUMBERS,
    TABLE,
    AnalysisStore,
    examine,
    summarise,
)
from hetpure.analysis.subject import Subject, subject_of
from hetpure.attacks import PGD, LowFrequency, Square
from hetpure.defense import count_network_calls
from hetpure.errors import InputError
from hetpure.evaluation.description import Images
from hetpure.report.analyses import PICTURES, draw
from tests.hetpure.analysis.subjects import pgd
from tests.hetpure.evaluation.runs import CONFIG, small

QUICK = {
    "randomness": {"more_eot": 2},
    "knowledge": {"steps": (20,)},
    "trajectories": {"paths": 2, "height_draws": 1},
    "gap": {"scales": (1.0,), "draws": 2},
    "landscape": {"points": 3, "draws": 1},
    "convergence": {"eot": (1,), "restarts": (), "radii": (), "draws": 1},
}


def subjects() -> tuple[dict[str, Subject], Images]:
    """The plain row and the purified one of the small evaluation, under a small attack."""
    networks, images = small()
    attack = pgd(steps=2, eot_samples=2)
    first = int(images.samples[0])
    return {
        name: subject_of(row, attack, CONFIG.protocol, 0, first)
        for name, row in networks.rows.items()
    }, images


def test_a_stopped_analysis_goes_on_and_more_images_need_no_earlier_ones(tmp_path: Path) -> None:
    rows, images = subjects()
    purified, analysis = rows["purified"], Gap(scales=(1.0,), draws=2)
    store = AnalysisStore(tmp_path, block=2)
    first, second = store.parts(analysis, "purified", 4)
    examine(first, purified, images, store)
    assert store.has(first) and not store.has(second)
    with count_network_calls(purified.defense) as calls:
        examine(first, purified, images, store)
        assert not calls, "it was there"
        examine(second, purified, images, store)
    assert sum(calls) == store.get(second)["network_calls"]
    assert [record["sample"] for record in store.get(second)["records"]] == [40, 7]
    assert store.parts(analysis, "purified", 3)[0] == first
    assert not store.has(store.parts(replace(analysis, draws=4), "purified", 4)[0])
    assert len(AnalysisStore(tmp_path, block=100).parts(analysis, "purified", 17)) == 3
    other = AnalysisStore(tmp_path / "other", block=2)
    examine(second, purified, images, other)
    assert other.get(second)["records"] == store.get(second)["records"], "same seed, same numbers"


def test_summaries_are_functions_of_the_records(tmp_path: Path) -> None:
    rows, images = subjects()
    store, analysis = AnalysisStore(tmp_path), Randomness(more_eot=2)
    (part,) = store.parts(analysis, "plain", 4)
    examine(part, rows["plain"], images, store)
    summary = summarise(analysis, ["plain"], 4, store)
    content = json.loads((store.folder(analysis) / NUMBERS).read_text())
    with (store.folder(analysis) / TABLE).open() as file:
        table = list(csv.DictReader(file))
    assert content["settings"]["more_eot"] == 2
    for line, of_json, of_csv in zip(summary.lines, content["lines"], table, strict=True):
        assert line.quantity == of_json["quantity"] == of_csv["quantity"]
        assert line.value == of_json["value"] == float(of_csv["value"])
        assert line.n == of_json["n"] == int(of_csv["n"]) == 4


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    store, analysis = AnalysisStore(tmp_path), Randomness()
    (part,) = store.parts(analysis, "plain", 2)
    store.put(part, [], 0, 0.0)
    with pytest.raises(InputError, match="is damaged .*: delete it"):
        store.get(part)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("name", ANALYSES)
def test_every_analysis_of_every_row_is_drawn(name: str, count: int, tmp_path: Path) -> None:
    """Of a row without noise too, and of a single image."""
    rows, images = subjects()
    analysis, store = ANALYSES[name](**QUICK[name]), AnalysisStore(tmp_path)
    for row, subject in rows.items():
        analysis.check(subject)
        (part,) = store.parts(analysis, row, count)
        examine(part, subject, images, store)
    summary = summarise(analysis, list(rows), count, store)
    assert summary.rows() == list(rows)
    if count == 1:
        assert {(line.low, line.high) for line in summary.lines} == {(None, None)}
        assert "n = 1: there are no intervals" in summary.notes
    for line in summary.lines:  # of two images most have an interval, and none has half of one
        assert (line.low is None) == (line.high is None)
        if line.low is not None and line.high is not None:
            assert line.low <= line.value <= line.high
    assert count == 1 or any(line.low is not None for line in summary.lines)
    assert any(note.startswith("plain: it draws no noise") for note in summary.notes)
    assert len(summary.finding) >= 2
    assert all(f"(n = {count})" in line for line in summary.finding)
    draw(name, summary, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    assert list(PICTURES) == list(ANALYSES)


def test_intervals_of_means_are_students() -> None:
    values = [1.0, 2.0, 3.0, 4.0]
    line = mean_line(Place("row", "what"), values)
    half = 3.182446305 * np.std(values, ddof=1) / 2
    assert (line.value, line.low, line.high) == pytest.approx((2.5, 2.5 - half, 2.5 + half))
    assert in_words(line, digits=1) == "2.5 [0.4, 4.6]"
    cut = mean_line(Place("row", "what"), values, 0.5, 4.0)
    assert (cut.low, cut.high) == (0.5, 4.0), "no value can be outside"
    equal = mean_line(Place("row", "what"), [2.0, 2.0, 2.0])
    assert (equal.value, equal.low, equal.high, equal.n) == (2, None, None, 3)
    assert in_words(equal, digits=1) == "2.0 (all equal)"
    alone = mean_line(Place("row", "what"), [3.0])
    assert (alone.value, alone.low, alone.high, alone.n) == (3, None, None, 1)
    assert accuracy_line(Place("row", "what"), [[True, False]]).low is None


def test_attacks_that_cannot_be_varied_are_refused() -> None:
    networks, _ = small()
    for attack, said in (
        (Square(), "attack is a Square: give --model.attack=PGD"),
        (PGD(targets=2), "targets=0"),
        (PGD(epsilon=0), "radius above 0"),
        (LowFrequency(), "attack is a LowFrequency"),
        (PGD(momentum=1.0), "momentum=0"),
        (PGD(neighbours=2), "neighbours=0"),
    ):
        with pytest.raises(InputError, match=said):
            subject_of(networks.rows["plain"], attack, CONFIG.protocol, 0, 0)
    attack = subject_of(networks.rows["plain"], PGD(), CONFIG.protocol, 0, 0).attack
    assert attack.mask == "recomputed"
