"""Results as a function of the records: what `results.json` says of each defence."""

import platform
import resource
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hetpure.evaluation.protocol import CLEAN, Record
from hetpure.evaluation.statistics import (
    Estimate,
    mean_accuracy,
    paired_difference,
    vote_accuracy,
)

SCHEMA = 2
PACKAGES = ("lightning", "diffusers", "numpy", "scipy")


def protocols(records: Sequence[Record]) -> dict[str, Estimate]:
    """`single` and `vote` of one defence's records under one attack."""
    predictions = np.array([record.predictions for record in records])
    labels = np.array([record.label for record in records])
    return {
        "single": mean_accuracy(_right(records)),
        "vote": vote_accuracy(predictions, labels),
    }


def summarise(records: Sequence[Record], baseline: str | None = None) -> dict[str, dict[str, Any]]:
    """By defence: `clean`, `attacks.<name>`, `robust` and what was spent.

    Where a baseline is named, also each other defence's `difference` from it: mean accuracies over
    the same samples, paired.

    `robust` is the per-sample worst over the attacks: of each sample's records the one with the
    fewest selection draws right.
    """
    summary: dict[str, dict[str, Any]] = {}
    right: dict[str, dict[str, NDArray[np.bool_]]] = {}
    samples: dict[str, list[int]] = {}
    for name in dict.fromkeys(record.defense for record in records):
        own = [record for record in records if record.defense == name]
        attacks = {
            attack: [record for record in own if record.attack == attack]
            for attack in dict.fromkeys(record.attack for record in own)
        }
        clean = attacks.pop(CLEAN)
        worst = [
            min(rows, key=lambda record: record.selection[record.chosen])
            for rows in zip(*attacks.values(), strict=True)
        ]
        summary[name] = {
            "samples": len(clean),
            "clean": _as_dicts(protocols(clean)),
            "attacks": {attack: _as_dicts(protocols(rows)) for attack, rows in attacks.items()},
            "robust": _as_dicts(protocols(worst)),
            "perturbation": {
                "max_linf": max(record.linf for record in worst),
                "max_l2": max(record.l2 for record in worst),
            },
            "mask_coverage": {"clean": coverage(clean), "adversarial": coverage(worst)},
            "network_calls": sum(record.network_calls for record in own),
        }
        right[name] = {
            kind: _right(sorted(rows, key=lambda record: record.sample))  # pairs them
            for kind, rows in (("clean", clean), ("robust", worst))
        }
        samples[name] = sorted(record.sample for record in clean)
    if baseline is not None:
        for name, own_right in right.items():
            if samples[name] != samples[baseline]:
                raise ValueError(f"{name!r} and {baseline!r} hold other samples: no pairs")
            if name != baseline:
                summary[name]["difference"] = {
                    kind: paired_difference(values, right[baseline][kind]).as_dict()
                    for kind, values in own_right.items()
                }
    return summary


def coverage(records: Sequence[Record]) -> float | None:
    """Mean share of attended pixels; None without a mask."""
    found = [record.coverage for record in records if record.coverage is not None]
    return float(np.mean(found)) if found else None


def provenance(root: Path, device: torch.device) -> dict[str, Any]:
    """Commit, versions and device of this run."""
    return {
        "commit": _commit(root),
        "python": platform.python_version(),
        # torch's own string names its build (+cpu, +cu130), which its metadata may not.
        "packages": {"torch": torch.__version__} | {name: version(name) for name in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }


def peak_memory(device: torch.device) -> int:
    """Largest memory so far in bytes: the accelerator's, or the process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if platform.system() == "Darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _commit(root: Path) -> str | None:
    """The checkout's commit, marked where files differ from it; None outside a checkout."""
    try:
        result = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()


def _right(records: Sequence[Record]) -> NDArray[np.bool_]:
    """(n, draws): which predictions are the label."""
    return np.array([[p == record.label for p in record.predictions] for record in records])


def _as_dicts(estimates: dict[str, Estimate]) -> dict[str, dict[str, Any]]:
    return {protocol: estimate.as_dict() for protocol, estimate in estimates.items()}
