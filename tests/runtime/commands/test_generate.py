"""The commands ``generate`` and ``describe``, over a model in numpy."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from dataclasses import replace

import pytest
from optserve.runtime import Client, ServerError, cli
from optserve.runtime.commands.prompt_text import say
from optserve.runtime.transports.base import Call

from tests.runtime.numpy_model import NumpyTransport
from tests.runtime.small_tokenizer import SMALL_TOKENIZER

TARGET = ["--target", "127.0.0.1:1"]


@pytest.fixture
def transport(monkeypatch):
    numpy_model = NumpyTransport(generate=(2, 8), tokenizer=SMALL_TOKENIZER)
    monkeypatch.setattr(
        "optserve.runtime.client.open_transport", lambda *_: numpy_model
    )
    return numpy_model


def expected(prompt, **options):
    transport = NumpyTransport(tokenizer=SMALL_TOKENIZER)
    with Client(transport=transport) as client:
        return client.generate([prompt], stop_token_ids=[], **options)[0]


def generate(*arguments: str) -> int:
    return cli.main(["generate", *TARGET, "--stop-token-id", "-1", *arguments])


def test_prints_the_continuation_and_says_how_fast(transport, capsys):
    assert generate("to be", "--max-new-tokens", "12") == 0
    out, err = capsys.readouterr()
    assert out == expected("to be", max_new_tokens=12).text + "\n"
    assert "12 tokens" in err and "tokens/s" in err and "length" in err


def test_options_reach_the_client(transport, capsys):
    flags = "--temperature 1.2 --top-k 30 --top-p 0.9 --seed 4 --quiet --with-prompt"
    assert generate("to be", "--max-new-tokens", "9", *flags.split()) == 0
    from optserve.runtime import Sampling

    sampling = Sampling(temperature=1.2, top_k=30, top_p=0.9, seed=4)
    reference = expected("to be", max_new_tokens=9, sampling=sampling)
    out, err = capsys.readouterr()
    assert out == "to be" + reference.text + "\n"
    assert err == ""


def test_a_folder_of_prefixes_serves_the_next_run(transport, capsys, tmp_path):
    transport.manifest = replace(transport.manifest, checkpoint_digest="a" * 64)
    flags = ["--max-new-tokens", "3", "--prefix-cache", str(tmp_path / "rows")]
    for known in ("", "16 of 23 prompt tokens cached"):
        assert generate("to be or not to be xyz", *flags) == 0
        out, err = capsys.readouterr()
        assert out == expected("to be or not to be xyz", max_new_tokens=3).text + "\n"
        assert known in err and ("cached" in err) == bool(known)
    (tmp_path / "rows").chmod(0o755)
    assert generate("to be", *flags) == 1
    assert "chmod 700" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["generate", "chat"])
def test_what_the_graph_chooses_by_reaches_it(transport, monkeypatch, command):
    flags = "--temperature 0.5 --min-p 0.25 --seed 4 --max-new-tokens 8"
    flags += " --presence-penalty -1 --frequency-penalty 0.5"
    flags += " --min-new-tokens 3 --logit-bias 9=-2.5 --logit-bias 11=4"
    monkeypatch.setattr(sys, "stdin", standard_input(b"to be\n"))
    prompt = ["-"] if command == "generate" else []
    assert cli.main([command, *TARGET, *prompt, *flags.split()]) == 0
    inputs = next(c.inputs for c in transport.calls if "min_p" in c.inputs)
    single = ("min_p", "presence_penalty", "frequency_penalty", "min_new_tokens")
    assert [inputs[name].tolist() for name in single] == [[0.25], [-1.0], [0.5], [3]]
    assert inputs["bias_ids"].tolist() == [[-1, 9, 11, -1]]
    assert inputs["bias"].tolist() == [[0.0, -2.5, 4.0, 0.0]]


def test_prompts_from_files_and_standard_input(
    transport, capsys, tmp_path, monkeypatch
):
    (tmp_path / "p.txt").write_text("or not\nto be")
    monkeypatch.setattr(sys, "stdin", standard_input(b"from stdin"))
    arguments = ["-", "--file", str(tmp_path / "p.txt"), "--json", "--max-new-tokens"]
    assert generate(*arguments, "3") == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["prompt"] for line in lines} == {"from stdin", "or not\nto be"}


def test_a_prompt_that_is_not_utf8(transport, capsys, tmp_path, monkeypatch):
    path = tmp_path / "p.txt"
    path.write_bytes(b"caf\xe9")
    for arguments, source in (
        (["-"], "standard input"),
        (["--file", str(path)], str(path)),
        ([os.fsdecode(b"caf\xe9")], "a prompt"),
    ):
        monkeypatch.setattr(sys, "stdin", standard_input(b"caf\xe9"))
        assert generate(*arguments) == 1
        said = f"optserve: {source} is not UTF-8 text (byte 4): convert it first\n"
        assert capsys.readouterr() == ("", said)
    monkeypatch.setattr(sys, "stdin", standard_input(b"caf\xe9\n"))
    assert cli.main(["chat", *TARGET]) == 1
    assert "standard input is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("way", ["--file /dev/zero", "-"])
def test_a_prompt_without_an_end(transport, capsys, monkeypatch, way):
    monkeypatch.setattr("optserve.runtime.commands.prompt_text._LONGEST_PROMPT", 1000)
    monkeypatch.setattr("sys.stdin", standard_input(b"x" * 1001))
    assert generate(*way.split()) == 1
    assert "has more than 1000 bytes" in capsys.readouterr().err


def standard_input(data: bytes) -> io.TextIOWrapper:
    """Standard input as the C locale has it: any bytes pass."""
    return io.TextIOWrapper(io.BytesIO(data), "ascii", "surrogateescape")


def batch(tmp_path, lines) -> str:
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return str(path)


LINES = [
    '{"id": "a", "prompt": "to be", "topic": 1}',
    '{"id": "b", "prompt": [2, 9, 9]}',
    '"bare text"',
    '{"id": "far", "prompt": [2, 999]}',
    "{broken",
    '{"id": "none"}',
    '{"id": "odd", "prompt": 7}',
    '{"id": "half", "prompt": "\\ud83d", "topic": "\\ud83d"}',
]


def test_a_batch_gives_every_field_and_bad_lines_fail_alone(
    transport, capsys, tmp_path
):
    out = tmp_path / "out.jsonl"
    path = batch(tmp_path, LINES)
    arguments = ["--jsonl", path, "--output", str(out), "--max-new-tokens", "5"]
    assert generate(*arguments, "--top-logprobs", "2") == 1
    records = {r["id"]: r for r in map(json.loads, out.read_text().splitlines())}
    assert set(records) == {"a", "b", 3, "far", 5, 6, "odd", "half"}
    assert records["a"]["topic"] == 1
    assert records["a"]["tokens"] == expected("to be", max_new_tokens=5).tokens
    assert records["b"]["tokens"] == expected([2, 9, 9], max_new_tokens=5).tokens
    for name in ("logprobs", "finish_reason", "model_version", "bytes_sent", "seconds"):
        assert name in records["a"]
    assert [len(step) for step in records["a"]["top_logprobs"]] == [2] * 5
    for name in ("far", 5, 6, "odd", "half"):
        assert records[name]["error"]
    assert records["half"]["topic"] == "\ud83d"
    assert "3 done, 5 failed" in capsys.readouterr().err


def test_a_batch_goes_on_where_it_was_interrupted(transport, capsys, tmp_path):
    out = tmp_path / "out.jsonl"
    lines = [json.dumps({"id": i, "prompt": [2, 5 + i]}) for i in range(30)]
    arguments = ["--jsonl", batch(tmp_path, lines), "--output", str(out), "--quiet"]
    arguments += ["--max-rows", "8"]

    def fail_later(call: Call) -> None:
        if len(transport.calls) > 4:
            raise ServerError("out of paper", "INTERNAL")

    transport.before = fail_later
    assert generate(*arguments, "--max-new-tokens", "4") == 1
    assert "out of paper" in capsys.readouterr().err
    done = len(out.read_text().splitlines())
    assert 0 < done < 30
    with out.open("a") as file:
        file.write('{"id": 29, "text": "cut o')  # as an interruption leaves it
    transport.before = None
    transport.closed = False
    assert generate(*arguments, "--max-new-tokens", "4") == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert sorted(r["id"] for r in records) == list(range(30))
    count = len(transport.calls)
    assert generate(*arguments, "--max-new-tokens", "4") == 0
    assert len(transport.calls) - count <= 2  # asks what is served, no more


def test_beams_and_samples_show_each_sequence(transport, capsys):
    flags = ["--beams", "3", "--returned", "2", "--quiet", "--max-new-tokens", "9"]
    assert generate("to be", *flags) == 0
    assert capsys.readouterr().out.startswith("[1] ")
    flags = ["--samples", "2", "--temperature", "1", "--seed", "1", "--json"]
    assert generate("to be", *flags, "--max-new-tokens", "4") == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert len(record["alternatives"]) == 1
    assert record["score"] >= record["alternatives"][0]["score"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give prompts"),
        (["x", "--jsonl", "y"], "give prompts"),
        (["x", "--top-p", "0"], "top_p must be in (0, 1]"),
        (["x", "--max-new-tokens", "99"], "exceed the model's 64 positions"),
        (["x", "--logit-bias", "a=b"], "--logit-bias must be ID=NUMBER"),
        (["x", "--logit-bias", "99999999999=1"], "--logit-bias must be ID=NUMBER"),
        (["--file", "/nonexistent"], "/nonexistent: No such file"),
        (["--jsonl", "/nonexistent"], "/nonexistent: No such file"),
        (["x", "--samples", "2"], "temperature above 0"),
        (["x", "--threads", "2"], "--threads needs --model"),
        (["x", "--seed", "0"], "--seed changes nothing at temperature 0"),
        (["x", "--top-k", "0"], "--top-k changes nothing at temperature 0"),
        (["x", "--top-p", "1"], "--top-p changes nothing at temperature 0"),
        (["x", "--min-p", "0"], "--min-p changes nothing at temperature 0"),
        (["x", "--beams", "2", "--seed", "3"], "--seed changes nothing"),
        (["x", "--returned", "2"], "--returned is for beam search"),
        (["x", "--early-stopping"], "--early-stopping is for beam search"),
    ],
)
def test_mistakes_get_one_sentence(transport, capsys, arguments, sentence):
    assert generate(*arguments) == 1
    out, err = capsys.readouterr()
    assert out == "" and sentence in err
    assert err.startswith("optserve: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "flag",
    [
        *("--temperature -1", "--temperature nan", "--temperature inf"),
        *("--temperature 1e-50", "--temperature 1e300"),
        *("--min-p 1.5", "--presence-penalty 2.5", "--frequency-penalty nan"),
        *("--repetition-penalty 1e-50", "--repetition-penalty 1e300"),
        *("--max-new-tokens 0", "--max-new-tokens 99999999999", "--top-k -1"),
        *("--top-k 99999999999", "--top-k 1.5", "--top-p nan", "--top-p 2"),
        *("--repetition-penalty -1", "--repetition-penalty nan", "--seed 1e3"),
        *("--seed 99999999999999999999999", "--stop-token-id -2"),
        *("--stop-token-id 99999999999", "--min-new-tokens -1", "--wait nan"),
        *("--no-repeat-ngram 99999999999", "--timeout 0", "--timeout -1"),
        *("--timeout nan", "--timeout inf", "--timeout 1e300", "--wait 1e300"),
        *("--wait -1", "--max-rows 0", "--max-rows 99999999999", "--threads 0"),
        *("--samples 0", "--samples 1000000000", "--beams 0", "--beams 1000000000"),
        *("--length-penalty nan", "--top-logprobs -1", "--returned 0"),
        f"--top-k {'9' * 5000}",
    ],
)
def test_values_at_the_edge_get_one_short_sentence(transport, capsys, flag):
    assert generate("x", *flag.split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and len(err) < 200
    assert err.startswith(f"optserve: argument {flag.split()[0]}: expected a ")


@pytest.mark.parametrize(
    "flag",
    [
        *("--timeout 1e9", "--temperature 1e38", "--wait 1e9"),
        "--temperature 1 --seed -9223372036854775808",
        "--temperature 1 --seed 18446744073709551615",
        "--temperature 1 --top-k 2147483647",
        *("--max-rows 2147483647", "--min-new-tokens 2147483647"),
        *("--no-repeat-ngram 2147483647", "--logit-bias 5=-inf"),
    ],
)
def test_the_last_values_allowed_are_right(transport, capsys, flag):
    flags = [*flag.split(), "--max-new-tokens", "3", "--quiet"]
    assert generate("to be", *flags) == 0
    assert capsys.readouterr().err == ""


def test_describe(transport, capsys):
    assert cli.main(["describe", *TARGET]) == 0
    out = capsys.readouterr().out
    assert "3 layers, 4 heads of 8, vocabulary 128" in out
    assert "generate_8(" in out
    assert cli.main(["describe", *TARGET, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["contract_version"] == 2
    assert re.search(r"^sessions +none$", out, re.MULTILINE)
    sizes = {"slots": 16, "positions": 60}
    transport.manifest = replace(transport.manifest, sessions=sizes)
    assert cli.main(["describe", *TARGET]) == 0
    assert "16 of 60 positions" in capsys.readouterr().out


HOSTILE = "\x1b]0;owned\x07\u202e\x9b2J"


def test_what_a_server_says_reaches_the_terminal_escaped(transport, capsys):
    def refuse(call: Call) -> None:
        raise ServerError(f"no: {HOSTILE}", "INTERNAL")

    transport.before = refuse
    assert generate("x") == 1
    err = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07\\u202e\\x9b2J" in err
    assert not set(HOSTILE) & set("\x1b\x07\u202e\x9b") & set(err)


def test_generated_text_is_escaped_on_a_terminal_only(monkeypatch, capsys):
    say("a\x1b[2Jb\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    say("a\x1b[2Jb\n")
    assert capsys.readouterr().out == "a\x1b[2Jb\na\\x1b[2Jb\n"


def test_describe_escapes_a_manifest(transport, capsys, monkeypatch):
    manifest = transport.manifest
    config = manifest.config | {"_name_or_path": HOSTILE, "note": HOSTILE}
    monkeypatch.setattr(transport, "manifest", replace(manifest, config=config))
    assert cli.main(["describe", *TARGET]) == 0
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(out)
    assert cli.main(["describe", *TARGET, "--json"]) == 0
    out = capsys.readouterr().out
    assert not {"\x1b", "\x07", "\u202e", "\x9b"} & set(out)
    assert json.loads(out)["config"]["note"] == HOSTILE
