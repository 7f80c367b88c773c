"""Training of a diffusion network: ADDT fine-tuning, and plain DDPM training with scale 0."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import lightning as L
import torch
from diffusers import DDPMScheduler, UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from hetpure.addt import denoising_loss, mix_noise, optimise_perturbation, perturbation_ratio
from hetpure.augmentation import flip
from hetpure.classifiers import Classifier
from hetpure.denoiser import Denoiser, to_model
from hetpure.errors import InputError
from hetpure.noise import Noise, Purpose, RowNoise, Stream
from hetpure.weights import load_classifier, resolve
from hetpure.weights.diffusion import load_scheduler, load_unet, schedule_of
from lightning_modules.compatibility import check_classifier, check_denoiser

T = TypeVar("T")


class DiffusionTraining(L.LightningModule):
    """Trains a diffusers `UNet2DModel` by ADDT (SPEC: CGPO, RBGM, mixed noise), with EMA.

    Args:
        diffusion: packaged name or diffusers folder to start from; None starts from `unet`.
        unet: keyword arguments of a fresh `UNet2DModel`, where `diffusion` is None.
        scheduler: keyword arguments of a fresh `DDPMScheduler`, where `diffusion` is None.
        guide: packaged name or folder of the clean classifier that guides the perturbations;
            not needed with perturbation_scale 0, which is clean diffusion training.
        perturbation_scale: standard deviation of the perturbation in model units (lambda's .03).
        perturbation_cap: upper bound of lambda.
        inner_steps: CGPO steps an update.
        mode: `efficient` runs CGPO with the network in eval mode, `reference` in train mode
            (dropout active), as published.
        learning_rate: of AdamW.
        betas: of AdamW.
        weight_decay: of AdamW.
        learning_rate_schedule: diffusers' name of a schedule: constant, cosine, linear.
        warmup_steps: linear warm-up of the learning rate, in updates.
        ema_decay: largest decay of the weights' moving average; it warms up as 1-(1+n)^-0.75.
        horizontal_flip: mirror half of the training images.
        seed: of the addressed training noise.
    """

    def __init__(
        self,
        diffusion: str | None = None,
        unet: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        guide: str | None = None,
        perturbation_scale: float = 0.03,
        perturbation_cap: float = 0.3,
        inner_steps: int = 5,
        mode: Literal["efficient", "reference"] = "efficient",
        learning_rate: float = 2e-4,
        betas: tuple[float, float] = (0.95, 0.999),
        weight_decay: float = 1e-6,
        learning_rate_schedule: Literal["constant", "cosine", "linear"] = "constant",
        warmup_steps: int = 0,
        ema_decay: float = 0.9999,
        horizontal_flip: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if (diffusion is None) == (unet is None):
            raise InputError("give one of --model.diffusion (start from it) and --model.unet")
        if perturbation_scale < 0:
            raise InputError(f"--model.perturbation_scale must be >= 0, got {perturbation_scale}")
        if perturbation_scale > 0 and guide is None:
            raise InputError("--model.guide is needed while --model.perturbation_scale is above 0")
        if inner_steps < 1:
            raise InputError(f"--model.inner_steps must be >= 1, got {inner_steps}")
        self.perturbation_scale = perturbation_scale
        self.perturbation_cap = perturbation_cap
        self.inner_steps = inner_steps
        self.mode = mode
        self.learning_rate = learning_rate
        self.betas = betas
        self.weight_decay = weight_decay
        self.learning_rate_schedule = learning_rate_schedule
        self.warmup_steps = warmup_steps
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        if diffusion is None:
            self.scheduler = DDPMScheduler(**(scheduler or {}))
            network = UNet2DModel(**(unet or {}))
        else:
            folder = resolve(diffusion)
            self.scheduler = load_scheduler(folder)
            network = load_unet(folder).train()  # diffusers loads in eval mode
        self.denoiser = Denoiser(
            network, schedule_of(self.scheduler), self.scheduler.config["prediction_type"]
        )
        self.ema = EMAModel(
            network.parameters(),
            decay=ema_decay,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
        )
        # In a tuple, so that the frozen guide is neither in checkpoints nor wrapped by strategies.
        self._guide: tuple[Classifier, ...] = (load_classifier(guide),) if guide else ()

    @property
    def unet(self) -> UNet2DModel:
        network: UNet2DModel = self.denoiser.network
        return network

    def on_fit_start(self) -> None:
        self.ema.to(self.device)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        check_denoiser(self.denoiser, data)
        for guide in self._guide:
            check_classifier(guide.to(self.device), data)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        noise = Noise.of(self.seed, Stream.TRAIN, self.global_step).on(batch["sample"])
        images = batch["image"]
        if self.horizontal_flip:
            images = flip(images, noise)
        loss = self.losses(to_model(images), batch["label"], noise).mean()
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def losses(self, x0: Tensor, labels: Tensor, noise: RowNoise) -> Tensor:
        """(B,) training losses of images in model units under addressed noise."""
        schedule = self.denoiser.schedule
        timesteps = noise.integers(Purpose.TIMESTEP, len(schedule))
        training_noise = noise.normal(Purpose.TRAINING, x0)
        if self.perturbation_scale > 0:
            ratio = perturbation_ratio(
                schedule.alphas_at(timesteps, x0),
                self.perturbation_scale,
                self.perturbation_cap,
            )
            perturbation = self._optimise(x0, labels, timesteps, ratio, noise)
            training_noise = mix_noise(training_noise, perturbation, ratio)
        return denoising_loss(self.denoiser, x0, timesteps, training_noise)

    def _optimise(
        self, x0: Tensor, labels: Tensor, timesteps: Tensor, ratio: Tensor, noise: RowNoise
    ) -> Tensor:
        was_training = self.denoiser.training
        self.denoiser.train(was_training and self.mode == "reference")
        try:
            return optimise_perturbation(
                self.denoiser,
                self._guide[0],
                x0,
                labels,
                timesteps,
                ratio,
                noise,
                steps=self.inner_steps,
            )
        finally:
            self.denoiser.train(was_training)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Plain denoising loss of the averaged weights under fixed noise: comparable over time."""
        noise = Noise.of(self.seed, Stream.PROBE).on(batch["sample"])
        x0 = to_model(batch["image"])
        timesteps = noise.integers(Purpose.TIMESTEP, len(self.denoiser.schedule))
        losses = self.with_ema(
            lambda: denoising_loss(self.denoiser, x0, timesteps, noise.normal(Purpose.TRAINING, x0))
        )
        self.log("validation/loss", losses.mean(), prog_bar=True, batch_size=len(x0))

    def with_ema(self, action: Callable[[], T]) -> T:
        """Runs `action` while the network holds the averaged weights."""
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        try:
            return action()
        finally:
            self.ema.restore(self.unet.parameters())

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimiser = torch.optim.AdamW(
            self.denoiser.parameters(),
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )
        schedule = get_scheduler(
            self.learning_rate_schedule,
            optimiser,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=int(self.trainer.estimated_stepping_batches),
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.step(self.unet.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema.load_state_dict(checkpoint["ema"])
