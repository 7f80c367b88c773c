"""`results.json` of a run: a function of what lies in its folder, and of nothing else."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hetpure.attacks import Threat
from hetpure.errors import InputError
from hetpure.evaluation.audit import Audit, saved_check, verdicts
from hetpure.evaluation.protocol import CLEAN, Record
from hetpure.evaluation.records import CONFIG, RunFolder
from hetpure.evaluation.results import SCHEMA, summarise
from hetpure.numbers import Number
from hetpure.saved_images import saved_images

Facts = Mapping[str, Any]


def run_results(folder: RunFolder) -> dict[str, Any]:
    """All of `results.json`. InputError where something is not computed yet."""
    facts, records, gradient_checks = (
        folder.read_facts(),
        folder.read_records(),
        folder.read_gradient_checks(),
    )
    check_complete(folder, facts, records, gradient_checks)
    timing = folder.read_timing()
    agreements = eot_agreements(folder)
    defenses = summarise(records, facts["run"]["baseline"])
    for name, summary in defenses.items():
        row, own = facts["rows"][name], [record for record in records if record.defense == name]
        summary["purification_calls"] = row["purification_calls"]
        summary |= gradient_checks[name]["gradient_checks"]
        summary["execution"] = row["execution"]
        for attack, found in summary["attacks"].items():
            found["eot_agreement"] = agreements.get((name, attack))
        summary["audit"] = _audit(folder, facts, name, own, gradient_checks[name], agreements)
        summary["cost"] = {
            "network_calls": summary.pop("network_calls"),
            "audit_calls": summary.pop("audit_calls"),
            "seconds": sum(t["seconds"] for t in timing if t.get("defense") == name),
            "latency_seconds": _last(timing, "latency", {}).get(name),
        }
    first, *later = folder.read_sessions()
    return {
        "schema": SCHEMA,
        "samples": len({record.sample for record in records}),
        "run": facts["run"],
        "defenses": defenses,
        "notes": facts["notes"],
        "weaker_than_full": [
            *facts["weaker_than_full"],
            *(
                line
                for name, row in facts["rows"].items()
                for line in inexact(name, row, gradient_checks[name]["gradient_checks"])
            ),
        ],
        "cost": {
            "peak_memory_bytes": max((t.get("peak_memory_bytes", 0) for t in timing), default=0),
            "gradient_check_seconds": sum(t.get("gradient_checks", 0) for t in timing),
        },
        "provenance": first
        | ({"continued": [session["commit"] for session in later]} if later else {}),
        "config": (folder.path / CONFIG).read_text(),
    }


def check_complete(
    folder: RunFolder, facts: Facts, records: Sequence[Record], gradient_checks: Mapping[str, Any]
) -> None:
    """InputError unless every sample of every row has its records."""
    if not facts:
        raise InputError(f"{folder.path} holds no evaluation of this version")
    found = Counter((record.defense, record.attack) for record in records)
    missing = {name: int(name not in gradient_checks) for name in facts["rows"]}
    for name, row in facts["rows"].items():
        for cell, about in row["cells"].items():
            missing[name] += about["images"] - found.pop((name, cell), 0)
    if found:
        raise InputError(f"{folder.path} holds records of what it does not name: {list(found)[:3]}")
    if any(missing.values()):
        row = next(name for name, count in missing.items() if count)
        raise InputError(
            f"{folder.path} is not finished ({sum(missing.values())} results are missing, the"
            f" first of {row!r}): start the same command again"
        )


def inexact(name: str, row: Facts, gradient_checks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Where the gradient of a row's attack is not that of the defence, or not all of it was
    checked, given its gradient checks."""
    own = gradient_checks.get(row["gradient_check"])
    if own is None:
        return [f"{name}: its gradient has no gradient check"]
    cosine = f"cosine {own['cosine_to_exact']:.3f} to the exact one"
    found = [f"{name}: {said} {cosine}" for said in row["inexact"]]
    steps, of_steps = own.get("steps"), own.get("of_steps")
    if steps != of_steps:
        found.append(f"{name}: its gradient is checked on {steps} of {of_steps} steps")
    return found


def eot_agreements(folder: RunFolder) -> dict[tuple[str, str], float]:
    """By defence and attack, the mean cosine between the gradients of both halves of the EOT draws,
    over images and iterations."""
    found: dict[tuple[str, str], list[float]] = {}
    for entry in sorted(folder.read_iterations(), key=lambda entry: int(entry["block"])):
        said = [one["agreement"] for one in entry["iterations"] if "agreement" in one]
        if said:
            found.setdefault((entry["defense"], entry["attack"]), []).extend(said)
    return {key: float(np.mean(values)) for key, values in found.items()}


def _audit(
    folder: RunFolder,
    facts: Facts,
    name: str,
    records: Sequence[Record],
    checked: Mapping[str, Any],
    agreements: Mapping[tuple[str, str], float],
) -> list[dict[str, Any]] | None:
    if facts["run"]["audit"] is None:
        return None
    row = facts["rows"][name]
    checks = verdicts(
        records,
        row["base"],
        row["classes"],
        Audit(**facts["run"]["audit"]),
        list(checked["gradient_checks"].values()),
        agreements.get((name, row["base"])),
    )
    clean, _ = saved_images(folder.path, name, CLEAN)
    for_attacks = {
        cell: (saved_images(folder.path, name, cell), _threat(about["threat"]))
        for cell, about in row["cells"].items()
        if cell != CLEAN
    }
    checks.append(saved_check(clean, for_attacks))
    return [checked["gradient"], *(check.as_dict() for check in checks)]


def _threat(about: Mapping[str, Any] | None) -> Threat | None:
    return None if about is None else Threat(about["norm"], Number(about["epsilon"]))


def _last(timing: Sequence[Mapping[str, Any]], key: str, default: Any) -> Any:
    return next((entry[key] for entry in reversed(timing) if key in entry), default)
