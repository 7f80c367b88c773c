"""The papers' sizes on this machine: what a user's commands take, with random weights in files of
the published formats.

    python benchmarks/paper_size.py cifar10     # convert, and evaluate two images, by both DDPMs
    python benchmarks/paper_size.py imagenet    # convert the 552M network, one step of an attack
    python benchmarks/paper_size.py addt        # three updates
    python benchmarks/paper_size.py             # all: an hour or two on two cores

Each command is a process of its own, whose time and largest memory are measured. HetPure's purifier
of 100 network calls, PGD of one step; on ImageNet a schedule of two calls.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from datamodules.cifar import CIFAR10  # noqa: E402
from datamodules.imagenet import CLASSES, COUNTS  # noqa: E402
from hetpure.disk import write_whole  # noqa: E402
from hetpure.evaluation.provenance import provenance  # noqa: E402
from hetpure.memory import gigabytes  # noqa: E402
from hetpure.program import FAILED  # noqa: E402
from hetpure.weights.published import FILES  # noqa: E402
from tests.published_files import write_published  # noqa: E402

EVALUATION = """
seed_everything: 0
model:
  classifier: weights/{classifier}
  denoisers: {{diffusion: weights/{diffusion}}}
  defenses:
    heterogeneous:
      denoiser: diffusion
      purified_size: {size}
      purifier:
        class_path: hetpure.purifiers.HeterogeneousPurifier
        init_args: {{t_large: {strong}, t_small: {weak}, steps: {steps}, resampling: fused,
          resample_jump: 3, output: state}}
  attack:
    class_path: hetpure.attacks.PGD
    init_args: {{steps: 1, eot_samples: 1, mask: recomputed}}
  protocol: {{report_draws: 1, selection_draws: 1}}
  audit: null
  memory_budget: {budget}
  run: {diffusion}
data:
  class_path: {data}
  init_args: {{data_dir: {place}, limit: {images}, batch_size: 1}}
trainer:
  accelerator: cpu
  devices: 1
  inference_mode: false
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""


class Measured(NamedTuple):
    """A command, what it ended with, its seconds and the most memory that it had."""

    command: str
    code: int
    seconds: float
    bytes: int


def measured(what: str, arguments: Sequence[str], folder: Path) -> Measured:
    """Runs `hetpure ARGUMENTS` in the folder."""
    print(f"$ hetpure {' '.join(arguments)}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "hetpure", *arguments], cwd=folder, env=environment
    )
    _, status, used = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    unit = 1 if sys.platform == "darwin" else 1024
    assert isinstance(used, resource.struct_rusage)
    return Measured(what, os.waitstatus_to_exitcode(status), seconds, used.ru_maxrss * unit)


def converted(name: str, folder: Path) -> Measured:
    """A file of the published size and layout becomes a folder; the file is gone then."""
    file = folder / FILES[name].file
    write_published(name, file, full=True)
    options = FILES[name].options.split()
    told = ["convert", file.name, f"weights/{name}", *options]
    found = measured(f"convert {file.name} ({gigabytes(file.stat().st_size)})", told, folder)
    file.unlink()
    return found


def write_cifar10(folder: Path) -> None:
    """Files of the published layout and size with random pixels."""
    random = np.random.default_rng(0)
    place = folder / "data" / CIFAR10.binary.folder
    place.mkdir(parents=True)
    for name in CIFAR10.binary.names:
        records = random.integers(0, 256, (10_000, 3073), np.uint8)
        records[:, 0] = np.arange(10_000) % 10
        (place / name).write_bytes(records.tobytes())


def write_imagenet(folder: Path) -> None:
    """As many pictures of each class as published, all of a class the same random one."""
    random = np.random.default_rng(0)
    each = COUNTS["test"] // CLASSES
    for number in range(CLASSES):
        place = folder / "imagenet" / "val" / f"n{number:08d}"
        place.mkdir(parents=True)
        pixels = random.integers(0, 256, (8, 8, 3), np.uint8)
        names = [f"ILSVRC2012_val_{each * number + k:08d}.JPEG" for k in range(each)]
        Image.fromarray(pixels).resize((260, 240)).save(place / names[0])
        for name in names[1:]:
            (place / name).hardlink_to(place / names[0])


def evaluated(folder: Path, **settings: object) -> Measured:
    """The evaluation with such settings."""
    path = folder / f"{settings['diffusion']}.yaml"
    path.write_text(EVALUATION.format(**settings))
    what = f"evaluate {settings['images']} images, {settings['diffusion']}"
    return measured(what, ["evaluate", "--config", path.name], folder)


def cifar10(folder: Path) -> list[Measured]:
    """Both diffusion networks of the papers before WRN-28-10."""
    write_cifar10(folder)
    diffusions = ["cifar10_ddpm_ema", "cifar10_ddpmpp_table"]
    classifier = "cifar10_wrn_28_10_standard"
    parts = [converted(name, folder) for name in (classifier, *diffusions)]
    common = {"classifier": classifier, "size": "null", "strong": 0.2, "weak": 0.1, "steps": 500}
    common |= {"budget": "3GB", "images": 2, "data": "datamodules.cifar.CIFAR10", "place": "data"}
    return [*parts, *(evaluated(folder, diffusion=name, **common) for name in diffusions)]


def imagenet(folder: Path) -> list[Measured]:
    """The 552M network, purifying at 256 pixels before a ResNet-50."""
    write_imagenet(folder)
    names = {"classifier": "imagenet_resnet50", "diffusion": "imagenet_guided"}
    parts = [converted(name, folder) for name in names.values()]
    schedule = {"size": 256, "strong": 0.02, "weak": 0.01, "steps": 100, "budget": "8GB"}
    data = {"images": 1, "data": "datamodules.imagenet.ImageNet", "place": "imagenet"}
    return [*parts, evaluated(folder, **names, **schedule, **data)]


def addt(folder: Path) -> list[Measured]:
    """The published training, in batches of eight."""
    if not (folder / "data").exists():
        write_cifar10(folder)
    names = {"diffusion": "cifar10_ddpm_ema", "guide": "cifar10_wrn_28_10_addt"}
    missing = [name for name in names.values() if not (folder / "weights" / name).exists()]
    parts = [converted(name, folder) for name in missing]
    told = ["train", "--config", "paper/addt_cifar10", "--trainer.max_steps=3"]
    told += [f"--model.{key}=weights/{name}" for key, name in names.items()]
    told += ["--data.batch_size=8", "--trainer.accelerator=cpu"]
    told += ["--trainer.callbacks=lightning_modules.callbacks.ExportWeights"]
    return [*parts, measured("train 3 updates of 8 images", told, folder)]


PARTS = {"cifar10": cifar10, "imagenet": imagenet, "addt": addt}


def table(parts: Sequence[Measured]) -> str:
    """A row a command."""
    rows = [
        f"| {part.command} | {part.code} | {part.seconds:.0f} | {gigabytes(part.bytes)} |"
        for part in parts
    ]
    return "\n".join(["| command | exit | seconds | memory |", "| --- | --- | --- | --- |", *rows])


def main() -> None:
    """Runs the parts that are asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/paper_size.json"))
    options = parser.parse_args()
    parts: list[Measured] = []
    with tempfile.TemporaryDirectory() as name:
        for what in options.what:
            parts += PARTS[what](Path(name))
            content: dict[str, Any] = {"parts": [part._asdict() for part in parts]}
            content["provenance"] = provenance(torch.device("cpu"))
            write_whole(options.out, json.dumps(content).encode())
    print(table(parts))
    if any(part.code for part in parts):
        sys.exit(FAILED)


if __name__ == "__main__":
    main()
