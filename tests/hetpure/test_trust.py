"""Foreign code, under whatever name, and downloads: refused within `only_our_code`."""

import sys
from pathlib import Path

import pytest

from datamodules.download import Remote, fetch
from hetpure.attacks.filters import FilterAttack, lpips
from hetpure.errors import InputError
from hetpure.trust import import_named, only_our_code
from hetpure.weights.classifier import find_architecture

OTHERS = ("os.system", "hetpure.program.os.system", "hetpure.trust.import_module", "hetpurer.Net")


def test_our_own_is_imported_and_what_modules_of_ours_have_from_elsewhere_is_not() -> None:
    assert import_named("os.sep") == "/"
    with only_our_code():
        assert import_named("hetpure.attacks.filters.lpips") is lpips
        for name in OTHERS:
            with pytest.raises((InputError, ImportError)):
                import_named(name)
            with pytest.raises(InputError):
                find_architecture(name)
            with pytest.raises(InputError, match="distance"):
                FilterAttack(distance=name)


def test_no_module_is_looked_for_where_the_program_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lies_here.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, ""])
    with only_our_code(), pytest.raises(ModuleNotFoundError):
        __import__("lies_here")
    assert sys.path[-1] == ""


def test_nothing_is_downloaded(tmp_path: Path) -> None:
    with only_our_code(), pytest.raises(InputError, match="would be downloaded"):
        fetch(Remote("http://nowhere.invalid/file.gz", 1, "0" * 64), tmp_path)
