"""ADDT under the trainer's options: several processes, accumulation, precision, compilation."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor

import train
from datamodules.dataset import epoch_order
from datamodules.fashion_mnist import FashionMNIST
from hetpure.addt import RankGaussian
from hetpure.errors import InputError
from hetpure.weights import load_denoiser
from lightning_modules.diffusion import DiffusionTraining
from tests.lightning_modules.runs import none_left, started

__all__ = ["none_left"]  # a fixture

ROOT = Path(__file__).parent.parent.parent
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


def spawned() -> DDPStrategy:
    return DDPStrategy(process_group_backend="gloo", start_method="spawn")


def fit(
    folder: Path,
    updates: int,
    *,
    compiled: bool = False,
    save: bool = False,
    resume: Path | None = None,
    perturbation: RankGaussian = RankGaussian(steps=2),  # noqa: B008 (frozen)
    **options: Any,
) -> list[dict[str, Any]]:
    """What each process kept of a training under the trainer's options."""
    folder.mkdir()
    saving = [ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)]
    torch.manual_seed(0)  # the same weights to start from
    module = DiffusionTraining(
        unet=UNET,
        guide="fashion_mnist_wrn",
        perturbation=perturbation,
        compile=compiled,
    )
    trainer = Trainer(
        max_steps=updates,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=save,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[Kept(folder), *(saving if save else [])],
        **options,
    )
    trainer.fit(module, FashionMNIST(source="packaged", batch_size=8), ckpt_path=resume)
    return [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pt"))]


@pytest.mark.parametrize(
    ("precision", "bound", "updates", "accumulated"),
    [("32-true", 1e-5, 20, 1), ("64-true", 1e-12, 2, 2)],
)
def test_two_processes_are_one_that_accumulates_twice_as_much(
    precision: Any, bound: float, updates: int, accumulated: int, tmp_path: Path
) -> None:
    """The same images under the same noise, the same gradient (so nothing was summed over
    processes but the weights' gradients of the outer loss), and so the same training."""
    two = {"devices": 2, "accumulate_grad_batches": accumulated, "precision": precision}
    one = two | {"devices": 1, "accumulate_grad_batches": 2 * accumulated}
    first, second = fit(tmp_path / "two", updates, strategy=spawned(), **two)
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


def goes_on(folder: Path, updates: int, resume: Path | None = None, **options: Any) -> Any:
    """Samples by batch and process of a training that saves every update, and its last state."""
    (kept, *more) = fit(folder, updates, resume=resume, save=True, **options)
    state = torch.load(folder / f"step={updates}.ckpt", weights_only=True)
    return [kept["samples"], *(one["samples"] for one in more)], state


@pytest.mark.parametrize("before", [1, 2])
def test_another_number_of_processes_goes_on(before: int, tmp_path: Path) -> None:
    """After 2 updates of a global batch of 16, in the middle of an epoch of 6: the other number
    sees the very images that are left, and ends at weights that differ by rounding."""
    one = {"devices": 1, "accumulate_grad_batches": 2, "limit_train_batches": 12}
    two = {"devices": 2, "strategy": spawned(), "limit_train_batches": 6}
    first, second = (one, two) if before == 1 else (two, one)
    whole, expected = goes_on(tmp_path / "whole", 6, **one)
    goes_on(tmp_path / "first", 2, **first)
    rest, found = goes_on(tmp_path / "rest", 6, tmp_path / "first" / "step=2.ckpt", **second)
    seen = [sample for process in rest for batch in process for sample in batch]
    assert sorted(seen) == sorted(sample for batch in whole[0][4:] for sample in batch)
    begun = torch.load(tmp_path / "whole" / "step=1.ckpt", weights_only=True)
    assert apart(found, expected) < 0.02 * apart(begun, expected)
    odd = tmp_path / "odd"
    goes_on(odd, 1, devices=1, accumulate_grad_batches=1)
    with pytest.raises(Exception, match="after 8 images of an epoch, in batches of 8 on 1"):
        fit(tmp_path / "refused", 6, resume=odd / "step=1.ckpt", **two | {"strategy": spawned()})


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Between the weights of two checkpoints."""
    pairs = [(value, other["state_dict"][name]) for name, value in one["state_dict"].items()]
    return float(torch.stack([(a - b).norm() for a, b in pairs]).norm())


def run_train(folder: Path, *options: str, **environment: str) -> subprocess.Popen[str]:
    """`python train.py`, one thread a process."""
    process = subprocess.Popen(
        [
            *(sys.executable, str(ROOT / "train.py"), f"--trainer.default_root_dir={folder}"),
            *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false", *options),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    started.append(process)
    return process


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
        same = (
            *(f"--trainer.max_steps={updates}", "--model.perturbation.scale=0.03"),
            *("--model.diffusion=null", f"--model.unet={json.dumps(UNET)}"),
            *("--data.batch_size=4", "--model.ema_decay=0.1"),
        )
        running = run_train(tmp_path / name, *same, *options)
        said, _ = running.communicate(timeout=180)
        assert running.returncode == 0, said
        state: dict[str, Tensor] = load_denoiser(
            next((tmp_path / name).rglob("diffusion"))
        ).state_dict()
        return state

    def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
        return float(torch.stack([(one[name] - other[name]).norm() for name in one]).norm())

    whole = weights("whole", 3, *alone)
    begun = weights("begun", 2, *shards)
    from_there = f"--ckpt_path={next((tmp_path / 'begun').rglob('end.ckpt'))}"
    for options in (shards, alone):
        rest = weights(f"rest of {len(options)}", 3, *options, from_there)
        assert apart(whole, rest) < 1e-3 * apart(whole, begun)


def test_a_sharded_network_skips_no_rows(tmp_path: Path) -> None:
    """A device without rows to ask would not call the network, and all others wait for it."""
    with pytest.raises(InputError, match="skip_below must be 0 where the network is sharded"):
        fit(
            tmp_path / "skipping",
            1,
            perturbation=RankGaussian(skip_below=0.1),
            devices=1,
            strategy=ModelParallelStrategy(
                data_parallel_size=1, tensor_parallel_size=1, save_distributed_checkpoint=False
            ),
        )


# The script of a job, in test_signals.py, goes on after SIGUSR1.
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)]
)
def test_a_training_that_is_told_to_stop_goes_on_bit_for_bit(
    number: signal.Signals, tmp_path: Path
) -> None:
    """Told in the middle of an update of two batches: that update is ended, saved, and the rest
    of the training is what it would have been."""
    plain = [
        *("--model.perturbation=null", "--data.batch_size=4", "--trainer.max_steps=20"),
        "--trainer.accumulate_grad_batches=2",
        "--trainer.callbacks=lightning_modules.callbacks.ExportWeights",
        "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.every_n_train_steps=1",
    ]

    def run(folder: Path, *options: str) -> subprocess.Popen[str]:
        return run_train(folder, *plain, *options)

    said, _ = run(tmp_path / "whole").communicate(timeout=120)
    whole = torch.load(next((tmp_path / "whole").rglob("end.ckpt")), weights_only=True)
    stopped = run(tmp_path / "stopped")
    until = time.monotonic() + 60
    while not list((tmp_path / "stopped").rglob("*.ckpt")) and time.monotonic() < until:
        time.sleep(0.01)
    stopped.send_signal(number)
    said, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 128 + number, said
    (path,) = (tmp_path / "stopped").rglob("stopped.ckpt")
    assert f"--ckpt_path={path}" in said
    assert not list((tmp_path / "stopped").rglob("diffusion"))
    assert 0 < torch.load(path, weights_only=True)["global_step"] < 20
    said, _ = run(tmp_path / "rest", f"--ckpt_path={path}").communicate(timeout=120)
    rest = torch.load(next((tmp_path / "rest").rglob("end.ckpt")), weights_only=True)
    assert rest["global_step"] == whole["global_step"] == 20
    for name, value in whole["state_dict"].items():
        assert torch.equal(rest["state_dict"][name], value), name


def test_all_processes_say_by_which_signal_one_was_stopped(tmp_path: Path) -> None:
    """A scheduler asks the exit code, and not of a process of its choice."""
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.environ["MASTER_PORT"], "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "one"}  # fmt: skip
    options = [
        *("--model.perturbation=null", "--data.batch_size=4", "--trainer.max_steps=2000"),
        *("--trainer.devices=2", "--trainer.strategy=ddp"),
        "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.every_n_train_steps=1",
    ]
    both = [run_train(tmp_path, *options, **told, RANK=str(n), LOCAL_RANK=str(n)) for n in range(2)]
    until = time.monotonic() + 90
    while not list(tmp_path.rglob("*.ckpt")) and time.monotonic() < until:
        time.sleep(0.01)
    both[1].send_signal(signal.SIGUSR1)
    said = [one.communicate(timeout=60)[0] for one in both]
    assert [one.returncode for one in both] == [128 + signal.SIGUSR1] * 2, said
    assert len(list(tmp_path.rglob("stopped.ckpt"))) == 1


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
