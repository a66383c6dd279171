"""A server that answers like TensorFlow Serving, or misbehaves as told."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from optserve.runtime import codec
from optserve.runtime.transports.grpc_async import AsyncGrpcTransport
from optserve.runtime.transports.steps import GET_METADATA, GET_STATUS, PREDICT
from tensorflow_serving.apis import get_model_status_pb2 as status_pb2

UNLIMITED = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.so_reuseport", 0),
]
Behaviour = Callable[[bytes, grpc.ServicerContext], bytes]


class FakeTfs:
    """Serves ``y = 2 * x`` for every signature; ``behave`` replaces Predict."""

    def __init__(
        self,
        *,
        model: str = "opt",
        versions: tuple[int, ...] = (1,),
        address: str = "127.0.0.1:0",
        credentials: grpc.ServerCredentials | None = None,
        options: list[tuple[str, Any]] | None = None,
    ) -> None:
        self.model = model
        self.versions = versions
        self.state = "AVAILABLE"
        self.behave: Behaviour | None = None
        self.metadata: list[dict[str, str | bytes]] = []
        self.served = 0
        self._credentials = credentials
        self._options = UNLIMITED if options is None else options
        self.target = address
        self.start()

    def start(self) -> None:
        """Listen, on the same port as before."""
        self.server = grpc.server(ThreadPoolExecutor(16), options=self._options)
        handlers = {
            PREDICT: self._predict,
            GET_STATUS: self._status,
            GET_METADATA: self._predict,
        }
        self.server.add_generic_rpc_handlers((_Handlers(handlers),))
        if self._credentials:
            port = self.server.add_secure_port(self.target, self._credentials)
        else:
            port = self.server.add_insecure_port(self.target)
        if not self.target.startswith("unix:"):
            self.target = f"127.0.0.1:{port}"
        self.server.start()

    def stop(self) -> None:
        """Go away at once, breaking calls off."""
        self.server.stop(0).wait()

    def __enter__(self) -> FakeTfs:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _predict(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        self.metadata.append(dict(context.invocation_metadata()))
        if self.behave:
            return self.behave(data, context)
        request = codec.decode_predict_request(data)
        version = request.model.version
        if request.model.name != self.model or not self.versions:
            servable = f"Latest({request.model.name})"
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {servable}"
            )
        if version is not None and version not in self.versions:
            servable = f"Specific({request.model.name}, {version})"
            context.abort(
                grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {servable}"
            )
        self.served += 1
        spec = codec.ModelSpec(
            self.model, request.model.signature, version or max(self.versions)
        )
        return codec.encode_predict_response(spec, {"y": request.inputs["x"] * 2})

    def _status(self, data: bytes, context: grpc.ServicerContext) -> bytes:
        request = status_pb2.GetModelStatusRequest.FromString(data)
        if request.model_spec.name != self.model:
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions")
        reply = status_pb2.GetModelStatusResponse()
        for version in self.versions:
            reply.model_version_status.add(version=version, state=self.state)
        return reply.SerializeToString()


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, handlers: dict[str, Behaviour]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details):
        handler = self._handlers.get(handler_call_details.method)
        return handler and grpc.unary_unary_rpc_method_handler(handler)


def abort(code: str, details: str) -> Behaviour:
    """A behaviour that refuses every call."""
    return lambda data, context: context.abort(grpc.StatusCode[code], details)


class Blocking:
    """An ``AsyncGrpcTransport`` with ``GrpcTransport``'s methods, for shared tests."""

    def __init__(self, targets, **options) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        try:
            self.transport = AsyncGrpcTransport(targets, **options)
        except BaseException:
            self._end()
            raise

    def __getattr__(self, name: str):
        method = getattr(self.transport, name)

        def wait(*args, **kwargs):
            work = method(*args, **kwargs)
            return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

        return wait

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._end()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Authority:
    """A certificate authority that lives as long as a test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
        self.roots = self._sign(self._name, self._key, None)[0]

    def issue(self, host: str) -> tuple[bytes, bytes]:
        """PEM certificate and key for a host name or an address."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
        return self._sign(name, ec.generate_private_key(ec.SECP256R1()), host)

    def _sign(self, name: x509.Name, key, host: str | None) -> tuple[bytes, bytes]:
        now = datetime.datetime.now(datetime.timezone.utc)
        day = datetime.timedelta(days=1)
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - day)
            .not_valid_after(now + day)
            .add_extension(x509.BasicConstraints(host is None, None), critical=True)
        )
        if host:
            try:
                entry: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
            except ValueError:
                entry = x509.DNSName(host)
            builder = builder.add_extension(
                x509.SubjectAlternativeName([entry]), critical=False
            )
        certificate = builder.sign(self._key, hashes.SHA256())
        return (
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
        )
