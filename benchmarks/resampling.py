"""What resampling costs and what it buys: none, single_step, fused and multi_step (U = 20).

Cost, on HetPure's published plan (t_l .2, t_s .1, S = 500) with the packaged networks: network
calls counted, seconds of one purification and of one full-gradient step as medians of interleaved
repeats in one process, and peak memory of each in a process of its own. Quality, on a coarser plan
that can be attacked: how visible mask borders are, and accuracy under full-gradient PGD + EOT.

    python benchmarks/resampling.py --figure docs/experiments/resampling.png
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.fashion_mnist import read_packaged
from hetpure.attacks import PGD
from hetpure.attention import AttentionMask
from hetpure.benchmark.clock import peak_bytes
from hetpure.defense import Defense, count_network_calls
from hetpure.evaluation.protocol import Block, Protocol, Record, evaluate_block
from hetpure.evaluation.provenance import provenance
from hetpure.evaluation.results import summarise
from hetpure.evaluation.statistics import in_points
from hetpure.gradients import Execution, Policy, input_gradient
from hetpure.noise import Noise, Stream, noise_for
from hetpure.numbers import Number
from hetpure.purifiers import HeterogeneousPurifier, UniformPurifier
from hetpure.report.table import interval
from hetpure.weights import ASSETS, folder_hash, load_classifier, load_denoiser

SINGLE, MULTI = "single_step U=10", "multi_step U=20"
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"resampling": "none"},
    "single_step U=10": {"resampling": "single_step", "resample_jump": 10},
    "fused U=3": {"resampling": "fused", "resample_jump": 3},
    "multi_step U=20": {"resampling": "multi_step", "resample_jump": 20},
}
CONTROL = "uniform t=200"  # of border inconsistency: what a purifier without a mask gives
WEIGHTS = ("fashion_mnist_wrn", "fashion_mnist_ddpm")
PROTOCOL = Protocol(report_draws=5, selection_draws=3)
KINDS = ("purification", "gradient, tape", "gradient, checkpoint")


def defense_of(variant: str, steps: int, device: str) -> Defense:
    """The packaged classifier and DDPM behind one variant."""
    purifier = (
        UniformPurifier(steps=steps, strength=0.2, through=0.1)
        if variant == CONTROL
        else replace(HeterogeneousPurifier(steps=steps), **VARIANTS[variant])
    )
    classifier, denoiser = load_classifier(WEIGHTS[0]), load_denoiser(WEIGHTS[1])
    return Defense(classifier, purifier, denoiser, AttentionMask(threshold=0.5)).to(device)


def work(
    variant: str, kind: str, steps: int, batch: int, device: str
) -> tuple[Callable[[], None], Defense]:
    """One purification without a gradient, or one gradient of the whole defence."""
    defense = defense_of(variant, steps, device)
    data = read_packaged("validation")
    images = torch.stack([data[i]["image"] for i in range(batch)]).to(device)
    noise, mask = noise_for(images), defense.mask(images)

    def purify() -> None:
        with torch.no_grad():
            defense.purify(images, noise, mask)

    def gradient() -> None:
        point = images.clone().requires_grad_()
        policy: Policy = "tape" if kind.endswith("tape") else "checkpoint"
        input_gradient(defense(point, noise, mask, policy).sum(), point)

    return purify if kind == "purification" else gradient, defense


def costs(steps: int, batch: int, device: str, repeats: int) -> dict[str, Any]:
    """By variant and kind: network calls, median seconds, peak bytes."""
    results: dict[str, Any] = {}
    for kind in KINDS:
        runs = {variant: work(variant, kind, steps, batch, device) for variant in VARIANTS}
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        runs["none"][0]()  # warms up
        network_calls = {}
        for _ in range(repeats):
            for variant, (run, defense) in runs.items():
                start = time.perf_counter()
                with count_network_calls(defense) as calls:
                    run()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds[variant].append(time.perf_counter() - start)
                network_calls[variant] = len(calls)
        del runs, run  # with what they hold: the measurements below need the memory
        for variant in VARIANTS:
            with get_context("spawn").Pool(1) as pool:  # memory that nothing else has touched
                peak = pool.apply(measure_peak, (variant, kind, steps, batch, device))
            results.setdefault(variant, {})[kind] = {
                "network_calls": network_calls[variant],
                "seconds": statistics.median(seconds[variant]),
                "peak_bytes": peak,
            }
            print(f"{kind}, {variant}: {results[variant][kind]}", flush=True)
    return results


def measure_peak(variant: str, kind: str, steps: int, batch: int, device: str) -> int | None:
    """Peak bytes above what the networks and a first call with one image take."""
    work(variant, "purification", 10, 1, device)[0]()
    return peak_bytes(work(variant, kind, steps, batch, device)[0], device)


def border_inconsistency(images: Tensor, purified: Tensor, mask: Tensor) -> Tensor:
    """(B,) gradient energy of what purification changed, across mask borders over elsewhere.

    The change is purified - images, (B, C, H, W) in pixel [0, 1]; its energy is the mean squared
    difference of neighbouring pixels. Pairs whose two pixels differ in the mask (B, 1, H, W) are
    the border. The image's own edges cancel in the change, but borders of a mask tend to lie where
    purifiers change more: compare with a purifier that has no mask. Not finite where an image has
    no border, or no change elsewhere.
    """
    change = purified - images
    energies, crossings = [], []
    for axis in (-2, -1):
        energies.append(change.diff(dim=axis).square().sum(1).flatten(1))
        crossings.append((mask.diff(dim=axis) != 0)[:, 0].flatten(1))
    energy, crossing = torch.cat(energies, 1), torch.cat(crossings, 1)
    return _mean_where(energy, crossing) / _mean_where(energy, ~crossing)


def _mean_where(values: Tensor, where: Tensor) -> Tensor:
    return (values * where).sum(1) / where.sum(1)


def quality(steps: int, count: int, attack: PGD, device: str) -> dict[str, Any]:
    """By variant: border inconsistency of clean images, and accuracy with and without attack."""
    data = read_packaged("test")
    batch = [data[i] for i in range(count)]
    images, labels, samples = (
        torch.stack([item[key] for item in batch]).to(device)
        for key in ("image", "label", "sample")
    )
    mask = defense_of("none", steps, device).mask(images)
    assert mask is not None
    noise = Noise.of(0, Stream.REPORT).on(samples)
    results: dict[str, Any] = {}
    records: list[Record] = []
    seams: dict[str, Tensor] = {}
    for variant in (CONTROL, *VARIANTS):
        defense = defense_of(variant, steps, device)
        defense.execution = Execution("tape")
        with torch.no_grad():
            purified = defense.purify(images, noise, mask)
        seams[variant] = border_inconsistency(images, purified, mask)
        both = seams[variant].isfinite() & seams[CONTROL].isfinite()
        seam, more = seams[variant][both], (seams[variant] - seams[CONTROL])[both]
        results[variant] = {
            "network_calls": defense.network_calls,
            "border": float(seam.mean()),
            "border_more": float(more.mean()),
            "border_more_error": float(more.std() / len(more) ** 0.5),
            "border_images": len(seam),
        }
        for part in torch.arange(count).split(16):  # taped, 44 calls of more would need 20 GB
            block = Block(images[part], labels[part], samples[part])
            records += evaluate_block(variant, defense, attack, block, PROTOCOL, 0).records
        print(f"quality, {variant}: done", flush=True)
    for variant, summary in summarise(records, baseline=SINGLE).items():
        results[variant] |= {
            "standard": summary["clean"]["single"],
            "robust": summary["robust"]["single"],
            "difference": summary.get("difference", {}).get("robust"),
        }
    return results


def tables(results: dict[str, Any]) -> str:
    """Both tables in Markdown, and what single-step saves against multi-step."""
    cost, quality_of = results["cost"], results["quality"]
    lines = [
        f"**Cost of one batch of {results['batch']} on the published plan"
        f" (S = {results['steps']})**",
        "",
        "| resampling | "
        + " | ".join(f"{kind}: calls | s | MB" for kind in KINDS)
        + " |\n|"
        + " --- |" * (1 + 3 * len(KINDS)),
    ]
    for variant, kinds in cost.items():
        cells = [
            f"{kinds[kind]['network_calls']} | {kinds[kind]['seconds']:.2f} | "
            + _megabytes(kinds[kind]["peak_bytes"])
            for kind in KINDS
        ]
        lines.append(f"| {variant} | " + " | ".join(cells) + " |")
    lines += ["", "Single-step against multi-step U=20 saves:", ""]
    for kind in KINDS:
        single, multi = cost[SINGLE][kind], cost[MULTI][kind]
        shares = [
            f"{100 * (1 - single[key] / multi[key]):.0f}% of {name}"
            for key, name in (
                ("network_calls", "network calls"),
                ("seconds", "seconds"),
                ("peak_bytes", "peak memory"),
            )
            # Nothing is taped in a purification: its peak is the allocator's affair.
            if multi[key] and (key != "peak_bytes" or kind != "purification")
        ]
        lines.append(f"- {kind}: {', '.join(shares)}")
    lines += [
        "",
        f"**Quality (S = {results['quality_steps']}, n = {results['images']},"
        f" {results['attack']})**",
        "",
        "| purifier | network calls | border inconsistency | more than uniform"
        " | standard | robust | robust difference |",
        "|" + " --- |" * 7,
    ]
    for variant, row in quality_of.items():
        apart = "-" if row["difference"] is None else in_points(row["difference"])
        more = f"{row['border_more']:+.2f} ± {row['border_more_error']:.2f}"
        lines.append(
            f"| {variant} | {row['network_calls']} | {row['border']:.2f} "
            f"| {'-' if variant == CONTROL else more} | {interval(row['standard'])} "
            f"| {interval(row['robust'])} | {apart} |"
        )
    lines += [
        "",
        "Border inconsistency: gradient energy of the change across mask borders over elsewhere,"
        " clean images, mean; more than the uniform purifier, which has no seam, paired by image,"
        " ± standard error. Accuracy in % over 5 report draws with its 95% interval;"
        f" robust difference: points from {SINGLE}, paired by sample. Weaker than full: "
        + "; ".join(results["weaker_than_full"])
        + ".",
        "",
        f"On {results['machine']}, with "
        + ", ".join(f"`{name}@{digest[:12]}`" for name, digest in results["weights"].items())
        + f", commit {results['commit']}.",
    ]
    return "\n".join(lines)


def draw(results: dict[str, Any], path: Path) -> None:
    """Calls, seconds and memory of a taped gradient step, and both quality measures."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 5)
    names = list(VARIANTS)
    cost, quality_of = results["cost"], results["quality"]
    taped = [cost[name]["gradient, tape"] for name in names]
    robust = [quality_of[name]["robust"] for name in names]
    panels = (
        ("network calls", [cell["network_calls"] for cell in taped], None),
        ("seconds, gradient step", [cell["seconds"] for cell in taped], None),
        ("taped peak (MB)", [(cell["peak_bytes"] or 0) / 1e6 for cell in taped], None),
        (
            "border inconsistency",
            [quality_of[name]["border"] for name in names],
            None,
        ),
        (
            "robust accuracy (%)",
            [100 * estimate["accuracy"] for estimate in robust],
            [
                [100 * (e["accuracy"] - e["low"]) for e in robust],
                [100 * (e["high"] - e["accuracy"]) for e in robust],
            ],
        ),
    )
    for axis, (title, values, errors) in zip(axes, panels, strict=True):
        axis.bar(range(len(names)), values, yerr=errors, color="#1b6ca8", ecolor="#333333")
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(names)), [n.replace(" ", "\n") for n in names], fontsize=7)
    axes[3].axhline(quality_of[CONTROL]["border"], color="#c0392b", linewidth=1)
    figure.savefig(path, dpi=120)


def _megabytes(peak: int | None) -> str:
    return "-" if peak is None else f"{peak / 1e6:.0f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=500, help="S of the cost table")
    parser.add_argument("--batch", type=int, default=1, help="images in the cost table")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quality_steps", type=int, default=20, help="S of the quality table")
    parser.add_argument("--images", type=int, default=64, help="images in the quality table")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--folder", type=Path, default=Path("runs/benchmarks/resampling"))
    parser.add_argument("--figure", type=Path, default=None, help="default: in the folder")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    attack = PGD(
        epsilon=Number("16/255"),
        steps=10,
        step_size=Number("4/255"),
        eot_samples=2,
        mask="recomputed",
    )
    asked = {
        "steps": options.steps,
        "batch": options.batch,
        "quality_steps": options.quality_steps,
        "images": options.images,
        "attack": attack.describe(),
        "device": options.device,
    }
    path = options.folder / "results.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if {key: results.get(key) for key in asked} != asked:  # of other options: start anew
        origin = provenance(torch.device(options.device))
        results = asked | {
            "commit": origin["commit"],
            "machine": f"{origin['device']}, {origin['threads']} threads",
            "weights": {name: folder_hash(ASSETS / name) for name in WEIGHTS},
            "weaker_than_full": [*attack.weaker_than_full(), *PROTOCOL.weaker_than_full()],
        }
    parts = {
        "cost": lambda: costs(options.steps, options.batch, options.device, options.repeats),
        "quality": lambda: quality(options.quality_steps, options.images, attack, options.device),
    }
    for part, measure in parts.items():
        if part not in results:  # a run that was stopped after its first part goes on here
            results[part] = measure()
            path.write_text(json.dumps(results, indent=2) + "\n")
    text = tables(results)
    (options.folder / "tables.md").write_text(text + "\n")
    draw(results, options.figure or options.folder / "figure.png")
    print(text)


if __name__ == "__main__":
    main()
