"""Runs that are read: of this version, finished or not, and of earlier ones."""

import json
import lzma
from pathlib import Path

import pytest

from hetpure.errors import InputError
from hetpure.evaluation.reading import earlier_results, parse_records, read_run
from tests.hetpure.run_records import defended, line, lines, stored, write

RESULTS = Path(__file__).parents[3] / "docs" / "experiments" / "records"


def test_a_run_is_what_its_store_holds(tmp_path: Path) -> None:
    records = defended("a", [4, 2]) + defended("b", [4, 4])
    store = stored(tmp_path / "x", records, images=2)
    run = read_run(store.path)
    assert run.finished and run.name == "x"
    assert run.about["run"]["data"] == "toy"
    as_lines = {(r.defense, r.attack, r.sample): r.predictions for r in run.records}
    assert as_lines == {(r["defense"], r["attack"], r["sample"]): r["predictions"] for r in records}


def test_an_unfinished_run_says_what_it_is_and_a_struck_row_is_left_out(tmp_path: Path) -> None:
    half = [*defended("a", [4, 2]), *lines("a", "apgd", [1]), *defended("b", [0, 0])]
    run = read_run(stored(tmp_path, half, images=2, struck={"b": "no gradient"}).path)
    assert not run.finished
    assert {(r.defense, r.attack) for r in run.records} == {("a", "clean"), ("a", "pgd")}
    assert run.about["struck"] == {"b": "no gradient"}


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="RUN .*nowhere: there is no run.json and no records.json"):
        read_run(tmp_path / "nowhere")
    write(tmp_path, [])
    with pytest.raises(InputError, match="holds no record yet"):
        read_run(tmp_path)
    write(tmp_path, [{"defense": "a"}])
    with pytest.raises(InputError, match=r"records.jsonl, line 1, is no record: .*'sample'"):
        read_run(tmp_path)
    write(tmp_path, [line("a", "apgd", 0, 4, selection=[])])
    with pytest.raises(InputError, match="is no record: it lacks its selection draws"):
        read_run(tmp_path)


def test_a_torn_last_line_is_no_record_and_others_must_be_whole() -> None:
    first, second = (json.dumps(entry) + "\n" for entry in lines("a", "clean", [4, 4]))
    assert [r.sample for r in parse_records({"one": first + second[:30]})] == [0]
    assert [r.sample for r in parse_records({"one": second, "two": first})] == [0, 1]
    with pytest.raises(InputError, match="two, line 2, is no record"):
        parse_records({"one": first, "two": first + "{}\n"})


def test_a_sample_written_twice_must_say_the_same(tmp_path: Path) -> None:
    records = defended("a", [4, 2])
    write(tmp_path, records + records[:2])
    assert len(read_run(tmp_path).records) == 4
    write(tmp_path, [*records, line("a", "pgd", 1, 3)])
    with pytest.raises(InputError, match="a, pgd: sample 1 is there twice, differently"):
        read_run(tmp_path)


def test_an_earlier_run_ended_if_its_results_are_whole(tmp_path: Path) -> None:
    write(tmp_path, defended("a", [4]))
    assert not read_run(tmp_path).finished
    (tmp_path / "results.json").write_text('{"run": ')  # killed while it wrote them
    assert not read_run(tmp_path).finished
    (tmp_path / "results.json").write_text('{"run": {"data": "toy"}}')
    assert read_run(tmp_path).finished


def test_the_records_of_an_earlier_run_give_its_results(tmp_path: Path) -> None:
    """Of two rows of a run that is kept in the docs, to the last bit."""
    packed, about = (
        lzma.decompress((RESULTS / f"addt_secondary.{name}.xz").read_bytes()).decode()
        for name in ("records.jsonl", "results.json")
    )
    before = json.loads(about)
    names = list(before["defenses"])[:2]
    entries = [entry for entry in map(json.loads, packed.splitlines()) if entry["defense"] in names]
    write(tmp_path, entries, results=before)
    results = earlier_results(tmp_path)
    assert results["run"] == before["run"] and results["samples"] == before["samples"]
    for name in names:
        for kind in ("clean", "null_attack", "robust", "perturbation", "mask_coverage"):
            assert results["defenses"][name][kind] == before["defenses"][name][kind], (name, kind)
