"""What a training leaves behind: weights that others can load, and pictures to look at."""

import shlex
from pathlib import Path

import lightning as L
import torch
from diffusers import UNet2DModel
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from datamodules.fashion_mnist import FashionMNIST
from hetpure.denoiser import Denoiser
from hetpure.errors import InputError, check_at_least
from hetpure.noise import Noise, Stream
from hetpure.sampling import draw_images
from hetpure.weights import save_classifier, save_diffusion
from lightning_modules.classifier import ClassifierTraining
from lightning_modules.diffusion import DiffusionTraining


class ExportWeights(Callback):
    """Writes the trained network as a folder of safetensors when training ends, and beside it
    `checkpoints/end.ckpt` to go on from (`--ckpt_path`). A training that goes on from a checkpoint
    with no update left (`--trainer.max_steps`) writes the network of that checkpoint; one that
    never made an update is refused, for its weights are those that it began with.

    A diffusion goes to `<run>/diffusion` with its averaged weights, in the layout of diffusers'
    `DDPMPipeline`; a classifier to `<run>/classifier`. `option` is the
    evaluation's option for them.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.checkpoint: Path | None = None
        self.option = ""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = trained_folder(trainer)
        if run is not None:
            self.checkpoint = run / "checkpoints" / "end.ckpt"
            trainer.save_checkpoint(self.checkpoint)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = trained_folder(trainer)
        if run is None:
            return
        if isinstance(pl_module, DiffusionTraining):
            denoiser = pl_module.averaged_denoiser()  # may be a collective: on every rank
            folder = run / "diffusion"
            if trainer.is_global_zero:
                save_diffusion(folder, denoiser.network, pl_module.scheduler)
            kind = "ddpm" if pl_module.perturbation is None else "addt"
            self.option, self.folder = f"--model.denoisers.{kind}", folder
        elif isinstance(pl_module, ClassifierTraining):
            folder = run / "classifier"
            if trainer.is_global_zero:
                save_classifier(folder, pl_module.classifier, pl_module.description)
            self.option, self.folder = "--model.classifier", folder


def run_folder(trainer: L.Trainer) -> Path | None:
    """Where a training writes, or None in a trial (`--trainer.fast_dev_run`), which leaves nothing.
    A collective: call it on every rank."""
    run = Path(trainer.log_dir or trainer.default_root_dir)
    trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
    return None if trial else run


def trained_folder(trainer: L.Trainer) -> Path | None:
    """The same of a training that made an update; InputError where none was made."""
    run = run_folder(trainer)
    if run is not None and trainer.global_step == 0:
        raise InputError(
            "the training made no update: no weights are written; give it more time, or more of"
            " --trainer.max_steps, --trainer.max_epochs or --trainer.limit_train_batches"
        )
    return run


def announce(trainer: L.Trainer) -> None:
    """Prints where the results of a training lie and the command that evaluates them."""
    if not trainer.is_global_zero:
        return
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ExportWeights) and callback.folder is not None:
            if callback.checkpoint is not None:
                print(f"checkpoint: {callback.checkpoint}")
            print(f"weights: {callback.folder}")
            print("evaluate them with:\n")
            data = getattr(trainer, "datamodule", None)
            # The default config evaluates packaged images.
            config = "" if isinstance(data, FashionMNIST) else "--config YOURS.yaml "
            option = f"{config}{callback.option} {shlex.quote(str(callback.folder))}"
            print(f"  python evaluate.py {option}\n")


class SampleGrid(Callback):
    """Draws images from the averaged weights, to TensorBoard and to `<run>/samples.png`.

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
        self._drawn_at = -1

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._draw(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = run_folder(trainer)
        if run is None or not isinstance(pl_module, DiffusionTraining):
            return
        if self._drawn_at == trainer.global_step:
            return
        self._drawn_at = trainer.global_step
        denoiser = pl_module.averaged_denoiser()  # may be a collective: on every rank
        if not trainer.is_global_zero:
            return
        images = draw_samples(denoiser, self.rows**2, self.network_calls, pl_module.seed)
        grid = tile(images, self.rows)
        picture = Image.fromarray((grid * 255).round().byte().numpy())
        path = run / "samples.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(path)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                layout = "HW" if grid.dim() == 2 else "HWC"
                logger.experiment.add_image(
                    "samples", grid, trainer.global_step, dataformats=layout
                )


def draw_samples(denoiser: Denoiser, count: int, network_calls: int, seed: int) -> Tensor:
    """(count, H, W, C) samples of a network, pixel [0, 1], always of the same noise."""
    network: UNet2DModel = denoiser.network
    config, device = network.config, next(network.parameters()).device
    size = config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    like = torch.empty(count, config["in_channels"], height, width, device=device)
    noise = Noise.of(seed, Stream.PROBE).on(torch.arange(count, device=device))
    with torch.no_grad():
        images = draw_images(denoiser, noise, like, network_calls=network_calls)
    return images.movedim(1, -1).cpu()


def tile(images: Tensor, columns: int) -> Tensor:
    """(N, H, W, C) images to one picture, (H', W') or (H', W', C)."""
    count, height, width, channels = images.shape
    rows = count // columns
    grid = images[: rows * columns].reshape(rows, columns, height, width, channels)
    picture = grid.transpose(1, 2).reshape(rows * height, columns * width, channels)
    return picture.squeeze(-1)
