"""What a training of a classifier and one of a diffusion have in common."""

from typing import Any, ClassVar

import lightning as L
from torch import Tensor

from hetpure.classifiers import Classifier
from lightning_modules.batches import checked
from lightning_modules.compatibility import check_answers
from lightning_modules.resume import check_same, go_on


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

    def checked(self, batch: Any) -> dict[str, Tensor]:
        """The batch as hetpure takes it: see `lightning_modules.batches.checked`."""
        found = checked(batch, getattr(self.trainer, "datamodule", None))
        for name, classifier in self.unasked.items():
            check_answers(classifier, found["image"], name)
        self.unasked = {}
        return found

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = self.settings

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same(self.settings, checkpoint.get("architecture"), self.instead)
        go_on(checkpoint, self._trainer)
