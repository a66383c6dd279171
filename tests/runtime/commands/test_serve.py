"""``optserve serve``: the ready line, signals, and errors in one sentence."""

from __future__ import annotations

import gc
import json
import signal
import subprocess
import sys

import pytest
from optserve.runtime.cli import main
from optserve.runtime.server.manager import ModelManager

from tests.runtime.server.calls import Caller


@pytest.fixture
def start(rec_path):
    processes = []

    def run(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-m", "optserve.runtime.cli", "serve", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def test_serves_until_told_to_stop(start, rec_path, tmp_path):
    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 4 }")
    common = (str(rec_path), "--name", "rec")
    batched = ("--enable-batching", "--batching-parameters-file", str(batching))
    one = start(*common, "--port", "0", "--json-ready", *batched)
    other = start(*common, "--socket", str(tmp_path / "sock"))
    ready = json.loads(one.stdout.readline())
    signatures = ["echo", "prefill", "scalar"]
    assert ready["models"] == {"rec": {"versions": [1], "signatures": signatures}}
    with Caller(ready["target"], "rec") as caller:
        given = {"x": [[1.0] * 4], "n": [2]}
        assert caller.predict("prefill", **given)["total"].tolist() == [6.0]
    line = other.stdout.readline()
    assert line == (
        f"ready at unix:{tmp_path}/sock · rec version 1: echo prefill scalar\n"
    )
    one.send_signal(signal.SIGTERM)
    other.send_signal(signal.SIGINT)
    assert one.wait(60) == 0
    assert other.wait(60) == 130
    assert one.stderr.read() == "optserve: version 1 of model rec serves\n"
    assert other.stderr.read().endswith("serves\noptserve: interrupted\n")
    assert not (tmp_path / "sock").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.filterwarnings("error::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_whose_exception_is_lost_still_ends_it(rec_path, number, monkeypatch):
    start = ModelManager.start

    def lose_one(phase, info):
        gc.callbacks.remove(lose_one)
        signal.raise_signal(number)

    def start_and_lose(*arguments, **options):
        start(*arguments, **options)
        gc.callbacks.append(lose_one)
        gc.collect()

    monkeypatch.setattr(ModelManager, "start", start_and_lose)
    if number == signal.SIGTERM:
        with pytest.raises(SystemExit, match="0"):
            main(["serve", str(rec_path), "--port", "0"])
    else:
        assert main(["serve", str(rec_path), "--port", "0"]) == 130


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/nowhere"], "there is no folder"),
        (["{tmp}"], "has no version to serve"),
        (["{rec}", "--versions", "newest"], "versions 'newest' is none of"),
        (["{rec}", "--model-config-file", "x"], "either OUT or --model-config-file"),
        ([], "either OUT or --model-config-file"),
        (["{rec}", "--batching-parameters-file", "x"], "needs --enable-batching"),
        (["{rec}", "--ssl-config-file", "{tmp}/x"], "cannot read"),
        (["{rec}", "--port", "{port}"], "Address already in use"),
    ],
)
def test_one_sentence(arguments, words, rec_path, tmp_path, typed_server, capsys):
    port = typed_server.target.rpartition(":")[2]
    names = {"tmp": tmp_path, "rec": rec_path, "port": port}
    assert main(["serve", *(a.format(**names) for a in arguments)]) == 1
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1
    assert printed.err.startswith("optserve: ") and not printed.out
