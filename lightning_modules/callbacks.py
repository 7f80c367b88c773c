"""What a training leaves behind: weights that others can load, and pictures to look at."""

import json
import shlex
from abc import ABC, abstractmethod
from pathlib import Path

import lightning as L
import numpy as np
import torch
from diffusers.utils import make_image_grid, numpy_to_pil
from lightning.pytorch.callbacks import Callback
from PIL import Image, ImageOps

from datamodules.fashion_mnist import FashionMNIST
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError, check_at_least, only_warned
from hetpure.noise import Noise, Stream
from hetpure.sampling import draw_images
from hetpure.weights.folders import SOURCE
from lightning_modules.diffusion import DiffusionTraining
from lightning_modules.loggers import log_image
from lightning_modules.processes import run_folder
from lightning_modules.training import Training

END = Path("checkpoints", "end.ckpt")


class ExportWeights(Callback):
    """Writes the trained network as a folder of safetensors when training ends, and beside it
    `checkpoints/end.ckpt` to go on from (`--ckpt_path`); prints where they lie and the command that
    evaluates them. A training that goes on from a checkpoint with no update left
    (`--trainer.max_steps`) writes the network of that checkpoint; one that never made an update is
    refused, for its weights are those that it began with.

    A diffusion goes to `<run>/diffusion` with its averaged weights, in the layout of diffusers'
    `DDPMPipeline`; a classifier to `<run>/classifier`.
    """

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return  # a trial, which leaves nothing
        if trainer.global_step == 0:
            raise InputError(
                "the training made no update: no weights are written; give it more time, or more of"
                " --trainer.max_steps, --trainer.max_epochs or --trainer.limit_train_batches"
            )
        trainer.save_checkpoint(run_folder(trainer) / END)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.fast_dev_run or not isinstance(pl_module, Training):  # type: ignore[attr-defined]
            return
        run = run_folder(trainer)
        option, folder = pl_module.export(run)
        if not trainer.is_global_zero:
            return
        # The default config evaluates packaged images.
        data = getattr(trainer, "datamodule", None)
        if (data_set := getattr(data, "data_set", None)) is not None:
            trained = {"trained_on": data_set}
            (folder / SOURCE).write_text(json.dumps(trained, indent=2) + "\n", "utf-8")
        config = "" if type(data) is FashionMNIST else "--config YOURS.yaml "
        if (run / END).exists():
            print(f"checkpoint: {run / END}")
        print("the trained weights are evaluated with:\n")
        print(f"  hetpure evaluate {config}{option} {shlex.quote(str(folder))}\n")


class EveryUpdates(Callback, ABC):
    """Looks at a diffusion training after every `every_n_steps` updates."""

    every_n_steps: int
    _looked_at = 0  # an update of several batches is looked at once

    @abstractmethod
    def look(self, trainer: L.Trainer, module: DiffusionTraining) -> None:
        """Called on every rank."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self.look_once(trainer, pl_module)

    def look_once(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Looks, unless it has looked at this update."""
        if isinstance(module, DiffusionTraining) and trainer.global_step != self._looked_at:
            self._looked_at = trainer.global_step
            self.look(trainer, module)


class SampleGrid(EveryUpdates):
    """Draws images from the averaged weights, to `<run>/samples.png` and to loggers that show
    images.

    Args:
        every_n_steps: updates between two grids; one more is drawn when training ends.
        rows: images a side.
        network_calls: steps of the sampler (DDPM).
    """

    def __init__(self, every_n_steps: int = 1000, rows: int = 6, network_calls: int = 50) -> None:
        self.every_n_steps = every_n_steps
        self.rows = rows
        self.network_calls = network_calls
        check_at_least(self, 1, "every_n_steps", "rows", "network_calls")

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.look_once(trainer, pl_module)

    def look(self, trainer: L.Trainer, module: DiffusionTraining) -> None:
        denoiser, run = module.averaged_denoiser(), run_folder(trainer)
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with only_warned("samples.png"):
            self._draw(trainer, module, denoiser, run)

    def _draw(
        self, trainer: L.Trainer, module: DiffusionTraining, denoiser: Denoiser, run: Path
    ) -> None:
        assert module.last_update is not None
        x0 = module.last_update.batch.x0
        like = x0.new_empty(self.rows**2, *x0.shape[1:], dtype=torch.float32)
        samples = torch.arange(len(like), device=like.device)
        noise = Noise.of(module.seed, Stream.PROBE).on(samples)  # always the same
        images = draw_images(denoiser, noise, like, network_calls=self.network_calls)
        pictures = numpy_to_pil(images.movedim(1, -1).cpu().numpy())
        grid = make_image_grid(pictures, self.rows, self.rows)
        run.mkdir(parents=True, exist_ok=True)
        ImageOps.scale(grid, 2, Image.Resampling.NEAREST).save(run / "samples.png")
        for logger in trainer.loggers:
            log_image(logger, "samples", np.asarray(grid), trainer.global_step)
