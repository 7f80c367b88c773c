"""The figure of a report: what the attack did to an image and what the purifier made of it."""

from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor


@dataclass(frozen=True)
class Panel:
    """One column of the figure: titles a row, images (N, C, H, W) in pixel [0, 1]."""

    title: str
    images: Tensor
    labels: list[str]


def draw(panels: list[Panel], path: Path) -> None:
    """Writes a PNG with a row an image and a column a panel. Texts are shown as they are: no $ is
    mathematics."""
    count = len(panels[0].images)
    figure = Figure(figsize=(1.5 * len(panels), 1.75 * count + 0.2), layout="constrained")
    axes = figure.subplots(count, len(panels), squeeze=False)
    for column, panel in enumerate(panels):
        for row in range(count):
            axis = axes[row][column]
            picture = panel.images[row].detach().cpu().movedim(0, -1).clamp(0, 1).numpy()
            axis.imshow(picture.squeeze(-1) if picture.shape[-1] == 1 else picture,
                        cmap="gray", vmin=0, vmax=1, interpolation="nearest")  # fmt: skip
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(panel.labels[row], fontsize=8, parse_math=False)
            if row == 0:
                axis.set_title(panel.title, fontsize=9, parse_math=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, format="png")
