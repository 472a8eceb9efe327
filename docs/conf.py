"""Settings of Sphinx; ``make docs`` builds ``build/site``.

The sources are read from the root of the repository, so that a link from a page to a study or to
CONTRIBUTING is the same on the site and in the repository.
"""

project = "midigenre"
html_title = "midigenre"
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["_root"]  # the site's index.html, which leads to docs/index.html
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

root_doc = "docs/index"
include_patterns = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md", "experiments/README.md",
    "experiments/*/README.md",
]  # fmt: skip
exclude_patterns = [".*", "build", "cache", "conf", "corpora", "runs", "shards", "src", "tests"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
napoleon_use_ivar = True  # attributes as a list, like arguments
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types are long here, and the docstrings say what matters: shapes
