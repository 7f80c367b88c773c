"""A defence that hides its gradient, through `evaluate.py`."""

import json
from pathlib import Path

import pytest
from torch import Tensor, nn

import evaluate
from hetpure.classifiers import Classifier
from hetpure.weights import load_classifier
from lightning_modules import evaluation as module
from lightning_modules.cli import run

CONFIG = """
model:
  run: one
  classifier: fashion_mnist_wrn
  denoisers: {}
  defenses: {hidden: {}}
  protocol: {report_draws: 1, selection_draws: 1}
  audit: {images: 2, queries: 2}
  folder: runs
data:
  class_path: datamodules.fashion_mnist.FashionMNIST
  init_args: {source: packaged, test_split: test, limit: 4, batch_size: 4}
trainer: {accelerator: cpu, devices: 1, logger: false, enable_progress_bar: false}
"""


class Rounded(nn.Module):
    """Answers in whole numbers: right as often, and flat."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = (10 * self.network(images)).round()
        return answer


@pytest.fixture(autouse=True)
def hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(path: str) -> Classifier:
        classifier = load_classifier(path)
        classifier.network = Rounded(classifier.network)
        return classifier

    monkeypatch.setattr(module, "load_classifier", load)
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text(CONFIG)


def test_an_attack_with_gradients_stops_with_advice(capsys: pytest.CaptureFixture[str]) -> None:
    attack = "--model.attack=hetpure.attacks.PGD"
    with pytest.raises(SystemExit) as stop:
        run(evaluate.main, ["--config=config.yaml", attack])
    assert stop.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "hidden" in said and "zero" in said and "BPDA" in said
    assert not list(Path("runs/one").glob("records*"))


def test_one_without_goes_on_and_the_audit_fails() -> None:
    square = ["--model.attack=hetpure.attacks.Square", "--model.attack.steps=2"]
    evaluate.main(["--config=config.yaml", *square])
    results = json.loads(Path("runs/one/results.json").read_text())
    found = results["defenses"]["hidden"]
    verdicts = {check["name"]: check["verdict"] for check in found["audit"]}
    assert verdicts["gradient"] == "FAIL" and "gradient check" not in verdicts
    assert "hidden: its gradient has no gradient check" in results["weaker_than_full"]
    assert found["attacks"]["square_linf"]["single"]["n"] == 4
    assert "| gradient | FAIL |" in Path("runs/one/report.md").read_text()
