"""The conformance table itself; its cells are run by the two other files."""

from __future__ import annotations

from pathlib import Path

from optserve import models

from . import conformance


def test_table_is_complete():
    """A cell is empty only where Transformers has no such argument or method."""
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
    page = Path(models.__file__).with_name("README.md")
    assert table in page.read_text(), "models/README.md lacks the table as it is"
