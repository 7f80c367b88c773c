"""The config of a run in its folder: written before anything is computed, and asked when the same
command goes on with the run."""

import itertools
from pathlib import Path
from typing import Any

import yaml

from hetpure.errors import InputError
from hetpure.evaluation.records import CONFIG
from hetpure.gradients import Execution

# Where it is computed and what it shows, not what: a run goes on with other devices. --resume is
# no part of a run.
FREE = ("trainer", "resume", "plan")


def chosen_before(folder: Path) -> dict[str, Execution]:
    """How the rows of a run that goes on are computed: memory may have changed, its results not."""
    path = folder / CONFIG
    if not path.exists():
        return {}
    saved = yaml.safe_load(path.read_text())["model"]["execution"] or {}
    return {name: Execution(**found) for name, found in saved.items()}


def differing(saved: Any, now: Any, name: str = "") -> list[str]:
    """Where two nested configs differ, by dotted names."""
    if isinstance(saved, dict) and isinstance(now, dict):
        return [
            line
            for key in dict.fromkeys([*saved, *now])
            for line in differing(saved.get(key), now.get(key), f"{name}.{key}".lstrip("."))
        ]
    return [] if saved == now else [f"{name}: {saved}, now {now}"]


def same_or_new(folder: Path, config: str, *, force: bool) -> Path:
    """The folder for a run of this config (YAML). One that holds another run is refused with the
    difference, or where that is forced left as it is: the run then gets a folder of its own."""
    now, wishes = _computed(config)
    numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
    for candidate in itertools.chain([folder], numbered):
        path = candidate / CONFIG
        if not path.exists():
            return candidate
        saved, chosen = _computed(path.read_text())
        own = {name: {k: chosen.get(name, {}).get(k) for k in wishes[name]} for name in wishes}
        found = differing(saved, now) + differing(own, wishes, "model.execution")
        if not found:
            return candidate
        if not force:
            raise InputError(
                f"{candidate} holds a run with another config ({'; '.join(found)}): give another"
                " --model.run, --resume=force for a new folder, or the same config to go on"
            )
    raise AssertionError("unreachable: there is always a next number")


def _computed(config: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """What a config says of what is computed, and what it says of how rows are."""
    found = yaml.safe_load(config)
    rows = (found["model"].pop("execution") or {}).items()
    for name in ("folder", "run", "memory_budget"):  # where it lies; executions are kept
        found["model"].pop(name, None)
    told = {name: {k: v for k, v in row.items() if v is not None} for name, row in rows}
    return {key: value for key, value in found.items() if key not in FREE}, told
