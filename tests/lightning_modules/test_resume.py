"""A diffusion training that is stopped and goes on: the same weights, the same batches."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor

from datamodules.fashion_mnist import FashionMNIST
from hetpure.addt import RankGaussian
from hetpure.errors import InputError
from hetpure.levels import DiscreteLevels
from hetpure.weights import load_denoiser
from lightning_modules.callbacks import ExportWeights
from lightning_modules.diffusion import DiffusionTraining

BATCHES, BATCH = 5, 20  # an epoch
UNET: dict[str, Any] = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "dropout": 0.3,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
}


class FewImages(FashionMNIST):
    """Epochs of a few batches."""

    def setup(self, stage: str | None = None) -> None:
        super().setup(stage)
        self._splits["train"] = self._splits["train"].take(slice(BATCHES * BATCH))


class Seen(Callback):
    """The sample ids of every batch."""

    def __init__(self) -> None:
        self.samples: list[list[int]] = []

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: dict[str, Tensor], index: int
    ) -> None:
        self.samples.append(batch["sample"].tolist())


def train(
    folder: Path,
    updates: int,
    resume: Path | None = None,
    workers: int = 0,
    limit: float = 1.0,
    at_epochs: bool | None = None,
    order: int = 0,
    accumulated: int = 1,
    batch: int = BATCH,
    **changes: Any,
) -> tuple[DiffusionTraining, list[list[int]]]:
    torch.manual_seed(1 if resume is None else 2)  # nothing but the checkpoint may matter
    settings = {"unet": UNET, "perturbation": RankGaussian(steps=1), "guide": "fashion_mnist_wrn"}
    module = DiffusionTraining(**(settings | {"learning_rate": 1e-3} | changes))
    seen = Seen()
    trainer = Trainer(
        max_steps=updates,
        accelerator="cpu",
        logger=False,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1,
        val_check_interval=2,
        limit_train_batches=limit,
        accumulate_grad_batches=accumulated,
        gradient_clip_val=1.0,
        callbacks=[
            seen,
            ExportWeights(),
            ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1),
            ModelCheckpoint(
                folder, "lightning-{step}", save_top_k=-1, save_on_train_epoch_end=at_epochs
            ),
        ],
    )
    data = FewImages(source="packaged", batch_size=batch, num_workers=workers, seed=order)
    trainer.fit(module, data, ckpt_path=resume)
    return module, seen.samples


def assert_same(one: DiffusionTraining, other: DiffusionTraining) -> None:
    """Bit for bit."""
    for name, value in other.state_dict().items():
        assert torch.equal(one.state_dict()[name], value), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("whole")
    module, samples = train(folder, 8)
    return folder, module, samples


@pytest.mark.parametrize(
    ("stopped", "workers"),
    [(5, 0), (3, 0), (3, 2), (7, 0)],
    ids=["epoch's end", "mid", "mid, workers", "second"],
)
def test_a_resumed_training_ends_with_the_same_weights(
    stopped: int, workers: int, whole: Any, tmp_path: Path
) -> None:
    """Bit for bit, average and optimiser included, with dropout, at an epoch's end and within."""
    folder, module, samples = whole
    found, rest = train(tmp_path, 8, folder / f"step={stopped}.ckpt", workers)
    assert rest == samples[stopped:]
    assert_same(found, module)
    for kept, mine in zip(module.ema.shadow_params, found.ema.shadow_params, strict=True):
        assert torch.equal(kept, mine)
    ours, theirs = (
        torch.load(path / "step=8.ckpt", weights_only=True)["optimizer_states"][0]["state"]
        for path in (tmp_path, folder)
    )
    assert all(torch.equal(ours[k]["exp_avg_sq"], theirs[k]["exp_avg_sq"]) for k in theirs)


@pytest.mark.parametrize("stopped", [3, 4])
def test_a_shortened_epoch_goes_on(stopped: int, tmp_path: Path) -> None:
    """Stopped at the end of an epoch of three batches, and after one batch of the next."""
    whole = train(tmp_path / "whole", 8, limit=3)[1]
    rest = train(tmp_path, 8, tmp_path / "whole" / f"step={stopped}.ckpt", limit=3)[1]
    assert rest == whole[stopped:]


@pytest.mark.parametrize(
    ("ended", "limit"),
    [(3, 1.0), (5, 1.0), (7, 1.0), (4, 3)],
    ids=["mid", "epoch's end", "second", "shortened"],
)
def test_a_training_that_ended_goes_on_where_it_ended(
    ended: int, limit: float, whole: Any, tmp_path: Path
) -> None:
    """`end.ckpt` of fewer updates, and more of them asked for."""
    module, samples = whole[1:] if limit == 1 else train(tmp_path / "whole", 8, limit=limit)
    train(tmp_path / "short", ended, limit=limit)
    end = tmp_path / "short" / "checkpoints" / "end.ckpt"
    found, rest = train(tmp_path / "rest", 8, end, limit=limit)
    assert rest == samples[ended:]
    assert_same(found, module)


@pytest.mark.parametrize(("stopped", "at_epochs"), [(5, True), (2, False), (7, False)])
def test_a_training_goes_on_from_lightnings_own_checkpoints(
    stopped: int, at_epochs: bool, whole: Any, tmp_path: Path
) -> None:
    """Saved when an epoch has ended, and after a validation within one."""
    module, samples = whole[1:]
    train(tmp_path / "first", 8, at_epochs=at_epochs)
    path = tmp_path / "first" / f"lightning-step={stopped}.ckpt"
    found, rest = train(tmp_path / "rest", 8, path, at_epochs=at_epochs)
    assert rest == samples[stopped:]
    assert_same(found, module)


@pytest.mark.parametrize("stopped", [3, 5], ids=["mid", "epoch's end"])
def test_an_epoch_goes_on_in_other_batches(stopped: int, whole: Any, tmp_path: Path) -> None:
    """Every image of the epoch once, then a whole epoch: the epoch ends where its images do."""
    folder, _, samples = whole
    left = 2 * (BATCHES - stopped)
    updates = stopped + left + 2 * BATCHES
    rest = train(tmp_path, updates, folder / f"step={stopped}.ckpt", batch=BATCH // 2)[1]
    seen = [sample for batch in samples[:stopped] for sample in batch]
    again = [sample for batch in rest[:left] for sample in batch]
    assert sorted(seen + again) == sorted({*seen, *again}) and len(seen + again) == 100
    assert len({sample for batch in rest[left:] for sample in batch}) == 100


def test_batches_that_cannot_have_been_are_refused(whole: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="after 60 images of an epoch, in batches of 20 on 1"):
        train(tmp_path, 8, whole[0] / "step=3.ckpt", batch=40)


def test_a_checkpoint_with_no_update_left_is_exported(whole: Any, tmp_path: Path) -> None:
    """So is the best one: its averaged weights, and nothing is trained."""
    _, seen = train(tmp_path, 3, whole[0] / "step=3.ckpt")
    assert not seen
    kept = torch.load(whole[0] / "step=3.ckpt", weights_only=True)["ema"]["shadow_params"]
    found = list(load_denoiser(tmp_path / "diffusion").network.parameters())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, kept, strict=True))


def test_an_epoch_has_every_sample_once(whole: Any) -> None:
    samples = whole[2]
    assert len({sample for batch in samples[:BATCHES] for sample in batch}) == BATCHES * BATCH
    assert samples[0] != samples[BATCHES]


def test_another_training_does_not_go_on(whole: Any, tmp_path: Path) -> None:
    other = UNET | {"block_out_channels": [4, 12]}
    with pytest.raises(InputError, match="another training: its block_out_channels"):
        train(tmp_path, 8, whole[0] / "step=3.ckpt", unet=other)
    with pytest.raises(InputError, match=r"another training: its learning_rate is 0.001, that"):
        train(tmp_path, 8, whole[0] / "step=3.ckpt", learning_rate=1e-5)
    with pytest.raises(InputError, match=r"another training: its weight_decay is 1e-06, that"):
        train(tmp_path, 8, whole[0] / "step=3.ckpt", weight_decay=0.1)
    scheduler = {"prediction_type": "v_prediction"}
    with pytest.raises(InputError, match="another training: its prediction_type"):
        train(tmp_path, 8, whole[0] / "step=3.ckpt", scheduler=scheduler)


@pytest.mark.parametrize(
    "other",
    [
        {"perturbation": None, "guide": None},
        {"perturbation": RankGaussian(steps=1, scale=0.06)},
        {"guide": "fashion_mnist_adversarial"},
        {"levels": DiscreteLevels(highest=500)},
        {"mode": "reference"},
        {"learning_rate_schedule": "cosine"},
        {"warmup_steps": 2},
        {"horizontal_flip": False},
        {"seed": 1},
    ],
    ids=lambda other: next(iter(other)),
)
def test_other_updates_do_not_go_on(other: dict[str, Any], whole: Any, tmp_path: Path) -> None:
    """Half a training of one kind and half of another is told from neither by its weights."""
    names = "guide|" + next(iter(other))
    with pytest.raises(InputError, match=f"another training: its ({names}) is .*--model.diffusion"):
        train(tmp_path, 8, whole[0] / "step=3.ckpt", **other)


def test_an_epoch_does_not_go_on_in_another_order(whole: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"training with --data.seed 0: with 1"):
        train(tmp_path, 8, whole[0] / "step=3.ckpt", order=1)


def test_a_training_does_not_go_on_with_other_images(
    whole: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a machine has the packaged subset only; as many of them, even."""

    def others(self: FewImages, stage: str | None = None) -> None:
        FashionMNIST.setup(self, stage)
        self._splits["train"] = self._splits["train"].take(slice(1, 1 + BATCHES * BATCH))

    monkeypatch.setattr(FewImages, "setup", others)
    for checkpoint in ("step=3.ckpt", "step=5.ckpt"):  # within an epoch, and at its end
        with pytest.raises(InputError, match="on other images than the 100 of --data"):
            train(tmp_path, 8, whole[0] / checkpoint)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_what_failed_is_seen_again(
    accumulated: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the state that is kept before an update without numbers: that update's batches, the
    same ones, and all others once."""
    whole, samples = train(tmp_path / "whole", 4, accumulated=accumulated)
    original = DiffusionTraining.losses

    def losses(self: DiffusionTraining, *given: Any) -> Any:
        update = original(self, *given)
        return replace(update, losses=update.losses + (torch.nan if self.global_step == 1 else 0))

    with monkeypatch.context() as patch:
        patch.setattr(DiffusionTraining, "losses", losses)
        with pytest.raises(InputError, match="update 1: the loss is nan, of samples") as error:
            train(tmp_path / "failed", 4, accumulated=accumulated)
    named = [sample for batch in samples[accumulated : 2 * accumulated] for sample in batch]
    assert f"of samples {named};" in str(error.value)
    kept = tmp_path / "failed" / "checkpoints" / "before-nan.ckpt"
    found, rest = train(tmp_path / "rest", 4, kept, accumulated=accumulated)
    assert rest == samples[accumulated:]
    assert_same(found, whole)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_no_number_stops_and_keeps_the_state(what: str, tmp_path: Path) -> None:
    """The update and its samples are named, and a checkpoint holds the weights before it; also
    where only the gradient is not finite, which clipping would turn into NaN weights."""
    module = DiffusionTraining(unet=UNET, learning_rate=1e-3)
    whole = DiffusionTraining.losses

    def losses(self: DiffusionTraining, *given: Any) -> Any:
        update = whole(self, *given)
        if self.global_step < 2:
            return update
        if what == "loss":
            return replace(update, losses=update.losses + torch.nan)
        # The root's derivative at 0 is infinite.
        weight = next(self.unet.parameters())
        return replace(update, losses=update.losses + (weight * 0).sum().sqrt())

    module.losses = losses.__get__(module)  # type: ignore[method-assign]
    trainer = Trainer(
        max_steps=5,
        accelerator="cpu",
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        gradient_clip_val=1.0,
    )
    with pytest.raises(InputError, match=rf"update 2: the {what}.* is nan, of samples") as error:
        trainer.fit(module, FashionMNIST(source="packaged", batch_size=50))
    path = tmp_path / "checkpoints" / "before-nan.ckpt"
    assert str(path) in str(error.value)
    state = torch.load(path, weights_only=True)
    assert state["global_step"] == 2
    assert all(value.isfinite().all() for value in state["state_dict"].values())
    assert all(value.isfinite().all() for value in state["ema"]["shadow_params"])
