"""What a CI job runs, from nothing: both frameworks exported, verified, compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from optserve.runtime.errors import OptserveError
from optserve.runtime.server import EmbeddedServer

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "pre_ln"


def optserve(*arguments: object, cwd: Path) -> str:
    """Run one command as a job's step does; its standard output."""
    ended = subprocess.run(
        [sys.executable, "-m", "optserve.runtime.cli", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_from_nothing(tmp_path):
    optserve("doctor", GOLDEN, "--for", "export", cwd=tmp_path)
    reports = {}
    for framework in ("tf", "jax"):
        out = tmp_path / framework
        printed = optserve(
            *("export", GOLDEN, out, "--framework", framework, "--json"), cwd=tmp_path
        )
        report = json.loads(printed)
        assert report["verification"]["ok"]
        again = optserve(
            *("export", GOLDEN, tmp_path / "again" / framework, "--no-verify"),
            *("--framework", framework, "--json"),
            cwd=tmp_path,
        )
        assert json.loads(again)["digest"] == report["digest"]
        baseline = tmp_path / f"{framework}.json"
        baseline.write_text(json.dumps(report["verification"]))
        optserve("verify", out, "--baseline", baseline, cwd=tmp_path)
        reports[framework] = report
    compared = json.loads(
        optserve(
            *("verify", "tf", "--against", "jax", "--max-length", "24", "--json"),
            cwd=tmp_path,
        )
    )
    assert compared["ok"]
    assert compared["greedy_agreement"] == 1.0
    optserve("deploy", "jax", "--tls", "server", cwd=tmp_path)
    flags = (tmp_path / "jax" / "deploy" / "kubernetes.yaml").read_text()
    assert "--xla_cpu_compilation_enabled=true" in flags
    tampering_is_caught(tmp_path / "tf")


def tampering_is_caught(out: Path) -> None:
    """One bit of a weight is changed."""
    (data,) = (out / "1" / "variables").glob("variables.data-*")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(AssertionError):
        optserve("verify", out, cwd=out)
    with pytest.raises(OptserveError, match="has been changed since the export"):
        EmbeddedServer(out)
