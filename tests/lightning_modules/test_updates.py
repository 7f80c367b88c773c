"""How many updates a training makes: of whole windows, and at least one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hetpure.errors import InputError
from lightning_modules.callbacks import ExportWeights
from tests.lightning_modules.trainings import (
    FewImages,
    classifier,
    diffusion,
    same_weights,
    saving,
    trainer,
)

KINDS = {"classifier": classifier, "diffusion": diffusion}
both = pytest.mark.parametrize("kind", KINDS)


class Kept(Callback):
    """Of every update its gradient, learning rate and images; how often it was validated."""

    def __init__(self) -> None:
        self.gradients: list[Tensor] = []
        self.rates: list[float] = []
        self.samples: dict[int, list[int]] = {}
        self.validations = 0

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        weights = [w.grad.flatten() for w in module.parameters() if w.grad is not None]
        self.gradients.append(torch.cat(weights).clone())
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_start(
        self, trainer: Trainer, module: Any, batch: dict[str, Tensor], index: int
    ) -> None:
        self.samples.setdefault(trainer.global_step, []).extend(batch["sample"].tolist())

    def on_validation_epoch_end(self, trainer: Trainer, module: Any) -> None:
        self.validations += not trainer.sanity_checking


def fit(
    folder: Path,
    kind: str,
    *callbacks: Callback,
    batch: int = 4,
    resume: Path | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[Kept, Trainer]:
    """On 22 images: five batches of 4, two of 8."""
    kept = Kept()
    given = {"max_epochs": 2, "limit_val_batches": 1, **options}
    fitting = trainer(folder, kept, *callbacks, **given)
    module = KINDS[kind](**(settings or {}))
    fitting.fit(module, FewImages(22, batch), ckpt_path=resume, weights_only=True)
    return kept, fitting


@both
def test_every_update_is_the_mean_over_what_it_saw(kind: str, tmp_path: Path) -> None:
    """Five batches in windows of two are the training of two batches twice as large: the fifth,
    half a window, is left out as the images are that fill no batch."""
    small, fitting = fit(tmp_path, kind, accumulate_grad_batches=2)
    large, _ = fit(tmp_path, kind, batch=8)
    assert len(small.gradients) == len(large.gradients) == fitting.global_step == 4
    assert small.samples == large.samples
    for ours, theirs in zip(small.gradients, large.gradients, strict=True):
        assert (ours - theirs).norm() < 1e-5 * theirs.norm()
    assert small.validations == large.validations == 2
    if kind == "classifier":
        assert small.rates[-1] == pytest.approx(0.01 / 25 / 1e4), "the end of OneCycleLR's cycle"


@pytest.mark.parametrize(
    ("kind", "limit", "stopped"),
    [
        ("classifier", {"max_epochs": 2}, 2),
        ("diffusion", {"max_epochs": 2}, 1),
        ("diffusion", {"max_epochs": -1, "max_steps": 4}, 1),
    ],
    ids=["epoch's end", "epochs", "updates"],
)
def test_a_training_of_windows_goes_on_bit_for_bit(
    kind: str, limit: dict[str, int], stopped: int, tmp_path: Path
) -> None:
    """Also where epochs limit it: then Lightning looks at the data before at the checkpoint."""
    whole, fitting = fit(tmp_path, kind, saving(tmp_path), accumulate_grad_batches=2, **limit)
    checkpoint = tmp_path / f"step={stopped}.ckpt"
    rest, resumed = fit(tmp_path, kind, resume=checkpoint, accumulate_grad_batches=2, **limit)
    assert rest.samples == {n: seen for n, seen in whole.samples.items() if n >= stopped}
    assert same_weights(resumed.lightning_module, fitting.lightning_module)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 2, [0, 0.5, 1, 1]),
        ("linear", 0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0, [1, 0.8536, 0.5, 0.1464]),
    ],
)
def test_a_diffusions_learning_rate_follows_its_schedule_to_the_end(
    schedule: str, warmup: int, rates: list[float], tmp_path: Path
) -> None:
    settings = {"learning_rate_schedule": schedule, "warmup_steps": warmup, "learning_rate": 0.01}
    kept, _ = fit(tmp_path, "diffusion", settings=settings, max_steps=4)
    assert kept.rates == pytest.approx([0.01 * rate for rate in rates], rel=1e-3)


def test_half_a_curve_and_half_of_another_are_neither(tmp_path: Path) -> None:
    """A learning rate that follows the number of updates goes on with that number."""
    cosine = {"learning_rate_schedule": "cosine"}
    fit(tmp_path, "diffusion", saving(tmp_path), max_steps=2, settings=cosine)
    with pytest.raises(InputError, match="of a training of 2 updates, this one is of 3"):
        fit(tmp_path, "diffusion", resume=tmp_path / "step=1.ckpt", max_steps=3, settings=cosine)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("diffusion", {"limit_train_batches": 0}, "make no update: .*2 epochs .* of 0 batches"),
        ("diffusion", {"max_steps": 0}, "make no update: .*at most 0 updates"),
        ("diffusion", {"max_epochs": 0}, "make no update: .*0 epochs"),
        ("diffusion", {"accumulate_grad_batches": 6}, "of 5 batches .* 6 to an update"),
        ("classifier", {"max_epochs": -1}, "curve needs the number of updates"),
        ("diffusion", {"accumulate_grad_batches": 0}, "must be 1 or more, got 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_gives_no_whole_update_is_refused_at_the_start(
    kind: str, options: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        fit(tmp_path, kind, ExportWeights(), **options)
    assert not list(tmp_path.iterdir())


def test_a_validation_beyond_the_epoch_is_refused_with_and_without_windows(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="val_check_interval is 5, and an epoch has 4 batches"):
        fit(tmp_path, "classifier", accumulate_grad_batches=2, val_check_interval=5)
    for window in (1, 2):
        with pytest.raises(InputError, match=r"trainer.val_check_interval.*\(?99"):
            fit(tmp_path, "classifier", accumulate_grad_batches=window, val_check_interval=99)


def test_windows_that_change_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="GradientAccumulationScheduler .*one number"):
        fit(tmp_path, "diffusion", GradientAccumulationScheduler({1: 2}))


class Stopping(Callback):
    def on_train_start(self, trainer: Trainer, module: Any) -> None:
        trainer.should_stop = True


def test_a_training_that_came_to_no_update_exports_nothing(tmp_path: Path) -> None:
    """As one that is out of time at once."""
    with pytest.raises(InputError, match="made no update: no weights are written"):
        fit(tmp_path, "diffusion", Stopping(), ExportWeights())
    assert not list(tmp_path.iterdir())


def test_a_trial_of_one_batch_needs_no_window(tmp_path: Path) -> None:
    kept, fitting = fit(tmp_path, "classifier", fast_dev_run=True, accumulate_grad_batches=4)
    assert fitting.global_step == len(kept.gradients) == 1


class Endless(IterableDataset[dict[str, Tensor]]):
    def __iter__(self) -> Any:
        while True:
            image = torch.zeros(1, 28, 28)
            yield {"image": image, "label": torch.tensor(0), "sample": torch.tensor(0)}


def test_data_of_unknown_length_have_no_windows(tmp_path: Path) -> None:
    loader = DataLoader(Endless(), batch_size=2)
    fitting = trainer(tmp_path, max_steps=2)
    fitting.fit(diffusion(), loader)
    assert fitting.global_step == 2
    with pytest.raises(InputError, match="accumulate_grad_batches needs .* knows its length"):
        trainer(tmp_path, max_steps=2, accumulate_grad_batches=2).fit(diffusion(), loader)


def test_a_training_goes_on_in_whole_windows_only(tmp_path: Path) -> None:
    """Saved after two of its five batches; what was seen has to be whole updates of the windows and
    batches that it goes on with. Else the next update would be divided by what it did not see."""
    fit(tmp_path, "diffusion", saving(tmp_path), accumulate_grad_batches=2, max_steps=1)
    for window, batch in ((4, 4), (2, 8)):
        with pytest.raises(InputError, match=rf"updates of {window} batches"):
            fit(
                tmp_path / "rest",
                "diffusion",
                batch=batch,
                resume=tmp_path / "step=1.ckpt",
                accumulate_grad_batches=window,
                max_steps=3,
                max_epochs=3,
            )
