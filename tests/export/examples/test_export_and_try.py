"""The build script exports, verifies and tries what it made."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest
from optserve.runtime.model_dir import read_manifest

ROOT = Path(__file__).parents[3]
pytestmark = pytest.mark.slow  # an export and two processes of its own


def test_export_and_try(tmp_path, capsys):
    run = runpy.run_path(str(ROOT / "export" / "examples" / "export_and_try.py"))
    run["main"](str(ROOT / "models" / "tiny_shakespeare"), str(tmp_path), "int8")
    report, text = capsys.readouterr().out.split("\n", 1)
    assert read_manifest(Path(json.loads(report)["path"])).weights_dtype == "int8"
    assert len(text.split()) > 1
