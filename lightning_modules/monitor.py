"""What a diffusion training tells while it runs, beside its loss."""

import copy
import time
from itertools import pairwise

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from hetpure.attacks import PGD, Attack
from hetpure.attacks.null import NullAttack
from hetpure.classifiers import Classifier
from hetpure.defense import Defense
from hetpure.errors import InputError
from hetpure.evaluation.protocol import Block, Cell, Protocol, evaluate_attack
from hetpure.noise import Noise, Stream
from hetpure.purifiers import Purifier, UniformPurifier
from hetpure.sampling import draw_images
from hetpure.weights import load_classifier
from lightning_modules.diffusion import DiffusionTraining, Update

BUCKETS = 4
CHUNK = 128  # images at once


class TrainingMonitor(Callback):
    """Logs, every `log_every_n_steps` of the trainer, what an update was made of.

    `train/loss_<first>_<last>`: mean loss of the rows whose level lies between these indices of
    the schedule; `train/guide_before`, `train/guide_after`: the objective under the first and the
    last perturbation that was asked; `train/lambda`, `train/gradient_norm` (before clipping),
    `train/ema_decay`, `train/images_per_second`; and a histogram of the perturbations.
    """

    def __init__(self) -> None:
        self._images = 0
        self._since = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._images, self._since = 0, time.perf_counter()

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if _due(trainer):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            norm = torch.linalg.vector_norm(
                torch.stack([torch.linalg.vector_norm(gradient) for gradient in gradients])
            )
            pl_module.log("train/gradient_norm", norm)

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: object,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        if not isinstance(pl_module, DiffusionTraining) or pl_module.last_update is None:
            return
        self._images += len(batch["image"]) * trainer.world_size
        if not _due(trainer, after=True):
            return
        seconds = time.perf_counter() - self._since
        rate = self._images / seconds
        self._images, self._since = 0, time.perf_counter()
        pl_module.log("train/images_per_second", rate, prog_bar=True)
        pl_module.log("train/ema_decay", float(pl_module.ema.cur_decay_value or 0.0))
        pl_module.log_dict(described(pl_module, pl_module.last_update))
        found = pl_module.last_update.found
        for logger in trainer.loggers:
            if found is not None and isinstance(logger, TensorBoardLogger):
                logger.experiment.add_histogram(
                    "perturbation", found.perturbation.float(), trainer.global_step
                )


def described(module: DiffusionTraining, update: Update) -> dict[str, Tensor]:
    """The scalars of an update; a bucket without rows is left out."""
    levels, count = module.denoiser.schedule.alphas_cumprod, len(module.denoiser.schedule)
    edges = [k * count // BUCKETS for k in range(BUCKETS + 1)]
    # Between the last level of a bucket and the first of the next.
    middles = [(levels[edge - 1] + levels[edge]) / 2 for edge in edges[1:-1]]
    alpha = update.level.signal.flatten() ** 2
    bucket = (alpha[:, None] < alpha.new_tensor(middles)).sum(1)
    found = {}
    for k, (first, after) in enumerate(pairwise(edges)):
        rows = bucket == k
        if rows.any():
            found[f"train/loss_{first}_{after - 1}"] = update.losses.detach()[rows].mean()
    if module.perturbation is not None and update.found is not None:
        ratio = module.perturbation.ratio(update.level)
        if ratio is not None:
            found["train/lambda"] = ratio.mean()
        for name, values in (("before", update.found.before), ("after", update.found.after)):
            if values.isfinite().any():
                found[f"train/guide_{name}"] = values.nanmean()
    return found


class RobustProbe(Callback):
    """Attacks the averaged weights, as a purifier, on a few validation images under noise that the
    attacker knows (DW-box): what the training is for, and cheap, since one draw is all.

    Logs `probe/robust` and `probe/clean`, the shares of images that stay right, before the first
    update and then every `every_n_steps`. A ModelCheckpoint with `monitor: probe/robust` and
    `mode: max` keeps the best.

    Args:
        classifier: packaged name or folder of the classifier that is defended.
        purifier: what the network is used in.
        attack: on it.
        images: the first so many validation images.
        every_n_steps: updates between two probes.
        seed: of the noise, which is the same in every probe.
    """

    def __init__(
        self,
        classifier: str,
        purifier: Purifier = UniformPurifier(steps=20),  # noqa: B008 (frozen)
        attack: Attack = PGD(steps=5, eot_samples=1),  # noqa: B008 (frozen)
        images: int = 64,
        every_n_steps: int = 500,
        seed: int = 0,
    ) -> None:
        if images < 1 or every_n_steps < 1:
            raise InputError("a RobustProbe needs images and every_n_steps of 1 or more")
        self.classifier = load_classifier(classifier)
        self.purifier = purifier
        self.attack = attack
        self.images = images
        self.every_n_steps = every_n_steps
        self.seed = seed
        self._batch: dict[str, Tensor] | None = None
        self._probed_at = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batch = first_images(trainer, self.images)
        self._probe(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        if trainer.global_step % self.every_n_steps == 0:
            self._probe(trainer, pl_module)

    def _probe(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not isinstance(pl_module, DiffusionTraining) or self._probed_at == trainer.global_step:
            return
        assert self._batch is not None
        self._probed_at = trainer.global_step
        with pl_module.averaged():  # a defence freezes its networks: not those that are trained
            denoiser = copy.deepcopy(pl_module.denoiser)
        defense = Defense(self.classifier, self.purifier, denoiser).to(pl_module.device)
        block = Block(
            *(self._batch[key].to(pl_module.device) for key in ("image", "label", "sample"))
        )
        pl_module.log("probe/clean", self._accuracy(defense, NullAttack(), block))
        pl_module.log("probe/robust", self._accuracy(defense, self.attack, block), prog_bar=True)

    def _accuracy(self, defense: Defense, attack: Attack, block: Block) -> float:
        cell = Cell("probe", attack, ("forward", "reverse"))
        once = Protocol(report_draws=1, selection_draws=1)
        with torch.enable_grad():
            records = evaluate_attack("probe", defense, cell, block, once, self.seed).records
        return sum(record.predictions[0] == record.label for record in records) / len(records)


class FeatureFID(Callback):
    """Logs `fid`: the Frechet distance between validation images and samples of the averaged
    weights, in the features that a classifier's last layer reads (torchmetrics). It is no
    published FID: that one's features are another network's.

    Args:
        classifier: packaged name or folder of the classifier.
        images: so many of each; fewer than the features is too few.
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
        if images < 2 or every_n_steps < 1:
            raise InputError("a FeatureFID needs 2 images or more, and every_n_steps of 1 or more")
        self.features = LastFeatures(load_classifier(classifier))
        self.images = images
        self.network_calls = network_calls
        self.every_n_steps = every_n_steps
        self.seed = seed

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        if not isinstance(pl_module, DiffusionTraining):
            return
        if trainer.global_step % self.every_n_steps == 0:
            pl_module.log("fid", self.distance(trainer, pl_module), prog_bar=True)

    def distance(self, trainer: L.Trainer, module: DiffusionTraining) -> float:
        """Of what the averaged weights draw now."""
        distance = FrechetInceptionDistance(self.features, normalize=True).to(module.device)
        batch = first_images(trainer, self.images)
        for images in batch["image"].split(CHUNK):
            distance.update(images.to(module.device), real=True)
        with module.averaged():
            for samples in batch["sample"].split(CHUNK):
                noise = Noise.of(self.seed, Stream.PROBE).on(samples.to(module.device))
                like = batch["image"][: len(samples)].to(module.device)
                drawn = draw_images(module.denoiser, noise, like, network_calls=self.network_calls)
                distance.update(drawn, real=False)
        return float(distance.compute())


class LastFeatures(nn.Module):
    """What a classifier's last linear layer reads, for images in pixel [0, 1]: (B, features)."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier.eval()
        linear = [module for module in classifier.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise InputError("FID's features are those of a last linear layer: there is none")
        self.last = linear[-1]
        self.num_features = self.last.in_features

    def forward(self, images: Tensor) -> Tensor:
        seen: list[Tensor] = []
        hook = self.last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        try:
            with torch.no_grad():
                self.classifier(images)
        finally:
            hook.remove()
        return seen[0].flatten(1)


def first_images(trainer: L.Trainer, count: int) -> dict[str, Tensor]:
    """The first validation images of the trainer's data: image, label and sample."""
    loader = trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
    found: list[dict[str, Tensor]] = []
    for batch in loader:
        found.append(batch)
        if sum(len(one["image"]) for one in found) >= count:
            break
    return {key: torch.cat([one[key] for one in found])[:count] for key in found[0]}


def _due(trainer: L.Trainer, *, after: bool = False) -> bool:
    """Whether this update is one that the trainer logs."""
    update = trainer.global_step if after else trainer.global_step + 1
    return update % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
