"""The progress bar of a training, which may have no last epoch."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.progress import Task, TextColumn
from rich.text import Text

NO_LAST_EPOCH = "/-2"  # Lightning's number of no limit, -1, less one


class TrainingProgress(RichProgressBar):
    """Lightning's progress bar. Where updates or time end a training, and no number of epochs, the
    bar shows "Epoch 0" in the place of Lightning's "Epoch 0/-2"."""

    def configure_columns(self, trainer: L.Trainer) -> list[Any]:
        described, *others = super().configure_columns(trainer)
        return [Described() if trainer.max_epochs == -1 else described, *others]


class Described(TextColumn):
    """What a bar is about, without the number of a last epoch."""

    def __init__(self) -> None:
        super().__init__("[progress.description]{task.description}")  # as Lightning's

    def render(self, task: Task) -> Text:
        text = super().render(task)
        if text.plain.endswith(NO_LAST_EPOCH):
            text.right_crop(len(NO_LAST_EPOCH))
        return text
