"""Runs compared from their records: what is paired, and what it is compared with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetpure.errors import InputError
from hetpure.evaluation.compare import compare, find_baseline, read_columns, read_runs
from hetpure.evaluation.results import MEANS, Counting, summarise
from hetpure.evaluation.statistics import mcnemar, paired_difference, paired_proportions
from tests.hetpure.run_records import (
    RIGHT_A,
    RIGHT_B,
    Line,
    columns,
    compared,
    defended,
    line,
    lines,
    write,
)


def test_runs_are_named_by_their_folders_where_that_tells_them_apart(tmp_path: Path) -> None:
    first, second, third = (
        write(tmp_path / name, defended("a", [4])) for name in ("x/run", "y/run", "z")
    )
    assert [run.name for run in read_runs([first, third])] == ["run", "z"]
    assert [run.name for run in read_runs([first, f"{second}/"])] == [first, second]


# What is paired


def test_each_protocol_has_its_own_statistics(tmp_path: Path) -> None:
    run = write(tmp_path / "x", defended("a", RIGHT_A) + defended("b", RIGHT_B))
    a, b = (np.array([[draw < count for draw in range(4)] for count in right])
            for right in (RIGHT_A, RIGHT_B))  # fmt: skip
    single = compared(run)["robust", "x:b"]
    assert single.difference == paired_difference(b, a)
    assert single.test is None
    assert (single.accuracy.accuracy, single.reference.accuracy) == (b.mean(), a.mean())
    outcomes: dict[Counting, Any] = {"vote": (b.sum(1) > 2, a.sum(1) > 2)}
    outcomes["worst"] = (b.all(1), a.all(1))
    for counting, (ours, theirs) in outcomes.items():
        against = compared(run, counting=counting)["robust", "x:b"]
        assert against.difference == paired_proportions(ours, theirs)
        assert against.test == mcnemar(ours, theirs)
        assert against.accuracy.accuracy == ours.mean()
        assert against.accuracy.draws == 4


def test_means_are_compared_as_right_or_wrong(tmp_path: Path) -> None:
    """By the class that a record holds, though all of its draws are wrong. Row b has the mean
    logits of row a as its mean probabilities, and the other way round."""
    first, second = ([count == 4 for count in right] for right in (RIGHT_A, RIGHT_B))
    records = [
        line(name, attack, k, 0, mean_logit=k if logit[k] else -1,
             mean_probability=k if probability[k] else -1)
        for name, logit, probability in (("a", first, second), ("b", second, first))
        for attack in ("clean", "pgd")
        for k in range(len(first))
    ]  # fmt: skip
    run = write(tmp_path / "x", records)
    for counting, ours, theirs in zip(MEANS, (second, first), (first, second), strict=True):
        against = compared(run, counting=counting)["robust", "x:b"]
        a, b = np.array(theirs), np.array(ours)
        assert against.difference == paired_proportions(b, a)
        assert against.test == mcnemar(b, a)
        assert (against.accuracy.accuracy, against.reference.accuracy) == (b.mean(), a.mean())


def test_means_that_an_earlier_version_did_not_keep_are_refused(tmp_path: Path) -> None:
    kept = [record | {"mean_logit": 0, "mean_probability": 0} for record in defended("a", [4])]
    first, second = write(tmp_path / "x", kept), write(tmp_path / "y", defended("b", [4]))
    for counting in MEANS:
        line_of_it = f"--protocol {counting}: records of y:b are of an earlier version"
        with pytest.raises(InputError, match=line_of_it):
            compared(first, second, counting=counting)


def test_worst_is_not_shown_without_the_null_attack(tmp_path: Path) -> None:
    """Between clean and attacked images, of those defences that have it, and counted alike."""
    records = [*defended("a", [4, 1]), *lines("a", "null", [4, 3])]
    records += [*defended("b", [4, 4]), *lines("b", "null", [4, 4]), *defended("c", [4, 4])]
    run = write(tmp_path / "x", records)
    shown = compared(run, counting="worst")
    assert list(dict.fromkeys(kind for kind, _ in shown)) == ["clean", "null", "robust"]
    assert [name for kind, name in shown if kind == "null"] == ["x:a", "x:b"]
    against = shown["null", "x:b"]
    assert (against.reference.accuracy, against.accuracy.accuracy) == (0.5, 1.0)
    named = columns(run, attack="null", counting="worst")
    kinds = [c.kind for c in compare(named, named[0], "null", "worst")]
    assert kinds == ["clean", "clean", "null", "null"], "once, where it is the attack that is asked"
    assert {kind for kind, _ in compared(run, counting="vote")} == {"clean", "robust"}
    without = write(tmp_path / "y", defended("c", [4, 4]))
    assert {kind for kind, _ in compared(without, run, counting="worst")} == {"clean", "robust"}


def test_only_common_samples_are_paired_by_their_ids(tmp_path: Path) -> None:
    """The second run holds samples 2.., backwards and one more; where both are, they are equal."""
    right = [0, 0, 4, 3, 2, 4]
    first = write(tmp_path / "x", defended("a", right))
    others = [record for record in defended("a", [*right, 1]) if record["sample"] >= 2]
    against = compared(first, write(tmp_path / "y", others[::-1]))
    for kind in ("clean", "robust"):
        other = against[kind, "y:a"]
        assert other.difference is not None
        assert other.difference.difference == 0
        assert other.difference.low < 0 < other.difference.high and not other.worse(0)
        assert (other.accuracy.n, other.left_out) == (4, 3)
        assert other.accuracy == other.reference
    baseline = against["robust", "x:a"]
    assert baseline.accuracy.n == 6 and baseline.difference is None


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "x", defended("a", [4, 4]))
    with pytest.raises(InputError, match="x:a is the only defence: give another RUN"):
        compared(first)
    apart = [record | {"sample": record["sample"] + 5} for record in defended("b", [4, 4])]
    with pytest.raises(InputError, match="y:b and x:a have no clean sample in common"):
        compared(first, write(tmp_path / "y", apart))
    relabelled = [record | {"label": 7} for record in defended("b", [4, 4])]
    with pytest.raises(InputError, match="sample 0 has label 7 in y:b and 0 in x:a"):
        compared(first, write(tmp_path / "y", relabelled))
    uneven = defended("b", [4, 4])
    uneven[1]["predictions"] = [1]
    with pytest.raises(InputError, match=r"y:b \(clean\): some samples have more predictions"):
        compared(first, write(tmp_path / "y", uneven))


# What robust is over


def several_attacks() -> list[Line]:
    """Selection decides, not the report; of equals the first; and no other threat, knowledge or
    check takes part, though each would be worse."""
    records = defended("a", [2, 2, 2])
    records += [line("a", "apgd", 0, 4, selection=[1, 4])]  # chosen though its report is better
    records += [line("a", "apgd", 1, 0, selection=[3, 4])]  # not chosen though it is worse
    records += [line("a", "apgd", 2, 0, selection=[4, 2], chosen=1)]  # a tie: the first
    for attack in ("null", "audit: more steps"):
        records += lines("a", attack, [0, 0, 0])
    records += lines("a", "stadv", [0, 0, 0], threat="StAdv")
    return records + lines("a", "dw-both", [0, 0, 0], known=["forward"])


def test_robust_is_the_worst_that_selection_draws_see(tmp_path: Path) -> None:
    """With the same accuracies and differences as results.json has of these records."""
    records = several_attacks()
    records += [record | {"defense": "b"} for record in records[:9]]
    folder = write(tmp_path / "x", records)
    column = columns(folder)[0]
    assert [column.attacked[s].predictions.count(s) for s in range(3)] == [4, 2, 2]
    assert column.attacks == ("pgd", "apgd")
    results = summarise(read_runs([folder])[0].records, baseline="a")
    against = compared(folder)
    for kind in ("clean", "robust"):
        for name in "ab":
            assert against[kind, f"x:{name}"].accuracy.as_dict() == results[name][kind]["single"]
        difference = against[kind, "x:b"].difference
        assert difference is not None
        assert difference.as_dict() == results["b"]["difference"][kind]


def test_an_attack_of_the_first_samples_is_left_out_of_a_finished_run(tmp_path: Path) -> None:
    records = defended("a", [4, 4, 4]) + lines("a", "square", [0])
    (finished,) = columns(write(tmp_path / "x", records, results={"run": {}}))
    assert (finished.attacks, finished.limited) == (("pgd",), ("square",))
    assert len(finished.attacked) == 3
    (square,) = columns(str(tmp_path / "x"), attack="square")
    assert (len(square.attacked), square.limited) == (1, ())


def test_an_unfinished_run_is_robust_where_all_its_attacks_are(tmp_path: Path) -> None:
    """Else what it had no time for would flatter it."""
    half = defended("a", [4, 4, 4]) + lines("a", "apgd", [0, 0])
    against = compared(write(tmp_path / "x", half), write(tmp_path / "y", defended("b", [4, 4, 4])))
    assert against["robust", "x:a"].accuracy.n == 2
    assert (against["robust", "y:b"].accuracy.n, against["robust", "y:b"].left_out) == (2, 1)
    assert against["clean", "y:b"].left_out == 0


# Named attacks and those that knew noise


def test_a_named_attack_stands_alone(tmp_path: Path) -> None:
    run = write(tmp_path / "x", several_attacks() + defended("b", [4, 4, 4]))
    (column,) = columns(run, attack="apgd")
    assert [column.attacked[s].predictions.count(s) for s in range(3)] == [4, 0, 0]
    assert read_columns(read_runs([run]), "null", "single")[1] == ["x:b"]
    for unknown in ("fgsm", "clean"):
        with pytest.raises(InputError, match=f"--attack {unknown} .*the runs have robust, pgd, ap"):
            columns(run, attack=unknown)
    with pytest.raises(InputError, match="y:a has no records of clean images"):
        columns(write(tmp_path / "y", lines("a", "pgd", [4])))


def test_dw_box_is_for_attacks_that_knew_noise(tmp_path: Path) -> None:
    run = write(tmp_path / "x", several_attacks() + defended("b", [4, 4, 4]))
    (column,) = columns(run, counting="dw_box")
    assert column.attacks == ("dw-both",)
    assert columns(run, attack="dw-both", counting="dw_box") == [column]
    with pytest.raises(InputError, match="dw-both knows noise .forward. .* --protocol dw_box"):
        columns(run, attack="dw-both")
    with pytest.raises(InputError, match="pgd knows no noise of x:a: it is not --protocol dw_box"):
        columns(run, attack="pgd", counting="dw_box")
    both = several_attacks() + lines("a", "all", [0, 0, 0], known=["forward", "reverse"])
    with pytest.raises(InputError, match="2 attacks that know noise; .* --attack: dw-both, all"):
        columns(write(tmp_path / "y", both), counting="dw_box")


def test_the_baseline_has_one_name(tmp_path: Path) -> None:
    first = write(tmp_path / "x", defended("a", [4]) + defended("b", [4]))
    against = columns(first, write(tmp_path / "y", defended("a", [4])))
    for wanted, name in ((None, "x:a"), ("b", "x:b"), ("y:a", "y:a")):
        assert find_baseline(against, wanted).name == name
    with pytest.raises(InputError, match="'a' names 2 defences; allowed are x:a, y:a$"):
        find_baseline(against, "a")
    with pytest.raises(InputError, match="'y:b' names no defence; allowed are x:a, x:b, y:a$"):
        find_baseline(against, "y:b")
