"""``optserve gateway`` and ``api-key`` as processes, and their error sentences."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import httpx
import pytest
from optserve.runtime import Client
from optserve.runtime.cli import main

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.numpy_server import serving
from tests.runtime.small_tokenizer import SMALL_TOKENIZER


@pytest.fixture(scope="module")
def target():
    with serving(NumpyTransport(generate=(4,), tokenizer=SMALL_TOKENIZER)) as target:
        yield target


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "optserve.runtime.cli", "gateway", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_it_serves_until_told_to_stop(target, tmp_path):
    assert main(["api-key", "team"]) == 0
    process = start("--target", target, "--port", "0")
    try:
        base = process.stdout.readline().removeprefix("listening at ").strip()
        body = {"prompt": "good day", "max_tokens": 5, "temperature": 0}
        answer = httpx.post(f"{base}/completions", json=body, timeout=60).json()
        with Client(target) as client:
            (expected,) = client.generate(["good day"], max_new_tokens=5)
        assert answer["choices"][0]["text"] == expected.text
    finally:
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors


def test_a_key_from_the_command_opens_a_gateway(target, tmp_path, capsys):
    assert main(["api-key", "team", "--requests-per-minute", "5"]) == 0
    key, entry = (x.split(":", 1)[1] for x in capsys.readouterr().out.splitlines())
    file = tmp_path / "keys.json"
    file.write_text(json.dumps({"keys": [json.loads(entry)]}))
    process = start("--target", target, "--port", "0", "--keys", str(file))
    try:
        base = process.stdout.readline().removeprefix("listening at ").strip()
        assert httpx.get(f"{base}/models", timeout=60).status_code == 401
        headers = {"Authorization": f"Bearer {key.strip()}"}
        answer = httpx.get(f"{base}/models", headers=headers, timeout=60)
        assert answer.status_code == 200
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--keys", "/nowhere.json"], "not a file of API keys"),
        (["--chat-template", "/nowhere.jinja"], "No such file"),
        (["--tls-certificate", "/nowhere.pem"], "go together"),
        (
            ["--tls-certificate", "/nowhere.pem", "--tls-certificate-key", "/n.pem"],
            "can't be used",
        ),
        (["--host", "999.1.1.1"], "can't listen"),
        (["--also", ":x"], "NAME or NAME:LABEL"),
        (["--max-active", "0"], "--max-active"),
    ],
)
def test_what_is_wrong_is_one_sentence(target, arguments, words, capsys):
    assert main(["gateway", "--target", target, "--port", "0", *arguments]) in (1, 2)
    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.write_text("x"), "not a .tflite file"),
        (lambda path: path.mkdir(), "holds no exported model"),
    ],
)
def test_a_path_without_a_model_is_refused_before_it_listens(
    make, words, tmp_path, capsys
):
    make(tmp_path / "out")
    assert main(["gateway", "--model", str(tmp_path / "out"), "--port", "0"]) == 1
    shown = capsys.readouterr()
    assert words in shown.err and shown.err.count("\n") == 1 and not shown.out


def test_a_template_that_is_wrong(target, tmp_path, capsys):
    file = tmp_path / "template.jinja"
    file.write_text("{% for %}")
    assert main(["gateway", "--target", target, "--chat-template", str(file)]) == 1
    assert "chat template" in capsys.readouterr().err
