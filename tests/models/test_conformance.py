"""Every cell of the conformance table is a test."""

from __future__ import annotations

import inspect

import pytest

from . import conformance

CELLS = [
    pytest.param(line, name, id=f"{name}-{line.text}")
    for line in conformance.load().values()
    for name in line.checks
]


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """Where the checkpoints of the named configurations are written."""
    return tmp_path_factory.mktemp("checkpoints")


@pytest.mark.parametrize(("line", "name"), CELLS)
def test_cell(line, name, base, tmp_path):
    check = line.checks[name]
    more = [tmp_path] if "tmp_path" in inspect.signature(check).parameters else []
    check(conformance.KINDS[name], base, *more)


def test_table_is_complete():
    """A cell is empty only where the reference has no such argument or method."""
    lines = conformance.load()
    empty = {
        (text, name)
        for text, line in lines.items()
        for name in conformance.KINDS
        if name not in line.checks
    }
    for text, name in empty:
        kinds = {conformance.KINDS[n].framework for n in lines[text].checks}
        other_framework = conformance.KINDS[name].framework not in kinds
        assert other_framework or not conformance.KINDS[name].head, (text, name)


def test_markdown():
    table = conformance.markdown()
    assert table.count("\n") > 40
    assert "| `TFOPTModel` |" in table
