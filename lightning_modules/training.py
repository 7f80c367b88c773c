"""What a training of a classifier and one of a diffusion have in common."""

from abc import abstractmethod
from itertools import chain
from math import isinf
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import lightning as L
import torch
from torch import Tensor

from hetpure.classifiers import Classifier
from hetpure.compatibility import check_answers
from hetpure.errors import InputError
from lightning_modules.batches import checked
from lightning_modules.processes import everyones, run_folder, whole
from lightning_modules.resume import (
    check_same,
    count_anew,
    keep_the_best,
    reopen_epoch,
    take_back,
)
from lightning_modules.updates import count_updates


class Training(L.LightningModule):
    """Checks every batch before it is used, that a checkpoint is of the same training, and that
    losses and gradients are numbers.

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
        self.gradient_norm: Tensor | None = None  # of the last update, before it was clipped
        self._batches: list[list[int]] = []  # sample ids of the update that is computed
        self._failure = ""  # of this process
        self._stopped = False

    @abstractmethod
    def export(self, run: Path) -> tuple[str, Path]:
        """Writes the trained network into a folder of the run's; the evaluation's option for it,
        and the folder. All processes have to call it."""

    def count_updates(self, *, shape_the_rate: bool) -> float:
        """Of the whole training. Where they shape the learning rate's curve, there must be a last
        one, and a checkpoint of another number is refused: half of one curve and half of another is
        neither."""
        updates = count_updates(self.trainer)
        if shape_the_rate and isinf(updates):
            raise InputError(
                "the learning rate's curve needs the number of updates: set --trainer.max_epochs or"
                " --trainer.max_steps"
            )
        self._updates = updates if shape_the_rate else None
        return updates

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
        tensors = checked(batch, getattr(self.trainer, "datamodule", None))
        for name, classifier in self.unasked.items():
            check_answers(classifier, tensors["image"], name)
        self.unasked = {}
        return tensors

    def logged(self, loss: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """The loss that a training step gives back."""
        self._batches.append(batch["sample"].tolist())
        if not loss.isfinite():
            # By the gradients all processes learn of it, and stop together.
            self._failure, loss = f"the loss is {float(loss.detach()):g}", loss * torch.nan
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norms = torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
        self.gradient_norm = whole(torch.linalg.vector_norm(norms))
        if not self.gradient_norm.isfinite():
            self._stop(f"the gradient's norm is {float(self.gradient_norm):g}")
        self._batches = []

    def _stop(self, reason: str) -> NoReturn:
        """Ends a training that computes no numbers, on all processes. The weights that are kept are
        those before this update, and its batches count as not seen."""
        path = run_folder(self.trainer) / "checkpoints" / "before-nan.ckpt"
        self._stopped = True
        self.trainer.save_checkpoint(path)
        processes = everyones((self._failure, list(chain(*self._batches))))
        failed = [process for process in processes if process[0]]  # none, if it is the gradient
        samples = [sample for _, seen in failed or processes for sample in seen]
        reason = failed[0][0] if failed else reason
        raise InputError(
            f"update {self.global_step}: {reason}, of samples {samples};"
            f" the state before it is kept in {path}: go on from it in full precision, or start"
            " anew with a smaller --model.learning_rate"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = self.settings
        checkpoint["updates"] = self._updates
        if self._stopped:
            take_back(checkpoint, [len(batch) for batch in self._batches], self.trainer.world_size)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_same(self.settings, checkpoint.get("architecture"), self.instead)
        self._before = [checkpoint.get("updates")]
        if self._trainer is not None and "loops" in checkpoint:  # else weights alone are loaded
            loop = checkpoint["loops"]["fit_loop"]
            reopen_epoch(loop)
            count_anew(loop, self._trainer)
            keep_the_best(checkpoint, self._trainer)
