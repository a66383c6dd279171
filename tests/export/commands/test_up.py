"""``optserve up``: one command from a checkpoint to an answer over HTTP."""

from __future__ import annotations

import signal
import subprocess
import sys

import httpx
from optserve.runtime.cli import main

from tests.export.exports import GOLDEN, exported


def test_an_export_that_is_there_is_served():
    out = exported("no_final_ln").parent  # without `generate_{N}`: ready quickly
    command = [sys.executable, "-m", "optserve.runtime.cli", "up", str(GOLDEN)]
    options = ["--out", str(out), "--port", "0", "--no-open"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        base = process.stdout.readline().removeprefix("listening at ").strip()
        body = {"prompt": [2, 5, 9], "max_tokens": 4, "return_token_ids": True}
        answer = httpx.post(f"{base}/completions", json=body, timeout=120)
        assert answer.status_code == 200, answer.text
        assert 1 <= len(answer.json()["choices"][0]["token_ids"]) <= 4
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_what_is_wrong_is_one_sentence(tmp_path, capsys):
    file = tmp_path / "file"
    file.write_text("")
    for arguments in ([str(tmp_path / "none")], [str(tmp_path), "--out", str(file)]):
        assert main(["up", *arguments, "--no-open"]) == 1
        assert capsys.readouterr().err.count("\n") == 1
