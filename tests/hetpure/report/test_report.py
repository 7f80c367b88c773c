"""The page of a run says what its tables say, and what they do not."""

from pathlib import Path

from hetpure.evaluation.run_results import write_results
from hetpure.report.report import page
from hetpure.report.table import audit_sheet, protocol_sheets
from tests.hetpure.run_records import defended, lines, stored


def test_tables_and_page_say_the_same(tmp_path: Path) -> None:
    records = [*defended("d", [2]), *lines("d", "null", [4]), *defended("e", [0])]
    results = write_results(stored(tmp_path, records, images=1, struck={"e": "its gradient is 0"}))
    results["run"] |= {
        "attacks": {"square": "Linf 8/255, Square"},
        "audit": {"images": 16, "queries": 100, "tolerance": 0.05},
    }
    results["missing"] = 4
    results["notes"] = ["apgd: DLR needs more than 2 classes: the margin was used"]
    results["weaker_than_full"] = ["3 report draws"]
    results["provenance"] = {"commit": None, "weights": {"classifier": "abc"}}
    results["defenses"]["d"]["gradient_check"] = {
        "policy": "tape", "compared": ["tape", "checkpoint"], "policies_equal": True,
        "cosine_to_exact": 0.999999, "approximation": False, "cosine_to_float32": 0.9987,
        "lowest_cosine_to_float32": 0.9876, "cosine_bound": 0.99,
        "substitute_cosines": {"soft mask": 0.5}, "finite_difference_error": 1e-8, "bound": 1e-5,
        "directions": 3, "images": 2, "passed": True,
    }  # fmt: skip
    results["defenses"]["d"]["audit"] = [
        {"name": "null attack", "verdict": "PASS", "said": "clean accuracy +0.0"},
        {"name": "black box", "verdict": "FAIL", "said": "under it accuracy is -40.0"},
    ]
    shown = [len(sheet.rows) for sheet in protocol_sheets(results, every=False)]
    assert shown == [2, 2, 1]
    text = "\n\n".join(sheet.markdown() for sheet in protocol_sheets(results))
    for part in (
        "PGD; n = 1", "50.0 [", "1 FAIL", "the margin was used", "Linf 8/255, Square",
        "| worst of 4 |", "| d | null attack | 1 | 100.0", "| d | pgd | 1 | 50.0",
    ):  # fmt: skip
        assert part in text
    report = page(results, "figure.png")
    for part in (
        text, "](figure.png)", "- 3 report draws", "1.0e-08", "0.9987 (0.9876)",
        "weights classifier: abc", "its gradient is 0", "NOT FINISHED: 4 parts",
    ):  # fmt: skip
        assert part in report


def test_the_note_under_an_audit_says_whether_it_attacked(tmp_path: Path) -> None:
    results = write_results(stored(tmp_path, defended("d", [2]), images=1))
    results["run"]["audit"] = {"images": 16, "queries": 100, "tolerance": 0.05}
    checks = [{"name": "null attack", "verdict": "PASS", "said": "+0.0"}]
    for check, words in ((None, "ran no attack"), ("black box", "with 100 queries")):
        checks += [{"name": check, "verdict": "PASS", "said": "+0.0"}] if check else []
        results["defenses"]["d"]["audit"] = checks
        assert words in audit_sheet(results).note
