"""A training that goes on from its checkpoint."""

from typing import Any


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


def reopen_epoch(checkpoint: dict[str, Any]) -> None:
    """Lightning takes the epoch in which a training ended (by `max_steps` or `max_time`) for a
    whole one, and goes on from a whole one with an empty one. A checkpoint from an epoch's end is
    changed into one from the end of its last batch, from which it goes on with what was left."""
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None:  # of weights alone
        return
    epoch, batches = loop["epoch_progress"], loop["epoch_loop.batch_progress"]
    if epoch["current"]["processed"] == epoch["current"]["ready"]:
        for counted in (epoch["current"], epoch["total"]):
            counted["processed"] = counted["completed"] = counted["ready"] - 1
        for counted in (batches["current"], batches["total"]):
            counted["completed"] = counted["processed"] - 1
        loop["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1
