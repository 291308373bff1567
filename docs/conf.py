"""The documentation site: python -m sphinx -W -b html docs build/docs

Guides are plain Markdown beside this file, the reference in api/ is made from the docstrings. A new
page is a line in index.md, a new public name one in its page of api/.
"""

import sys
from importlib import metadata
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

project = "ncsn_fast"
release = metadata.version("ncsn_fast")
copyright = "the authors of ncsn_fast"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "commands",
    "docstrings",
    "formulas",
    "links",
]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_typehints = "none"  # Args say it in words, with shapes and ranges
autodoc_preserve_defaults = True
napoleon_use_param = False  # or "mask, known:" is taken apart
python_use_unqualified_type_names = True

nitpicky = True
nitpick_ignore = [("py:exc", "CaptureError")]
nitpick_ignore_regex = [
    ("py:.*", r"(torch|numpy|pathlib|collections|abc|types|typing|diffusers)\..*"),
    ("py:class", r"ncsn_fast\.(training\.distances|evaluation\.proportions)\..*"),
]

html_theme = "furo"
html_title = "ncsn_fast"
html_copy_source = False
