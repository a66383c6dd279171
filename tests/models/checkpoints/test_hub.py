"""Hub ids against a loopback server: cache, revision, offline, token, refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from optserve.models.checkpoints import (
    CheckpointNotFound,
    HubError,
    open_weights,
    resolve,
    save_weights,
)

from .hub_server import COMMIT, HubServer

REPOSITORY = "somebody/opt-tiny"


@pytest.fixture
def hub(tmp_path: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch):
    source = tmp_path / "source"
    shutil.copytree(data_dir / "golden" / "pre_ln", source)
    (source / "README.md").write_text("not wanted")
    for variable in ("HF_TOKEN", "HF_HUB_OFFLINE", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "no-token"))
    with HubServer({REPOSITORY: source}) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_an_existing_path_is_taken_as_it_is(tmp_path: Path):
    assert resolve(tmp_path) == tmp_path


def test_subfolder_of_a_path(tmp_path: Path):
    assert resolve(tmp_path, subfolder="a/b") == tmp_path / "a" / "b"
    for wrong in ("../a", "/a", "a/../.."):
        with pytest.raises(ValueError, match="downwards"):
            resolve(tmp_path, subfolder=wrong)


def test_subfolder_on_the_hub(hub, tmp_path):
    source = hub.repositories[REPOSITORY]
    (source / "best").mkdir()
    for name in ("config.json", "model.safetensors"):
        (source / name).rename(source / "best" / name)
    options = {"cache_dir": tmp_path / "cache", "subfolder": "best"}
    directory = resolve(REPOSITORY, **options)
    assert names(directory) == {"config.json", "model.safetensors"}
    assert names(directory.parent) == {"best"}
    hub.stop()
    assert resolve(REPOSITORY, **options, local_files_only=True) == directory


def test_force_download_asks_the_server_again(hub, tmp_path):
    options = {"cache_dir": tmp_path / "cache"}
    resolve(REPOSITORY, **options)
    hub.requests.clear()
    resolve(REPOSITORY, **options, force_download=True)
    paths = {path for method, path, _ in hub.requests if method == "GET"}
    assert any(path.endswith("model.safetensors") for path in paths)


@pytest.mark.parametrize(
    "name", ["./missing", "/nowhere/x", "a/b/c", "..", "a/..b", ""]
)
def test_what_is_neither_path_nor_id_is_refused(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    if name in ("", ".."):
        return  # these exist: the current directory and its parent
    with pytest.raises(CheckpointNotFound, match="neither"):
        resolve(name)


def test_download_takes_one_format_and_the_cache_answers_offline(hub, tmp_path):
    directory = resolve(REPOSITORY, cache_dir=tmp_path / "cache")
    assert names(directory) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
    }
    original = open_weights(hub.repositories[REPOSITORY])
    for name, array in open_weights(directory).items():
        np.testing.assert_array_equal(array, original[name])
    asked = len(hub.requests)
    options = {"cache_dir": tmp_path / "cache"}
    assert resolve(REPOSITORY, local_files_only=True, **options) == directory
    assert len(hub.requests) == asked
    hub.stop()
    assert resolve(REPOSITORY, **options) == directory


def test_offline_mode_from_the_environment(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(HubError, match="offline mode is on"):
        resolve(REPOSITORY, cache_dir=tmp_path / "cache")
    assert not hub.requests


def test_without_weights_only_small_files_come(hub, tmp_path):
    directory = resolve(REPOSITORY, cache_dir=tmp_path / "cache", weights=False)
    assert names(directory) == {"config.json", "generation_config.json"}
    with pytest.raises(CheckpointNotFound, match="no weights"):
        resolve(REPOSITORY, cache_dir=tmp_path / "cache", local_files_only=True)


def test_a_format_can_be_asked_for(hub, tmp_path):
    with pytest.raises(ValueError, match="format should be one of"):
        resolve(REPOSITORY, cache_dir=tmp_path / "cache", format="onnx")
    (hub.repositories[REPOSITORY] / "model.safetensors").unlink()
    with pytest.raises(CheckpointNotFound, match="no weights"):
        resolve(REPOSITORY, cache_dir=tmp_path / "cache", format="safetensors")


def test_shards_come_with_their_index(hub, tmp_path):
    source = hub.repositories[REPOSITORY]
    save_weights(source, dict(open_weights(source)).items(), max_shard_size=50_000)
    directory = resolve(REPOSITORY, cache_dir=tmp_path / "cache")
    assert len(open_weights(directory)) == 52


@pytest.mark.parametrize("revision", ["v1", COMMIT])
def test_revisions(hub, tmp_path, revision):
    directory = resolve(REPOSITORY, revision=revision, cache_dir=tmp_path / "cache")
    assert directory.name == COMMIT
    with pytest.raises(CheckpointNotFound, match="no revision 'nope'"):
        resolve(REPOSITORY, revision="nope", cache_dir=tmp_path / "cache")


def test_the_token_comes_from_the_environment_or_the_call(hub, tmp_path, monkeypatch):
    hub.private[REPOSITORY] = "hf_right"
    with pytest.raises(CheckpointNotFound, match="HF_TOKEN"):
        resolve(REPOSITORY, cache_dir=tmp_path / "a")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert open_weights(resolve(REPOSITORY, cache_dir=tmp_path / "a"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(CheckpointNotFound) as caught:
        resolve(REPOSITORY, cache_dir=tmp_path / "b")
    assert "hf_wrong" not in str(caught.value)
    assert open_weights(resolve(REPOSITORY, cache_dir=tmp_path / "b", token="hf_right"))


def test_an_unknown_model_says_so(hub, tmp_path):
    with pytest.raises(CheckpointNotFound, match="no model 'somebody/nothing'"):
        resolve("somebody/nothing", cache_dir=tmp_path / "cache")


def test_a_gated_model_says_what_to_do(hub, tmp_path):
    hub.gated.add(REPOSITORY)
    with pytest.raises(HubError, match="accept its terms") as caught:
        resolve(REPOSITORY, cache_dir=tmp_path / "cache")
    assert "secret words" not in str(caught.value)


def test_an_unreachable_hub_says_so(hub, tmp_path):
    hub.stop()
    with pytest.raises(HubError, match="could not be reached"):
        resolve(REPOSITORY, cache_dir=tmp_path / "cache")


def test_a_broken_download_is_an_error_and_the_next_one_succeeds(
    hub, tmp_path, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    hub.truncated.add("model.safetensors")
    with pytest.raises(HubError):
        resolve(REPOSITORY, cache_dir=tmp_path / "cache")
    hub.truncated.clear()
    assert open_weights(resolve(REPOSITORY, cache_dir=tmp_path / "cache"))


def test_a_failing_hub_gives_its_status(hub, tmp_path):
    hub.failing = True
    with pytest.raises(HubError, match="503"):
        resolve(REPOSITORY, cache_dir=tmp_path / "cache")


def test_a_configuration_is_uploaded_and_the_commit_told(hub):
    from optserve.models import OPTConfig

    url = OPTConfig(num_hidden_layers=3).push_to_hub("somebody/new", token="hf_t")
    assert url == f"{hub.url}/somebody/new/commit/{COMMIT}"
    assert b'"num_hidden_layers": 3' in hub.uploaded["somebody/new"]["config.json"]
    assert {token for method, _, token in hub.requests if method == "POST"} == {"hf_t"}


def test_an_upload_that_fails_is_one_clear_error(hub, tmp_path):
    from optserve.models import OPTConfig
    from optserve.models.push import PushError

    hub.stop()
    with pytest.raises(PushError, match="somebody/new was not uploaded to the hub: "):
        OPTConfig().save_pretrained(
            tmp_path, push_to_hub=True, repo_id="somebody/new", token="hf_t"
        )
    assert (tmp_path / "config.json").is_file()
