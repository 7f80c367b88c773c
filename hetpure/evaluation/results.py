"""Results as a function of the records: what `results.json` says of each defence."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hetpure.evaluation.protocol import AUDIT, CLEAN, NULL, Record
from hetpure.evaluation.statistics import (
    Difference,
    Estimate,
    attack_success,
    mean_accuracy,
    paired_difference,
    wilson,
)

Counting = Literal["single", "vote", "worst", "mean_logit", "mean_probability", "dw_box"]
MEANS: tuple[Counting, ...] = ("mean_logit", "mean_probability")
FRESH: tuple[Counting, ...] = ("single", "vote", "worst", *MEANS)


def outcomes(records: Sequence[Record], counting: Counting) -> NDArray[np.bool_]:
    """What is right: each draw (n, draws) for the means `single` and `dw_box`; each sample (n,) for
    `vote`, where the majority is the label and a tie is wrong, for `worst`, where all draws are,
    and for `mean_logit` and `mean_probability`, where the class of the mean over the draws is."""
    if counting in MEANS:
        return np.array([getattr(record, counting) == record.label for record in records])
    right = draws_right(records)
    if counting == "vote":
        predictions = np.array([record.predictions for record in records])
        votes = (predictions[:, :, None] == predictions[:, None, :]).sum(2)  # of each draw's class
        majority: NDArray[np.bool_] = right.sum(1) > np.where(right, 0, votes).max(1)
        return majority
    return np.all(right, axis=1) if counting == "worst" else right


def recorded(records: Sequence[Record], counting: Counting) -> bool:
    """Whether the records tell it: those of earlier versions lack the classes of the means."""
    return counting not in MEANS or all(getattr(r, counting) is not None for r in records)


def estimate(right: NDArray[np.bool_], draws: int) -> Estimate:
    """The accuracy of such outcomes of so many draws a sample."""
    return mean_accuracy(right) if right.ndim == 2 else wilson(int(right.sum()), len(right), draws)


def protocols(records: Sequence[Record]) -> dict[str, dict[str, Any]]:
    """All of `FRESH` that one defence's records under one attack tell; `dw_box` alone where the
    attacker knew noise."""
    draws = len(records[0].predictions)
    countings: Sequence[Counting] = ("dw_box",) if records[0].known else FRESH
    return {
        name: estimate(outcomes(records, name), draws).as_dict()
        for name in countings
        if recorded(records, name)
    }


def paired(records: Sequence[Record], others: Sequence[Record]) -> Difference:
    """Mean accuracy of the records minus that of others, on the samples that both have."""
    known = {record.sample: record for record in others}
    both = sorted((r for r in records if r.sample in known), key=lambda record: record.sample)
    return paired_difference(draws_right(both), draws_right([known[r.sample] for r in both]))


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
    threat = next((rows[0].threat for rows in attacks.values()), None)
    return {
        name: rows
        for name, rows in attacks.items()
        if rows[0].threat == threat and not rows[0].known
    }


def having(attacks: Mapping[str, Sequence[Record]], count: int) -> dict[str, Sequence[Record]]:
    """The attacks that have so many samples."""
    return {name: rows for name, rows in attacks.items() if len(rows) == count}


def robust_records(records: Sequence[Record]) -> list[Record]:
    """Of one defence's records those that its `robust` is counted on."""
    attacks = by_attack(records)
    count = len(attacks[CLEAN])
    white_box = {
        name: rows
        for name, rows in attacks.items()
        if name not in (CLEAN, NULL) and not name.startswith(AUDIT)
    }
    return worst(having(of_threat(white_box), count))


def summarise(records: Sequence[Record], baseline: str | None = None) -> dict[str, dict[str, Any]]:
    """By defence: `clean`, `null_attack`, `attacks.<name>`, `robust` and what was spent.

    Where a baseline is named, also each other defence's `difference` from it: mean accuracies over
    the same samples, paired.

    `robust` is the per-sample worst over the attacks in one ball that have all samples;
    `robust_by_all` over those that have only the first samples too, on these.
    """
    summary: dict[str, dict[str, Any]] = {}
    compared: dict[str, dict[str, Sequence[Record]]] = {}
    for name in dict.fromkeys(record.defense for record in records):
        of_row = [record for record in records if record.defense == name]
        attacks = by_attack(of_row)
        clean = attacks.pop(CLEAN)
        null = attacks.pop(NULL, None)
        audited = {key: attacks.pop(key) for key in list(attacks) if key.startswith(AUDIT)}
        inside = of_threat(attacks)
        whole = having(inside, len(clean))
        chosen = worst(whole)
        summary[name] = {
            "samples": len(clean),
            "clean": protocols(clean),
            # A difference whose interval lacks 0 means that the counting itself moves accuracy.
            "null_attack": null
            and {**protocols(null), "difference": paired(null, clean).as_dict()},
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
        compared[name] = {"clean": clean, "robust": chosen}
    for name, kinds in compared.items():
        if baseline is not None and name != baseline:
            summary[name]["difference"] = {
                kind: paired(of_row, compared[baseline][kind]).as_dict()
                for kind, of_row in kinds.items()
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
        **protocols(rows),
        # Under known noise an image may be wrong without any attack: no success to speak of.
        "success": None if rows[0].known else success(clean, rows).as_dict(),
        "known": list(rows[0].known),
        "threat": rows[0].threat,
        "max_linf": max(record.linf for record in rows),
        "max_l2": max(record.l2 for record in rows),
        "network_calls": sum(record.network_calls for record in rows),
        "skipped": sum(record.skipped for record in rows),
    }


def robust(
    clean: Sequence[Record], chosen: Sequence[Record], attacks: Mapping[str, Sequence[Record]]
) -> dict[str, Any]:
    """Protocols of a per-sample worst, which attacks it is over, and for how many samples each of
    them was the one."""
    return {
        **protocols(chosen),
        "success": success(clean, chosen).as_dict(),
        "attacks": {name: sum(record.attack == name for record in chosen) for name in attacks},
    }


def success(clean: Sequence[Record], rows: Sequence[Record]) -> Estimate:
    """Of the samples that the majority of draws has right, the share that it has wrong then."""
    before = {record.sample: record for record in clean}
    same = [before[record.sample] for record in rows]
    return attack_success(outcomes(same, "vote"), outcomes(rows, "vote"))


def coverage(records: Sequence[Record]) -> float | None:
    """Mean share of attended pixels; None without a mask."""
    shares = [record.coverage for record in records if record.coverage is not None]
    return float(np.mean(shares)) if shares else None


def draws_right(records: Sequence[Record]) -> NDArray[np.bool_]:
    """(n, draws): which predictions are the label."""
    return np.array([[p == record.label for p in record.predictions] for record in records])
