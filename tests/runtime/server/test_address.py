"""Ports, Unix sockets and TLS; the files that configure them."""

from __future__ import annotations

import contextlib
import socket

import grpc
import pytest
from cryptography.hazmat.primitives import serialization
from optserve.runtime.errors import OptserveError
from optserve.runtime.server import EmbeddedServer, SessionOptions, TlsOptions
from optserve.runtime.server.address import Address
from optserve.runtime.server.config_files import (
    read_batching_file,
    read_models_file,
    read_tls_file,
)
from optserve.runtime.server.tls import server_credentials
from optserve.runtime.server.unix_socket import UnixSocket

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


def test_a_socket_has_one_server(rec_path, tmp_path):
    path = tmp_path / "server.sock"
    first, second = UnixSocket(str(path)), UnixSocket(str(path))
    first.claim()  # it loads its model, and doesn't listen yet
    with pytest.raises(OptserveError, match="another process listens"):
        second.claim()
    first.release()
    assert not list(tmp_path.iterdir())
    second.claim()
    second.release()


def test_a_socket_that_is_not_answered_is_not_taken_away(tmp_path):
    path = tmp_path / "server.sock"
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(str(path))
        busy.listen(0)  # and accepts nobody: the queue is full at once
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(str(path))
        with pytest.raises(OptserveError, match="another process listens"):
            UnixSocket(str(path)).claim()
        for one in waiting:
            one.close()
    datagrams = tmp_path / "datagrams"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(datagrams))
        with pytest.raises(OptserveError, match="another process listens"):
            UnixSocket(str(datagrams)).claim()
    assert path.exists() and datagrams.exists()


def test_a_server_that_ends_removes_its_own_socket_only(rec_path, tmp_path):
    path = tmp_path / "server.sock"
    ours = UnixSocket(str(path))
    ours.claim()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        ours.note_bound()
        path.unlink()
        with socket.socket(socket.AF_UNIX) as others:
            others.bind(str(path))
            ours.release()
            assert path.exists()


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
        ({"host": ""}, "the host is empty"),
        ({"host": "é" * 70, "port": 8500}, "is not a host"),
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


def test_certificates_that_cannot_work_are_refused_before_anyone_calls(certificates):
    ca, (key, cert), (other_key, _) = certificates
    assert server_credentials(TlsOptions(key, cert, ca, True)) is not None
    for tls, words in (
        (TlsOptions(other_key, cert), "do not belong together"),
        (TlsOptions(key, cert, client_verify=True), "there is no custom_ca"),
        (TlsOptions(key, cert, b"nonsense", True), "custom_ca holds no PEM"),
        (TlsOptions(b"nonsense", cert), "server_key is not PEM"),
        (TlsOptions(key, b"nonsense"), "server_cert is not PEM"),
        (TlsOptions(key, cert.replace(b"M", b"N")), "cannot be used"),
        (TlsOptions(encrypted(key), cert), "cannot be used"),
    ):
        with pytest.raises(OptserveError, match=words) as error:
            server_credentials(tls)
        assert "PRIVATE" not in str(error.value) and "\n" not in str(error.value)


def encrypted(key: bytes) -> bytes:
    return serialization.load_pem_private_key(key, None).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )


LOCAL = [("127.0.0.1", None), ("127.3.2.1", None), ("::1", None), ("localhost", None)]
LOCAL += [("0.0.0.0", "/a/socket")]
REMOTE = ["0.0.0.0", "::", "10.1.2.3", "models.example", "127.evil.example", ""]


def test_local_addresses():
    assert all(Address(host, 1, path).is_local for host, path in LOCAL)
    assert not any(Address(host, 1, None).is_local for host in REMOTE)


def test_reloading_needs_a_place_that_strangers_cannot_call(rec_path, certificates):
    ca, (key, cert), _ = certificates
    everywhere = {"host": "0.0.0.0", "allow_reload": True}
    for tls in (None, TlsOptions(key, cert, ca)):
        with pytest.raises(OptserveError, match="whoever can call could load any"):
            EmbeddedServer(rec_path, tls=tls, **everywhere)
    verified = TlsOptions(key, cert, ca, client_verify=True)
    EmbeddedServer(rec_path, tls=verified, **everywhere).stop()


def test_thread_counts_that_would_end_the_process():
    for threads in (-3, 10**9):
        with pytest.raises(ValueError, match="must be from 0"):
            SessionOptions(intra_op_threads=threads)
        with pytest.raises(ValueError, match="must be from 0"):
            SessionOptions(inter_op_threads=threads)


def test_batching_file_in_the_tensorflow_servings_format(tmp_path):
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
        (read_batching_file, f"batch_timeout_micros {{ value: {2**62} }}", "an hour"),
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
