"""How far from the floor a gradient is: T network calls forward and backward, and nothing else.

For one network, in one process: T bare calls (forward, and forward with backward to the input),
then the gradient of a purification of T calls under each policy, next to the bare calls of its own
floor. Beside it the share of noise and sampler (the same plan around a network that costs nothing),
network calls counted, what the accelerated call gains, and peak memory against T, each in a process
of its own.

    python benchmarks/gradients.py                                   # the packaged UNet
    python benchmarks/gradients.py --network cifar10 --batch 8       # google/ddpm-cifar10-32
    python benchmarks/gradients.py --network cifar10 --device cuda --batch 64
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from cost import peak_bytes
from diffusers import UNet2DModel
from torch import Tensor, nn

from hetpure.acceleration import Acceleration, accelerate
from hetpure.classifiers import Classifier
from hetpure.defense import Defense, count_network_calls
from hetpure.denoiser import Denoiser
from hetpure.evaluation.provenance import provenance
from hetpure.gradient_check import cosines
from hetpure.gradients import Execution, input_gradient
from hetpure.memory import budget_bytes
from hetpure.noise import noise_for
from hetpure.purifiers import UniformPurifier
from hetpure.samplers import DDPM
from hetpure.schedule import linear_schedule
from hetpure.weights import ASSETS, folder_hash, load_denoiser

PACKAGED = "fashion_mnist_ddpm"
ACCELERATIONS = {
    "float32": Acceleration(),
    "channels last": Acceleration(channels_last=True),
    "bfloat16": Acceleration(precision="bfloat16"),
    "bfloat16, channels last": Acceleration(precision="bfloat16", channels_last=True),
}
COMPILED = {
    "float32, compiled": Acceleration(compile="default"),
    "bfloat16, channels last, compiled": Acceleration("bfloat16", True, "default"),
}
GRAPHS = {"bfloat16, channels last, CUDA graphs": Acceleration("bfloat16", True, "reduce-overhead")}


def denoiser_of(network: str) -> Denoiser:
    """The packaged UNet, or one of google/ddpm-cifar10-32's architecture with random weights."""
    if network == "packaged":
        return load_denoiser(PACKAGED)
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(128, 256, 256, 256),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
        attention_head_dim=None,
    )
    return Denoiser(unet, linear_schedule()).eval().requires_grad_(False)


class Free(nn.Module):
    """A network that costs nothing: what is left is noise, sampler and bookkeeping."""

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        return x * 0.1


class FirstPixel(nn.Module):
    """A classifier that costs nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :1]


def defense_of(denoiser: Denoiser, calls: int, channels: int) -> Defense:
    """A uniform DDPM purifier of exactly `calls` network calls, noise in every step; nothing is
    classified."""
    nothing = Classifier(FirstPixel(), num_classes=1, mean=[0.5] * channels, std=[0.5] * channels)
    strength = max(0.2, calls / 1000)
    points = tuple(round(k * 1000 * strength / calls) for k in range(calls + 1))
    purifier = UniformPurifier(strength=strength, timesteps=points, sampler=DDPM())
    defense = Defense(nothing, purifier, denoiser)
    assert defense.network_calls == calls
    return defense


def images_of(network: str, batch: int, device: str) -> Tensor:
    """(batch, C, H, W) in pixel [0, 1]."""
    shape = (1, 28, 28) if network == "packaged" else (3, 32, 32)
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(1)).to(device)


def gradient_of(defense: Defense, images: Tensor, execution: Execution) -> Tensor:
    """Of the sum of the purified image's pixels."""
    point = images.clone().requires_grad_()
    return input_gradient(defense.purify(point, noise_for(images), None, execution).sum(), point)


class Clock:
    """Milliseconds of a piece of work: CUDA events, or this process's clock."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __call__(self, run: Callable[[], object]) -> float:
        if not self.cuda:
            start = time.perf_counter()
            run()
            return 1000 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(begin.elapsed_time(end))


def executions(calls: int) -> dict[str, Execution]:
    half = calls // 2
    return {
        "tape": Execution("tape"),
        f"hybrid, {half} of {calls} taped": Execution("hybrid", half),
        "checkpoint": Execution("checkpoint"),
    }


def bare(denoiser: Denoiser, images: Tensor) -> tuple[Callable[[], None], Callable[[], None]]:
    """One bare call of the network: forward, and forward with backward to its input."""
    cotangent = torch.ones_like(images)

    def forward() -> None:
        with torch.no_grad():
            denoiser(images, 50)

    def both() -> None:
        x = images.clone().requires_grad_()
        torch.autograd.grad(denoiser(x, 50), x, cotangent)

    return forward, both


def times(network: str, batch: int, calls: int, device: str, repeats: int) -> dict[str, Any]:
    """By policy: network calls, milliseconds, those of its floor, and the median ratio."""
    clock = Clock(device)
    denoiser = denoiser_of(network).to(device)
    images = images_of(network, batch, device)
    defense = defense_of(denoiser, calls, images.shape[1])
    forward, both = bare(denoiser, images)
    results: dict[str, Any] = {}
    for name, execution in executions(calls).items():
        again = execution.recomputed(calls)

        def floor(again: int = again) -> None:
            for _ in range(again):
                forward()
            for _ in range(calls):
                both()

        def run(execution: Execution = execution) -> None:
            gradient_of(defense, images, execution)

        with count_network_calls(defense) as network_calls:
            run()  # warms up too
        pairs = [(clock(run), clock(floor)) for _ in range(repeats)]
        results[name] = {
            "network_calls": len(network_calls),
            "milliseconds": statistics.median(ours for ours, _ in pairs),
            "floor": statistics.median(bound for _, bound in pairs),
            "ratio": statistics.median(ours / bound for ours, bound in pairs),
        }
        print(f"{name}: {results[name]}", flush=True)
    free = Denoiser(Free(), denoiser.schedule).to(device)
    around = defense_of(free, calls, images.shape[1])
    gradient_of(around, images, Execution("tape"))
    rest = [clock(lambda: gradient_of(around, images, Execution("tape"))) for _ in range(repeats)]
    return {
        "policies": results,
        "call_milliseconds": {
            "forward": statistics.median(clock(forward) for _ in range(repeats)),
            "both": statistics.median(clock(both) for _ in range(repeats)),
        },
        "rest_milliseconds": statistics.median(rest),
        "rest_share": statistics.median(rest) / results["tape"]["milliseconds"],
    }


def accelerations(
    network: str, batch: int, device: str, repeats: int, compiled: bool
) -> dict[str, Any]:
    """By acceleration: milliseconds of one bare call, gain over float32, cosine of the gradient of
    a purification of four calls to float32's."""
    clock = Clock(device)
    plain = denoiser_of(network).to(device)
    images = images_of(network, batch, device)
    kinds = ACCELERATIONS | (COMPILED if compiled else {})
    kinds |= GRAPHS if compiled and device == "cuda" else {}
    exact = gradient_of(defense_of(plain, 4, images.shape[1]), images, Execution("checkpoint"))
    reference = bare(plain, images)
    results: dict[str, Any] = {}
    for name, acceleration in kinds.items():
        denoiser = accelerate(plain, acceleration)
        runs = bare(denoiser, images)
        start = time.perf_counter()
        ours = gradient_of(defense_of(denoiser, 4, images.shape[1]), images, Execution("tape"))
        first = time.perf_counter() - start
        for run in (*runs, *reference):
            run()
        samples = [[clock(run) for run in (*runs, *reference)] for _ in range(repeats)]
        results[name] = {
            "forward": statistics.median(sample[0] for sample in samples),
            "both": statistics.median(sample[1] for sample in samples),
            "gain": statistics.median(sample[3] / sample[1] for sample in samples),
            "cosine": float(cosines(ours, exact).mean()),
            "first_seconds": first,
        }
        print(f"{name}: {results[name]}", flush=True)
    return results


def memory(network: str, batch: int, plans: list[int], device: str) -> dict[str, Any]:
    """By policy and plan length: peak bytes, what was predicted, and the slope a step.

    On a CPU also with large tensors mapped one by one: without it a heap that is cut up by the
    coming and going of a network's activations grows a little with every call, kept or not.
    """
    image_bytes = images_of(network, batch, device).nbytes
    budget = budget_bytes(torch.device(device))
    results: dict[str, Any] = {}
    modes: dict[str, tuple[str, dict[str, str]]] = {
        "tape": ("tape", {}),
        "checkpoint": ("checkpoint", {}),
    }
    if device == "cpu":
        modes["checkpoint, mapped"] = ("checkpoint", {"MALLOC_MMAP_THRESHOLD_": "65536"})
    for name, (policy, environment) in modes.items():
        peaks = {}
        for calls in plans:
            arguments = (network, batch, calls, device, policy, budget)
            os.environ |= environment  # the C library reads it when a process starts
            with get_context("spawn").Pool(1) as pool:
                peaks[calls] = pool.apply(measure_peak, arguments)
            for key in environment:
                del os.environ[key]
            print(f"{name}, {calls} calls: {peaks[calls]}", flush=True)
        measured = [(calls, peak) for calls, (peak, _) in peaks.items() if peak is not None]
        slope = None
        if len(measured) > 1:
            slope = statistics.linear_regression(*zip(*measured, strict=True)).slope / image_bytes
        results[name] = {
            "peak_bytes": {str(calls): peak for calls, (peak, _) in peaks.items()},
            "predicted_bytes": {str(calls): expected for calls, (_, expected) in peaks.items()},
            "image_batches_a_step": slope,
        }
    return results


def measure_peak(
    network: str, batch: int, calls: int, device: str, policy: str, budget: int
) -> tuple[int | None, int]:
    """Peak bytes of one gradient above those of the network and of a first small gradient, and
    what `Footprint` predicts; what would take more than the budget is not run."""
    denoiser = denoiser_of(network).to(device)
    images = images_of(network, batch, device)
    small = defense_of(denoiser, 2, images.shape[1])
    gradient_of(small, images[:1], Execution("checkpoint"))
    defense = defense_of(denoiser, calls, images.shape[1])
    taped = calls if policy == "tape" else 0
    predicted = defense.footprint(images).need(batch, calls, taped)
    execution = Execution("hybrid", taped)
    if predicted > budget:
        return None, predicted
    return peak_bytes(lambda: gradient_of(defense, images, execution), device), predicted


def tables(results: dict[str, Any]) -> str:
    """Everything in Markdown."""
    timed = results["times"]
    lines = [
        f"**{results['network']}, batch {results['batch']}, {results['calls']} network calls, on"
        f" {results['machine']}**: one bare call {timed['call_milliseconds']['forward']:.0f} ms"
        f" forward, {timed['call_milliseconds']['both']:.0f} ms with backward to its input;"
        f" noise and sampler {100 * timed['rest_share']:.1f}% of a taped gradient",
        "",
        "| policy | network calls | ms | floor, ms | times its floor |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, row in timed["policies"].items():
        lines.append(
            f"| {name} | {row['network_calls']} | {row['milliseconds']:.0f} | {row['floor']:.0f}"
            f" | {row['ratio']:.3f} |"
        )
    lines += [
        "",
        "| network call | forward, ms | with backward, ms | faster than float32 | cosine"
        " | first gradient, s |",
        "|" + " --- |" * 6,
    ]
    for name, row in results["accelerations"].items():
        lines.append(
            f"| {name} | {row['forward']:.0f} | {row['both']:.0f} | {row['gain']:.2f} "
            f"| {row['cosine']:.5f} | {row['first_seconds']:.0f} |"
        )
    plans = [str(calls) for calls in results["plans"]]
    lines += [
        "",
        f"Peak memory (MB measured / predicted), batch {results['memory_batch']}:",
        "",
        "| policy | " + " | ".join(f"T = {calls}" for calls in plans) + " | image batches a step |",
        "|" + " --- |" * (2 + len(plans)),
    ]
    for name, row in results["memory"].items():
        cells = []
        for calls in plans:
            both = (row["peak_bytes"].get(calls), row["predicted_bytes"].get(calls))
            cells.append(" / ".join("-" if size is None else f"{size / 1e6:.0f}" for size in both))
        slope = row["image_batches_a_step"]
        lines.append(
            f"| {name} | " + " | ".join(cells) + f" | {'-' if slope is None else f'{slope:.2f}'} |"
        )
    weights = ", ".join(f"`{name}@{digest[:12]}`" for name, digest in results["weights"].items())
    return "\n".join([*lines, "", f"Weights: {weights or 'random'}; commit {results['commit']}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="packaged", choices=("packaged", "cifar10"))
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--calls", type=int, default=10, help="T of the timed plan")
    parser.add_argument("--plans", type=int, nargs="+", default=[10, 20, 40, 80, 160])
    parser.add_argument("--memory_batch", type=int, default=64, help="images of the memory table")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--compile", action="store_true", help="also compiled: minutes on a CPU")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/gradients"))
    options = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32
    origin = provenance(torch.device(options.device))
    packaged = options.network == "packaged"
    results: dict[str, Any] = {
        "network": "packaged UNet" if packaged else "architecture of google/ddpm-cifar10-32",
        "batch": options.batch,
        "calls": options.calls,
        "plans": options.plans,
        "memory_batch": options.memory_batch,
        "commit": origin["commit"],
        "machine": f"{origin['device']}, {origin['threads']} threads",
        "weights": {PACKAGED: folder_hash(ASSETS / PACKAGED)} if packaged else {},
        "memory": memory(options.network, options.memory_batch, options.plans, options.device),
        "times": times(
            options.network, options.batch, options.calls, options.device, options.repeats
        ),
        "accelerations": accelerations(
            options.network, options.batch, options.device, options.repeats, options.compile
        ),
    }
    options.folder.mkdir(parents=True, exist_ok=True)
    (options.folder / f"{options.network}.json").write_text(json.dumps(results, indent=2) + "\n")
    text = tables(results)
    (options.folder / f"{options.network}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
