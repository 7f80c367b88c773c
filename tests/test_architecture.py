"""The layers of docs/reference/design.md, read from the imports; rules that the source shows."""

import ast
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A file may import from its own floor and from those below; first match wins.
FLOORS = (
    ("hetpure.errors", "hetpure.numbers", "hetpure.images", "hetpure.disk", "hetpure.pickles"),
    ("hetpure.trust",),
    ("hetpure.program", "hetpure.packaged_configs"),
    ("hetpure.noise", "hetpure.schedule", "hetpure.saved_images"),
    (
        "hetpure.samplers",
        "hetpure.denoiser",
        "hetpure.levels",
        "hetpure.classifiers",
        "hetpure.networks",
        "hetpure.augmentation",
        "hetpure.geometry",
    ),
    ("hetpure.weights",),
    (
        "hetpure.purifiers",
        "hetpure.attention",
        "hetpure.addt",
        "hetpure.addt_variants",
        "hetpure.adversarial_training",
        "hetpure.sampling",
    ),
    ("hetpure.gradients", "hetpure.memory", "hetpure.adjoint"),
    ("hetpure.defense",),
    (
        "hetpure.expectation",
        "hetpure.gradient_check",
        "hetpure.acceleration",
        "hetpure.compatibility",
    ),
    ("hetpure.attacks", "hetpure.presets"),
    (
        "hetpure",
        "hetpure.evaluation",
        "hetpure.analysis",
        "hetpure.report",
        "hetpure.benchmark",
    ),
    ("hetpure.commands",),
    ("lightning_modules", "datamodules"),
    ("train", "evaluate", "hetpure.__main__"),
)
GLUE = {"lightning", "pytorch_lightning", "lightning_modules", "datamodules"}
FOREIGN = {"torchvision", "timm", "robustbench", "torchattacks", "lpips"}
RANDOM = {"rand", "randn", "randint", "rand_like", "randn_like", "randint_like", "normal"}


def floor(module: str) -> int | None:
    """The floor's number; a module of `hetpure` that no floor names stands on none."""
    for level, names in enumerate(FLOORS):
        for name in names:
            if module == name or (name != "hetpure" and module.startswith(f"{name}.")):
                return level
    return None


def program() -> dict[str, ast.Module]:
    """The syntax tree of every file, by the name of its module."""
    packages = ("hetpure", "lightning_modules", "datamodules")
    paths = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    trees = {}
    for path in (*paths, ROOT / "train.py", ROOT / "evaluate.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        trees[".".join(part for part in parts if part != "__init__")] = ast.parse(path.read_text())
    return trees


def imports(tree: ast.Module, known: Collection[str] = ()) -> set[str]:
    """Modules that a file imports, anywhere in it. `from a import b` is `a.b` where `known` holds
    that module, else `a`."""
    targets: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            targets |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            targets |= members.intersection(known) or {node.module or ""}
    return targets


def calls(tree: ast.Module) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def draws(tree: ast.Module) -> list[str]:
    """Calls of torch's generators."""
    names = [ast.unparse(call.func) for call in calls(tree)]
    return [name for name in names if name.removeprefix("torch.") in RANDOM]


def unpickling(tree: ast.Module) -> list[str]:
    """Calls that would run a pickle: `torch.load` without `weights_only=True`, `numpy.load` without
    `allow_pickle=False`, and the pickle module's readers, which a class may inherit from too."""
    names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    readers = [n for n in names if n in ("pickle.load", "pickle.loads", "pickle.Unpickler")]
    for call in calls(tree):
        name = ast.unparse(call.func)
        given = {word.arg: ast.unparse(word.value) for word in call.keywords}
        if name == "torch.load" and given.get("weights_only") != "True":
            readers.append(name)
        if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
            readers.append(name)
    return readers


PROGRAM = program()


def test_imports_go_down_and_never_in_a_circle() -> None:
    graph = {name: imports(tree, PROGRAM) for name, tree in PROGRAM.items()}
    for name, targets in graph.items():
        level = floor(name)
        assert level is not None, f"{name} stands on no floor"
        above = [target for target in targets if (floor(target) or 0) > level]
        assert not above, f"{name} imports {above} from a floor above"
    # Imports that are for types only count too: what needs them belongs in one file, or apart.
    TopologicalSorter(
        {name: targets & graph.keys() - {name} for name, targets in graph.items()}
    ).prepare()


def test_only_the_glue_imports_lightning_and_nothing_a_library_of_models() -> None:
    for name, tree in PROGRAM.items():
        libraries = {target.partition(".")[0] for target in imports(tree)}
        assert not libraries & FOREIGN, name
        if name.startswith("hetpure"):
            assert not libraries & GLUE, name


def test_randomness_is_an_argument() -> None:
    """Noise comes from addresses only; a generator's state would break replay and resume."""
    assert [name for name, tree in PROGRAM.items() if draws(tree)] == []


def test_nothing_is_unpickled() -> None:
    """But by the reader that looks every name up in a list of its own."""
    readers = {name: unpickling(tree) for name, tree in PROGRAM.items() if unpickling(tree)}
    assert readers == {"hetpure.pickles": ["pickle.Unpickler"]}


def test_the_checks_see_a_violation() -> None:
    """Nested and aliased imports, a circle, a generator and every kind of pickle."""
    tree = ast.parse(
        "def f():\n  from hetpure.defense import Defense as D\n  import lightning as p"
    )
    assert imports(tree) == {"hetpure.defense", "lightning"}
    assert imports(ast.parse("from a import b"), {"a.b"}) == {"a.b"}
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    assert draws(ast.parse("torch.randn(3) + torch.rand_like(x) + noise.normal(x)")) == [
        "torch.randn",
        "torch.rand_like",
    ]
    loads = (
        "torch.load(f(x), mmap=True)\nnp.load(x)\ntorch.load(x, weights_only=True)\npickle.load(x)"
    )
    assert sorted(unpickling(ast.parse(loads))) == ["np.load", "pickle.load", "torch.load"]
    noise, defense = floor("hetpure.noise"), floor("hetpure.defense")
    assert noise is not None and defense is not None and noise < defense
    assert floor("hetpure.unknown") is None


def test_one_place_imports_by_a_name_that_was_read() -> None:
    """Elsewhere an import's name is written in the code: `hetpure.trust` knows whose may run. Names
    of tables of our own are as good."""
    by_table = {"hetpure": ["_HOMES[name]"], "hetpure.__main__": ["module"]}
    for name, tree in PROGRAM.items():
        read = [
            ast.unparse(call.args[0])
            for call in calls(tree)
            if ast.unparse(call.func).rpartition(".")[2] in ("import_module", "__import__")
            and not isinstance(call.args[0], ast.Constant)
        ]
        assert read == by_table.get(name, ["module"] if name == "hetpure.trust" else []), name
