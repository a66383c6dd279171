"""`optserve deploy`, its options, and what its README says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from deployments import MANIFESTS
from optserve.export.deploy import DeployOptions, serving, write_deployment
from optserve.runtime.cli import main
from optserve.runtime.model_dir import MANIFEST_PATH


def test_the_readme_explains_every_flag(made_of, options, files):
    for flag in serving.server_flags(
        made_of, options, config_dir="/etc/serving", tls_dir="/etc/serving-tls"
    ):
        assert f"| `{flag}` | {flag.why} |" in files["README.md"]
    listed = [n for n in files if n != "README.md"]
    assert all(f"`{name}`" in files["README.md"] for name in listed)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"name": "Opt 125m"}, "lower-case"),
        ({"name": "a" * 41}, "40"),
        ({"image": "a b"}, "image"),
        ({"storage": "/srv/models"}, "pvc://"),
        ({"stable": -1}, "version"),
        ({"stable": 2, "canary": 2}, "canary"),
        ({"replicas": 3, "max_replicas": 2}, "replicas"),
        ({"cpus": 0}, "cpus"),
        ({"tls": "yes"}, "tls"),
        ({"stable": 2**63}, "a version is from 0 to 9223372036854775807"),
    ],
)
def test_wrong_options_are_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        DeployOptions(**wrong)


def _base_folder(tmp_path: Path, *versions: int) -> Path:
    for version in versions:
        path = tmp_path / "out" / str(version) / MANIFEST_PATH
        path.parent.mkdir(parents=True)
        path.write_text(MANIFESTS["xla"].to_json())
    return tmp_path / "out"


def test_the_command_moves_labels(tmp_path, capsys):
    out = _base_folder(tmp_path, 1, 2)
    assert main(["deploy", str(out), "--stable", "1", "--canary", "2"]) == 0
    written = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(p.name for p in written) == sorted(os.listdir(out / "deploy"))
    assert 'key: "canary"' in (out / "deploy" / "models.config").read_text()
    assert main(["deploy", str(out)]) == 0  # the newest, alone
    text = (out / "deploy" / "models.config").read_text()
    assert "canary" not in text and "versions: 2" in text


def test_the_command_names_what_is_missing(tmp_path, capsys):
    out = _base_folder(tmp_path, 1)
    assert main(["deploy", str(out), "--canary", "2"]) == 1
    assert "has no version 2: it has 1" in capsys.readouterr().err
    assert main(["deploy", str(tmp_path)]) == 1
    assert "no numbered version" in capsys.readouterr().err
    assert not (out / "deploy").exists()


def test_a_batching_file_that_is_no_longer_used_goes(tmp_path):
    write_deployment(MANIFESTS["tf"], tmp_path)
    assert (tmp_path / serving.BATCHING_FILE).exists()
    write_deployment(MANIFESTS["tf"], tmp_path, DeployOptions(batching=False))
    assert not (tmp_path / serving.BATCHING_FILE).exists()
    assert not list(tmp_path.glob(".*"))
