"""The pre-flight checks find what is missing, and say what to do."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from importlib import metadata

import pytest
from optserve.export import doctor
from optserve.export.commands.doctor import check_server
from optserve.export.doctor import environment
from optserve.models.config import OPTConfig
from optserve.models.examples.random_checkpoint import write_random_checkpoint
from optserve.runtime.cli import main

TINY = OPTConfig(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    ffn_dim=32,
    num_attention_heads=2,
    max_position_embeddings=32,
)


def states(checks) -> dict[str, str]:
    return {check.name: check.state for check in checks}


def test_requirements_are_those_of_the_package():
    requirements = doctor.requirements()
    names = {(requirement.name, extra) for requirement, extra in requirements}
    assert {("numpy", None), ("jax", "export"), ("tensorflow", "serve")} <= names
    assert all(requirement.name != "optserve" for requirement, _ in requirements)


def test_missing_packages_name_their_extra(monkeypatch):
    real = metadata.version

    def version(name: str) -> str:
        if name in ("jax", "numpy"):
            raise metadata.PackageNotFoundError(name)
        versions = {"flax": "0.1", "tensorflow": "99.0rc1"}
        return versions.get(name) or real(name)

    monkeypatch.setattr(metadata, "version", version)
    checks = {check.name: check for check in doctor.check_packages()}
    assert checks["numpy"].state == "failed"
    assert checks["jax [export]"].state == "note"  # a client does without
    assert "optserve[export]" in checks["jax [export]"].advice
    assert checks["flax [export]"].state == "failed"  # there, but too old
    assert checks["tensorflow [export]"].state == "ok"  # early, but new enough
    packages = states(doctor.check_packages(("export",)))
    assert packages["jax [export]"] == "failed"


@pytest.mark.parametrize(
    ("flags", "state"),
    [
        ("fpu sse2 avx2 fma avx512f avx512_bf16", "ok"),
        ("fpu sse2 avx2 fma", "note"),
        ("fpu sse2", "failed"),
    ],
)
def test_processor(flags, state):
    (check,) = doctor.check_processor(f"model name\t: x\nflags\t\t: {flags}\n")
    assert check.state == state
    assert bool(check.advice) == (state != "ok")


def test_instructions_for_int8_are_listed():
    (check,) = doctor.check_processor("flags : avx2 avx512_vnni sse2\n")
    assert check.detail == "avx2, avx512_vnni"


def test_a_library_that_breaks_is_reported(monkeypatch):
    lines = {
        "numpy": "print('fine')",
        "protobuf": "raise ImportError('libsomething.so: cannot open')",
        "rich": "import os; os.abort()",
        "no such package": "1",
    }
    monkeypatch.setattr(environment, "_IMPORTS", lines)
    checks = {check.name: check for check in doctor.check_imports()}
    assert checks["import numpy"].state == "ok"
    assert "libsomething.so" in checks["import protobuf"].detail
    assert "signal 6" in checks["import rich"].detail
    assert len(checks) == 3


def test_ports():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert doctor.check_port(port).state == "failed"
    assert doctor.check_port(port).state == "ok"
    assert doctor.check_port(70000).state == "failed"


def test_sockets(tmp_path):
    assert doctor.check_socket(tmp_path / "s").state == "ok"
    assert "allowed" in doctor.check_socket(tmp_path / ("x" * 120)).detail
    assert doctor.check_socket(tmp_path / "no" / "s").state == "failed"
    (tmp_path / "file").write_text("")
    assert doctor.check_socket(tmp_path / "file").state == "failed"


def test_a_good_checkpoint(tmp_path):
    write_random_checkpoint(tmp_path, TINY)
    checks = {check.name: check for check in doctor.check_checkpoint(tmp_path)}
    assert checks["config.json"].state == checks["weights"].state == "ok"
    assert "safetensors, float32" in checks["weights"].detail
    assert checks["tokenizer"].state == "note"
    room = states(doctor.check_room(tmp_path / "out", TINY))
    assert set(room) == {"memory", "disk"}


def test_checkpoints_that_cannot_be_exported(tmp_path):
    (check,) = doctor.check_checkpoint(tmp_path / "none")
    assert check.state == "failed"
    write_random_checkpoint(tmp_path, TINY)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "ffn_dim": 48}))
    checks = {check.name: check for check in doctor.check_checkpoint(tmp_path)}
    assert checks["weights"].state == "failed"
    assert "fc1" in checks["weights"].detail
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    checks = states(doctor.check_checkpoint(tmp_path))
    assert checks["weights"] == "failed"


def test_the_command(tmp_path, capsys):
    write_random_checkpoint(tmp_path, TINY)
    command = [
        "doctor",
        str(tmp_path),
        "--no-imports",
        "--json",
        "--out",
        str(tmp_path),
    ]
    assert main(command) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] and len(report["checks"]) > 10
    assert main([*command[:2], "--no-imports", "--port", "70000"]) == 1
    assert "1 failed" in capsys.readouterr().out


def test_it_needs_neither_tensorflow_nor_jax():
    statement = (
        "import sys, optserve.export.commands.doctor as d;"
        "print('tensorflow' in sys.modules, 'jax' in sys.modules)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", statement], capture_output=True, text=True, check=True
    )
    assert ended.stdout.split() == ["False", "False"]


def test_a_server_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (check,) = check_server(f"127.0.0.1:{port}", "opt", seconds=2.0)
    assert check.state == "failed" and check.advice
    (check,) = check_server("not an address", "opt")
    assert check.state == "failed"
