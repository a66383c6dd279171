"""What is installed is what there is."""

from __future__ import annotations

from pathlib import Path

import pytest

tomllib = pytest.importorskip("tomllib")  # Python 3.11
ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_package_is_in_the_wheel():
    packages = {
        ".".join(["optserve", *path.parent.relative_to(ROOT).parts])
        for package in ("models", "runtime", "export")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert set(SETTINGS["tool"]["setuptools"]["packages"]) == packages


def test_every_requirement_has_a_tested_version():
    """``make`` installs with the constraints, which name no index."""
    project = SETTINGS["project"]
    asked = [*project["dependencies"]]
    for extra, requirements in project["optional-dependencies"].items():
        asked += requirements if extra != "bench" else []
    names = {_name(line) for line in asked} - {"optserve"}
    lines = (ROOT / "tests" / "constraints.txt").read_text().splitlines()
    pinned = {_name(line) for line in lines if not line.startswith("#")}
    assert names <= pinned
    assert all("==" in line for line in lines if not line.startswith("#"))


def _name(requirement: str) -> str:
    name = requirement
    for mark in (";", "[", ">", "=", "<"):
        name = name.partition(mark)[0]
    return name.strip().lower().replace("_", "-")
