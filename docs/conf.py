"""The documentation site: python -m sphinx -W -b html docs build/docs

Guides are plain Markdown beside this file; a new one is named in a toctree of index.md.
"""

import sys
from importlib import metadata
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "_site")]

project = "ncsn_fast"
release = metadata.version("ncsn_fast")
copyright = "the authors of ncsn_fast"

extensions = ["myst_parser", "links", "formulas"]
exclude_patterns = ["_site"]

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

html_theme = "furo"
html_title = "ncsn_fast"
html_copy_source = False
