"""Does ADDT make a diffusion purify? Trains, evaluates and tells, as written down in docs/addt.md.

    python benchmarks/addt_experiment.py            # hours; started again it goes on
    python benchmarks/addt_experiment.py --report   # from what is there: the planned contrast

Trainings are `configs/train/fashion_mnist_addt.yaml` and its variants, from one DDPM, with the same
number of updates on the same order of images for each seed; only their configs differ.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.records import RunFolder
from hetpure.evaluation.results import by_attack, draws_right
from hetpure.evaluation.statistics import mcnemar, mean_accuracy, paired_difference
from hetpure.weights import folder_hash

ROOT = Path(__file__).parent.parent
BASE = ROOT / "configs" / "train" / "fashion_mnist_addt.yaml"
RUNS = Path("runs/addt")
SEEDS = (0, 1)
TRAININGS = {
    "addt": SEEDS,
    "clean": SEEDS,
    "no_rbgm": SEEDS,
    "random_order": SEEDS,
    "label_free": (0,),
}
EVALUATIONS = ("addt_primary", "addt_secondary")
PRIMARY = Path("runs/evaluate/addt_primary")


def train(variant: str, seed: int) -> None:
    """One training into `runs/addt/weights/VARIANT-SEED`; one that was stopped goes on."""
    weights = RUNS / "weights" / f"{variant}-{seed}"
    if weights.exists():
        return
    run = RUNS / "train" / f"{variant}-{seed}"
    command = [sys.executable, str(ROOT / "train.py"), f"--config={BASE}"]
    if variant != "addt":
        command.append(f"--config={BASE.parent / 'variants' / variant}.yaml")
    command += [f"--model.init_args.seed={seed}", f"--data.init_args.seed={seed}"]
    command.append(f"--trainer.default_root_dir={run}")
    checkpoints = sorted(run.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    if checkpoints:
        command.append(f"--ckpt_path={checkpoints[-1]}")
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)
    (trained,) = sorted(run.rglob("diffusion"))[-1:]
    weights.parent.mkdir(parents=True, exist_ok=True)
    part = weights.with_suffix(".part")
    shutil.copytree(trained, part, dirs_exist_ok=True)
    part.rename(weights)  # whole or not at all


def evaluate(name: str) -> None:
    """One evaluation; its run's folder goes on by itself."""
    config = ROOT / "configs" / "evaluate" / f"{name}.yaml"
    command = [sys.executable, str(ROOT / "evaluate.py"), f"--config={config}"]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


def locked(records: list[Record], defense: str) -> np.ndarray:
    """Whether each sample stays right under DW-both (n, 1), in the order of samples."""
    own = by_attack([record for record in records if record.defense == defense])["dw-both"]
    return draws_right(sorted(own, key=lambda record: record.sample))


def report(records: list[Record]) -> str:
    """The planned contrast: paired, over both training seeds and for each."""
    lines = ["| weights | DW-both accuracy [95%] |", "| --- | --- |"]
    outcomes = {name: locked(records, name) for name in dict.fromkeys(r.defense for r in records)}
    for name, outcome in outcomes.items():
        found = mean_accuracy(outcome)
        lines.append(f"| {name} | {_percent(found.accuracy, found.low, found.high)} |")
    lines += ["", "| contrast | points [95%] | exact McNemar p |", "| --- | --- | --- |"]
    kinds = ("addt", "no_rbgm", "random_order")
    for kind, other in [(kind, "clean") for kind in kinds] + [("addt", "no_rbgm")]:
        for chosen in (SEEDS, *((seed,) for seed in SEEDS)):
            ours, theirs = (
                np.hstack([outcomes[f"{name}-{seed}"] for seed in chosen]) for name in (kind, other)
            )
            moved = paired_difference(ours, theirs)
            test = "-" if len(chosen) > 1 else f"{mcnemar(ours[:, 0], theirs[:, 0]).p_value:.2g}"
            which = "both seeds" if len(chosen) > 1 else f"seed {chosen[0]}"
            points = _percent(moved.difference, moved.low, moved.high, "+")
            lines.append(f"| {kind} - {other}, {which} | {points} | {test} |")
    return "\n".join(lines)


def _percent(middle: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * middle:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def main() -> None:
    """Everything that is missing, then the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--report", action="store_true", help="only tell what is there")
    if not parser.parse_args().report:
        for variant, seeds in TRAININGS.items():
            for seed in seeds:
                train(variant, seed)
        for name in EVALUATIONS:
            evaluate(name)
    print(report(RunFolder(PRIMARY).read_records()))
    for path in sorted((RUNS / "weights").iterdir()):
        print(f"{path.name}@{folder_hash(path)[:12]}")


if __name__ == "__main__":
    main()
