"""Base folders: versions appear whole, left-overs go, neighbours are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from optserve.export.errors import ExportError
from optserve.export.publish import next_version, staging, write_manifest
from optserve.runtime.model_dir import (
    VERSION_LIMIT,
    changed_files,
    read_manifest,
    version_folders,
)

from tests.runtime.contract.manifests import manifest


def versions(out) -> list[int]:
    return sorted(version_folders(out))


def test_the_next_version(tmp_path):
    assert next_version(tmp_path / "none") == 1
    for name in ("1", "10", "9"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == 11
    (tmp_path / str(VERSION_LIMIT)).mkdir()
    with pytest.raises(ExportError, match="highest that servers read"):
        next_version(tmp_path)


def test_a_version_appears_whole_and_the_handle_knows_where(tmp_path):
    out = tmp_path / "new" / "out"
    with staging(out) as staged:
        (staged.folder / "saved_model.pb").write_bytes(b"x")
        assert versions(out) == []
        with pytest.raises(RuntimeError, match="not been published"):
            _ = staged.published
    assert os.listdir(out) == ["1"]
    assert staged.published == out / "1"
    assert (out / "1").stat().st_mode & 0o055 == 0o055  # a server may be another user
    with staging(out):
        pass
    with staging(out, 7) as seventh:
        pass
    assert seventh.published == out / "7"
    assert versions(out) == [1, 2, 7]


def test_the_manifest_vouches_for_what_was_written(tmp_path):
    with staging(tmp_path) as staged:
        (staged.folder / "saved_model.pb").write_bytes(b"x")
        write_manifest(staged.folder, manifest())
    listed = read_manifest(staged.published)
    assert changed_files(staged.published, listed) == []
    assert list(listed.files) == ["saved_model.pb"]


def test_nothing_remains_of_a_failure(tmp_path):
    with pytest.raises(RuntimeError), staging(tmp_path) as staged:
        (staged.folder / "a").write_text("half")
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_a_version_is_never_overwritten(tmp_path):
    (tmp_path / "1").mkdir()
    with pytest.raises(ExportError, match="never overwritten"), staging(tmp_path, 1):
        pytest.fail("must refuse before any work")
    with pytest.raises(ExportError, match="never overwritten"), staging(tmp_path, 2):
        (tmp_path / "2").mkdir()  # someone was faster
    (tmp_path / "005").mkdir()  # which a server reads as 5
    with pytest.raises(ExportError, match="005 exists"), staging(tmp_path, 5):
        pytest.fail("must refuse before any work")
    assert sorted(os.listdir(tmp_path)) == ["005", "1", "2"]


def test_a_base_folder_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "out").write_text("")
    with (
        pytest.raises(ExportError, match="out is not a folder"),
        staging(tmp_path / "out"),
    ):
        pass


@pytest.mark.parametrize("version", [0, -1, 2**63, 10**30])
def test_a_version_that_no_server_reads_is_refused(tmp_path, version):
    with pytest.raises(ExportError, match="an int64"), staging(tmp_path, version):
        pytest.fail("must refuse before any work")
    assert os.listdir(tmp_path) == []


HOLDER = """
import sys, time
from optserve.export.publish import staging
with staging(sys.argv[1]) as staged:
    (staged.folder / "half").write_text("x")
    print(staged.folder, flush=True)
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
    with staging(tmp_path) as first, staging(tmp_path) as second:
        time.sleep(0)
    assert {first.published.name, second.published.name} == {"1", "2"}
