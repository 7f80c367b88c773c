"""Records survive the disk and results are a function of them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.records import RunFolder
from hetpure.evaluation.results import provenance, summarise
from hetpure.report.report import write_report
from hetpure.report.table import markdown, terminal

CLEAN = Record("d", "clean", 7, 1, [1, 1, 1], [], 0, 0.0, 0.0, 0.25, 9)
ATTACKED = Record("d", "pgd_linf", 7, 1, [1, 2, 1], [1, 3], 0, 0.1, 0.5, 0.5, 90)


def test_records_round_trip_and_append(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.append_records([CLEAN])
    folder.append_records([ATTACKED])
    assert folder.read_records() == [CLEAN, ATTACKED]
    lines = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    assert [json.loads(line)["attack"] for line in lines] == ["clean", "pgd_linf"]


def test_seconds_stay_out_of_the_records(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append_records([CLEAN])
    folder.append_timing({"seconds": 1.5})
    assert "seconds" not in (tmp_path / "records.jsonl").read_text()
    assert folder.read_timing() == [{"seconds": 1.5}]


def test_summary_by_hand() -> None:
    second = [
        replace(CLEAN, sample=8, predictions=[2, 1, 2], coverage=0.75),
        replace(ATTACKED, sample=8, predictions=[2, 2, 2], linf=0.3),
    ]
    summary = summarise([CLEAN, ATTACKED, *second])["d"]
    assert summary["samples"] == 2
    assert summary["clean"]["single"]["accuracy"] == pytest.approx(4 / 6)
    assert summary["clean"]["vote"]["accuracy"] == 0.5
    assert summary["robust"]["single"]["accuracy"] == pytest.approx(2 / 6)
    assert summary["robust"]["vote"]["accuracy"] == 0.5
    assert summary["attacks"]["pgd_linf"] == summary["robust"]
    assert summary["perturbation"]["max_linf"] == 0.3
    assert summary["mask_coverage"] == {"clean": 0.5, "adversarial": 0.5}
    assert summary["network_calls"] == 2 * 99


def test_robust_is_the_worst_attack_for_each_sample() -> None:
    """Chosen by selection draws, not by the report draws."""
    other = replace(ATTACKED, attack="other", selection=[0, 3], predictions=[1, 1, 1])
    summary = summarise([CLEAN, ATTACKED, other])["d"]
    assert summary["robust"]["single"]["accuracy"] == 1
    assert summary["attacks"]["pgd_linf"]["single"]["accuracy"] == pytest.approx(2 / 3)


def test_provenance_outside_a_checkout(tmp_path: Path) -> None:
    import torch

    found = provenance(tmp_path, torch.device("cpu"))
    assert found["commit"] is None
    assert found["packages"]["torch"] == torch.__version__


def test_tables_and_report_say_the_same(tmp_path: Path) -> None:
    summary = summarise([CLEAN, ATTACKED])["d"]
    certificate = {
        "policy": "tape",
        "compared": ["tape", "checkpoint"],
        "policies_equal": True,
        "cosine_to_exact": 0.999999,
        "approximation": False,
        "cosine_to_float32": 0.9987,
        "lowest_cosine_to_float32": 0.9876,
        "cosine_bound": 0.99,
        "finite_difference_error": 1e-8,
        "bound": 1e-5,
        "directions": 3,
        "images": 2,
        "passed": True,
    }
    cost = {"network_calls": 99, "seconds": 1.0, "latency_seconds": 0.01}
    results = {
        "samples": 1,
        "run": {
            "data": "toy",
            "attack": "Linf 8/255, PGD",
            "report_draws": 3,
            "selection_draws": 2,
        },
        "defenses": {
            "d": summary | {"purification_calls": 9, "certificate": certificate, "cost": cost}
        },
        "weaker_than_full": ["3 report draws"],
        "provenance": {"commit": None, "weights": {"classifier": "abc"}},
    }
    text = markdown(results)
    assert "Linf 8/255" in text
    assert "n = 1" in text
    assert "66.7 [" in text
    assert terminal(results).row_count == 1
    write_report(results, tmp_path, "figure.png")
    report = (tmp_path / "report.md").read_text()
    for part in (
        text,
        "figure.png",
        "3 report draws",
        "1.0e-08",
        "0.9987 (0.9876)",
        "weights classifier: abc",
    ):
        assert part in report
