"""The pages as a site: `python -m sphinx -W docs site`."""

import re
from importlib import metadata
from typing import Any

MARKUP = r"(`[^`]*`)|([|*]|(?<=\w)_(?!\w))"  # code, which stays; what is no markup in our words

project = "hetpure"
release = metadata.version("hetpure")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = "hetpure"
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
myst_heading_anchors = 4

# Docstrings: Google's sections, and single backticks around code.
default_role = "code"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False  # Lightning's are about Lightning
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True  # 8/255 is written as it is


def as_it_is(app: Any, what: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """Docstrings are plain English with backticks around code: a bar, a star or an underscore at
    the end of a word is no markup."""
    text = re.sub(MARKUP, lambda found: found[1] or f"\\{found[2]}", "\n".join(lines))
    lines[:] = text.split("\n")


def setup(app: Any) -> None:
    """Before napoleon, which writes markup."""
    app.connect("autodoc-process-docstring", as_it_is, priority=400)
