"""What a training leaves behind: weights that others can load, and pictures to look at."""

import shlex
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor

from hetpure.noise import Noise, Stream
from hetpure.sampling import draw_images
from hetpure.weights import save_classifier, save_diffusion
from lightning_modules.classifier import ClassifierTraining
from lightning_modules.diffusion import DiffusionTraining


class ExportWeights(Callback):
    """Writes the trained network as a folder of safetensors when training ends, and beside it
    `checkpoints/end.ckpt` to go on from (`--ckpt_path`).

    A diffusion goes to `<run>/diffusion` with its averaged weights, in the layout of diffusers'
    `DDPMPipeline`; a classifier to `<run>/classifier`. `option` is the
    evaluation's option for them.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self.checkpoint: Path | None = None
        self.option = ""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        run = run_folder(trainer)
        if run is None:
            return
        self.checkpoint = run / "checkpoints" / "end.ckpt"
        trainer.save_checkpoint(self.checkpoint)
        if not trainer.is_global_zero:
            return
        if isinstance(pl_module, DiffusionTraining):
            folder = run / "diffusion"
            with pl_module.averaged():
                save_diffusion(folder, pl_module.unet, pl_module.scheduler)
            kind = "ddpm" if pl_module.perturbation is None else "addt"
            self.option, self.folder = f"--model.denoisers.{kind}", folder
        elif isinstance(pl_module, ClassifierTraining):
            folder = run / "classifier"
            save_classifier(folder, pl_module.classifier, pl_module.description)
            self.option, self.folder = "--model.classifier", folder


def run_folder(trainer: L.Trainer) -> Path | None:
    """Where a training writes, or None in a trial (`--trainer.fast_dev_run`), which leaves nothing.
    A collective: call it on every rank."""
    run = Path(trainer.log_dir or trainer.default_root_dir)
    trial: bool = trainer.fast_dev_run  # type: ignore[attr-defined]
    return None if trial else run


def announce(trainer: L.Trainer) -> None:
    """Prints where the results of a training lie and the command that evaluates them."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ExportWeights) and callback.folder is not None:
            print(f"checkpoint: {callback.checkpoint}")
            print(f"weights: {callback.folder}")
            print("evaluate them with:\n")
            print(f"  python evaluate.py {callback.option} {shlex.quote(str(callback.folder))}\n")


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
        if run is None or not trainer.is_global_zero:
            return
        if not isinstance(pl_module, DiffusionTraining) or self._drawn_at == trainer.global_step:
            return
        self._drawn_at = trainer.global_step
        grid = tile(draw_samples(pl_module, self.rows**2, self.network_calls), self.rows)
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


def draw_samples(module: DiffusionTraining, count: int, network_calls: int) -> Tensor:
    """(count, H, W, C) samples of the averaged weights, pixel [0, 1], always of the same noise."""
    size = module.unet.config["sample_size"]
    height, width = (size, size) if isinstance(size, int) else size
    like = torch.empty(
        count, module.unet.config["in_channels"], height, width, device=module.device
    )
    noise = Noise.of(module.seed, Stream.PROBE).on(torch.arange(count, device=module.device))
    with torch.no_grad(), module.averaged():
        images = draw_images(module.denoiser, noise, like, network_calls=network_calls)
    return images.movedim(1, -1).cpu()


def tile(images: Tensor, columns: int) -> Tensor:
    """(N, H, W, C) images to one picture, (H', W') or (H', W', C)."""
    count, height, width, channels = images.shape
    rows = count // columns
    grid = images[: rows * columns].reshape(rows, columns, height, width, channels)
    picture = grid.transpose(1, 2).reshape(rows * height, columns * width, channels)
    return picture.squeeze(-1)
