"""Search for a defence's settings on validation images, one finished trial a line."""

import copy
import itertools
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from datamodules.dataset import check_ids
from hetpure.attacks import Attack
from hetpure.errors import InputError
from hetpure.evaluation.frontier import Trial
from hetpure.evaluation.protocol import CLEAN, Protocol, Record, evaluate_block
from hetpure.evaluation.results import coverage, protocols
from hetpure.memory import budget_bytes
from hetpure.weights import load_classifier, load_denoiser
from lightning_modules.batches import WHERE, block_of
from lightning_modules.compatibility import check_answers, check_classifier, check_denoiser
from lightning_modules.defenses import DefenseConfig, with_setting
from lightning_modules.rows import Row

TRIALS = "trials.jsonl"
Settings = dict[str, Any]


def combinations(
    base: DefenseConfig, vary: dict[str, list[Any]]
) -> tuple[dict[str, tuple[Settings, DefenseConfig]], list[str]]:
    """Every combination of the values by a name, each defence once, and why some combinations are
    impossible (t_small above t_large). A value that is in none is an error."""
    empty = [path for path, values in vary.items() if not values]
    if empty or not vary:
        raise InputError(f"vary names no value for {', '.join(empty) or 'any setting'}")
    found: dict[str, tuple[Settings, DefenseConfig]] = {}
    refused: list[str] = []
    reasons: dict[tuple[str, str], str] = {}
    used: set[tuple[str, str]] = set()
    for values in itertools.product(*vary.values()):
        settings = dict(zip(vary, values, strict=True))
        name = " ".join(f"{path}={value}" for path, value in settings.items())
        try:
            config = apply(base, settings)
        except InputError as error:
            refused.append(f"{name}: {error}")
            reasons |= {(path, str(value)): str(error) for path, value in settings.items()}
            continue
        used |= {(path, str(value)) for path, value in settings.items()}
        if config not in (known for _, known in found.values()):
            found[name] = settings, config
    for (path, value), reason in reasons.items():
        if (path, value) not in used:  # wrong in itself, not beside the other values
            raise InputError(f"vary {path}={value} is never possible: {reason}")
    return found, refused


def apply(base: DefenseConfig, settings: Settings) -> DefenseConfig:
    """The base with settings changed. What is right together may be wrong half changed, as two
    noise levels that both move up: so a step that fails is tried again after the others."""
    config, left = base, list(settings.items())
    while left:
        failed: list[tuple[str, Any]] = []
        for path, value in left:
            try:
                config = with_setting(config, path, value)
            except InputError as error:
                failed.append((path, value))
                last = error
        if len(failed) == len(left):
            raise last
        left = failed
    return config


def search(
    *,
    classifier: str,
    denoiser: str,
    base: DefenseConfig,
    vary: dict[str, list[Any]],
    attack: Attack,
    protocol: Protocol,
    data: L.LightningDataModule,
    seed: int,
    folder: Path,
    device: str,
    console: Console,
) -> Iterator[Trial]:
    """Trials in order, each written to the folder as soon as it is done; those that a run before
    this one finished are read from there."""
    network, diffusion = load_classifier(classifier).to(device), load_denoiser(denoiser).to(device)
    check_classifier(network, data)
    check_denoiser(diffusion, data, base.purified_size)
    data.prepare_data()
    data.setup("test")
    blocks = [block_of(batch, data, device) for batch in _loader(data)]
    check_ids(torch.cat([block.samples for block in blocks]), WHERE)
    check_answers(network, blocks[0].images, "the classifier")
    candidates, refused = combinations(base, vary)
    for reason in refused:
        console.print(f"[dim]left out: {reason}[/dim]", soft_wrap=True)
    path = folder / TRIALS
    done = finished(path)
    for number, (name, (settings, config)) in enumerate(candidates.items(), start=1):
        if name not in done:
            start = time.perf_counter()
            defense, surrogate = built = config.build(network, diffusion)
            row = Row(name, defense, surrogate, built)
            row.resolve(None, blocks[0].images, attack, budget_bytes(blocks[0].images.device))
            records: list[Record] = []
            for block in blocks:
                outcome = evaluate_block(
                    name, defense, attack, block, protocol, seed, attacked=row.attacked
                )
                records += outcome.records
            done[name] = _trial(settings, records, defense.network_calls)
            with path.open("a") as file:
                file.write(json.dumps({"name": name, "trial": done[name].as_dict()}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            seconds = f"{time.perf_counter() - start:.0f} s"
        else:
            seconds = "from an earlier run"
        trial = done[name]
        console.print(
            f"{number}/{len(candidates)} {name}: clean {trial.clean.accuracy:.1%},"
            f" robust {trial.robust.accuracy:.1%} ({seconds})",
            soft_wrap=True,
            highlight=False,
        )
        yield trial


def claim_folder(folder: Path, config: dict[str, Any]) -> None:
    """Takes a folder for a search. Trials of another one are not mixed in: only what does not
    change a trial, the values to try and the choice among trials, may differ."""
    kept = {k: v for k, v in config.items() if k not in ("vary", "clean_weight", "folder")}
    path = folder / "search.json"
    if path.exists() and finished(folder / TRIALS):
        before = json.loads(path.read_text())
        differing = [name for name in kept if kept[name] != before.get(name)]
        if differing:
            raise InputError(
                f"{folder} holds trials of another search, with another {', '.join(differing)}:"
                " give another --folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    whole = path.with_suffix(".part")  # a run that is killed here leaves the old file or the new
    whole.write_text(json.dumps(kept, indent=2) + "\n")
    whole.replace(path)


def finished(path: Path) -> dict[str, Trial]:
    """Trials of earlier runs by name. A last line that a killed run left torn is cut off."""
    text = path.read_text() if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole)
    lines = [json.loads(line) for line in whole.splitlines()]
    return {line["name"]: Trial.from_dict(line["trial"]) for line in lines}


def tuned_config(config: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A config for evaluate.py with the chosen settings, on all test images."""
    row = copy.deepcopy(config["base"]) | {"denoiser": "tuned"}
    for path, value in settings.items():
        node = row
        *parents, last = path.split(".")
        for parent in parents:
            node = _inner(node)[parent]
        _inner(node)[last] = value
    data = copy.deepcopy(config["data"])
    data["init_args"] |= {"test_split": "test", "limit": None}
    return {
        "seed_everything": config["seed"],
        "model": {
            "classifier": config["classifier"],
            "denoisers": {"tuned": config["denoiser"]},
            "defenses": {"plain classifier": {}, "tuned": row},
            "attack": config["attack"],
            "protocol": config["protocol"],
            "seed": config["seed"],
        },
        "data": data,
        "trainer": {
            "accelerator": "cpu" if config["device"] == "cpu" else "auto",
            "devices": 1,
            "inference_mode": False,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
    }


def _inner(node: dict[str, Any]) -> dict[str, Any]:
    """Where a class's settings are in a config: beside its class_path, or in the node itself."""
    inner: dict[str, Any] = node["init_args"] if "class_path" in node else node
    return inner


def _trial(settings: Settings, records: list[Record], network_calls: int) -> Trial:
    clean = [record for record in records if record.attack == CLEAN]
    attacked = [record for record in records if record.attack != CLEAN]
    return Trial(
        settings,
        protocols(clean)["single"],
        protocols(attacked)["single"],
        coverage(clean),
        network_calls,
    )


def _loader(data: L.LightningDataModule) -> DataLoader[dict[str, torch.Tensor]]:
    loader: DataLoader[dict[str, torch.Tensor]] = data.test_dataloader()
    return loader
