"""The code on the pages of the documentation that need no framework, as it is printed there."""

import re

import pages
import pytest

from hashsolve import cli

PAGES = ("getting_started", "methods", "adapters", "solvers", "checking", "vectors", "files")


@pytest.mark.parametrize("page", PAGES)
def test_page(page, tmp_path, monkeypatch, capsys):
    """Every block runs, after those before it; the pages assert what they say."""
    monkeypatch.chdir(tmp_path)
    pages.run(f"docs/{page}.md", {})
    for command in pages.commands(f"docs/{page}.md"):
        assert cli.main(command) == 0, command
    assert capsys.readouterr().err == ""


def test_every_page_with_python_is_run():
    with_code = {p.stem for p in (pages.ROOT / "docs").glob("*.md") if "```python" in p.read_text()}
    assert with_code == {*PAGES, "torch", "fine_tuning"}  # these in torch_glue/test_torch_docs.py


def test_readme_links():
    """The README's links to files lead somewhere."""
    links = re.findall(r"\]\((?!http)([^)#]+)", (pages.ROOT / "README.md").read_text())
    assert links and all((pages.ROOT / link).exists() for link in links), links
