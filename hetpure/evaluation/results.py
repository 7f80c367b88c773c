"""Results as a function of the records: what `results.json` says of each defence."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hetpure.evaluation.protocol import AUDIT, CLEAN, NULL, Record
from hetpure.evaluation.statistics import (
    Estimate,
    attack_success,
    majority,
    mean_accuracy,
    paired_difference,
    vote_accuracy,
    worst_accuracy,
)


def protocols(records: Sequence[Record]) -> dict[str, Estimate]:
    """`single`, `vote` and `worst` of one defence's records under one attack; `dw_box` alone where
    the attacker knew noise."""
    if records[0].known:
        return {"dw_box": mean_accuracy(draws_right(records))}
    predictions = np.array([record.predictions for record in records])
    labels = np.array([record.label for record in records])
    return {
        "single": mean_accuracy(draws_right(records)),
        "vote": vote_accuracy(predictions, labels),
        "worst": worst_accuracy(draws_right(records)),
    }


def worst(attacks: Mapping[str, Sequence[Record]]) -> list[Record]:
    """Of each sample that every attack has, its record with the fewest selection draws right; the
    first of equals."""
    by_sample = [{record.sample: record for record in rows} for rows in attacks.values()]
    common = [sample for sample in by_sample[0] if all(sample in rows for rows in by_sample)]
    return [
        min((rows[sample] for rows in by_sample), key=lambda record: record.kept)
        for sample in common
    ]


def of_threat(attacks: Mapping[str, Sequence[Record]]) -> dict[str, Sequence[Record]]:
    """The attacks whose candidates `robust` chooses among: white-box ones in the ball of the first
    of them. An attacker who knows noise and one who moves images otherwise stand for themselves."""
    threat = next(iter(attacks.values()))[0].threat
    return {
        name: rows
        for name, rows in attacks.items()
        if rows[0].threat == threat and not rows[0].known
    }


def summarise(records: Sequence[Record], baseline: str | None = None) -> dict[str, dict[str, Any]]:
    """By defence: `clean`, `null_attack`, `attacks.<name>`, `robust` and what was spent.

    Where a baseline is named, also each other defence's `difference` from it: mean accuracies over
    the same samples, paired.

    `robust` is the per-sample worst over the attacks in one ball that have all samples;
    `robust_by_all` over those that have only the first samples too, on these.
    """
    summary: dict[str, dict[str, Any]] = {}
    right: dict[str, dict[str, NDArray[np.bool_]]] = {}
    samples: dict[str, list[int]] = {}
    for name in dict.fromkeys(record.defense for record in records):
        of_row = [record for record in records if record.defense == name]
        attacks = by_attack(of_row)
        clean = attacks.pop(CLEAN)
        null = attacks.pop(NULL, None)
        audited = {key: attacks.pop(key) for key in list(attacks) if key.startswith(AUDIT)}
        inside = of_threat(attacks)
        whole = {key: rows for key, rows in inside.items() if len(rows) == len(clean)}
        chosen = worst(whole)
        summary[name] = {
            "samples": len(clean),
            "clean": _as_dicts(protocols(clean)),
            "null_attack": None if null is None else null_attack(clean, null),
            "attacks": {key: attack_summary(clean, rows) for key, rows in attacks.items()},
            "robust": robust(clean, chosen, whole),
            "robust_by_all": None
            if len(whole) == len(inside)
            else robust(clean, worst(inside), inside),
            "perturbation": {
                "max_linf": max(record.linf for record in chosen),
                "max_l2": max(record.l2 for record in chosen),
            },
            "mask_coverage": {"clean": coverage(clean), "adversarial": coverage(chosen)},
            "network_calls": sum(record.network_calls for record in of_row),
            "audit_calls": sum(r.network_calls for rows in audited.values() for r in rows),
        }
        right[name] = {
            kind: draws_right(sorted(outcomes, key=lambda record: record.sample))  # pairs them
            for kind, outcomes in (("clean", clean), ("robust", chosen))
        }
        samples[name] = sorted(record.sample for record in clean)
    if baseline is not None:
        for name, outcomes in right.items():
            if samples[name] != samples[baseline]:
                raise ValueError(f"{name!r} and {baseline!r} hold other samples: no pairs")
            if name != baseline:
                summary[name]["difference"] = {
                    kind: paired_difference(values, right[baseline][kind]).as_dict()
                    for kind, values in outcomes.items()
                }
    return summary


def by_attack(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records of one defence by attack, in the order of their first."""
    attacks: dict[str, list[Record]] = {}
    for record in records:
        attacks.setdefault(record.attack, []).append(record)
    return attacks


def attack_summary(clean: Sequence[Record], rows: Sequence[Record]) -> dict[str, Any]:
    """One attack on one defence: its protocols, its success, the noise and the ball it knew."""
    return {
        **_as_dicts(protocols(rows)),
        # Under known noise an image may be wrong without any attack: no success to speak of.
        "success": None if rows[0].known else success(clean, rows).as_dict(),
        "known": list(rows[0].known),
        "threat": rows[0].threat,
        "max_linf": max(record.linf for record in rows),
        "max_l2": max(record.l2 for record in rows),
        "network_calls": sum(record.network_calls for record in rows),
    }


def robust(
    clean: Sequence[Record], chosen: Sequence[Record], attacks: Mapping[str, Sequence[Record]]
) -> dict[str, Any]:
    """Protocols of a per-sample worst, which attacks it is over, and for how many samples each of
    them was the one."""
    return {
        **_as_dicts(protocols(chosen)),
        "success": success(clean, chosen).as_dict(),
        "attacks": {name: sum(record.attack == name for record in chosen) for name in attacks},
    }


def success(clean: Sequence[Record], rows: Sequence[Record]) -> Estimate:
    """Of the samples that the majority of draws has right, the share that it has wrong then."""
    before = {record.sample: record for record in clean}
    pairs = [(before[record.sample], record) for record in rows]
    return attack_success(
        np.array([_voted(first) for first, _ in pairs]),
        np.array([_voted(second) for _, second in pairs]),
    )


def null_attack(clean: Sequence[Record], null: Sequence[Record]) -> dict[str, Any]:
    """Accuracy under an attack of strength zero, on draws of its own, and its paired difference
    from the clean one: an interval without 0 means that the counting itself moves accuracy."""
    after, before = (sorted(rows, key=lambda record: record.sample) for rows in (null, clean))
    difference = paired_difference(draws_right(after), draws_right(before))
    return {**_as_dicts(protocols(null)), "difference": difference.as_dict()}


def coverage(records: Sequence[Record]) -> float | None:
    """Mean share of attended pixels; None without a mask."""
    shares = [record.coverage for record in records if record.coverage is not None]
    return float(np.mean(shares)) if shares else None


def draws_right(records: Sequence[Record]) -> NDArray[np.bool_]:
    """(n, draws): which predictions are the label."""
    return np.array([[p == record.label for p in record.predictions] for record in records])


def _voted(record: Record) -> bool:
    """Whether the majority of its draws is the label."""
    return bool(majority(np.array([record.predictions]))[0] == record.label)


def _as_dicts(estimates: dict[str, Estimate]) -> dict[str, dict[str, Any]]:
    return {protocol: estimate.as_dict() for protocol, estimate in estimates.items()}
