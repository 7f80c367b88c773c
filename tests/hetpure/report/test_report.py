"""The page of a run says what its tables say, and what they do not."""

from dataclasses import replace

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.results import summarise
from hetpure.report.report import page
from hetpure.report.table import markdown, terminal

CLEAN = Record("d", "clean", 7, 1, [1, 1, 1], [3], 0, 0.0, 0.0, 0.25, 9, "Linf 0.0", [])
NULL = replace(CLEAN, attack="null", selection=[3, 3])
ATTACKED = Record("d", "pgd_linf", 7, 1, [1, 2, 1], [1, 3], 0, 0.1, 0.5, 0.5, 90, "Linf 0.1", [])


def test_tables_and_report_say_the_same() -> None:
    summary = summarise([CLEAN, NULL, ATTACKED])["d"]
    gradient_check = {
        "policy": "tape",
        "compared": ["tape", "checkpoint"],
        "policies_equal": True,
        "cosine_to_exact": 0.999999,
        "approximation": False,
        "cosine_to_float32": 0.9987,
        "lowest_cosine_to_float32": 0.9876,
        "cosine_bound": 0.99,
        "substitute_cosines": {"soft mask": 0.5},
        "finite_difference_error": 1e-8,
        "bound": 1e-5,
        "directions": 3,
        "images": 2,
        "passed": True,
    }
    cost = {"network_calls": 99, "audit_calls": 7, "seconds": 1.0, "latency_seconds": 0.01}
    audit = [
        {"name": "null attack", "verdict": "PASS", "said": "clean accuracy +0.0"},
        {"name": "black box", "verdict": "FAIL", "said": "under it accuracy is -40.0"},
    ]
    results = {
        "samples": 1,
        "missing": 4,
        "struck": {"e": "its gradient is zero"},
        "run": {
            "data": "toy",
            "attack": "Linf 8/255, PGD",
            "attacks": {"square": "Linf 8/255, Square"},
            "audit": {"images": 16, "queries": 100, "tolerance": 0.05},
            "report_draws": 3,
            "selection_draws": 2,
        },
        "defenses": {
            "d": summary
            | {
                "purification_calls": 9,
                "gradient_check": gradient_check,
                "cost": cost,
                "audit": audit,
            }
        },
        "notes": ["apgd: DLR needs more than 2 classes: the margin was used"],
        "weaker_than_full": ["3 report draws"],
        "provenance": {"commit": None, "weights": {"classifier": "abc"}},
    }
    text = markdown(results)
    assert "Linf 8/255" in text
    assert "n = 1" in text
    assert "66.7 [" in text
    assert [table.row_count for table in terminal(results)] == [2, 1, 1]
    assert "1 FAIL" in text and "the margin was used" in text and "Linf 8/255, Square" in text
    report = page(results, "figure.png")
    for part in (
        text,
        "figure.png",
        "3 report draws",
        "1.0e-08",
        "0.9987 (0.9876)",
        "weights classifier: abc",
        "its gradient is zero",
        "NOT FINISHED: 4 parts",
    ):
        assert part in report
