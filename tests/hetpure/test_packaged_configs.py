"""A config is found by its path or its name."""

from pathlib import Path

import pytest

from hetpure.errors import InputError
from hetpure.packaged_configs import CONFIGS, find, names, with_paths

QUICK, ATTACK = (str(CONFIGS / name) for name in ("evaluate/quick.yaml", "attack/addt_l2.yaml"))


def test_names_are_paths_below_their_kind_without_the_suffix() -> None:
    assert find("evaluate", "quick") == QUICK
    assert find("train", "variants/clean") == str(CONFIGS / "train/variants/clean.yaml")
    assert set(names("attack")) == {"addt_l2", "addt_linf", "hetpure_l2", "hetpure_linf"}
    with pytest.raises(InputError, match=r"--config quik: there is no such file, and no .* tour"):
        find("evaluate", "quik")


def test_a_file_goes_first_and_a_folder_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick").mkdir()
    assert find("evaluate", "quick") == QUICK
    (tmp_path / "tour").touch()
    assert find("evaluate", "tour") == "tour"
    for folder in ("mine", "mine.yaml"):
        (tmp_path / folder).mkdir()
        with pytest.raises(InputError, match=f"--config {folder} is a folder: give a file, as"):
            find("evaluate", folder)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], ["--config", QUICK]),
        (["--a", "quick"], ["--config", QUICK, "--a", "quick"]),
        (["--config=quick"], [f"--config={QUICK}"]),
        (["-c", "quick", "--config", "my.yaml"], ["--config", QUICK, "--config", "my.yaml"]),
        (["-cquick"], [f"--config={QUICK}"]),
        (["-c=my.yaml"], ["--config=my.yaml"]),
        (["--config"], ["--config"]),
        (
            ["-cmy.yaml", "--model.attack", "addt_l2", "--model.attack=hetpure.attacks.PGD"],
            ["--config=my.yaml", "--model.attack", ATTACK, "--model.attack=hetpure.attacks.PGD"],
        ),
    ],
)
def test_arguments_name_configs(given: list[str], expected: list[str]) -> None:
    assert with_paths("evaluate", given, default="quick") == expected
