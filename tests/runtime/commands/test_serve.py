"""``optserve serve``: the ready line, signals, and errors in one sentence."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import threading
import time
from functools import partial

import numpy as np
import pytest
from optserve.runtime.cli import main
from optserve.runtime.server import EmbeddedServer
from optserve.runtime.server.manager import ModelManager

from tests.runtime.server import toy_models
from tests.runtime.server.calls import Caller
from tests.runtime.server.test_warmup import record as warmup_record
from tests.runtime.server.test_warmup import write as write_warmup


@pytest.fixture
def start(start_command):
    """Starts a server with these options."""
    return partial(start_command, "serve")


def test_serves_until_told_to_stop(start, rec_path, tmp_path):
    batching = tmp_path / "batching.config"
    batching.write_text("max_batch_size { value: 4 }")
    batched = ("--enable-batching", "--batching-parameters-file", str(batching))
    options = ("--name", "rec", "--port", "0", "--json-ready", "--json-log")
    server = start(str(rec_path), *options, *batched)
    ready = json.loads(server.stdout.readline())
    signatures = ["echo", "prefill", "scalar"]
    assert ready["models"] == {"rec": {"versions": [1], "signatures": signatures}}
    with Caller(ready["target"], "rec") as caller:
        given = {"x": [[1.0] * 4], "n": [2]}
        assert caller.predict("prefill", **given)["total"].tolist() == [6.0]
    server.send_signal(signal.SIGTERM)
    assert server.wait(60) == 0
    loading, serves = (json.loads(line) for line in server.stderr)
    assert loading["message"].startswith("version 1 of model rec: loading")
    assert (serves["model"], serves["version"], serves["level"]) == ("rec", 1, "info")
    assert serves["seconds"] > 0


def test_serves_at_a_socket_until_interrupted(rec_path, tmp_path, capsys, monkeypatch):
    socket, wait = tmp_path / "sock", EmbeddedServer.wait
    options = ["--name", "rec", "--socket", str(socket)]

    def interrupt_and_wait(server: EmbeddedServer, seconds: float) -> bool:
        assert socket.is_socket()
        threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT]).start()
        return wait(server, seconds)

    monkeypatch.setattr(EmbeddedServer, "wait", interrupt_and_wait)
    assert main(["serve", str(rec_path), *options]) == 130
    out, err = capsys.readouterr()
    assert out == f"ready at unix:{socket} · rec version 1: echo prefill scalar\n"
    assert re.fullmatch(
        rf"optserve: version 1 of model rec: loading {rec_path}/1\n"
        r"optserve: version 1 of model rec serves after \d+\.\d s\n"
        r"optserve: interrupted\n",
        err,
    )
    assert not socket.exists()


@pytest.fixture
def endless(tmp_path):
    """A model whose warm-up is one call that doesn't end, and nothing interrupts."""
    folder = toy_models.save_endless(tmp_path / "endless" / "1")
    (folder / "assets.extra").mkdir()
    write_warmup(folder, [warmup_record("endless", n=np.int32([1]))])
    return folder.parent


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)]
)
def test_a_signal_during_a_load_ends_it_at_once(start, endless, number, code, tmp_path):
    process = start(str(endless), "--socket", str(tmp_path / "sock"))
    assert "version 1 of model opt: loading" in process.stderr.readline()
    time.sleep(1.5)  # it is in TensorFlow now
    assert process.poll() is None
    begin = time.monotonic()
    process.send_signal(number)
    assert process.wait(30) == code
    assert time.monotonic() - begin < 5
    left = [path.name for path in tmp_path.iterdir()]
    assert not {"sock", "sock.lock"} & set(left)


def test_an_error_in_a_log_in_json(start, tmp_path):
    failed = start(str(tmp_path / "nowhere"), "--json-log")
    assert failed.wait(60) == 1
    (line,) = failed.stderr.read().splitlines()
    assert json.loads(line)["level"] == "error"
    assert "there is no folder" in json.loads(line)["message"]


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
        (["{rec}", "--versions", "newest"], "versions should be all, latest"),
        (["{rec}", "--model-config-file", "x"], "either OUT or --model-config-file"),
        ([], "either OUT or --model-config-file"),
        (["{rec}", "--batching-parameters-file", "x"], "needs --enable-batching"),
        (["{rec}", "--ssl-config-file", "{tmp}/x"], "cannot read"),
        (["{rec}", "--port", "{port}"], "Address already in use"),
        (["{rec}", "--host", "0.0.0.0", "--allow-reload"], "whoever can call"),
    ],
)
def test_one_sentence(arguments, words, rec_path, tmp_path, typed_server, capsys):
    port = typed_server.target.rpartition(":")[2]
    names = {"tmp": tmp_path, "rec": rec_path, "port": port}
    assert main(["serve", *(a.format(**names) for a in arguments)]) == 1
    printed = capsys.readouterr()
    assert words in printed.err and printed.err.count("\n") == 1
    assert printed.err.startswith("optserve: ") and not printed.out


@pytest.mark.parametrize(
    "flag",
    [
        *("--poll-seconds -1", "--poll-seconds 0", "--poll-seconds nan"),
        *("--poll-seconds 1e300", "--port 70000", "--port -1", "--port x"),
        *("--intra-op-threads -3", "--intra-op-threads 999999999"),
        *("--inter-op-threads -1", "--xla-cpu-compilation-enabled maybe"),
    ],
)
def test_values_at_the_edge_get_one_short_sentence(flag, rec_path, capsys):
    assert main(["serve", str(rec_path), *flag.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"optserve: argument {flag.split()[0]}: expected ")
    assert err.count("\n") == 1 and len(err) < 200


def test_a_configuration_that_is_a_pipe_is_not_waited_for(rec_path, tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe")
    for flag in ("--ssl-config-file", "--batching-parameters-file --enable-batching"):
        option, *others = flag.split()
        given = ["serve", str(rec_path), option, str(tmp_path / "pipe"), *others]
        assert main(given) == 1
        assert "pipe: it is not a regular file" in capsys.readouterr().err
