"""Versions come, serve and end; broken ones leave the others alone."""

from __future__ import annotations

import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from optserve.runtime.errors import OptserveError
from optserve.runtime.server import EmbeddedServer, ModelOptions, VersionPolicy
from optserve.runtime.server.model_version import State, Version
from tensorflow_serving.apis import model_management_pb2

from . import toy_models
from .calls import Caller, refused, serving

X = [[1.0, 2.0]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Versions 1 and 2 of a model that multiplies by its version's number."""
    base = tmp_path_factory.mktemp("scaled")
    for number in (1, 2, 3):
        toy_models.save_scaled(base / str(number), float(number))
    return base


@pytest.fixture
def base(tmp_path, exported):
    shutil.copytree(exported / "1", tmp_path / "m" / "1")
    return tmp_path / "m"


def until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "took too long"
        time.sleep(0.02)


def add(exported, base, number):
    """Put a version there as a careful exporter does: rename it into place."""
    shutil.copytree(exported / str(number), base / "tmp")
    (base / "tmp").rename(base / str(number))


def test_newest_serves_and_the_old_one_ends(base, exported):
    with serving(base, poll_seconds=0.05) as caller:
        assert caller.predict(x=X)["y"].tolist() == [[1.0, 2.0]]
        assert caller.states() == {1: "AVAILABLE"}
        add(exported, base, 2)
        until(lambda: caller.states() == {2: "AVAILABLE", 1: "END"})
        reply = caller.predict(x=X)
        assert reply["version"] == 2 and reply["y"].tolist() == [[2.0, 4.0]]
        with refused("NOT_FOUND", "Specific(toy, 1)"):
            caller.predict(x=X, version=1)


def test_taking_the_newest_away_brings_the_old_one_back(base, exported):
    with serving(base, poll_seconds=0.05) as caller:
        add(exported, base, 2)
        until(lambda: caller.states() == {2: "AVAILABLE", 1: "END"})
        (base / "2").rename(base / "put-aside")
        until(lambda: caller.states() == {2: "END", 1: "AVAILABLE"})
        base.rename(base.with_name("gone"))  # as when a file system goes away
        time.sleep(0.2)
        assert caller.predict(x=X)["version"] == 1


def test_no_call_fails_while_versions_change(base, exported):
    stop = threading.Event()

    def ask(caller):
        versions = set()
        while not stop.is_set():
            reply = caller.predict(x=X)
            assert reply["y"][0, 0] == reply["version"]
            versions.add(reply["version"])
        return versions

    with (
        serving(base, poll_seconds=0.05) as caller,
        ThreadPoolExecutor(4) as pool,
    ):
        callers = [pool.submit(ask, caller) for _ in range(4)]
        try:
            for number in (2, 3):
                add(exported, base, number)
                until(lambda n=number: caller.states().get(n) == "AVAILABLE")
        finally:
            stop.set()
        assert set.union(*(c.result(10) for c in callers)) >= {1, 2}


def test_all_versions_by_number(exported):
    with serving(exported, versions=VersionPolicy.parse("all")) as caller:
        for number in (1, 2, 3):
            reply = caller.predict(x=X, version=number)
            assert reply["y"][0, 0] == number and reply["version"] == number
        assert list(caller.states()) == [3, 2, 1]


def test_labels_and_several_models(exported):
    models = {
        "toy": ModelOptions(
            str(exported), VersionPolicy(versions=(1, 3)), {"stable": 1, "canary": 3}
        ),
        "other": ModelOptions(str(exported)),
    }
    with EmbeddedServer(models=models) as server:
        with Caller(server.target) as caller:
            assert caller.predict(x=X, label="stable")["version"] == 1
            assert caller.predict(x=X, label="canary")["version"] == 3
            with refused("INVALID_ARGUMENT", "version label: beta"):
                caller.predict(x=X, label="beta")
        with Caller(server.target, "other") as caller:
            assert caller.predict(x=X)["version"] == 3
        assert server.models()["toy"]["versions"] == [3, 1]


def test_reload_config(exported):
    with (
        serving(exported, allow_reload=True) as caller,
        Caller(caller.target, "new") as new,
    ):
        request = model_management_pb2.ReloadConfigRequest()
        config = request.config.model_config_list.config.add()
        config.name, config.base_path = "new", str(exported)
        config.model_version_policy.specific.versions.append(2)
        reply = caller.service.HandleReloadConfigRequest(request, timeout=30)
        assert reply.status.error_code == 0
        assert new.predict(x=X)["version"] == 2
        with refused("NOT_FOUND", "Latest(toy)"):
            caller.predict(x=X)
        config.version_labels["stable"] = 1
        with refused("FAILED_PRECONDITION", "label to version 1 of model new"):
            caller.service.HandleReloadConfigRequest(request, timeout=30)
        request.Clear()
        with refused("INVALID_ARGUMENT", "ModelConfigList"):
            caller.service.HandleReloadConfigRequest(request, timeout=30)


def test_reloading_is_off_unless_allowed(exported):
    with serving(exported) as caller:
        request = model_management_pb2.ReloadConfigRequest()
        request.config.model_config_list.SetInParent()  # no model: all would end
        with refused("PERMISSION_DENIED", "start the server with --allow-reload"):
            caller.service.HandleReloadConfigRequest(request, timeout=30)
        assert caller.predict(x=X)["version"] == 3


def test_corrupt_version_leaves_the_serving_one_alone(base, exported):
    with serving(base, poll_seconds=0.05) as caller:
        (base / "2").mkdir()
        (base / "2" / "saved_model.pb").write_bytes(b"\xff" * 100)
        until(lambda: caller.states().get(2) == "END")
        assert caller.predict(x=X)["version"] == 1
        shutil.rmtree(base / "2")
        add(exported, base, 2)  # repaired: tried again
        until(lambda: caller.states() == {2: "AVAILABLE", 1: "END"})


def test_a_version_copied_file_by_file_serves_when_it_is_complete(base, exported):
    with serving(base, poll_seconds=0.05) as caller:
        (base / "2").mkdir()
        shutil.copy(exported / "2" / "saved_model.pb", base / "2")
        until(lambda: caller.states().get(2) == "END")
        shutil.copytree(exported / "2" / "variables", base / "2" / "variables")
        until(lambda: caller.states() == {2: "AVAILABLE", 1: "END"})


def test_tampered_files_are_refused(base):
    folder = base / "1"
    digest = "0" * 64
    manifest = {
        "config": {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 4},
        "framework": "tf",
        "compiler": "none",
        "weights_dtype": "float32",
        "cache_dtype": "float32",
        "signatures": [],
        "files": {"saved_model.pb": digest},
    }
    (folder / "assets.extra").mkdir()
    path = folder / "assets.extra" / "optserve_manifest.json"
    path.write_text(json.dumps(manifest))
    with pytest.raises(OptserveError, match=r"saved_model\.pb has been changed since"):
        EmbeddedServer(base)
    manifest["files"] = {"../../secret": digest}
    path.write_text(json.dumps(manifest))
    with pytest.raises(OptserveError, match="inside the export's folder"):
        EmbeddedServer(base)


def test_waits_for_a_model_if_told_to(tmp_path, exported):
    base = tmp_path / "late"
    timer = threading.Timer(0.3, shutil.copytree, (exported / "1", base / "1"))
    timer.start()
    with EmbeddedServer(base, wait_for_model=True, poll_seconds=0.05) as server:
        assert server.models()["opt"]["versions"] == [1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda base: base / "nowhere", "there is no folder"),
        (lambda base: base / "1", "is a SavedModel itself"),
        (lambda base: base / "1" / "variables", "has no version to serve"),
    ],
)
def test_a_path_that_is_no_model(base, make, words):
    with pytest.raises(OptserveError, match=words):
        EmbeddedServer(make(base))


def test_a_version_ends_after_its_calls():
    class Servable:
        closed = False

        def close(self):
            self.closed = True

    servable = Servable()
    version = Version(1, State.AVAILABLE, servable=servable)
    with version.lease() as leased:
        assert leased is servable
        unloading = threading.Thread(target=version.unload)
        unloading.start()
        until(lambda: version.state is State.UNLOADING)
        with version.lease() as second:
            assert second is None
        assert not servable.closed
    unloading.join()
    assert servable.closed and version.state is State.END


def test_policies():
    versions = [1, 10, 2]
    assert VersionPolicy.parse("all").choose(versions) == [10, 2, 1]
    assert VersionPolicy.parse("latest").choose(versions) == [10]
    assert VersionPolicy.parse("latest:2").choose(versions) == [10, 2]
    assert VersionPolicy.parse("1,10").choose(versions) == [10, 1]
    for wrong in ("newest", "latest:0", "latest:x", "", "-1"):
        with pytest.raises(ValueError, match="should be all, latest"):
            VersionPolicy.parse(wrong)
