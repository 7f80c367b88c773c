"""A training that is stopped and goes on: the same weights, the same batches; or not at all."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hetpure.addt import RankGaussian
from hetpure.adversarial_training import AdversarialTraining
from hetpure.errors import InputError
from hetpure.levels import DiscreteLevels
from hetpure.numbers import Number
from hetpure.weights import load_denoiser
from lightning_modules.callbacks import ExportWeights
from lightning_modules.classifier import ClassifierTraining
from lightning_modules.diffusion import DiffusionTraining
from lightning_modules.training import Training
from tests.lightning_modules.trainings import (
    LABEL_FREE,
    UNET,
    FewImages,
    Seen,
    classifier,
    diffusion,
    same_weights,
    saving,
    trainer,
)

BATCHES, BATCH = 5, 20  # an epoch
ADDT = {"unet": UNET | {"dropout": 0.3}, "perturbation": LABEL_FREE}
NETWORK = {"depth": 10, "widen_factor": 1}
PGD = AdversarialTraining("pgd", Number(0.1), Number(0.1), steps=1)
Whole = tuple[Path, Training, list[list[int]]]


def train(
    folder: Path,
    updates: int,
    resume: Path | None = None,
    *,
    module: Training | None = None,
    limit: float = 1.0,
    at_epochs: bool | None = None,
    accumulated: int = 1,
    kept: slice = slice(BATCHES * BATCH),
    batch: int = BATCH,
    **data: Any,
) -> tuple[Training, list[list[int]]]:
    """A training that saves every update, by us and as Lightning does by itself; its batches."""
    module = module or diffusion(**ADDT)
    torch.manual_seed(1 if resume is None else 2)  # nothing but the checkpoint may matter
    fitting = trainer(
        folder,
        seen := Seen(),
        ExportWeights(),
        saving(folder),
        ModelCheckpoint(
            folder, "lightning-{step}", save_top_k=-1, save_on_train_epoch_end=at_epochs
        ),
        max_steps=updates,
        limit_val_batches=1,
        val_check_interval=2,
        limit_train_batches=limit,
        accumulate_grad_batches=accumulated,
        gradient_clip_val=1.0,
    )
    images = FewImages(0, batch, **data)
    images.kept = kept
    fitting.fit(module, images, ckpt_path=resume, weights_only=True)
    return module, seen.samples


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(folder, 8)


def state(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


@pytest.mark.parametrize(
    ("stopped", "workers"), [(5, 0), (3, 2), (7, 0)], ids=["epoch's end", "mid, workers", "second"]
)
def test_a_resumed_training_ends_with_the_same_weights(
    stopped: int, workers: int, whole: Whole, tmp_path: Path
) -> None:
    """Bit for bit, average and optimiser included, with dropout, at an epoch's end and within."""
    folder, module, samples = whole
    resumed, rest = train(tmp_path, 8, folder / f"step={stopped}.ckpt", num_workers=workers)
    assert rest == samples[stopped:]
    assert same_weights(resumed, module)
    ours, theirs = state(tmp_path / "step=8.ckpt"), state(folder / "step=8.ckpt")
    averages = zip(ours["ema"]["shadow_params"], theirs["ema"]["shadow_params"], strict=True)
    assert all(torch.equal(*pair) for pair in averages)
    moments, expected = (content["optimizer_states"][0]["state"] for content in (ours, theirs))
    assert all(torch.equal(moments[k]["exp_avg_sq"], expected[k]["exp_avg_sq"]) for k in expected)


@pytest.mark.parametrize("stopped", [2, 3], ids=["mid", "epoch's end"])
def test_so_does_a_classifiers(stopped: int, tmp_path: Path) -> None:
    """Bit for bit, the optimiser's momenta too."""
    ends = []
    for folder, resume in (("whole", None), ("rest", f"whole/step={stopped}.ckpt")):
        fitting = trainer(tmp_path, saving(tmp_path / folder), max_epochs=2, limit_val_batches=0)
        torch.manual_seed(0)
        module = ClassifierTraining(network=NETWORK, adversarial=PGD)
        path = None if resume is None else tmp_path / resume
        fitting.fit(module, FewImages(12, 4), ckpt_path=path, weights_only=True)
        ends.append(state(tmp_path / folder / "step=6.ckpt"))
    whole, rest = ends
    assert all(
        torch.equal(rest["state_dict"][k], value) for k, value in whole["state_dict"].items()
    )
    ours, theirs = (end["optimizer_states"][0]["state"] for end in ends)
    assert all(torch.equal(ours[k]["momentum_buffer"], theirs[k]["momentum_buffer"]) for k in ours)


@pytest.mark.parametrize(
    ("ended", "limit"), [(3, 1.0), (5, 1.0), (4, 3)], ids=["mid", "epoch's end", "shortened"]
)
def test_a_training_that_ended_goes_on_where_it_ended(
    ended: int, limit: float, whole: Whole, tmp_path: Path
) -> None:
    """`end.ckpt` of fewer updates, and more of them asked for."""
    module, samples = whole[1:] if limit == 1 else train(tmp_path / "whole", 8, limit=limit)
    train(tmp_path / "short", ended, limit=limit)
    end = tmp_path / "short" / "checkpoints" / "end.ckpt"
    resumed, rest = train(tmp_path / "rest", 8, end, limit=limit)
    assert rest == samples[ended:]
    assert same_weights(resumed, module)


@pytest.mark.parametrize(("stopped", "at_epochs"), [(5, True), (2, False)])
def test_a_training_goes_on_from_lightnings_own_checkpoints(
    stopped: int, at_epochs: bool, whole: Whole, tmp_path: Path
) -> None:
    """Saved when an epoch has ended, and after a validation within one."""
    train(tmp_path / "first", stopped + 1, at_epochs=at_epochs)
    path = tmp_path / "first" / f"lightning-step={stopped}.ckpt"
    resumed, rest = train(tmp_path / "rest", 8, path, at_epochs=at_epochs)
    assert rest == whole[2][stopped:]
    assert same_weights(resumed, whole[1])


@pytest.mark.parametrize("stopped", [3, 5], ids=["mid", "epoch's end"])
def test_an_epoch_goes_on_in_other_batches(stopped: int, whole: Whole, tmp_path: Path) -> None:
    """Every image of the epoch once, then a whole epoch: the epoch ends where its images do."""
    folder, _, samples = whole
    left = 2 * (BATCHES - stopped)
    updates = stopped + left + 2 * BATCHES
    rest = train(tmp_path, updates, folder / f"step={stopped}.ckpt", batch=BATCH // 2)[1]
    seen = [sample for batch in samples[:stopped] for sample in batch]
    again = [sample for batch in rest[:left] for sample in batch]
    assert sorted(seen + again) == sorted({*seen, *again}) and len(seen + again) == 100
    assert len({sample for batch in rest[left:] for sample in batch}) == 100
    assert samples[0] != samples[BATCHES], "each epoch has its own order"


@pytest.mark.parametrize(
    ("stopped", "changes", "message"),
    [
        (3, {"batch": 40}, "after 60 images of an epoch, in batches of 20 on 1"),
        (3, {"seed": 1}, "whose data have the seed 0: with 1 its epoch"),
        # As where a machine has the packaged subset only; as many of them, even.
        (3, {"kept": slice(1, 101)}, "on other images than these 100"),
        (5, {"kept": slice(1, 101)}, "on other images than these 100"),
    ],
    ids=["batches", "order", "images", "images at an epoch's end"],
)
def test_other_data_do_not_go_on(
    stopped: int, changes: dict[str, Any], message: str, whole: Whole, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path, 8, whole[0] / f"step={stopped}.ckpt", **changes)


def test_a_checkpoint_with_no_update_left_is_exported(whole: Whole, tmp_path: Path) -> None:
    """So is the best one: its averaged weights, and nothing is trained."""
    path = whole[0] / "step=3.ckpt"
    _, seen = train(tmp_path, 3, path)
    assert not seen
    exported = load_denoiser(tmp_path / "diffusion").network.parameters()
    pairs = zip(exported, state(path)["ema"]["shadow_params"], strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


GUIDED = {"perturbation": RankGaussian(steps=1), "guide": "fashion_mnist_wrn"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": UNET | {"block_out_channels": [4, 12]}}, "block_out_channels"),
        ({"scheduler": {"prediction_type": "v_prediction"}}, "prediction_type"),
        ({"learning_rate": 1e-5}, "learning_rate is 0.001, that of --model is 1e-05"),
        ({"weight_decay": 0.1}, "weight_decay is 1e-06, that"),
        ({"perturbation": None}, "perturbation"),
        ({"perturbation": replace(RankGaussian(steps=1), scale=0.06), **GUIDED}, "guide|perturb"),
        ({"levels": DiscreteLevels(highest=500)}, "levels"),
        ({"mode": "reference"}, "mode"),
        ({"learning_rate_schedule": "cosine"}, "learning_rate_schedule"),
        ({"warmup_steps": 2}, "warmup_steps"),
        ({"horizontal_flip": False}, "horizontal_flip"),
        ({"seed": 1}, "seed"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_training_does_not_go_on(
    changes: dict[str, Any], message: str, whole: Whole
) -> None:
    """Half a training of one kind and half of another is told from neither by its weights."""
    module = diffusion(**ADDT | changes)
    with pytest.raises(InputError, match=f"another training: its ({message})"):
        module.on_load_checkpoint(state(whole[0] / "step=3.ckpt"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.01}, r"learning_rate is 0\.1, that of --model is 0\.01"),
        ({"momentum": 0.8}, "momentum is 0.9"),
        ({"weight_decay": 0.0}, "weight_decay is 0.0005"),
        ({"label_smoothing": 0.1}, "label_smoothing is 0.0"),
        ({"shift_pixels": 0}, "shift_pixels is 2"),
        ({"seed": 1}, "seed is 0"),
        ({"mean": [0.4]}, r"mean is \[0\.5\]"),
        ({"std": [0.4]}, r"std is \[0\.5\]"),
        ({"network": {**NETWORK, "dropout": 0.3}}, "network is {"),
        ({"adversarial": None}, r"adversarial is .AdversarialTraining\(.*is .None."),
        ({"adversarial": replace(PGD, steps=2)}, "adversarial is .*steps=1.*steps=2"),
        ({"adversarial": replace(PGD, epsilon=Number(0.2))}, "adversarial is .*0.1.*0.2"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_another_classifiers_training_does_not_go_on(changes: dict[str, Any], message: str) -> None:
    checkpoint: dict[str, Any] = {}
    settings: dict[str, Any] = {"network": NETWORK, "adversarial": PGD}
    ClassifierTraining(**settings).on_save_checkpoint(checkpoint)
    ClassifierTraining(**settings).on_load_checkpoint(checkpoint)
    with pytest.raises(InputError, match=f"another training: its {message}.*without --ckpt_path"):
        ClassifierTraining(**settings | changes).on_load_checkpoint(checkpoint)


def test_what_is_no_training_of_ours_does_not_go_on() -> None:
    checkpoint: dict[str, Any] = {}
    with pytest.raises(InputError, match="holds no training of this version"):
        diffusion().on_load_checkpoint(checkpoint)
    classifier().on_save_checkpoint(checkpoint)
    with pytest.raises(InputError, match="--ckpt_path is of another version"):
        diffusion().on_load_checkpoint(checkpoint)


class NoLoss(DiffusionTraining):
    """Has no loss in its second update."""

    def losses(self, *given: Any) -> Any:
        update = super().losses(*given)
        nothing = torch.nan if self.global_step == 1 else 0
        return replace(update, losses=update.losses + nothing)


class NoGradient(DiffusionTraining):
    """Has no gradient in its second update: the root's derivative at 0 is infinite."""

    def losses(self, *given: Any) -> Any:
        update = super().losses(*given)
        if self.global_step != 1:
            return update
        weight = next(self.unet.parameters())
        return replace(update, losses=update.losses + (weight * 0).sum().sqrt())


@pytest.mark.parametrize(
    ("kind", "accumulated", "what"),
    [(NoLoss, 1, "loss"), (NoLoss, 2, "loss"), (NoGradient, 1, "gradient")],
)
def test_what_is_no_number_stops_and_is_seen_again(
    kind: type[DiffusionTraining], accumulated: int, what: str, tmp_path: Path
) -> None:
    """The update and its samples are named; a checkpoint holds the state before it, also where only
    the gradient is not finite, which clipping would turn into NaN weights. From there the same
    batches come again, and all others once."""
    expected, samples = train(tmp_path / "whole", 3, accumulated=accumulated)
    torch.manual_seed(0)
    module = kind(**ADDT, learning_rate=1e-3)
    with pytest.raises(InputError, match=rf"update 1: the {what}.* is nan, of samples") as error:
        train(tmp_path / "failed", 3, module=module, accumulated=accumulated)
    named = [sample for batch in samples[accumulated : 2 * accumulated] for sample in batch]
    assert f"of samples {named};" in str(error.value)
    kept = tmp_path / "failed" / "checkpoints" / "before-nan.ckpt"
    assert str(kept) in str(error.value) and state(kept)["global_step"] == 1
    resumed, rest = train(tmp_path / "rest", 3, kept, accumulated=accumulated)
    assert rest == samples[accumulated:]
    assert same_weights(resumed, expected)


def test_a_classifier_without_numbers_stops_and_is_not_exported(tmp_path: Path) -> None:
    fitting: Trainer = trainer(tmp_path, ExportWeights(), max_epochs=1, limit_val_batches=0)
    with pytest.raises(InputError, match=r"update \d: the loss is nan, of samples"):
        fitting.fit(classifier(learning_rate=1e30), FewImages(20, 4))
    assert not list(tmp_path.rglob("*.safetensors"))
