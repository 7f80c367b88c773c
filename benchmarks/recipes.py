"""What the recipes of docs/recipes.md would cost: network calls and memory, from their plans.

    python benchmarks/recipes.py                         # all; one that is there is not made again
    python benchmarks/recipes.py hetpure_svhn            # these
    python benchmarks/recipes.py --folder /tmp/weights   # keeps the files that are made

Networks have the published sizes and random weights, images the published shapes and random pixels.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from paper_size import ROOT, write_cifar10, write_imagenet
from scipy.io import savemat

from datamodules.cifar import CIFAR100
from datamodules.svhn import SVHN
from hetpure.disk import write_whole
from hetpure.errors import InputError
from hetpure.evaluation.plan import plan
from hetpure.evaluation.provenance import provenance
from hetpure.memory import gigabytes, weight_bytes
from hetpure.program import run
from hetpure.report.sheet import Sheet
from hetpure.weights.folders import unpinned
from hetpure.weights.published import FILES
from lightning_modules.doctor import networks_of
from lightning_modules.evaluation_cli import evaluation_cli
from tests.published_files import write_and_convert

RECIPES = ROOT / "configs" / "evaluate" / "paper"
NAMES = [path.stem for path in sorted(RECIPES.glob("*.yaml"))]
# Accuracies in % as published, standard and robust; of two rows or two ways to count, both.
PUBLISHED = {
    "hetpure_cifar10_wrn28": ("93.16", "80.45"),
    "hetpure_cifar10_wrn70": ("93.36", "84.83"),
    "gradual_cifar10": ("90.16", "70.47"),
    "gowal_cifar10": ("88.54", "63.38"),
    "rebuffi_cifar10": ("92.22", "66.56"),
    "addt_cifar10": ("-", "47.27 / 51.46; DW-box 16.80 / 39.16"),
    "diffpure_cifar10": ("-", "worst of 10: 17.2, vote: 39.5"),
    "gdmp_cifar10": ("-", "worst of 10: 7.0, vote: 16.8"),
    "diffpure_imagenet": ("-", "worst of 8: 12.1, vote: 29.7"),
}
UNKNOWN = ("-", "-")
NOT_PLANNED: dict[str, Any] = {"recipes": {}}  # what stands for records where there are none
REPRODUCED: dict[str, str] = {}  # by recipe, what someone found who ran it


def write_cifar100(folder: Path) -> None:
    """Test images of the published layout with random pixels."""
    records = np.random.default_rng(0).integers(0, 256, (10_000, 3074), np.uint8)
    records[:, 0], records[:, 1] = np.arange(10_000) % 20, np.arange(10_000) % 100
    place = folder / "data" / CIFAR100.binary.folder
    place.mkdir(parents=True)
    (place / "test.bin").write_bytes(records.tobytes())


def write_svhn(folder: Path) -> None:
    """Test images of the published layout with random pixels."""
    count = SVHN.counts["test"]
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, count), np.uint8)
    digits = (np.arange(count) % 10 + 1).astype(np.uint8)[:, None]
    (folder / "data").mkdir(exist_ok=True)
    savemat(folder / "data" / "test_32x32.mat", {"X": images, "y": digits})


DATA: dict[str, tuple[str, Callable[[Path], None]]] = {
    "CIFAR10": ("data/cifar-10-batches-bin", write_cifar10),
    "CIFAR100": ("data/cifar-100-binary", write_cifar100),
    "SVHN": ("data/test_32x32.mat", write_svhn),
    "ImageNet": ("imagenet", write_imagenet),
}


def planned(recipe: str) -> dict[str, Any]:
    """The plan of a recipe, with what it needs made in the current folder."""
    config = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())
    data = config["data"]["class_path"].rpartition(".")[2]
    there, write = DATA[data]
    if not Path(there).exists():
        write(Path.cwd())
    for name in {Path(unpinned(network)[0]).name for network in networks_of(config)}:
        if not Path("weights", name).exists():
            file = Path(FILES[name].file.replace("/", "_").replace("`", ""))
            write_and_convert(name, file, Path("weights") / name, full=True)
            file.unlink()
    model = config["model"]
    model["classifier"] = unpinned(model["classifier"])[0]
    model["denoisers"] = {key: unpinned(value)[0] for key, value in model["denoisers"].items()}
    if config["data"]["init_args"].get("subset") == "published_512":  # of the published files only
        config["data"]["init_args"] |= {"subset": "all", "limit": 512}
    Path(f"{recipe}.yaml").write_text(yaml.safe_dump(config))
    cli = evaluation_cli(["--config", f"{recipe}.yaml", "--trainer.accelerator=cpu"])
    cli.prepare()
    described = cli.model.described
    assert described is not None
    rows = plan(described)
    return {
        "calls": sum(phase.network_calls for row in rows.values() for phase in row.phases),
        "images": len(described.images),
        "networks": weight_bytes([cli.model.networks]),
        "recomputed": max(row.footprint.need(1, row.steps, 0) for row in rows.values()),
        "taped": max(row.footprint.need(1, row.steps, row.steps) for row in rows.values()),
        "call": {name: row.call_seconds for name, row in rows.items()},
    }


def table(found: Mapping[str, Any]) -> str:
    """A row a recipe."""
    rows = []
    for name in NAMES:
        cost = found["recipes"].get(name)
        config = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
        wanted = dict.fromkeys(Path(unpinned(network)[0]).name for network in networks_of(config))
        costs = (
            (
                f"{cost['calls']:,}" if cost["calls"] else "none",
                gigabytes(cost["networks"] + cost["recomputed"]),
                gigabytes(cost["networks"] + cost["taped"]),
            )
            if cost
            else ("not planned",) * 3
        )
        published = PUBLISHED.get(name, UNKNOWN)
        files = ", ".join(f"`{folder}`" for folder in wanted)
        rows.append(
            (f"`paper/{name}`", files, *published, *costs, REPRODUCED.get(name, "not attempted"))
        )
    heads = (
        "recipe", "weights", "standard", "robust", "network calls", "least memory", "all taped",
        "reproduced",
    )  # fmt: skip
    return Sheet("", heads, rows).markdown()


def files_table() -> str:
    """A row a folder of weights."""
    rows = [
        (f"`{name}`", f"`{file.how(Path('weights') / name)}`" if not file.folder else file.file,
         file.hash, file.where, file.licence or "not stated")
        for name, file in FILES.items()
    ]  # fmt: skip
    return Sheet("", ("folder", "made by", "hash", "where", "licence"), rows).markdown()


def main(arguments: list[str]) -> None:
    """Plans what is asked for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="RECIPE", help=", ".join(NAMES))
    parser.add_argument("--folder", type=Path, help="of weights and data that are made")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/recipes.json"))
    options = parser.parse_args(arguments)
    if unknown := set(options.names) - set(NAMES):
        raise InputError(f"{', '.join(sorted(unknown))}: allowed are {', '.join(NAMES)}")
    out = options.out.resolve()
    found = json.loads(out.read_text()) if out.exists() else {"recipes": {}}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        os.chdir(folder)
        for name in options.names or NAMES:
            if name not in found["recipes"]:
                found["recipes"][name] = planned(name)
                found["provenance"] = provenance(torch.device("cpu"))
                write_whole(out, json.dumps(found).encode())
    print(table(found))


if __name__ == "__main__":
    run(main, sys.argv[1:])
