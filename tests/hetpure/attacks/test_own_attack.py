"""The attack of docs/attacks.md, read out of the page and run, from Python and by evaluate.py."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import evaluate
from hetpure.attacks import Addresses, Attack
from hetpure.attacks.attack import check_candidates
from hetpure.defense import Defense
from tests.hetpure.attacks.defenses import NOISE, Counter, Noisy, target_of, templates

ROOT = Path(__file__).parent.parent.parent.parent
PAGE = (ROOT / "docs" / "attacks.md").read_text().split("## An attack of your own")[1]
SOURCE = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.MULTILINE | re.DOTALL)[0]


@pytest.mark.parametrize("kind", [Defense, Noisy])
def test_it_attacks_and_costs_what_it_says(kind: type[Defense]) -> None:
    assert SOURCE.count("\n") <= 40
    namespace: dict[str, Any] = {"__name__": "my_attack"}
    exec(SOURCE, namespace)
    attack: Attack = namespace["Momentum"](epsilon=0.2, steps=5, eot_samples=2)
    classifier, images, labels = templates()
    defense, ids, counter = kind(classifier), torch.arange(40), Counter()
    candidates = attack(target_of(defense, images, labels, Addresses(ids, NOISE), counter))
    check_candidates(candidates, images, ids, attack.threat)
    assert sum(counter.gradients) == 40 * attack.cost(defense).gradients
    assert len(candidates) == attack.cost(defense).candidates == 2
    assert (defense(images, NOISE.on(ids)).argmax(1) == labels).float().mean() > 0.9
    assert (defense(candidates[0], NOISE.on(ids)).argmax(1) == labels).float().mean() < 0.5


def test_evaluate_runs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the audit, which varies its steps, draws, radius and knowledge."""
    (tmp_path / "my_attack.py").write_text(SOURCE)
    (tmp_path / "rows.yaml").write_text("model: {defenses: {plain: {}}, attacks: {}}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = "--model.attack my_attack.Momentum --model.attack.epsilon 16/255 --model.run own"
    budget = "--model.attack.steps 1 --data.limit 2 --model.audit {images: 1, queries: 1}"
    quick = ROOT / "configs" / "evaluate" / "quick.yaml"
    words = re.split(r" (?![^{]*})", f"{options} {budget}")
    evaluate.main([f"--config={quick}", "--config=rows.yaml", *words])
    results = json.loads((tmp_path / "runs" / "evaluate" / "own" / "results.json").read_text())
    (row,) = results["defenses"].values()
    assert "momentum_linf" in row["attacks"]
    assert {"more steps", "larger radius"} <= {check["name"] for check in row["audit"]}
