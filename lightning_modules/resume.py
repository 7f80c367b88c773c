"""A training that goes on from its checkpoint."""

from typing import Any


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
