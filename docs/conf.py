"""The documentation, by Sphinx: docstrings are reStructuredText with maths, which autodoc shows as they are.

make docs                  writes build/docs/index.html; needs no network
"""

import posixpath
import re
from importlib.metadata import version as installed
from pathlib import Path

ROOT = Path(__file__).parent.parent
# Pages that stand elsewhere, where those who read the sources look for them.
PAGES = {
    "ops/blended_kl": "toast_kernels/blended_kl/README.md",
    "ops/medoids": "toast_kernels/medoids/README.md",
    "ops/softmax_statistics": "toast_kernels/softmax_statistics/README.md",
    "ops/kept_rows": "toast_kernels/kept_rows/README.md",
    "ops/linear_blended_kl": "toast_kernels/linear_blended_kl/README.md",
    "ops/sharded": "toast_kernels/sharded/README.md",
    "measuring": "bench/README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "benchmarks": "docs/benchmarks.md",
    "compiled": "docs/compiled.md",
}

project = "toast_kernels"
copyright = "the toast_kernels authors"
version = release = installed("toast-kernels")
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["conftest.py"]
autodoc_typehints = "description"
autodoc_member_order = "bysource"
napoleon_google_docstring = True
html_theme = "furo"
html_title = f"toast_kernels {release}"


def read_page(app, name, source):
    """Puts the page in, with links to other pages of PAGES; links to other files become plain words."""
    if name not in PAGES:
        return
    names = {path: page for page, path in PAGES.items()}

    def link(match):
        words, target, anchor = match.groups("")
        path = posixpath.normpath(posixpath.join(posixpath.dirname(PAGES[name]), target))
        if "://" in target or not target:
            return match[0]
        return f"[{words}](/{names[path]}.md{anchor})" if path in names else words

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)#\s]*)(#[^)\s]*)?\)", link, (ROOT / PAGES[name]).read_text())


def setup(app):
    app.connect("source-read", read_page)
