"""Numbers as people write them in this field: 8/255, 8GB, 1 draw."""

import re
from fractions import Fraction
from math import isfinite


class _Written:
    """A number that is shown, copied and pickled as it was written."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return type(self), (self.text,)


class Number(_Written, float):
    """A float that can be written as a fraction and remembers how: `Number("8/255")`."""

    def __new__(cls, value: "str | float") -> "Number":
        try:
            is_fraction = isinstance(value, str) and "/" in value
            parsed = float(Fraction(value)) if is_fraction else float(value)
        except (ValueError, ZeroDivisionError, OverflowError):
            raise ValueError(f"{value!r} is not a number such as 0.03 or 8/255") from None
        if not isfinite(parsed):
            raise ValueError(f"{value!r} is not finite")
        number = super().__new__(cls, parsed)
        number.text = str(value)
        return number


class Bytes(_Written, int):
    """A number of bytes that can be written with a unit: `Bytes("8GB")` is 8e9."""

    UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}  # noqa: RUF012 (read only)

    def __new__(cls, value: "str | int") -> "Bytes":
        pattern = r"\s*([0-9]+\.?[0-9]*|\.[0-9]+)\s*([KMGT]?)B?\s*"
        match = re.fullmatch(pattern, str(value), re.IGNORECASE)
        if match is None:
            raise ValueError(f"{value!r} is not a number of bytes such as 8GB or 500MB")
        size = float(match[1]) * cls.UNITS[match[2].upper()]
        if size < 1:
            raise ValueError(f"{value!r} bytes are nothing to compute with")
        number = super().__new__(cls, int(size))
        number.text = str(value)
        return number


def counted(count: int, noun: str) -> str:
    """A count with its noun, which takes an s where there is not exactly one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
