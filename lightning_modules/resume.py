"""A training that goes on from its checkpoint, also within an epoch, on other devices or in other
batches than it began."""

from typing import Any

import lightning as L

from hetpure.errors import InputError

EPOCH_OVER = 2**40  # more batches than any epoch has


def go_on(checkpoint: dict[str, Any], trainer: L.Trainer | None) -> None:
    """Changes what Lightning counted, in a checkpoint that is loaded, so that the training goes on
    with the images that are left of the epoch."""
    if trainer is None or "loops" not in checkpoint:
        return  # weights alone are loaded
    loop = checkpoint["loops"]["fit_loop"]
    reopen_epoch(loop)
    count_anew(loop, trainer)


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
    epoch ends where its samples do.

    InputError where what was seen are no whole batches now.
    """
    data = getattr(trainer, "datamodule", None)
    (before,) = loop["state_dict"].get("combined_loader") or [{}]
    size: int | None = getattr(data, "batch_size", None)
    if size is None or "processes" not in before:
        return  # another loader, which goes on by itself
    now = {"processes": trainer.world_size, "batch_size": size}
    if now == {key: before[key] for key in now}:
        return
    progress = loop["epoch_loop.batch_progress"]
    seen, rest = divmod(before["samples"], now["processes"] * now["batch_size"])
    if progress["is_last_batch"]:
        seen, rest = EPOCH_OVER, 0
    if rest:
        raise InputError(
            f"--ckpt_path was saved after {before['samples']} images of an epoch, in batches of"
            f" {before['batch_size']} on {before['processes']} devices: batches of"
            f" {now['batch_size']} on {now['processes']} cannot have seen as many; go on with"
            " those, or from an epoch's end"
        )
    current = progress["current"]
    # A callback that saves at a batch's end does so before that batch counts as completed.
    behind = current["processed"] - current["completed"]
    current |= dict.fromkeys(("ready", "started", "processed"), seen)
    current["completed"] = seen - behind
