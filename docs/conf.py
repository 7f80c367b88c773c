"""The pages as a site: `python -m sphinx -W docs site`."""

from importlib.metadata import version

project = "hetpure"
release = version("hetpure")
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
autodoc_member_order = "bysource"
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True  # 8/255 is written as it is
