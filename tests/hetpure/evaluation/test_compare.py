"""Runs compared from their records: what is paired, and what it is compared with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hetpure.errors import InputError
from hetpure.evaluation.compare import (
    Counting,
    find_baseline,
    read_columns,
    read_runs,
)
from hetpure.evaluation.results import summarise
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


ENDED = {"run": {}}

# What is paired


def test_equal_runs_do_not_differ(tmp_path: Path) -> None:
    first, second = (write(tmp_path / name, defended("a", [4, 2, 0] * 20)) for name in "xy")
    for counting in ("single", "vote", "worst"):
        against = compared(first, second, counting=counting)
        assert against["robust", "x:a"].difference is None
        other = against["robust", "y:a"]
        assert other.difference is not None
        assert other.difference.difference == 0
        assert other.difference.low < 0 < other.difference.high
        assert other.test is None or other.test.p_value == 1
        assert not other.worse(0)
        assert other.left_out == 0


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
        assert (other.accuracy.n, other.left_out) == (4, 3)
        assert other.accuracy == other.reference
    assert against["robust", "x:a"].accuracy.n == 6


def test_other_images_are_refused(tmp_path: Path) -> None:
    first = write(tmp_path / "x", defended("a", [4, 4]))
    apart = [record | {"sample": record["sample"] + 5} for record in defended("b", [4, 4])]
    with pytest.raises(InputError, match="y:b and x:a have no clean sample in common"):
        compared(first, write(tmp_path / "y", apart))
    relabelled = [record | {"label": 7} for record in defended("b", [4, 4])]
    with pytest.raises(InputError, match="sample 0 has label 7 in y:b and 0 in x:a"):
        compared(first, write(tmp_path / "y", relabelled))


def test_a_choice_needs_selection_draws(tmp_path: Path) -> None:
    records = [*defended("a", [4]), line("a", "apgd", 0, 4, selection=[])]
    with pytest.raises(InputError, match="x:a, apgd: a record lacks its selection draws"):
        columns(write(tmp_path / "x", records))


def test_one_defence_compares_with_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="x:a is the only defence: give another RUN"):
        compared(write(tmp_path / "x", defended("a", [4, 4])))


def test_samples_with_fewer_predictions_are_refused(tmp_path: Path) -> None:
    records = defended("a", [4, 4]) + defended("b", [4, 4])
    records[1]["predictions"] = [1]
    with pytest.raises(InputError, match=r"x:a \(clean\): some samples have more predictions"):
        compared(write(tmp_path / "x", records))


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
    (column,) = columns(write(tmp_path, several_attacks()))
    right = [column.attacked[s].predictions.count(s) for s in range(3)]
    assert right == [4, 2, 2]
    assert column.attacks == ("pgd", "apgd")


def test_a_run_agrees_with_its_own_results(tmp_path: Path) -> None:
    """The same accuracies and differences as results.json has of these records."""
    records = several_attacks()
    records += [record | {"defense": "b"} for record in records[:9]]
    folder = write(tmp_path / "x", records)
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
    (finished,) = columns(write(tmp_path / "x", records, results=ENDED))
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
    both = half + [record | {"defense": "b"} for record in half]
    against = compared(write(tmp_path / "z", both))
    assert (against["robust", "z:b"].accuracy.n, against["robust", "z:b"].left_out) == (2, 1)


# Named attacks and those that knew noise


def test_a_named_attack_stands_alone(tmp_path: Path) -> None:
    run = write(tmp_path / "x", several_attacks() + defended("b", [4, 4, 4]))
    (column,) = columns(run, attack="apgd")
    assert [column.attacked[s].predictions.count(s) for s in range(3)] == [4, 0, 0]
    assert read_columns(read_runs([run]), "null", "single")[1] == ["x:b"]
    for unknown in ("fgsm", "clean"):
        with pytest.raises(InputError, match=f"--attack {unknown} .*the runs have robust, pgd, ap"):
            columns(run, attack=unknown)


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
    with pytest.raises(InputError, match="no defence was attacked so; the runs have robust, pgd"):
        columns(write(tmp_path / "z", defended("b", [4])), counting="dw_box")


def test_a_defence_is_attacked_and_has_clean_answers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no defence was attacked so; the runs have robust$"):
        columns(write(tmp_path / "x", lines("a", "clean", [4])))
    with pytest.raises(InputError, match="x:a has no records of clean images"):
        columns(write(tmp_path / "x", lines("a", "pgd", [4])))


def test_the_baseline_has_one_name(tmp_path: Path) -> None:
    first = write(tmp_path / "x", defended("a", [4]) + defended("b", [4]))
    against = columns(first, write(tmp_path / "y", defended("a", [4])))
    assert find_baseline(against, None).name == "x:a"
    assert find_baseline(against, "b").name == "x:b"
    assert find_baseline(against, "y:a").name == "y:a"
    with pytest.raises(InputError, match="'a' names 2 defences; allowed are x:a, y:a$"):
        find_baseline(against, "a")
    with pytest.raises(InputError, match="'y:b' names no defence; allowed are x:a, x:b, y:a$"):
        find_baseline(against, "y:b")
