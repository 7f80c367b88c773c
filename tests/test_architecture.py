"""The layers of docs/architecture.md, read from the imports, and rules that grep can see."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# A file may import from its own floor and from those below; first match wins.
FLOORS = (
    ("hetpure.errors", "hetpure.numbers", "hetpure.images", "hetpure.disk", "hetpure.pickles"),
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
        "hetpure.adversarial_training",
        "hetpure.sampling",
    ),
    ("hetpure.gradients", "hetpure.memory", "hetpure.adjoint"),
    ("hetpure.defense",),
    ("hetpure.expectation", "hetpure.gradient_check", "hetpure.acceleration"),
    ("hetpure.attacks", "hetpure.presets"),
    ("hetpure.evaluation", "hetpure.report"),
    ("lightning_modules", "datamodules"),
    ("train", "evaluate", "hetpure.__main__"),
)


def floor(module: str) -> int | None:
    for level, names in enumerate(FLOORS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return level
    return None


def sources() -> list[Path]:
    packages = ("hetpure", "lightning_modules", "datamodules")
    files = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return [*files, ROOT / "train.py", ROOT / "evaluate.py"]


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_imports_go_down(path: Path) -> None:
    name = module_name(path)
    own = floor(name)
    if name == "hetpure":  # imports what it offers only when asked for it
        own = floor("hetpure.presets")
    assert own is not None, f"{name} stands on no floor"
    for target in imports(path):
        level = floor(target)
        assert level is None or level <= own, f"{name} imports {target} from a floor above"


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_no_lightning_below_the_glue(path: Path) -> None:
    """But for `python -m hetpure`, which is an entry point as train.py is."""
    if module_name(path).startswith("hetpure") and path != ROOT / "hetpure" / "__main__.py":
        forbidden = ("lightning", "pytorch_lightning", "lightning_modules", "datamodules")
        assert not {name for name in imports(path) if name.split(".")[0] in forbidden}


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_nothing_pulls_in_torchvision(path: Path) -> None:
    forbidden = {"torchvision", "timm", "robustbench", "torchattacks", "lpips"}
    assert not {name.split(".")[0] for name in imports(path)} & forbidden


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_randomness_is_an_argument(path: Path) -> None:
    """Noise comes from addresses only; a generator's state would break replay and resume."""
    if module_name(path) != "hetpure.noise":
        assert not re.search(r"torch\.(randn|rand|randint|normal)(_like)?\(", path.read_text())


def unpickling(path: Path) -> list[str]:
    """Calls that would run a pickle: `torch.load` without `weights_only=True`, `numpy.load` without
    `allow_pickle=False`, and the pickle module's own readers."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            name = f"{node.value.id}.{node.attr}"
            if name in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
                found.append(name)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name == "torch.load" and given.get("weights_only") != "True":
                found.append(name)
            if name in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
                found.append(name)
    return found


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_nothing_is_unpickled(path: Path) -> None:
    """But by the reader that looks every name up in a list of our own."""
    allowed = ["pickle.Unpickler"] if module_name(path) == "hetpure.pickles" else []
    assert unpickling(path) == allowed


@pytest.mark.parametrize("path", sources(), ids=module_name)
def test_files_stay_readable(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_the_check_sees_a_violation(tmp_path: Path) -> None:
    """The reader of imports finds nested and aliased imports, so the tests above can fail."""
    lines = ["from hetpure.defense import Defense as D", "import lightning.pytorch as p"]
    (tmp_path / "x.py").write_text("def f():\n" + "".join(f"    {line}\n" for line in lines))
    loads = "torch.load(f(x), mmap=True)\nnp.load(x)\ntorch.load(f(x), weights_only=True)"
    (tmp_path / "y.py").write_text(loads)
    assert unpickling(tmp_path / "y.py") == ["torch.load", "np.load"]
    found = imports(tmp_path / "x.py")
    assert {"hetpure.defense", "lightning.pytorch"} <= found
    below, above = floor("hetpure.noise"), floor("hetpure.defense")
    assert below is not None
    assert above is not None
    assert below < above
