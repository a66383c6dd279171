"""Log lines are one line each, safe to print, and JSON where that is asked for."""

from __future__ import annotations

import json
import logging

from optserve.runtime.log_lines import log_lines

log = logging.getLogger("optserve.some.module")


def test_text(capsys):
    with log_lines():
        log.warning("it said %s", "two\nlines\x1b[2J")
        log.info("not from warnings on")
    log.warning("after the block")
    assert capsys.readouterr().err == "optserve: it said two lines\\x1b[2J\n"


def test_json(capsys):
    with log_lines(as_json=True):
        log.warning("said %s", "\u202e\n", extra={"model": "opt", "seconds": 1.5})
        try:
            raise ValueError("\x9b31m")
        except ValueError:
            log.exception("failed")
    first, second = capsys.readouterr().err.splitlines()
    record = json.loads(first)
    assert record["message"] == "said \u202e\n" and "\u202e" not in first
    assert record["level"] == "warning" and record["time"].endswith("Z")
    assert (record["model"], record["seconds"]) == ("opt", 1.5)
    assert "ValueError" in json.loads(second)["traceback"] and "\x9b" not in second
