"""docs/reference/config.md against the program: every key, every default, every bound."""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_type_hints

import pytest
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning import Callback

import evaluate
import train
from datamodules.base import ImageDataModule
from datamodules.cluttered import ClutteredFashionMNIST  # noqa: F401 (a family has its members)
from hetpure.addt import Perturbation
from hetpure.adversarial_training import AdversarialTraining
from hetpure.attacks import Attack
from hetpure.attention import Mask
from hetpure.errors import InputError
from hetpure.evaluation.description import Evaluation
from hetpure.gradients import Execution
from hetpure.levels import Levels
from hetpure.numbers import Number
from hetpure.purifiers import Purifier
from hetpure.samplers import Sampler
from lightning_modules.evaluation import RobustnessEvaluation
from lightning_modules.training import Training

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "reference" / "config.md").read_text()
PACKAGES = ("hetpure.", "lightning_modules.", "datamodules.")
REQUIRED = "*required*"
FAMILIES = (
    Attack,
    Mask,
    Purifier,
    Sampler,
    Perturbation,
    Levels,
    ImageDataModule,
    Training,
    Callback,
)
# Which the program itself builds.
NO_CONFIG = {"NullAttack", "EightBit", "Reference", "CIFAR", "KeepConfig", "TrainingProgress"}
Owner = Callable[..., Any]


class Key(NamedTuple):
    """A line of a table."""

    name: str
    default: str
    allowed: str


def tables() -> dict[str, list[Key]]:
    """By the dotted names that a paragraph begins with, the lines of the table behind it."""
    found: dict[str, list[Key]] = {}
    owners: list[str] = []
    for before, line in pairwise(PAGE.splitlines()):
        names = re.match(r"`([\w.]+)`(?: and `([\w.]+)`)?", line)
        if names and not before:
            owners = [name for name in names.groups() if name and name.startswith(PACKAGES)]
            found |= {owner: [] for owner in owners}
        elif line.startswith("#"):
            owners = []
        elif owners and line.startswith("| `"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            assert len(cells) == 4, line
            for owner in owners:
                found[owner].append(Key(cells[0].strip("`"), cells[1], cells[2]))
    return found


def imported(path: str) -> Owner:
    module, _, name = path.rpartition(".")
    owner: Owner = getattr(import_module(module), name)
    return owner


TABLES = tables()
OWNERS = {path: imported(path) for path in TABLES}


def defaults(owner: Owner) -> dict[str, Any]:
    """Of a class's or a function's keys; `inspect.Parameter.empty` of those that are required."""
    made = {
        field.name: field.default_factory()
        for field in (fields(owner) if is_dataclass(owner) else ())
        if field.default_factory is not MISSING
    }
    named = {
        name: made.get(name, parameter.default)
        for name, parameter in inspect.signature(owner).parameters.items()
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    if owner is RobustnessEvaluation:  # which passes its settings on
        return defaults(Evaluation) | named
    return named


def written(value: Any) -> str:
    """A default as the page has it."""
    if value is inspect.Parameter.empty:
        return REQUIRED
    if is_dataclass(value):
        usual = defaults(type(value))
        changed = [
            f"`{field.name}: {getattr(value, field.name)}`"
            for field in fields(value)
            if field.init and getattr(value, field.name) != usual[field.name]
        ]
        return ", ".join([f"`{type(value).__name__}`", *changed])
    if value is None or isinstance(value, bool):
        return f"`{str(value).lower().replace('none', 'null')}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    plain_float = isinstance(value, float) and not isinstance(value, Number)
    return f"`{value:g}`" if plain_float else f"`{value}`"


@pytest.mark.parametrize("path", TABLES)
def test_a_table_has_every_key_with_its_default(path: str) -> None:
    """But for those that the table of a class above it has, with the same default."""
    owner = OWNERS[path]
    above: dict[str, str] = {}
    for base in reversed(inspect.getmro(owner)[1:] if inspect.isclass(owner) else ()):
        if base in OWNERS.values():
            above |= {name: written(value) for name, value in defaults(base).items()}
    expected = {name: written(value) for name, value in defaults(owner).items()}
    expected = {name: text for name, text in expected.items() if above.get(name) != text}
    if path.endswith("tuning.tune"):
        del expected["config"]  # the file itself
    assert {key.name: key.default for key in TABLES[path]} == expected


def test_every_class_of_a_config_has_a_table() -> None:
    """The classes that a `class_path` may name, and those that the keys of a table are."""
    documented = set(OWNERS.values())
    for family in FAMILIES:
        for kind in concrete(family):
            assert kind in documented, kind
    for owner in list(documented):
        hints = get_type_hints(owner.__init__ if inspect.isclass(owner) else owner)
        for kind in (part for hint in hints.values() for part in parts(hint)):
            ours = inspect.isclass(kind) and f"{kind.__module__}.".startswith(PACKAGES)
            if ours and is_dataclass(kind) and not inspect.isabstract(kind):
                assert kind in documented, kind


def concrete(family: type) -> Iterator[type]:
    """The classes of ours that can be built."""
    kinds: list[type] = family.__subclasses__()
    for kind in kinds:
        yield from concrete(kind)
        ours = kind.__module__.startswith(PACKAGES) and kind.__name__ not in NO_CONFIG
        if ours and not inspect.isabstract(kind) and inspect.signature(kind).parameters:
            yield kind


def parts(hint: Any) -> list[Any]:
    """The types that a type is made of."""
    return [hint, *(part for inner in get_args(hint) for part in parts(inner))]


@pytest.mark.parametrize("path", TABLES)
def test_words_that_may_be_chosen_are_all_there(path: str) -> None:
    owner = OWNERS[path]
    hints = get_type_hints(owner.__init__ if inspect.isclass(owner) else owner)
    for key in TABLES[path]:
        hint = hints.get(key.name) or get_type_hints(Evaluation)[key.name]
        words = {str(word) for kind in parts(hint) for word in get_args(kind) if is_value(word)}
        if words:
            assert set(re.findall(r"`([\w-]+)`", key.allowed)) == words, key.name


def is_value(part: Any) -> bool:
    """Whether a part of a type is a value, as those of a Literal are."""
    return isinstance(part, str | int) and not isinstance(part, type)


CONTEXT: dict[tuple[Owner, str], dict[str, Any]] = {  # where a key alone is refused already
    (Execution, "taped_steps"): {"policy": "hybrid"},
    (AdversarialTraining, "beta"): {"method": "trades"},
}
NEEDED: dict[str, dict[str, Any]] = {  # of classes that require something
    "lightning_modules.evaluation.RobustnessEvaluation": {
        "classifier": "fashion_mnist_wrn",
        "denoisers": {},
        "defenses": {"plain": {}},
    },
    "hetpure.evaluation.cells.AttackConfig": {"attack": {"class_path": "hetpure.attacks.PGD"}},
    "hetpure.attacks.Replay": {"path": "images.npz"},
    "hetpure.attacks.Progressive": {
        "coarse": {"class_path": "hetpure.purifiers.UniformPurifier", "init_args": {"steps": 5}}
    },
    "lightning_modules.monitor.FeatureFID": {"classifier": "fashion_mnist_wrn"},
    "datamodules.npz.NPZ": {"num_classes": 2},
    "lightning_modules.diffusion.DiffusionTraining": {"diffusion": "fashion_mnist_ddpm"},
}
ABSTRACT = {  # built as one of their kind
    "hetpure.purifiers.purifier.GridPurifier": "hetpure.purifiers.UniformPurifier",
    "hetpure.attacks.attack.InBall": "hetpure.attacks.PGD",
    "hetpure.attacks.gradient.GradientAttack": "hetpure.attacks.PGD",
    "hetpure.addt.Ranked": "hetpure.addt.RankGaussian",
    "datamodules.base.ImageDataModule": "datamodules.cifar.CIFAR10",
}


class Bound(NamedTuple):
    """What a table says is allowed, as values inside and outside of it."""

    path: str
    key: str
    inside: tuple[Any, ...]
    outside: tuple[Any, ...]


def bounds() -> Iterator[Bound]:
    """Those cells that are a bound, an interval, or words; what other cells say is for people."""
    for path, keys in TABLES.items():
        for key in keys:
            if limit := re.fullmatch(r"(>=?) (\d+)", key.allowed):
                least = int(limit[2])
                pairs = {">": (least + 1, least), ">=": (least, least - 1)}
                inside, outside = pairs[limit[1]]
                yield Bound(path, key.name, (inside,), (outside,))
            elif limits := re.fullmatch(r"(\d+) to (\d+)", key.allowed):
                least, most = map(int, limits.groups())
                yield Bound(path, key.name, (least, most), (least - 1, most + 1))
            elif ends := re.fullmatch(r"([(\[])(-?\d+), (\d+)([)\]])", key.allowed):
                low, high = float(ends[2]), float(ends[3])
                closed = {low: ends[1] == "[", high: ends[4] == "]"}
                within = [(low + high) / 2, *(end for end in closed if closed[end])]
                beyond = [low - 0.1, high + 0.1, *(end for end in closed if not closed[end])]
                yield Bound(path, key.name, tuple(within), tuple(beyond))
            elif re.fullmatch(r"(`[\w-]+`, )+`[\w-]+`", key.allowed):
                words = tuple(re.findall(r"`([\w-]+)`", key.allowed))
                yield Bound(path, key.name, words, ("another",))


BOUNDS = list(bounds())
# Not built here: they load networks or read files, or the value alone is half a setting.
READ = ("lightning_modules.diffusion", "lightning_modules.classifier", "datamodules.")
HALF = [(AdversarialTraining, "method")]  # trades needs beta


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: f"{bound.path}.{bound.key}")
def test_bounds_are_those_of_the_program(bound: Bound) -> None:
    """What lies inside is accepted, and what lies outside is refused, as a config would be."""
    owner = imported(ABSTRACT.get(bound.path, bound.path))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(owner, "it")
    needed = NEEDED.get(bound.path, {}) | CONTEXT.get((owner, bound.key), {})

    for value in bound.inside:
        config = parser.parse_object({"it": needed | {bound.key: value}})
        if not bound.path.startswith(READ) and (owner, bound.key) not in HALF:
            parser.instantiate(config)
    for value in bound.outside:
        with pytest.raises((ArgumentError, InputError), match=bound.key):
            parser.instantiate(parser.parse_object({"it": needed | {bound.key: value}}))


@pytest.mark.parametrize(
    ("main", "heading"), [(evaluate.main, "Evaluation"), (train.main, "Training")]
)
def test_the_top_level_of_a_config(
    main: Callable[[list[str]], None], heading: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    section = PAGE.split(f"\n## {heading}\n")[1].split("\n### ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", section, flags=re.MULTILINE))
    assert listed.keys() == printed.keys()
    for key in printed.keys() - {"model", "data", "trainer", "seed_everything"}:
        assert listed[key] == written(printed[key])
