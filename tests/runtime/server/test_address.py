"""Ports, Unix sockets and TLS; the files that configure them."""

from __future__ import annotations

import socket

import grpc
import pytest
from optserve.runtime.errors import OptserveError
from optserve.runtime.server import EmbeddedServer
from optserve.runtime.server.config_files import (
    read_batching_file,
    read_models_file,
    read_tls_file,
)

from .calls import Caller

SCALAR = {"x": 3.0}


def test_unix_socket_replaces_one_left_over(rec_path, tmp_path):
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))  # as after SIGKILL: the file stays, nobody listens
    with EmbeddedServer(rec_path, name="rec", socket=path) as server:
        assert server.target == f"unix:{path}"
        with Caller(server.target, "rec") as caller:
            assert caller.predict("scalar", **SCALAR)["y"] == 6.0
        with pytest.raises(OptserveError, match="another process listens"):
            EmbeddedServer(rec_path, socket=path)
    assert not path.exists()


def test_addresses_that_cannot_be_had(rec_path, tmp_path, typed_server):
    port = int(typed_server.target.rpartition(":")[2])
    with pytest.raises(OptserveError, match="Address already in use; choose another"):
        EmbeddedServer(rec_path, port=port)
    (tmp_path / "file").touch()
    for options, words in (
        ({"socket": tmp_path / "file"}, "is not a socket"),
        ({"socket": tmp_path / "no" / "sock"}, "no folder for the socket"),
        ({"socket": tmp_path / ("x" * 200)}, "longer than"),
        ({"port": 70000}, "not between 0 and 65535"),
        ({"host": "192.0.2.1", "port": 8500}, "should be an address of this machine"),
    ):
        with pytest.raises(OptserveError, match=words):
            EmbeddedServer(rec_path, **options)


def test_tls_with_client_certificates(rec_path, tmp_path, certificates):
    ca, server_pair, client_pair = certificates
    pem = tmp_path / "ssl.pbtxt"
    pem.write_text(
        f"server_key: {server_pair[0].decode()!r}\n"
        f"server_cert: {server_pair[1].decode()!r}\n"
        f"custom_ca: {ca.decode()!r}\nclient_verify: true\n"
    )
    tls = read_tls_file(str(pem))
    assert "PRIVATE" not in repr(tls)
    with EmbeddedServer(rec_path, name="rec", host="localhost", tls=tls) as server:
        known = grpc.ssl_channel_credentials(ca, *client_pair)
        with Caller(server.target, "rec", known) as caller:
            assert caller.predict("scalar", **SCALAR)["y"] == 6.0
        stranger = grpc.ssl_channel_credentials(ca)
        with Caller(server.target, "rec", stranger) as caller:
            with pytest.raises(grpc.RpcError) as refusal:
                caller.predict("scalar", **SCALAR)
            assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


def test_batching_file_in_the_genuine_format(tmp_path):
    path = tmp_path / "batching.config"
    path.write_text(
        "max_batch_size { value: 8 }\nbatch_timeout_micros { value: 500 }\n"
        "max_enqueued_batches { value: 3 }\nnum_batch_threads { value: 2 }\n"
        'thread_pool_name { value: "pool" }\n'
        "allowed_batch_sizes: 2\nallowed_batch_sizes: 8\n"
        "pad_variable_length_inputs: true\n"
    )
    read = read_batching_file(str(path))
    assert (read.max_batch_size, read.batch_timeout_micros) == (8, 500)
    assert (read.max_enqueued_batches, read.num_batch_threads) == (3, 2)
    assert read.allowed_batch_sizes == (2, 8) and read.pad_variable_length_inputs
    assert [read.padded_rows(n) for n in (1, 2, 3, 8)] == [2, 2, 8, 8]


@pytest.mark.parametrize(
    ("reader", "text", "words"),
    [
        (read_batching_file, "max_batch_size: 8", "not a BatchingParameters"),
        (read_batching_file, "max_batch_size { value: 0 }", "must be at least 1"),
        (read_batching_file, "allowed_batch_sizes: 3", "end with max_batch_size"),
        (read_tls_file, 'server_key: "SECRET', "not a SSLConfig"),
        (read_tls_file, 'server_key: "SECRET"', "must both be given"),
        (read_models_file, "model_config_list {", "not a ModelServerConfig"),
    ],
)
def test_bad_files_are_named(tmp_path, reader, text, words):
    path = tmp_path / "file.config"
    path.write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        reader(str(path))
    assert str(path) in str(error.value) and "SECRET" not in str(error.value)
    with pytest.raises(ValueError, match="cannot read"):
        reader(str(tmp_path / "nowhere"))


def test_models_file(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(
        'model_config_list { config { name: "a" base_path: "/m/a" '
        'model_platform: "tensorflow" model_version_policy { all {} } } '
        'config { name: "b" base_path: "/m/b" version_labels { key: "x" value: 2 } '
        "model_version_policy { specific { versions: 1 versions: 2 } } } }"
    )
    models = read_models_file(str(path))
    assert models["a"].policy.latest == 0 and models["a"].base_path == "/m/a"
    assert models["b"].policy.versions == (1, 2) and models["b"].labels == {"x": 2}
