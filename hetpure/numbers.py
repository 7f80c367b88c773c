"""Numbers as people write them in this field: 8/255."""

from fractions import Fraction
from math import isfinite


class Number(float):
    """A float that can be written as a fraction and remembers how: `Number("8/255")`."""

    text: str

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

    def __str__(self) -> str:
        return self.text

    def __reduce__(self) -> tuple[type["Number"], tuple[str]]:
        return Number, (self.text,)
