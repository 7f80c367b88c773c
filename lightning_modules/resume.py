"""A training that goes on from its checkpoint, also within an epoch, on other devices or in other
batches than it began."""

import json
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint

from hetpure.errors import InputError
from hetpure.evaluation.identity import changes

EPOCH_OVER = 2**40  # more batches than any epoch has


def take_back(checkpoint: dict[str, Any], batches: list[int], processes: int) -> None:
    """In a checkpoint that is saved, the last batches of so many samples on each process count as
    not seen. The last of them Lightning has not counted yet, our loader has."""
    loop = checkpoint["loops"]["fit_loop"]
    for state in loop["state_dict"].get("combined_loader") or []:
        if "samples" in state:
            state["samples"] -= sum(batches) * processes
    progress = loop["epoch_loop.batch_progress"]
    for counted in (progress["current"], progress["total"]):
        for key in ("processed", "completed"):
            counted[key] -= len(batches) - 1


def reopen_epoch(loop: dict[str, Any]) -> None:
    """Lightning takes the epoch in which a training ended (by `max_steps` or `max_time`) for a
    whole one, and goes on from a whole one with an empty one. A checkpoint from an epoch's end is
    changed into one from the end of its last batch, from which it goes on with what was left."""
    epoch, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    if epoch["current"]["processed"] == epoch["current"]["ready"]:
        for counted in (epoch["current"], epoch["total"]):
            counted["processed"] = counted["completed"] = counted["ready"] - 1
        for counted in (batches["current"], batches["total"]):
            counted["completed"] = counted["processed"] - 1
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def count_anew(loop: dict[str, Any], trainer: L.Trainer) -> None:
    """Lightning counts an epoch's batches on one process, our loader its samples on all. In a
    checkpoint of other devices or another batch size the batches are counted anew, so that the
    epoch ends where its samples do. Another loader goes on by itself.

    InputError where what was seen are no whole batches now, or no whole updates.
    """
    progress, window = loop["epoch_loop.batch_progress"], trainer.accumulate_grad_batches
    current, ended = progress["current"], progress["is_last_batch"]
    (before,) = loop["state_dict"].get("combined_loader") or [{}]
    size: int | None = getattr(getattr(trainer, "datamodule", None), "batch_size", None)
    now = (trainer.world_size, size)
    if size and "processes" in before and now != (before["processes"], before["batch_size"]):
        seen, rest = divmod(before["samples"], trainer.world_size * size)
        if ended:
            seen, rest = EPOCH_OVER, 0
        if rest:
            raise InputError(
                f"--ckpt_path was saved after {before['samples']} images of an epoch, in batches of"
                f" {before['batch_size']} on {before['processes']} devices: batches of {size} on"
                f" {trainer.world_size} cannot have seen as many; go on with those, or from an"
                " epoch's end"
            )
        # A callback that saves at a batch's end does so before that batch counts as completed.
        behind = current["processed"] - current["completed"]
        current |= dict.fromkeys(("ready", "started", "processed"), seen)
        current["completed"] = seen - behind
    if not ended and current["ready"] % window:
        raise InputError(
            f"--ckpt_path was saved after what are {current['ready']} batches of an epoch now:"
            f" updates of {window} batches (--trainer.accumulate_grad_batches) cannot begin there;"
            " go on with as many as it began with, or from an epoch's end"
        )


def keep_the_best(checkpoint: dict[str, Any], trainer: L.Trainer) -> None:
    """A training that goes on writes to a folder of its own, and Lightning then forgets which
    checkpoints were the best so far, and their scores. They are kept where all of them are still
    there: Lightning calls them by their paths, and deletes none of another folder."""
    states = checkpoint.get("callbacks", {})
    for callback in trainer.checkpoint_callbacks:
        state = states.get(callback.state_key, {})
        best = state.get("best_k_models", {})
        if isinstance(callback, ModelCheckpoint) and all(Path(path).exists() for path in best):
            state["dirpath"] = callback.dirpath


def comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What must agree for one training to go on from another's checkpoint, as JSON holds it; of a
    user's own class that is no dataclass the name alone."""
    public = {key: value for key, value in settings.items() if not key.startswith("_")}
    plain: dict[str, Any] = json.loads(json.dumps(public, default=_described))
    return plain


def _described(part: object) -> str:
    return repr(part) if is_dataclass(part) else type(part).__name__


def check_same(mine: Mapping[str, Any], theirs: Mapping[str, Any] | None, instead: str) -> None:
    """Raises InputError where a checkpoint (`theirs`) is of another training than this one, with
    what to do `instead`."""
    theirs = theirs or {}
    if missing := sorted(mine.keys() - theirs.keys()):
        raise InputError(
            f"--ckpt_path is no training of this kind and version: it does not say its {missing[0]}"
        )
    for name, before, now in changes(theirs, mine):
        raise InputError(
            f"--ckpt_path is of another training: its {name} is {before!r}, that of --model is"
            f" {now!r}; {instead}"
        )
