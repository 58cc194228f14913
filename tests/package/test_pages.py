"""What README, CONTRIBUTING and the papers of a release say of the repository is so."""

import re
from pathlib import Path

import pytest

from toast_kernels import __version__

ROOT = Path(__file__).resolve().parents[2]
CODE = ("csrc", "toast_kernels", "tests", "tools", "bench", "python")

pytestmark = pytest.mark.skipif(not (ROOT / "toast_kernels").exists(), reason="the sources are not there")


def test_one_version():
    release = re.compile(r'^(?:version\s*[:=]|## )\s*"?([\d.]+)', re.MULTILINE)
    for page in ("pyproject.toml", "CITATION.cff", "CHANGELOG.md"):
        assert release.search((ROOT / page).read_text())[1] == __version__, page


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / page).read_text())
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_recipes_names_are_in_the_code():
    """Files in backticks exist, and names do in some file."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    recipes = page[page.index("## To add a metric") : page.index("## Tests")]
    files = [path for folder in CODE for path in (ROOT / folder).rglob("*") if path.suffix in (".py", ".h", ".cpp")]
    text = "\n".join(path.read_text() for path in files)
    said = set(re.findall(r"`([^`]+)`", recipes))
    missing = set()
    for name in said:
        if re.fullmatch(r"[\w/]+\.(py|md|h|cpp)", name) and "NAME" not in name:
            found = (ROOT / name).exists() if "/" in name else any(path.name == name for path in files)
        else:
            found = not re.fullmatch(r"[A-Za-z_]\w+", name) or re.search(rf"\b{name}\b", text)
        if not found:
            missing.add(name)
    assert len(said) > 20
    assert not missing
