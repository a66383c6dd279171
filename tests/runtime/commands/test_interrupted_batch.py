"""Ctrl-C in the middle of a batch, and the run after it, in processes of their own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.numpy_server import serving
from tests.runtime.small_tokenizer import SMALL_TOKENIZER

COMMAND = [sys.executable, "-m", "optserve.runtime.cli", "generate", "--max-rows", "4"]
COMMAND += ["--temperature", "0.9", "--seed", "3", "--max-new-tokens", "12"]
COMMAND += ["--stop-token-id", "-1"]


def records(path: Path) -> dict[str, list[int]]:
    """Tokens by id, of lines that are all whole and all different."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    tokens = {record["id"]: record["tokens"] for record in lines}
    assert len(tokens) == len(lines)
    return tokens


def test_a_batch_that_was_interrupted_ends_as_if_it_had_not_been(tmp_path):
    batch, out, whole = (tmp_path / name for name in ("in", "out", "whole"))
    prompts = [{"id": f"p{i}", "prompt": f"to be {i}"} for i in range(40)]
    batch.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts))
    transport = NumpyTransport(generate=(4,), tokenizer=SMALL_TOKENIZER)
    transport.before = lambda call: time.sleep(0.05)
    with serving(transport) as target:
        command = [*COMMAND, "--target", target, "--jsonl", str(batch), "--output"]
        first = subprocess.Popen(
            [*command, str(out)],
            stderr=subprocess.PIPE,
            text=True,
        )
        while not out.exists() or out.read_bytes().count(b"\n") < 8:
            assert first.poll() is None
            time.sleep(0.01)
        first.send_signal(signal.SIGINT)
        _, said = first.communicate(timeout=20)
        assert (first.returncode, said) == (130, "optserve: interrupted\n")
        transport.before = None
        done = records(out)
        assert 8 <= len(done) < 40
        with out.open("a") as file:
            file.write('{"id": "p39", "te')  # as when the machine stops
        again = subprocess.run([*command, str(out)], capture_output=True, text=True)
        assert again.returncode == 0
        assert f"{40 - len(done)} done, {len(done)} already there" in again.stderr
        subprocess.run([*command, str(whole)], check=True, capture_output=True)
    assert records(out) == records(whole)
    assert records(out).keys() == {prompt["id"] for prompt in prompts}
