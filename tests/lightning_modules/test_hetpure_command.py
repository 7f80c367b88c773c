"""`hetpure purify`, `report` and `compare`, as a user runs them."""

import csv
import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from hetpure.__main__ import main
from hetpure.images import read_image, write_image
from hetpure.noise import noise_for
from hetpure.presets import load_defense
from hetpure.program import run
from tests.hetpure.run_records import DRAWS, Line, defended, lines, stored, write

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs the command in this process, which must leave with code 2 and one line."""

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
    out.unlink()
    main(["purify", str(picture), str(out), f"--figure={tmp_path}"])  # a folder
    assert f"warning: {tmp_path} could not be drawn: " in capsys.readouterr().err
    assert out.is_file()


def test_purify_takes_a_folder(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    """Each image as it is purified alone, in batches that do not divide their number."""
    source, target = tmp_path / "source", tmp_path / "target"
    for number, name in enumerate(("a.png", "b.PNG", "c.jpeg")):
        pixels = read_image(picture, (1, 28, 28)).roll(3 * number, 2)
        (source / name).parent.mkdir(exist_ok=True)
        with (source / name).open("wb") as file:
            image = Image.fromarray((pixels[0, 0] * 255).round().byte().numpy())
            image.save(file, "JPEG" if name.endswith("jpeg") else "PNG")
    (source / "notes.txt").write_text("no image")
    monkeypatch.setattr("hetpure.commands.purify.AT_ONCE", 2)
    main(["purify", str(source), str(target), "--seed=3"])
    assert sorted(path.name for path in target.iterdir()) == ["a.png", "b.png", "c.png"]
    for number, path in enumerate(sorted(source.glob("[abc].*"))):
        alone = tmp_path / f"{number}.png"
        main(["purify", str(path), str(alone), "--seed=3"])
        together = read_image(target / f"{path.stem}.png", (1, 28, 28))
        assert (together - read_image(alone, (1, 28, 28))).abs().max() <= 1.01 / 255
    (source / "a.jpg").write_bytes((source / "c.jpeg").read_bytes())
    assert "rename one" in refused("purify", str(source), str(target))
    assert "not a folder" in refused("purify", str(target), str(tmp_path / "x"), "--figure=f.png")
    (tmp_path / "none").mkdir()
    assert "holds no image" in refused("purify", str(tmp_path / "none"), str(target))


def test_purify_refuses_in_one_line(picture: Path, tmp_path: Path, refused: Refused) -> None:
    out = str(tmp_path / "out.png")
    assert "missing.png" in refused("purify", "missing.png", out)
    assert "is the image itself" in refused("purify", str(picture), str(picture))
    assert "'mnist'" in refused("purify", str(picture), out, "--defense=mnist")
    assert "required" in refused("purify", str(picture))
    assert "purify, benchmark, convert" in refused("purfy")


def test_configs_and_the_version_are_told(
    capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    main(["--version"])
    assert capsys.readouterr().out.strip() == version("hetpure")
    assert "these are: evaluate/quick, train/quick" in refused("configs", "quick")
    assert "a config is given as --config my.yaml" in refused("evaluate", "my.yaml")


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
    assert "a run is a folder that hetpure evaluate wrote" in refused("report", str(tmp_path))


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two runs of 40 samples: `good` has 30 right under attack, and `bad` 10; clean all."""
    return [
        write(tmp_path / run, [*of_run(name, right)], results={"run": {"data": run}})
        for run, name, right in (("good", "a", 30), ("bad", "c", 10))
    ]


def of_run(name: str, right: int) -> Iterator[Line]:
    yield from lines(name, "clean", [DRAWS] * 40)
    for attack in ("pgd", "null", "dw-both"):
        known = ["reverse"] if attack == "dw-both" else []
        counts = [DRAWS] * right + [0] * (40 - right)
        yield from lines(name, attack, counts, known=known)


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
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = compared(capsys, *runs)
    assert code == 1
    assert "robust: significantly worse than good:a: bad:c\n" in out
    assert "clean: no defence is significantly worse than good:a\n" in out
    assert err == "warning: data differs: bad in bad, good in good\n"
    for option, expected in (
        ("--baseline=bad:c", 0),
        ("--baseline=c", 0),
        ("--tolerance=70", 0),
        ("--tolerance=20", 1),
    ):
        assert compared(capsys, *runs, option)[0] == expected, option


@pytest.mark.parametrize(
    ("option", "line"),
    [
        *[(f"--protocol={name}", f"{name}: ") for name in ("single", "vote", "worst", "dw_box")],
        ("--attack=null", "null: significantly worse than good:a: bad:c"),  # YAML's nothing
        ("--attack=pgd", "pgd: significantly worse than good:a: bad:c"),
    ],
)
def test_compare_counts_as_it_is_told(
    runs: list[str], capsys: pytest.CaptureFixture[str], option: str, line: str
) -> None:
    code, out, _ = compared(capsys, *runs, option)
    assert code == 1
    assert line in out
    assert ("<0.001" in out) == (option.split("=")[1] in ("vote", "worst"))


def test_compare_writes_what_it_shows(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = (f"--csv={tmp_path / 'o.csv'}", f"--latex={tmp_path / 'o.tex'}")
    assert compared(capsys, *runs, "--protocol=vote", *targets)[0] == 1
    with (tmp_path / "o.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["kind"], row["run"]) for row in rows] == [
        ("clean", "good"), ("clean", "bad"), ("robust", "good"), ("robust", "bad")
    ]  # fmt: skip
    assert float(rows[-1]["difference"]) == -0.5
    assert (rows[-1]["only_this"], rows[-1]["only_baseline"]) == ("0", "20")
    assert float(rows[-1]["p_value"]) == pytest.approx(2**-19)
    assert "bad:c & $40$ & $25.0" in (tmp_path / "o.tex").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "good:a is the only defence"),
        (["runs"], "there is no run.json and no records.jsonl"),
        (["good"], "given twice"),
        (["bad", "--baseline=d"], "allowed are good:a, bad:c"),
        (["bad", "--attack=fgsm"], "robust, pgd, null, dw-both"),
        (["bad", "--protocol=mean"], "single"),
        (["bad", "--tolerance=-1"], "[0, 100] points, got -1"),
        (["bad", "--csv=."], "--csv"),
        (["bad", "--latex=no/o.tex"], "--latex"),
    ],
)
def test_compare_refuses_in_one_line(
    options: list[str],
    message: str,
    runs: list[str],
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("compare", "good", *options)


def test_compare_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = compared(capsys, "--help")
    assert code == 0
    help_text = " ".join(out.split())
    assert "Exit code 0: under attack no defence is significantly worse" in help_text
    assert "RUN [RUN ...]" in help_text
    assert "Args:" not in help_text
    for option in ("baseline", "attack", "protocol", "tolerance", "csv", "latex", "html"):
        assert f"--{option}" in help_text
