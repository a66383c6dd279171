"""Pages say what is there: links, commands, options, and code that runs."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

import pytest
from optserve.runtime import __version__
from optserve.runtime.cli import COMMANDS

ROOT = Path(__file__).parents[1]
LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
).stdout.split()
PAGES = [ROOT / name for name in sorted(LISTED) if (ROOT / name).exists()]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)

pages = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def blocks(page: Path, *languages: str) -> list[str]:
    """The page's code of these languages."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), re.MULTILINE | re.S)
    return [code for language, code in fenced if language in languages]


@pages
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    for link in links:
        path = link.partition("#")[0]
        if path and "://" not in path and not path.startswith("mailto:"):
            assert (page.parent / path).exists(), link


@pages
def test_commands_exist(page):
    code = "\n".join(blocks(page, "sh", "bash", "console"))
    assert set(re.findall(r"^make ([\w-]+)", code, re.MULTILINE)) <= {*TARGETS}
    assert set(re.findall(r"^optserve ([a-z]\w*)", code, re.MULTILINE)) <= {*COMMANDS}


@pages
def test_python_is_python(page):
    for code in blocks(page, "python"):
        ast.parse(code)


def test_the_readme_is_one_sitting():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


def test_the_changelog_knows_this_version():
    release = "Unreleased" if "dev" in __version__ else __version__
    assert f"\n## {release}" in (ROOT / "CHANGELOG.md").read_text()
