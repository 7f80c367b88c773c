"""What a training of a classifier and one of a diffusion have in common."""

from typing import Any, ClassVar

import lightning as L
from torch import Tensor

from hetpure.classifiers import Classifier
from hetpure.errors import InputError
from lightning_modules.batches import checked
from lightning_modules.compatibility import check_answers
from lightning_modules.resume import check_same, go_on
from lightning_modules.updates import count_updates


class Training(L.LightningModule):
    """Checks every batch before it is used, and that a checkpoint is of the same training.

    `settings` make the updates what they are, as JSON holds them: a checkpoint of others is
    refused, with `instead` as what to do. `unasked` are classifiers by what messages call them:
    they are asked about the first batch, before anything is computed.
    """

    instead: ClassVar[str]

    def __init__(self) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {}
        self.unasked: dict[str, Classifier] = {}
        self._updates: float | None = None  # of the whole training, if the learning rate needs them
        self._before: list[float | None] = []  # those of the checkpoint that it goes on from

    def count_updates(self, *, shape_the_rate: bool) -> float:
        """Of the whole training. Where they shape the learning rate's curve, a checkpoint of
        another number is refused: half of one curve and half of another is neither."""
        found = count_updates(self.trainer)
        self._updates = found if shape_the_rate else None
        return found

    def on_train_start(self) -> None:
        for before in self._before:
            if before != self._updates:
                raise InputError(
                    f"--ckpt_path is of a training of {before} updates, this one is of"
                    f" {self._updates}, and its learning rate follows their number: give the same"
                    " --trainer.max_epochs or --trainer.max_steps, and as large a global batch"
                )

    def checked(self, batch: Any) -> dict[str, Tensor]:
        """The batch as hetpure takes it: see `lightning_modules.batches.checked`."""
        found = checked(batch, getattr(self.trainer, "datamodule", None))
        for name, classifier in self.unasked.items():
            check_answers(classifier, found["image"], name)
        self.unasked = {}
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = self.settings
        checkpoint["updates"] = self._updates

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same(self.settings, checkpoint.get("architecture"), self.instead)
        self._before = [checkpoint.get("updates")]
        go_on(checkpoint, self._trainer)
