"""export/README.md lists the way that a checkpoint really goes."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from optserve import export
from optserve.models.examples.random_checkpoint import write_random_checkpoint
from optserve.runtime.cli import main

from tests.export.exports import SMALLEST

EXPORT = Path(export.__path__[0])


def listed() -> list[tuple[str, str]]:
    """(function, file) of each hop."""
    text = (EXPORT / "README.md").read_text()
    return re.findall(r"^ *\d+ +([\w.]+) +([\w/]+\.py)", text, re.MULTILINE)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="code has no qualified name")
@pytest.mark.usefixtures("in_this_process")
def test_a_checkpoint_goes_the_way_that_the_page_draws(tmp_path):
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", SMALLEST)
    calls: dict[tuple[str, str], None] = {}
    root = f"{EXPORT}/"

    def note(frame, *_) -> None:
        code = frame.f_code
        if code.co_filename.startswith(root):
            calls.setdefault((code.co_qualname, code.co_filename[len(root) :]))

    sys.settrace(note)  # called for calls alone, since it returns nothing
    try:
        arguments = ["export", str(checkpoint), str(tmp_path / "out")]
        assert main([*arguments, "--generate", "1", "--no-deploy"]) == 0
    finally:
        sys.settrace(None)
    hops = [hop for hop in listed() if hop[0] != "call_in_subprocess"]
    assert len(hops) == 12
    assert [call for call in calls if call in hops] == hops
