"""What the pictures of analyses share. Colours are of Okabe and Ito's palette, which people with
any colour vision tell apart."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes

from hetpure.analysis.lines import Line

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, GREY = "#CC79A7", "#56B4E9", "#888888"
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, GREY)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def wrapped(name: str, width: int = 16) -> str:
    """A row's name on several lines."""
    return textwrap.fill(name, width)


def spread(lines: Sequence[Line], scale: float = 1.0) -> tuple[list[float], list[list[float]]]:
    """Values and how far their intervals reach down and up, as `errorbar` wants them; where there
    is no interval it is of no length."""
    values = [scale * line.value for line in lines]
    below = [0.0 if line.low is None else scale * (line.value - line.low) for line in lines]
    above = [0.0 if line.high is None else scale * (line.high - line.value) for line in lines]
    return values, [[max(x, 0.0) for x in below], [max(x, 0.0) for x in above]]


def titled(axis: Axes, text: str, size: float = 9) -> None:
    """A title as it is: no $ in it is mathematics."""
    axis.set_title(text, fontsize=size, parse_math=False)


def counted_images(lines: Sequence[Line]) -> str:
    """How many images are behind a picture."""
    counts = sorted({line.n for line in lines})
    numbers = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
    return f"n = {numbers}" + (", no intervals" if counts[-1] == 1 else "; bars: 95% intervals")
