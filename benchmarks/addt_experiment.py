"""Does ADDT make a diffusion purify? Trains, evaluates and tells, as written down in docs/addt.md.

    python benchmarks/addt_experiment.py            # trainings and evaluations: hours
    python benchmarks/addt_experiment.py tune       # of these what chooses the perturbation
    python benchmarks/addt_experiment.py report     # the tables, from what is there

Started again each goes on where it was stopped. Trainings are
`configs/train/fashion_mnist_addt.yaml` and its variants, from one DDPM, with the same number of
updates on the same order of images for each seed; only their configs differ.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hetpure.evaluation.protocol import Record
from hetpure.evaluation.records import RESULTS, RunFolder
from hetpure.evaluation.results import by_attack, draws_right
from hetpure.evaluation.statistics import (
    Difference,
    Estimate,
    in_points,
    mcnemar,
    mean_accuracy,
    paired_difference,
)
from hetpure.weights import folder_hash

ROOT = Path(__file__).parent.parent
BASE = ROOT / "configs" / "train" / "fashion_mnist_addt.yaml"
RUNS = ROOT / "runs" / "addt"
SEEDS = (0, 1)
TRAININGS = {
    "addt": SEEDS,
    "clean": SEEDS,
    "no_rbgm": (0,),
    "random_order": (0,),
    "label_free": (0,),
    "reference": (0,),
}
EVALUATIONS = (
    *("addt_probe", "addt_primary", "addt_secondary", "addt_variants"),
    "addt_white_box",  # in tables of its own: more draws
)
LOCKED = "dw-both"
CONTRASTS = [
    ("addt", "clean"),
    ("random_order", "clean"),
    ("no_rbgm", "clean"),
    ("addt", "no_rbgm"),
]
TUNED: dict[str, dict[str, float]] = {
    "scale-0.03": {"scale": 0.03, "cap": 0.3},
    "scale-0.06": {"scale": 0.06, "cap": 0.3},
    "scale-0.12": {"scale": 0.12, "cap": 0.3},
    "scale-0.12-cap-0.6": {"scale": 0.12, "cap": 0.6},
    "scale-0.24-cap-0.9": {"scale": 0.24, "cap": 0.9},
    "scale-0.48-cap-0.9": {"scale": 0.48, "cap": 0.9},
}
TUNING_SEED, TUNING_UPDATES = 100, 350


def run_training(name: str, configs: Sequence[Path], options: Sequence[str]) -> None:
    """`train.py` into `runs/addt/train/NAME`, from its last checkpoint where there is one; nothing
    where it has ended. Its weights are copied to `runs/addt/weights/NAME`. SystemExit where another
    training is there."""
    run = RUNS / "train" / name
    command = ["train.py", *(f"--config={path.relative_to(ROOT)}" for path in configs), *options]
    settings = complete_config(command)
    note = run / "settings.yaml"
    if run.exists() and not (note.exists() and note.read_text() == settings):
        raise SystemExit(f"{run} was made by other settings: move it away")
    if not trained(run):
        run.mkdir(parents=True, exist_ok=True)
        note.write_text(settings)
        checkpoints = sorted(run.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
        if checkpoints:
            command.append(f"--ckpt_path={checkpoints[-1]}")
        print(" ".join(command), flush=True)
        command += [f"--trainer.default_root_dir={run}"]
        subprocess.run([sys.executable, *command], check=True, cwd=ROOT)
    if not trained(run):
        raise SystemExit(f"{run} ended without weights: move it away and start again")
    (made,) = trained(run)
    weights = RUNS / "weights" / name
    if not weights.exists():
        part = weights.with_suffix(".part")
        shutil.copytree(made, part, dirs_exist_ok=True)
        part.rename(weights)  # whole or not at all
    elif folder_hash(weights) != folder_hash(made):
        raise SystemExit(f"{weights} are of another training than {run}: move them away")


def complete_config(command: Sequence[str]) -> str:
    """What a training would be run with, as YAML: two ways of writing the same are the same."""
    asked = [sys.executable, *command, "--print_config"]
    answer = subprocess.run(asked, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return answer.stdout


def trained(run: Path) -> list[Path]:
    """The exported weights' folder, if the training ended."""
    return [path.parent for path in sorted(run.rglob("diffusion/model_index.json"))][-1:]


def train(variant: str, seed: int) -> None:
    """One training of the plan."""
    configs = [BASE] if variant == "addt" else [BASE, BASE.parent / "variants" / f"{variant}.yaml"]
    options = [f"--model.init_args.seed={seed}", f"--data.init_args.seed={seed}"]
    run_training(f"{variant}-{seed}", configs, options)


def tune() -> None:
    """Begins to train with every perturbation that is tried, and asks what their probes hang on."""
    common = [
        f"--model.init_args.seed={TUNING_SEED}",
        f"--data.init_args.seed={TUNING_SEED}",
        f"--trainer.max_steps={TUNING_UPDATES}",
    ]
    for name, settings in TUNED.items():
        options = [
            f"--model.init_args.perturbation.init_args.{key}={settings[key]}" for key in settings
        ]
        run_training(name, [BASE], [*options, *common])
    evaluate(EVALUATIONS[0])


def logged(*tags: str) -> dict[str, list[dict[int, float]]]:
    """What each training logged of these scalars, by the updates before it."""
    found: dict[str, list[dict[int, float]]] = {}
    for run in sorted((RUNS / "train").iterdir()):
        own = found.setdefault(run.name, [{} for _ in tags])
        for log in sorted(run.rglob("events.out.tfevents.*")):
            events = EventAccumulator(str(log))
            events.Reload()
            for tag, values in zip(tags, own, strict=True):
                if tag in events.Tags()["scalars"]:  # else stopped before the first one
                    values |= {scalar.step: scalar.value for scalar in events.Scalars(tag)}
    return found


def probes() -> str:
    """What all trainings' probes saw: robust and clean accuracy by the updates before it, %."""
    found = logged("probe/robust", "probe/clean")
    steps = sorted({step for robust, clean in found.values() for step in robust.keys() & clean})
    lines = [f"| updates | {' | '.join(map(str, steps))} |", "|" + " --- |" * (1 + len(steps))]
    for name, (robust, clean) in found.items():
        told = [
            f"{100 * robust[step]:.1f} / {100 * clean[step]:.1f}"
            if step in robust and step in clean
            else "-"
            for step in steps
        ]
        if robust.keys() & clean.keys():
            lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines)


def prices() -> str:
    """How well the averaged weights denoise and draw at the end of each training of the plan; the
    loss alone of one that drew nothing."""
    lines = [
        "| weights | updates | denoising loss, validation | Frechet distance of samples |",
        "|" + " --- |" * 4,
    ]
    for name, (losses, distances) in logged("validation/loss", "fid").items():
        if name.rpartition("-")[0] in TRAININGS and losses:
            last = (
                max(distances) if distances else max(losses) + 1
            )  # logged at the last one's index
            loss = losses[max(step for step in losses if step <= last)]
            drawn = f"{distances[last]:.2f}" if distances else "-"
            lines.append(f"| {name} | {last} | {loss:.4f} | {drawn} |")
    return "\n".join(lines)


def evaluate(name: str) -> None:
    """One evaluation; its run's folder goes on by itself."""
    config = ROOT / "configs" / "evaluate" / f"{name}.yaml"
    command = [sys.executable, str(ROOT / "evaluate.py"), f"--config={config}"]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def right(records: Sequence[Record], attack: str) -> NDArray[np.bool_]:
    """Whether each sample is right on each report draw (n, draws), in the order of samples."""
    return draws_right(sorted(by_attack(records)[attack], key=lambda record: record.sample))


def by_defense(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Each row's records, the rows in the order of the config."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(record.defense, []).append(record)
    return found


def cells(records: Sequence[Record]) -> str:
    """Every row's accuracy, clean and under each attack; the number of images on top, and where a
    cell has fewer in that cell."""
    attacks = attacks_of(records)
    rows = by_defense(records)
    n = max(len(by_attack(own)["clean"]) for own in rows.values())
    lines = [f"| n = {n} | {' | '.join(attacks)} |", "|" + " --- |" * (1 + len(attacks))]
    for name, own in rows.items():
        found = [mean_accuracy(right(own, a)) if a in by_attack(own) else None for a in attacks]
        told = ["-" if one is None else _percent(one, n) for one in found]
        lines.append(f"| {name} | {' | '.join(told)} |")
    return "\n".join(lines)


def contrasts(records: Sequence[Record]) -> str:
    """The planned contrast and its controls under DW-both, paired by image: over all training
    seeds that both have and for each, and whether the first is won as the plan has it. A training
    seed is resampled as a noise draw is, which widens the interval; it is about images all the
    same: two seeds say little about others. SystemExit where rows have other images than others.
    """
    rows = by_defense(records)
    asked = {name: sorted(r.sample for r in by_attack(own)[LOCKED]) for name, own in rows.items()}
    samples = next(iter(asked.values()))
    if any(own != samples for own in asked.values()):
        counts = ", ".join(f"{name} {len(own)}" for name, own in asked.items())
        raise SystemExit(f"not all rows were asked the same images: {counts}")
    outcomes = {name: right(own, LOCKED) for name, own in rows.items()}
    lines = [
        f"| contrast, n = {len(samples)} | points [95%] | exact McNemar p |",
        "|" + " --- |" * 3,
    ]
    found: dict[tuple[str, str], list[Difference]] = {}
    for kind, other in CONTRASTS:
        seeds = [seed for seed in TRAININGS[kind] if seed in TRAININGS[other]]
        for chosen in [seeds] if len(seeds) == 1 else [seeds, *([seed] for seed in seeds)]:
            ours, theirs = (
                np.hstack([outcomes[f"{name}-{seed}"] for seed in chosen]) for name in (kind, other)
            )
            moved = paired_difference(ours, theirs)
            found.setdefault((kind, other), []).append(moved)
            single = len(chosen) == 1
            test = f"{mcnemar(ours[:, 0], theirs[:, 0]).p_value:.2g}" if single else "-"
            which = f"seed {chosen[0]}" if single else "both seeds"
            points = in_points(moved.as_dict())
            lines.append(f"| {kind} - {other}, {which} | {points} | {test} |")
    whole, *each = found[CONTRASTS[0]]
    won = whole.low > 0 and all(one.difference > 0 for one in each)
    told = "won" if won else "not won"
    return "\n".join([*lines, "", f"The primary contrast, {' - '.join(CONTRASTS[0])}, is {told}."])


def base_of(row: str) -> str:
    """The clean fine-tuning that a row is held against: under the same purifier ("DDIM, ADDT"), or
    of the same training seed ("addt-0")."""
    purifier, comma, _ = row.partition(", ")
    return f"{purifier}, clean" if comma else f"clean-{row.rpartition('-')[2]}"


def differences(records: Sequence[Record], attacks: Sequence[str]) -> str:
    """Each row's from its clean fine-tuning under these attacks, paired by image: means over
    report draws."""
    rows = by_defense(records)
    lines = [f"| points [95%] | {' | '.join(attacks)} |", "|" + " --- |" * (1 + len(attacks))]
    for name, own in rows.items():
        base = rows.get(base_of(name))
        if base is None or base is own:
            continue
        told = []
        for attack in attacks:
            ours, theirs = by_attack(own).get(attack), by_attack(base).get(attack)
            if ours is None or theirs is None:
                told.append("-")
                continue
            if {record.sample for record in ours} != {record.sample for record in theirs}:
                raise SystemExit(f"{name} and {base_of(name)} were asked other images by {attack}")
            moved = paired_difference(right(own, attack), right(base, attack))
            told.append(in_points(moved.as_dict()))
        lines.append(f"| {name} - {base_of(name)} | {' | '.join(told)} |")
    return "\n".join(lines)


def agreements(told: dict[str, Any]) -> str:
    """The mean cosine between the gradients of both halves of an attack's noise draws, which says
    whether they are enough; of attacks that draw more than one."""
    found = {
        name: {
            attack: under["eot_agreement"]
            for attack, under in row["attacks"].items()
            if under["eot_agreement"] is not None
        }
        for name, row in told["defenses"].items()
    }
    attacks = list(dict.fromkeys(attack for row in found.values() for attack in row))
    lines = [f"| EOT cosine | {' | '.join(attacks)} |", "|" + " --- |" * (1 + len(attacks))]
    for name, row in found.items():
        if row:
            said = [f"{row[attack]:.2f}" if attack in row else "-" for attack in attacks]
            lines.append(f"| {name} | {' | '.join(said)} |")
    return "\n".join(lines)


def attacks_of(records: Sequence[Record]) -> list[str]:
    """In the order of the config, clean first."""
    return list(dict.fromkeys(record.attack for record in records))


def _percent(found: Estimate, n: int) -> str:
    middle, low, high = (100 * value for value in (found.accuracy, found.low, found.high))
    fewer = "" if found.n == n else f", n = {found.n}"
    return f"{middle:.1f} [{low:.1f}, {high:.1f}]{fewer}"


def made_with(name: str) -> str:
    """The weights that an evaluation began with, by the names that its config gives them."""
    weights = run_folder(name).read_sessions()[0]["weights"]
    return f"{name}: " + ", ".join(f"`{key}@{found[:12]}`" for key, found in weights.items())


def run_folder(name: str) -> RunFolder:
    return RunFolder(ROOT / "runs" / "evaluate" / name)


def results(name: str) -> dict[str, Any]:
    """What a finished evaluation's folder says of it."""
    told: dict[str, Any] = json.loads((run_folder(name).path / RESULTS).read_text())
    return told


def report() -> str:
    """All tables of what is there, and what they were made with."""
    probe, primary, *others, white_box = EVALUATIONS
    finished = [name for name in EVALUATIONS if (run_folder(name).path / RESULTS).exists()]
    found = {
        name: run_folder(name).read_records() if name in finished else [] for name in EVALUATIONS
    }
    told = []
    if found[primary]:
        planned = [attack for attack in attacks_of(found[primary]) if attack != LOCKED]
        told += [contrasts(found[primary]), cells(found[primary])]
        told += [differences(found[primary], planned)]
    if secondary := [record for name in others for record in found[name]]:
        told += [cells(secondary), differences(secondary, attacks_of(secondary))]
        told += [agreements(results(name)) for name in others if found[name]]
    if found[white_box]:
        told += [cells(found[white_box])]
        told += [differences(found[white_box], attacks_of(found[white_box]))]
        told += [agreements(results(white_box))]
    if found[probe]:
        told += [cells(found[probe])]
    if (RUNS / "train").exists():
        told += [prices(), probes()]
    told += [made_with(name) if name in finished else f"{name}: not finished" for name in found]
    return "\n\n".join(table for table in told if table.count("\n") != 1)  # a head alone


def main() -> None:
    """Everything that is missing, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("what", nargs="?", choices=("all", "tune", "report"), default="all")
    what = parser.parse_args().what
    if what != "report":
        tune()
    if what == "all":
        for variant, seeds in TRAININGS.items():
            for seed in seeds:
                train(variant, seed)
        for name in EVALUATIONS[1:]:
            evaluate(name)
    print(probes() if what == "tune" else report())


if __name__ == "__main__":
    main()
