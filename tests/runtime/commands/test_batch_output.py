"""A batch's output is never another file, and a resumed one is as if never stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from optserve.runtime import cli
from optserve.runtime.commands.batch_output import Output, failure, record
from optserve.runtime.errors import InvalidRequest, Unavailable

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.small_tokenizer import SMALL_TOKENIZER

RESULT = {"text": "x", "tokens": [5], "finish_reason": "length"}
COMMAND = ["generate", "--target", "127.0.0.1:1", "--stop-token-id", "-1", "--quiet"]


@pytest.fixture(autouse=True)
def transport(monkeypatch):
    numpy_model = NumpyTransport(generate=(2, 8), tokenizer=SMALL_TOKENIZER)
    monkeypatch.setattr(
        "optserve.runtime.client.open_transport", lambda *_: numpy_model
    )
    return numpy_model


def run(*arguments: object) -> int:
    return cli.main([*COMMAND, "--max-new-tokens", "3", *map(str, arguments)])


FOREIGN = [
    "Dear Sir,\n",
    "Dear Sir, without a line feed",
    '{"id": 1, "prompt": "a line of an input"}\n',
    '{"id": 1, "prompt": "the same without its end"}',
    '{"id": 1, "prompt": "and cut o',
    '{"id": 1, "text": "of another program", "tokens": 3}\n',
    '{"id": true, "text": "", "tokens": [], "finish_reason": "stop"}\n',
    '{"id": 1, "message": "a log", "error": {"code": 3}}\n',
    json.dumps({"id": 1, **RESULT}) + "\n" + "a foreign last line",
    "[1, 2, 3]",
    "\n",
    "[" * 100_000 + "\n",
]


@pytest.mark.parametrize("content", FOREIGN, ids=range(len(FOREIGN)))
def test_a_file_that_is_something_else_is_left_alone(content, tmp_path, capsys):
    out = tmp_path / "notes.txt"
    out.write_text(content)
    assert run("x", "--output", out) == 1
    err = capsys.readouterr().err
    assert "nothing was written; give another --output" in err and err.count("\n") == 1
    assert out.read_text() == content


@pytest.mark.parametrize("way", ["itself", "a link", "a hard link", "--file"])
@pytest.mark.parametrize("content", ['{"id": 1, "prompt": "x"}\n', ""])
def test_an_output_that_is_the_input_is_left_alone(way, content, tmp_path, capsys):
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text(content)
    if way == "a link":
        out.symlink_to(given)
    elif way == "a hard link":
        out.hardlink_to(given)
    else:
        out = given
    flag = "--file" if way == "--file" else "--jsonl"
    assert run(flag, given, "--output", out) == 1
    assert "is the input as well" in capsys.readouterr().err
    assert given.read_text() == content


def test_standard_output_that_is_the_input_is_not_fed_to_itself(tmp_path):
    given = tmp_path / "in.jsonl"
    given.write_text('{"id": 1, "prompt": "x"}\n')
    command = [sys.executable, "-m", "optserve.runtime.cli", *COMMAND]
    with given.open("a") as out:
        ended = subprocess.run(
            [*command, "--jsonl", given], stdout=out, stderr=subprocess.PIPE, text=True
        )
    assert ended.returncode == 1 and "is the input as well" in ended.stderr
    assert given.read_text() == '{"id": 1, "prompt": "x"}\n'


@pytest.mark.parametrize("kind", ["fifo", "device", "folder"])
def test_an_output_that_is_no_regular_file(kind, tmp_path, capsys):
    out = tmp_path / "out"
    if kind == "fifo":
        os.mkfifo(out)
    elif kind == "folder":
        out.mkdir()
    assert run("x", "--output", "/dev/full" if kind == "device" else out) == 1
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert ("Is a directory" if kind == "folder" else "is not a regular file") in err


def test_a_second_run_on_one_output_is_refused(tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    first = Output(str(out))
    try:
        assert run("x", "--output", out) == 1
        assert "another run writes" in capsys.readouterr().err
        first.write(record("a", {}, RESULT))
    finally:
        first.close()
    assert run("x", "--output", out) == 0
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == ["a", 0]


def every_beginning(line: str) -> list[str]:
    return [line[:n] for n in range(1, len(line))]


@pytest.mark.parametrize("identity", [12, 'a \\ " b'])
def test_a_last_line_cut_off_anywhere_is_written_anew(identity, tmp_path):
    out = tmp_path / "out.jsonl"
    whole = json.dumps(record("first", {}, RESULT)) + "\n"
    for line in (record(identity, {"n": 1}, RESULT), failure(identity, {}, "too long")):
        for torn in every_beginning(json.dumps(line) + "\n"):
            out.write_text(whole + torn)
            output = Output(str(out))
            output.close()
            assert output.done == {"first"} and out.read_text() == whole, torn


def test_lines_with_fields_of_their_own_resume_rightly(tmp_path, transport, capsys):
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    fields = {"error": "mine", "finish_reason": "mine", "tokens": "mine", "text": 7}
    good = [{"id": i, "prompt": [2, 5 + i], **fields} for i in range(3)]
    bad = {"id": "far", "prompt": [2, 999], **fields}
    given.write_text("".join(json.dumps(x) + "\n" for x in [*good, bad]))
    assert run("--jsonl", given, "--output", out) == 1
    lines = {x["id"]: x for x in map(json.loads, out.read_text().splitlines())}
    assert lines[0]["error"] == "mine" and lines[0]["tokens"] != "mine"
    assert "999" in lines["far"]["error"] and "finish_reason" not in lines["far"]
    calls = len(transport.calls)
    transport.closed = False
    given.write_text("".join(json.dumps(x) + "\n" for x in good))
    assert run("--jsonl", given, "--output", out) == 0  # all of them are there
    assert len(transport.calls) - calls <= 2 and len(out.read_text().split("\n")) == 5


@pytest.mark.parametrize(
    "field", ["NaN", "-Infinity", "1e999", "[" * 5000 + "]" * 5000]
)
def test_what_json_has_no_form_for_fails_alone(field, tmp_path):
    given, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    given.write_text(f'{{"id": 1, "prompt": [5], "x": {field}}}\n{{"prompt": [5]}}\n')
    assert run("--jsonl", given, "--output", out) == 1

    def refuse(constant: str):
        raise AssertionError(constant)

    lines = [json.loads(x, parse_constant=refuse) for x in out.read_text().splitlines()]
    assert sorted("error" in line for line in lines) == [False, True]


def test_nothing_is_lost_when_the_file_is_too_long_a_line(tmp_path, monkeypatch):
    monkeypatch.setattr("optserve.runtime.commands.batch_output._LONGEST_LINE", 1000)
    out = tmp_path / "big"
    out.write_text('{"id": 1, "text": "' + "x" * 5000 + '"}\n')
    before = out.read_text()
    with pytest.raises(InvalidRequest, match="this command did not write"):
        Output(str(out))
    assert out.read_text() == before


def test_a_run_that_fails_leaves_no_empty_file(tmp_path, transport, capsys):
    def away(call):
        raise Unavailable("no server answers")

    transport.before = away
    batch = tmp_path / "in.jsonl"
    batch.write_text('{"prompt": [2, 5]}\n')
    assert run("--jsonl", batch, "--output", tmp_path / "out") == 1
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").touch()  # somebody's
    assert run("--jsonl", batch, "--output", tmp_path / "out") == 1
    assert (tmp_path / "out").exists()
    assert "no server answers" in capsys.readouterr().err


def test_a_batch_without_an_end_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("optserve.runtime.commands.batch_input._LONGEST_LINE", 1000)
    assert run("--jsonl", "/dev/zero", "--output", tmp_path / "out") == 1
    assert "line 1 of the batch has more than 1000 bytes" in capsys.readouterr().err


def test_a_quiet_run_says_that_prompts_failed(tmp_path, capsys):
    (tmp_path / "in.jsonl").write_text('{"prompt": [2, 5]}\n{"prompt": []}\n')
    assert run("--jsonl", tmp_path / "in.jsonl", "--output", tmp_path / "out") == 1
    assert capsys.readouterr().err == (
        'optserve: 1 failed (their lines say why, under "error")\n'
    )
