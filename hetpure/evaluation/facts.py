"""What the results of a run need and its records do not say: the run in words, and its jobs."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from hetpure.evaluation.cells import base_cell
from hetpure.evaluation.cost import audit_costs
from hetpure.evaluation.description import COSINE_BOUND, GRADIENT_BOUND, Run
from hetpure.evaluation.protocol import Cell, Protocol
from hetpure.evaluation.provenance import provenance
from hetpure.evaluation.rows import Row


def run_record(run: Run) -> dict[str, Any]:
    """What a run writes into its store when it begins."""
    config = run.config
    facts = {
        "run": {
            "data": run.images.description,
            "class_names": list(run.images.class_names),
            "attack": config.attack.describe(),
            "attacks": {name: other.attack.describe() for name, other in config.attacks.items()},
            "report_draws": config.protocol.report_draws,
            "selection_draws": config.protocol.selection_draws,
            "audit": None if config.audit is None else asdict(config.audit),
            "baseline": config.baseline,
            "network_call": config.acceleration.describe(),
        },
        "images": len(run.images),
        "rows": {
            name: _row(row, len(run.images), config.protocol) for name, row in run.rows.items()
        },
        "notes": _notes(run),
        "weaker_than_full": _weaker_than_full(run),
    }
    origin = {"weights": dict(run.weights), "data": dict(run.images.files)}
    return {
        "identity": run.identity(),
        "facts": facts,
        "execution": {name: asdict(execution) for name, execution in run.execution.items()},
        "block": run.block,
        "provenance": provenance(run.device) | origin,
    }


def _row(row: Row, count: int, protocol: Protocol) -> dict[str, Any]:
    return {
        "purification_calls": row.defense.network_calls,
        "classes": row.defense.classifier.num_classes,
        "base": base_cell(list(row.cells)).name,
        "attacked": "gradient_check" if row.surrogate is None else "surrogate_gradient_check",
        "inexact": row.inexact(),
        "cells": {
            cell.name: {"images": cell.images(count), "threat": _threat(cell)} for cell in row.cells
        },
        "audit": {
            cell.name: {"purifications": cost, "threat": _threat(cell)}
            for cell, cost in zip(row.audit, audit_costs(row, protocol).values(), strict=True)
        },
    }


def _threat(cell: Cell) -> dict[str, Any] | None:
    return None if cell.attack.threat is None else asdict(cell.attack.threat)


def _weaker_than_full(run: Run) -> list[str]:
    """Departures from the full evaluation, but for those of rows."""
    config = run.config
    departures = [*config.attack.weaker_than_full(), *config.protocol.weaker_than_full()]
    if not config.attacks:
        departures.append("one kind of attack only")
    for name, other in config.attacks.items():
        prefix = f"{other.attack.name}: "  # the table has the config's name
        weaker = other.attack.weaker_than_full()
        departures += [f"{name}: {line.removeprefix(prefix)}" for line in weaker]
    if config.audit is None:
        departures.append("no audit")
    elif not config.audit.reference:
        departures.append("the audit has no reference attack: convergence not checked")
    if config.audit is not None and not config.attack.stronger():
        departures.append(f"the audit varies nothing of {config.attack.name}")
    if config.acceleration.active:
        departures.append(f"the diffusion network's calls: {config.acceleration.describe()}")
    if config.gradient_bound > GRADIENT_BOUND or config.cosine_bound < COSINE_BOUND:
        departures.append(
            f"gradients may be {config.gradient_bound:g} from finite differences (full:"
            f" {GRADIENT_BOUND:g}) and have cosines of {config.cosine_bound:g} (full:"
            f" {COSINE_BOUND:g})"
        )
    return list(dict.fromkeys(departures))


def _notes(run: Run) -> list[str]:
    """What attacks did otherwise than asked, and what published code does in several ways."""
    attacks = [run.config.attack, *(other.attack for other in run.config.attacks.values())]
    classes = {row.defense.classifier.num_classes for row in run.rows.values()}
    notes = [note for attack in attacks for count in classes for note in attack.notes(count)]
    if len({_whole(row) for row in run.rows.values()}) > 1:
        notes.append("Not every row was attacked by the same attacks: see the table of attacks")
    for row in run.rows.values():
        denoiser = row.defense.denoiser
        if denoiser is not None and denoiser.schedule.pairing:
            notes.append(f"{row.name}, time and noise level: {denoiser.schedule.pairing}")
    evaluated = run.images.data_set
    notes += [
        f"{name} was trained on {data_set}, and these are images of {evaluated}"
        for name, data_set in run.trained_on.items()
        if evaluated and data_set != evaluated
    ]
    return list(dict.fromkeys(notes))


def _whole(row: Row) -> Sequence[int]:
    """The attacks that have all images, by the numbers that variants of one attack share."""
    cells = (cell for cell in row.cells if cell.limit is None and not cell.known)
    return tuple(dict.fromkeys(cell.member for cell in cells))
