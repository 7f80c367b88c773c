"""Whether an evaluation of the papers' size fits into the memory that it is given, and how long its
gradient check takes: what `--plan` says of both, and what they are.

Networks of the papers' architectures, google/ddpm-cifar10-32 (35.7M weights) and WRN-28-10 (36.5M),
with random weights; HetPure's purifier of 100 network calls; two random images, a block each, and
one step of PGD. All is written to a temporary folder.

    python benchmarks/paper_size.py --memory_budget 3GB                # the gradient check
    python benchmarks/paper_size.py --memory_budget 3GB --evaluate
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import lightning
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from gradients import denoiser_of
from torch.utils.data import DataLoader

from datamodules.dataset import ImageDataset
from hetpure.evaluation.provenance import peak_memory
from hetpure.memory import gigabytes, weight_bytes
from hetpure.program import run
from hetpure.weights.classifier import build_classifier, save_classifier
from lightning_modules.evaluation_cli import evaluation_cli, print_gradient_checks, print_plan

CPU = torch.device("cpu")
CONFIG = """
seed_everything: 0
model:
  classifier: {folder}/classifier
  denoisers: {{ddpm: {folder}/denoiser}}
  defenses:
    heterogeneous:
      denoiser: ddpm
      purifier:
        class_path: hetpure.purifiers.HeterogeneousPurifier
        init_args: {{steps: 500, resampling: fused, resample_jump: 3, output: state}}
  attack:
    class_path: hetpure.attacks.PGD
    init_args: {{steps: 1, eot_samples: 1, mask: recomputed}}
  protocol: {{report_draws: 1, selection_draws: 1}}
  audit: null
  memory_budget: {budget}
  folder: {folder}/runs
data:
  class_path: paper_size.RandomImages
  init_args: {{count: 2}}
trainer:
  accelerator: cpu
  devices: 1
  inference_mode: false
  logger: false
  enable_checkpointing: false
  enable_progress_bar: false
  enable_model_summary: false
"""


class RandomImages(lightning.LightningDataModule):
    """Images of CIFAR-10's shape with random labels, a block each."""

    description = "random images"
    class_names = tuple("0123456789")
    num_classes, channels, image_size = 10, 3, 32

    def __init__(self, count: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        shape = (count, self.channels, self.image_size, self.image_size)
        images = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(self.num_classes, (count,), generator=generator)
        self.images = ImageDataset(images, labels, torch.arange(count), where=self.description)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.images, batch_size=1)

    def files_sha256(self) -> dict[str, str]:
        return {}


def write_networks(folder: Path) -> None:
    """Random weights of both networks, in the layouts that an evaluation reads."""
    unet = denoiser_of("cifar10").network
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder / "denoiser")
    torch.manual_seed(1)
    config = {
        "architecture": "WideResNet",
        "network": {"depth": 28, "widen_factor": 10, "num_classes": 10, "in_channels": 3},
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    }
    classifier = build_classifier(config, where=folder)
    save_classifier(folder / "classifier", classifier, config)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory_budget", default="3GB")
    parser.add_argument("--evaluate", action="store_true", help="run the whole evaluation too")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_networks(folder)
        config = folder / "config.yaml"
        config.write_text(CONFIG.format(folder=folder, budget=options.memory_budget))
        cli = evaluation_cli([f"--config={config}"])
        cli.prepare()
        run = cli.model.described
        before = peak_memory(CPU)
        (planned,) = print_plan(cli).values()
        with_plan = peak_memory(CPU)
        start = time.perf_counter()
        print_gradient_checks(cli)
        seconds = time.perf_counter() - start
        parts = [
            ("the plan itself, memory", "-", gigabytes(with_plan - before)),
            ("gradient check, s", f"at most {planned.most_check_seconds:.0f}", f"{seconds:.0f}"),
            memory("gradient check", planned.check_bytes, before),
        ]
        if options.evaluate:
            start = time.perf_counter()
            cli.evaluate()
            seconds = time.perf_counter() - start
            parts.append(("evaluation, s", f"{planned.seconds:.0f}", f"{seconds:.0f}"))
            needed = max(planned.gradient_bytes, planned.check_bytes)
            parts.append(memory("evaluation", needed, before))
    networks = weight_bytes([cli.model.networks])
    print(
        f"budget {gigabytes(run.budget)}; networks {gigabytes(networks)}; {gigabytes(before)} in"
        " use before anything was computed\n"
    )
    print("| part | predicted | real |\n| --- | --- | --- |")
    for part in parts:
        print("| " + " | ".join(part) + " |")


def memory(part: str, predicted: int, before: int) -> tuple[str, str, str]:
    """Predicted, and the largest so far above what was in use before."""
    return f"{part}, memory", gigabytes(predicted), gigabytes(peak_memory(CPU) - before)


if __name__ == "__main__":
    run(main, sys.argv[1:])
