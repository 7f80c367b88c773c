"""A training that is stopped and goes on: the same weights, the same batches; or not at all."""

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hetpure.adversarial_training import AdversarialTraining
from hetpure.errors import InputError
from hetpure.levels import DiscreteLevels
from hetpure.numbers import Number
from hetpure.weights import load_denoiser
from lightning_modules.callbacks import ExportWeights
from lightning_modules.diffusion import DiffusionTraining
from lightning_modules.resume import keep_the_best
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

EPOCH, BATCH, UPDATES = 3, 4, 5  # batches of an epoch, images, and updates of the whole training
ADDT = {"unet": UNET | {"dropout": 0.3}, "perturbation": LABEL_FREE}
PGD = AdversarialTraining("pgd", Number(0.1), Number(0.1), steps=1)
Whole = tuple[Path, Training, list[list[int]]]


def train(
    folder: Path,
    updates: int = UPDATES,
    resume: Path | None = None,
    *,
    module: Training | None = None,
    at_epochs: bool | None = None,
    kept: slice = slice(EPOCH * BATCH),
    batch: int = BATCH,
    data: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Training, list[list[int]]]:
    """A training that saves every update, by us and as Lightning does by itself; its batches."""
    module = module or diffusion(**ADDT)
    torch.manual_seed(1 if resume is None else 2)  # nothing but the checkpoint may matter
    own = ModelCheckpoint(
        folder, "lightning-{step}", save_top_k=-1, save_on_train_epoch_end=at_epochs
    )
    seen = Seen()
    limits = {"max_steps": updates, "limit_val_batches": 1, "val_check_interval": 1}
    fitting = trainer(
        folder,
        seen,
        ExportWeights(),
        saving(folder),
        own,
        gradient_clip_val=1.0,
        **limits | options,
    )
    images = FewImages(0, batch, **(data or {}))
    images.kept = kept
    fitting.fit(module, images, ckpt_path=resume, weights_only=True)
    return module, seen.samples


def state(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


def same_state(ours: Any, theirs: Any) -> bool:
    """Bit for bit, whatever holds the tensors."""
    if isinstance(ours, torch.Tensor):
        return torch.equal(ours, theirs)
    if isinstance(ours, dict):
        return all(same_state(ours[key], value) for key, value in theirs.items())
    if isinstance(ours, list):
        return all(same_state(*pair) for pair in zip(ours, theirs, strict=True))
    return bool(ours == theirs)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    return folder, *train(folder)


@pytest.mark.parametrize(
    ("stopped", "workers"), [(3, 0), (2, 2), (4, 0)], ids=["epoch's end", "mid, workers", "second"]
)
def test_a_resumed_training_ends_with_the_same_weights(
    stopped: int, workers: int, whole: Whole, tmp_path: Path
) -> None:
    """Bit for bit, average and optimiser included, with dropout, at an epoch's end and within."""
    data = {"num_workers": workers}
    _, rest = train(tmp_path, resume=whole[0] / f"step={stopped}.ckpt", data=data)
    assert rest == whole[2][stopped:]
    ours, theirs = (state(folder / f"step={UPDATES}.ckpt") for folder in (tmp_path, whole[0]))
    for part in ("state_dict", "ema", "optimizer_states", "lr_schedulers"):
        assert same_state(ours[part], theirs[part]), part


@pytest.mark.parametrize("stopped", [2, 3], ids=["mid", "epoch's end"])
def test_so_does_a_classifiers(stopped: int, tmp_path: Path) -> None:
    """Bit for bit, the optimiser's momenta too."""
    ends = []
    for folder, resume in (("whole", None), ("rest", tmp_path / f"whole/step={stopped}.ckpt")):
        fitting = trainer(tmp_path, saving(tmp_path / folder), max_epochs=2, limit_val_batches=0)
        module = classifier(adversarial=PGD)
        fitting.fit(module, FewImages(12, 4), ckpt_path=resume, weights_only=True)
        ends.append(state(tmp_path / folder / "step=6.ckpt"))
    for part in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert same_state(ends[0][part], ends[1][part]), part


@pytest.mark.parametrize(
    ("ended", "limit"), [(2, 1.0), (3, 1.0), (3, 2)], ids=["mid", "epoch's end", "shortened"]
)
def test_a_training_that_ended_goes_on_where_it_ended(
    ended: int, limit: float, whole: Whole, tmp_path: Path
) -> None:
    """`end.ckpt` of fewer updates, and more of them asked for."""
    few = {"limit_train_batches": limit}
    module, samples = whole[1:] if limit == 1 else train(tmp_path / "whole", **few)
    train(tmp_path / "short", ended, **few)
    end = tmp_path / "short" / "checkpoints" / "end.ckpt"
    resumed, rest = train(tmp_path / "rest", resume=end, **few)
    assert rest == samples[ended:]
    assert same_weights(resumed, module)


@pytest.mark.parametrize(("stopped", "at_epochs"), [(3, True), (2, False)])
def test_a_training_goes_on_from_lightnings_own_checkpoints(
    stopped: int, at_epochs: bool, whole: Whole, tmp_path: Path
) -> None:
    """Saved when an epoch has ended, and after a validation within one."""
    train(tmp_path / "first", stopped + 1, at_epochs=at_epochs)
    path = tmp_path / "first" / f"lightning-step={stopped}.ckpt"
    resumed, rest = train(tmp_path / "rest", resume=path, at_epochs=at_epochs)
    assert rest == whole[2][stopped:]
    assert same_weights(resumed, whole[1])


@pytest.mark.parametrize("stopped", [2, 3], ids=["mid", "epoch's end"])
def test_an_epoch_goes_on_in_other_batches(stopped: int, whole: Whole, tmp_path: Path) -> None:
    """Every image of the epoch once, then a whole epoch: the epoch ends where its images do."""
    folder, _, samples = whole
    left = 2 * (EPOCH - stopped)
    updates = stopped + left + 2 * EPOCH
    _, rest = train(tmp_path, updates, folder / f"step={stopped}.ckpt", batch=BATCH // 2)
    seen = [sample for batch in (*samples[:stopped], *rest[:left]) for sample in batch]
    assert len(seen) == len({*seen}) == EPOCH * BATCH
    assert {sample for batch in rest[left:] for sample in batch} == {*seen}
    assert samples[0] != samples[EPOCH], "each epoch has its own order"


@pytest.mark.parametrize(
    ("stopped", "changes", "message"),
    [
        (1, {"batch": 6}, "after 4 images of an epoch, in batches of 4 on 1"),
        (2, {"data": {"seed": 1}}, "whose data have the seed 0: with 1 its epoch"),
        # As where a machine has the packaged subset only; as many of them, even.
        (2, {"kept": slice(1, 13)}, "on other images than these 12"),
        (3, {"kept": slice(1, 13)}, "on other images than these 12"),
    ],
    ids=["batches", "order", "images", "images at an epoch's end"],
)
def test_other_data_do_not_go_on(
    stopped: int, changes: dict[str, Any], message: str, whole: Whole, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        train(tmp_path, resume=whole[0] / f"step={stopped}.ckpt", **changes)


def test_a_checkpoint_with_no_update_left_is_exported(whole: Whole, tmp_path: Path) -> None:
    """So is the best one: its averaged weights, and nothing is trained."""
    path = whole[0] / "step=3.ckpt"
    _, seen = train(tmp_path, 3, path)
    assert not seen
    exported = load_denoiser(tmp_path / "diffusion").network.parameters()
    assert same_state(list(exported), state(path)["ema"]["shadow_params"])


SOURCES = {"diffusion", "unet", "scheduler", "preconditioning"}  # settings have what these give
SAME = {"compile"}  # of the updates


@pytest.mark.parametrize("build", [diffusion, classifier])
def test_a_checkpoint_says_every_setting(build: Callable[[], Training]) -> None:
    module = build()
    arguments = set(signature(type(module)).parameters) - SOURCES - SAME
    assert arguments <= module.settings.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unet": UNET | {"block_out_channels": [8]}}, "block_out_channels is"),
        ({"scheduler": {"prediction_type": "v_prediction"}}, "prediction_type is 'epsilon', that"),
        ({"learning_rate": 1e-5}, "learning_rate is 0.001, that of --model is 1e-05"),
        (
            {"perturbation": replace(LABEL_FREE, scale=0.06)},
            "perturbation is .*scale=0.03.*0.06",
        ),
        ({"perturbation": None}, "perturbation is .RankGaussian.* is None"),
        ({"guide": "fashion_mnist_wrn"}, "guide is None"),
        ({"levels": DiscreteLevels(highest=500)}, "levels is .*highest=500"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_training_does_not_go_on(
    changes: dict[str, Any], message: str, whole: Whole
) -> None:
    """Half a training of one kind and half of another is told from neither by its weights."""
    module = diffusion(**ADDT | changes)
    with pytest.raises(InputError, match=f"another training: its {message}"):
        module.on_load_checkpoint(state(whole[0] / "step=3.ckpt"))


def test_another_classifiers_training_does_not_go_on() -> None:
    checkpoint: dict[str, Any] = {}
    classifier(adversarial=PGD).on_save_checkpoint(checkpoint)
    classifier(adversarial=PGD).on_load_checkpoint(checkpoint)
    with pytest.raises(InputError, match="adversarial is .*steps=1.*steps=2.*without --ckpt_path"):
        classifier(adversarial=replace(PGD, steps=2)).on_load_checkpoint(checkpoint)


def test_what_is_no_training_of_ours_does_not_go_on() -> None:
    of_a_classifier: dict[str, Any] = {}
    classifier().on_save_checkpoint(of_a_classifier)
    for checkpoint in ({}, of_a_classifier):
        with pytest.raises(InputError, match="--ckpt_path is no training of this kind and version"):
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
    ("kind", "window", "what"), [(NoLoss, 2, "loss"), (NoGradient, 1, "gradient")]
)
def test_what_is_no_number_stops_and_is_seen_again(
    kind: type[DiffusionTraining], window: int, what: str, whole: Whole, tmp_path: Path
) -> None:
    """The update and its samples are named; a checkpoint holds the state before it, also where only
    the gradient is not finite, which clipping would turn into NaN weights. From there the same
    batches come again, and all others once."""
    windows: dict[str, Any] = {"accumulate_grad_batches": window, "val_check_interval": 1.0}
    windows |= {"kept": slice(2 * window * BATCH), "updates": 3}
    expected, samples = train(tmp_path / "whole", **windows)
    torch.manual_seed(0)
    module = kind(**ADDT, learning_rate=1e-3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=rf"update 1: the {what}.* is nan, of samples") as error:
        train(tmp_path / "failed", module=module, **windows)
    named = [sample for batch in samples[window : 2 * window] for sample in batch]
    assert f"of samples {named};" in str(error.value)
    kept = tmp_path / "failed" / "checkpoints" / "before-nan.ckpt"
    assert str(kept) in str(error.value) and state(kept)["global_step"] == 1
    resumed, rest = train(tmp_path / "rest", resume=kept, **windows)
    assert rest == samples[window:]
    assert same_weights(resumed, expected)


def test_a_classifier_without_numbers_stops_and_is_not_exported(tmp_path: Path) -> None:
    fitting: Trainer = trainer(tmp_path, ExportWeights(), max_epochs=1, limit_val_batches=0)
    with pytest.raises(InputError, match=r"update \d: the loss is nan, of samples"):
        fitting.fit(classifier(learning_rate=1e30), FewImages(20, 4))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_best_checkpoints_are_kept_where_they_are_still_there(tmp_path: Path) -> None:
    """Else Lightning begins to count anew, and says so."""
    (tmp_path / "best.ckpt").touch()
    own = ModelCheckpoint(tmp_path / "second", monitor="score")
    fitting = trainer(tmp_path, own)
    for name, expected in (("best.ckpt", own.dirpath), ("gone.ckpt", "first")):
        states = {own.state_key: {"dirpath": "first", "best_k_models": {str(tmp_path / name): 1.0}}}
        keep_the_best({"callbacks": states}, fitting)
        assert states[own.state_key]["dirpath"] == expected
    keep_the_best({}, fitting)
