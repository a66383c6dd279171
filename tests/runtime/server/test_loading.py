"""A version that can't be loaded ends with an error, whatever went wrong."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time

import pytest
from optserve.runtime.errors import OptserveError
from optserve.runtime.model_dir import MANIFEST_PATH
from optserve.runtime.server import EmbeddedServer, ModelOptions
from optserve.runtime.server.loading import checked_manifest
from optserve.runtime.server.manager import ModelManager
from optserve.runtime.server.progress import Progress
from optserve.runtime.server.serving_error import ServingError

from . import toy_models
from .calls import serving
from .test_manager import X, until


@pytest.fixture
def base(tmp_path):
    toy_models.save_scaled(tmp_path / "m" / "1", 1.0)
    return tmp_path / "m"


class Loaded:
    """A servable in name only."""

    signatures = ()
    closed = False

    def close(self):
        self.closed = True


FAILURES = [RecursionError(), AttributeError("x"), OSError(5, "I/O error"), KeyError(1)]
FAILURES += [MemoryError(), UnicodeDecodeError("a", b"", 0, 1, "")]


@pytest.mark.parametrize("failure", FAILURES, ids=str)
def test_any_exception_ends_the_version_and_new_files_are_tried(base, failure):
    attempts = []

    def load(name, number, folder):
        attempts.append(folder)
        if len(attempts) == 1:
            raise failure
        return Loaded()

    manager = ModelManager(
        {"toy": ModelOptions(str(base))},
        load,
        poll_seconds=0.02,
        stopping=threading.Event(),
    )
    manager.start(wait=False)
    try:
        (version,) = manager.versions("toy")
        assert version.state.name == "END" and version.error is not None
        time.sleep(0.2)
        assert len(attempts) == 1  # the same files would fail again
        (base / "1" / "more").write_text("repaired")
        until(lambda: manager.available("toy") == [1])
        assert len(attempts) == 2
    finally:
        assert manager.stop()


def test_other_models_go_on_when_one_fails(base, tmp_path):
    def load(name, number, folder):
        if name == "broken":
            raise RecursionError
        return Loaded()

    options = ModelOptions(str(base))
    manager = ModelManager(
        {"broken": options, "sound": options},
        load,
        poll_seconds=10,
        stopping=threading.Event(),
    )
    manager.start(wait=False)
    try:
        assert manager.available("sound") == [1] and not manager.available("broken")
        assert "RecursionError" in manager.why_not("broken")
    finally:
        assert manager.stop()


DEEP = '{"a":' * 100_000


@pytest.mark.parametrize(
    "content",
    [
        *(b"[]", b"null", b"\xff", b"{", DEEP.encode(), b'{"files": []}'),
        b'{"config": 1, "files": {"a": 1}}',
    ],
    ids=len,
)
def test_a_manifest_that_is_none_ends_the_version(base, content):
    (base / "1" / MANIFEST_PATH).parent.mkdir()
    (base / "1" / MANIFEST_PATH).write_bytes(content)
    with pytest.raises(OptserveError, match="cannot be served: ") as error:
        EmbeddedServer(base)
    assert str(error.value).count("\n") == 0


@pytest.mark.parametrize("name", ["saved_model.pb", "variables/more", MANIFEST_PATH])
def test_pipes_and_devices_are_not_waited_for(base, name):
    path = base / "1" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    with pytest.raises(ServingError, match="is not a regular file"):
        checked_manifest(base / "1")
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(ServingError, match="is not a regular file"):
        checked_manifest(base / "1")


def test_a_link_to_a_file_is_a_file(base, tmp_path):
    (base / "1" / "saved_model.pb").rename(tmp_path / "elsewhere")
    (base / "1" / "saved_model.pb").symlink_to(tmp_path / "elsewhere")
    assert checked_manifest(base / "1") is None


@pytest.mark.parametrize("number", [2**63, 10**30])
def test_a_version_beyond_int64_is_passed_over(base, number):
    shutil.copytree(base / "1", base / str(number))
    shutil.copytree(base / "1", base / str(2**63 - 1))
    with serving(base, poll_seconds=0.05) as caller:
        assert caller.predict(x=X)["version"] == 2**63 - 1
        assert set(caller.states()) == {2**63 - 1}
        time.sleep(0.2)
        assert caller.predict(x=X)["version"] == 2**63 - 1


def test_stopping_does_not_wait_for_a_load(base):
    begun, go_on = threading.Event(), threading.Event()
    loaded = Loaded()

    def load(name, number, folder):
        begun.set()
        assert go_on.wait(20)
        return loaded

    manager = ModelManager(
        {"toy": ModelOptions(str(base))},
        load,
        poll_seconds=0.02,
        stopping=threading.Event(),
    )
    starting = threading.Thread(target=manager.start, kwargs={"wait": False})
    starting.start()
    assert begun.wait(10)
    begin = time.monotonic()
    assert not manager.stop(seconds=0.1)
    assert time.monotonic() - begin < 5
    go_on.set()
    until(lambda: loaded.closed)  # freed when TensorFlow has done with it
    starting.join(10)
    assert manager.stop()


def test_progress_gives_up_when_the_server_stops():
    stopping = threading.Event()
    progress = Progress("toy", 1, stopping)
    with progress.step("one"):
        stopping.set()
    with pytest.raises(ServingError, match="stopping"), progress.step("two"):
        raise AssertionError("the step was begun")


def test_progress_names_long_steps(caplog, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(
        "optserve.runtime.server.progress.time.monotonic", lambda: now[0]
    )
    progress = Progress("toy", 3, threading.Event())
    with caplog.at_level(logging.INFO, "optserve.server"):
        for what, seconds in (("short", 0.1), ("long", 2.5), *[("many", 0.5)] * 11):
            with progress.step(what):
                now[0] += seconds
    said = [(r.step, r.seconds, r.model, r.version) for r in caplog.records]
    assert said == [("long", 2.5, "toy", 3), ("many", 0.5, "toy", 3)]
    assert caplog.messages[0] == "version 3 of model toy: long after 2.5 s"
