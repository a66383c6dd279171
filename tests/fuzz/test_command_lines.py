"""Command lines with any options and values: an exit code and at most a sentence."""

from __future__ import annotations

import argparse
import importlib
import io
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import numpy as np
import pytest
from optserve.runtime import cli

from .mutations import NUMBERS, TEXTS, pick

pytestmark = pytest.mark.fuzz
TINY = Path(__file__).parents[2] / "models" / "tiny_shakespeare"
SECONDS = 20
"""For one command; those that may wait for ever are told to wait no longer than 1 s."""
COMMANDS = {
    "export": [str(TINY), "out", "--dry-run"],
    "deploy": ["missing"],
    "verify": ["missing"],
    "serve": ["missing", "--port", "0"],
    "generate": ["--target", "127.0.0.1:1", "hello"],
    "describe": ["--target", "127.0.0.1:1"],
}
"""What makes each command one that ends soon."""
LEFT_ALONE = {
    "--help",
    "--wait",
    "--output",
    "--target",
    "--socket",
    "--port",
    "--json",
}
VALUES = [*map(str, NUMBERS), *TEXTS, "nan", "inf", "-5", "1,2", "float32", "{}", "[]"]


def options(command: str) -> list[argparse.Action]:
    """The command's options as its parser has them."""
    parser = argparse.ArgumentParser()
    importlib.import_module(cli.COMMANDS[command][0]).configure(parser)
    return [
        action
        for action in parser._actions
        if action.option_strings and not LEFT_ALONE & {*action.option_strings}
    ]


def line(rng: np.random.Generator, command: str, actions) -> list[str]:
    """The command with one to three options and values of any kind."""
    words = list(COMMANDS[command])
    for _ in range(rng.integers(1, 4)):
        action = pick(rng, actions)
        words.append(pick(rng, action.option_strings))
        if action.nargs != 0:
            known = [*map(str, action.choices or ()), *VALUES]
            words.append(pick(rng, known))
    return [command, *words]


class TookTooLong(Exception):
    pass


def _alarm(number: int, frame: FrameType | None) -> None:
    raise TookTooLong


@pytest.mark.parametrize("command", COMMANDS)
def test_command_lines(fuzz, command, tmp_path, monkeypatch, capfd):
    actions = options(command)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert threading.current_thread() is threading.main_thread()
    monkeypatch.delenv("OPTSERVE_TRACEBACK", raising=False)
    before = signal.signal(signal.SIGALRM, _alarm)

    def target(rng: np.random.Generator) -> str:
        words = line(rng, command, actions)
        signal.alarm(SECONDS)
        try:
            code = cli.main(words)
        except SystemExit as ended:  # argparse
            code = ended.code
        finally:
            signal.alarm(0)
        said = capfd.readouterr().err
        assert code in (0, 1, 2), (words, code)
        assert "internal error" not in said and "Traceback" not in said, (words, said)
        assert not {"\x1b", "‮", "\0"} & {*said}, (words, said)
        return f"exit {code}"

    try:
        fuzz(target, share=0.2)
    finally:
        signal.signal(signal.SIGALRM, before)
