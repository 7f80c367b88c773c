"""`python -m hetpure purify`, `report` and `compare`, as a user runs them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hetpure.__main__ import main
from hetpure.images import read_image, write_image
from hetpure.noise import noise_for
from hetpure.presets import load_defense
from lightning_modules.cli import run
from tests.hetpure.run_records import DRAWS, defended, lines, stored, write

ROOT = Path(__file__).parent.parent.parent


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command in this process, which must leave with code 2 and one line."""
    monkeypatch.chdir(ROOT)

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            run(main, arguments)
        assert stopped.value.code == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    return call


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    write_image(tmp_path / "in.png", torch.linspace(0, 1, 784).reshape(1, 28, 28))
    return tmp_path / "in.png"


def test_purify_writes_what_the_library_gives(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, steps = tmp_path / "out.png", tmp_path / "steps.png"
    main(["purify", str(picture), str(out), "--seed=3", f"--figure={steps}"])
    assert f"{out}: classified as " in capsys.readouterr().out
    defense = load_defense()
    image = read_image(picture, defense.image_shape)
    expected = defense.purify(image, noise_for(image, seed=3))
    written = read_image(out, defense.image_shape)
    assert (written - expected).abs().max() <= 0.5 / 255 + 1e-4
    with Image.open(steps) as figure:
        assert figure.width > 1000


def test_purify_refuses_in_one_line(picture: Path, tmp_path: Path, refused: Refused) -> None:
    out = str(tmp_path / "out.png")
    assert "missing.png" in refused("purify", "missing.png", out)
    assert "'mnist'" in refused("purify", str(picture), out, "--defense=mnist")
    assert "required" in refused("purify", str(picture))
    assert "purify,convert,tune" in refused()


def test_report_reads_any_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    records = defended("a", [DRAWS // 2] * 4) + lines("a", "null", [DRAWS] * 4)
    whole = stored(tmp_path / "whole", records, images=4)
    half = stored(tmp_path / "half", [*records, *lines("b", "clean", [DRAWS])], images=4)
    earlier = write(tmp_path / "earlier", records)
    shown = {}
    for name in ("whole", "half", "earlier"):
        main(["report", str(tmp_path / name)])
        shown[name] = capsys.readouterr().out
        assert "50.0" in shown[name]
        assert ("NOT FINISHED: 1 part missing" in shown[name]) == (name == "half")
    assert "is of an earlier version" in shown["earlier"]
    assert sorted(path.name for path in Path(earlier).iterdir()) == ["records.jsonl"]
    for store in (whole, half):
        assert "50.0" in (store.path / "report.md").read_text()
        assert json.loads((store.path / "results.json").read_text())["samples"] == 4
    assert "there is no such folder" in refused("report", str(tmp_path / "none"))
    assert "a run is a folder that evaluate.py wrote" in refused("report", str(tmp_path))


def finished(folder: Path, **right: int) -> str:
    """A run of 40 samples, right on all clean ones and on so many under each defence's attack."""
    folder.mkdir(parents=True)
    records = [
        {
            "defense": name, "attack": attack, "sample": sample, "label": 1,
            "predictions": [int(attack == "clean" or sample < count)] * 3,
            "selection": [0], "chosen": 0, "linf": 0.0, "l2": 0.0, "coverage": None,
            "network_calls": 0, "known": ["reverse"] if attack == "dw-both" else [],
        }
        for name, count in right.items()
        for attack in ("clean", "pgd_linf", "null", "dw-both")
        for sample in range(40)
    ]  # fmt: skip
    (folder / "records.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    (folder / "results.json").write_text(json.dumps({"run": {"data": folder.name}}))
    return str(folder)


def compared(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code and what was printed, of the command in this process."""
    code: Any = 0
    try:
        run(main, ["compare", *arguments])
    except SystemExit as stopped:
        code = stopped.code
    printed = capsys.readouterr()
    return code, printed.out, printed.err


def test_compare_tells_scripts_whether_a_defence_is_worse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = finished(tmp_path / "good", a=30, b=29), finished(tmp_path / "bad", c=10)
    code, out, err = compared(capsys, good)
    assert (code, err) == (0, "")
    assert "robust: no defence is significantly worse than a\n" in out
    assert "2 differences, with intervals that are not corrected for their number" in out
    code, out, err = compared(capsys, good, bad)
    assert code == 1
    assert "robust: significantly worse than good:a: bad:c\n" in out
    assert "clean: no defence is significantly worse than good:a\n" in out
    assert err == "warning: data differs: bad in bad, good in good\n"
    assert compared(capsys, good, bad, "--baseline=bad:c")[0] == 0
    assert compared(capsys, good, bad, "--baseline=c")[0] == 0
    assert compared(capsys, good, bad, "--tolerance=70")[0] == 0
    assert compared(capsys, good, bad, "--tolerance=20")[0] == 1


@pytest.mark.parametrize("protocol", ["single", "vote", "worst", "dw_box"])
def test_compare_counts_as_it_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], protocol: str
) -> None:
    good, bad = finished(tmp_path / "good", a=30), finished(tmp_path / "bad", c=10)
    code, out, _ = compared(capsys, good, bad, f"--protocol={protocol}")
    assert code == 1
    assert f"{protocol}: " in out
    assert ("<0.001" in out) == (protocol in ("vote", "worst"))


def test_compare_takes_a_named_attack_even_one_that_yaml_reads_as_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = finished(tmp_path / "good", a=30), finished(tmp_path / "bad", c=10)
    for attack in ("null", "pgd_linf"):
        code, out, _ = compared(capsys, good, bad, "--attack", attack)
        assert code == 1
        assert f"{attack}: significantly worse than good:a: bad:c" in out
        assert "robust" not in out


def test_compare_writes_what_it_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = finished(tmp_path / "good", a=30), finished(tmp_path / "bad", c=10)
    targets = (f"--csv={tmp_path / 'o.csv'}", f"--latex={tmp_path / 'o.tex'}")
    assert compared(capsys, good, bad, "--protocol=vote", *targets)[0] == 1
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["run"]) for row in rows] == [
        ("clean", "good"), ("clean", "bad"), ("robust", "good"), ("robust", "bad")
    ]  # fmt: skip
    assert float(rows[-1]["difference"]) == -0.5
    assert (rows[-1]["only_this"], rows[-1]["only_baseline"]) == ("0", "20")
    assert float(rows[-1]["p_value"]) == pytest.approx(2**-19)
    assert r"bad & c & $40$ & $25.0" in (tmp_path / "o.tex").read_text()


def test_compare_refuses_in_one_line(tmp_path: Path, refused: Refused) -> None:
    good = finished(tmp_path / "good", a=30, b=29)
    assert "required" in refused("compare")
    assert "there is no run.json and no records.jsonl" in refused("compare", str(tmp_path))
    assert "given twice" in refused("compare", good, good)
    assert "allowed are good:a, good:b" in refused("compare", good, "--baseline=c")
    assert "robust, pgd_linf, null, dw-both" in refused("compare", good, "--attack=fgsm")
    assert "single" in refused("compare", good, "--protocol=mean")
    assert "[0, 100] points, got -1" in refused("compare", good, "--tolerance=-1")
    assert "--csv" in refused("compare", good, f"--csv={tmp_path}")
    assert "--latex" in refused("compare", good, f"--latex={tmp_path / 'no' / 'o.tex'}")


def test_compare_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = compared(capsys, "--help")
    assert code == 0
    said = " ".join(out.split())
    assert "Exit code 0: under attack no defence is significantly worse" in said
    assert "Intervals are not corrected for their number" in said
    assert "RUN [RUN ...]" in said
    assert "Args:" not in said
    for option in ("baseline", "attack", "protocol", "tolerance", "csv", "latex"):
        assert f"--{option}" in said
