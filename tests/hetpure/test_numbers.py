"""Numbers as they are written: 8/255 in, 8/255 out, and a float in between."""

import copy
import math
import pickle
from typing import Any

import pytest

from hetpure.numbers import Number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("0.03", 0.03),
        ("0.1", 0.1),
        ("1e-3", 1e-3),
        ("-1/2", -0.5),
        ("0", 0.0),
        ("3", 3.0),
        (" 8/255 ", 8 / 255),
        ("1/3", 1 / 3),
    ],
)
def test_text_is_read_exactly_and_remembered(text: str, value: float) -> None:
    number = Number(text)
    assert number == value  # the nearest float, to the last bit
    assert str(number) == text
    assert isinstance(number, float)


def test_arithmetic_is_that_of_floats() -> None:
    """An epsilon goes straight into tensor code: results are plain, without a stale text."""
    half = Number("4/255") / Number("8/255")
    assert half == 0.5
    assert type(half) is float
    assert math.sqrt(Number("1/4")) == 0.5
    assert hash(Number("1/2")) == hash(0.5)
    assert sorted([Number("8/255"), Number("2/255")])[0] == Number("2/255")


@pytest.mark.parametrize("text", ["8/255", "0.03"])
@pytest.mark.parametrize(
    "copied",
    [
        copy.copy,
        copy.deepcopy,
        Number,
        lambda number: pickle.loads(pickle.dumps(number)),
    ],
    ids=["copy", "deepcopy", "Number", "pickle"],
)
def test_a_copy_is_still_written_as_it_was(copied: Any, text: str) -> None:
    """Configurations are deep-copied and sent to worker processes on their way to the report."""
    twin = copied(Number(text))
    assert type(twin) is Number
    assert twin == Number(text)
    assert str(twin) == text


NOT_A_NUMBER = ("", " ", "abc", "8/", "/255", "8/255/3", "1/0", "8:255", "0,03", "1.5/2")
NOT_FINITE = ("nan", "inf", "1e400", "1e999999999", "9" * 400 + "/1", float("nan"), -float("inf"))


@pytest.mark.parametrize("garbage", [*NOT_A_NUMBER, *NOT_FINITE], ids=lambda g: repr(g)[:16])
def test_garbage_is_refused_by_its_text(garbage: Any) -> None:
    """A ValueError is what the command line turns into one line; anything else is a traceback."""
    with pytest.raises(ValueError, match="is not") as caught:
        Number(garbage)
    assert repr(garbage) in str(caught.value)
    assert "\n" not in str(caught.value)
