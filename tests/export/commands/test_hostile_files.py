"""Files that may be anything: one printable sentence, in time, and exit code 1."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from optserve.export.commands import doctor
from optserve.export.doctor import Check
from optserve.export.verify.report import Output, Report, show
from optserve.runtime.cli import main
from optserve.runtime.model_dir import MANIFEST_PATH

from tests.runtime.contract.manifests import manifest

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "pre_ln"
TINY = Path(__file__).parents[3] / "models" / "tiny_shakespeare"
ESCAPES = "\x1b]0;owned\x07\x1b[2J\u202etxt.exe"


@pytest.fixture
def refused(capfd):
    """Runs a command that must refuse in time; what it said."""

    def run(*arguments: object) -> str:
        begin = time.monotonic()
        assert main([str(argument) for argument in arguments]) == 1
        assert time.monotonic() - begin < 2
        said = capfd.readouterr().err
        assert said.startswith("optserve: ") and said.count("\n") == 1
        assert said.strip().isprintable() and "internal error" not in said
        return said

    return run


def checkpoint_without(name: str, folder: Path) -> Path:
    shutil.copytree(GOLDEN, folder)
    for file in (name, "pytorch_model.bin", "tf_model.h5", "flax_model.msgpack"):
        (folder / file).unlink(missing_ok=True)
    return folder


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_not_a_regular_file_in_a_checkpoint(tmp_path, refused, name, kind):
    checkpoint = checkpoint_without(name, tmp_path / "checkpoint")
    match kind:
        case "pipe":
            os.mkfifo(checkpoint / name)
        case "device":
            (checkpoint / name).symlink_to("/dev/zero")
        case _:
            (checkpoint / name).mkdir()
    said = refused("export", checkpoint, tmp_path / "out", "--no-verify")
    assert "not a regular file" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("what", [os.mkfifo, None])
def test_a_checkpoint_that_is_a_pipe_itself_or_not_there(tmp_path, refused, what):
    if what:
        what(tmp_path / "pipe")
    refused("export", tmp_path / "pipe", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 10**9},
        {"hidden_size": 10**18},
        {"vocab_size": -1},
        {"num_hidden_layers": True},
        {"ffn_dim": ESCAPES},
        {"activation_function": ESCAPES},
    ],
)
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_configuration_beyond_measure(tmp_path, refused, change, dry):
    values = json.loads((GOLDEN / "config.json").read_text()) | change
    checkpoint = checkpoint_without("config.json", tmp_path / "checkpoint")
    (checkpoint / "config.json").write_text(json.dumps(values))
    said = refused("export", checkpoint, tmp_path / "out", *dry)
    assert next(iter(change)) in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("version", [2**63, 10**30, 0, -1])
@pytest.mark.parametrize("dry", [["--dry-run"], []])
def test_a_version_that_no_server_reads(tmp_path, refused, version, dry):
    out = tmp_path / "out"
    said = refused("export", GOLDEN, out, f"--version={version}", *dry)
    assert "--version should be from 1 to 9223372036854775807" in said
    assert not out.exists()


SIZES = {
    "--generate": "within the model's 64 positions",
    "--batch-sizes": "at most 4096",
    "--prompt-buckets": "within the model's 64 positions",
    "--sessions": "at most 2147483647",
}


@pytest.mark.parametrize("size", [2**31, 2**63, 10**30])
@pytest.mark.parametrize("flag", SIZES)
def test_sizes_beyond_the_model(refused, tmp_path, flag, size):
    given = ["--dry-run", "--framework", "jax", f"{flag}={size}"]
    assert SIZES[flag] in refused("export", GOLDEN, tmp_path / "out", *given)


MANIFESTS = {
    "not JSON": b"\xff{",
    "deep": b"[" * 100_000,
    "an escape": manifest().to_json().replace('"tf"', '"tf\\u001b[2J"').encode(),
    "a file outside": manifest(files={"a": "0" * 64})
    .to_json()
    .replace('"a"', '"../../a"')
    .encode(),
    "no layers": manifest().to_json().replace("layers", "l\x1bayers").encode(),
}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("text", MANIFESTS.values(), ids=MANIFESTS)
@pytest.mark.parametrize("command", ["verify", "deploy"])
def test_a_manifest_that_is_none(tmp_path, refused, command, text):
    path = tmp_path / "1" / MANIFEST_PATH
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    if command == "deploy":
        assert "manifest" in refused("deploy", tmp_path)
        assert os.listdir(tmp_path) == ["1"]
    else:
        assert "manifest" in refused("verify", tmp_path)


def test_a_pipe_for_a_manifest(tmp_path, refused):
    path = tmp_path / "1" / MANIFEST_PATH
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert "not a regular file" in refused("deploy", tmp_path)


def test_names_in_a_report_are_printed_escaped(capsys):
    from rich.console import Console

    report = Report(
        export=ESCAPES,
        digest="",
        made_of="",
        kind=ESCAPES,
        against=ESCAPES,
        outputs=[
            Output(
                signature=f"{ESCAPES}[red]",
                output=ESCAPES,
                source=ESCAPES,
                worst=ESCAPES,
                cases=1,
                max_error=0.0,
                mean_error=0.0,
                tolerance=None,
                agreement=None,
            )
        ],
        files=[f"{ESCAPES} is not in the manifest"],
        problems=[ESCAPES],
    )
    show(report, Console(width=400))
    said = capsys.readouterr().out
    assert all(line.isprintable() for line in said.splitlines())
    assert said.count(r"\x1b]0;owned\x07") == said.count(r"\u202e") == 9
    assert "[red]" in said


@pytest.mark.parametrize("target", ["savedmodel", "tflite"])
def test_paths_are_printed_escaped(capsys, tmp_path, target):
    out = tmp_path / f"{ESCAPES}\nready"
    flags = ["--dry-run", "--target", target]
    assert main(["export", str(TINY), str(out), *flags]) == 0
    assert not {*"\x1b\x07\u202e"} & {*capsys.readouterr().out}


def test_findings_are_printed_escaped(capsys):
    doctor._show(Check(ESCAPES, "failed", ESCAPES, ESCAPES))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.isprintable() and line.count(r"\x1b[2J") == 3
