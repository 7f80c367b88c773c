"""Pages that need no network: templates with style, script and pictures inside them."""

import base64
import io
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor

LONGEST = 84  # pixels of a longer side: all pictures of 24 images stay below 5 MB

ENVIRONMENT = Environment(
    loader=PackageLoader("hetpure.report"),
    autoescape=True,  # of every template: a name may hold markup
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def picture(image: Tensor) -> str:
    """An image (C, H, W) in pixel [0, 1], grey or RGB, as the address of a PNG that holds all of
    it. Larger ones are made smaller: their longer side has 84 pixels then."""
    values = (255 * image.detach().cpu().clamp(0, 1)).round().byte().movedim(0, -1).numpy()
    # What is neither grey nor RGB is shown by its first channel.
    array = values if values.shape[-1] == 3 else values[..., 0]
    drawn = Image.fromarray(np.ascontiguousarray(array))
    drawn.thumbnail((LONGEST, LONGEST), Image.Resampling.BOX)
    file = io.BytesIO()
    drawn.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


ENVIRONMENT.filters["picture"] = picture


def render(template: str, **content: Any) -> str:
    """A whole page from a template of this package and what it shows."""
    return ENVIRONMENT.get_template(template).render(**content)
