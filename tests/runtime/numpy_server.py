"""``NumpyTransport`` behind a real port: a client's whole way, without TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from optserve.runtime import ServerError, codec
from optserve.runtime.transports.base import Call
from optserve.runtime.transports.steps import PREDICT

from .numpy_model import NumpyTransport


@contextmanager
def serving(
    transport: NumpyTransport,
    *,
    seconds: float = 0.0,
    address: str = "127.0.0.1:0",
    compression: grpc.Compression | None = None,
) -> Iterator[str]:
    """The address of a server whose calls take so many seconds more."""

    def predict(data: bytes, context: grpc.ServicerContext) -> bytes:
        request = codec.decode_predict_request(data)
        spec = request.model
        call = Call(spec.signature, request.inputs, request.outputs, spec.version)
        if "input_ids" in request.inputs:
            time.sleep(seconds)
        try:
            reply = transport.call(call)
        except ServerError as error:
            context.abort(getattr(grpc.StatusCode, error.code), str(error))
        answered = codec.ModelSpec(spec.name, spec.signature, reply.version)
        return codec.encode_predict_response(answered, reply.outputs)

    service, method = PREDICT[1:].split("/")
    handler = grpc.unary_unary_rpc_method_handler(predict)
    options = [("grpc.so_reuseport", 0), ("grpc.max_send_message_length", -1)]
    server = grpc.server(ThreadPoolExecutor(8), None, None, options, None, compression)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port(address)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
