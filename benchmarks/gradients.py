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
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from hetpure.benchmark.clock import Clock
from hetpure.benchmark.gradients import (
    acceleration_times,
    accelerations_of,
    bare,
    checked_gradient,
    executions,
    measure_peak,
    policy_times,
    rest_milliseconds,
)
from hetpure.benchmark.networks import (
    CIFAR10,
    NETWORKS,
    PACKAGED,
    PACKAGED_WEIGHTS,
    defense_of,
    denoiser_of,
    images_of,
)
from hetpure.evaluation.provenance import provenance
from hetpure.gradients import Execution
from hetpure.memory import budget_bytes
from hetpure.weights import ASSETS, folder_hash


def times(network: str, batch: int, calls: int, device: str, repeats: int) -> dict[str, Any]:
    """By policy: network calls, milliseconds, those of its floor, and the median ratio."""
    clock = Clock(device)
    images = images_of(network, batch, device)
    denoiser = denoiser_of(network, device)
    defense = defense_of(denoiser, calls, images)
    results: dict[str, Any] = {}
    for name, execution in executions(calls).items():
        results[name] = policy_times(defense, images, execution, clock, repeats)
        print(f"{name}: {results[name]}", flush=True)
    forward, both = bare(denoiser, images)
    rest = rest_milliseconds(defense, images, clock, repeats)
    return {
        "policies": results,
        "call_milliseconds": {
            "forward": statistics.median(clock(forward) for _ in range(repeats)),
            "both": statistics.median(clock(both) for _ in range(repeats)),
        },
        "rest_milliseconds": rest,
        "rest_share": rest / results["tape"]["milliseconds"],
    }


def accelerations(
    network: str, batch: int, device: str, repeats: int, compiled: bool
) -> dict[str, Any]:
    """By acceleration: milliseconds of one bare call, gain over float32, cosine of the gradient of
    a purification of four calls to float32's."""
    clock = Clock(device)
    plain = denoiser_of(network, device)
    images = images_of(network, batch, device)
    exact = checked_gradient(plain, images, Execution("checkpoint"))
    results: dict[str, Any] = {}
    for name, kind in accelerations_of("bfloat16").items():
        graphs = kind.compile not in ("off", "default")
        if (kind.compile != "off" and not compiled) or (graphs and device != "cuda"):
            continue
        results[name] = acceleration_times(plain, images, kind, exact, clock, repeats)
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
    parser.add_argument("--network", default=PACKAGED, choices=(PACKAGED, CIFAR10))
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
    packaged = options.network == PACKAGED
    results: dict[str, Any] = {
        "network": NETWORKS[options.network].title,
        "batch": options.batch,
        "calls": options.calls,
        "plans": options.plans,
        "memory_batch": options.memory_batch,
        "commit": origin["commit"],
        "machine": f"{origin['device']}, {origin['threads']} threads",
        "weights": {PACKAGED_WEIGHTS: folder_hash(ASSETS / PACKAGED_WEIGHTS)} if packaged else {},
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
