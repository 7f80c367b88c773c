"""What is installed from a wheel works in an empty folder, without the clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("hetpure", "lightning_modules", "datamodules")
SMALLEST = (
    *("--model.attack.steps=1", "--model.attack.eot_samples=1", "--model.audit=null"),
    *("--model.protocol={report_draws: 1, selection_draws: 1}", "--model.run=one"),
    *("--data.source=packaged", "--data.limit=2", "--data.batch_size=2"),
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages, as pip would unpack the wheel."""
    place = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name in filter(None, tracked):  # nothing that an earlier build left
        if (ROOT / name).is_file():
            (place / "clone" / name).parent.mkdir(parents=True, exist_ok=True)
            (place / "clone" / name).write_bytes((ROOT / name).read_bytes())
    build = "from setuptools import build_meta; print(build_meta.build_wheel('..'))"
    made = subprocess.check_output([sys.executable, "-c", build], cwd=place / "clone", text=True)
    with zipfile.ZipFile(place / made.splitlines()[-1]) as wheel:
        wheel.extractall(place / "site")
    return place / "site"


def hetpure(site: Path, place: Path, *arguments: str) -> str:
    """The console script of the unpacked wheel, as pip would write it."""
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    script = (
        "import sys; from importlib.metadata import distributions;"
        f" (wheel,) = distributions(path=[{str(site)!r}]);"
        " (entry,) = wheel.entry_points; sys.argv[0] = entry.name; sys.exit(entry.load()())"
    )
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_wheel_carries_every_config_and_the_command(site: Path) -> None:
    carried = {path.relative_to(site / "hetpure") for path in (site / "hetpure/configs").rglob("*")}
    assert carried == {path.relative_to(ROOT) for path in (ROOT / "configs").rglob("*")}
    (metadata,) = site.glob("hetpure-*.dist-info")
    assert "hetpure = hetpure.__main__:console" in (metadata / "entry_points.txt").read_text()
    assert {path.name for path in site.iterdir()} == {*PACKAGES, metadata.name}


def test_it_evaluates_and_reports_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    assert "evaluate/quick\n" in hetpure(site, tmp_path, "configs")
    options = ("--config=plain_classifier", "--model.attack=hetpure_linf", *SMALLEST)
    assert "run folder: runs/evaluate/one" in hetpure(site, tmp_path, "evaluate", *options)
    assert "standard single" in hetpure(site, tmp_path, "report", "runs/evaluate/one")
    assert "</html>" in (tmp_path / "runs/evaluate/one/report.html").read_text()
    saved = (tmp_path / "runs/evaluate/one/run.json").read_text()
    assert str(ROOT) not in saved
