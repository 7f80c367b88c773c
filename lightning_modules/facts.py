"""What an evaluation is, for its results: all that they need and that records do not say."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hetpure.attacks.gradient import GradientAttack
from hetpure.evaluation.audit import base_cell
from hetpure.evaluation.protocol import CLEAN
from lightning_modules.rows import Row

if TYPE_CHECKING:
    from lightning_modules.evaluation import RobustnessEvaluation

BOUND, COSINE_BOUND = 1e-5, 0.99


def facts(run: "RobustnessEvaluation") -> dict[str, Any]:
    """`evaluation.json`: the run in words, and each row's cells with as many images as they get."""
    images = len(run.loader.dataset)  # type: ignore[arg-type]
    return {
        "run": {
            "data": run.data.description,
            "attack": run.attack.describe(),
            "attacks": {name: config.attack.describe() for name, config in run.attacks.items()},
            "report_draws": run.protocol.report_draws,
            "selection_draws": run.protocol.selection_draws,
            "audit": None if run.audit is None else asdict(run.audit),
            "baseline": run.baseline,
            "network_call": run.acceleration.describe(),
        },
        "rows": {name: _row(row, images) for name, row in run.rows.items()},
        "notes": _notes(run),
        "weaker_than_full": _weaker_than_full(run),
    }


def _row(row: Row, images: int) -> dict[str, Any]:
    cells = {
        cell.name: {
            "images": images if cell.limit is None else min(cell.limit, images),
            "threat": None if cell.attack.threat is None else asdict(cell.attack.threat),
        }
        for cell in row.cells
    }
    return {
        "purification_calls": row.defense.network_calls,
        "classes": row.defense.classifier.num_classes,
        "execution": asdict(row.attacked.execution),
        "base": base_cell(row.cells).name,
        "gradient_check": "gradient_check" if row.surrogate is None else "surrogate_gradient_check",
        "inexact": row.inexact(),
        "cells": {CLEAN: {"images": images, "threat": None}} | cells,
    }


def _weaker_than_full(run: "RobustnessEvaluation") -> list[str]:
    """Departures from the full evaluation, but for those of rows."""
    found = [*run.attack.weaker_than_full(), *run.protocol.weaker_than_full()]
    if not run.attacks:
        found.append("one kind of attack only")
    for name, config in run.attacks.items():
        own = f"{config.attack.name}: "  # the table has the config's name
        found += [f"{name}: {s.removeprefix(own)}" for s in config.attack.weaker_than_full()]
    if run.audit is None:
        found.append("no audit")
    elif not isinstance(run.attack, GradientAttack):
        found.append(f"the audit varies nothing of {run.attack.name}")
    if run.acceleration.active:
        found.append(f"the diffusion network's calls: {run.acceleration.describe()}")
    if run.gradient_bound > BOUND or run.cosine_bound < COSINE_BOUND:
        found.append(
            f"gradients may be {run.gradient_bound:g} from finite differences (full: {BOUND:g})"
            f" and have cosines of {run.cosine_bound:g} (full: {COSINE_BOUND:g})"
        )
    return list(dict.fromkeys(found))


def _notes(run: "RobustnessEvaluation") -> list[str]:
    """What attacks did otherwise than asked, and what published code does in several ways."""
    attacks = [run.attack, *(config.attack for config in run.attacks.values())]
    classes = {row.defense.classifier.num_classes for row in run.rows.values()}
    found = [note for attack in attacks for count in classes for note in attack.notes(count)]
    if len({_whole(row) for row in run.rows.values()}) > 1:
        found.append("Not every row was attacked by the same attacks: see the table of attacks")
    for row in run.rows.values():
        denoiser = row.defense.denoiser
        if denoiser is not None and denoiser.schedule.pairing:
            found.append(f"{row.name}, time and noise level: {denoiser.schedule.pairing}")
    return list(dict.fromkeys(found))


def _whole(row: Row) -> Sequence[int]:
    """The attacks that have all images, by the numbers that variants of one share."""
    cells = (cell for cell in row.cells if cell.limit is None and not cell.known)
    return tuple(dict.fromkeys(cell.member for cell in cells))
