"""Recipes for published numbers: each names files that are known, and runs on small ones of their
formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image

from datamodules.cifar import CIFAR, CIFAR10, CIFAR100
from hetpure.__main__ import main
from hetpure.errors import InputError
from hetpure.program import run
from hetpure.weights import load_denoiser
from hetpure.weights.folders import resolve, unpinned
from hetpure.weights.published import FILES
from lightning_modules.doctor import networks_of
from tests.datamodules import test_cifar, test_svhn
from tests.hetpure.weights.test_diffusion_formats import on_disk
from tests.published import reference
from tests.published_files import write_and_convert

ROOT = Path(__file__).parent.parent
EVALUATIONS = sorted((ROOT / "configs" / "evaluate" / "paper").glob("*.yaml"))
TRAININGS = sorted((ROOT / "configs" / "train" / "paper").glob("*.yaml"))
recipes = pytest.mark.parametrize("path", EVALUATIONS + TRAININGS, ids=lambda path: path.stem)


@recipes
def test_a_recipe_names_known_files_and_its_commands(path: Path) -> None:
    text = path.read_text()
    networks = list(networks_of(yaml.safe_load(text)))
    assert networks
    for network in networks:
        folder, digest = unpinned(network)
        file = FILES[Path(folder).name]
        assert folder == f"weights/{Path(folder).name}"
        known = (file.sha256 or file.md5 or "") if file.agreed else ""
        assert (digest is None) == (not known) and known.startswith(digest or "")
    kind = "evaluate" if path in EVALUATIONS else "train"
    assert f"#   hetpure doctor paper/{path.stem}" in text
    assert f"#   hetpure {kind} --config paper/{path.stem}\n" in text


def test_every_published_file_is_some_recipes() -> None:
    named = {
        Path(unpinned(network)[0]).name
        for path in EVALUATIONS + TRAININGS
        for network in networks_of(yaml.safe_load(path.read_text()))
    }
    assert named == set(FILES)


def test_doctor_names_all_that_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        run(main, ["doctor", "paper/hetpure_cifar10_wrn28"])
    assert stopped.value.code == 1
    classifier, diffusion, data, last = capsys.readouterr().out.strip().splitlines()
    assert classifier.startswith("missing") and "6ed1c75dad63e8ebdbef" in classifier
    assert "hetpure convert Standard.pt weights/cifar10_wrn_28_10_standard --mean 0" in classifier
    assert "checkpoint_8.pth" in diffusion and "MD5 db26ca82b7ea36b75199abf6ed94339d" in diffusion
    assert "one text alone" in diffusion
    assert "cifar-10-binary.tar.gz" in data and "SHA-256" in data
    assert last == "3 of 3 are missing"
    with pytest.raises(SystemExit) as stopped:
        run(main, ["evaluate", "--config", "paper/gowal_cifar10"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Gowal2021Improving_28_10_ddpm_100m.pt" in error and "no published hash" in error


def test_an_evaluation_names_all_missing_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_cifar(tmp_path / "data", CIFAR10, monkeypatch)
    with pytest.raises(SystemExit) as stopped:
        run(main, ["evaluate", "--config", "paper/addt_cifar10", "--data.limit=2"])
    assert stopped.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    for file in ("origin.t7", "model-790000.ckpt", "hetpure train --config paper/addt_cifar10"):
        assert file in error


def test_doctor_of_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "quick"])
    assert "next: hetpure plan --config quick" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        run(main, ["doctor", "no_such_recipe"])
    assert stopped.value.code == 2
    assert "paper/hetpure_svhn" in capsys.readouterr().err


def test_a_folder_of_another_file_is_refused_unless_told(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10_ddpm_ema"
    folder.mkdir()
    with pytest.raises(InputError, match="does not say what it was converted from, wanted is"):
        resolve(f"{folder}@1fa350b952534ae4")
    digests = {"sha256": "ab" * 32, "md5": "1fa350b952534ae442b1d5235cce5cd3"}
    (folder / "source.json").write_text(json.dumps(digests))
    assert resolve(f"{folder}@1fa350b952534ae4") == folder
    assert resolve(f"{folder}@{'ab' * 8}") == folder
    with pytest.raises(InputError, match="was converted from another file .*leave @abcdef12 out"):
        resolve(f"{folder}@abcdef12")
    assert resolve(folder) == folder
    assert resolve(f"{folder}@1FA350B952534AE4") == folder
    (folder / "source.json").write_text(json.dumps({"sha256": "ab" * 32}))
    with pytest.raises(InputError, match="by an earlier version, which kept no MD5"):
        resolve(f"{folder}@1fa350b952534ae4")
    odd = tmp_path / "mine@20261130"
    odd.mkdir()
    assert resolve(odd) == odd


def test_a_hash_that_one_text_alone_gives_refuses_nothing() -> None:
    file = FILES["cifar10_ddpmpp_table"]
    assert not file.agreed and "one text alone" in file.hash
    assert file.matches({"sha256": "ab" * 32}) is None
    assert file.matches({"md5": file.md5 or ""}) is True
    assert file.matches({"md5": "ab" * 16}) is False


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ({"denoisers": ["a"], "classifier": "fashion_mnist_wrn"}, "denoisers: ['a']"),
        ({"denoisers": {"a": None}}, "denoisers: {'a': None}"),
        ({"classifier": 7}, "classifier: {'classifier': 7}"),
    ],
)
def test_doctor_names_what_is_no_path(
    model: dict[str, Any], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"model": model}))
    with pytest.raises(SystemExit) as stopped:
        run(main, ["doctor", str(tmp_path / "mine.yaml")])
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


def test_a_name_of_two_kinds_stands_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, kinds in (("paper/addt_cifar10", 2), ("train/paper/addt_cifar10", 1)):
        with pytest.raises(SystemExit) as stopped:
            run(main, ["doctor", name])
        assert stopped.value.code == 1
        said = capsys.readouterr().out
        assert said.count("are missing") == kinds and "model-790000.ckpt" in said
        assert ("data_batch_1.bin" in said) and ("cifar10_addt" in said) == (kinds == 2)


def test_convert_writes_what_a_pinned_path_is_held_to(tmp_path: Path) -> None:
    file = on_disk("ddpm_ho", reference("ddpm_ho"), tmp_path / "model-790000.ckpt")
    folder = tmp_path / "cifar10_ddpm_ema"
    main(["convert", str(file), str(folder), "--sample_size=16"])
    source = json.loads((folder / "source.json").read_text())
    for kind in ("sha256", "md5"):
        assert resolve(f"{folder}@{source[kind]}") == folder


def write_cifar(data: Path, kind: type[CIFAR], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CIFAR, "counts", test_cifar.SMALL)
    test_cifar.write_binary(data, kind)


def write_svhn(data: Path, kind: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.svhn.SVHN.counts", test_svhn.SMALL)
    data.mkdir()
    test_svhn.write(data)


def write_imagenet(data: Path, kind: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.imagenet.COUNTS", {"test": 1000, "train": 1000})
    for number in range(1000):
        folder = data.parent / "imagenet" / "val" / f"n{number:08d}"
        folder.mkdir(parents=True)
        shade = Image.new("RGB", (260, 240), (number % 256, 90, 200))
        shade.save(folder / f"ILSVRC2012_val_{number:08d}.JPEG")


DATA: dict[str, Callable[..., None]] = {
    "CIFAR10": lambda data, m: write_cifar(data, CIFAR10, m),
    "CIFAR100": lambda data, m: write_cifar(data, CIFAR100, m),
    "SVHN": lambda data, m: write_svhn(data, None, m),
    "ImageNet": lambda data, m: write_imagenet(data, None, m),
}
LEAST = {"steps": 1, "eot_samples": 1, "targets": 1, "square_queries": 1, "resubmissions": 2}


def least(attack: dict[str, Any]) -> dict[str, Any]:
    """The attack with the smallest budget."""
    settings = attack["init_args"]
    if attack["class_path"].endswith("AutoAttack"):
        settings = settings | dict.fromkeys(list(LEAST)[:4], 1)
    small = {key: min(value, LEAST.get(key, value)) if key in LEAST else value
             for key, value in settings.items()}  # fmt: skip
    return {**attack, "init_args": small}


@pytest.mark.slow
@pytest.mark.parametrize("path", EVALUATIONS, ids=lambda path: path.stem)
def test_a_recipe_plans_and_evaluates_two_images(
    path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On its whole schedule, with the files that `doctor` asks for, but for their size."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(path.read_text())
    model = config["model"]
    DATA[config["data"]["class_path"].rpartition(".")[2]](tmp_path / "data", monkeypatch)
    for network in dict.fromkeys(networks_of(model)):
        name = Path(unpinned(network)[0]).name
        write_and_convert(name, tmp_path / "published", Path("weights") / name)
    model["classifier"] = unpinned(model["classifier"])[0]
    model["denoisers"] = {key: unpinned(value)[0] for key, value in model["denoisers"].items()}
    model["attack"] = least(model["attack"])
    for attack in model.get("attacks", {}).values():
        attack["attack"] = least(attack["attack"])
    model |= {"protocol": {"report_draws": 2, "selection_draws": 1}, "audit": None, "run": "one"}
    config["data"]["init_args"] |= {"limit": 2, "batch_size": 2}
    config["data"]["init_args"].pop("subset", None)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(config))
    main(["doctor", "small.yaml"])
    main(["plan", "--config", "small.yaml"])
    main(["evaluate", "--config", "small.yaml", "--trainer.accelerator=cpu"])
    results = json.loads(Path("runs/evaluate/one/results.json").read_text())
    assert results["samples"] == 2 and not results["struck"] and not results["missing"]
    assert "network calls" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("path", TRAININGS, ids=lambda path: path.stem)
def test_a_training_recipe_makes_an_update(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load(path.read_text())
    DATA[config["data"]["class_path"].rpartition(".")[2]](tmp_path / "data", monkeypatch)
    told = []
    for key in ("diffusion", "guide"):
        name = Path(unpinned(config["model"]["init_args"][key])[0]).name
        write_and_convert(name, tmp_path / "published", Path("weights") / name)
        told.append(f"--model.{key}=weights/{name}")
    told += ["--data.validation=100", "--data.batch_size=4", "--trainer.max_steps=1"]
    told += ["--trainer.accelerator=cpu", "--trainer.default_root_dir=run"]
    told += ["--trainer.callbacks=lightning_modules.callbacks.ExportWeights"]
    main(["train", "--config", f"paper/{path.stem}", *told])
    (trained,) = Path("run").rglob("diffusion")
    assert load_denoiser(trained).network is not None
