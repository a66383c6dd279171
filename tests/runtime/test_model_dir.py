"""How a model's folder looks: version numbers, the manifest file, digests."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
from optserve.runtime.errors import InvalidRequest
from optserve.runtime.model_dir import (
    MANIFEST_PATH,
    VERSION_LIMIT,
    ModelDirError,
    changed_files,
    folder_digests,
    newest_version,
    read_manifest,
    version_folder,
    version_folders,
    version_number,
    version_of,
)

from tests.runtime.contract.manifests import manifest


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("1", 1),
        ("007", 7),
        ("0", 0),
        (str(2**63 - 1), 2**63 - 1),
        (str(2**63), None),
        ("9" * 5000, None),
        ("", None),
        ("-3", None),
        ("+3", None),
        ("1.0", None),
        ("1_0", None),
        (" 1", None),
        ("٣", None),  # a digit of another alphabet, which int() takes
        ("²", None),
        ("deploy", None),
    ],
)
def test_versions_are_what_tensorflow_serving_reads(name, number):
    assert version_number(name) == number


def test_versions_are_the_numbered_folders(tmp_path):
    for name in ("1", "10", "9", "007", "08", "8", "deploy", ".staging-x", "-3"):
        (tmp_path / name).mkdir()
    (tmp_path / str(2**63)).mkdir()
    (tmp_path / "11").write_text("a file")
    folders = version_folders(tmp_path)
    assert list(folders) == [10, 9, 8, 7, 1]
    assert folders[7].name == "007" and folders[8].name == "8"
    assert newest_version(tmp_path) == 10
    assert version_folder(tmp_path, 7) == tmp_path / "007"
    with pytest.raises(ModelDirError, match="no version 11: it has 10, 9"):
        version_folder(tmp_path, 11)


def test_a_missing_base_folder(tmp_path):
    missing = tmp_path / "none"
    assert version_folders(missing) == {}
    with pytest.raises(FileNotFoundError):
        version_folders(missing, missing_ok=False)
    with pytest.raises(InvalidRequest, match="no numbered version"):
        newest_version(missing)


def test_a_version_is_meant_by_itself_and_by_its_base_folder(tmp_path, monkeypatch):
    folder = tmp_path / "4"
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"x")
    assert version_folder(tmp_path) == version_folder(folder) == folder
    assert version_of(folder) == 4
    monkeypatch.chdir(folder)
    assert version_of(folder.relative_to(folder)) == 4
    assert version_of(tmp_path) == 1


def test_unreadable_manifests_are_explained(tmp_path):
    with pytest.raises(ModelDirError, match="cannot be read"):
        read_manifest(tmp_path)
    path = tmp_path / MANIFEST_PATH
    path.parent.mkdir()
    for text in ("{", "[]", "{}"):
        path.write_text(text)
        with pytest.raises(ModelDirError, match="manifest"):
            read_manifest(tmp_path)
    path.write_text(manifest().to_json())
    assert read_manifest(tmp_path) == manifest()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ModelDirError, match="not a regular file"):
        read_manifest(tmp_path)


def test_changed_files_are_found(tmp_path):
    (tmp_path / "variables").mkdir()
    for name in ("saved_model.pb", "variables/data", "gone"):
        (tmp_path / name).write_text(name)
    listed = replace(manifest(), files=folder_digests(tmp_path))
    assert changed_files(tmp_path, listed) == []
    (tmp_path / "variables/data").write_text("variables/dat4")
    (tmp_path / "gone").unlink()
    (tmp_path / "extra").symlink_to("saved_model.pb")
    problems = changed_files(tmp_path, listed)
    assert [p.split()[0] for p in problems] == ["extra", "gone", "variables/data"]
    assert "changed" in problems[2]
    assert "vouches" in changed_files(tmp_path, manifest())[0]


def test_a_mount_may_add_files_and_make_links(tmp_path):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    (tmp_path / "data").write_text("whole")
    (mounted / "saved_model.pb").symlink_to(tmp_path / "data")
    (mounted / "lost+found").mkdir()
    (mounted / "extra").write_text("somebody's")
    listed = replace(
        manifest(), files={"saved_model.pb": folder_digests(tmp_path)["data"]}
    )
    assert changed_files(mounted, listed, exact=False) == []
    assert len(changed_files(mounted, listed)) == 2
    (tmp_path / "data").write_text("other")
    (problem,) = changed_files(mounted, listed, exact=False)
    assert problem.startswith("saved_model.pb has been changed")


def test_a_fifo_in_a_version_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert folder_digests(tmp_path) == {"pipe": "link"}
    listed = replace(manifest(), files={"pipe": "0" * 64})
    assert changed_files(tmp_path, listed, exact=False) == ["pipe is missing"]


def test_the_limit_is_an_int64():
    assert VERSION_LIMIT == 9223372036854775807
