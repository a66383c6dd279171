"""``--compile-for-this-processor``: a server finds all that it would compile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
from optserve.export.errors import ExportError
from optserve.export.options import ExportOptions
from optserve.runtime import Client
from optserve.runtime.model_dir import changed_files, read_manifest
from optserve.runtime.server.compiled import compiled_folder, writing_to

from tests.export.exports import COMPILED_FOR_ONE, exported


def test_a_server_compiles_nothing_anew(tmp_path):
    """Neither while it gets ready nor for the calls of a client."""
    version = exported("pre_ln", **COMPILED_FOR_ONE)
    assert not changed_files(version, read_manifest(version))
    kept, copy = compiled_folder(version), tmp_path / "kept"
    shutil.copytree(kept, copy)
    command = [sys.executable, "-m", "optserve.runtime.cli", "serve"]
    command += [str(version.parent), "--socket", str(tmp_path / "s"), "--json-ready"]
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, env={**os.environ, **writing_to(copy)}
    )
    try:
        assert server.stdout is not None
        target = json.loads(server.stdout.readline())["target"]
        with Client(target) as client:
            client.generate([[2, 5], list(range(4, 40))], max_new_tokens=20)
            client.score([[2, 5, 6]])
    finally:
        server.terminate()
        server.wait(30)
    assert sorted(os.listdir(copy)) == sorted(os.listdir(kept)) != []


def test_without_a_compiler_there_is_nothing_to_keep():
    with pytest.raises(ExportError, match="is for a compiled export"):
        ExportOptions(compile_for_this_processor=True)
