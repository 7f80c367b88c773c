"""What a diffusion training logs while it runs, beside its loss."""

import copy
import time

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torchmetrics.image.fid import FrechetInceptionDistance

from hetpure.attacks import PGD, Attack
from hetpure.attacks.gradient import unfolded
from hetpure.classifiers import LastFeatures
from hetpure.compatibility import check_answers, check_defense
from hetpure.defense import Defense
from hetpure.errors import FieldError, check_at_least
from hetpure.evaluation.protocol import Block, Cell, Protocol, evaluate_cell
from hetpure.noise import Noise, Stream, check_seed
from hetpure.purifiers import Purifier, UniformPurifier
from hetpure.sampling import draw_images
from hetpure.weights import load_classifier
from lightning_modules.batches import block_of
from lightning_modules.callbacks import EveryUpdates
from lightning_modules.diffusion import DiffusionTraining, Update
from lightning_modules.loggers import log_histogram, log_numbers

BUCKETS = 4
CHUNK = 128  # images at once


class TrainingMonitor(Callback):
    """Logs, every `log_every_n_steps` of the trainer, what an update was made of.

    `train/loss_<first>_<last>`: mean loss of the images whose level lies between these indices of
    the schedule; `train/objective_before`, `train/objective_after`: what CGPO raises, under the
    perturbation that it began with and the one that it found, on the same noise; `train/lambda`,
    `train/gradient_norm` (before clipping), `train/ema_decay`, `train/images_per_second` (of
    training alone); and how the perturbations are distributed.
    """

    def __init__(self) -> None:
        self._images, self._seconds, self._began = 0, 0.0, 0.0
        self._objective: dict[str, float] | None = None  # of an update that is to be logged

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        self._began = time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        """Asks for the objective: the weights are still those that were searched with."""
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = every and (trainer.global_step + 1) % every == 0
        if due and isinstance(pl_module, DiffusionTraining):
            self._objective = objective(pl_module)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        self._seconds += time.perf_counter() - self._began
        self._images += len(batch["image"]) * trainer.world_size
        if self._objective is None or not isinstance(pl_module, DiffusionTraining):
            return
        update = pl_module.last_update
        assert update is not None and pl_module.gradient_norm is not None
        values = described(pl_module, update) | self._objective
        values["train/images_per_second"] = self._images / self._seconds
        values["train/ema_decay"] = float(pl_module.ema.cur_decay_value or 0.0)
        values["train/gradient_norm"] = float(pl_module.gradient_norm)
        self._images, self._seconds, self._objective = 0, 0.0, None
        log(trainer, pl_module, values, shown="train/images_per_second")
        for logger in trainer.loggers:
            if update.perturbation is not None:
                log_histogram(logger, "perturbation", update.perturbation, trainer.global_step)


def log(
    trainer: L.Trainer, module: L.LightningModule, values: dict[str, float], *, shown: str
) -> None:
    """To the loggers at this very update, and to whoever reads `callback_metrics`; one of the
    values is shown in the progress bar."""
    for logger in trainer.loggers:
        log_numbers(logger, values, trainer.global_step)
    for name, value in values.items():
        module.log(name, value, logger=False, prog_bar=name == shown)


def objective(module: DiffusionTraining) -> dict[str, float]:
    """The mean objective of the last update's batch, before and after the search."""
    update, perturbation = module.last_update, module.perturbation
    if update is None or perturbation is None or perturbation.objective is None:
        return {}
    assert update.perturbation is not None
    values = {}
    for name, delta in (
        ("before", perturbation.start(update.batch)),
        ("after", update.perturbation),
    ):
        with module.searching():
            score = perturbation.score(module.denoiser, module.guide, update.batch, delta)
        values[f"train/objective_{name}"] = float(score.mean())
    return values


def described(module: DiffusionTraining, update: Update) -> dict[str, float]:
    """The losses of an update by level, and its lambda; a bucket without images is left out."""
    level, schedule = update.batch.level, module.denoiser.schedule
    sigmas = (level.spread / level.signal).flatten()
    index = torch.tensor([schedule.nearest(sigma) for sigma in sigmas.tolist()])
    losses, values = update.losses.cpu(), {}
    for bucket in torch.arange(len(schedule)).tensor_split(BUCKETS):
        members = torch.isin(index, bucket)
        if members.any():
            values[f"train/loss_{bucket[0]}_{bucket[-1]}"] = float(losses[members].mean())
    ratio = None if module.perturbation is None else module.perturbation.ratio(level)
    if ratio is not None:
        values["train/lambda"] = float(ratio.mean())
    return values


class RobustProbe(EveryUpdates):
    """Attacks the averaged weights, as a purifier, on a few validation images under noise that the
    attacker knows (DW-box): what the training is for, and cheap, since one draw is all. An attack
    of all mask policies (`mask: all`) breaks an image where one of them does.

    Logs `probe/robust` and `probe/clean`, the shares of images that stay right, before the first
    update (to the loggers) and then every `every_n_steps`. A ModelCheckpoint with
    `monitor: probe/robust`, `mode: max` and as many steps between two keeps the best.

    Args:
        classifier: packaged name or folder of the classifier that is defended; by default the
            training's guide.
        purifier: what the network is used in.
        attack: on it.
        images: the first so many validation images.
        every_n_steps: updates between two probes.
        seed: of the noise, which is the same in every probe.
    """

    def __init__(
        self,
        classifier: str | None = None,
        purifier: Purifier = UniformPurifier(steps=20),  # noqa: B008 (frozen)
        attack: Attack = PGD(steps=5, eot_samples=1),  # noqa: B008 (frozen)
        images: int = 64,
        every_n_steps: int = 500,
        seed: int = 0,
    ) -> None:
        self.images = images
        self.every_n_steps = every_n_steps
        check_at_least(self, 1, "images", "every_n_steps")
        self.classifier = None if classifier is None else load_classifier(classifier)
        self.purifier = purifier
        self.attack = attack
        self.seed = seed
        check_seed(self)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, DiffusionTraining) and trainer.global_step == 0:
            rank_zero_info(f"RobustProbe: attacking {self.images} images before the first update")
            # Not to `callback_metrics`: what is logged here counts for the whole epoch.
            values = self.measure(trainer, pl_module)
            for logger in trainer.loggers:
                log_numbers(logger, values, trainer.global_step)

    def look(self, trainer: L.Trainer, module: DiffusionTraining) -> None:
        log(trainer, module, self.measure(trainer, module), shown="probe/robust")

    def measure(self, trainer: L.Trainer, module: DiffusionTraining) -> dict[str, float]:
        """Both shares, of the averaged weights as they are now."""
        block = first_images(trainer, self.images)
        classifier = self.classifier or module.guide
        if classifier is None:
            raise FieldError(self, "classifier", "is needed: this training has no guide")
        # A copy: the guide has the training's precision.
        classifier = copy.deepcopy(classifier).float()
        defense = Defense(classifier, self.purifier, module.averaged_denoiser()).to(module.device)
        check_defense(defense, trainer.datamodule)  # type: ignore[attr-defined]
        check_answers(classifier, block.images, "the RobustProbe's classifier")
        once = Protocol(report_draws=1, selection_draws=1)
        with torch.enable_grad():
            outcomes = [
                evaluate_cell(
                    "", defense, Cell(name, attack, ("forward", "reverse")), block, once, self.seed
                )
                for name, attack in unfolded(self.attack, defense).items()
            ]
        # Of each image the records under all mask policies; the last candidate is the clean image.
        images = list(zip(*(outcome.records for outcome in outcomes), strict=True))
        clean = sum(records[0].selection[-1] for records in images)
        robust = sum(all(r.predictions == [r.label] for r in records) for records in images)
        return {"probe/clean": clean / len(images), "probe/robust": robust / len(images)}


class FeatureFID(EveryUpdates):
    """Logs `fid`: the Frechet distance between validation images and samples of the averaged
    weights, in the features that a classifier's last layer reads (torchmetrics). It is no
    published FID: that one's features are another network's.

    Args:
        classifier: packaged name or folder of the classifier.
        images: so many of each; the fewer, the higher the distance of equal distributions.
        network_calls: of each sample.
        every_n_steps: updates between two.
        seed: of the samples' noise.
    """

    def __init__(
        self,
        classifier: str,
        images: int = 500,
        network_calls: int = 50,
        every_n_steps: int = 1000,
        seed: int = 0,
    ) -> None:
        self.images = images
        self.network_calls = network_calls
        self.every_n_steps = every_n_steps
        check_at_least(self, 2, "images")
        check_at_least(self, 1, "network_calls", "every_n_steps")
        self.features = LastFeatures(load_classifier(classifier))
        self.seed = seed
        check_seed(self)

    def look(self, trainer: L.Trainer, module: DiffusionTraining) -> None:
        log(trainer, module, {"fid": self.measure(trainer, module)}, shown="fid")

    def measure(self, trainer: L.Trainer, module: DiffusionTraining) -> float:
        """The distance of the averaged weights as they are now."""
        distance = FrechetInceptionDistance(
            self.features, normalize=True, sync_on_compute=False
        ).to(module.device)  # every process has the same images
        denoiser, block = module.averaged_denoiser(), first_images(trainer, self.images)
        parts = (torch.split(tensor, CHUNK) for tensor in (block.images, block.samples))
        for images, samples in zip(*parts, strict=True):
            noise = Noise.of(self.seed, Stream.PROBE).on(samples)
            drawn = draw_images(denoiser, noise, images, network_calls=self.network_calls)
            distance.update(images, real=True)
            distance.update(drawn, real=False)
        return float(distance.compute())


def first_images(trainer: L.Trainer, count: int) -> Block:
    """The first validation images of the trainer's data, on its device."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    blocks: list[Block] = []
    for batch in data.val_dataloader():
        blocks.append(block_of(batch, data, trainer.strategy.root_device))
        if sum(len(block.images) for block in blocks) >= count:
            break
    parts = [(block.images, block.labels, block.samples) for block in blocks]
    return Block(*map(torch.cat, zip(*parts, strict=True))).first(count)
