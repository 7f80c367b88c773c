"""ADDT under the trainer's options: several processes, accumulation, precision, compilation."""

import json
import multiprocessing
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor

import train
from datamodules.dataset import epoch_order
from datamodules.fashion_mnist import FashionMNIST
from hetpure.addt import RankGaussian
from hetpure.errors import InputError
from hetpure.weights import load_denoiser
from lightning_modules.diffusion import DiffusionTraining
from tests.lightning_modules.trainings import UNET, diffusion, saving, trainer

ROOT = Path(__file__).parent.parent.parent
DEEPER = UNET | {  # whose trainings differ little by rounding, in float32 too
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D"],
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
            "perturbation": module.last_update.perturbation,
            "names": list(module.state_dict()),
        }
        torch.save(kept, self.folder / f"{trainer.global_rank}.pt")


def spawned(method: Literal["spawn", "forkserver"] = "spawn") -> DDPStrategy:
    """Two processes; those of a server share what it has imported, and take small networks only."""
    multiprocessing.set_forkserver_preload(["lightning_modules.diffusion", __name__])
    return DDPStrategy(process_group_backend="gloo", start_method=method)


def fit(
    folder: Path,
    updates: int,
    *,
    save: bool = False,
    resume: Path | None = None,
    settings: dict[str, Any] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """What each process kept of a training under the trainer's options."""
    folder.mkdir()
    guided = {"guide": "fashion_mnist_wrn", "perturbation": RankGaussian(steps=2)}
    callbacks = [Kept(folder), *([saving(folder)] if save else [])]
    given = {"enable_checkpointing": save, "limit_val_batches": 0, **options}
    fitting = trainer(folder, *callbacks, max_steps=updates, **given)
    module = diffusion(**{"learning_rate": 2e-4, "unet": DEEPER} | guided | (settings or {}))
    fitting.fit(module, FashionMNIST(source="packaged", batch_size=8), ckpt_path=resume)
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]


@pytest.mark.parametrize(
    ("precision", "bound", "updates", "accumulated", "unet", "method"),
    [
        ("64-true", 1e-12, 2, 2, UNET, "forkserver"),
        pytest.param("32-true", 1e-5, 20, 1, DEEPER, "spawn", marks=pytest.mark.slow),
    ],
    ids=["float64", "float32"],
)
def test_two_processes_are_one_that_accumulates_twice_as_much(
    precision: Any,
    bound: float,
    updates: int,
    accumulated: int,
    unet: dict[str, Any],
    method: Any,
    tmp_path: Path,
) -> None:
    """The same images under the same noise, the same gradient (so nothing was summed over
    processes but the weights' gradients of the outer loss), and so the same training."""
    two: dict[str, Any] = {"devices": 2, "precision": precision, "settings": {"unet": unet}}
    two |= {"accumulate_grad_batches": accumulated}
    one = two | {"devices": 1, "accumulate_grad_batches": 2 * accumulated}
    first, second = fit(tmp_path / "two", updates, strategy=spawned(method), **two)
    # Lightning gives each of two processes one thread. Two threads sum in another order, and a
    # perturbation's ranks turn rounding into more: float32 gradients were 2e-5 apart by that alone.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (alone,) = fit(tmp_path / "one", updates, **one)
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
    theirs = torch.tensor(alone["losses"]).reshape(-1, 2).mean(1)
    assert len(ours) == updates * accumulated
    assert (ours - theirs).abs().max() < 1e-3


def test_bfloat16_trains_alike_on_float32_perturbations(tmp_path: Path) -> None:
    (full,) = fit(tmp_path / "full", 2)
    (mixed,) = fit(tmp_path / "mixed", 2, precision="bf16-mixed")
    pairs = zip(full["losses"], mixed["losses"], strict=True)
    assert all(ours == pytest.approx(theirs, rel=0.05) for ours, theirs in pairs)
    assert full["losses"] != mixed["losses"]
    assert mixed["perturbation"].dtype == torch.float32


def test_a_fast_dev_run_trains_once_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    train.main(
        [
            *("--trainer.fast_dev_run=true", "--trainer.enable_progress_bar=false"),
            *("--data.batch_size=4", "--model.perturbation=null"),
            "--trainer.callbacks=lightning_modules.callbacks.ExportWeights",
            "--trainer.callbacks+=lightning_modules.callbacks.SampleGrid",
        ]
    )
    assert not list(tmp_path.rglob("*.*"))
    assert "weights:" not in capsys.readouterr().out


class NoNumber(DiffusionTraining):
    """The second process has no loss in the second update."""

    def losses(self, *given: Any) -> Any:
        update = super().losses(*given)
        if self.global_step == 1 and self.trainer.global_rank == 1:
            return replace(update, losses=update.losses * torch.nan)
        return update


@pytest.mark.slow
def test_all_processes_stop_where_one_has_no_loss(tmp_path: Path) -> None:
    data = FashionMNIST(source="packaged", batch_size=4)
    data.setup("fit")
    samples = data.train_dataloader().dataset.samples  # type: ignore[attr-defined]
    # The second process's second batch, whichever process tells.
    named = samples[epoch_order(len(samples), 0, 0)[9:16:2]].tolist()
    fitting = trainer(tmp_path, max_steps=3, devices=2, strategy=spawned(), limit_val_batches=0)
    with pytest.raises(Exception, match="update 1: the loss is nan, of samples") as error:
        fitting.fit(NoNumber(unet=UNET), data)
    assert f"of samples {named};" in str(error.value)
    state = torch.load(tmp_path / "checkpoints" / "before-nan.ckpt", weights_only=True)
    assert state["global_step"] == 1
    assert all(value.isfinite().all() for value in state["state_dict"].values())


def goes_on(folder: Path, updates: int, resume: Path | None = None, **options: Any) -> Any:
    """Samples by batch and process of a training that saves every update, and its last state."""
    kept = fit(folder, updates, resume=resume, save=True, **options)
    state = torch.load(folder / f"step={updates}.ckpt", weights_only=True)
    return [process["samples"] for process in kept], state["state_dict"]


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The distance of two networks' weights."""
    return float(torch.stack([(one[name] - other[name]).norm() for name in one]).norm())


@pytest.mark.slow
@pytest.mark.parametrize("before", [1, 2])
def test_another_number_of_processes_goes_on(before: int, tmp_path: Path) -> None:
    """After 2 updates of a global batch of 16, in the middle of an epoch of 6: the other number
    sees the very images that are left, and ends at weights that differ by rounding."""
    one = {"devices": 1, "accumulate_grad_batches": 2, "limit_train_batches": 12}
    two = {"devices": 2, "strategy": spawned(), "limit_train_batches": 6}
    first, second = (one, two) if before == 1 else (two, one)
    whole, expected = goes_on(tmp_path / "whole", 6, **one)
    goes_on(tmp_path / "first", 2, **first)
    rest, weights = goes_on(tmp_path / "rest", 6, tmp_path / "first" / "step=2.ckpt", **second)
    seen = [sample for process in rest for batch in process for sample in batch]
    assert sorted(seen) == sorted(sample for batch in whole[0][4:] for sample in batch)
    begun = torch.load(tmp_path / "whole" / "step=1.ckpt", weights_only=True)["state_dict"]
    assert apart(weights, expected) < 0.02 * apart(begun, expected)
    odd = tmp_path / "odd"
    goes_on(odd, 1, devices=1, accumulate_grad_batches=1)
    with pytest.raises(Exception, match="after 8 images of an epoch, in batches of 8 on 1"):
        fit(tmp_path / "refused", 6, resume=odd / "step=1.ckpt", **two | {"strategy": spawned()})


@pytest.mark.slow
def test_a_sharded_network_trains_alike(tmp_path: Path) -> None:
    """FSDP2 on two processes, which goes on from its checkpoint, as shards or on one process: the
    weights that are exported, whole and averaged, are those of one process that accumulates, to a
    thousandth of the way that an update goes: more than rounding, which ranks enlarge. A smaller
    perturbation than the default's enlarges it less."""
    alone = ("--trainer.accumulate_grad_batches=2",)
    shards = (
        "--trainer.devices=2",
        "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy",
        "--trainer.strategy.data_parallel_size=2",
        "--trainer.strategy.tensor_parallel_size=1",
        "--trainer.strategy.save_distributed_checkpoint=false",
    )

    def weights(name: str, updates: int, *options: str) -> dict[str, Tensor]:
        folder = tmp_path / name
        command = [
            *(sys.executable, str(ROOT / "train.py"), f"--trainer.default_root_dir={folder}"),
            *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false"),
            *(f"--trainer.max_steps={updates}", "--model.perturbation.scale=0.03"),
            *("--model.diffusion=null", f"--model.unet={json.dumps(UNET)}"),
            *("--data.batch_size=4", "--model.ema_decay=0.1", "--trainer.log_every_n_steps=1"),
            *options,
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        result = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=180, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        exported: dict[str, Tensor] = load_denoiser(next(folder.rglob("diffusion"))).state_dict()
        return exported

    whole = weights("whole", 3, *alone)
    begun = weights("begun", 2, *shards)
    from_there = f"--ckpt_path={next((tmp_path / 'begun').rglob('end.ckpt'))}"
    for options in (shards, alone):
        rest = weights(f"rest of {len(options)}", 3, *options, from_there)
        assert apart(whole, rest) < 1e-3 * apart(whole, begun)


def test_a_sharded_network_skips_no_images(tmp_path: Path) -> None:
    """A device without images to ask about would not call the network, and all others wait."""
    with pytest.raises(InputError, match="skip_below must be 0 where the network is sharded"):
        fit(
            tmp_path / "skipping",
            1,
            settings={"perturbation": RankGaussian(skip_below=0.1)},
            devices=1,
            strategy=ModelParallelStrategy(
                data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False
            ),
        )


@pytest.mark.slow  # the compiler's time
def test_compiled_networks_train_alike_or_not_at_all(tmp_path: Path) -> None:
    """torch's compiler is wrong on some CPUs: a training there is refused."""
    (plain,), refusal = fit(tmp_path / "plain", 3), None
    try:
        (compiled,) = fit(tmp_path / "compiled", 3, settings={"compile": True})
    except InputError as error:
        refusal = str(error)
    if refusal is not None:
        assert "network's weights wrong" in refusal
        return
    # A perturbation is ranked: another order of sums may swap neighbours.
    assert compiled["losses"] == pytest.approx(plain["losses"], rel=1e-2)
    assert compiled["names"] == plain["names"]


class Reversed(torch.autograd.Function):
    """What is given, with a gradient that runs backwards along each line."""

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
    monkeypatch.setattr(torch.nn.Module, "compile", lambda own: original(own, backend=reversing))
    with pytest.raises(InputError, match=r"network's weights wrong .*compile=false"):
        fit(tmp_path / "wrong", 1, settings={"compile": True, "perturbation": None, "unet": UNET})
