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
    "sphinx_gallery.gen_gallery",
    "accessible",
    "commands",
    "docstrings",
    "formulas",
    "links",
    "offline",
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

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",  # made anew by every build, but for examples that have not changed
    "within_subsection_order": "FileNameSortKey",
    "reset_modules": ("matplotlib", "gallery.reset"),
    "image_srcset": ["2x"],
    "remove_config_comments": True,
    "thumbnail_size": (480, 260),
    "min_reported_time": 3600,  # what an example takes is the machine's affair
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_signature": False,
    "show_memory": False,
    "write_computation_times": False,
}
exclude_patterns = ["examples"]

html_theme = "furo"
html_title = "ncsn_fast"
html_copy_source = False
html_show_search_summary = False  # it is fetched, which files do not allow
html_static_path = ["extensions/gallery.css"]
html_css_files = ["gallery.css"]
