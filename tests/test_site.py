"""The pages as a site: they build without a warning, with every public module of the packages."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("sphinx")
    pytest.importorskip("myst_parser")
    pytest.importorskip("furo")
    # Of a copy: the pages of modules are generated beside the sources.
    tracked = subprocess.check_output(["git", "ls-files", "docs"], cwd=ROOT, text=True)
    for name in tracked.splitlines():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    site = tmp_path / "site"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "docs", str(site)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for module in ("hetpure.noise", "hetpure.attacks.pgd", "lightning_modules.loggers"):
        page = (site / "generated" / f"{module}.html").read_text()
        assert page.count("<dt") > 1, module
    for page in ("guide/evaluate.html", "reference/config.html", "experiments/README.html"):
        assert (site / page).is_file(), page
