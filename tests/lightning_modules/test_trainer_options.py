"""ADDT under the trainer's options: several processes, accumulation, precision, compilation."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

import train
from datamodules.dataset import epoch_order
from datamodules.fashion_mnist import FashionMNIST
from hetpure.addt import RankGaussian
from hetpure.errors import InputError
from lightning_modules.diffusion import DiffusionTraining

UPDATES = 20
UNET: dict[str, Any] = {
    "sample_size": 28,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [4, 8],
    "norm_num_groups": 2,
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
    "add_attention": False,
}


class Kept(Callback):
    """Writes, by process, the losses and images of all batches and the gradients of the first
    update, as the optimiser gets them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.losses: list[float] = []
        self.samples: list[list[int]] = []
        self.gradients: list[Tensor] = []

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        if not self.gradients:
            self.gradients = [weight.grad.clone() for weight in module.unet.parameters()]

    def on_train_batch_end(
        self, trainer: Trainer, module: Any, outputs: Any, batch: dict[str, Tensor], index: int
    ) -> None:
        self.losses.append(float(module.last_update.losses.mean()))
        self.samples.append(batch["sample"].tolist())

    def on_train_end(self, trainer: Trainer, module: Any) -> None:
        kept = {
            "losses": self.losses,
            "samples": self.samples,
            "gradients": self.gradients,
            "perturbation": module.last_update.found.perturbation,
            "names": list(module.state_dict()),
        }
        torch.save(kept, self.folder / f"{trainer.global_rank}.pt")


def fit(
    folder: Path, updates: int, *, compiled: bool = False, **options: Any
) -> list[dict[str, Any]]:
    """What each process kept of a training under the trainer's options."""
    folder.mkdir()
    torch.manual_seed(0)  # the same weights to start from
    module = DiffusionTraining(
        unet=UNET,
        guide="fashion_mnist_wrn",
        perturbation=RankGaussian(steps=2),
        compile=compiled,
    )
    trainer = Trainer(
        max_steps=updates,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[Kept(folder)],
        **options,
    )
    trainer.fit(module, FashionMNIST(source="packaged", batch_size=8))
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]


@pytest.mark.parametrize(("precision", "bound"), [("32-true", 1e-5), ("64-true", 1e-12)])
def test_two_processes_are_one_that_accumulates(
    precision: Any, bound: float, tmp_path: Path
) -> None:
    """The same images under the same noise, the same gradient (so nothing was summed over
    processes but the weights' gradients of the outer loss), and so the same training."""
    spawn = DDPStrategy(process_group_backend="gloo", start_method="spawn")
    both = {"precision": precision}
    first, second = fit(tmp_path / "two", UPDATES, devices=2, strategy=spawn, **both)
    # Lightning gives each of two processes one thread. Two threads sum in another order, and a
    # perturbation's ranks turn rounding into more: float32 gradients were 2e-5 apart by that alone.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (alone,) = fit(tmp_path / "one", UPDATES, devices=1, accumulate_grad_batches=2, **both)
    finally:
        torch.set_num_threads(threads)
    seen = zip(first["samples"], second["samples"], strict=True)
    turns = zip(alone["samples"][::2], alone["samples"][1::2], strict=True)
    assert [{*ours, *theirs} for ours, theirs in seen] == [{*a, *b} for a, b in turns]
    for ours, theirs, whole in zip(
        first["gradients"], second["gradients"], alone["gradients"], strict=True
    ):
        assert torch.equal(ours, theirs)
        assert (ours - whole).norm() <= bound * whole.norm()
    ours = (torch.tensor(first["losses"]) + torch.tensor(second["losses"])) / 2
    theirs = torch.tensor(alone["losses"]).reshape(UPDATES, 2).mean(1)
    assert len(ours) == UPDATES
    assert (ours - theirs).abs().max() < 1e-3


def test_bfloat16_trains_alike_on_float32_perturbations(tmp_path: Path) -> None:
    (full,) = fit(tmp_path / "full", 3)
    (mixed,) = fit(tmp_path / "mixed", 3, precision="bf16-mixed")
    pairs = zip(full["losses"], mixed["losses"], strict=True)
    assert all(ours == pytest.approx(theirs, rel=0.05) for ours, theirs in pairs)
    assert full["losses"] != mixed["losses"]
    assert mixed["perturbation"].dtype == torch.float32


def test_float64_trains_with_its_guide(tmp_path: Path) -> None:
    (found,) = fit(tmp_path / "double", 1, precision="64-true")
    assert found["perturbation"].dtype == torch.float64


def test_a_fast_dev_run_trains_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main(["--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"])
    assert not list(tmp_path.rglob("*.*"))
    assert "weights:" not in capsys.readouterr().out


class NoNumber(DiffusionTraining):
    """The second process has no loss in the second update."""

    def losses(self, *given: Any) -> Any:
        update = super().losses(*given)
        if self.global_step == 1 and self.trainer.global_rank == 1:
            return replace(update, losses=update.losses * torch.nan)
        return update


def test_all_processes_stop_where_one_has_no_loss(tmp_path: Path) -> None:
    trainer = Trainer(
        max_steps=3,
        accelerator="cpu",
        devices=2,
        strategy=DDPStrategy(start_method="spawn", process_group_backend="gloo"),
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    data = FashionMNIST(source="packaged", batch_size=4)
    data.setup("fit")
    images = data._splits["train"]
    # The second process's second batch, whichever process tells.
    named = images.samples[epoch_order(len(images), 0, 0)[9:16:2]].tolist()
    with pytest.raises(Exception, match="update 1: the loss is nan, of samples") as error:
        trainer.fit(NoNumber(unet=UNET), data)
    assert f"of samples {named};" in str(error.value)
    state = torch.load(tmp_path / "checkpoints" / "before-nan.ckpt", weights_only=True)
    assert state["global_step"] == 1
    assert all(value.isfinite().all() for value in state["state_dict"].values())


@pytest.mark.slow  # the compiler's time
def test_compiled_networks_train_alike(tmp_path: Path) -> None:
    (plain,) = fit(tmp_path / "plain", 3)
    (compiled,) = fit(tmp_path / "compiled", 3, compiled=True)
    # A perturbation is ranked: another order of sums may swap neighbours.
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-2)
    assert compiled["names"] == plain["names"]


class Reversed(torch.autograd.Function):
    """What is given, with a gradient that runs backwards along each row."""

    @staticmethod
    def forward(ctx: Any, answer: Tensor) -> Tensor:
        return answer.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return gradient.flip(-1)


def reversing(graph: Any, inputs: Any) -> Any:
    """A compiler's backend with right answers and wrong gradients."""
    return lambda *given: [Reversed.apply(answer) for answer in graph(*given)]


def test_a_compiler_with_wrong_gradients_is_refused_before_the_first_update(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch's own on some CPUs, whose answers agree."""
    original = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda own: original(own, backend="eager"))
    (right,) = fit(tmp_path / "right", 1, compiled=True)
    assert len(right["losses"]) == 1
    torch.compiler.reset()
    monkeypatch.setattr(torch.nn.Module, "compile", lambda own: original(own, backend=reversing))
    with pytest.raises(InputError, match=r"network's weights wrong .*compile=false"):
        fit(tmp_path / "wrong", 1, compiled=True)
