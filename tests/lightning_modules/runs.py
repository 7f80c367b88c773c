"""Small evaluations: networks and images of their own, run here or as processes."""

import functools
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel

import evaluate
from hetpure.program import run
from hetpure.saved_images import BLOCKS
from hetpure.weights import save_classifier, save_diffusion
from hetpure.weights.classifier import build_classifier
from lightning_modules.evaluation_cli import EvaluationCLI, evaluation_cli
from tests.ports import next_port

ROOT = Path(__file__).parent.parent.parent
CONFIG = """
model:
  run: one
  classifier: {world}/classifier
  denoisers: {{ddpm: {world}/diffusion}}
  defenses:
    plain: {{}}
    masked:
      denoiser: ddpm
      mask: {{threshold: 0.5}}
      purifier:
        class_path: hetpure.purifiers.HeterogeneousPurifier
        init_args: {{t_large: 0.1, t_small: 0.05, steps: 20, resampling: none}}
  attack:
    class_path: hetpure.attacks.PGD
    init_args: {{epsilon: 16/255, steps: 2, step_size: 8/255, eot_samples: 2, mask: recomputed}}
  attacks:
    square:
      attack:
        class_path: hetpure.attacks.Square
        init_args: {{epsilon: 16/255, steps: 2, eot_samples: 1}}
      limit: 3
    dw both:
      attack:
        class_path: hetpure.attacks.PGD
        init_args: {{epsilon: 16/255, steps: 1, mask: recomputed}}
      known: [forward, reverse]
      defenses: [plain, masked]
  protocol: {{report_draws: 2, selection_draws: 2}}
  audit: {{images: 1, queries: 2}}
  folder: runs
data:
  class_path: datamodules.npz.NPZ
  init_args: {{num_classes: 4, file: {world}/images.npz, test_split: test, batch_size: 2}}
trainer:
  accelerator: cpu
  devices: 1
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""
ALONE = ("--model.attacks={}", "--model.audit=null")  # the main attack
PLAIN = "--model.defenses={plain: {}}"
CLASSIFIER: dict[str, Any] = {
    "architecture": "WideResNet",
    "network": {"depth": 10, "widen_factor": 1, "num_classes": 4, "in_channels": 1},
    "mean": [0.4],
    "std": [0.3],
}
UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8],
    "norm_num_groups": 2,
    "down_block_types": ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"],
    "add_attention": False,
}


def write_world(folder: Path, seed: int = 1) -> None:
    """A classifier, a diffusion, and four images of 8 x 8 pixels whose labels are its answers."""
    torch.manual_seed(seed)
    classifier = build_classifier(CLASSIFIER, where=folder).eval()
    save_classifier(folder / "classifier", classifier, CLASSIFIER)
    save_diffusion(folder / "diffusion", UNet2DModel(**UNET), DDPMScheduler())
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        labels = classifier(images).argmax(1)
    np.savez(folder / "images.npz", images=images.numpy(), labels=labels.numpy())


def main(*options: str) -> None:
    """`evaluate.py --config=config.yaml` in this process."""
    evaluate.main(["--config=config.yaml", *options])


def command(*options: str) -> EvaluationCLI:
    """What it builds, prepared: networks, images and the run's description."""
    cli = evaluation_cli(["--config=config.yaml", *options])
    cli.prepare()
    return cli


def refused(
    capsys: pytest.CaptureFixture[str],
    *arguments: str,
    program: Callable[[list[str]], None] = evaluate.main,
) -> str:
    """The one line with which a command line that cannot be used ends."""
    with pytest.raises(SystemExit) as stop:
        run(program, list(arguments))
    printed = capsys.readouterr().err
    assert stop.value.code == 2, printed
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and printed.rstrip().endswith(errors[0])
    assert "Traceback" not in printed
    return errors[0]


def records(place: Path) -> list[str]:
    """The lines of a run's records."""
    return (place / "runs/one/records.jsonl").read_text().splitlines()


def results(place: Path) -> dict[str, Any]:
    """A run's results without what depends on clock, memory and commit."""
    content: dict[str, Any] = json.loads((place / "runs/one/results.json").read_text())
    for row in content["defenses"].values():
        row["cost"] = {key: row["cost"][key] for key in ("network_calls", "audit_calls")}
    keys = ("run", "samples", "missing", "struck", "defenses", "notes", "weaker_than_full")
    return {key: content[key] for key in keys}


def blocks(place: Path) -> dict[str, bytes]:
    """The files of a run's finished blocks."""
    return {path.name: path.read_bytes() for path in (place / "runs/one" / BLOCKS).glob("0*")}


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


@functools.cache
def _start_server() -> None:
    """Where what it imports once for all is found."""
    here = Path.cwd()
    os.chdir(ROOT)
    forkserver.ensure_running()
    os.chdir(here)


class Program:
    """`evaluate.py` in a process that is forked from one that has imported everything already.

    Args:
        place: the folder it is started in, which has a config.yaml.
        options: of the command line.
        environment: variables that it gets.
    """

    def __init__(self, place: Path, *options: str, **environment: str) -> None:
        _start_server()
        self._output, writing = _context.Pipe(duplex=False)
        arguments = (place, options, environment, writing)
        self.process: BaseProcess = _context.Process(target=_evaluate, args=arguments)
        self.process.start()
        writing.close()

    def signal(self, number: int) -> None:
        """Sends a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def ended(self, seconds: float = 120) -> tuple[int | None, str]:
        """Waits for the end: exit code and output, of at most 64 KiB."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, "it has not ended"
        output = b""
        while part := os.read(self._output.fileno(), 2**16):
            output += part
        self._output.close()
        return self.process.exitcode, output.decode()

    def kill(self) -> None:
        """SIGKILL, and the end of it."""
        self.process.kill()
        self.process.join()


def two_programs(
    place: Path, *options: str, second: tuple[str, ...] = (), elsewhere: Path | None = None
) -> list[Program]:
    """Two processes as torchrun starts them; `second` are options of the second alone, which may
    be started elsewhere."""
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(next_port()),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "one",
    }
    options = ("--trainer.devices=2", "--trainer.strategy=ddp", *options)
    return [
        Program(folder, *options, *added, **shared, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank, (folder, added) in enumerate([(place, ()), (elsewhere or place, second)])
    ]


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    """Until it holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.001)


def _evaluate(
    place: Path, options: tuple[str, ...], environment: dict[str, str], output: Any
) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs inherit it ignored
    torch.set_num_threads(1)
    os.environ.update(environment)
    os.chdir(place)
    for stream in (1, 2):
        os.dup2(output.fileno(), stream)
    output.close()
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
    run(evaluate.main, ["--config=config.yaml", *options])
