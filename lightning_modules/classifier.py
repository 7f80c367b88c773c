"""Training of a classifier: clean, the one to defend and the guide of ADDT, or adversarial."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from hetpure.adversarial_training import AdversarialTraining, adversarial_loss, perturb
from hetpure.augmentation import flip, shift
from hetpure.compatibility import check_classifier
from hetpure.errors import FieldError, check_at_least, check_fraction
from hetpure.noise import BatchNoise, Noise, Stream, check_seed
from hetpure.weights import save_classifier
from hetpure.weights.classifier import build_classifier, takes
from lightning_modules.resume import comparable
from lightning_modules.training import Training


class ClassifierTraining(Training):
    """Trains a classifier with Nesterov SGD and a one-cycle learning rate.

    Args:
        architecture: name of the network's class in `hetpure.classifiers`.
        network: its keyword arguments. `num_classes` (by default 10) and `in_channels` (as many
            as `mean` has numbers) may stand here too where its class takes none.
        mean: of the normalisation, one number a channel, pixel units.
        std: of the normalisation, one number a channel, pixel units.
        learning_rate: peak of the one-cycle schedule.
        momentum: of SGD.
        weight_decay: of SGD.
        label_smoothing: of the cross-entropy.
        shift_pixels: random translation of the training images; half of them are mirrored.
        adversarial: adversarial training; None trains on clean images.
        seed: of the addressed augmentation and perturbations.
    """

    instead = "give the same, or train anew without --ckpt_path"

    def __init__(
        self,
        architecture: str = "WideResNet",
        network: dict[str, Any] | None = None,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.5,),
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        label_smoothing: float = 0.0,
        shift_pixels: int = 2,
        adversarial: AdversarialTraining | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        network = {"num_classes": 10, "in_channels": len(mean), **(network or {})}
        self.description: dict[str, Any] = {
            "architecture": architecture,
            "network": network,
            "mean": list(mean),
            "std": list(std),
        }
        for name in ("num_classes", "in_channels"):
            if not takes(architecture, name):
                self.description[name] = network.pop(name)
        where = Path(f"--model.architecture {architecture} with its network, mean and std")
        self.classifier = build_classifier(self.description, where=where)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.label_smoothing = label_smoothing
        self.shift_pixels = shift_pixels
        self.adversarial = adversarial
        self.seed = seed
        check_seed(self)
        check_at_least(self, 0, "learning_rate", "weight_decay", "shift_pixels")
        check_fraction(self, "momentum")  # Nesterov's needs some
        if not 0 <= label_smoothing <= 1:
            raise FieldError(self, "label_smoothing", f"must be in [0, 1], got {label_smoothing}")
        self.accuracy = MulticlassAccuracy(self.classifier.num_classes, average="micro")
        self.robust_accuracy = MulticlassAccuracy(self.classifier.num_classes, average="micro")
        self.unasked = {"the classifier": self.classifier}
        self.settings = comparable(
            self.description
            | {
                "learning_rate": learning_rate,
                "momentum": momentum,
                "weight_decay": weight_decay,
                "label_smoothing": label_smoothing,
                "shift_pixels": shift_pixels,
                "adversarial": adversarial,
                "seed": seed,
            }
        )

    def on_fit_start(self) -> None:
        check_classifier(self.classifier, self.trainer.datamodule)  # type: ignore[attr-defined]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        batch = self.checked(batch)
        noise = Noise.of(self.seed, Stream.TRAIN, self.global_step).on(batch["sample"])
        images = shift(flip(batch["image"], noise), noise, self.shift_pixels)
        return self.logged(self._loss(images, batch["label"], noise), batch)

    def _loss(self, images: Tensor, labels: Tensor, noise: BatchNoise) -> Tensor:
        smoothing = self.label_smoothing
        if self.adversarial is None:
            return F.cross_entropy(self.classifier(images), labels, label_smoothing=smoothing)
        return adversarial_loss(
            self.classifier, images, labels, noise, self.adversarial, label_smoothing=smoothing
        )

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        batch = self.checked(batch)
        if self.adversarial is not None:
            # Before the clean images: autocast keeps the weights it has cast, and older releases of
            # torch cannot differentiate through those cast in Lightning's inference mode.
            adversarial = self._perturb_fixed(batch, self.adversarial)
            self.robust_accuracy(self.classifier(adversarial), batch["label"])
            self.log("validation/robust_accuracy", self.robust_accuracy, prog_bar=True)
        self.accuracy(self.classifier(batch["image"]), batch["label"])
        self.log("validation/accuracy", self.accuracy, prog_bar=True, on_epoch=True, on_step=False)

    def _perturb_fixed(self, batch: dict[str, Tensor], against: AdversarialTraining) -> Tensor:
        """The training attack under fixed noise: comparable over time."""
        with torch.inference_mode(False), torch.enable_grad():
            # Copies, since no graph may hold inference mode's own tensors.
            image, label, sample = (batch[key].clone() for key in ("image", "label", "sample"))
            noise = Noise.of(self.seed, Stream.PROBE).on(sample)
            return perturb(self.classifier, image, label, noise, against)

    def export(self, run: Path) -> tuple[str, Path]:
        folder = run / "classifier"
        if self.trainer.is_global_zero:
            save_classifier(folder, self.classifier, self.description)
        return "--model.classifier", folder

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimiser = torch.optim.SGD(
            self.classifier.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=True,
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser,
            max_lr=self.learning_rate,
            total_steps=int(self.count_updates(shape_the_rate=True)),
        )
        return {"optimizer": optimiser, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
