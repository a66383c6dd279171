"""Base folders: versions appear whole, left-overs go, neighbours are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from optserve.export.digest import check_files, folder_digests
from optserve.export.publish import (
    MANIFEST_PATH,
    LayoutError,
    newest_version,
    next_version,
    read_manifest,
    staging,
    version_folder,
    versions,
)
from optserve.runtime.contract import Manifest


def test_versions_are_the_numbered_folders(tmp_path):
    for name in ("1", "10", "9", "007", "deploy", ".staging-x", "-3"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").write_text("a file")
    assert versions(tmp_path) == [1, 9, 10]
    assert next_version(tmp_path) == 11
    assert newest_version(tmp_path) == 10
    assert versions(tmp_path / "none") == []
    with pytest.raises(LayoutError, match="no numbered version"):
        newest_version(tmp_path / "none")


def test_a_version_appears_whole(tmp_path):
    out = tmp_path / "new" / "out"
    with staging(out) as folder:
        (folder / "saved_model.pb").write_bytes(b"x")
        assert versions(out) == []
    assert os.listdir(out) == ["1"]
    assert version_folder(out) == version_folder(out / "1") == out / "1"
    assert (out / "1").stat().st_mode & 0o055 == 0o055  # a server may be another user
    with staging(out):
        pass
    with staging(out, 7):
        pass
    assert versions(out) == [1, 2, 7]


def test_nothing_remains_of_a_failure(tmp_path):
    with pytest.raises(RuntimeError), staging(tmp_path) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_version_is_never_overwritten(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(LayoutError, match="never overwritten"), staging(tmp_path, 1):
        pytest.fail("must refuse before any work")
    with pytest.raises(LayoutError, match="never overwritten"), staging(tmp_path, 2):
        (tmp_path / "2").mkdir()  # someone was faster
    assert sorted(os.listdir(tmp_path)) == ["1", "2"]


HOLDER = """
import sys, time
from optserve.export.publish import staging
with staging(sys.argv[1]) as folder:
    (folder / "half").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


def test_left_overs_go_and_neighbours_stay(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    holders = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    try:
        killed, alive = (h.stdout.readline().strip() for h in holders)
        holders[0].kill()
        holders[0].wait()
        assert os.path.isdir(killed)
        with staging(tmp_path):
            assert not os.path.exists(killed)
            assert os.path.exists(os.path.join(alive, "half"))
        assert versions(tmp_path) == [1]
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
            holder.stdout.close()


def test_exports_at_the_same_time_get_different_versions(tmp_path):
    with staging(tmp_path), staging(tmp_path):
        time.sleep(0)
    assert versions(tmp_path) == [1, 2]


def _manifest(**more) -> Manifest:
    return Manifest(
        config={},
        framework="tf",
        compiler="none",
        weights_dtype="float32",
        cache_dtype="float32",
        signatures=[],
        **more,
    )


def test_unreadable_manifests_are_explained(tmp_path):
    with pytest.raises(LayoutError, match="cannot be read"):
        read_manifest(tmp_path)
    path = tmp_path / MANIFEST_PATH
    path.parent.mkdir()
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(LayoutError, match="manifest"):
            read_manifest(tmp_path)
    path.write_text(_manifest().to_json())
    assert read_manifest(tmp_path) == _manifest()


def test_changed_files_are_found(tmp_path):
    (tmp_path / "variables").mkdir()
    for name in ("saved_model.pb", "variables/data", "gone"):
        (tmp_path / name).write_text(name)
    manifest = _manifest(files=folder_digests(tmp_path))
    assert check_files(tmp_path, manifest) == []
    (tmp_path / "variables/data").write_text("variables/dat4")
    (tmp_path / "gone").unlink()
    (tmp_path / "extra").symlink_to("saved_model.pb")
    problems = check_files(tmp_path, manifest)
    assert [p.split()[0] for p in problems] == ["extra", "gone", "variables/data"]
    assert "changed" in problems[2]
    assert check_files(tmp_path, _manifest()) != []
