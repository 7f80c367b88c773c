"""The config of an evaluation: what cannot be one is refused when it is built."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from hetpure.errors import InputError
from hetpure.evaluation.facts import run_record
from tests.hetpure.evaluation.runs import CONFIG, begin, small


@pytest.mark.parametrize("word", ["100", "0.5", "on", "null", "''"])
@pytest.mark.parametrize("what", ["defenses", "denoisers", "attacks"])
def test_a_name_that_yaml_reads_as_no_text(word: str, what: str) -> None:
    (name,) = yaml.safe_load(f"{word}: 1")
    named: Any = {what: {name: None}}
    message = f"{what}: a name is text, and one is {name!r}, .* write the name in quotes"
    with pytest.raises(InputError, match=message):
        replace(CONFIG, baseline=None, **named)


def test_the_same_words_in_quotes_are_names() -> None:
    names = yaml.safe_load(r"['100', 'on', 'a|b', '[/x]', '$\bm{t}^*$', é]")
    rows = dict.fromkeys(names, CONFIG.defenses["plain"])
    assert replace(CONFIG, defenses=rows, baseline=None).defenses == rows


@pytest.mark.parametrize("clutter_seed", [0, 1])
def test_weights_of_another_data_set_are_noted(clutter_seed: int, tmp_path: Path) -> None:
    networks, images = small()
    networks = replace(networks, trained_on={"denoiser tiny": "Garments, clutter seed 0"})
    images = replace(images, data_set=f"Garments, clutter seed {clutter_seed}")
    run, _ = begin(tmp_path, networks, images)
    said = [note for note in run_record(run)["facts"]["notes"] if "trained on" in note]
    expected = (
        "denoiser tiny was trained on Garments, clutter seed 0, and these are images of Garments,"
        " clutter seed 1"
    )
    assert said == ([expected] if clutter_seed else [])
