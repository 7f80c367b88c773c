"""Training of a diffusion network: ADDT, its variants and controls, and plain training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import lightning as L
import torch
from diffusers import UNet2DModel
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from hetpure.addt import Batch, Found, Perturbation, denoising_loss
from hetpure.adversarial_training import evaluating
from hetpure.augmentation import flip
from hetpure.classifiers import Classifier
from hetpure.denoiser import to_model
from hetpure.errors import InputError
from hetpure.levels import DiscreteLevels, Levels, LogNormalLevels
from hetpure.noise import Noise, Purpose, RowNoise, Stream
from hetpure.schedule import Level
from hetpure.weights import load_classifier, resolve
from hetpure.weights.diffusion import denoiser_of, fresh_scheduler, load_scheduler, load_unet
from lightning_modules.compatibility import check_classifier, check_denoiser


@dataclass(frozen=True)
class Update:
    """What one update was computed on: losses (B,), levels, and the perturbation, if any."""

    losses: Tensor
    level: Level
    found: Found | None


class DiffusionTraining(L.LightningModule):
    """Trains a diffusers `UNet2DModel`, by ADDT where a perturbation is given, with EMA.

    Args:
        diffusion: packaged name or diffusers folder to start from; None starts from `unet`.
        unet: keyword arguments of a fresh `UNet2DModel`, where `diffusion` is None.
        scheduler: keyword arguments of a fresh diffusers scheduler, where `diffusion` is None:
            `DDPMScheduler`'s, or `EDMEulerScheduler`'s where `preconditioning` is edm.
        preconditioning: of a fresh network: none, or edm (Karras et al. 2022).
        guide: packaged name or folder of the clean classifier that guides the perturbations;
            not needed where nothing is guided.
        perturbation: how the training noise is perturbed; None is plain diffusion training.
        levels: the noise levels that are trained.
        mode: `efficient` looks for perturbations with the network in eval mode, `reference` in
            train mode (dropout active), as published.
        compile: compile network and guide (torch.compile).
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
        preconditioning: Literal["none", "edm"] = "none",
        guide: str | None = None,
        perturbation: Perturbation | None = None,
        levels: Levels = DiscreteLevels(),  # noqa: B008 (frozen)
        mode: Literal["efficient", "reference"] = "efficient",
        compile: bool = False,
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
        guided = perturbation is not None and perturbation.objective == "classification"
        if guided and guide is None:
            raise InputError("--model.guide is needed: the perturbation raises a classifier's loss")
        self.perturbation = perturbation
        self.levels = levels
        self.mode = mode
        self.learning_rate = learning_rate
        self.betas = betas
        self.weight_decay = weight_decay
        self.learning_rate_schedule = learning_rate_schedule
        self.warmup_steps = warmup_steps
        self.horizontal_flip = horizontal_flip
        self.seed = seed
        if diffusion is None:
            self.scheduler = fresh_scheduler(preconditioning, scheduler or {})
            network = UNet2DModel(**(unet or {}))
        else:
            folder = resolve(diffusion)
            self.scheduler = load_scheduler(folder)
            network = load_unet(folder).train()  # diffusers loads in eval mode
        self.denoiser = denoiser_of(network, self.scheduler)
        if isinstance(levels, LogNormalLevels) and self.denoiser.prediction_type != "edm":
            raise InputError(
                "--model.levels LogNormalLevels belong to EDM's preconditioning, and this network"
                f" predicts {self.denoiser.prediction_type}: take DiscreteLevels"
            )
        self.ema = EMAModel(
            network.parameters(),
            decay=ema_decay,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
        )
        # In a tuple, so that the frozen guide is neither in checkpoints nor wrapped by strategies.
        self._guide: tuple[Classifier, ...] = (load_classifier(guide),) if guided and guide else ()
        if compile:  # in place: the names of weights stay
            for module in (network, *self._guide):
                module.compile()
        self.last_update: Update | None = None
        own = {key: value for key, value in network.config.items() if not key.startswith("_")}
        self._architecture = own | {
            "prediction_type": self.denoiser.prediction_type,
            "noise levels": self.denoiser.schedule.alphas_cumprod,
        }

    @property
    def unet(self) -> UNet2DModel:
        network: UNet2DModel = self.denoiser.network
        return network

    @property
    def guide(self) -> Classifier | None:
        return self._guide[0] if self._guide else None

    def on_fit_start(self) -> None:
        self.ema.to(self.device)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        check_denoiser(self.denoiser, data)
        if self.guide is not None:
            check_classifier(self.guide.to(self.device), data)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        noise = Noise.of(self.seed, Stream.TRAIN, self.global_step).on(batch["sample"])
        images = batch["image"]
        if self.horizontal_flip:
            images = flip(images, noise)
        # Dropout is drawn from torch's generator, which no checkpoint holds.
        torch.manual_seed(int(noise.words(Purpose.AUGMENTATION, 1, 0, 1)[0, 0]))
        self.last_update = self.losses(to_model(images), batch["label"], noise)
        loss = self.last_update.losses.mean()
        if not loss.isfinite():
            self._stop(batch["sample"], float(loss))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def losses(self, x0: Tensor, labels: Tensor, noise: RowNoise) -> Update:
        """The update's losses of images in model units under addressed noise."""
        level = self.levels.draw(self.denoiser.schedule, noise, x0)
        training_noise, found = noise.normal(Purpose.TRAINING, x0), None
        if self.perturbation is not None:
            with self._searching():
                batch = Batch(x0, labels, level, noise)
                found = self.perturbation.find(self.denoiser, self.guide, batch)
            training_noise = self.perturbation.mix(training_noise, found.perturbation, level)
        return Update(denoising_loss(self.denoiser, x0, level, training_noise), level, found)

    @contextmanager
    def _searching(self) -> Iterator[None]:
        """The mode in which perturbations are looked for."""
        if self.mode == "reference":
            yield
            return
        with evaluating(self.denoiser):
            yield

    def _stop(self, samples: Tensor, loss: float) -> NoReturn:
        """Ends a training whose loss is no number; the weights are those before this update."""
        said = f"the loss of update {self.global_step} is {loss}, of samples {samples.tolist()}"
        if self.trainer.world_size == 1:
            run = Path(self.trainer.log_dir or self.trainer.default_root_dir)
            path = run / "checkpoints" / "before-nan.ckpt"
            self.trainer.save_checkpoint(path)
            said += f"; the state before it is kept in {path}"
        raise InputError(f"{said}: try a smaller --model.learning_rate, or full precision")

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Plain denoising loss of the averaged weights under fixed noise: comparable over time."""
        noise = Noise.of(self.seed, Stream.PROBE).on(batch["sample"])
        x0 = to_model(batch["image"])
        level = self.levels.draw(self.denoiser.schedule, noise, x0)
        with self.averaged():
            losses = denoising_loss(self.denoiser, x0, level, noise.normal(Purpose.TRAINING, x0))
        self.log("validation/loss", losses.mean(), prog_bar=True, batch_size=len(x0))

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The network with the averaged weights, in eval mode."""
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        try:
            with evaluating(self.denoiser):
                yield
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
        checkpoint["architecture"] = self._architecture

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        theirs = checkpoint.get("architecture", {})
        for name, mine in self._architecture.items():
            if theirs.get(name) != mine:
                raise InputError(
                    f"--ckpt_path is of another network: its {name} is {theirs.get(name)!r}, that"
                    f" of --model is {mine!r}"
                )
        self.ema.load_state_dict(checkpoint["ema"])
