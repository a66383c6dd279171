"""What is refused before a command is chosen."""

from __future__ import annotations

import pytest
from optserve.runtime.cli import main


@pytest.mark.parametrize("command", ["verify", "generate", "up", "deploy"])
def test_an_argument_with_a_nul_character_is_refused(command, capsys):
    assert main([command, "missing", "--file", "\0"]) == 2
    errors = capsys.readouterr().err
    assert "NUL character" in errors and errors.count("\n") == 1
