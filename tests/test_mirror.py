"""Tests stand where the modules are that they test."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("models", "runtime", "export")
OF_THEIR_OWN = {Path("runtime/serving")}
"""Folders of tests without a folder of modules: suites for a server of any kind."""
TESTS = [
    path.relative_to(ROOT / "tests")
    for package in PACKAGES
    for path in sorted((ROOT / "tests" / package).rglob("test_*.py"))
]


def modules(package: str) -> set[Path]:
    """Modules and folders of a package, without the ending."""
    files = (ROOT / package).rglob("*.py")
    named = {
        path.parent if path.stem == "__init__" else path.with_suffix("")
        for path in files
    }
    return {path.relative_to(ROOT) for path in named}


@pytest.mark.parametrize("test", TESTS, ids=str)
def test_a_test_stands_beside_its_module(test):
    """``test_loop.py`` and ``test_loop_failures.py`` are of a module ``loop``.

    One that is of several modules has a name that no module of the package has.
    """
    if test.parent in OF_THEIR_OWN:
        return
    paths = modules(test.parts[0])
    assert (ROOT / test.parent).is_dir()
    words = test.stem.split("_")[1:]
    for count in range(len(words), 0, -1):
        name = "_".join(words[:count])
        places = {path.parent for path in paths if path.name == name}
        if places and test.parent.name != name:
            assert test.parent in places, f"{name} is in {sorted(map(str, places))}"
            return
