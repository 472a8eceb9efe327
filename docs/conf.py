"""Sphinx's settings; ``make docs`` builds ``build/site/``.

The source folder is the root of the repository, so that links from one page to another, to a study or
to CONTRIBUTING are the same on the site and in the repository.
"""

project = "midigenre"
root_doc = "docs/index"
include_patterns = ["docs/**.md", "experiments/**/README.md", "README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
exclude_patterns = [".*", "build", "src", "tests", "conf", "runs", "shards", "corpora", "cache"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 4
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_class_signature = "separated"

html_theme = "furo"
html_title = "midigenre"
html_extra_path = ["_root"]
