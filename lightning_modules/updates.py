"""How many updates a training makes."""

from copy import copy
from math import inf, isinf

import lightning as L
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from hetpure.errors import InputError


def count_updates(trainer: L.Trainer) -> float:
    """Updates of the whole training, infinite where nothing but time ends it. InputError where
    there would be none.

    Every update is of a whole window of `--trainer.accumulate_grad_batches`. The last batches of an
    epoch that fill none are left out, as the last images are that fill no batch: Lightning would
    make an update of them and divide their gradient by the whole window.
    """
    window = trainer.accumulate_grad_batches
    if window < 1:
        raise InputError(f"--trainer.accumulate_grad_batches must be 1 or more, got {window}")
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, GradientAccumulationScheduler) for callback in callbacks):
        raise InputError(
            "--trainer.callbacks: GradientAccumulationScheduler changes how many batches make an"
            " update: set one number, --trainer.accumulate_grad_batches"
        )
    # A copy is asked: Lightning's own loop reads the data after the checkpoint, with this limit. A
    # loader that is there before would begin its epoch anew.
    loop = copy(trainer.fit_loop)
    try:
        loop.setup_data()
    except ValueError as error:
        if "val_check_interval" not in str(error):
            raise
        raise InputError(f"--trainer.val_check_interval: {error}") from None
    batches = loop.max_batches if trainer.limit_train_batches else 0
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        window = 1  # a trial of a batch or a few, which leaves nothing
    if window > 1 and isinf(batches):
        raise InputError(
            "--trainer.accumulate_grad_batches needs a train_dataloader that knows its length:"
            " whether an epoch ends within an update is not known otherwise"
        )
    an_epoch = batches if window == 1 else int(batches // window)
    epochs = inf if trainer.max_epochs in (None, -1) else trainer.max_epochs
    steps = inf if trainer.max_steps == -1 else trainer.max_steps
    if not (an_epoch and epochs and steps):
        raise InputError(
            f"the training would make no update: it has {trainer.max_epochs} epochs"
            f" (--trainer.max_epochs) of {batches} batches (--trainer.limit_train_batches),"
            f" {window} to an update (--trainer.accumulate_grad_batches), and at most"
            f" {trainer.max_steps} updates (--trainer.max_steps); -1 is no limit"
        )
    if window > 1:
        trainer.limit_train_batches = int(an_epoch * window)
        every = trainer.val_check_interval
        if isinstance(every, int) and trainer.check_val_every_n_epoch and every > an_epoch * window:
            raise InputError(
                f"--trainer.val_check_interval is {every}, and an epoch has {an_epoch * window}"
                f" batches in whole updates of {window}: set a smaller one"
            )
    return min(epochs * an_epoch, steps)
