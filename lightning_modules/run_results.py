"""`results.json` of a run: what its records say, and all that is needed to read them."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from hetpure.evaluation.audit import base_cell, saved_check, verdicts
from hetpure.evaluation.cost import latency
from hetpure.evaluation.protocol import CLEAN, Record
from hetpure.evaluation.records import CONFIG, RunFolder
from hetpure.evaluation.results import SCHEMA, peak_memory, summarise
from hetpure.saved_images import saved_images
from lightning_modules.compatibility import ImageData
from lightning_modules.rows import Row

if TYPE_CHECKING:
    from lightning_modules.evaluation import RobustnessEvaluation


def run_results(run: "RobustnessEvaluation", data: ImageData) -> dict[str, Any]:
    """All of `results.json`, from the run's folder and its rows."""
    records = run.folder.read_records()
    timing = run.folder.read_timing()
    agreements = eot_agreements(run.folder)
    defenses = summarise(records, run.baseline)
    for name, summary in defenses.items():
        row = run.rows[name]
        own = [record for record in records if record.defense == name]
        summary["purification_calls"] = row.defense.network_calls
        summary |= run.certificates[name]
        summary["execution"] = asdict(row.attacked.execution)
        for attack, found in summary["attacks"].items():
            found["eot_agreement"] = agreements.get((name, attack))
        summary["audit"] = _audit(run, row, own, agreements)
        summary["cost"] = {
            "network_calls": summary.pop("network_calls"),
            "audit_calls": summary.pop("audit_calls"),
            "seconds": sum(t["seconds"] for t in timing if t.get("defense") == name),
            "latency_seconds": latency(row.defense, run.first.images[:1]),
        }
    first, *later = run.folder.read_sessions()
    return {
        "schema": SCHEMA,
        "samples": len({record.sample for record in records}),
        "run": {
            "data": data.description,
            "attack": run.attack.describe(),
            "attacks": {name: config.attack.describe() for name, config in run.attacks.items()},
            "report_draws": run.protocol.report_draws,
            "selection_draws": run.protocol.selection_draws,
            "audit": None if run.audit is None else asdict(run.audit),
            "baseline": run.baseline,
            "network_call": run.acceleration.describe(),
        },
        "defenses": defenses,
        "notes": _notes(run),
        "weaker_than_full": run.weaker_than_full(),
        "cost": {
            "peak_memory_bytes": peak_memory(run.device),
            "certificate_seconds": sum(t.get("certificates", 0) for t in timing),
        },
        "provenance": first
        | ({"continued": [session["commit"] for session in later]} if later else {}),
        "config": (run.folder.path / CONFIG).read_text(),
    }


def eot_agreements(folder: RunFolder) -> dict[tuple[str, str], float]:
    """By defence and attack, the mean cosine between the gradients of both halves of the EOT draws,
    over images and iterations."""
    found: dict[tuple[str, str], list[float]] = {}
    for entry in folder.read_iterations():
        said = [one["agreement"] for one in entry["iterations"] if "agreement" in one]
        if said:
            found.setdefault((entry["defense"], entry["attack"]), []).extend(said)
    return {key: float(np.mean(values)) for key, values in found.items()}


def _audit(
    run: "RobustnessEvaluation",
    row: Row,
    records: Sequence[Record],
    agreements: dict[tuple[str, str], float],
) -> list[dict[str, Any]] | None:
    if run.audit is None:
        return None
    base = base_cell(row.cells).name
    checks = verdicts(
        records,
        base,
        row.defense.classifier.num_classes,
        run.audit,
        list(run.certificates[row.name].values()),
        agreements.get((row.name, base)),
    )
    clean, _ = saved_images(run.folder.path, row.name, CLEAN)
    for_attacks = {
        cell.name: (saved_images(run.folder.path, row.name, cell.name), cell.attack.threat)
        for cell in row.cells
    }
    checks.append(saved_check(clean, for_attacks))
    return [run.gradients[row.name], *(check.as_dict() for check in checks)]


def _notes(run: "RobustnessEvaluation") -> list[str]:
    """What attacks did otherwise than asked."""
    attacks = [run.attack, *(config.attack for config in run.attacks.values())]
    classes = {row.defense.classifier.num_classes for row in run.rows.values()}
    found = [note for attack in attacks for count in classes for note in attack.notes(count)]
    whole = {
        tuple(dict.fromkeys(c.member for c in row.cells if c.limit is None and not c.known))
        for row in run.rows.values()
    }
    if len(whole) > 1:
        found.append("Not every row was attacked by the same attacks: see the table of attacks")
    return list(dict.fromkeys(found))
