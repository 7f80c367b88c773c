"""How far masks and objects lie over one another, on the cluttered images of a finished run.

    python benchmarks/overlap.py runs/evaluate/cluttered_mask
    python benchmarks/overlap.py --thresholds cluttered_wrn    # before any run

For each row with a mask, on clean images and on the adversarial ones of the main attack: the
overlap (intersection over union) of mask and object, the share of the object that the mask covers,
and the share of the image. Means over images with 95% intervals (bootstrap). With `--thresholds`:
the same for a classifier's attention masks by threshold, on the first validation images, and the
share of the image that the objects cover.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import bootstrap
from torch import Tensor

from datamodules.cluttered import ClutteredFashionMNIST, ObjectMask
from hetpure.attention import AttentionMask
from hetpure.disk import write_whole
from hetpure.evaluation.provenance import provenance
from hetpure.evaluation.store import Store
from hetpure.report.sheet import Sheet
from hetpure.weights import load_classifier
from lightning_modules.evaluation_cli import evaluation_cli

MEASURES = ("overlap", "of the object", "of the image")
THRESHOLDS = (0.2, 0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)
OBJECT = "the object itself"
VALIDATION = 256  # images


def measures(mask: Tensor, objects: Tensor) -> dict[str, NDArray[np.float64]]:
    """Of masks and objects (N, 1, H, W), 0 or 1, by measure (N,)."""
    both = (mask * objects).flatten(1).sum(1)
    either = mask.flatten(1).sum(1) + objects.flatten(1).sum(1) - both
    values = (both / either.clamp(min=1), both / objects.flatten(1).sum(1), mask.flatten(1).mean(1))
    return {name: value.double().numpy() for name, value in zip(MEASURES, values, strict=True)}


def mean(values: NDArray[np.float64]) -> dict[str, float]:
    """With its interval."""
    found = {"mean": float(values.mean()), "n": len(values)}
    if np.ptp(values) == 0:
        return {**found, "low": found["mean"], "high": found["mean"]}
    interval = bootstrap((values,), np.mean, n_resamples=2000, rng=np.random.default_rng(0))
    low, high = interval.confidence_interval
    return {**found, "low": float(low), "high": float(high)}


def oracle_of(data: ClutteredFashionMNIST) -> ObjectMask:
    """The garments of these images."""
    split: Any = data.test_split  # it knows that it has their garments
    source: Any = data.source
    return ObjectMask(
        clutter_seed=data.clutter_seed, test_split=split, data_dir=data.data_dir, source=source
    )


def overlaps(run: Path) -> dict[str, Any]:
    """Of every row with a mask, by row and by kind of image."""
    cli = evaluation_cli([f"--config={run / 'config.yaml'}", "--trainer.accelerator=cpu"])
    cli.prepare()
    described, store = cli.model.described, Store(run)
    assert described is not None and isinstance(cli.datamodule, ClutteredFashionMNIST)
    data = cli.datamodule
    oracle = oracle_of(data)
    block = described.images.read(range(len(described.images)))
    found: dict[str, Any] = {}
    for name, row in described.rows.items():
        defense = row.defense
        if not defense.masked:
            continue
        objects = oracle(defense.classifier, block.images, block.samples)
        adversarial, samples = store.images(name, row.cells[1].name)
        assert torch.equal(torch.as_tensor(samples), block.samples)
        found[name] = {}
        for kind, images in (("clean", block.images), ("adversarial", adversarial)):
            mask = defense.mask(images, block.samples)
            assert mask is not None
            values = measures(mask, objects)
            found[name][kind] = {measure: mean(values[measure]) for measure in MEASURES}
    return found


def thresholds(weights: str) -> dict[str, Any]:
    """Of attention masks on clean validation images, by threshold, and of the objects."""
    data = ClutteredFashionMNIST(test_split="validation", limit=VALIDATION, batch_size=VALIDATION)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    classifier = load_classifier(weights)
    objects = oracle_of(data)(classifier, batch["image"], batch["sample"])
    masks = {
        f"threshold {threshold}": AttentionMask(threshold=threshold)(classifier, batch["image"])
        for threshold in THRESHOLDS
    }
    return {
        name: {"clean": {key: mean(values) for key, values in measures(mask, objects).items()}}
        for name, mask in ({OBJECT: objects} | masks).items()
    }


def table(result: Mapping[str, Any]) -> str:
    """A row a row of the run; shares in %."""
    rows = []
    for name, kinds in result["rows"].items():
        for kind, values in kinds.items():
            cells = [
                f"{100 * v['mean']:.1f} [{100 * v['low']:.1f}, {100 * v['high']:.1f}]"
                for v in (values[measure] for measure in MEASURES)
            ]
            rows.append((name, kind, *cells))
    heads = ("mask", "images", "overlap with the object", "covers of the object", "of the image")
    n = next(iter(next(iter(result["rows"].values())).values()))["overlap"]["n"]
    return Sheet(f"Masks and objects (n = {n})", heads, rows, left=2).markdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("run", nargs="?", type=Path)
    what.add_argument("--thresholds", metavar="CLASSIFIER", help="weights: a folder or a name")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/overlap.json"))
    options = parser.parse_args()
    rows = thresholds(options.thresholds) if options.thresholds else overlaps(options.run)
    result = {"rows": rows, "provenance": provenance(torch.device("cpu"))}
    write_whole(options.out, json.dumps(result).encode())
    print(table(result))


if __name__ == "__main__":
    main()
