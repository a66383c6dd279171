"""export/README.md lists the way that a checkpoint really goes."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
from optserve import export
from optserve.models.examples.random_checkpoint import write_random_checkpoint
from optserve.runtime.cli import main

from tests.export.exports import SMALLEST, only_signatures

EXPORT = Path(export.__path__[0])


def listed() -> list[tuple[str, str]]:
    """(function, file) of each hop."""
    text = (EXPORT / "README.md").read_text()
    return re.findall(r"^ *\d+ +([\w.]+) +([\w/]+\.py)", text, re.MULTILINE)


def note_calls(monkeypatch, hop: tuple[str, str], calls: list) -> None:
    """Put ``hop`` into ``calls`` when its function is called, whoever imported it."""
    name, file = hop
    module = import_module(f"optserve.export.{file[:-3].replace('/', '.')}")
    *owner, name = name.split(".")
    holder = getattr(module, owner[0]) if owner else module
    function = getattr(holder, name)
    assert Path(inspect.unwrap(function).__code__.co_filename) == EXPORT / file

    @functools.wraps(function)
    def noted(*args, **options):
        calls.append(hop)
        return function(*args, **options)

    if owner:
        bound = hasattr(function, "__self__")  # a class method
        monkeypatch.setattr(holder, name, staticmethod(noted) if bound else noted)
        return
    for module in list(sys.modules.values()):
        if vars(module).get(name) is function:
            monkeypatch.setattr(module, name, noted)


@pytest.mark.usefixtures("in_this_process")
def test_a_checkpoint_goes_the_way_that_the_page_draws(tmp_path, monkeypatch):
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", SMALLEST)
    hops = [hop for hop in listed() if hop[0] != "call_in_subprocess"]
    assert len(hops) == 12
    calls: list[tuple[str, str]] = []
    for hop in hops:
        note_calls(monkeypatch, hop, calls)
    arguments = ["export", str(checkpoint), str(tmp_path / "out")]
    with only_signatures(("describe", "prefill", "generate_1")):
        assert main([*arguments, "--generate", "1", "--no-deploy"]) == 0
    assert list(dict.fromkeys(calls)) == hops
