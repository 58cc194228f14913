"""What README, CONTRIBUTING and the papers of a release say of the repository is so, and what they show runs."""

import re
import runpy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

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


def test_readmes_python_trains():
    """Its blocks one after the other, with what it leaves to the reader: a model, an optimizer, rows."""
    torch.manual_seed(0)
    y = torch.arange(64) % 8
    x = F.one_hot(y, 16) + 0.1 * torch.randn(64, 16)
    model = nn.Linear(16, 8)
    names = {
        "F": F, "model": model, "x": x, "y": y, "num_classes": 8, "num_epochs": 3, "epoch": 0,
        "loader": list(zip(x.split(16), y.split(16), strict=True)),
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.1),
    }  # fmt: skip
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    before = F.cross_entropy(model(x), y)
    for block in blocks:
        exec(block, names)
    assert F.cross_entropy(model(x), y) < before / 2
    assert names["criterion"].filled.all()
    assert names["past"] is not None


@pytest.mark.parametrize("example", ["plain_loop", "segmentation"])  # make check-more runs all
def test_an_example_learns(capsys, example):
    runpy.run_path(ROOT / "examples" / f"{example}.py", run_name="__main__")
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", capsys.readouterr().out)]
    assert len(losses) == 4
    assert losses[-1] < 0.9 * losses[0]
