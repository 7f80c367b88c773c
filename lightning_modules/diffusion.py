"""Training of a diffusion network: ADDT, its variants and controls, and plain training."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.distributed.tensor import DTensor

from hetpure.acceleration import compiled_cosine
from hetpure.addt import Batch, Perturbation, RankGaussian, denoising_loss
from hetpure.adversarial_training import evaluating
from hetpure.augmentation import flip
from hetpure.classifiers import Classifier
from hetpure.compatibility import check_classifier, check_denoiser
from hetpure.denoiser import Denoiser, to_model, to_pixels
from hetpure.errors import FieldError, InputError, check_at_least
from hetpure.levels import DiscreteLevels, Levels
from hetpure.noise import BatchNoise, Noise, Purpose, Stream, check_seed
from hetpure.weights import folder_hash, load_classifier, resolve, save_diffusion
from hetpure.weights.diffusion import (
    Network,
    another,
    denoiser_of,
    fresh_unet,
    load_unet,
    set_dropout,
)
from hetpure.weights.schedulers import fresh_scheduler, load_scheduler
from lightning_modules.processes import parted, shard, whole
from lightning_modules.resume import comparable
from lightning_modules.training import Training

COMPILED_COSINE = 0.99
PRECISIONS = ("32-true", "64-true", "bf16-mixed")  # perturbations are ranked in float32 at least
STRATEGIES = (SingleDeviceStrategy, DDPStrategy, ModelParallelStrategy)


@dataclass(frozen=True)
class Update:
    """What one update was computed on: its batch, losses (B,), and the perturbation, if any."""

    batch: Batch
    losses: Tensor
    perturbation: Tensor | None


class DiffusionTraining(Training):
    """Trains a diffusion network, by ADDT where a perturbation is given, with EMA.

    Args:
        diffusion: packaged name, diffusers folder or `hf://owner/name` to start from; None starts
            from `unet`.
        unet: keyword arguments of a fresh `UNet2DModel`, where `diffusion` is None.
        scheduler: keyword arguments of a fresh diffusers scheduler, where `diffusion` is None:
            `DDPMScheduler`'s, or `EDMEulerScheduler`'s where `preconditioning` is edm.
        preconditioning: of a fresh network: none, or edm (Karras et al. 2022).
        dropout: of the network's residual blocks, in training; None keeps its config's.
        guide: packaged name or folder of the clean classifier that guides the perturbations;
            not needed where nothing is guided.
        perturbation: how the training noise is perturbed; None is plain diffusion training.
        levels: the noise levels that are trained.
        mode: `efficient` looks for perturbations with the network in eval mode, `reference` in
            train mode (dropout active), as published.
        compile: compile network and guide (torch.compile). Before the first update their gradients
            are held against those of the modules as written.
        learning_rate: of AdamW.
        betas: of AdamW.
        weight_decay: of AdamW.
        learning_rate_schedule: diffusers' name of a schedule: constant, cosine, linear.
        warmup_steps: linear warm-up of the learning rate, in updates.
        ema_decay: largest decay of the weights' moving average; it warms up as 1-(1+n)^-0.75.
        horizontal_flip: mirror half of the training images.
        seed: of the addressed training noise.
    """

    instead = "to start from its weights give its exported folder as --model.diffusion"

    def __init__(
        self,
        diffusion: str | None = None,
        unet: dict[str, Any] | None = None,
        scheduler: dict[str, Any] | None = None,
        preconditioning: Literal["none", "edm"] = "none",
        dropout: float | None = None,
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
        if diffusion is not None and (preconditioning != "none" or scheduler is not None):
            raise InputError(
                "--model.scheduler and --model.preconditioning are those of --model.diffusion:"
                " leave them out, or train a fresh network (--model.diffusion null, --model.unet)"
            )
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
        self.ema_decay = ema_decay
        self.seed = seed
        check_seed(self)
        check_at_least(self, 0, "learning_rate", "weight_decay", "warmup_steps")
        if not all(0 <= beta < 1 for beta in betas):
            raise FieldError(self, "betas", f"must be in [0, 1), got {betas}")
        if not 0 <= ema_decay <= 1:
            raise FieldError(self, "ema_decay", f"must be in [0, 1], got {ema_decay}")
        if diffusion is None:
            self.scheduler = fresh_scheduler(preconditioning, scheduler or {})
            network = fresh_unet(unet or {})
        else:
            folder = resolve(diffusion)
            self.scheduler = load_scheduler(folder)
            network = load_unet(folder).train()  # diffusers loads in eval mode
        if dropout is not None:
            set_dropout(network, dropout)
        self.denoiser = denoiser_of(network, self.scheduler)
        levels.check(self.denoiser.schedule, self.denoiser.prediction_type)
        self.ema = self._begun_average()
        # In a tuple, so that the frozen guide is neither in checkpoints nor wrapped by strategies.
        self._guide: tuple[Classifier, ...] = (load_classifier(guide),) if guide else ()
        if compile:  # in place: the names of weights stay
            for module in (network, *self._guide):
                module.compile()
        self._unchecked = compile
        self._validated: tuple[Denoiser, ...] = ()
        self.last_update: Update | None = None
        self.settings = comparable(
            {
                **network.config,
                **self.scheduler.config,
                # The optimiser's are the checkpoint's own: others would be ignored.
                "learning_rate": learning_rate,
                "learning_rate_schedule": learning_rate_schedule,
                "warmup_steps": warmup_steps,
                "betas": betas,
                "weight_decay": weight_decay,
                "ema_decay": ema_decay,
                "mode": mode,
                "horizontal_flip": horizontal_flip,
                "seed": seed,
                "perturbation": perturbation,
                "levels": levels,
                "guide": folder_hash(resolve(guide)) if guide else None,
            }
        )

    def _begun_average(self) -> EMAModel:
        return EMAModel(
            self.unet.parameters(),
            decay=self.ema_decay,
            use_ema_warmup=True,
            inv_gamma=1.0,
            power=0.75,
        )

    def configure_model(self) -> None:
        """Shards the network where the trainer's strategy is Lightning's
        `ModelParallelStrategy`."""
        if self.device_mesh is not None and not self._sharded:
            shard(self.unet, self.device_mesh)
            self.ema = self._begun_average()

    @property
    def _sharded(self) -> bool:
        return isinstance(next(self.unet.parameters()), DTensor)

    @property
    def unet(self) -> Network:
        network: Network = self.denoiser.network
        return network

    @property
    def guide(self) -> Classifier | None:
        return self._guide[0] if self._guide else None

    def on_fit_start(self) -> None:
        precision, strategy = self.trainer.precision, self.trainer.strategy
        if precision not in PRECISIONS:
            raise InputError(
                f"--trainer.precision {precision} is not one of {', '.join(PRECISIONS)}: others"
                " lose small gradients, by which perturbations are ranked"
            )
        if not isinstance(strategy, STRATEGIES):
            raise InputError(
                f"--trainer.strategy {type(strategy).__name__}: a diffusion is trained by ddp, or"
                " sharded by ModelParallelStrategy (docs/guide/long_runs.md)"
            )
        self.ema.to(self.device)
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        check_denoiser(self.denoiser, data)
        if self.guide is not None:
            # Lightning sees to our modules alone, the guide is not among them.
            like = next(self.unet.parameters())
            check_classifier(self.guide.to(like.device, like.dtype), data)
            self.unasked = {"the guide": self.guide}
        skips = isinstance(self.perturbation, RankGaussian) and self.perturbation.skip_below > 0
        if self._sharded and skips:  # each call gathers weights of all, who would wait
            allowed = "must be 0 where the network is sharded: all devices have to call it as often"
            raise FieldError(self.perturbation, "skip_below", allowed)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = self.checked(batch)
        noise = Noise.of(self.seed, Stream.TRAIN, self.global_step).on(batch["sample"])
        images = batch["image"]
        if self.horizontal_flip:
            images = flip(images, noise)
        # Dropout is drawn from torch's generator, which no checkpoint holds.
        torch.manual_seed(int(noise.words(Purpose.AUGMENTATION, 1, 0, 1)[0, 0]))
        if self._unchecked:
            self._check_compiled(to_model(images), noise)
        update = self.losses(to_model(images), batch["label"], noise)
        self.last_update = Update(update.batch, update.losses.detach(), update.perturbation)
        return self.logged(update.losses.mean(), batch)

    def losses(self, x0: Tensor, labels: Tensor, noise: BatchNoise) -> Update:
        """The update's losses of images in model units under addressed noise."""
        level = self.levels.draw(self.denoiser.schedule, noise, x0)
        training_noise, delta = noise.normal(Purpose.TRAINING, x0), None
        batch = Batch(x0, labels, level, noise)
        if self.perturbation is not None:
            with self.searching():
                delta = self.perturbation.find(self.denoiser, self.guide, batch)
            training_noise = self.perturbation.mix(training_noise, delta, level)
        return Update(batch, denoising_loss(self.denoiser, x0, level, training_noise), delta)

    @contextmanager
    def searching(self) -> Iterator[None]:
        """The mode in which perturbations are looked for. The weights are frozen: a compiled
        network's backward pass would else compute their gradients too, to throw them away. Sharded
        ones stay as they are: those that are gathered for a call do not follow."""
        weights = () if self._sharded else self.denoiser.parameters()
        frozen = [weight for weight in weights if weight.requires_grad]
        for weight in frozen:
            weight.requires_grad_(False)
        try:
            with evaluating(self.denoiser) if self.mode == "efficient" else nullcontext():
                yield
        finally:
            for weight in frozen:
                weight.requires_grad_(True)

    def _check_compiled(self, x0: Tensor, noise: BatchNoise) -> None:
        """InputError where compiled modules have another gradient than the modules as written."""
        level = self.levels.draw(self.denoiser.schedule, noise, x0)

        def network(x: Tensor) -> Tensor:
            output: Tensor = self.denoiser(x, level)
            return output

        weights = list(self.unet.parameters())
        with evaluating(self.denoiser):  # without dropout's draws
            cosines = {}
            if not self._sharded:  # whose weights autograd alone cannot ask for
                cosines["the diffusion network's weights"] = compiled_cosine(network, x0, weights)
            with self.searching():
                cosines["the diffusion network"] = compiled_cosine(network, x0)
                if (guide := self.guide) is not None:
                    cosines["the guide"] = compiled_cosine(lambda x: guide(to_pixels(x)), x0)
        for name, cosine in cosines.items():
            # Right on all processes or on none.
            if not self.trainer.strategy.reduce_boolean_decision(cosine >= COMPILED_COSINE):
                raise InputError(
                    f"torch.compile gets the gradient of {name} wrong here (mean cosine"
                    f" {cosine:.3f} to the module's as written): set --model.compile=false"
                )
        self._unchecked = False

    def on_validation_epoch_start(self) -> None:
        # In a tuple, so that it is neither in checkpoints nor among the weights.
        self._validated = (self.averaged_denoiser(),)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Plain denoising loss of the averaged weights under fixed noise: comparable over time."""
        batch = self.checked(batch)
        noise = Noise.of(0, Stream.PROBE).on(batch["sample"])  # whatever the training's seed
        x0 = to_model(batch["image"].float())
        (denoiser,) = self._validated
        level = self.levels.draw(denoiser.schedule, noise, x0)
        losses = denoising_loss(denoiser, x0, level, noise.normal(Purpose.TRAINING, x0))
        self.log(
            "validation/loss", losses.mean(), prog_bar=True, batch_size=len(x0), sync_dist=True
        )

    def on_validation_epoch_end(self) -> None:
        self._validated = ()

    def averaged_denoiser(self) -> Denoiser:
        """A whole copy with the averaged weights, in eval mode and float32 whatever the training is
        in. Where weights are sharded it takes all processes to make one."""
        if self._sharded:
            denoiser = denoiser_of(another(self.unet), self.scheduler).to(self.device)
        else:
            denoiser = copy.deepcopy(self.denoiser)
        averages = zip(denoiser.network.parameters(), self.ema.shadow_params, strict=True)
        for weight, average in averages:
            weight.data.copy_(whole(average))
        return denoiser.float().eval().requires_grad_(False)

    def export(self, run: Path) -> tuple[str, Path]:
        denoiser, folder = self.averaged_denoiser(), run / "diffusion"
        if self.trainer.is_global_zero:
            save_diffusion(folder, denoiser.network, self.scheduler)
        return f"--model.denoisers.{'addt' if self.perturbation else 'ddpm'}", folder

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimiser = torch.optim.AdamW(
            self.denoiser.parameters(),
            lr=self.learning_rate,
            betas=self.betas,
            weight_decay=self.weight_decay,
        )
        constant = self.learning_rate_schedule == "constant"
        updates = self.count_updates(shape_the_rate=not constant)
        schedule = get_scheduler(
            # diffusers' "constant" has no warm-up.
            "constant_with_warmup" if constant else self.learning_rate_schedule,
            optimiser,
            num_warmup_steps=self.warmup_steps,
            num_training_steps=None if constant else int(updates),
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.ema.step(self.unet.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        average = self.ema.state_dict()
        average["shadow_params"] = [whole(value).cpu() for value in average["shadow_params"]]
        checkpoint["ema"] = average

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        like = self.ema.shadow_params
        self.ema.load_state_dict(checkpoint["ema"])
        self.ema.shadow_params = [
            parted(*pair) for pair in zip(self.ema.shadow_params, like, strict=True)
        ]
