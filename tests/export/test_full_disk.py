"""A disk without room: one sentence, in time, and nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from optserve.export.deploy import write_deployment
from optserve.export.errors import ExportError
from optserve.export.full_disk import check_room, free_bytes, full_disk_explained
from optserve.export.options import ExportOptions
from optserve.export.publish import staging, write_whole
from optserve.models.config import OPTConfig
from optserve.models.examples.random_checkpoint import write_random_checkpoint
from optserve.runtime.cli import main

from tests.export.deploy.deployments import MANIFESTS
from tests.export.exports import SMALLEST, only_signatures

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_what_a_full_disk_raises_becomes_a_sentence(tmp_path, number):
    reason = os.strerror(number)
    said = f"writing to {tmp_path} failed .{reason.lower()}"
    for error in (
        OSError(number, reason, "variables/data"),
        RuntimeError(f"[Op:SaveV2] variables/data; {reason}"),  # as TensorFlow does
    ):
        with pytest.raises(ExportError, match=said), full_disk_explained(tmp_path):
            raise error


def test_other_errors_stay_as_they_are(tmp_path):
    for error in (OSError(errno.EACCES, "denied"), RuntimeError("a shape")):
        with pytest.raises(type(error)) as raised, full_disk_explained(tmp_path):
            raise error
        assert raised.value is error


def test_nothing_remains_where_the_disk_filled_up(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ExportError, match="no space left"), staging(out) as staged:
        (staged.folder / "half").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert os.listdir(tmp_path) == []


def test_room_is_looked_for_before_the_work(tmp_path, monkeypatch):
    config = OPTConfig.preset("125m")
    free = {"bytes": 10**12}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free["bytes"]))
    check_room(tmp_path / "new", config, ExportOptions())
    free["bytes"] = 300 * 10**6  # 125m takes 500 MB in float32, 130 MB in int8
    check_room(tmp_path / "new", config, ExportOptions(weights="int8"))
    with pytest.raises(ExportError, match=r"the weights alone take 0\.47 GiB"):
        check_room(tmp_path / "new", config, ExportOptions())


def test_free_room_of_a_folder_that_is_not_there(tmp_path):
    assert free_bytes(tmp_path / "a" / "b") == free_bytes(tmp_path)


def test_the_command_says_so_within_two_seconds(tmp_path, monkeypatch, capsys):
    checkpoint = write_random_checkpoint(tmp_path / "checkpoint", SMALLEST)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, 0))
    begin = time.monotonic()
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 1
    assert time.monotonic() - begin < 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "has room for 0.00 GiB" in said
    assert not (tmp_path / "out").exists()


@pytest.fixture
def largest_file() -> Iterator[Callable[[int], None]]:
    """Sets how many bytes a file of this process may have: the kernel refuses more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("target", "size", "words"),
    [
        ("savedmodel", 10_000, "nothing published.*file too large"),
        ("tflite", 100_000, "nothing published.*file too large"),
        ("tflite", 10_000, "is there room in .*, where it writes"),
    ],
)
def test_the_disk_fills_up_during_an_export(
    tmp_path, capfd, target, size, words, largest_file
):
    largest_file(size)
    checkpoint = Path(__file__).parents[1] / "data" / "golden" / "pre_ln"
    arguments = ["export", str(checkpoint), str(tmp_path / "out"), "--no-verify"]
    if target == "savedmodel":
        arguments += ["--generate", "1"]
    with only_signatures(("decode",)):
        assert main([*arguments, "--target", target]) == 1
    (said,) = [x for x in capfd.readouterr().err.splitlines() if "optserve:" in x]
    assert re.search(words, said)
    assert not (tmp_path / "out").exists()


def test_a_whole_file_or_what_was_there(tmp_path, largest_file):
    largest_file(10_000)
    path = tmp_path / "report.json"
    write_whole(path, "before")
    with pytest.raises(OSError):
        write_whole(path, "x" * 20_000)
    assert path.read_text() == "before" and os.listdir(tmp_path) == ["report.json"]


def test_deployment_files_are_whole_or_not_there(tmp_path, largest_file):
    largest_file(100)
    with pytest.raises(OSError):
        write_deployment(MANIFESTS["tf"], tmp_path / "deploy")
    assert os.listdir(tmp_path / "deploy") == []
