"""Does ADDT make a diffusion purify? Trains, evaluates and reports: docs/experiments/addt.md.

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
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hetpure.evaluation.identity import differences
from hetpure.evaluation.protocol import CLEAN, Record
from hetpure.evaluation.reading import RecordedRun, read_run
from hetpure.evaluation.results import by_attack, draws_right
from hetpure.evaluation.statistics import (
    Difference,
    in_points,
    mcnemar,
    mean_accuracy,
    paired_difference,
)
from hetpure.evaluation.store import RESULTS
from hetpure.report.sheet import Sheet
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
DW_BOX = "dw-both"
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
    if run.exists():
        before = yaml.safe_load(note.read_text()) if note.exists() else {}
        if changed := differences(before, yaml.safe_load(settings)):
            raise SystemExit(f"{run} was made by other settings ({changed[0]}): move it away")
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
    command = [sys.executable, *command, "--print_config"]
    printed = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    return printed.stdout


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
    trainings: dict[str, list[dict[int, float]]] = {}
    for run in sorted((RUNS / "train").iterdir()):
        scalars = trainings.setdefault(run.name, [{} for _ in tags])
        for log in sorted(run.rglob("events.out.tfevents.*")):
            events = EventAccumulator(str(log))
            events.Reload()
            for tag, values in zip(tags, scalars, strict=True):
                if tag in events.Tags()["scalars"]:  # else stopped before the first one
                    values |= {scalar.step: scalar.value for scalar in events.Scalars(tag)}
    return trainings


def probes() -> str:
    """What all trainings' probes saw: robust and clean accuracy by the updates before it, %."""
    trainings = {
        name: {step: (robust[step], clean[step]) for step in robust.keys() & clean}
        for name, (robust, clean) in logged("probe/robust", "probe/clean").items()
    }
    steps = sorted({step for accuracies in trainings.values() for step in accuracies})
    rows = [
        (name, *(_both(accuracies.get(step)) for step in steps))
        for name, accuracies in trainings.items()
        if accuracies
    ]
    return markdown("updates", map(str, steps), rows)


def prices() -> str:
    """How well the averaged weights denoise and draw at the end of each training of the plan; the
    loss alone of one that drew nothing."""
    heads = ("updates", "denoising loss, validation", "Frechet distance of samples")
    rows = []
    for name, (losses, distances) in logged("validation/loss", "fid").items():
        if name.rpartition("-")[0] in TRAININGS and losses:
            # A loss is logged at the index of the last update, a distance at the number of them.
            last = max(distances) if distances else max(losses) + 1
            loss = losses[max(step for step in losses if step <= last)]
            distance = f"{distances[last]:.2f}" if distances else "-"
            rows.append((name, str(last), f"{loss:.4f}", distance))
    return markdown("weights", heads, rows)


def evaluate(name: str) -> None:
    """One evaluation. It asks itself whether its folder holds the same run, and goes on there."""
    config = ROOT / "configs" / "evaluate" / f"{name}.yaml"
    command = [sys.executable, str(ROOT / "evaluate.py"), f"--config={config}"]
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True, cwd=ROOT)


def right(records: Sequence[Record], attack: str) -> NDArray[np.bool_]:
    """Whether each sample is right on each report draw (n, draws), in the order of samples."""
    return draws_right(sorted(by_attack(records)[attack], key=lambda record: record.sample))


def samples_of(records: Sequence[Record], attack: str) -> set[int]:
    """The ids of the images that were attacked so."""
    return {record.sample for record in records if record.attack == attack}


def by_defense(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Each row's records, the rows in the order of the config."""
    rows: dict[str, list[Record]] = {}
    for record in records:
        rows.setdefault(record.defense, []).append(record)
    return rows


def cells(records: Sequence[Record]) -> str:
    """Every row's accuracy, clean and under each attack; the number of images on top, and where a
    cell has fewer in that cell."""
    attacks, rows = attacks_of(records), by_defense(records)
    n = max(len(samples_of(of_row, CLEAN)) for of_row in rows.values())

    def cell(of_row: Sequence[Record], attack: str) -> str:
        if not samples_of(of_row, attack):
            return "-"
        estimate = mean_accuracy(right(of_row, attack))
        middle, low, high = (100 * v for v in (estimate.accuracy, estimate.low, estimate.high))
        fewer = "" if estimate.n == n else f", n = {estimate.n}"
        return f"{middle:.1f} [{low:.1f}, {high:.1f}]{fewer}"

    lines = [(name, *(cell(of_row, a) for a in attacks)) for name, of_row in rows.items()]
    return markdown(f"n = {n}", attacks, lines)


def contrasts(records: Sequence[Record]) -> str:
    """The planned contrast and its controls under DW-both, paired by image: over all training
    seeds that both have and for each, and whether the first is won as the plan has it. A training
    seed is resampled as a noise draw is, which widens the interval; it is about images all the
    same: two seeds say little about others. SystemExit where rows have other images than others.
    """
    rows = by_defense(records)
    samples = {name: samples_of(of_row, DW_BOX) for name, of_row in rows.items()}
    if len(set(map(frozenset, samples.values()))) > 1:
        counts = ", ".join(f"{name} {len(of_row)}" for name, of_row in samples.items())
        raise SystemExit(f"not all rows were asked the same images: {counts}")
    outcomes = {name: right(of_row, DW_BOX) for name, of_row in rows.items()}
    lines = []
    moved: dict[tuple[str, str], list[Difference]] = {}
    for kind, other in CONTRASTS:
        seeds = [seed for seed in TRAININGS[kind] if seed in TRAININGS[other]]
        for chosen in [seeds] if len(seeds) == 1 else [seeds, *([seed] for seed in seeds)]:
            ours, theirs = (
                np.hstack([outcomes[f"{name}-{seed}"] for seed in chosen]) for name in (kind, other)
            )
            difference = paired_difference(ours, theirs)
            moved.setdefault((kind, other), []).append(difference)
            single = len(chosen) == 1
            test = f"{mcnemar(ours[:, 0], theirs[:, 0]).p_value:.2g}" if single else "-"
            which = f"seed {chosen[0]}" if single else "both seeds"
            lines.append((f"{kind} - {other}, {which}", in_points(difference.as_dict()), test))
    count = len(next(iter(samples.values())))
    table = markdown(f"contrast, n = {count}", ("points [95%]", "exact McNemar p"), lines)
    whole, *each = moved[CONTRASTS[0]]
    won = whole.low > 0 and all(difference.difference > 0 for difference in each)
    answer = "won" if won else "not won"
    return f"{table}\n\nThe primary contrast, {' - '.join(CONTRASTS[0])}, is {answer}."


def base_of(row: str) -> str:
    """The clean fine-tuning that a row is held against: under the same purifier ("DDIM, ADDT"), or
    of the same training seed ("addt-0")."""
    purifier, comma, _ = row.partition(", ")
    return f"{purifier}, clean" if comma else f"clean-{row.rpartition('-')[2]}"


def differences_from_clean(records: Sequence[Record], attacks: Sequence[str]) -> str:
    """Each row's from its clean fine-tuning under these attacks, paired by image: means over
    report draws."""
    rows, lines = by_defense(records), []
    for name, of_row in rows.items():
        base = rows.get(base_of(name), of_row)
        if base is of_row:
            continue
        points = []
        for attack in attacks:
            ours, theirs = samples_of(of_row, attack), samples_of(base, attack)
            if ours and theirs and ours != theirs:
                raise SystemExit(f"{name} and {base_of(name)} were asked other images by {attack}")
            points.append(
                in_points(paired_difference(right(of_row, attack), right(base, attack)).as_dict())
                if ours and theirs
                else "-"
            )
        lines.append((f"{name} - {base_of(name)}", *points))
    return markdown("points [95%]", attacks, lines)


def agreements(results: dict[str, Any]) -> str:
    """The mean cosine between the gradients of both halves of an attack's noise draws, which says
    whether they are enough; of attacks that draw more than one."""
    rows = {
        name: {
            attack: f"{about['eot_agreement']:.2f}"
            for attack, about in row["attacks"].items()
            if about["eot_agreement"] is not None
        }
        for name, row in results["defenses"].items()
    }
    attacks = list(dict.fromkeys(attack for row in rows.values() for attack in row))
    lines = [(name, *(row.get(a, "-") for a in attacks)) for name, row in rows.items() if row]
    return markdown("EOT cosine", attacks, lines)


def attacks_of(records: Sequence[Record]) -> list[str]:
    """In the order of the config, clean first."""
    return list(dict.fromkeys(record.attack for record in records))


def markdown(corner: str, heads: Iterable[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; nothing where it has no rows."""
    return Sheet("", (corner, *heads), rows).markdown() if rows else ""


def _both(accuracies: tuple[float, float] | None) -> str:
    return "-" if accuracies is None else " / ".join(f"{100 * share:.1f}" for share in accuracies)


def folder_of(name: str) -> Path:
    return ROOT / "runs" / "evaluate" / name


def finished(name: str) -> RecordedRun | None:
    """An evaluation that has come to its end; None of another one."""
    if not (folder_of(name) / RESULTS).exists():
        return None
    run = read_run(folder_of(name))
    return run if run.finished else None


def made_with(run: RecordedRun) -> str:
    """The weights of an evaluation, by the names that its config gives them."""
    weights = run.about["provenance"]["weights"]
    return f"{run.name}: " + ", ".join(f"`{key}@{digest[:12]}`" for key, digest in weights.items())


def results_of(name: str) -> dict[str, Any]:
    """What a finished evaluation's folder says of it."""
    results: dict[str, Any] = json.loads((folder_of(name) / RESULTS).read_text())
    return results


def report() -> str:
    """All tables of what is there, and what they were made with."""
    runs = {name: finished(name) for name in EVALUATIONS}
    records = {name: [] if run is None else run.records for name, run in runs.items()}
    probe, primary, *others, white_box = EVALUATIONS
    tables = []
    if records[primary]:
        planned = [attack for attack in attacks_of(records[primary]) if attack != DW_BOX]
        tables += [contrasts(records[primary]), cells(records[primary])]
        tables += [differences_from_clean(records[primary], planned)]
    for names in (others, [white_box]):
        if together := [record for name in names for record in records[name]]:
            tables += [cells(together), differences_from_clean(together, attacks_of(together))]
            tables += [agreements(results_of(name)) for name in names if records[name]]
    if records[probe]:
        tables += [cells(records[probe])]
    if (RUNS / "train").exists():
        tables += [prices(), probes()]
    tables += [
        f"{name}: not finished" if run is None else made_with(run) for name, run in runs.items()
    ]
    return "\n\n".join(table for table in tables if table)


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
