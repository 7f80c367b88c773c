"""docs/guide: its code runs, its configs do what the pages say, its command lines are understood,
and the README's.

A block whose first line is `# NAME` stands for the file NAME of the folder where a reader works.
"""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hetpure.__main__ import main
from hetpure.errors import InputError
from hetpure.images import read_image
from hetpure.program import run
from hetpure.weights.classifier import build_classifier

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs" / "guide").glob("*.md"))
BLOCKS = [
    (language, body)
    for page in PAGES
    for language, body in re.findall(
        r"^```(\w+)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL
    )
]
FILES = {
    name[1]: body
    for language, body in BLOCKS
    if (name := re.match(r"# (\w+\.(?:py|yaml))\n", body)) and language in ("python", "yaml")
}
# Programs of a clone, by what a line calls them.
PROGRAMS = {
    r"hetpure ": "",
    r"python evaluate\.py ?": "evaluate ",
    r"python train\.py ?": "train ",
    r"torchrun .* evaluate\.py ": "evaluate ",
    r"sbatch configs/cluster/evaluate\.sbatch ": "evaluate ",
    r"sbatch configs/cluster/train\.sbatch ": "train ",
}
README = re.findall(
    r"^```\w*\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)
COMMANDS = [
    re.sub(program, command, line)
    for block in [*README, *(body for language, body in BLOCKS if language == "bash")]
    for line in block.splitlines()
    for program, command in PROGRAMS.items()
    if re.match(program, line)
]
CONFIGURED = ("evaluate", "analyze", "plan", "gradcheck", "train", "tune")
SMALL = [
    "--model.attack.steps=1",
    "--model.attack.eot_samples=1",
    "--model.attack.mask=recomputed",
    "--model.protocol={report_draws: 1, selection_draws: 1}",
    "--model.audit=null",
    "--model.run=own",
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a reader works: with all files of the pages."""
    for name, body in FILES.items():
        (tmp_path / name).write_text(body)
    shutil.copy(ROOT / "configs" / "evaluate" / "quick.yaml", tmp_path / "my.yaml")
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("*.xz"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("my_"):
            del sys.modules[name]


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs/evaluate/own/results.json").read_text())
    return found


def executed(name: str) -> dict[str, Any]:
    """What a Python file of the pages defines."""
    namespace: dict[str, Any] = {"__name__": name.removesuffix(".py")}
    exec(compile(FILES[name], name, "exec"), namespace)
    return namespace


def test_every_block_of_code_is_a_file_with_a_name() -> None:
    unnamed = [
        body
        for language, body in BLOCKS
        if language in ("python", "yaml") and body not in FILES.values()
    ]
    assert not unnamed
    assert len(FILES) == sum(language in ("python", "yaml") for language, _ in BLOCKS)
    assert {language for language, _ in BLOCKS} <= {"python", "yaml", "bash", "json"}


def is_whole(config: dict[str, Any]) -> bool:
    """Whether a config names a model and data, as a program needs them."""
    model = config.get("model", config)
    return "class_path" in model or None not in (model["classifier"], config["data"])


@pytest.mark.parametrize("line", dict.fromkeys(COMMANDS))
def test_commands_are_understood(
    line: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The real parser takes a line that has a config, and shows what came of it. Another command
    gets as far as the file or folder that is not here."""
    for name in ("RUN", "runs/evaluate/first"):
        (folder / name).mkdir(parents=True)
        kind = "train" if line.startswith("train ") else "evaluate"
        shutil.copy(ROOT / "configs" / kind / "quick.yaml", folder / name / "config.yaml")
    words = shlex.split(line.split(" > ")[0], comments=True)
    if words[0] in CONFIGURED:
        shows = "help" in line
        with pytest.raises(SystemExit) as stopped:
            main([*words, *([] if shows else ["--print_config"])])
        assert stopped.value.code == 0
        printed = capsys.readouterr().out
        assert printed.startswith("usage: ") if shows else is_whole(yaml.safe_load(printed))
    elif words[0] in ("--help", "configs"):
        main(words)
        expected = {"--help": "evaluate", "configs": "model:" if words[1:] else "quick"}
        assert expected[words[0]] in capsys.readouterr().out
    else:
        shutil.rmtree("docs")
        with pytest.raises(InputError, match=re.escape(Path(words[1]).name)):
            main(words)


def test_a_class_in_the_folder_where_the_program_is_started_is_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Though an installed program's path begins with its own folder."""
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", str(folder))])
    with pytest.raises(SystemExit) as stopped:
        run(main, ["evaluate", "--config=quick", "--config=my_data.yaml", "--print_config"])
    assert stopped.value.code == 0, capsys.readouterr().err


def test_one_image_is_purified() -> None:
    executed("one_image.py")
    assert read_image("purified.png", (1, 28, 28)).std() > 0.05


def test_many_images_are_purified_at_once() -> None:
    purified = executed("many_images.py")["purified"]
    assert purified.shape == (2, 1, 28, 28) and not purified.requires_grad
    assert (purified[0] - purified[1]).abs().max() > 0.05, "each has noise of its own"


def test_parts_make_a_defence() -> None:
    logits = executed("parts.py")["logits"]
    assert logits.shape == (2, 10)
    assert logits.requires_grad


def test_a_block_is_evaluated_without_lightning() -> None:
    records = executed("one_block.py")["outcome"].records
    assert len({record.sample for record in records}) == 2


def test_a_purifier_and_an_attack_of_ones_own_on_data_of_ones_own() -> None:
    executed("make_images.py")
    configs = ["--config=quick", "--config=my_data.yaml", "--config=my_row.yaml"]
    attack = ["--model.attack=my_attack.Shrinking", "--model.attack.epsilon=16/255"]
    main(["evaluate", *configs, *attack, *SMALL])
    assert results()["samples"] == 3
    row = results()["defenses"]["repeated"]
    assert row["gradient_check"]["passed"]
    assert row["purification_calls"] == 3
    assert "shrinking_linf" in row["attacks"]


def test_data_that_are_not_what_they_say_are_refused(folder: Path) -> None:
    executed("make_images.py")
    (folder / "my_images.py").write_text(
        FILES["my_images.py"].replace("= 10, 1, 28", "= 10, 3, 28")
    )
    with pytest.raises(InputError, match="images have channels 1, and it declares 3"):
        main(["evaluate", "--config=quick", "--config=my_data.yaml", *SMALL])


def test_a_sampler_and_a_classifier_of_ones_own_on_an_npz() -> None:
    """The classifier's folder that the page writes is the one that it converts a file to."""
    executed("write_classifier.py")
    executed("make_npz.py")
    torch.manual_seed(0)
    torch.save(executed("my_network.py")["Net"](8).state_dict(), "mine.pt")
    (line,) = (line for line in COMMANDS if "my_network" in line)
    main(shlex.split(line))
    written, converted = (
        json.loads(Path(f, "config.json").read_text()) for f in ("written", "mine")
    )
    assert written == converted
    (line,) = (line for line in COMMANDS if "mine.npz" in line)
    of_ones_own = ["--config=my_sampler.yaml", "--model.classifier=written"]
    main([*shlex.split(line), *of_ones_own, "--data.limit=2", *SMALL])
    row = results()["defenses"]["renoise t=150"]
    assert row["gradient_check"]["passed"]
    assert row["purification_calls"] == 3


def test_a_config_file_of_a_registered_classifier_is_read(folder: Path) -> None:
    (config,) = (json.loads(body) for language, body in BLOCKS if language == "json")
    config["network"] |= {"depth": 10, "widen_factor": 1}
    assert build_classifier(config, where=folder).channels == 3


def test_rows_that_configs_name_are_rows_of_the_config_below() -> None:
    tour = yaml.safe_load((ROOT / "configs" / "evaluate" / "tour.yaml").read_text())["model"]
    attacks, execution = (
        yaml.safe_load(FILES[f"my_{name}.yaml"]) for name in ("attacks", "execution")
    )
    named = [
        row for attack in attacks["model"]["attacks"].values() for row in attack.get("defenses", [])
    ]
    assert {*named, *execution["model"]["execution"]} <= tour["defenses"].keys()


@pytest.mark.parametrize(
    ("configs", "exported"),
    [
        (["my_classifier.yaml", "train_on_mine.yaml"], "classifier"),
        (["my_classifier.yaml", "my_robust_classifier.yaml"], "classifier"),
        (["quick", "my_addt.yaml"], "diffusion"),
        (["fashion_mnist_ddpm", "my_diffusion.yaml"], "diffusion"),
    ],
)
def test_trainings_train(configs: list[str], exported: str, folder: Path) -> None:
    executed("make_npz.py")
    small = [
        f"--trainer.default_root_dir={folder}",
        "--trainer.accelerator=cpu",
        "--trainer.max_epochs=1",
        "--trainer.max_steps=-1",
        "--trainer.limit_train_batches=1",
        "--trainer.limit_val_batches=1",
        "--trainer.val_check_interval=1.0",
        "--trainer.check_val_every_n_epoch=1",
        "--trainer.callbacks=lightning_modules.callbacks.ExportWeights",
        "--data.batch_size=5",
    ]
    main(["train", *(f"--config={name}" for name in configs), *small])
    assert list(folder.glob(f"**/{exported}/**/*.safetensors"))
