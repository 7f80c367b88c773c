"""Planted frauds, each of which an audit fails by name, and honest defences, which it does not."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hetpure.defense import Defense

BENCHMARK = Path(__file__).parents[3] / "benchmarks" / "frauds.py"


def imported() -> ModuleType:
    specification = importlib.util.spec_from_file_location("planted_frauds", BENCHMARK)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[specification.name] = module  # where dataclasses look for annotations
    specification.loader.exec_module(module)
    return module


frauds = imported()
TINY = frauds.tiny()
HONEST, ATTACKS = TINY.honest(), TINY.fraudulent_attacks()
# What a fraudulent defence is failed for needs no attack.
SHORT = replace(
    TINY, attack=replace(TINY.attack, steps=1), audit=replace(TINY.audit, purifications=1)
)
# Half of the budget: seconds an audit. benchmarks/frauds.py has all of it.
HALF = replace(TINY, audit=replace(TINY.audit, purifications=25_600))
every_seed = pytest.mark.parametrize("seed", frauds.SEEDS)


def audited(place: Path, world: Any, defense: Defense, seed: int) -> dict[str, str]:
    """The verdicts on a defence under the world's own attack."""
    case = frauds.Case(defense, world.attack, world.audit)
    verdicts: dict[str, str] = frauds.audited(place, world, case, seed)
    return verdicts


@every_seed
@pytest.mark.parametrize("name", HONEST)
def test_no_honest_defence_fails(name: str, seed: int, tmp_path: Path) -> None:
    verdicts = audited(tmp_path, HALF, HONEST[name], seed)
    assert "reference attack" in verdicts, verdicts
    assert frauds.failures(verdicts) == [], verdicts


@every_seed
@pytest.mark.parametrize("fraud", frauds.FRAUDULENT_DEFENSES)
def test_a_fraudulent_defence_fails_by_name(fraud: type, seed: int, tmp_path: Path) -> None:
    name, words = frauds.FRAUDULENT_DEFENSES[fraud]
    verdicts = audited(tmp_path, SHORT, SHORT.defense(kind=fraud), seed)
    assert name in frauds.failures(verdicts), verdicts
    assert words in verdicts[name], verdicts[name]


@every_seed
@pytest.mark.parametrize("name", ATTACKS)
def test_a_weak_attack_fails(name: str, seed: int, tmp_path: Path) -> None:
    case = TINY.rows()[f"attack: {name}"]
    verdicts = frauds.audited(tmp_path, TINY, case, seed)
    assert "reference attack" in frauds.failures(verdicts), verdicts


@every_seed
def test_an_attack_on_a_blind_network_fails(seed: int, tmp_path: Path) -> None:
    case = TINY.rows()["attack: on a network that is blind"]
    verdicts = frauds.audited(tmp_path, TINY, case, seed)
    assert "reference attack" in frauds.failures(verdicts), verdicts
